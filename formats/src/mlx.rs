//! MLX folders: a Hugging Face folder whose quantized linears are three tensors each.
//!
//! `X.weight` (U32) is a little-endian bit stream of codes per row, `X.scales` and `X.biases` have one number per group; groups
//! run along the last axis. `config.json` holds bits and group size under `quantization`, with overrides per module. Here a
//! triple is one tensor `X.weight` in [`CodecId::MlxAffine`], whose blocks are codes, scale and bias of one group each.

use crate::codec::{CodecId, EncodedTensor, Float};
use crate::container::{Encoding, TensorInfo, TensorStore};
use crate::error::{Error, ErrorKind, Result};
use crate::safetensors::{SafetensorsStore, ShardedWriter, TensorPlan, plan_shards};
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// mlx-lm's shard limit in bytes.
pub const MAX_SHARD_BYTES: u64 = 5 << 30;
/// The checkpoint's configuration file.
pub const CONFIG_FILE: &str = "config.json";

const WEIGHT: &str = ".weight";

/// The `quantization` block of a `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantization {
    default: Scheme,
    /// By module path; `None` for a module that stays dense.
    overrides: BTreeMap<String, Option<Scheme>>,
}

/// How one module is packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheme {
    /// `affine`, `mxfp4`, …
    pub mode: String,
    /// Bits per code.
    pub bits: u64,
    /// Weights per group.
    pub group: u64,
}

impl Scheme {
    fn parse(module: &Map<String, Value>, context: &str) -> Result<Self> {
        let number = |key: &str, default: u64| match module.get(key) {
            // Some recipes of mlx-lm write null for "the mode's default".
            None | Some(Value::Null) => Ok(default),
            Some(v) => v.as_u64().ok_or_else(|| Error::corrupt(format!("`{key}` of {context} must be a number, but is {v}"))),
        };
        let mode = match module.get("mode") {
            None | Some(Value::Null) => "affine",
            Some(Value::String(s)) => s,
            Some(v) => return Err(Error::corrupt(format!("`mode` of {context} must be a string, but is {v}"))),
        };
        Ok(Scheme { mode: mode.to_string(), bits: number("bits", 4)?, group: number("group_size", 64)? })
    }

    /// The codec, if it is one of ours.
    fn codec(&self, scale: Float) -> Option<CodecId> {
        match (self.mode.as_str(), self.bits, self.group) {
            ("affine", bits @ (4 | 8), group @ (32 | 64 | 128)) => {
                Some(CodecId::MlxAffine { bits: bits as u8, group: group as u16, scale })
            }
            _ => None,
        }
    }
}

impl Quantization {
    /// Reads the `quantization` block of a `config.json`; `None` if it has none.
    pub fn of_config(config: &Value) -> Result<Option<Self>> {
        let Some(block) = config.get("quantization") else { return Ok(None) };
        let Value::Object(block) = block else {
            return Err(Error::corrupt(format!("`quantization` must be an object, but is {block}")));
        };
        let default = Scheme::parse(block, "`quantization`")?;
        let mut overrides = BTreeMap::new();
        for (module, value) in block.iter().filter(|(k, _)| !matches!(k.as_str(), "bits" | "group_size" | "mode")) {
            let scheme = match value {
                Value::Object(o) => Some(Scheme::parse(o, &format!("the override of `{module}`"))?),
                Value::Bool(true) => Some(default.clone()),
                Value::Bool(false) => None,
                // Keys that are no overrides, as other tools leave them: `quant_method` for example.
                _ => continue,
            };
            overrides.insert(module.clone(), scheme);
        }
        Ok(Some(Quantization { default, overrides }))
    }

    /// How a module (a path without `.weight`) is packed; `None` if the block says that it stays dense.
    pub fn scheme(&self, module: &str) -> Option<&Scheme> {
        self.overrides.get(module).map_or(Some(&self.default), Option::as_ref)
    }
}

/// The `quantization` block for `config.json`: `default` for all modules, and an override for each tensor (`X.weight`) in another
/// MLX codec. Dense tensors need no entry. Keys are sorted.
pub fn quantization_block<'a>(default: CodecId, tensors: impl IntoIterator<Item = (&'a str, CodecId)>) -> Result<Value> {
    let block = |codec| match codec {
        CodecId::MlxAffine { bits, group, .. } => Some((group, bits)),
        _ => None,
    };
    let about = |(group, bits)| json!({ "bits": bits, "group_size": group, "mode": "affine" });
    let default = block(default).ok_or_else(|| Error::failed(format!("{default} is no codec of MLX")))?;
    let mut entries: BTreeMap<String, Value> = BTreeMap::new();
    for (name, codec) in tensors {
        if let Some(own) = block(codec).filter(|own| *own != default) {
            entries.insert(module_of(name)?.to_string(), about(own));
        }
    }
    if let Value::Object(common) = about(default) {
        entries.extend(common);
    }
    Ok(Value::Object(entries.into_iter().collect()))
}

