//! `results.sqlite` in the cache folder: one row for each model and text, for anyone to query.
//!
//! Columns are copies of what the record says; the record itself is sealed, so that a row that was changed counts as none. Any number of
//! runs may share the file: each write is a transaction, and waits for others'.

use crate::sealed;
use bitsmith_formats::{Error, ErrorKind, Result};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long another run's transaction is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// `user_version` of the table below.
const VERSION: i64 = 1;
const TABLE: &str = "CREATE TABLE IF NOT EXISTS results (
    key TEXT PRIMARY KEY,
    at INTEGER NOT NULL,        -- seconds since 1970
    tool TEXT NOT NULL,
    model TEXT NOT NULL,
    bytes INTEGER NOT NULL,     -- of the model's files
    bpw REAL NOT NULL,          -- bits per weight
    kv TEXT NOT NULL,           -- type of the cache of keys and values
    data TEXT NOT NULL,         -- the text
    ctx INTEGER NOT NULL,       -- tokens per window
    style TEXT NOT NULL,
    perplexity REAL NOT NULL,
    perplexity_stderr REAL NOT NULL,
    against TEXT,               -- the reference
    kld REAL,                   -- nats per token
    kld_stderr REAL,
    record TEXT NOT NULL        -- everything, as JSON with its hash
);";

/// What can be asked for in a query.
#[derive(Debug, Clone, PartialEq)]
pub struct Columns {
    pub at: u64,
    pub tool: String,
    pub model: String,
    pub bytes: u64,
    pub bpw: f64,
    pub kv: String,
    pub data: String,
    pub ctx: usize,
    pub style: String,
    pub perplexity: [f64; 2],
    /// The reference, the mean divergence from it and its standard error.
    pub kld: Option<(String, [f64; 2])>,
}

/// The file of results.
#[derive(Debug, Clone)]
pub struct Database {
    path: PathBuf,
}

impl Database {
    /// The one of this cache folder, which need not exist.
    pub fn of(cache: &Path) -> Database {
        Database { path: cache.join("results.sqlite") }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The record with this key; nothing if there is none, or it was changed or is of another kind.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        let Some(connection) = self.existing()? else { return Ok(None) };
        let text = connection.query_row("SELECT record FROM results WHERE key = ?1", [key], |row| row.get::<_, String>(0));
        Ok(text.optional().map_err(|e| self.failed(&e))?.and_then(|text| sealed::open(text.as_bytes())))
    }

    /// Keeps a record, in the place of an earlier one with this key.
    pub fn put<T: Serialize>(&self, key: &str, columns: &Columns, record: &T) -> Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(|e| Error::write(folder, e))?;
        let sealed = sealed::seal(record)?;
        let c = columns;
        let (against, kld, kld_stderr) = match &c.kld {
            Some((against, [mean, stderr])) => (Some(against), Some(mean), Some(stderr)),
            None => (None, None, None),
        };
        let write = || -> rusqlite::Result<usize> {
            let connection = self.connect(OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
            connection.execute_batch(&format!("BEGIN IMMEDIATE; {TABLE} PRAGMA user_version = {VERSION}; COMMIT;"))?;
            connection.execute(
                "INSERT OR REPLACE INTO results VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
                params![
                    key,
                    c.at as i64,
                    c.tool,
                    c.model,
                    c.bytes as i64,
                    c.bpw,
                    c.kv,
                    c.data,
                    c.ctx as i64,
                    c.style,
                    c.perplexity[0],
                    c.perplexity[1],
                    against,
                    kld,
                    kld_stderr,
                    sealed
                ],
            )
        };
        self.check_version()?;
        write().map(|_| ()).map_err(|e| self.failed(&e))
    }

    /// All records of models whose name contains `word`, with their keys: by name, and the latest first.
    pub fn of_models<T: DeserializeOwned>(&self, word: &str) -> Result<Vec<T>> {
        let Some(connection) = self.existing()? else { return Ok(Vec::new()) };
        let read = || -> rusqlite::Result<Vec<String>> {
            let query = "SELECT record FROM results WHERE instr(model, ?1) > 0 OR ?1 = '' ORDER BY model, at DESC, key";
            let mut statement = connection.prepare(query)?;
            statement.query_map([word], |row| row.get(0))?.collect()
        };
        let texts = read().map_err(|e| self.failed(&e))?;
        Ok(texts.iter().filter_map(|text| sealed::open(text.as_bytes())).collect())
    }

