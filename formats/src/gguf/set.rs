//! Files and split sets: a model in one file, or cut into `NAME-00001-of-0000N.gguf` as llama-gguf-split cuts it.
//!
//! The first file of a set has all metadata; every file says its number, the number of files and the number of tensors in all of
//! them (`split.no`, `split.count`, `split.tensors.count`).

use super::DEFAULT_ALIGNMENT;
use super::metadata::Metadata;
use super::value::Value;
use super::writer::{GgufWriter, TensorPlan, planned_bytes};
use crate::codec::EncodedTensor;
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Keys that say which part of a set a file is, in the order in which llama-gguf-split leaves them.
pub const SPLIT_KEYS: [&str; 3] = ["split.no", "split.tensors.count", "split.count"];

/// Most files of a set: their names have five digits, but the count is a UINT16.
const MAX_FILES: usize = u16::MAX as usize;

/// The files of a set, or a single file, planned ahead.
#[derive(Debug, Clone)]
pub struct SetPlan {
    parts: Vec<(Metadata, Vec<TensorPlan>)>,
}

impl SetPlan {
    /// One file; or with `max_bytes` as many as it takes for none to have more than that of tensor data, padding included, filled in
    /// the order given. A tensor larger than that has a file of its own. What fits into one file becomes no set.
    pub fn new(metadata: &Metadata, tensors: Vec<TensorPlan>, max_bytes: Option<u64>) -> Result<Self> {
        let n_tensors = tensors.len();
        let mut parts: Vec<Vec<TensorPlan>> = vec![Vec::new()];
        let mut filled = 0u64;
        for tensor in tensors {
            let bytes = (tensor.n_bytes() as u64).next_multiple_of(DEFAULT_ALIGNMENT);
            let full = max_bytes.is_some_and(|max| filled.saturating_add(bytes) > max);
            match parts.last_mut() {
                Some(part) if !full || part.is_empty() => {
                    filled = filled.saturating_add(bytes);
                    part.push(tensor);
                }
                _ => {
                    filled = bytes;
                    parts.push(vec![tensor]);
                }
            }
        }
        let count = parts.len();
        if count == 1 {
            return Ok(SetPlan { parts: parts.into_iter().map(|tensors| (metadata.clone(), tensors)).collect() });
        }
        if count > MAX_FILES {
            return Err(Error::usage(format!("the set would have {count} files, more than {MAX_FILES}"))
                .hint("choose a larger --shard-size"));
        }
        let describe = |(number, tensors): (usize, Vec<TensorPlan>)| {
            let mut own = if number == 0 { metadata.clone() } else { Metadata::new() };
            for (key, value) in
                SPLIT_KEYS.into_iter().zip([Value::U16(number as u16), Value::I32(n_tensors as i32), Value::U16(count as u16)])
            {
                own.remove(key);
                own.set(key, value);
            }
            (own, tensors)
        };
        Ok(SetPlan { parts: parts.into_iter().enumerate().map(describe).collect() })
    }

    /// The files' names if the model is called `path`: that itself, or numbered names if there are several.
    pub fn paths(&self, path: &Path) -> Vec<PathBuf> {
        match self.parts.len() {
            1 => vec![path.to_path_buf()],
            count => (0..count).map(|number| numbered(path, number, count)).collect(),
        }
    }

    /// Sizes of the files in bytes.
    pub fn bytes(&self) -> Result<Vec<u64>> {
        self.parts.iter().map(|(metadata, tensors)| planned_bytes(metadata, tensors)).collect()
    }

    /// Metadata of the first file.
    pub fn metadata(&self) -> &Metadata {
        &self.parts[0].0
    }
}

/// `NAME-00002-of-00009.gguf` for file 1 of 9 of `NAME.gguf`.
fn numbered(path: &Path, number: usize, count: usize) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(".gguf").unwrap_or(&name);
    path.with_file_name(format!("{stem}-{:05}-of-{count:05}.gguf", number + 1))
}