/// `X` of `X.weight`.
fn module_of(name: &str) -> Result<&str> {
    name.strip_suffix(WEIGHT).ok_or_else(|| Error::failed("MLX can quantize only tensors named `….weight`").tensor(name))
}

/// An MLX folder, memory-mapped.
#[derive(Debug)]
pub struct MlxStore {
    inner: SafetensorsStore,
    config: Value,
    quantization: Quantization,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

impl MlxStore {
    /// Opens a folder with `config.json` and safetensors. The planes of every quantized tensor are held against the bits and
    /// group size of `config.json`; no data are read. (Planes look alike for equal `bits × group`: compare the logical shapes
    /// with the model's.)
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let (config_path, config) = read_config(folder)?;
        let quantization = Quantization::of_config(&config)
            .map_err(|e| e.file(&config_path))?
            .ok_or_else(|| Error::unsupported("has no `quantization` block: not an MLX folder").file(&config_path))?;
        let inner = SafetensorsStore::open(folder)?;
        let mut tensors = Vec::new();
        for info in inner.tensors() {
            let (tensor, file) = (info.name.as_str(), inner.file_of(&info.name));
            if let Some(module) = plane_owner(&inner, tensor) {
                debug_assert!(!module.is_empty());
                continue;
            }
            let merged = merge(&inner, &quantization, info).map_err(|e| e.file(file).tensor(tensor))?;
            tensors.push(merged);
        }
        let by_name = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(MlxStore { inner, config, quantization, tensors, by_name })
    }

    /// The parsed `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The `quantization` block.
    pub fn quantization(&self) -> &Quantization {
        &self.quantization
    }

    /// The files that hold the tensors.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.inner.files()
    }
}

/// The module whose scales or biases this tensor is, if it belongs to a packed weight.
fn plane_owner<'a>(inner: &SafetensorsStore, name: &'a str) -> Option<&'a str> {
    let module = name.strip_suffix(".scales").or_else(|| name.strip_suffix(".biases"))?;
    is_packed(inner, module).then_some(module)
}

/// Whether `module.weight` is packed: only then are `.scales` and `.biases` planes of it.
fn is_packed(inner: &SafetensorsStore, module: &str) -> bool {
    let weight = inner.find(&format!("{module}{WEIGHT}"));
    weight.is_some_and(|w| w.encoding == Encoding::Opaque("U32".into())) && inner.find(&format!("{module}.scales")).is_some()
}

/// The entry that callers see: a triple becomes one tensor, anything else stays as it is.
fn merge(inner: &SafetensorsStore, quantization: &Quantization, info: &TensorInfo) -> Result<TensorInfo> {
    let Some(module) = info.name.strip_suffix(WEIGHT) else { return Ok(info.clone()) };
    let scheme = quantization.scheme(module);
    if !is_packed(inner, module) {
        // A dense weight is fine unless config.json says, for this very module, that it is packed.
        if quantization.overrides.get(module).is_some_and(Option::is_some) && inner.find(&format!("{module}.scales")).is_none() {
            return Err(Error::corrupt("config.json has quantization parameters for this module, but its weight is not packed"));
        }
        return Ok(info.clone());
    }
    let Some(scheme) = scheme else {
        return Err(Error::corrupt("config.json says that this module is not quantized, but its weight is packed"));
    };
    let [Some(scales), biases] = ["scales", "biases"].map(|plane| inner.find(&format!("{module}.{plane}"))) else {
        return Err(Error::missing("has no scales"));
    };
    let unsupported = || {
        Error::unsupported(format!("MLX mode `{}` with {} bits in groups of {}", scheme.mode, scheme.bits, scheme.group))
            .hint("supported: affine, 4 or 8 bits, groups of 32, 64 or 128")
    };
    let codec = match &scales.encoding {
        Encoding::Codec(c) => c.float().and_then(|float| scheme.codec(float)),
        Encoding::Opaque(_) | Encoding::Decoded(_) => None,
    };
    let Some(codec @ CodecId::MlxAffine { bits, group, .. }) = codec else { return Err(unsupported()) };
    let Some(biases) = biases else {
        return Err(Error::missing(format!("`{module}.biases` is missing")));
    };
    let ([outer @ .., packed], [scale_outer @ .., groups]) = (info.shape.as_slice(), scales.shape.as_slice()) else {
        return Err(Error::corrupt("a packed weight or its scales have no dimensions"));
    };
    // Two schemes of equal `bits × group` have planes of equal shape (8 bits × 32 and 4 × 64): only who knows the model's shapes can
    // tell those apart, and must compare the logical shape.
    let row_len = packed.checked_mul(32).map(|n| n / usize::from(bits));
    if row_len != groups.checked_mul(usize::from(group)) || outer != scale_outer || outer.is_empty() {
        let message = format!(
            "packed weight {:?} and scales {:?} do not fit {bits} bits in groups of {group}, as config.json has it",
            info.shape, scales.shape
        );
        return Err(Error::corrupt(message).hint("`quantization` in config.json is wrong for this tensor"));
    }
    if biases.shape != scales.shape || biases.encoding != scales.encoding {
        return Err(Error::corrupt(format!("scales {:?} and biases {:?} differ in shape or type", scales.shape, biases.shape)));
    }
    let mut shape = outer.to_vec();
    shape.extend(row_len);
    let n_bytes = info.n_bytes + scales.n_bytes + biases.n_bytes;
    Ok(TensorInfo::new(info.name.clone(), shape, Encoding::Codec(codec), n_bytes))
}

