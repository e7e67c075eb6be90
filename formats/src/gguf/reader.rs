//! Reading GGUF: versions 2 and 3, little-endian, single files and split sets.

use super::metadata::Metadata;
use super::types::GgmlType;
use super::wire::{self, Cursor};
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS};
use crate::container::{TensorInfo, TensorStore};
use crate::error::{Error, Result};
use crate::mmap::Mapped;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

const DAMAGED: &str = "the file is damaged or incomplete: download or write it again";

/// One tensor's entry in a file.
#[derive(Debug, Clone, PartialEq)]
pub struct HeaderTensor {
    /// Name.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Storage type.
    pub ty: GgmlType,
    /// Bytes from the start of the file. For a type of unknown size: all bytes up to the next tensor.
    pub range: Range<usize>,
}

/// Everything before a file's data.
#[derive(Debug, Clone)]
pub struct Header {
    /// Version of the format.
    pub version: u32,
    /// Alignment of tensor data in bytes.
    pub alignment: u64,
    /// Key–value pairs in file order.
    pub metadata: Metadata,
    /// Tensors in file order.
    pub tensors: Vec<HeaderTensor>,
}

/// Parses the header of a whole file. Every tensor's range lies inside `bytes`, aligned, and overlaps no other.
pub fn parse_header(bytes: &[u8]) -> Result<Header> {
    parse_header_of(bytes, bytes.len() as u64)
}

/// Parses the header of a file of `file_len` bytes of which `bytes` is the start. If that ends inside the header, the error is as for
/// a file that is cut off there.
pub fn parse_header_of(bytes: &[u8], file_len: u64) -> Result<Header> {
    let mut c = Cursor::new(bytes);
    if c.take(4, "magic").ok() != Some(&MAGIC[..]) {
        return Err(Error::corrupt("not a GGUF file: it does not start with `GGUF`"));
    }
    let version = c.u32("version")?;
    match version {
        2 | 3 => {}
        1 => return Err(Error::unsupported("GGUF version 1").hint("convert the model again with current tools")),
        v if matches!(v.swap_bytes(), 1..=3) => return Err(Error::unsupported("big-endian GGUF")),
        v => return Err(Error::unsupported(format!("GGUF version {v}"))),
    }
    // Smallest entries: a tensor has name length, dimension count, type and offset; a pair has key length, type and one byte.
    let n_tensors = c.count(24, "tensor count")?;
    let n_pairs = c.count(13, "metadata count")?;

    let mut metadata = Metadata::new();
    for _ in 0..n_pairs {
        let key = c.string("metadata key")?;
        if key.len() > wire::MAX_KEY {
            return Err(Error::corrupt(format!("a metadata key of {} bytes", key.len())).hint(DAMAGED));
        }
        let id = c.u32("value type")?;
        let value = wire::read_value(&mut c, id).map_err(|mut e| {
            e.message = format!("metadata `{key}`: {}", e.message);
            e
        })?;
        if metadata.contains(&key) {
            return Err(Error::corrupt(format!("metadata `{key}` appears twice")));
        }
        metadata.set(key, value);
    }

    let alignment = match metadata.get(ALIGNMENT_KEY) {
        None => DEFAULT_ALIGNMENT,
        Some(super::Value::U32(a)) if a.is_power_of_two() => u64::from(*a),
        Some(other) => {
            return Err(Error::corrupt(format!(
                "`{ALIGNMENT_KEY}` must be a power of two as UINT32, but is {}",
                describe(other)
            )));
        }
    };

    let mut entries = Vec::with_capacity(n_tensors);
    let mut names = HashSet::with_capacity(n_tensors);
    for _ in 0..n_tensors {
        let (name, shape, ty, offset) = read_tensor(&mut c)?;
        if offset % alignment != 0 {
            return Err(
                Error::corrupt(format!("its offset {offset} is not a multiple of the alignment {alignment}")).tensor(name)
            );
        }
        if !names.insert(name.clone()) {
            return Err(Error::corrupt("appears twice").tensor(name));
        }
        entries.push((name, shape, ty, offset));
    }
    let tensors = place(entries, file_len, (c.at() as u64).next_multiple_of(alignment))?;
    Ok(Header { version, alignment, metadata, tensors })
}

