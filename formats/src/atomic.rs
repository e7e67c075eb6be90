//! Outputs that appear under their final name only when whole.
//!
//! [`AtomicFile`] and [`AtomicDir`] grow under `NAME.partial` next to `NAME`; `commit` flushes to disk and renames. Dropped
//! without `commit`, they remove the partial; one left by a killed run is replaced by the next. A lock on the partial keeps
//! two processes from writing the same output at once.

use crate::error::{Error, ErrorKind, Result};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file that replaces its target on [`AtomicFile::commit`].
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    partial: PathBuf,
    target: PathBuf,
    committed: bool,
}

impl AtomicFile {
    /// Starts an empty file that will become `target`. The parent folder must exist.
    pub fn create(target: impl AsRef<Path>) -> Result<Self> {
        let target = target.as_ref();
        if target.is_dir() {
            return Err(Error::new(ErrorKind::CannotWrite, "a folder of this name exists").file(target));
        }
        let partial = partial_path(target)?;
        let file = lock_partial(&partial, target, || {
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&partial)
        })?;
        file.set_len(0).map_err(|e| Error::write(target, e))?;
        Ok(AtomicFile { file, partial, target: target.to_path_buf(), committed: false })
    }

    /// The final path.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Claims disk space for `len` bytes and makes the file that long, so that a full disk shows before the work and not after it.
    pub fn reserve(&self, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        allocate(&self.file, len).map_err(|e| {
            let mut error = Error::write(&self.target, e);
            error.message = format!("{} ({len} bytes are needed)", error.message);
            error
        })
    }

    /// Writes all of `bytes` at `offset`; may be called from several threads at once.
    pub fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        write_all_at(&self.file, bytes, offset).map_err(|e| Error::write(&self.target, e))
    }

    /// Flushes to disk and gives the file its final name, replacing what was there.
    pub fn commit(mut self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::write(&self.target, e))?;
        fs::rename(&self.partial, &self.target).map_err(|e| Error::write(&self.target, e))?;
        self.committed = true;
        sync_dir(parent(&self.target)).map_err(|e| Error::write(&self.target, e))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file.write(buf)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            // Nobody is left to hear of a failure here, and the next run replaces a partial anyway.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// Bytes that may still be written where `path` is or will be; nothing where the system does not say.
pub fn free_bytes(path: &Path) -> Option<u64> {
    let there = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("."));
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    #[cfg(unix)]
    return rustix::fs::statvfs(there).ok().map(|s| s.f_bavail.saturating_mul(s.f_frsize));
    #[cfg(not(unix))]
    {
        let _ = there;
        None
    }
}

/// Writes a whole file atomically.
pub fn write_file(target: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let file = AtomicFile::create(target)?;
    file.write_all_at(bytes, 0)?;
    file.commit()
}

/// A folder that replaces its target on [`AtomicDir::commit`]. Files are written below [`AtomicDir::path`].
///
/// A folder that exists under the final name is replaced *whole*, with everything in it: callers decide beforehand whether
/// it may be.
#[derive(Debug)]
pub struct AtomicDir {
    /// Holds the lock, where the platform can lock a folder.
    _lock: Option<File>,
    partial: PathBuf,
    target: PathBuf,
    committed: bool,
}

impl AtomicDir {
    /// Starts an empty folder that will become `target`. The parent folder must exist.
    pub fn create(target: impl AsRef<Path>) -> Result<Self> {
        let target = target.as_ref();
        if target.exists() && !target.is_dir() {
            return Err(Error::new(ErrorKind::CannotWrite, "a file of this name exists").file(target));
        }
        let partial = partial_path(target)?;
        let make = || match fs::create_dir(&partial) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => Ok(()),
        };
        let lock = if cfg!(unix) {
            Some(lock_partial(&partial, target, || make().and_then(|()| File::open(&partial)))?)
        } else {
            make().map_err(|e| Error::write(target, e))?;
            None
        };
        empty_dir(&partial).map_err(|e| Error::write(target, e))?;
        Ok(AtomicDir { _lock: lock, partial, target: target.to_path_buf(), committed: false })
    }

    /// Where the files go until `commit`.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// The final path.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Flushes every file to disk and gives the folder its final name. An existing folder is exchanged in one step where the
    /// system can do that, else moved aside to `NAME.previous` first; then it is removed.
    pub fn commit(mut self) -> Result<()> {
        let failed = |e| Error::write(&self.target, e);
        sync_tree(&self.partial).map_err(failed)?;
        let old = if !self.target.exists() {
            fs::rename(&self.partial, &self.target).map_err(failed)?;
            None
        } else if exchange(&self.partial, &self.target).is_ok() {
            Some(self.partial.clone())
        } else {
            Some(replace_in_two_steps(&self.partial, &self.target)?)
        };
        self.committed = true;
        if let Some(old) = old {
            fs::remove_dir_all(old).map_err(|e| Error::write(&self.target, e))?;
        }
        sync_dir(parent(&self.target)).map_err(|e| Error::write(&self.target, e))
    }
}