/// Path and contents of a folder's `config.json`.
pub(crate) fn read_config(folder: &Path) -> Result<(PathBuf, Value)> {
    let path = folder.join(CONFIG_FILE);
    let json = std::fs::read(&path).map_err(|e| Error::read(&path, e))?;
    match serde_json::from_slice(&json) {
        Ok(config) => Ok((path, config)),
        Err(e) => Err(Error::corrupt(format!("not JSON: {e}")).file(path).with_source(e)),
    }
}

impl TensorStore for MlxStore {
    fn path(&self) -> &Path {
        self.inner.path()
    }
    fn file_of(&self, name: &str) -> &Path {
        self.inner.file_of(name)
    }
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        let info = self.find(name).ok_or_else(|| Error::missing("no such tensor").file(self.path()).tensor(name))?;
        let Encoding::Codec(CodecId::MlxAffine { bits, group, scale }) = info.encoding else {
            return self.inner.bytes(name);
        };
        let module = module_of(name)?;
        let codes = self.inner.bytes(name)?;
        let scales = self.inner.bytes(&format!("{module}.scales"))?;
        let biases = self.inner.bytes(&format!("{module}.biases"))?;
        let (c, s) = (usize::from(bits) * usize::from(group) / 8, scale.size());
        let mut out = vec![0u8; info.n_bytes];
        let groups = codes.par_chunks_exact(c).zip(scales.par_chunks_exact(s)).zip(biases.par_chunks_exact(s));
        out.par_chunks_exact_mut(c + 2 * s).zip(groups).with_min_len(1024).for_each(|(block, ((code, scale), bias))| {
            block[..c].copy_from_slice(code);
            block[c..c + s].copy_from_slice(scale);
            block[c + s..].copy_from_slice(bias);
        });
        Ok(Cow::Owned(out))
    }
    fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }
}

/// The safetensors tensors that hold a tensor of this codec and logical shape: the three planes for MLX's codecs, one for floats.
pub fn plan_planes(name: &str, codec: CodecId, shape: &[usize]) -> Result<Vec<TensorPlan>> {
    let CodecId::MlxAffine { bits, group, scale } = codec else {
        return Ok(vec![TensorPlan::float(name, codec, shape)?]);
    };
    let module = module_of(name)?;
    let (bits, group) = (usize::from(bits), usize::from(group));
    let Some((&row_len, outer)) = shape.split_last().filter(|(n, outer)| *n % group == 0 && !outer.is_empty()) else {
        return Err(Error::failed(format!("shape {shape:?} is not rows of whole groups of {group}")).tensor(name));
    };
    let with = |last: usize| [outer, &[last]].concat();
    let float = scale.codec();
    Ok(vec![
        TensorPlan::new(name, "U32", &with(row_len * bits / 32))?,
        TensorPlan::float(format!("{module}.scales"), float, &with(row_len / group))?,
        TensorPlan::float(format!("{module}.biases"), float, &with(row_len / group))?,
    ])
}