    /// A connection, if the file is there.
    fn existing(&self) -> Result<Option<Connection>> {
        self.check_version()?;
        match self.path.exists() {
            true => self.connect(OpenFlags::SQLITE_OPEN_READ_WRITE).map(Some).map_err(|e| self.failed(&e)),
            false => Ok(None),
        }
    }

    /// Refuses a file of another version.
    fn check_version(&self) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        let connection = self.connect(OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(|e| self.failed(&e))?;
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(|e| self.failed(&e))?;
        match version {
            0 | VERSION => Ok(()),
            _ => Err(self
                .error(ErrorKind::Unsupported, format!("the results are of version {version}; this is for version {VERSION}"))),
        }
    }

    fn connect(&self, flags: OpenFlags) -> rusqlite::Result<Connection> {
        let connection = Connection::open_with_flags(&self.path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(PATIENCE)?;
        Ok(connection)
    }

    fn failed(&self, e: &rusqlite::Error) -> Error {
        let kind = match e.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => ErrorKind::Corrupt,
            _ => ErrorKind::Io,
        };
        self.error(kind, format!("the database of results: {e}"))
    }

    fn error(&self, kind: ErrorKind, what: String) -> Error {
        Error::new(kind, what)
            .file(&self.path)
            .hint("remove the file: evaluations are then computed again; or give another --cache-dir")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(model: &str, at: u64) -> Columns {
        Columns {
            at,
            tool: "t".into(),
            model: model.into(),
            bytes: 3,
            bpw: 4.5,
            kv: "f16".into(),
            data: "d".into(),
            ctx: 512,
            style: "paper".into(),
            perplexity: [5.0, 0.1],
            kld: Some(("r".into(), [0.25, 0.5])),
        }
    }

    #[test]
    fn records_are_found_by_key_and_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let db = Database::of(&dir.path().join("cache"));
        assert_eq!(db.get::<u32>("k").unwrap(), None);
        assert!(db.of_models::<u32>("").unwrap().is_empty() && !db.path().exists());
        for (key, model, at, value) in [("k", "a%b", 1, 1u32), ("l", "a%b", 2, 2), ("m", "b", 1, 3), ("k", "a%b", 3, 4)] {
            db.put(key, &columns(model, at), &value).unwrap();
        }
        assert_eq!((db.get("k").unwrap(), db.get::<u32>("x").unwrap()), (Some(4u32), None));
        assert_eq!(db.of_models::<u32>("%").unwrap(), [4, 2]);
        assert_eq!(db.of_models::<u32>("").unwrap(), [4, 2, 3]);
        // As others see it.
        let other = Connection::open(db.path()).unwrap();
        let kld: f64 = other.query_row("SELECT kld FROM results WHERE model = 'b'", [], |row| row.get(0)).unwrap();
        assert_eq!(kld, 0.25);
        // A changed record is none.
        other.execute("UPDATE results SET record = replace(record, '4', '5') WHERE key = 'k'", []).unwrap();
        assert_eq!(db.get::<u32>("k").unwrap(), None);
        // Another version's file, and what is no database, are left alone.
        other.execute_batch("PRAGMA user_version = 9").unwrap();
        assert_eq!(db.put("k", &columns("c", 1), &5u32).unwrap_err().kind, ErrorKind::Unsupported);
        drop(other);
        std::fs::write(db.path(), "a text that is no database, but long enough to be one").unwrap();
        assert!(db.get::<u32>("k").is_err() && db.put("k", &columns("c", 1), &5u32).is_err());
    }

    #[test]
    fn many_runs_write_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let db = Database::of(dir.path());
        std::thread::scope(|scope| {
            for t in 0..4u32 {
                let db = &db;
                scope.spawn(move || (0..10).for_each(|i| db.put(&format!("{t} {i}"), &columns("m", 1), &i).unwrap()));
            }
        });
        assert_eq!(db.of_models::<u32>("m").unwrap().len(), 40);
    }
}