impl Drop for AtomicDir {
    fn drop(&mut self) {
        if !self.committed {
            // As for files: the next run replaces what cannot be removed now.
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

/// Moves the target aside and the partial into its place; returns where the old one is now.
fn replace_in_two_steps(partial: &Path, target: &Path) -> Result<PathBuf> {
    let failed = |e| Error::write(target, e);
    let previous = with_suffix(target, ".previous")?;
    if previous.exists() {
        fs::remove_dir_all(&previous).map_err(failed)?;
    }
    fs::rename(target, &previous).map_err(failed)?;
    if let Err(e) = fs::rename(partial, target) {
        fs::rename(&previous, target).map_err(failed)?;
        return Err(failed(e));
    }
    Ok(previous)
}

fn with_suffix(target: &Path, suffix: &str) -> Result<PathBuf> {
    let name = target.file_name().ok_or_else(|| Error::usage("the output path names no file or folder").file(target))?;
    let mut name = name.to_os_string();
    name.push(suffix);
    Ok(target.with_file_name(name))
}

fn partial_path(target: &Path) -> Result<PathBuf> {
    with_suffix(target, ".partial")
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// Opens and locks the partial. After the lock, the name must still lead to what was opened: another process may have
/// renamed it to its final name, or removed it, in between.
fn lock_partial(partial: &Path, target: &Path, open: impl Fn() -> io::Result<File>) -> Result<File> {
    let failed = |e| Error::write(target, e);
    for _ in 0..100 {
        if partial.is_symlink() {
            fs::remove_file(partial).map_err(failed)?;
        }
        let file = open().map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(ErrorKind::CannotWrite, "another process is writing this output").file(target));
            }
            // Some network file systems have no locks: then two writers are the user's to avoid.
            Err(TryLockError::Error(_)) => {}
        }
        if is_at(&file, partial).map_err(failed)? {
            return Ok(file);
        }
    }
    Err(Error::new(ErrorKind::CannotWrite, "another process keeps replacing this output").file(target))
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(m) => Ok((m.dev(), m.ino()) == (ours.dev(), ours.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(not(unix))]
fn is_at(_file: &File, path: &Path) -> io::Result<bool> {
    Ok(path.exists())
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !bytes.is_empty() {
        let n = match file.seek_write(bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        bytes = &bytes[n..];
        offset += n as u64;
    }
    Ok(())
}

/// Makes the file `len` bytes long with its blocks allocated. Where the file system cannot allocate ahead the file is only
/// made longer, and a full disk shows when the data are written.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "macos", target_os = "freebsd"))]
fn allocate(file: &File, len: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;
    loop {
        return match fallocate(file, FallocateFlags::empty(), 0, len) {
            Ok(()) => Ok(()),
            Err(Errno::INTR) => continue,
            Err(e) if e == Errno::OPNOTSUPP || e == Errno::NOTSUP || e == Errno::NOSYS || e == Errno::INVAL => file.set_len(len),
            Err(e) => Err(e.into()),
        };
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "macos", target_os = "freebsd")))]
fn allocate(file: &File, len: u64) -> io::Result<()> {
    file.set_len(len)
}

#[cfg(any(target_os = "linux", target_os = "macos"))]
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn exchange(_a: &Path, _b: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(unix)]
fn sync_dir(dir: &Path) -> io::Result<()> {
    match File::open(dir)?.sync_all() {
        // Some file systems cannot flush a folder, and have nothing to flush.
        Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        other => other,
    }
}

#[cfg(not(unix))]
fn sync_dir(_dir: &Path) -> io::Result<()> {
    Ok(())
}

fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            OpenOptions::new().read(true).write(cfg!(windows)).open(entry.path())?.sync_all()?;
        }
    }
    sync_dir(dir)
}

