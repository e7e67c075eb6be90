//! GPTQ: codes packed along the input, zero points along the output, and an index of each column's group.
//!
//! | plane | dtype | shape |
//! |---|---|---|
//! | `qweight` | I32 | (in · bits / 32, out): down a column of words, a row's codes as a little-endian bit stream |
//! | `qzeros` | I32 | (groups, out · bits / 32): along a row of words, zero points as a little-endian bit stream |
//! | `scales` | F16, BF16 | (groups, out) |
//! | `g_idx` | I32 | (in): the group of each column; other than `i / group` after quantizing in order of activation (`desc_act`) |
//!
//! The value is `scales[g] · (code − zero)`. `checkpoint_format` `gptq` ("v1") stores zero points minus one: AutoGPTQ subtracts
//! per field, GPTQModel from whole words where fields do not straddle them, which agrees but for zero point 0; adding to whole
//! words undoes both. `gptq_v2` stores them as they are.

use super::int_planes::{Geometry, Planes, TILE, blocks, check, scale_at, scale_type};
use super::{Layout, Weight, plane};
use crate::codec::{CodecId, EncodedTensor};
use crate::codecs::bits;
use crate::container::{Encoding, TensorInfo, TensorStore};
use crate::error::{Error, Result};
use crate::safetensors::{SafetensorsStore, TensorPlan};
use fancy_regex::Regex;
use rayon::prelude::*;
use serde_json::Value;
use std::borrow::Cow;
use std::ops::Range;

/// Codes and zero points are packed in units of this many: whole words for all widths.
const UNIT: usize = 32;
/// Names of the planes after the module's.
const PLANES: [&str; 4] = ["qweight", "qzeros", "scales", "g_idx"];

/// How zero points are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroPoints {
    /// `checkpoint_format` `gptq`: minus one. Zero point 0 has no place.
    MinusOne,
    /// `checkpoint_format` `gptq_v2`: as they are.
    AsTheyAre,
}

/// Bits and group size of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Scheme {
    bits: u8,
    /// `None` for one group per row.
    group: Option<usize>,
}

impl Scheme {
    /// Reads `bits` and `group_size`, with `default` for what is absent.
    fn read(block: &Value, default: Option<Scheme>) -> Result<Scheme> {
        let number = |key: &str| match block.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => v.as_i64().map(Some).ok_or_else(|| Error::corrupt(format!("`{key}` must be a whole number, but is {v}"))),
        };
        let bits = match (number("bits")?, default) {
            (Some(bits @ (2 | 3 | 4 | 8)), _) => bits as u8,
            (Some(bits), _) => return Err(Error::unsupported(format!("GPTQ with {bits} bits")).hint("supported: 2, 3, 4, 8")),
            (None, Some(default)) => default.bits,
            (None, None) => return Err(Error::corrupt("`quantization_config` has no `bits`")),
        };
        let group = match (number("group_size")?, default) {
            (Some(-1), _) => None,
            (Some(group), _) if group > 0 => Some(group as usize),
            (Some(group), _) => return Err(Error::corrupt(format!("`group_size` must be positive or -1, but is {group}"))),
            (None, Some(default)) => default.group,
            (None, None) => Some(128),
        };
        Ok(Scheme { bits, group })
    }
}

/// A pattern of GPTQModel's `dynamic`, and what it says about the modules it matches; `None` leaves them dense.
#[derive(Debug)]
struct Rule {
    pattern: Regex,
    scheme: Option<Scheme>,
}

/// The layout as `quantization_config` describes it.
#[derive(Debug)]
pub(super) struct Gptq {
    default: Scheme,
    dynamic: Vec<Rule>,
    zeros: ZeroPoints,
}

/// The layout, if `quantization_config` names it.
pub(super) fn from_config(config: &Value) -> Result<Option<Box<dyn Layout>>> {
    if config.get("quant_method").and_then(Value::as_str) != Some("gptq") {
        return Ok(None);
    }
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    let zeros = match text("checkpoint_format").or(text("format")).unwrap_or("gptq") {
        "gptq" => ZeroPoints::MinusOne,
        "gptq_v2" => ZeroPoints::AsTheyAre,
        other => return Err(Error::unsupported(format!("GPTQ checkpoints in format `{other}`")).hint("supported: gptq, gptq_v2")),
    };
    if let Some(other) = text("pack_dtype").filter(|d| *d != "int32") {
        return Err(Error::unsupported(format!("GPTQ checkpoints packed into {other}")).hint("supported: int32"));
    }
    let default = Scheme::read(config, None)?;
    let dynamic = match config.get("dynamic") {
        Some(Value::Object(rules)) => rules.iter().map(|(p, v)| rule(p, v, default)).collect::<Result<_>>()?,
        None | Some(Value::Null) => Vec::new(),
        Some(other) => return Err(Error::corrupt(format!("`dynamic` must be an object, but is {other}"))),
    };
    Ok(Some(Box::new(Gptq { default, dynamic, zeros })))
}

