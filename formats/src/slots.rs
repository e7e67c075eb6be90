//! A file planned ahead: a header, then one slot per tensor at a fixed offset, filled in any order, whole or in parts, and from any
//! thread.

use crate::atomic::AtomicFile;
use crate::error::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Where a tensor's bytes go.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub name: String,
    /// Offset from the start of the file in bytes.
    pub offset: u64,
    pub len: u64,
}

/// The parts of a slot that were written: ends by starts, neighbours joined. A count of bytes would take a part written twice and a
/// part left out for a whole.
#[derive(Debug, Default)]
struct Filled(Mutex<BTreeMap<u64, u64>>);

impl Filled {
    /// Claims `start .. end`; false if any of it was claimed before.
    fn claim(&self, mut start: u64, mut end: u64) -> bool {
        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = parts.range(..end).next_back().map(|(&s, &e)| (s, e));
        match before {
            Some((_, e)) if e > start => return false,
            Some((s, e)) if e == start => start = s,
            _ => {}
        }
        if let Some(e) = parts.remove(&end) {
            end = e;
        }
        parts.insert(start, end);
        true
    }

    fn is_whole(&self, len: u64) -> bool {
        let parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        len == 0 || parts.get(&0) == Some(&len)
    }
}

/// Fills the slots of one file. The result is the same for any order of writing.
#[derive(Debug)]
pub(crate) struct SlotFile {
    file: AtomicFile,
    slots: Vec<Slot>,
    index: HashMap<String, usize>,
    filled: Vec<Filled>,
}

impl SlotFile {
    /// Claims `file_len` bytes for `path` and writes the header. What lies between slots reads as zero.
    pub(crate) fn create(path: &Path, header: &[u8], slots: Vec<Slot>, file_len: u64) -> Result<Self> {
        let file = AtomicFile::create(path)?;
        file.reserve(file_len)?;
        file.write_all_at(header, 0)?;
        let index = slots.iter().enumerate().map(|(i, s)| (s.name.clone(), i)).collect();
        let filled = slots.iter().map(|_| Filled::default()).collect();
        Ok(SlotFile { file, slots, index, filled })
    }

    /// Writes one tensor's bytes, exactly once.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let len = self.slot(name)?.1.len;
        if bytes.len() as u64 != len {
            return Err(self.error(name, format!("has {} bytes, the plan says {len}", bytes.len())));
        }
        self.write_at(name, 0, bytes)
    }

    /// Writes some of one tensor's bytes, `offset` bytes into it; every byte exactly once.
    pub(crate) fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        let (i, slot) = self.slot(name)?;
        let Some(end) = offset.checked_add(bytes.len() as u64).filter(|&end| end <= slot.len) else {
            let message = format!("{} bytes at {offset} reach past the {} bytes of the plan", bytes.len(), slot.len);
            return Err(self.error(name, message));
        };
        if bytes.is_empty() {
            return Ok(());
        }
        if !self.filled[i].claim(offset, end) {
            return Err(self.error(name, "was written twice".into()));
        }
        self.file.write_all_at(bytes, slot.offset + offset).map_err(|e| e.tensor(name))
    }

    fn slot(&self, name: &str) -> Result<(usize, &Slot)> {
        let i = self.index.get(name).ok_or_else(|| self.error(name, "is not in the plan of this file".into()))?;
        Ok((*i, &self.slots[*i]))
    }

    fn error(&self, name: &str, message: String) -> Error {
        Error::failed(message).file(self.file.target()).tensor(name)
    }

    /// Checks that every slot was filled.
    pub(crate) fn check_complete(&self) -> Result<()> {
        let missing: Vec<_> = self.slots.iter().zip(&self.filled).filter(|(s, f)| !f.is_whole(s.len)).collect();
        if let Some((slot, _)) = missing.first() {
            let message =
                format!("{} of {} planned tensors were never written, or not to the end", missing.len(), self.slots.len());
            return Err(self.error(&slot.name, message));
        }
        Ok(())
    }

    /// Checks that every slot was filled, flushes, and gives the file its final name.
    pub(crate) fn finish(self) -> Result<()> {
        self.check_complete()?;
        self.file.commit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Vec<Slot> {
        vec![Slot { name: "a".into(), offset: 4, len: 2 }, Slot { name: "b".into(), offset: 8, len: 3 }]
    }

    #[test]
    fn any_order_gives_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        for (file, order) in [("1", ["a", "b"]), ("2", ["b", "a"])] {
            let out = SlotFile::create(&dir.path().join(file), b"HEAD", plan(), 12).unwrap();
            for name in order {
                out.write(name, if name == "a" { b"aa" } else { b"bbb" }).unwrap();
            }
            out.finish().unwrap();
            assert_eq!(std::fs::read(dir.path().join(file)).unwrap(), b"HEADaa\0\0bbb\0");
        }
    }

    #[test]
    fn parts_from_many_threads_give_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let data: Vec<u8> = (0..1000u32).map(|i| (i * 7 % 251) as u8).collect();
        let slots = vec![Slot { name: "a".into(), offset: 4, len: 1000 }];
        let out = SlotFile::create(&dir.path().join("x"), b"HEAD", slots, 1004).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (out, data) = (&out, &data);
                scope.spawn(move || {
                    for part in (0..data.len().div_ceil(13)).rev().filter(|p| p % 3 == thread) {
                        let bytes = &data[part * 13..(part * 13 + 13).min(1000)];
                        out.write_at("a", part as u64 * 13, bytes).unwrap();
                    }
                });
            }
        });
        out.finish().unwrap();
        assert_eq!(std::fs::read(dir.path().join("x")).unwrap(), [b"HEAD", data.as_slice()].concat());
    }

    #[test]
    fn parts_that_overlap_or_leave_gaps_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let out = SlotFile::create(&dir.path().join("x"), b"HEAD", plan(), 12).unwrap();
        out.write("a", b"aa").unwrap();
        out.write_at("b", 1, b"b").unwrap();
        assert!(out.write_at("b", 1, b"b").is_err());
        assert!(out.write_at("b", 0, b"bb").is_err());
        assert!(out.write_at("b", 0, b"bbb").is_err());
        assert!(out.write_at("b", 2, b"bb").is_err());
        assert!(out.write_at("b", u64::MAX, b"b").is_err());
        out.write_at("b", 2, b"b").unwrap();
        assert_eq!(out.finish().unwrap_err().tensor.as_deref(), Some("b"));
    }

    #[test]
    fn wrong_use_is_an_error_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let out = SlotFile::create(&dir.path().join("x"), b"HEAD", plan(), 12).unwrap();
        assert!(out.write("c", b"").is_err());
        assert!(out.write("a", b"aaa").is_err());
        out.write("a", b"aa").unwrap();
        assert!(out.write("a", b"aa").is_err());
        assert_eq!(out.finish().unwrap_err().tensor.as_deref(), Some("b"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