fn empty_dir(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_on_commit_and_replaces_the_old() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.bin");
        fs::write(&path, b"old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["out.bin", "out.bin.partial"]);
        file.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["out.bin"]);
    }

    #[test]
    fn a_dropped_file_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        drop(AtomicFile::create(dir.path().join("out.bin")).unwrap());
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn a_stale_partial_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("out.bin.partial"), b"much longer than the new contents").unwrap();
        write_file(dir.path().join("out.bin"), b"new").unwrap();
        assert_eq!(fs::read(dir.path().join("out.bin")).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["out.bin"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_partial_that_is_a_symlink_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = dir.path().join("precious");
        fs::write(&elsewhere, b"precious").unwrap();
        std::os::unix::fs::symlink(&elsewhere, dir.path().join("out.bin.partial")).unwrap();
        write_file(dir.path().join("out.bin"), b"new").unwrap();
        assert_eq!(fs::read(&elsewhere).unwrap(), b"precious");
    }

    #[cfg(unix)]
    #[test]
    fn two_writers_of_one_output_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let first = AtomicFile::create(&path).unwrap();
        assert_eq!(AtomicFile::create(&path).unwrap_err().kind, ErrorKind::CannotWrite);
        drop(first);
        let first = AtomicDir::create(&path).unwrap();
        assert_eq!(AtomicDir::create(&path).unwrap_err().kind, ErrorKind::CannotWrite);
        first.commit().unwrap();
        AtomicDir::create(&path).unwrap().commit().unwrap();
    }

    #[test]
    fn a_missing_parent_cannot_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none/out");
        assert_eq!(AtomicFile::create(&path).unwrap_err().kind, ErrorKind::CannotWrite);
        assert_eq!(AtomicDir::create(&path).unwrap_err().kind, ErrorKind::CannotWrite);
        assert_eq!(AtomicFile::create(dir.path().join("..")).unwrap_err().kind, ErrorKind::CannotWrite);
    }

    #[test]
    fn more_space_than_any_disk_has_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("huge");
        let file = AtomicFile::create(&path).unwrap();
        // Larger than ext4's, XFS's and APFS's largest file.
        let error = file.reserve(i64::MAX as u64).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Io, "{error}");
        assert!(error.hint.is_some());
        drop(file);
        assert!(names(dir.path()).is_empty());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_has_its_kind_and_hint() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let e = Error::write("out", write_all_at(&full, b"x", 0).unwrap_err());
        assert_eq!(e.kind, ErrorKind::Io);
        assert!(e.hint.unwrap().contains("disk space"));
    }

    #[test]
    fn a_folder_appears_on_commit_and_replaces_the_old_whole() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("old"), b"old").unwrap();
        let out = AtomicDir::create(&target).unwrap();
        fs::create_dir(out.path().join("sub")).unwrap();
        fs::write(out.path().join("sub/new"), b"new").unwrap();
        assert_eq!(names(&target), ["old"]);
        out.commit().unwrap();
        assert_eq!(names(&target), ["sub"]);
        assert_eq!(names(dir.path()), ["out"]);
    }

    #[test]
    fn replacing_in_two_steps_undoes_the_first_if_the_second_fails() {
        let dir = tempfile::tempdir().unwrap();
        let (partial, target) = (dir.path().join("out.partial"), dir.path().join("out"));
        fs::create_dir(&target).unwrap();
        assert_eq!(replace_in_two_steps(&partial, &target).unwrap_err().kind, ErrorKind::CannotWrite);
        assert_eq!(names(dir.path()), ["out"]);
        fs::create_dir(&partial).unwrap();
        assert_eq!(replace_in_two_steps(&partial, &target).unwrap(), dir.path().join("out.previous"));
        assert_eq!(names(dir.path()), ["out", "out.previous"]);
    }

    #[test]
    fn a_dropped_folder_leaves_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("old"), b"old").unwrap();
        let out = AtomicDir::create(&target).unwrap();
        fs::write(out.path().join("new"), b"new").unwrap();
        drop(out);
        assert_eq!(names(&target), ["old"]);
        assert_eq!(names(dir.path()), ["out"]);
    }

    #[test]
    fn a_stale_partial_folder_is_emptied() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        fs::create_dir_all(dir.path().join("out.partial/sub")).unwrap();
        fs::write(dir.path().join("out.partial/sub/stale"), b"stale").unwrap();
        let out = AtomicDir::create(&target).unwrap();
        fs::write(out.path().join("new"), b"new").unwrap();
        out.commit().unwrap();
        assert_eq!(names(&target), ["new"]);
    }
}