/// A rule of `dynamic`: `-:PATTERN` leaves modules dense, `+:PATTERN` or `PATTERN` changes their scheme.
fn rule(pattern: &str, value: &Value, default: Scheme) -> Result<Rule> {
    let (dense, expression) = match pattern.strip_prefix("-:") {
        Some(rest) => (true, rest),
        None => (false, pattern.strip_prefix("+:").unwrap_or(pattern)),
    };
    // Python's `re.match`: anywhere up to the end, but from the start.
    let regex = Regex::new(&format!("^(?:{expression})"))
        .map_err(|e| Error::corrupt(format!("the pattern `{pattern}` of `dynamic` cannot be read: {e}")))?;
    let scheme = (!dense).then(|| Scheme::read(value, Some(default))).transpose()?;
    Ok(Rule { pattern: regex, scheme })
}

impl Gptq {
    /// The scheme of a module by the first rule that matches it; `None` if it stays dense.
    fn scheme(&self, module: &str) -> Result<Option<Scheme>> {
        for rule in &self.dynamic {
            let matched = rule.pattern.is_match(module);
            if matched.map_err(|e| Error::corrupt(format!("a pattern of `dynamic` fails: {e}")).tensor(module))? {
                return Ok(rule.scheme);
            }
        }
        Ok(Some(self.default))
    }

    /// The geometry of a module, all of whose planes are checked against it.
    fn geometry(&self, store: &SafetensorsStore, module: &str) -> Result<Geometry> {
        let Some(Scheme { bits, group }) = self.scheme(module)? else {
            let message = "config.json says that this module is not quantized, but its weight is packed";
            return Err(Error::corrupt(message).tensor(module));
        };
        let [qweight, qzeros, scales] = [PLANES[0], PLANES[1], PLANES[2]].map(|p| plane(store, module, p));
        let (qweight, qzeros, scales) = (qweight?, qzeros?, scales?);
        let width = usize::from(bits);
        let [words, out] = qweight.shape[..] else {
            return Err(Error::corrupt(format!("has shape {:?}, expected a matrix", qweight.shape)).tensor(&qweight.name));
        };
        let context = format!("{bits} bits in groups of {}", group.map_or("whole rows".into(), |g| g.to_string()));
        let columns = words / width * UNIT;
        if words == 0 || out == 0 || !words.is_multiple_of(width) || !out.is_multiple_of(UNIT) {
            let message = format!("shape {:?} is not whole units of {UNIT} codes of {bits} bits", qweight.shape);
            return Err(Error::corrupt(message).tensor(&qweight.name));
        }
        let g = Geometry { bits, group: group.unwrap_or(columns).min(columns), out, columns, scale: scale_type(scales)? };
        check(qweight, &["I32", "U32"], &[words, out], &context)?;
        check(qzeros, &["I32", "U32"], &[g.groups(), out / UNIT * width], &context)?;
        check(scales, &["f16", "bf16", "f32"], &[g.groups(), out], &context)?;
        Ok(g)
    }
}

/// The group of each column, if it is not simply `i / group`.
fn order(store: &SafetensorsStore, module: &str, g: &Geometry) -> Result<Option<Vec<usize>>> {
    let name = format!("{module}.{}", PLANES[3]);
    let Some(info) = store.find(&name) else { return Ok(None) };
    check(info, &["I32"], &[g.columns], &format!("{} columns", g.columns))?;
    let bytes = store.bytes(&name)?;
    let mut index = Vec::with_capacity(g.columns);
    for (i, b) in bytes.as_chunks::<4>().0.iter().enumerate() {
        let group = i32::from_le_bytes(*b);
        match usize::try_from(group) {
            Ok(group) if group < g.groups() => index.push(group),
            _ => {
                let message = format!("column {i} is in group {group}, but there are {} groups", g.groups());
                return Err(Error::corrupt(message).tensor(name));
            }
        }
    }
    let trivial = index.iter().enumerate().all(|(i, &k)| k == i / g.group);
    Ok((!trivial).then_some(index))
}

