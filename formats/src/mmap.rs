//! Read-only memory maps of files, and large pages for what is copied from them.

mod faults;

pub use faults::on_lost_pages;

use crate::error::{Error, ErrorKind, Result};
use faults::Known;
use memmap2::Mmap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A file mapped for reading.
#[derive(Debug)]
pub(crate) struct Mapped {
    path: PathBuf,
    file: File,
    /// `None` for an empty file, which cannot be mapped.
    map: Option<Mmap>,
    /// Dropped after the map.
    _known: Option<Known>,
}

impl Mapped {
    /// Maps the whole file. Anything but a regular file is refused.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::read(path, e))?;
        let meta = file.metadata().map_err(|e| Error::read(path, e))?;
        if !meta.is_file() {
            return Err(Error::usage("not a regular file").file(path));
        }
        if meta.len() == 0 {
            return Ok(Mapped { path: path.to_path_buf(), file, map: None, _known: None });
        }
        // SAFETY: the map is read-only and its bytes are only ever read as `u8` (or copied into wider types), for which every
        // bit pattern is valid. What the language cannot rule out is another process changing the file meanwhile: a change in
        // place can only yield other bytes, which all readers treat as untrusted anyway (bounds are checked against lengths
        // taken once), and after a truncation the system sends a signal, which ends the process (`on_lost_pages` says how) instead of
        // giving wrong results. This crate's own writers never truncate or change a file in place under its final name; they rename a new one over it.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::read(path, e))?;
        let known = Known::new(&map, path);
        Ok(Mapped { path: path.to_path_buf(), file, map: Some(map), _known: Some(known) })
    }

    /// The file's contents.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }

    /// A copy of some bytes, read and not mapped: pages that were only passed through do not stay in this process's memory, and
    /// a file that was cut short meanwhile gives an error.
    pub(crate) fn read(&self, range: Range<usize>) -> Result<Vec<u8>> {
        let mut bytes = in_large_pages(vec![0u8; range.len()]);
        read_exact_at(&self.file, &mut bytes, range.start as u64).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => shrunk(&self.path),
            _ => Error::read(&self.path, e),
        })?;
        Ok(bytes)
    }

    /// The file's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// The error of a file that was longer when it was opened.
pub fn shrunk(path: &Path) -> Error {
    Error::new(ErrorKind::Io, "the file became shorter while it was being read")
        .file(path)
        .hint("leave the files of a model alone while it is in use, and run the command again")
}

/// Asks for a new buffer's memory to come in large pages: what is streamed through spends less time on finding addresses then, and comes into
/// being with fewer faults. Only what has not been touched yet, as zeros and free capacity of large buffers, gains anything. Where a
/// system has no such pages, nothing changes.
pub fn in_large_pages<T>(buffer: Vec<T>) -> Vec<T> {
    /// Below this few large pages would fit.
    #[cfg(target_os = "linux")]
    const WORTH_IT: usize = 8 << 20;
    #[cfg(target_os = "linux")]
    if buffer.capacity() * size_of::<T>() >= WORTH_IT {
        const PAGE: usize = 4096;
        let start = buffer.as_ptr().addr();
        let (first, end) = (start.next_multiple_of(PAGE), start + buffer.capacity() * size_of::<T>());
        let at = buffer.as_ptr().wrapping_byte_add(first - start).cast_mut().cast();
        // SAFETY: whole pages of memory that the buffer owns, whose contents this advice leaves alone. Refusal does no harm.
        let _ = unsafe { rustix::mm::madvise(at, (end - first) / PAGE * PAGE, rustix::mm::Advice::LinuxHugepage) };
    }
    buffer
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, bytes, at)?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        bytes = &mut bytes[n..];
        at += n as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_contents() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, b"abc").unwrap();
        let mapped = Mapped::open(&path).unwrap();
        assert_eq!(mapped.bytes(), b"abc");
        assert_eq!(mapped.read(1..3).unwrap(), b"bc");
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(2).unwrap();
        assert_eq!(mapped.read(1..3).unwrap_err().kind, ErrorKind::Io);
    }

    #[test]
    fn an_empty_file_has_no_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, b"").unwrap();
        assert_eq!(Mapped::open(&path).unwrap().bytes(), b"");
    }

    #[test]
    fn errors_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none");
        let e = Mapped::open(&path).unwrap_err();
        assert_eq!((e.kind, e.file), (ErrorKind::Missing, Some(path)));
        assert_eq!(Mapped::open(dir.path()).unwrap_err().kind, ErrorKind::Usage);
    }
}
