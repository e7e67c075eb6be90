//! One file, or the files of a checkpoint folder, as one [`TensorStore`].

use super::pickle::{self, Objects, Tensor, Value};
use super::zip;
use super::{INDEX_FILE, SINGLE_FILE};
use crate::codec::CodecId;
use crate::container::{Encoding, TensorInfo, TensorStore};
use crate::error::{Error, Result};
use crate::mmap::Mapped;
use crate::shards::{Resolved, check_complete, resolve_index};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Deepest nesting of dicts that is searched for tensors.
const MAX_DEPTH: usize = 16;
/// Keys under which training scripts keep the state dict among other things.
const WRAPPERS: [&str; 4] = ["state_dict", "model_state_dict", "model", "module"];
/// How a pickle starts: what `torch.save` wrote before 1.6 is a bare one.
const PICKLE_START: u8 = 0x80;

/// A PyTorch checkpoint, memory-mapped.
#[derive(Debug)]
pub struct TorchStore {
    path: PathBuf,
    files: Vec<Mapped>,
    tensors: Vec<TensorInfo>,
    /// Beside `tensors`.
    places: Vec<Place>,
    by_name: HashMap<String, usize>,
}

/// Where a tensor's elements lie.
#[derive(Debug)]
struct Place {
    file: usize,
    /// The storage's bytes in the file.
    storage: Range<usize>,
    /// Bytes per element.
    size: usize,
    /// First element and steps per dimension, in elements.
    offset: usize,
    strides: Vec<usize>,
    /// Whether elements are stored most significant byte first.
    big_endian: bool,
}

impl TorchStore {
    /// Opens a file, an index (`*.json`), or a folder: its `pytorch_model.bin`, else the shards that `pytorch_model.bin.index.json`
    /// names, else all of `pytorch_model*.bin`, else its only `.bin`, `.pt` or `.pth` file. Reads the pickles and checks that every
    /// tensor lies inside its storage; reads no weights, and runs nothing.
    ///
    /// Nested dicts are joined by dots. A dict with the weights under `state_dict` or `model` is taken for what is under that key.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (files, index) = resolve(path)?;
        let mut store = TorchStore {
            path: path.to_path_buf(),
            files: Vec::with_capacity(files.len()),
            tensors: Vec::new(),
            places: Vec::new(),
            by_name: HashMap::new(),
        };
        for file in &files {
            store.add_file(file).map_err(|e| e.file(file))?;
        }
        if let Some((index_path, index)) = index {
            index.check(&index_path, |tensor| store.find(tensor).map(|t| store.file_of(&t.name)))?;
        }
        Ok(store)
    }

    /// The files that hold the tensors.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(Mapped::path)
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let mapped = Mapped::open(path)?;
        let bytes = mapped.bytes();
        if bytes.first() == Some(&PICKLE_START) {
            return Err(Error::unsupported("this is PyTorch's format from before version 1.6")
                .hint("load it with a current PyTorch and save it again with torch.save, or look for safetensors"));
        }
        if !bytes.starts_with(&zip::MAGIC) {
            return Err(Error::corrupt("not a PyTorch checkpoint: it is no zip archive")
                .hint("the file is damaged or incomplete: download it again"));
        }
        let archive = Archive::open(bytes)?;
        let (root, objects) = pickle::load(&bytes[archive.pickle.clone()])?;
        let number = self.files.len();
        let mut found = Vec::new();
        collect(&objects, root, &mut found)?;
        if found.is_empty() {
            return Err(Error::corrupt("the file holds no named tensors").hint("save the model's state dict with torch.save"));
        }
        for (name, tensor) in found {
            let place = archive.place(&objects, tensor, number).map_err(|e| e.tensor(&name))?;
            if let Some(&earlier) = self.by_name.get(&name) {
                let other = self.places[earlier].file;
                let other = self.files.get(other).map_or(path, Mapped::path).display();
                return Err(Error::corrupt(format!("is in {other} as well")).tensor(name));
            }
            self.by_name.insert(name.clone(), self.tensors.len());
            let n_bytes = tensor.shape.iter().product::<usize>() * place.size;
            self.tensors.push(TensorInfo::new(name, tensor.shape.clone(), encoding(tensor.dtype.name), n_bytes));
            self.places.push(place);
        }
        self.files.push(mapped);
        Ok(())
    }

    fn place(&self, name: &str) -> Result<(&TensorInfo, &Place)> {
        let i = *self.by_name.get(name).ok_or_else(|| Error::missing("no such tensor").file(&self.path).tensor(name))?;
        Ok((&self.tensors[i], &self.places[i]))
    }
}

impl TensorStore for TorchStore {
    fn path(&self) -> &Path {
        &self.path
    }
    fn file_of(&self, name: &str) -> &Path {
        self.by_name.get(name).map_or(&self.path, |&i| self.files[self.places[i].file].path())
    }
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        let (info, place) = self.place(name)?;
        Ok(place.elements(&info.shape, self.files[place.file].bytes(), 0..info.n_weights()))
    }
    fn row_bytes(&self, name: &str, rows: Range<usize>) -> Result<Cow<'_, [u8]>> {
        let (info, place) = self.place(name)?;
        let elements = rows.start * info.row_len()..rows.end * info.row_len();
        Ok(place.elements(&info.shape, self.files[place.file].bytes(), elements))
    }
    fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }
}