fn describe(value: &super::Value) -> String {
    value.as_i64().map_or_else(|| value.type_name().to_string(), |n| format!("{n} ({})", value.type_name()))
}

type Entry = (String, Vec<usize>, GgmlType, u64);

fn read_tensor(c: &mut Cursor<'_>) -> Result<Entry> {
    let name = c.string("tensor name")?;
    let named = |e: Error| e.tensor(&name);
    let n_dims = c.u32("dimension count").map_err(named)?;
    if n_dims as usize > MAX_DIMS {
        return Err(Error::corrupt(format!("{n_dims} dimensions, more than {MAX_DIMS}")).tensor(name));
    }
    let mut shape = Vec::with_capacity(n_dims as usize);
    for _ in 0..n_dims {
        let n = c.u64("dimension").map_err(named)?;
        shape.push(usize::try_from(n).map_err(|_| Error::corrupt(format!("a dimension of {n}")).tensor(&name))?);
    }
    shape.reverse();
    if shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).is_none() {
        return Err(Error::corrupt(format!("shape {shape:?} has more weights than any file can hold")).tensor(name));
    }
    let ty = GgmlType(c.u32("tensor type").map_err(named)?);
    let offset = c.u64("tensor offset").map_err(named)?;
    Ok((name, shape, ty, offset))
}

/// Turns offsets into ranges and checks them against the file and each other.
fn place(entries: Vec<Entry>, file_len: u64, data_start: u64) -> Result<Vec<HeaderTensor>> {
    let data_len = file_len.saturating_sub(data_start);
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_by_key(|&i| entries[i].3);
    // Where the next tensor at a larger offset starts, for types whose size we do not know.
    let mut next = vec![data_len; order.len()];
    for k in (1..order.len()).rev() {
        let (this, after) = (entries[order[k - 1]].3, entries[order[k]].3);
        next[k - 1] = if after > this { after } else { next[k] };
    }
    let mut ranges = vec![0..0; entries.len()];
    // The last tensor that has any bytes, and where it ends.
    let mut previous: Option<(usize, u64)> = None;
    for (&i, &next) in order.iter().zip(&next) {
        let (name, shape, ty, offset) = &entries[i];
        let known = ty.n_bytes(shape).map_err(|e| e.tensor(name).hint(DAMAGED))?;
        let len = known.map_or(next.saturating_sub(*offset), |n| n as u64);
        let end = offset.checked_add(len).filter(|&end| end <= data_len).ok_or_else(|| {
            let message =
                format!("its {len} bytes at {offset} reach past the end of the file, which has {data_len} bytes of data");
            Error::corrupt(message).tensor(name).hint(DAMAGED)
        })?;
        if len > 0 {
            if let Some((p, previous_end)) = previous
                && *offset < previous_end
            {
                return Err(Error::corrupt(format!("overlaps tensor `{}`", entries[p].0)).tensor(name).hint(DAMAGED));
            }
            previous = Some((i, end));
        }
        // Both lie inside the file (or are an empty range at most at its end), so they fit into memory's address range.
        let start = if len == 0 { 0 } else { (data_start + offset) as usize };
        ranges[i] = start..start + len as usize;
    }
    let tensor = |((name, shape, ty, _), range)| HeaderTensor { name, shape, ty, range };
    Ok(entries.into_iter().zip(ranges).map(tensor).collect())
}

/// A GGUF file or split set, memory-mapped.
#[derive(Debug)]
pub struct GgufStore {
    path: PathBuf,
    files: Vec<Mapped>,
    version: u32,
    alignment: u64,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    /// Every tensor in the files, also those that are a part of another one's description.
    stored: Vec<Stored>,
    /// Places in `tensors` and in `stored`.
    by_name: HashMap<String, (usize, usize)>,
}

#[derive(Debug)]
struct Stored {
    file: usize,
    tensor: HeaderTensor,
}

/// A tensor as it lies in the files.
#[derive(Debug, Clone, Copy)]
pub struct StoredTensor<'a> {
    /// Its entry in the header.
    pub entry: &'a HeaderTensor,
    /// Its data.
    pub bytes: &'a [u8],
}

