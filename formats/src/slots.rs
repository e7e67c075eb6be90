//! A file planned ahead: a header, then one slot per tensor at a fixed offset, filled in any order and from any thread.

use crate::atomic::AtomicFile;
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where a tensor's bytes go.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub name: String,
    /// Offset from the start of the file in bytes.
    pub offset: u64,
    pub len: u64,
}

/// Fills the slots of one file. The result is the same for any order of writing.
#[derive(Debug)]
pub(crate) struct SlotFile {
    file: AtomicFile,
    slots: Vec<Slot>,
    index: HashMap<String, usize>,
    written: Vec<AtomicBool>,
}

impl SlotFile {
    /// Claims `file_len` bytes for `path` and writes the header. What lies between slots reads as zero.
    pub(crate) fn create(path: &Path, header: &[u8], slots: Vec<Slot>, file_len: u64) -> Result<Self> {
        let file = AtomicFile::create(path)?;
        file.reserve(file_len)?;
        file.write_all_at(header, 0)?;
        let index = slots.iter().enumerate().map(|(i, s)| (s.name.clone(), i)).collect();
        let written = slots.iter().map(|_| AtomicBool::new(false)).collect();
        Ok(SlotFile { file, slots, index, written })
    }

    /// Writes one tensor's bytes, exactly once.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let fail = |message: String| Err(Error::failed(message).file(self.file.target()).tensor(name));
        let Some(&i) = self.index.get(name) else {
            return fail("is not in the plan of this file".into());
        };
        let slot = &self.slots[i];
        if bytes.len() as u64 != slot.len {
            return fail(format!("has {} bytes, the plan says {}", bytes.len(), slot.len));
        }
        if self.written[i].swap(true, Ordering::AcqRel) {
            return fail("was written twice".into());
        }
        self.file.write_all_at(bytes, slot.offset).map_err(|e| e.tensor(name))
    }

    /// Checks that every slot was filled, flushes, and gives the file its final name.
    pub(crate) fn finish(self) -> Result<()> {
        let missing: Vec<_> = self.slots.iter().zip(&self.written).filter(|(_, w)| !w.load(Ordering::Acquire)).collect();
        if let Some((slot, _)) = missing.first() {
            return Err(Error::failed(format!("{} of {} planned tensors were never written", missing.len(), self.slots.len()))
                .file(self.file.target())
                .tensor(&slot.name));
        }
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
