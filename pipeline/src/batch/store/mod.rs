//! The content-addressed store: blobs by their sha256, documents by their key.
//!
//! ```text
//! records/ab/KEY.json    what a node made: written last, so that a node with a record is done
//! results/ab/KEY.json    the same by the real hashes of all that went in
//! failures/ab/KEY.json   why a node failed
//! plans/KEY.json         plans that were begun
//! runs/KEY.json          what of them a cluster was given
//! blobs/ab/SHA256        content, never changed once it is there
//! work/                  unfinished work and logs, on a file system only
//! ```
//!
//! Documents and blobs appear whole or not at all, so that any number of machines may share a store.

mod folder;
#[cfg(feature = "s3")]
mod objects;

use bitsmith_formats::atomic::free_bytes;
use bitsmith_formats::{Error, Result};
use folder::Folder;
use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

/// A kind of document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What a node made.
    Record,
    /// What was made of these contents.
    Result,
    /// Why a node failed.
    Failure,
    /// A plan.
    Plan,
    /// What of a plan a cluster was given.
    Run,
}

impl Kind {
    fn folder(self) -> &'static str {
        match self {
            Kind::Record => "records",
            Kind::Result => "results",
            Kind::Failure => "failures",
            Kind::Plan => "plans",
            Kind::Run => "runs",
        }
    }

    /// Plans are few, and for people too.
    fn name(self, key: &str) -> String {
        match self {
            Kind::Plan | Kind::Run => format!("{}/{key}.json", self.folder()),
            kind => format!("{}/{}/{key}.json", kind.folder(), &key[..2]),
        }
    }
}

pub(super) fn blob_name(sha256: &str) -> String {
    format!("blobs/{}/{sha256}", &sha256[..2])
}

/// Where a store lies.
enum Place {
    Folder(Folder),
    #[cfg(feature = "s3")]
    Objects(objects::Objects),
}

/// A store.
pub struct Store {
    place: Place,
    uri: String,
}

/// A folder for the unfinished work of one node. While it is held nobody else works in it.
pub struct Bench {
    /// The folder.
    pub dir: PathBuf,
    _lock: Option<File>,
}

impl Store {
    /// Opens a store: a folder, `file:///folder`, or `s3://bucket/prefix`.
    pub fn open(uri: &str) -> Result<Store> {
        let place = match uri.split_once("://") {
            None => Place::Folder(Folder::open(Path::new(uri))?),
            Some(("file", path)) => Place::Folder(Folder::open(Path::new(path))?),
            #[cfg(feature = "s3")]
            Some(("s3", _)) => Place::Objects(objects::Objects::open(uri)?),
            #[cfg(not(feature = "s3"))]
            Some(("s3", _)) => {
                return Err(Error::unsupported("this build has no object storage")
                    .hint("build with `--features s3`, or name a folder with --store"));
            }
            Some((scheme, _)) => {
                return Err(Error::usage(format!("--store {uri}: there is no storage called `{scheme}`"))
                    .hint("name a folder, file:///folder or s3://bucket/prefix"));
            }
        };
        let uri = match &place {
            Place::Folder(folder) => folder.root().display().to_string(),
            #[cfg(feature = "s3")]
            Place::Objects(_) => uri.to_string(),
        };
        Ok(Store { place, uri })
    }

    /// What opens it again, from any folder.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The folder that it is, if it is one.
    pub fn root(&self) -> Option<&Path> {
        match &self.place {
            Place::Folder(folder) => Some(folder.root()),
            #[cfg(feature = "s3")]
            Place::Objects(_) => None,
        }
    }

    /// A document, if it is there.
    pub fn get(&self, kind: Kind, key: &str) -> Result<Option<Vec<u8>>> {
        let name = kind.name(key);
        match &self.place {
            Place::Folder(folder) => folder.get(&name),
            #[cfg(feature = "s3")]
            Place::Objects(objects) => objects.get(&name),
        }
    }

    /// Writes a document, in the place of one that is there.
    pub fn put(&self, kind: Kind, key: &str, document: &[u8]) -> Result<()> {
        let name = kind.name(key);
        match &self.place {
            Place::Folder(folder) => folder.put(&name, document),
            #[cfg(feature = "s3")]
            Place::Objects(objects) => objects.put(&name, document),
        }
    }

    /// Removes a document, if it is there.
    pub fn remove(&self, kind: Kind, key: &str) -> Result<()> {
        let name = kind.name(key);
        match &self.place {
            Place::Folder(folder) => folder.remove(&name),
            #[cfg(feature = "s3")]
            Place::Objects(objects) => objects.remove(&name),
        }
    }

    /// The keys of all documents of a kind.
    pub fn keys(&self, kind: Kind) -> Result<BTreeSet<String>> {
        match &self.place {
            Place::Folder(folder) => folder.keys(kind.folder()),
            #[cfg(feature = "s3")]
            Place::Objects(objects) => objects.keys(kind.folder()),
        }
    }

    /// Size in bytes of a blob, if it is there.
    pub fn blob_bytes(&self, sha256: &str) -> Result<Option<u64>> {
        let name = blob_name(sha256);
        match &self.place {
            Place::Folder(folder) => folder.bytes(&name),
            #[cfg(feature = "s3")]
            Place::Objects(objects) => objects.bytes(&name),
        }
    }

    /// Keeps a finished file, whose hash is known, as a blob. The file may stay, but must not be changed any more.
    pub fn keep(&self, file: &Path, sha256: &str) -> Result<()> {
        let name = blob_name(sha256);
        match &self.place {
            Place::Folder(folder) => folder.keep(file, &name),
            #[cfg(feature = "s3")]
            Place::Objects(objects) => objects.keep(file, &name, sha256),
        }
    }