/// What a weight `X.weight` is multiplied by, one F32: llama.cpp's place for NVFP4's scale per tensor. (BitNet's files have it too.)
const SCALE: &str = ".scale";
/// What llama.cpp's kernels multiply an activation by before they round it; it does not change the weight.
const INPUT_SCALE: &str = ".input_scale";

impl GgufStore {
    /// Opens a file; for the first file of a split set (`NAME-00001-of-0000N.gguf`), all of them.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (file, header) = open_one(path)?;
        let split = Split::of(&header.metadata).map_err(|e| e.file(path))?;
        let mut store = GgufStore {
            path: path.to_path_buf(),
            files: Vec::new(),
            version: header.version,
            alignment: header.alignment,
            metadata: header.metadata,
            tensors: Vec::new(),
            stored: Vec::new(),
            by_name: HashMap::new(),
        };
        store.add(file, header.tensors)?;
        if let Some(split) = split.filter(|s| s.count > 1) {
            store.add_siblings(&split)?;
        }
        store.list_tensors()?;
        Ok(store)
    }

    /// Key–value pairs in file order; of a split set, those of the first file.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Version of the format.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Alignment of tensor data in bytes.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// The files of the set, in order.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(Mapped::path)
    }

    /// The storage type of a tensor.
    pub fn ggml_type(&self, name: &str) -> Option<GgmlType> {
        self.by_name.get(name).map(|&(_, i)| self.stored[i].tensor.ty)
    }

    /// Every tensor in the files, in file order, also the scales that [`TensorStore::tensors`] has beside their weights: to copy a
    /// model as it is.
    pub fn stored(&self) -> impl Iterator<Item = StoredTensor<'_>> {
        self.stored.iter().map(|s| StoredTensor { entry: &s.tensor, bytes: &self.files[s.file].bytes()[s.tensor.range.clone()] })
    }

    fn add(&mut self, file: Mapped, tensors: Vec<HeaderTensor>) -> Result<()> {
        let number = self.files.len();
        for t in tensors {
            if let Some(&(_, earlier)) = self.by_name.get(&t.name) {
                let other = self.files[self.stored[earlier].file].path().display();
                return Err(Error::corrupt(format!("is in {other} as well")).file(file.path()).tensor(t.name));
            }
            self.by_name.insert(t.name.clone(), (0, self.stored.len()));
            self.stored.push(Stored { file: number, tensor: t });
        }
        self.files.push(file);
        Ok(())
    }

    /// The tensors as callers see them: a weight's scale is part of the weight.
    fn list_tensors(&mut self) -> Result<()> {
        let scales = (0..self.stored.len()).filter_map(|i| Some((i, self.weight_scaled_by(i)?))).collect::<Vec<_>>();
        let mut factors = HashMap::new();
        for &(i, weight) in &scales {
            let Stored { file, tensor } = &self.stored[i];
            let bytes = &self.files[*file].bytes()[tensor.range.clone()];
            let factor = bytes.try_into().map_or(f32::NAN, f32::from_le_bytes);
            if !factor.is_finite() {
                return Err(Error::corrupt(format!("the scale is {factor}")).file(self.files[*file].path()).tensor(&tensor.name));
            }
            if tensor.name.ends_with(SCALE) {
                factors.insert(weight, factor);
            }
        }
        let hidden: HashSet<usize> = scales.into_iter().map(|(i, _)| i).collect();
        self.by_name.clear();
        for (i, Stored { tensor: t, .. }) in self.stored.iter().enumerate().filter(|(i, _)| !hidden.contains(i)) {
            let mut info = TensorInfo::new(t.name.clone(), t.shape.clone(), t.ty.encoding(), t.range.len());
            info.scale = factors.get(&i).copied().unwrap_or(1.0);
            self.by_name.insert(t.name.clone(), (self.tensors.len(), i));
            self.tensors.push(info);
        }
        Ok(())
    }

    /// The quantized weight that tensor `i` is a scale of. Experts have one scale each, which are tensors of their own.
    fn weight_scaled_by(&self, i: usize) -> Option<usize> {
        let t = &self.stored[i].tensor;
        let module = t.name.strip_suffix(INPUT_SCALE).or_else(|| t.name.strip_suffix(SCALE))?;
        let &(_, weight) = self.by_name.get(&format!("{module}.weight"))?;
        let quantized = self.stored[weight].tensor.ty.block().is_some_and(|(len, _)| len > 1);
        (quantized && t.ty == GgmlType(0) && t.shape == [1]).then_some(weight)
    }

    fn add_siblings(&mut self, split: &Split) -> Result<()> {
        let first = self.path.clone();
        let whole = format!("-00001-of-{:05}.gguf", split.count);
        let name = first.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let Some(stem) = name.strip_suffix(&whole) else {
            return Err(Error::usage(format!("this is part {} of a split set of {}", split.number + 1, split.count))
                .file(&first)
                .hint(format!(
                    "name the first file, which ends in `{whole}`; file names of a set must stay as they were written"
                )));
        };
        if split.number != 0 {
            return Err(Error::corrupt(format!("`split.no` is {}, which contradicts the file's name", split.number)).file(&first));
        }
        for i in 1..split.count {
            let path = first.with_file_name(format!("{stem}-{:05}-of-{:05}.gguf", i + 1, split.count));
            let (file, header) = open_one(&path).map_err(|e| {
                if e.kind != crate::error::ErrorKind::Missing {
                    return e;
                }
                Error::missing(format!("this file of a split set of {} is missing", split.count))
                    .file(&path)
                    .hint("download it into the same folder")
            })?;
            let found = Split::of(&header.metadata).map_err(|e| e.file(&path))?;
            if found.as_ref().is_none_or(|s| (s.number, s.count) != (i, split.count)) {
                let says = found.map_or("nothing".to_string(), |s| format!("part {} of {}", s.number + 1, s.count));
                return Err(Error::corrupt(format!("should be part {} of {}, but its metadata say {says}", i + 1, split.count))
                    .file(path));
            }
            self.add(file, header.tensors)?;
        }
        match split.tensors {
            Some(n) if n != self.stored.len() as u64 => {
                Err(Error::corrupt(format!("the set should have {n} tensors, but its files have {}", self.stored.len()))
                    .file(first))
            }
            _ => Ok(()),
        }
    }
}

