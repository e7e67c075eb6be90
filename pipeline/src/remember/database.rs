//! `results.sqlite` in the cache folder: what was measured, for anyone to query.
//!
//! Columns are copies of what the record says; the record itself is sealed, so that a row that was changed counts as none. Any number of
//! runs may share the file: each write is a transaction, and waits for others'.

use crate::sealed;
use bitsmith_formats::{Error, ErrorKind, Result};
use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params_from_iter};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long another run's transaction is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// `user_version` of the tables below.
const VERSION: i64 = 1;
const TABLES: &str = "CREATE TABLE IF NOT EXISTS texts (
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
);
CREATE TABLE IF NOT EXISTS tasks (
    key TEXT PRIMARY KEY,
    at INTEGER NOT NULL,
    tool TEXT NOT NULL,
    model TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    bpw REAL NOT NULL,
    kv TEXT NOT NULL,
    task TEXT NOT NULL,
    shots INTEGER NOT NULL,     -- examples before each question
    items INTEGER NOT NULL,
    metric TEXT,                -- the task's first, if it was scored
    value REAL,
    stderr REAL,
    record TEXT NOT NULL        -- scores and answers
);";

/// A table.
#[derive(Debug, Clone, Copy)]
pub enum Table {
    /// Perplexities and divergences: a row for each model, reference and text.
    Texts,
    /// Answers: a row for each model and task.
    Tasks,
}

impl Table {
    fn name(self) -> &'static str {
        match self {
            Table::Texts => "texts",
            Table::Tasks => "tasks",
        }
    }
}

