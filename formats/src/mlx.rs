//! MLX folders: a Hugging Face folder whose quantized linears are three tensors each.
//!
//! `X.weight` (U32) is a little-endian bit stream of codes per row, `X.scales` and, in mode `affine`, `X.biases` have one number per
//! group; groups run along the last axis. Modes of small floats have one byte per group in `X.scales`; `nvfp4` experts may also
//! have `X.global_scale`, one F32 each. `config.json` holds mode, bits and group size under `quantization`, with overrides per
//! module. Here all planes together are one tensor `X.weight` in [`CodecId::MlxAffine`] or [`CodecId::Micro`], whose blocks are
//! codes, scale and bias of one group each.

use crate::codec::{CodecId, EncodedTensor, Float, Micro, decode_all};
use crate::container::{Encoding, TensorInfo, TensorStore};
use crate::error::{Error, ErrorKind, Result};
use crate::safetensors::{SafetensorsStore, ShardedWriter, TensorPlan, plan_shards};
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// mlx-lm's shard limit in bytes.
pub const MAX_SHARD_BYTES: u64 = 5 << 30;
/// The checkpoint's configuration file.
pub const CONFIG_FILE: &str = "config.json";

const WEIGHT: &str = ".weight";
const GLOBAL_SCALE: &str = ".global_scale";

/// The `quantization` block of a `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantization {
    default: Scheme,
    /// By module path; `None` for a module that stays dense.
    overrides: BTreeMap<String, Option<Scheme>>,
}

/// How one module is packed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Scheme {
    /// `affine`, `mxfp4`, `mxfp8`, `nvfp4`.
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
        let (bits, group) = small_floats(mode).map_or((4, 64), |format| (format.bits() as u64, format.group() as u64));
        Ok(Scheme { mode: mode.to_string(), bits: number("bits", bits)?, group: number("group_size", group)? })
    }

    /// How MLX packs a codec; `None` if it has nothing like it.
    pub fn of(codec: CodecId) -> Option<Self> {
        Some(match codec {
            CodecId::MlxAffine { bits, group, .. } => Scheme { mode: "affine".into(), bits: bits.into(), group: group.into() },
            CodecId::Micro(format) => {
                let (mode, _) = SMALL_FLOATS.into_iter().find(|(_, f)| *f == format)?;
                Scheme { mode: mode.into(), bits: format.bits() as u64, group: format.group() as u64 }
            }
            _ => return None,
        })
    }

    /// The codec of a tensor with these scales, if it is one of ours.
    fn codec(&self, scales: &Encoding) -> Option<CodecId> {
        let codec = match (small_floats(&self.mode), scales) {
            (Some(format), Encoding::Opaque(bytes)) if bytes == "U8" => CodecId::Micro(format),
            (None, Encoding::Codec(float)) => {
                let (bits, group) = (u8::try_from(self.bits).ok()?, u16::try_from(self.group).ok()?);
                CodecId::MlxAffine { bits, group, scale: float.float()? }
            }
            _ => return None,
        };
        crate::codecs::find(codec)?;
        (Scheme::of(codec)? == *self).then_some(codec)
    }
}

/// The modes of small floats.
const SMALL_FLOATS: [(&str, Micro); 3] = [("mxfp4", Micro::Mxfp4), ("mxfp8", Micro::Mxfp8), ("nvfp4", Micro::Nvfp4)];

fn small_floats(mode: &str) -> Option<Micro> {
    SMALL_FLOATS.into_iter().find(|(name, _)| *name == mode).map(|(_, format)| format)
}

/// How a codec's blocks lie apart in a folder.
struct Planes {
    bits: usize,
    group: usize,
    /// The dtype of scales and biases.
    dtype: &'static str,
    /// What follows `module.` in the planes' names, and bytes per group.
    parts: Vec<(&'static str, usize)>,
}

impl Planes {
    /// `None` for codecs that are one tensor.
    fn of(codec: CodecId) -> Option<Self> {
        let (bits, group, dtype, rest) = match codec {
            CodecId::MlxAffine { bits, group, scale } => {
                let dtype = match scale {
                    Float::F32 => "F32",
                    Float::F16 => "F16",
                    Float::BF16 => "BF16",
                };
                (bits.into(), group.into(), dtype, vec![("scales", scale.size()), ("biases", scale.size())])
            }
            CodecId::Micro(format) => (format.bits(), format.group(), "U8", vec![("scales", 1)]),
            _ => return None,
        };
        let parts = std::iter::once(("weight", bits * group / 8)).chain(rest).collect();
        Some(Planes { bits, group, dtype, parts })
    }