impl TensorStore for GgufStore {
    fn path(&self) -> &Path {
        &self.path
    }
    fn file_of(&self, name: &str) -> &Path {
        self.by_name.get(name).map_or(&self.path, |&(_, i)| self.files[self.stored[i].file].path())
    }
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        let (_, i) = *self.by_name.get(name).ok_or_else(|| Error::missing("no such tensor").file(&self.path).tensor(name))?;
        let Stored { file, tensor } = &self.stored[i];
        Ok(Cow::Borrowed(&self.files[*file].bytes()[tensor.range.clone()]))
    }
    fn row_bytes(&self, name: &str, rows: Range<usize>) -> Result<Cow<'_, [u8]>> {
        let (info, i) = *self.by_name.get(name).ok_or_else(|| Error::missing("no such tensor").file(&self.path).tensor(name))?;
        let Stored { file, tensor } = &self.stored[i];
        let within = self.tensors[info].rows_within(tensor.range.len(), rows);
        let start = tensor.range.start;
        self.files[*file].read(start + within.start..start + within.end).map(Cow::Owned).map_err(|e| e.tensor(name))
    }
    fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&(i, _)| &self.tensors[i])
    }
}

fn open_one(path: &Path) -> Result<(Mapped, Header)> {
    let file = Mapped::open(path)?;
    let header = parse_header(file.bytes()).map_err(|e| e.file(path))?;
    Ok((file, header))
}

/// What a file says about the set that it belongs to.
struct Split {
    /// Number of this file, from 0.
    number: u64,
    count: u64,
    /// Tensors in all files.
    tensors: Option<u64>,
}

impl Split {
    fn of(metadata: &Metadata) -> Result<Option<Self>> {
        let Some(count) = metadata.optional("split.count", Metadata::u64)? else { return Ok(None) };
        // The names have five digits.
        if count > 99_999 {
            return Err(Error::corrupt(format!("a split set of {count} files")));
        }
        let number = metadata.optional("split.no", Metadata::u64)?.unwrap_or(0);
        Ok(Some(Split { number, count, tensors: metadata.optional("split.tensors.count", Metadata::u64)? }))
    }
}