/// The files of the set whose first file has this name; for any other name, that file alone.
pub fn set_paths(first: &Path) -> Vec<PathBuf> {
    let name = first.file_name().unwrap_or_default().to_string_lossy();
    let split = || {
        let (stem, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let stem = stem.strip_suffix("-00001")?;
        let count: usize = Some(count).filter(|c| c.len() == 5)?.parse().ok()?;
        Some((first.with_file_name(format!("{stem}.gguf")), count))
    };
    match split() {
        Some((whole, count)) => (0..count).map(|number| numbered(&whole, number, count)).collect(),
        None => vec![first.to_path_buf()],
    }
}

/// Writes the files of a [`SetPlan`]. They appear under their names on [`GgufSetWriter::finish`].
#[derive(Debug)]
pub struct GgufSetWriter {
    files: Vec<GgufWriter>,
    paths: Vec<PathBuf>,
    /// Tensor name to number of the file.
    place: HashMap<String, usize>,
}

impl GgufSetWriter {
    /// Claims the files' disk space and writes the headers. `path` is the name of the model, as in [`SetPlan::paths`].
    pub fn create(path: impl AsRef<Path>, plan: SetPlan) -> Result<Self> {
        let paths = plan.paths(path.as_ref());
        let mut place = HashMap::new();
        let mut files = Vec::with_capacity(paths.len());
        for (number, ((metadata, tensors), path)) in plan.parts.into_iter().zip(&paths).enumerate() {
            for tensor in &tensors {
                if place.insert(tensor.name.clone(), number).is_some() {
                    return Err(Error::failed("this name is taken").file(path).tensor(&tensor.name));
                }
            }
            files.push(GgufWriter::create(path, &metadata, tensors)?);
        }
        Ok(GgufSetWriter { files, paths, place })
    }

    /// As [`GgufWriter::write_tensor`].
    pub fn write_tensor(&self, name: &str, tensor: &EncodedTensor) -> Result<()> {
        self.file_with(name)?.write_tensor(name, tensor)
    }

    /// As [`GgufWriter::write_rows`].
    pub fn write_rows(&self, name: &str, first_row: usize, bytes: &[u8]) -> Result<()> {
        self.file_with(name)?.write_rows(name, first_row, bytes)
    }

    /// As [`GgufWriter::write_at`].
    pub fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file_with(name)?.write_at(name, offset, bytes)
    }

    fn file_with(&self, name: &str) -> Result<&GgufWriter> {
        let place = self.place.get(name).map(|&i| &self.files[i]);
        place.ok_or_else(|| Error::failed("is not in the plan").file(&self.paths[0]).tensor(name))
    }

    /// Checks that all tensors were written, flushes to disk and gives the files their names: the first one last, as it is the one
    /// that is opened. Returns the names in order.
    pub fn finish(self) -> Result<Vec<PathBuf>> {
        for file in &self.files {
            file.check_complete()?;
        }
        for (number, file) in self.files.into_iter().enumerate().rev() {
            if let Err(e) = file.finish() {
                // Parts without the first cannot be opened; they shall not fill the disk. The error that is reported is the first one.
                self.paths[number + 1..].iter().for_each(|path| drop(std::fs::remove_file(path)));
                return Err(e);
            }
        }
        Ok(self.paths)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::CodecId;
    use crate::container::TensorStore;
    use crate::gguf::{GgufStore, write_gguf};

    fn tensor(n: usize) -> EncodedTensor {
        EncodedTensor::encode(CodecId::F32, &[n], &vec![n as f32; n], None).unwrap()
    }

    fn plans(sizes: &[usize]) -> Vec<TensorPlan> {
        sizes.iter().map(|&n| TensorPlan::new(format!("t{n}"), CodecId::F32, &[n]).unwrap()).collect()
    }

    fn metadata() -> Metadata {
        let mut m = Metadata::new();
        m.set("general.architecture", "x");
        m
    }

    #[test]
    fn what_fits_into_one_file_becomes_no_set() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        // 8 floats fill 32 bytes; 9 are padded to 64.
        for max in [None, Some(96)] {
            let plan = SetPlan::new(&metadata(), plans(&[8, 9]), max).unwrap();
            assert_eq!(plan.paths(&path), std::slice::from_ref(&path));
            assert_eq!(plan.metadata(), &metadata());
            let sizes = plan.bytes().unwrap();
            let writer = GgufSetWriter::create(&path, plan).unwrap();
            [8, 9].iter().for_each(|&n| writer.write_tensor(&format!("t{n}"), &tensor(n)).unwrap());
            assert_eq!(writer.finish().unwrap(), std::slice::from_ref(&path));
            assert_eq!(sizes, [std::fs::metadata(&path).unwrap().len()]);
        }
        let single = dir.path().join("single.gguf");
        write_gguf(&single, &metadata(), &[("t8".into(), tensor(8)), ("t9".into(), tensor(9))]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(single).unwrap());
    }

    #[test]
    fn sets_are_filled_in_order_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let plan = SetPlan::new(&metadata(), plans(&[8, 9, 1, 100, 2]), Some(96)).unwrap();
        let paths = plan.paths(&path);
        let names: Vec<_> = paths.iter().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, [1, 2, 3, 4].map(|i| format!("m-0000{i}-of-00004.gguf")));
        assert_eq!(set_paths(&paths[0]), paths);
        assert_eq!(set_paths(&paths[1]), [paths[1].clone()]);
        let writer = GgufSetWriter::create(&path, plan).unwrap();
        for n in [2, 100, 1, 8] {
            writer.write_tensor(&format!("t{n}"), &tensor(n)).unwrap();
        }
        writer.write_at("t9", 0, &tensor(9).bytes[..20]).unwrap();
        assert!(writer.write_at("t9", 16, &[0; 4]).is_err());
        assert!(writer.write_rows("t7", 0, &[0; 4]).is_err());
        writer.write_at("t9", 20, &tensor(9).bytes[20..]).unwrap();
        writer.finish().unwrap();
        let store = GgufStore::open(&paths[0]).unwrap();
        assert_eq!(store.files().count(), 4);
        for n in [8, 9, 1, 100, 2] {
            assert_eq!(*store.bytes(&format!("t{n}")).unwrap(), tensor(n).bytes);
        }
        let keys: Vec<_> = store.metadata().iter().map(|(k, _)| k).collect();
        assert_eq!(keys, ["general.architecture", "split.no", "split.tensors.count", "split.count"]);
        let last = crate::gguf::parse_header(&std::fs::read(&paths[3]).unwrap()).unwrap();
        let values: Vec<Value> = SPLIT_KEYS.iter().map(|k| last.metadata.get(k).unwrap().clone()).collect();
        assert_eq!((values, last.metadata.len()), (vec![Value::U16(3), Value::I32(5), Value::U16(4)], 3));
    }

    #[test]
    fn an_unfinished_set_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let plan = SetPlan::new(&metadata(), plans(&[8, 9]), Some(1)).unwrap();
        let writer = GgufSetWriter::create(dir.path().join("m.gguf"), plan).unwrap();
        writer.write_tensor("t9", &tensor(9)).unwrap();
        assert_eq!(writer.finish().unwrap_err().tensor.as_deref(), Some("t8"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