impl Layout for Gptq {
    fn name(&self) -> &'static str {
        "gptq"
    }

    fn weights(&self, store: &SafetensorsStore) -> Result<Vec<Weight>> {
        let mut weights = Vec::new();
        for info in store.tensors() {
            let Some(module) = info.name.strip_suffix(PLANES[0]).and_then(|m| m.strip_suffix('.')) else { continue };
            let at = |e: Error| e.file(store.file_of(&info.name));
            let g = self.geometry(store, module).map_err(at)?;
            let ordered = order(store, module, &g).map_err(at)?.is_some();
            let encoding = match g.codec().filter(|_| !ordered) {
                Some(codec) => Encoding::Codec(codec),
                None => {
                    let order = if ordered { ", columns in order of activation" } else { "" };
                    Encoding::Decoded(format!("gptq {} bits, groups of {}{order}", g.bits, g.group))
                }
            };
            let planes: Vec<&TensorInfo> = PLANES.iter().filter_map(|p| store.find(&format!("{module}.{p}"))).collect();
            let n_bytes = planes.iter().map(|p| p.n_bytes).sum();
            weights.push(Weight {
                info: TensorInfo::new(format!("{module}.weight"), vec![g.out, g.columns], encoding, n_bytes),
                planes: planes.iter().map(|p| p.name.clone()).collect(),
            });
        }
        Ok(weights)
    }

    fn rows(&self, store: &SafetensorsStore, weight: &Weight, rows: Range<usize>) -> Result<Vec<u8>> {
        let module = super::module_of(weight);
        let g = self.geometry(store, module)?;
        let [qweight, qzeros, scales] = [PLANES[0], PLANES[1], PLANES[2]].map(|p| store.bytes(&format!("{module}.{p}")));
        let (qweight, qzeros, scales) = (qweight?, qzeros?, scales?);
        let codes = read_codes(&g, &qweight, rows.clone());
        let zeros = read_zeros(&g, &qzeros, rows.clone(), self.zeros);
        if matches!(weight.info.encoding, Encoding::Codec(_)) {
            return Ok(blocks(&g, rows, &codes, &zeros, &scales));
        }
        let order = order(store, module, &g)?.unwrap_or_else(|| (0..g.columns).map(|i| i / g.group).collect());
        Ok(decode(&g, rows, &codes, &zeros, &scales, &order))
    }
}

/// The codes of some rows, a bit stream per row: columns of words, transposed.
fn read_codes(g: &Geometry, qweight: &[u8], rows: Range<usize>) -> Vec<u8> {
    let stream = g.stream();
    let mut codes = vec![0u8; rows.len() * stream];
    codes.par_chunks_mut(TILE * stream).enumerate().for_each(|(tile, out)| {
        let (first, n) = (rows.start + tile * TILE, out.len() / stream);
        for k in 0..stream / 4 {
            let words = &qweight[(k * g.out + first) * 4..][..n * 4];
            for (r, word) in words.chunks_exact(4).enumerate() {
                out[r * stream + k * 4..][..4].copy_from_slice(word);
            }
        }
    });
    codes
}

/// The inverse of [`read_codes`] for all rows.
fn write_codes(g: &Geometry, codes: &[u8]) -> Vec<u8> {
    let stream = g.stream();
    let mut qweight = vec![0u8; codes.len()];
    qweight.par_chunks_mut(g.out * 4).enumerate().for_each(|(k, words)| {
        for (r, word) in words.chunks_exact_mut(4).enumerate() {
            word.copy_from_slice(&codes[r * stream + k * 4..][..4]);
        }
    });
    qweight
}

/// The zero points of some rows: `zeros[group · n + row]`.
fn read_zeros(g: &Geometry, qzeros: &[u8], rows: Range<usize>, stored: ZeroPoints) -> Vec<u8> {
    if rows.is_empty() {
        return Vec::new();
    }
    let unit = UNIT / 8 * usize::from(g.bits);
    let (first, last) = (rows.start / UNIT, rows.end.div_ceil(UNIT));
    let mut zeros = Vec::with_capacity(g.groups() * rows.len());
    let mut fields = vec![0u8; (last - first) * UNIT];
    for line in qzeros.chunks_exact(g.out / UNIT * unit) {
        let mut line = line[first * unit..last * unit].to_vec();
        let one = match (stored, g.bits) {
            (ZeroPoints::AsTheyAre, _) | (_, 3) => 0u32,
            (ZeroPoints::MinusOne, bits) => u32::MAX / ((1 << bits) - 1),
        };
        for word in line.as_chunks_mut::<4>().0 {
            *word = u32::from_le_bytes(*word).wrapping_add(one).to_le_bytes();
        }
        bits::unpack_width(g.bits, &line, &mut fields);
        if stored == ZeroPoints::MinusOne && g.bits == 3 {
            fields.iter_mut().for_each(|z| *z = (*z + 1) & 7);
        }
        zeros.extend_from_slice(&fields[rows.start - first * UNIT..][..rows.len()]);
    }
    zeros
}

