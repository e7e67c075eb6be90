//! Plans: which tensor goes where, before any is computed.

use super::header::{LENGTH_FIELD, MAX_HEADER, parse_dtype};
use super::{INDEX_FILE, SINGLE_FILE};
use crate::codec::CodecId;
use crate::error::{Error, Result};
use crate::slots::Slot;
use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorPlan {
    /// Name in the file.
    pub name: String,
    /// Dimensions, outermost first, as stored.
    pub shape: Vec<usize>,
    dtype: Dtype,
    n_bytes: usize,
}

impl TensorPlan {
    /// A tensor of a safetensors dtype: `F32`, `F16`, `BF16`, `U32`, …
    pub fn new(name: impl Into<String>, dtype: &str, shape: &[usize]) -> Result<Self> {
        let name = name.into();
        let Some(dtype) = parse_dtype(dtype) else {
            return Err(Error::unsupported(format!("safetensors has no dtype `{dtype}`")).tensor(name));
        };
        let bits = shape.iter().try_fold(dtype.bitsize(), |bits, &n| bits.checked_mul(n));
        match bits {
            Some(bits) if bits % 8 == 0 => Ok(TensorPlan { name, shape: shape.to_vec(), dtype, n_bytes: bits / 8 }),
            Some(_) => Err(Error::failed(format!("{dtype} of shape {shape:?} is not a whole number of bytes")).tensor(name)),
            None => Err(Error::failed(format!("shape {shape:?} is too large")).tensor(name)),
        }
    }

    /// A tensor stored as plain floats. Other codecs have no safetensors dtype; for MLX's see [`crate::mlx::plan_planes`].
    pub fn float(name: impl Into<String>, codec: CodecId, shape: &[usize]) -> Result<Self> {
        let dtype = match codec {
            CodecId::F32 => "F32",
            CodecId::F16 => "F16",
            CodecId::BF16 => "BF16",
            other => return Err(Error::unsupported(format!("safetensors cannot hold {other} as one tensor")).tensor(name)),
        };
        Self::new(name, dtype, shape)
    }

    /// Bytes of data.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// The dtype's name.
    pub fn dtype(&self) -> String {
        self.dtype.to_string()
    }
}

/// One file's header and slots.
#[derive(Debug, Clone)]
pub(super) struct FilePlan {
    pub header: Vec<u8>,
    pub slots: Vec<Slot>,
    pub file_len: u64,
}

/// Lays out one file: widest alignment first, then by name, as the reference implementation sorts, so that every tensor is
/// aligned to its element size. Same tensors in any order, same bytes.
pub(super) fn plan(mut tensors: Vec<TensorPlan>, metadata: &BTreeMap<String, String>) -> Result<FilePlan> {
    tensors.sort_by(|a, b| (Reverse(a.dtype), &a.name).cmp(&(Reverse(b.dtype), &b.name)));
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), json!(metadata));
    }
    let mut slots = Vec::with_capacity(tensors.len());
    let mut at = 0u64;
    for t in &tensors {
        let end = at.checked_add(t.n_bytes as u64).ok_or_else(|| Error::failed("the file would be too large").tensor(&t.name))?;
        let entry = json!({ "dtype": t.dtype.to_string(), "shape": t.shape, "data_offsets": [at, end] });
        if t.name == "__metadata__" || header.insert(t.name.clone(), entry).is_some() {
            return Err(Error::failed("this name is taken").tensor(&t.name));
        }
        slots.push(Slot { name: t.name.clone(), offset: at, len: t.n_bytes as u64 });
        at = end;
    }
    let mut json = Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    if json.len() > MAX_HEADER {
        return Err(Error::failed(format!("the header would have {} bytes, more than the format's {MAX_HEADER}", json.len())));
    }
    let data_start = (LENGTH_FIELD + json.len()) as u64;
    for slot in &mut slots {
        slot.offset += data_start;
    }
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut json);
    Ok(FilePlan { header: bytes, slots, file_len: data_start + at })
}