    /// Bytes of a group in all planes together.
    fn block(&self) -> usize {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Some rows of all planes as blocks.
    fn interleave(&self, inner: &SafetensorsStore, module: &str, rows: Range<usize>) -> Result<Vec<u8>> {
        let read = |&(part, n): &(&str, usize)| Ok((inner.row_bytes(&format!("{module}.{part}"), rows.clone())?, n));
        let planes = self.parts.iter().map(read).collect::<Result<Vec<_>>>()?;
        let mut out = vec![0u8; planes[0].0.len() / planes[0].1 * self.block()];
        out.par_chunks_exact_mut(self.block()).enumerate().with_min_len(1024).for_each(|(i, block)| {
            let mut at = 0;
            for (bytes, n) in &planes {
                block[at..at + n].copy_from_slice(&bytes[i * n..][..*n]);
                at += n;
            }
        });
        Ok(out)
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
    let about = |scheme: Scheme| json!({ "bits": scheme.bits, "group_size": scheme.group, "mode": scheme.mode });
    let default = Scheme::of(default).ok_or_else(|| Error::failed(format!("{default} is no codec of MLX")))?;
    let mut entries: BTreeMap<String, Value> = BTreeMap::new();
    for (name, codec) in tensors {
        if let Some(own) = Scheme::of(codec).filter(|own| *own != default) {
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

/// The module whose scales, biases or global scale this tensor is, if it belongs to a packed weight.
fn plane_owner<'a>(inner: &SafetensorsStore, name: &'a str) -> Option<&'a str> {
    let module = [".scales", ".biases", GLOBAL_SCALE].into_iter().find_map(|suffix| name.strip_suffix(suffix))?;
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
            .hint("supported: affine with 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128; mxfp4, mxfp8 and nvfp4")
    };
    let codec = scheme.codec(&scales.encoding).ok_or_else(unsupported)?;
    let planes @ Planes { bits, group, .. } = &Planes::of(codec).ok_or_else(unsupported)?;
    if biases.is_none() && planes.parts.len() > 2 {
        return Err(Error::missing(format!("`{module}.biases` is missing")));
    }
    if biases.is_some() && planes.parts.len() == 2 {
        return Err(Error::corrupt(format!("mode `{}` has no biases, but `{module}.biases` is there", scheme.mode)));
    }
    let ([outer @ .., packed], [scale_outer @ .., groups]) = (info.shape.as_slice(), scales.shape.as_slice()) else {
        return Err(Error::corrupt("a packed weight or its scales have no dimensions"));
    };
    // Two schemes of equal `bits × group` have planes of equal shape (8 bits × 32 and 4 × 64): only who knows the model's shapes can
    // tell those apart, and must compare the logical shape.
    let row_len = groups.checked_mul(*group);
    if packed.checked_mul(32) != row_len.and_then(|n| n.checked_mul(*bits)) || outer != scale_outer || outer.is_empty() {
        let message = format!(
            "packed weight {:?} and scales {:?} do not fit {bits} bits in groups of {group}, as config.json has it",
            info.shape, scales.shape
        );
        return Err(Error::corrupt(message).hint("`quantization` in config.json is wrong for this tensor"));
    }
    if let Some(biases) = biases.filter(|b| b.shape != scales.shape || b.encoding != scales.encoding) {
        return Err(Error::corrupt(format!("scales {:?} and biases {:?} differ in shape or type", scales.shape, biases.shape)));
    }
    let mut shape = outer.to_vec();
    shape.extend(row_len);
    let n_bytes = info.n_bytes + scales.n_bytes + biases.map_or(0, |b| b.n_bytes);
    let mut merged = TensorInfo::new(info.name.clone(), shape, Encoding::Codec(codec), n_bytes);
    let global = global_scales(inner, module, codec, outer)?;
    match global.first() {
        Some(&scale) if global.iter().all(|&g| g == scale) => merged.scale = scale,
        Some(_) => merged.encoding = Encoding::Decoded(format!("{codec} with a scale per expert")),
        None => {}
    }
    Ok(merged)
}

/// What the experts of an `nvfp4` module are multiplied by, one number each; nothing for a module without global scales. MLX
/// stores the largest magnitude, which the largest code under the largest scale stands for.
fn global_scales(inner: &SafetensorsStore, module: &str, codec: CodecId, outer: &[usize]) -> Result<Vec<f32>> {
    let name = format!("{module}{GLOBAL_SCALE}");
    let Some(info) = inner.find(&name) else { return Ok(Vec::new()) };
    let experts: usize = outer[..outer.len() - 1].iter().product();
    if codec != CodecId::Micro(Micro::Nvfp4) || info.encoding != Encoding::Codec(CodecId::F32) || info.n_weights() != experts {
        let message =
            format!("`{name}` is {} of {:?}; only nvfp4 has such scales, f32 and one per expert", info.encoding, info.shape);
        return Err(Error::corrupt(message));
    }
    Ok(inner.read_f32(&name)?.1.into_iter().map(|largest| largest / (448.0 * 6.0)).collect())
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
        self.row_bytes(name, 0..info.n_rows())
    }
    fn row_bytes(&self, name: &str, rows: Range<usize>) -> Result<Cow<'_, [u8]>> {
        let info = self.find(name).ok_or_else(|| Error::missing("no such tensor").file(self.path()).tensor(name))?;
        let codec = match info.encoding {
            Encoding::Codec(codec) => codec,
            // The only kind of these here: experts that each have a scale.
            Encoding::Decoded(_) => CodecId::Micro(Micro::Nvfp4),
            Encoding::Opaque(_) => return self.inner.row_bytes(name, rows),
        };
        let Some(planes) = Planes::of(codec) else { return self.inner.row_bytes(name, rows) };
        let module = module_of(name)?;
        let blocks = planes.interleave(&self.inner, module, rows.clone())?;
        if info.encoding == Encoding::Codec(codec) {
            return Ok(Cow::Owned(blocks));
        }
        let outer = &info.shape[..info.shape.len() - 1];
        let scales = global_scales(&self.inner, module, codec, outer)?;
        let rows_of_each = outer.last().copied().unwrap_or(1).max(1);
        let mut values = decode_all(codec, &blocks);
        for (row, values) in rows.zip(values.chunks_exact_mut(info.row_len().max(1))) {
            values.iter_mut().for_each(|v| *v *= scales[row / rows_of_each]);
        }
        Ok(Cow::Owned(values.iter().flat_map(|v| v.to_le_bytes()).collect()))
    }
    fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }
}