impl Place {
    /// Some elements in row-major order, little-endian: the map itself where they lie like that, else gathered.
    fn elements<'a>(&self, shape: &[usize], file: &'a [u8], range: Range<usize>) -> Cow<'a, [u8]> {
        let storage = &file[self.storage.clone()];
        let bytes_at = |element: usize| (self.offset + element) * self.size;
        if is_contiguous(shape, &self.strides) && !(self.big_endian && self.size > 1) {
            return Cow::Borrowed(if range.is_empty() { &[] } else { &storage[bytes_at(range.start)..bytes_at(range.end)] });
        }
        let mut out = Vec::with_capacity(range.len() * self.size);
        for i in range {
            let (mut rest, mut at) = (i, 0);
            for (&n, &stride) in shape.iter().zip(&self.strides).rev() {
                at += rest % n * stride;
                rest /= n;
            }
            let start = bytes_at(at);
            out.extend_from_slice(&storage[start..start + self.size]);
            if self.big_endian {
                let from = out.len() - self.size;
                out[from..].reverse();
            }
        }
        Cow::Owned(out)
    }
}

/// Whether elements lie in row-major order without gaps. Steps of dimensions of one element do not matter.
fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(&n, &stride)| {
        let fits = n <= 1 || stride == expected;
        expected *= n.max(1);
        fits
    })
}

/// A file's entries.
struct Archive {
    entries: BTreeMap<String, Range<usize>>,
    /// The folder that all entries are in, with its slash.
    prefix: String,
    pickle: Range<usize>,
    big_endian: bool,
}

impl Archive {
    fn open(bytes: &[u8]) -> Result<Self> {
        let entries = zip::entries(bytes)?;
        let (name, pickle) = entries
            .iter()
            .find(|(name, _)| name.split_once('/').is_some_and(|(_, rest)| rest == "data.pkl"))
            .ok_or_else(|| Error::corrupt("a zip archive, but no PyTorch checkpoint: it has no data.pkl"))?;
        let prefix = name[..name.len() - "data.pkl".len()].to_string();
        let big_endian = match entries.get(&format!("{prefix}byteorder")).map(|r| &bytes[r.clone()]) {
            None | Some(b"little") => false,
            Some(b"big") => true,
            Some(_) => return Err(Error::corrupt("the archive's `byteorder` is neither `little` nor `big`")),
        };
        let pickle = pickle.clone();
        Ok(Archive { entries, prefix, pickle, big_endian })
    }

    /// Finds a tensor's storage and checks that all its elements lie inside.
    fn place(&self, objects: &Objects<'_>, tensor: &Tensor, file: usize) -> Result<Place> {
        let storage = &objects.storages[tensor.storage];
        let size = tensor.dtype.size;
        let entry = format!("{}data/{}", self.prefix, storage.key);
        let range = self.entries.get(&entry).ok_or_else(|| {
            Error::corrupt(format!("the archive lacks its storage `{entry}`")).hint("the file is damaged: download it again")
        })?;
        let needed = storage.numel.checked_mul(storage.dtype.size);
        if needed.is_none_or(|n| n > range.len()) {
            let message = format!("its storage should have {} elements, but {entry} has {} bytes", storage.numel, range.len());
            return Err(Error::corrupt(message).hint("the file is damaged: download it again"));
        }
        let available = storage.numel * storage.dtype.size / size;
        let (n, end) = extent(tensor).ok_or_else(|| {
            Error::corrupt(format!("shape {:?} with steps {:?} is more than any file can hold", tensor.shape, tensor.strides))
        })?;
        if end > available {
            return Err(Error::corrupt(format!("reaches to element {end} of a storage that has {available}")));
        }
        // Otherwise a few bytes could stand for a tensor of any size.
        if n > available {
            let message = format!("has {n} elements, which share {available} in its storage: a broadcast view");
            return Err(Error::unsupported(message).hint("save it with `.contiguous()`"));
        }
        Ok(Place {
            file,
            storage: range.clone(),
            size,
            offset: tensor.offset,
            strides: tensor.strides.clone(),
            big_endian: self.big_endian,
        })
    }
}

/// Number of elements, and the end of the last one in the storage; `None` if that overflows.
fn extent(tensor: &Tensor) -> Option<(usize, usize)> {
    let n = tensor.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    // Dimensions beside an empty one are not bounded by the storage, but must not overflow either.
    tensor.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)))?.checked_mul(tensor.dtype.size)?;
    if n == 0 {
        return Some((0, 0));
    }
    let last = tensor
        .shape
        .iter()
        .zip(&tensor.strides)
        .try_fold(tensor.offset, |at, (&d, &s)| at.checked_add((d - 1).checked_mul(s)?))?;
    Some((n, last.checked_add(1)?))
}