/// A checkpoint laid out over one file or several.
#[derive(Debug, Clone)]
pub struct ShardPlan {
    pub(super) files: Vec<(String, FilePlan)>,
    pub(super) index: Option<String>,
}

impl ShardPlan {
    /// Names and sizes in bytes of the files to be written, the index last.
    pub fn files(&self) -> Vec<(String, u64)> {
        let index = self.index.iter().map(|json| (INDEX_FILE.to_string(), json.len() as u64));
        self.files.iter().map(|(name, plan)| (name.clone(), plan.file_len)).chain(index).collect()
    }

    /// The same with a further file of this name, which the index lists.
    pub fn with_file(mut self, file: &str, tensors: Vec<TensorPlan>, metadata: &BTreeMap<String, String>) -> Result<Self> {
        if let [(only, _)] = &mut self.files[..]
            && only == SINGLE_FILE
        {
            // Readers would take a file of this name for all there is.
            *only = "model-00001-of-00001.safetensors".into();
        }
        self.files.push((file.to_string(), plan(tensors, metadata)?));
        self.index = Some(index(&self.files, None)?);
        Ok(self)
    }

    /// Bytes of all files together.
    pub fn total_bytes(&self) -> u64 {
        self.files().iter().map(|(_, bytes)| bytes).sum()
    }
}

/// Fills shards of at most `max_bytes` of tensor data greedily in the order given; a larger tensor gets a shard of its own.
/// One shard is named `model.safetensors`, several `model-00001-of-0000N.safetensors`.
///
/// The index (`total_size`: bytes of all tensors; `total_parameters` if given; `weight_map` sorted by name) is written if there
/// are several shards, or always with `always_index`.
pub fn plan_shards(
    tensors: Vec<TensorPlan>,
    max_bytes: u64,
    metadata: &BTreeMap<String, String>,
    total_parameters: Option<u64>,
    always_index: bool,
) -> Result<ShardPlan> {
    let mut shards: Vec<Vec<TensorPlan>> = vec![Vec::new()];
    let mut filled = 0u64;
    for t in tensors {
        let bytes = t.n_bytes as u64;
        if filled + bytes > max_bytes && shards.last().is_some_and(|s| !s.is_empty()) {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.push(t);
        }
    }
    let n = shards.len();
    let mut files = Vec::with_capacity(n);
    for (i, shard) in shards.into_iter().enumerate() {
        let file = if n == 1 { SINGLE_FILE.to_string() } else { format!("model-{:05}-of-{n:05}.safetensors", i + 1) };
        files.push((file, plan(shard, metadata)?));
    }
    let index = index(&files, total_parameters)?;
    Ok(ShardPlan { files, index: (n > 1 || always_index).then_some(index) })
}

/// The index of these files. An error names a tensor that is in two of them.
fn index(files: &[(String, FilePlan)], total_parameters: Option<u64>) -> Result<String> {
    let mut weight_map = BTreeMap::new();
    for (file, slot) in files.iter().flat_map(|(file, plan)| plan.slots.iter().map(move |slot| (file, slot))) {
        if weight_map.insert(&slot.name, file).is_some() {
            return Err(Error::failed("this name is taken").tensor(&slot.name));
        }
    }
    let mut about = Map::new();
    let total: u64 = files.iter().flat_map(|(_, plan)| &plan.slots).map(|slot| slot.len).sum();
    about.insert("total_size".into(), total.into());
    if let Some(parameters) = total_parameters {
        about.insert("total_parameters".into(), parameters.into());
    }
    // Pretty-printing a `Value` cannot fail.
    let mut json = serde_json::to_string_pretty(&json!({ "metadata": about, "weight_map": weight_map })).unwrap_or_default();
    json.push('\n');
    Ok(json)
}

/// Lays out one file named `file`.
pub fn plan_file(file: &str, tensors: Vec<TensorPlan>, metadata: &BTreeMap<String, String>) -> Result<ShardPlan> {
    Ok(ShardPlan { files: vec![(file.to_string(), plan(tensors, metadata)?)], index: None })
}
