//! A store on a file system.

use bitsmith_formats::{Error, Result};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// What stands in the names of files while they are written.
pub const PARTIAL: &str = ".partial-";

/// A folder.
pub struct Folder {
    root: PathBuf,
}

impl Folder {
    /// Opens a folder, which is created if there is none.
    pub fn open(path: &Path) -> Result<Folder> {
        let work = path.join("work");
        fs::create_dir_all(&work).map_err(|e| Error::write(&work, e))?;
        let root = path.canonicalize().map_err(|e| Error::read(path, e))?;
        Ok(Folder { root })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.root.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::read(path, e)),
        }
    }

    /// Any number of writers of one document may meet: it is the last one's, and always whole.
    pub fn put(&self, name: &str, document: &[u8]) -> Result<()> {
        let path = self.root.join(name);
        let failed = |e| Error::write(&path, e);
        parent(&path)?;
        // Named after its key, so that it is known later whether it is of any use.
        let prefix = format!("{}{PARTIAL}", path.file_stem().unwrap_or_default().to_string_lossy());
        let mut file = tempfile::Builder::new().prefix(&prefix).tempfile_in(self.root.join("work")).map_err(failed)?;
        file.write_all(document).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
        readable(file.path()).map_err(failed)?;
        file.persist(&path).map_err(|e| failed(e.error))?;
        Ok(())
    }

    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.root.join(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::write(path, e)),
            _ => Ok(()),
        }
    }

    /// Names of the documents in a folder of folders, without their ending.
    pub fn keys(&self, folder: &str) -> Result<BTreeSet<String>> {
        let mut keys = BTreeSet::new();
        let mut folders = vec![self.root.join(folder)];
        while let Some(dir) = folders.pop() {
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::read(dir, e)),
            };
            for entry in entries {
                let entry = entry.map_err(|e| Error::read(&dir, e))?;
                let name = entry.file_name().to_string_lossy().into_owned();
                match name.strip_suffix(".json") {
                    Some(key) => drop(keys.insert(key.to_string())),
                    None => folders.push(entry.path()),
                }
            }
        }
        Ok(keys)
    }

    pub fn bytes(&self, name: &str) -> Result<Option<u64>> {
        let path = self.root.join(name);
        match fs::metadata(&path) {
            Ok(meta) => Ok(Some(meta.len())),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::read(path, e)),
        }
    }

    /// The same file under another name, where the file system can; a copy otherwise.
    pub fn keep(&self, file: &Path, name: &str) -> Result<()> {
        let blob = self.root.join(name);
        if blob.exists() {
            return Ok(());
        }
        parent(&blob)?;
        protect(file)?;
        self.link_or_copy(file, &blob)
    }

    pub fn fetch(&self, name: &str, to: &Path) -> Result<()> {
        let blob = self.root.join(name);
        if !blob.exists() {
            return Err(Error::missing("the store has lost this file").file(blob).hint("run the batch again"));
        }
        self.link_or_copy(&blob, to)
    }

    fn link_or_copy(&self, from: &Path, to: &Path) -> Result<()> {
        match fs::hard_link(from, to) {
            Ok(()) => return Ok(()),
            // Another process was as fast, with the same content.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(()),
            // On another file system, or one without links.
            Err(_) => {}
        }
        let failed = |e| Error::write(to, e);
        let dir = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut copy = tempfile::Builder::new().prefix(PARTIAL).tempfile_in(dir).map_err(failed)?;
        let mut source = File::open(from).map_err(|e| Error::read(from, e))?;
        std::io::copy(&mut source, &mut copy).and_then(|_| copy.as_file().sync_all()).map_err(failed)?;
        copy.persist(to).map_err(|e| failed(e.error))?;
        protect(to)
    }
}

fn parent(path: &Path) -> Result<()> {
    let dir = path.parent().expect("names have folders");
    fs::create_dir_all(dir).map_err(|e| Error::write(dir, e))
}

/// Forbids to write to a file: its name is the hash of what is in it.
fn protect(path: &Path) -> Result<()> {
    let failed = |e| Error::write(path, e);
    let mut permissions = fs::metadata(path).map_err(failed)?.permissions();
    permissions.set_readonly(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        permissions.set_mode(0o444);
    }
    fs::set_permissions(path, permissions).map_err(failed)
}

/// Lets others read a document, whom a temporary file would shut out.
fn readable(path: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
    }
    let _ = path;
    Ok(())
}
