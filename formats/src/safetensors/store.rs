//! Reading: one file, or the files of a checkpoint folder, as one [`TensorStore`].

use super::header;
use super::{INDEX_FILE, SINGLE_FILE};
use crate::codec::CodecId;
use crate::container::{Encoding, TensorInfo, TensorStore};
use crate::error::{Error, Result};
use crate::mmap::Mapped;
use crate::shards::{Resolved, check_complete, resolve_index};
use safetensors::tensor::Dtype;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A safetensors checkpoint, memory-mapped.
#[derive(Debug)]
pub struct SafetensorsStore {
    path: PathBuf,
    files: Vec<Mapped>,
    metadata: BTreeMap<String, String>,
    tensors: Vec<TensorInfo>,
    /// File and bytes of each tensor, beside `tensors`.
    places: Vec<(usize, Range<usize>)>,
    by_name: HashMap<String, usize>,
}

impl SafetensorsStore {
    /// Opens a `.safetensors` file, an index (`*.json`), or a folder: its `model.safetensors`, else
    /// the shards that `model.safetensors.index.json` names, else all of `model*.safetensors`.
    ///
    /// Every header is read and checked, no data.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (files, index) = resolve(path)?;
        let mut store = SafetensorsStore {
            path: path.to_path_buf(),
            files: Vec::with_capacity(files.len()),
            metadata: BTreeMap::new(),
            tensors: Vec::new(),
            places: Vec::new(),
            by_name: HashMap::new(),
        };
        for file in &files {
            store.add_file(file)?;
        }
        if let Some((index_path, index)) = index {
            index.check(&index_path, |tensor| store.find(tensor).map(|t| store.file_of(&t.name)))?;
        }
        Ok(store)
    }

    /// The string pairs under `__metadata__`; of several files that disagree on a key, the first one's value.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The files that hold the tensors.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(Mapped::path)
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let mapped = Mapped::open(path)?;
        let parsed = header::parse(mapped.bytes()).map_err(|e| e.file(path))?;
        let number = self.files.len();
        for t in parsed.tensors {
            if let Some(&earlier) = self.by_name.get(&t.name) {
                let other = self.files[self.places[earlier].0].path().display();
                return Err(Error::corrupt(format!("is in {other} as well")).file(path).tensor(t.name));
            }
            self.by_name.insert(t.name.clone(), self.tensors.len());
            self.tensors.push(TensorInfo::new(t.name, t.shape, encoding(t.dtype), t.range.len()));
            self.places.push((number, t.range));
        }
        for (key, value) in parsed.metadata {
            self.metadata.entry(key).or_insert(value);
        }
        self.files.push(mapped);
        Ok(())
    }
}

impl TensorStore for SafetensorsStore {
    fn path(&self) -> &Path {
        &self.path
    }
    fn file_of(&self, name: &str) -> &Path {
        self.by_name.get(name).map_or(&self.path, |&i| self.files[self.places[i].0].path())
    }
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        let i = *self.by_name.get(name).ok_or_else(|| Error::missing("no such tensor").file(&self.path).tensor(name))?;
        let (file, range) = &self.places[i];
        Ok(Cow::Borrowed(&self.files[*file].bytes()[range.clone()]))
    }
    fn row_bytes(&self, name: &str, rows: Range<usize>) -> Result<Cow<'_, [u8]>> {
        let i = *self.by_name.get(name).ok_or_else(|| Error::missing("no such tensor").file(&self.path).tensor(name))?;
        let (file, range) = &self.places[i];
        let within = self.tensors[i].rows_within(range.len(), rows);
        self.files[*file].read(range.start + within.start..range.start + within.end).map(Cow::Owned).map_err(|e| e.tensor(name))
    }
    fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }
}

fn encoding(dtype: Dtype) -> Encoding {
    match dtype {
        Dtype::F32 => Encoding::Codec(CodecId::F32),
        Dtype::F16 => Encoding::Codec(CodecId::F16),
        Dtype::BF16 => Encoding::Codec(CodecId::BF16),
        other => Encoding::Opaque(other.to_string()),
    }
}

/// The files that make up the checkpoint at `path`.
fn resolve(path: &Path) -> Result<Resolved> {
    let meta = std::fs::metadata(path).map_err(|e| Error::read(path, e))?;
    if !meta.is_dir() {
        return if path.extension().is_some_and(|e| e == "json") {
            resolve_index(path)
        } else {
            Ok((vec![path.to_path_buf()], None))
        };
    }
    let single = path.join(SINGLE_FILE);
    if single.is_file() {
        return Ok((vec![single], None));
    }
    let index = path.join(INDEX_FILE);
    if index.is_file() {
        return resolve_index(&index);
    }
    resolve_glob(path)
}

/// Without an index: all `model*.safetensors`, in order of their names. Names that say "3 of 5" must be complete.
fn resolve_glob(folder: &Path) -> Result<Resolved> {
    let mut names = BTreeSet::new();
    let mut others = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::read(folder, e))? {
        let entry = entry.map_err(|e| Error::read(folder, e))?;
        if let Ok(name) = entry.file_name().into_string() {
            if name.starts_with("model") && name.ends_with(".safetensors") {
                names.insert(name);
            } else {
                others.insert(name);
            }
        }
    }
    let names: Vec<String> = names.into_iter().collect();
    check_complete(folder, &names, "model", ".safetensors")?;
    if !names.is_empty() {
        return Ok((names.into_iter().map(|n| folder.join(n)).collect(), None));
    }
    if let Some(gguf) = others.iter().find(|n| n.ends_with(".gguf")) {
        return Err(Error::missing("no model*.safetensors in this folder")
            .file(folder)
            .hint(format!("to use the GGUF file in it, name the file: {}", folder.join(gguf).display())));
    }
    Err(Error::missing(format!("no {SINGLE_FILE} and no {INDEX_FILE} in this folder")).file(folder))
}