/// Separates a tensor into names and bytes of the safetensors tensors that [`plan_planes`] lists.
pub fn split_planes<'a>(name: &str, tensor: &'a EncodedTensor) -> Result<Vec<(String, Cow<'a, [u8]>)>> {
    let CodecId::MlxAffine { bits, group, scale } = tensor.codec else {
        return Ok(vec![(name.to_string(), Cow::Borrowed(&tensor.bytes))]);
    };
    let module = module_of(name)?;
    let (c, s) = (usize::from(bits) * usize::from(group) / 8, scale.size());
    if !tensor.bytes.len().is_multiple_of(c + 2 * s) {
        return Err(Error::failed(format!("{} bytes are not whole blocks of {}", tensor.bytes.len(), tensor.codec)).tensor(name));
    }
    let n = tensor.bytes.len() / (c + 2 * s);
    let (mut codes, mut scales, mut biases) = (vec![0u8; n * c], vec![0u8; n * s], vec![0u8; n * s]);
    let planes = codes.par_chunks_exact_mut(c).zip(scales.par_chunks_exact_mut(s)).zip(biases.par_chunks_exact_mut(s));
    tensor.bytes.par_chunks_exact(c + 2 * s).zip(planes).with_min_len(1024).for_each(|(block, ((code, scale), bias))| {
        code.copy_from_slice(&block[..c]);
        scale.copy_from_slice(&block[c..c + s]);
        bias.copy_from_slice(&block[c + s..]);
    });
    Ok(vec![
        (name.to_string(), Cow::Owned(codes)),
        (format!("{module}.scales"), Cow::Owned(scales)),
        (format!("{module}.biases"), Cow::Owned(biases)),
    ])
}

/// Writes the tensors of an MLX folder: safetensors shards with their index. `config.json` and the other files are the caller's.
#[derive(Debug)]
pub struct MlxWriter {
    inner: ShardedWriter,
    plans: HashMap<String, (CodecId, Vec<usize>)>,
    folder: PathBuf,
}

impl MlxWriter {
    /// Plans shards of at most `max_shard_bytes` ([`MAX_SHARD_BYTES`] is mlx-lm's) and claims their disk space in `folder`,
    /// which must exist. Each tensor is given as name, codec and logical shape (outermost first).
    pub fn create(folder: impl AsRef<Path>, tensors: &[(String, CodecId, Vec<usize>)], max_shard_bytes: u64) -> Result<Self> {
        let folder = folder.as_ref();
        let mut planes = Vec::new();
        let mut parameters = 0u64;
        for (name, codec, shape) in tensors {
            planes.extend(plan_planes(name, *codec, shape)?);
            parameters += shape.iter().product::<usize>() as u64;
        }
        let metadata = BTreeMap::from([("format".to_string(), "mlx".to_string())]);
        let shards = plan_shards(planes, max_shard_bytes, &metadata, Some(parameters), true)?;
        let inner = ShardedWriter::create(folder, shards)?;
        let plans = tensors.iter().map(|(name, codec, shape)| (name.clone(), (*codec, shape.clone()))).collect();
        Ok(MlxWriter { inner, plans, folder: folder.to_path_buf() })
    }

    /// Writes one planned tensor, exactly once.
    pub fn write(&self, name: &str, tensor: &EncodedTensor) -> Result<()> {
        let (codec, shape) = self.planned(name)?;
        if (*codec, shape) != (tensor.codec, &tensor.shape) {
            let message = format!("is {} of {:?}, but the plan says {codec} of {shape:?}", tensor.codec, tensor.shape);
            return Err(self.error(name, message));
        }
        for (plane, bytes) in split_planes(name, tensor)? {
            self.inner.write(&plane, &bytes)?;
        }
        Ok(())
    }

    /// Writes consecutive rows of one planned tensor from row `first_row` on (all dimensions but the last make rows), in any order
    /// and from any thread, each row exactly once. The last dimension of `rows` is that of the plan.
    pub fn write_rows(&self, name: &str, first_row: usize, rows: &EncodedTensor) -> Result<()> {
        let (codec, shape) = self.planned(name)?;
        let n = rows.shape.split_last().map_or(1, |(_, outer)| outer.iter().product::<usize>());
        if (*codec, shape.last()) != (rows.codec, rows.shape.last()) || n == 0 {
            let message = format!("rows are {} of {:?}, but the plan says {codec} of {shape:?}", rows.codec, rows.shape);
            return Err(self.error(name, message));
        }
        for (plane, bytes) in split_planes(name, rows)? {
            self.inner.write_at(&plane, (first_row as u64).saturating_mul((bytes.len() / n) as u64), &bytes)?;
        }
        Ok(())
    }

    fn planned(&self, name: &str) -> Result<&(CodecId, Vec<usize>)> {
        self.plans.get(name).ok_or_else(|| self.error(name, "is not in the plan".into()))
    }

    fn error(&self, name: &str, message: String) -> Error {
        Error::new(ErrorKind::Failed, message).file(&self.folder).tensor(name)
    }

    /// Checks that all tensors were written and gives the files their names, the index last.
    pub fn finish(self) -> Result<()> {
        self.inner.finish()
    }
}

#[cfg(test)]
#[path = "mlx_tests.rs"]
mod tests;
