//! Writing: tensors go to their planned places in any order, from any thread.

use super::INDEX_FILE;
use super::layout::{ShardPlan, TensorPlan, plan};
use crate::atomic;
use crate::error::{Error, Result};
use crate::slots::SlotFile;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Writes one safetensors file. It appears under its name on [`SafetensorsWriter::finish`].
#[derive(Debug)]
pub struct SafetensorsWriter {
    file: SlotFile,
}

impl SafetensorsWriter {
    /// Plans the file, claims its disk space and writes the header.
    pub fn create(path: impl AsRef<Path>, tensors: Vec<TensorPlan>, metadata: &BTreeMap<String, String>) -> Result<Self> {
        let path = path.as_ref();
        let p = plan(tensors, metadata).map_err(|e| e.file(path))?;
        Ok(SafetensorsWriter { file: SlotFile::create(path, &p.header, p.slots, p.file_len)? })
    }

    /// Writes one planned tensor (row-major, little-endian), exactly once.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.file.write(name, bytes)
    }

    /// Checks that all tensors were written, flushes to disk and gives the file its name.
    pub fn finish(self) -> Result<()> {
        self.file.finish()
    }
}

/// Writes the files of a [`ShardPlan`] into a folder.
#[derive(Debug)]
pub struct ShardedWriter {
    folder: PathBuf,
    files: Vec<SlotFile>,
    /// Tensor name to number of the file.
    place: HashMap<String, usize>,
    index: Option<String>,
}

impl ShardedWriter {
    /// Claims the disk space of all files in `folder`, which must exist (an [`atomic::AtomicDir`]'s path for example).
    pub fn create(folder: impl AsRef<Path>, plan: ShardPlan) -> Result<Self> {
        let folder = folder.as_ref().to_path_buf();
        let mut files = Vec::with_capacity(plan.files.len());
        let mut place = HashMap::new();
        for (i, (name, p)) in plan.files.into_iter().enumerate() {
            place.extend(p.slots.iter().map(|s| (s.name.clone(), i)));
            files.push(SlotFile::create(&folder.join(name), &p.header, p.slots, p.file_len)?);
        }
        Ok(ShardedWriter { folder, files, place, index: plan.index })
    }

    /// Writes one planned tensor (row-major, little-endian), exactly once.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.file_with(name)?.write(name, bytes)
    }

    /// Writes some of one planned tensor's bytes, `offset` bytes into it; every byte exactly once.
    pub fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file_with(name)?.write_at(name, offset, bytes)
    }

    fn file_with(&self, name: &str) -> Result<&SlotFile> {
        let place = self.place.get(name).map(|&i| &self.files[i]);
        place.ok_or_else(|| Error::failed("is not in the plan").file(&self.folder).tensor(name))
    }

    /// Checks that all tensors were written and gives the files their names, the index last.
    pub fn finish(self) -> Result<()> {
        for file in self.files {
            file.finish()?;
        }
        match self.index {
            Some(json) => atomic::write_file(self.folder.join(INDEX_FILE), json.as_bytes()),
            None => Ok(()),
        }
    }
}