/// The safetensors tensors that hold a tensor of this codec and logical shape: two or three planes for MLX's codecs, one tensor
/// for floats.
pub fn plan_planes(name: &str, codec: CodecId, shape: &[usize]) -> Result<Vec<TensorPlan>> {
    let Some(Planes { bits, group, dtype, parts }) = Planes::of(codec) else {
        return Ok(vec![TensorPlan::float(name, codec, shape)?]);
    };
    let module = module_of(name)?;
    let Some((&row_len, outer)) = shape.split_last().filter(|(n, outer)| *n % group == 0 && !outer.is_empty()) else {
        return Err(Error::failed(format!("shape {shape:?} is not rows of whole groups of {group}")).tensor(name));
    };
    let plan = |(part, _): (&str, usize)| match part {
        "weight" => TensorPlan::new(name, "U32", &[outer, &[row_len * bits / 32]].concat()),
        _ => TensorPlan::new(format!("{module}.{part}"), dtype, &[outer, &[row_len / group]].concat()),
    };
    parts.into_iter().map(plan).collect()
}

/// Separates a tensor into names and bytes of the safetensors tensors that [`plan_planes`] lists.
pub fn split_planes<'a>(name: &str, tensor: &'a EncodedTensor) -> Result<Vec<(String, Cow<'a, [u8]>)>> {
    let Some(planes) = Planes::of(tensor.codec) else {
        return Ok(vec![(name.to_string(), Cow::Borrowed(&tensor.bytes))]);
    };
    let (module, block) = (module_of(name)?, planes.block());
    if !tensor.bytes.len().is_multiple_of(block) {
        return Err(Error::failed(format!("{} bytes are not whole blocks of {}", tensor.bytes.len(), tensor.codec)).tensor(name));
    }
    if tensor.scale != 1.0 {
        return Err(
            Error::failed(format!("MLX folders have no place for a scale of the whole tensor ({})", tensor.scale)).tensor(name)
        );
    }
    let mut at = 0;
    let mut split = |(part, n): (&str, usize)| {
        let mut plane = vec![0u8; tensor.bytes.len() / block * n];
        let blocks = tensor.bytes.par_chunks_exact(block);
        plane.par_chunks_exact_mut(n).zip(blocks).with_min_len(1024).for_each(|(out, b)| out.copy_from_slice(&b[at..at + n]));
        at += n;
        (format!("{module}.{part}"), Cow::Owned(plane))
    };
    Ok(planes.parts.iter().map(|&part| split(part)).collect())
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