/// Columns of a row, by name, all but `key` and `record`.
pub type Columns = Vec<(&'static str, Value)>;

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
    pub fn get<T: DeserializeOwned>(&self, table: Table, key: &str) -> Result<Option<T>> {
        let Some(connection) = self.existing()? else { return Ok(None) };
        let query = format!("SELECT record FROM {} WHERE key = ?1", table.name());
        let text = connection.query_row(&query, [key], |row| row.get::<_, String>(0));
        Ok(text.optional().map_err(|e| self.failed(&e))?.and_then(|text| sealed::open(text.as_bytes())))
    }

    /// Keeps a record, in the place of an earlier one with this key.
    pub fn put<T: Serialize>(&self, table: Table, key: &str, columns: Columns, record: &T) -> Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(|e| Error::write(folder, e))?;
        self.existing()?;
        let (mut names, mut values) = (vec!["key"], vec![Value::from(key.to_string())]);
        for (name, value) in columns.into_iter().chain([("record", Value::from(sealed::seal(record)?))]) {
            names.push(name);
            values.push(value);
        }
        let places = vec!["?"; names.len()].join(", ");
        let insert = format!("INSERT OR REPLACE INTO {} ({}) VALUES ({places})", table.name(), names.join(", "));
        let write = || -> rusqlite::Result<usize> {
            let connection = self.connect(OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
            connection.execute_batch(&format!("BEGIN IMMEDIATE; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;"))?;
            connection.execute(&insert, params_from_iter(values))
        };
        write().map(|_| ()).map_err(|e| self.failed(&e))
    }

    /// All records of models whose name contains `word`: by name, and the latest first.
    pub fn of_models<T: DeserializeOwned>(&self, table: Table, word: &str) -> Result<Vec<T>> {
        let Some(connection) = self.existing()? else { return Ok(Vec::new()) };
        let read = || -> rusqlite::Result<Vec<String>> {
            let filter = "WHERE instr(model, ?1) > 0 OR ?1 = '' ORDER BY model, at DESC, key";
            let mut statement = connection.prepare(&format!("SELECT record FROM {} {filter}", table.name()))?;
            statement.query_map([word], |row| row.get(0))?.collect()
        };
        let texts = read().map_err(|e| self.failed(&e))?;
        Ok(texts.iter().filter_map(|text| sealed::open(text.as_bytes())).collect())
    }

    /// A connection, if the file is there and has tables. A file of another version is refused.
    fn existing(&self) -> Result<Option<Connection>> {
        if !self.path.exists() {
            return Ok(None);
        }
        let connection = self.connect(OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(|e| self.failed(&e))?;
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(|e| self.failed(&e))?;
        match version {
            // Another run has begun it, or was killed when it did.
            0 => Ok(None),
            VERSION => Ok(Some(connection)),
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

    const TEXTS: Table = Table::Texts;

    fn columns(model: &str, at: i64) -> Columns {
        let mut columns: Columns = ["tool", "kv", "data", "style"].map(|name| (name, "x".to_string().into())).into();
        columns.extend(["bpw", "perplexity", "perplexity_stderr", "kld"].map(|name| (name, 0.25.into())));
        columns.extend([("at", at.into()), ("bytes", 3.into()), ("ctx", 512.into()), ("model", model.to_string().into())]);
        columns
    }

    #[test]
    fn records_are_found_by_key_and_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let db = Database::of(&dir.path().join("cache"));
        assert_eq!(db.get::<u32>(TEXTS, "k").unwrap(), None);
        assert!(db.of_models::<u32>(TEXTS, "").unwrap().is_empty() && !db.path().exists());
        for (key, model, at, value) in [("k", "a%b", 1, 1u32), ("l", "a%b", 2, 2), ("m", "b", 1, 3), ("k", "a%b", 3, 4)] {
            db.put(TEXTS, key, columns(model, at), &value).unwrap();
        }
        assert_eq!((db.get(TEXTS, "k").unwrap(), db.get::<u32>(TEXTS, "x").unwrap()), (Some(4u32), None));
        assert_eq!(db.of_models::<u32>(TEXTS, "%").unwrap(), [4, 2]);
        assert_eq!(db.of_models::<u32>(TEXTS, "").unwrap(), [4, 2, 3]);
        // As others see it.
        let other = Connection::open(db.path()).unwrap();
        let kld: f64 = other.query_row("SELECT kld FROM texts WHERE model = 'b'", [], |row| row.get(0)).unwrap();
        assert_eq!(kld, 0.25);
        // A changed record is none.
        other.execute("UPDATE texts SET record = replace(record, '4', '5') WHERE key = 'k'", []).unwrap();
        assert_eq!(db.get::<u32>(TEXTS, "k").unwrap(), None);
        // A file that was only begun has nothing yet.
        let begun = Database::of(&dir.path().join("begun"));
        std::fs::create_dir(dir.path().join("begun")).unwrap();
        std::fs::write(begun.path(), "").unwrap();
        assert_eq!(begun.get::<u32>(TEXTS, "k").unwrap(), None);
        begun.put(TEXTS, "k", columns("a", 1), &7u32).unwrap();
        assert_eq!(begun.get::<u32>(TEXTS, "k").unwrap(), Some(7));
        // Another version's file, and what is no database, are left alone.
        other.execute_batch("PRAGMA user_version = 9").unwrap();
        assert_eq!(db.put(TEXTS, "k", columns("c", 1), &5u32).unwrap_err().kind, ErrorKind::Unsupported);
        drop(other);
        std::fs::write(db.path(), "a text that is no database, but long enough to be one").unwrap();
        assert!(db.get::<u32>(TEXTS, "k").is_err() && db.put(TEXTS, "k", columns("c", 1), &5u32).is_err());
    }

    #[test]
    fn many_runs_write_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let db = Database::of(dir.path());
        std::thread::scope(|scope| {
            for t in 0..4u32 {
                let db = &db;
                scope.spawn(move || (0..10).for_each(|i| db.put(TEXTS, &format!("{t} {i}"), columns("m", 1), &i).unwrap()));
            }
        });
        assert_eq!(db.of_models::<u32>(TEXTS, "m").unwrap().len(), 40);
    }
}