    /// Puts a blob at a path that is free, to be read: it may be the same file as in the store.
    pub fn fetch(&self, sha256: &str, to: &Path) -> Result<()> {
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent).map_err(|e| Error::write(parent, e))?;
        }
        let name = blob_name(sha256);
        match &self.place {
            Place::Folder(folder) => folder.fetch(&name, to),
            #[cfg(feature = "s3")]
            Place::Objects(objects) => objects.fetch(&name, sha256, to),
        }
    }

    /// The folder for a node's unfinished work, with what an earlier attempt left in it.
    pub fn bench(&self, key: &str) -> Result<Bench> {
        Bench::take(&self.work(), key)
    }

    /// Where unfinished work and logs lie: in the store, or, where that is no file system, among this machine's temporary files.
    pub fn work(&self) -> PathBuf {
        match &self.place {
            Place::Folder(folder) => folder.root().join("work"),
            #[cfg(feature = "s3")]
            Place::Objects(_) => std::env::temp_dir().join("bitsmith-work"),
        }
    }

    /// Bytes that may still be written, where that is known.
    pub fn free_bytes(&self) -> Option<u64> {
        free_bytes(&self.work())
    }

    /// Removes what killed attempts left of work that is done, by the keys of its documents.
    pub fn tidy(&self, done: &dyn Fn(&str) -> bool) -> Result<()> {
        let work = self.work();
        let Ok(entries) = std::fs::read_dir(&work) else { return Ok(()) };
        for entry in entries.filter_map(|e| e.ok()) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let key = name.split('.').next().unwrap_or_default();
            if !key.is_empty() && done(key) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::write(path, e)),
        _ => Ok(()),
    }
}

impl Bench {
    fn take(work: &Path, key: &str) -> Result<Bench> {
        let dir = work.join(key);
        std::fs::create_dir_all(&dir).map_err(|e| Error::write(&dir, e))?;
        let path = work.join(format!("{key}.lock"));
        let lock = File::create(&path).map_err(|e| Error::write(&path, e))?;
        match lock.try_lock() {
            Ok(()) => {
                // Whoever held it before may have cleared the folder just now.
                std::fs::create_dir_all(&dir).map_err(|e| Error::write(&dir, e))?;
                Ok(Bench { dir, _lock: Some(lock) })
            }
            // Somebody is at the same node. Results are the same whoever makes them, so that both may go on.
            Err(std::fs::TryLockError::WouldBlock) => {
                let dir = work.join(format!("{key}.{}", std::process::id()));
                std::fs::create_dir_all(&dir).map_err(|e| Error::write(&dir, e))?;
                Ok(Bench { dir, _lock: None })
            }
            // File systems without locks: two attempts at once are the engine's to avoid.
            Err(std::fs::TryLockError::Error(_)) => Ok(Bench { dir, _lock: None }),
        }
    }

    /// Removes the folder: what was made in it is in the store.
    pub fn clear(self) -> Result<()> {
        remove(&self.dir)?;
        if self._lock.is_some() {
            remove(&self.dir.with_extension("lock"))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.uri)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_formats::hash::sha256_bytes;

    #[test]
    fn documents_and_blobs_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("s").to_str().unwrap()).unwrap();
        let key = sha256_bytes(b"key");
        assert_eq!(store.get(Kind::Record, &key).unwrap(), None);
        store.put(Kind::Record, &key, b"one").unwrap();
        store.put(Kind::Record, &key, b"two").unwrap();
        assert_eq!(store.get(Kind::Record, &key).unwrap().as_deref(), Some(&b"two"[..]));
        assert_eq!(store.keys(Kind::Record).unwrap(), BTreeSet::from([key.clone()]));
        assert!(store.keys(Kind::Failure).unwrap().is_empty());
        store.remove(Kind::Record, &key).unwrap();
        store.remove(Kind::Record, &key).unwrap();
        assert!(store.keys(Kind::Record).unwrap().is_empty());

        let (file, sha256) = (dir.path().join("file"), sha256_bytes(b"content"));
        std::fs::write(&file, b"content").unwrap();
        assert_eq!(store.blob_bytes(&sha256).unwrap(), None);
        store.keep(&file, &sha256).unwrap();
        store.keep(&file, &sha256).unwrap();
        assert_eq!(store.blob_bytes(&sha256).unwrap(), Some(7));
        let copy = dir.path().join("a/b");
        store.fetch(&sha256, &copy).unwrap();
        assert_eq!(std::fs::read(&copy).unwrap(), b"content");
        // Whoever has it may not change the store's.
        assert!(std::fs::metadata(&copy).unwrap().permissions().readonly());
    }

    #[test]
    fn a_bench_is_for_one() {
        let dir = tempfile::tempdir().unwrap();
        let first = Bench::take(dir.path(), "k").unwrap();
        std::fs::write(first.dir.join("left"), "").unwrap();
        let second = Bench::take(dir.path(), "k").unwrap();
        assert_ne!(first.dir, second.dir);
        second.clear().unwrap();
        drop(first);
        let third = Bench::take(dir.path(), "k").unwrap();
        assert!(third.dir.join("left").exists());
        third.clear().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn other_storage_is_refused() {
        assert_eq!(Store::open("ftp://x/y").unwrap_err().kind, bitsmith_formats::ErrorKind::Usage);
    }
}