/// All tensors below `root` with their names.
fn collect<'a>(objects: &'a Objects<'_>, root: Value<'_>, found: &mut Vec<(String, &'a Tensor)>) -> Result<()> {
    let mut root = root;
    if let Value::Dict(i) = root {
        let pairs = &objects.dicts[i];
        let has_tensors = pairs.iter().any(|(_, value)| matches!(value, Value::Tensor(_)));
        let wrapped = |wrapper: &str| pairs.iter().find(|(k, v)| *k == Value::Str(wrapper) && matches!(v, Value::Dict(_)));
        if let Some((_, inner)) = WRAPPERS.iter().find_map(|w| wrapped(w)).filter(|_| !has_tensors) {
            root = *inner;
        }
    }
    walk(objects, root, String::new(), 0, &mut HashSet::new(), found)
}

fn walk<'a>(
    objects: &'a Objects<'_>,
    value: Value<'_>,
    name: String,
    depth: usize,
    seen: &mut HashSet<usize>,
    found: &mut Vec<(String, &'a Tensor)>,
) -> Result<()> {
    match value {
        Value::Tensor(i) if !name.is_empty() => found.push((name, &objects.tensors[i])),
        Value::Dict(i) => {
            if depth >= MAX_DEPTH {
                return Err(Error::corrupt(format!("dicts nested more than {MAX_DEPTH} deep")).tensor(name));
            }
            // A dict inside itself has no end, and one dict in many places can stand for more names than memory holds.
            if !seen.insert(i) {
                return Err(Error::corrupt("a dict stands in two places").tensor(name));
            }
            // A key that is set again keeps its place and takes the later value.
            let mut last: HashMap<String, Value<'_>> = HashMap::new();
            let mut order = Vec::new();
            for (key, value) in &objects.dicts[i] {
                let key = match key {
                    Value::Str(text) => text.to_string(),
                    Value::Int(n) => n.to_string(),
                    _ => continue,
                };
                if last.insert(key.clone(), *value).is_none() {
                    order.push(key);
                }
            }
            for key in order {
                let full = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                walk(objects, last[&key], full, depth + 1, seen, found)?;
            }
        }
        // Step counts, names and settings of the training, and tensors without a name.
        _ => {}
    }
    Ok(())
}

fn encoding(dtype: &str) -> Encoding {
    match dtype {
        "F32" => Encoding::Codec(CodecId::F32),
        "F16" => Encoding::Codec(CodecId::F16),
        "BF16" => Encoding::Codec(CodecId::BF16),
        other => Encoding::Opaque(other.to_string()),
    }
}

/// Whether a file of this name has PyTorch weights. Trainers leave others beside them, under names of their own.
pub(crate) fn is_weights(name: &str) -> bool {
    const OTHERS: [&str; 5] = ["training_args", "optimizer", "scheduler", "rng_state", "scaler"];
    [".bin", ".pt", ".pth"].iter().any(|e| name.ends_with(e)) && !OTHERS.iter().any(|o| name.starts_with(o))
}

/// Whether a folder has PyTorch weights and none in a container that is read before them.
pub(crate) fn only_torch(folder: &Path) -> bool {
    let Ok(names) = names(folder) else { return false };
    names.iter().any(|n| is_weights(n))
        && !names.iter().any(|n| [".safetensors", ".safetensors.index.json"].iter().any(|e| n.ends_with(e)))
}

/// Names of the files in a folder, sorted.
fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::read(folder, e))? {
        let entry = entry.map_err(|e| Error::read(folder, e))?;
        if entry.path().is_file() {
            names.extend(entry.file_name().into_string());
        }
    }
    names.sort();
    Ok(names)
}

/// The files that make up the checkpoint at `path`.
fn resolve(path: &Path) -> Result<Resolved> {
    let meta = std::fs::metadata(path).map_err(|e| Error::read(path, e))?;
    if !meta.is_dir() {
        return match path.extension().is_some_and(|e| e == "json") {
            true => resolve_index(path),
            false => Ok((vec![path.to_path_buf()], None)),
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
    let all: Vec<String> = names(path)?.into_iter().filter(|n| is_weights(n)).collect();
    let shards: Vec<String> = all.iter().filter(|n| n.starts_with("pytorch_model")).cloned().collect();
    check_complete(path, &shards, "pytorch_model", ".bin")?;
    let chosen = if shards.is_empty() { all } else { shards };
    match chosen.as_slice() {
        [] => Err(Error::missing(format!("no {SINGLE_FILE} and no {INDEX_FILE} in this folder")).file(path)),
        [first, _, ..] if !first.starts_with("pytorch_model") => {
            Err(Error::usage(format!("the folder has {} checkpoint files: {}", chosen.len(), chosen.join(", ")))
                .file(path)
                .hint(format!("name one: {}", path.join(first).display())))
        }
        files => Ok((files.iter().map(|n| path.join(n)).collect(), None)),
    }
}