/// The inverse of [`read_zeros`] for all rows.
fn write_zeros(g: &Geometry, zeros: &[u8], stored: ZeroPoints) -> Result<Vec<u8>> {
    let less = u8::from(stored == ZeroPoints::MinusOne);
    let max = ((1u16 << g.bits) - 1) as u8;
    if let Some(i) = zeros.iter().position(|&z| z > max || z < less) {
        let message = format!("zero point {} of row {} does not fit {} bits", zeros[i], i % g.out, g.bits);
        return Err(Error::unsupported(message).hint("checkpoints in format gptq_v2 store zero point 0"));
    }
    let fields: Vec<u8> = zeros.iter().map(|z| z - less).collect();
    let mut qzeros = vec![0u8; fields.len() / 8 * usize::from(g.bits)];
    bits::pack_width(g.bits, &fields, &mut qzeros);
    Ok(qzeros)
}

/// Values of some rows as f32 bytes, with the group that `order` gives each column.
fn decode(g: &Geometry, rows: Range<usize>, codes: &[u8], zeros: &[u8], scales: &[u8], order: &[usize]) -> Vec<u8> {
    let n = rows.len();
    let mut out = vec![0u8; n * g.columns * 4];
    out.par_chunks_mut(g.columns * 4).zip(codes.par_chunks(g.stream())).enumerate().for_each(|(r, (out, stream))| {
        let lines: Vec<(f32, f32)> =
            (0..g.groups()).map(|k| (scale_at(g, scales, k, rows.start + r), f32::from(zeros[k * n + r]))).collect();
        let mut codes = vec![0u8; g.columns];
        bits::unpack_width(g.bits, stream, &mut codes);
        for ((value, &code), &k) in out.as_chunks_mut::<4>().0.iter_mut().zip(&codes).zip(order) {
            let (scale, zero) = lines[k];
            *value = (scale * (f32::from(code) - zero)).to_le_bytes();
        }
    });
    out
}

/// Whether a matrix can be stored in this layout: both dimensions must fill words.
pub fn fits(rows: usize, columns: usize) -> bool {
    rows.is_multiple_of(UNIT) && columns.is_multiple_of(UNIT)
}

/// The geometry of a tensor to be written.
fn planned(name: &str, codec: CodecId, shape: &[usize]) -> Result<Geometry> {
    let (CodecId::IntGroup { bits, group, scale, .. }, &[out, columns]) = (codec, shape) else {
        return Err(Error::failed(format!("GPTQ cannot hold {codec} of {shape:?}")).tensor(name));
    };
    let group = group as usize;
    if out == 0 || columns == 0 || !fits(out, columns) || !columns.is_multiple_of(group) {
        let message = format!("shape {shape:?} does not fill words of 32 bits in groups of {group}");
        return Err(Error::failed(message).tensor(name));
    }
    Ok(Geometry { bits, group, out, columns, scale })
}

/// The planes of a tensor of this codec and logical shape.
pub(super) fn plan_planes(name: &str, codec: CodecId, shape: &[usize]) -> Result<Vec<TensorPlan>> {
    let g = planned(name, codec, shape)?;
    let module = super::module_name(name)?;
    let bits = usize::from(g.bits);
    Ok(vec![
        TensorPlan::new(format!("{module}.qweight"), "I32", &[g.columns / UNIT * bits, g.out])?,
        TensorPlan::new(format!("{module}.qzeros"), "I32", &[g.groups(), g.out / UNIT * bits])?,
        TensorPlan::float(format!("{module}.scales"), g.scale.codec(), &[g.groups(), g.out])?,
        TensorPlan::new(format!("{module}.g_idx"), "I32", &[g.columns])?,
    ])
}

/// Names and bytes of the planes that [`plan_planes`] lists.
pub(super) fn split_planes(name: &str, tensor: &EncodedTensor, stored: ZeroPoints) -> Result<Vec<(String, Cow<'static, [u8]>)>> {
    let g = planned(name, tensor.codec, &tensor.shape)?;
    let module = super::module_name(name)?;
    let planes = Planes::of_blocks(&g, &tensor.bytes).map_err(|e| e.tensor(name))?;
    let index = (0..g.columns).flat_map(|i| ((i / g.group) as i32).to_le_bytes()).collect();
    let qzeros = write_zeros(&g, &planes.zeros, stored).map_err(|e| e.tensor(name))?;
    let all = [write_codes(&g, &planes.codes), qzeros, planes.scales, index];
    Ok(PLANES.iter().zip(all).map(|(p, bytes)| (format!("{module}.{p}"), Cow::Owned(bytes))).collect())
}
