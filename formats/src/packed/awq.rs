//! AWQ in the `gemm` version: 4-bit codes and zero points packed along the output, eight to a word.
//!
//! | plane | dtype | shape |
//! |---|---|---|
//! | `qweight` | I32 | (in, out / 8) |
//! | `qzeros` | I32 | (groups, out / 8) |
//! | `scales` | F16, BF16 | (groups, out) |
//!
//! The nibbles of a word, lowest first, belong to the outputs 0, 2, 4, 6, 1, 3, 5, 7 of its eight. The value is
//! `scales · (code − zero)`.

use super::int_planes::{Geometry, Planes, blocks, check, scale_type};
use super::{Layout, Weight, plane};
use crate::codec::{CodecId, EncodedTensor};
use crate::codecs::bits;
use crate::container::{Encoding, TensorInfo, TensorStore};
use crate::error::{Error, Result};
use crate::safetensors::{SafetensorsStore, TensorPlan};
use rayon::prelude::*;
use serde_json::Value;
use std::borrow::Cow;
use std::ops::Range;

/// The output of each nibble of a word.
const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
/// Outputs of a word.
const WORD: usize = 8;
/// The only width of this version.
const BITS: u8 = 4;
/// Names of the planes after the module's.
const PLANES: [&str; 3] = ["qweight", "qzeros", "scales"];

/// The layout as `quantization_config` describes it.
#[derive(Debug)]
pub(super) struct Awq {
    /// `None` for one group per row.
    group: Option<usize>,
}

/// The layout, if `quantization_config` names it.
pub(super) fn from_config(config: &Value) -> Result<Option<Box<dyn Layout>>> {
    if config.get("quant_method").and_then(Value::as_str) != Some("awq") {
        return Ok(None);
    }
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    let version = text("version").or(text("checkpoint_format")).or(text("format")).unwrap_or("gemm").to_ascii_lowercase();
    // ExLlama's and IPEX' kernels read what `gemm` stores.
    if !matches!(version.as_str(), "gemm" | "exllama" | "ipex") {
        return Err(Error::unsupported(format!("AWQ checkpoints of version `{version}`")).hint("supported: gemm"));
    }
    // AutoAWQ's own files have the shorter names.
    let number = |keys: [&str; 2]| keys.into_iter().find_map(|k| config.get(k)).map(|v| v.as_i64().ok_or(v));
    match number(["bits", "w_bit"]) {
        None | Some(Ok(4)) => {}
        Some(Ok(bits)) => return Err(Error::unsupported(format!("AWQ with {bits} bits")).hint("supported: 4")),
        Some(Err(v)) => return Err(Error::corrupt(format!("`bits` must be a whole number, but is {v}"))),
    }
    let group = match number(["group_size", "q_group_size"]) {
        None => Some(128),
        Some(Ok(-1)) => None,
        Some(Ok(group)) if group > 0 => Some(group as usize),
        Some(Ok(group)) => return Err(Error::corrupt(format!("`group_size` must be positive or -1, but is {group}"))),
        Some(Err(v)) => return Err(Error::corrupt(format!("`group_size` must be a whole number, but is {v}"))),
    };
    if config.get("zero_point").and_then(Value::as_bool) == Some(false) {
        return Err(Error::unsupported("AWQ checkpoints without zero points"));
    }
    Ok(Some(Box::new(Awq { group })))
}

impl Awq {
    /// The geometry of a module, all of whose planes are checked against it.
    fn geometry(&self, store: &SafetensorsStore, module: &str) -> Result<Geometry> {
        let [qweight, qzeros, scales] = PLANES.map(|p| plane(store, module, p));
        let (qweight, qzeros, scales) = (qweight?, qzeros?, scales?);
        let [columns, words] = qweight.shape[..] else {
            return Err(Error::corrupt(format!("has shape {:?}, expected a matrix", qweight.shape)).tensor(&qweight.name));
        };
        let out = words.checked_mul(WORD).ok_or_else(|| Error::corrupt("is too large").tensor(&qweight.name))?;
        let g = Geometry { bits: BITS, group: self.group.unwrap_or(columns), out, columns, scale: scale_type(scales)? };
        let context = format!("4 bits in groups of {}", g.group);
        if g.codec().is_none() || out == 0 {
            return Err(Error::corrupt(format!("{columns} inputs are not whole groups of {}", g.group)).tensor(&qweight.name));
        }
        check(qweight, &["I32", "U32"], &[columns, words], &context)?;
        check(qzeros, &["I32", "U32"], &[g.groups(), words], &context)?;
        check(scales, &["f16", "bf16", "f32"], &[g.groups(), out], &context)?;
        Ok(g)
    }
}

impl Layout for Awq {
    fn name(&self) -> &'static str {
        "awq"
    }

    fn weights(&self, store: &SafetensorsStore) -> Result<Vec<Weight>> {
        let mut weights = Vec::new();
        for info in store.tensors() {
            let Some(module) = info.name.strip_suffix(PLANES[0]).and_then(|m| m.strip_suffix('.')) else { continue };
            let g = self.geometry(store, module).map_err(|e| e.file(store.file_of(&info.name)))?;
            let planes: Vec<&TensorInfo> = PLANES.iter().filter_map(|p| store.find(&format!("{module}.{p}"))).collect();
            let n_bytes = planes.iter().map(|p| p.n_bytes).sum();
            let encoding = Encoding::Codec(g.codec().expect("the geometry was checked"));
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
        let [qweight, qzeros, scales] = PLANES.map(|p| store.bytes(&format!("{module}.{p}")));
        let (qweight, qzeros, scales) = (qweight?, qzeros?, scales?);
        let codes = read_codes(&g, &qweight, rows.clone());
        let zeros = read_zeros(&g, &qzeros, rows.clone());
        Ok(blocks(&g, rows, &codes, &zeros, &scales))
    }
}

/// The nibbles of a word in the order of outputs.
fn open(word: [u8; 4]) -> [u8; WORD] {
    let word = u32::from_le_bytes(word);
    let mut outputs = [0; WORD];
    for (i, &output) in ORDER.iter().enumerate() {
        outputs[output] = (word >> (4 * i)) as u8 & 15;
    }
    outputs
}

/// The inverse of [`open`].
fn close(outputs: [u8; WORD]) -> [u8; 4] {
    let nibbles = ORDER.iter().enumerate().map(|(i, &output)| u32::from(outputs[output]) << (4 * i));
    nibbles.fold(0, |word, nibble| word | nibble).to_le_bytes()
}

/// The codes of some rows, a bit stream per row.
fn read_codes(g: &Geometry, qweight: &[u8], rows: Range<usize>) -> Vec<u8> {
    let (stream, words) = (g.stream(), g.out / WORD);
    let tiles = rows.start / WORD..rows.end.div_ceil(WORD);
    // Rows come eight at a time; those at the ends that are not wanted are cut off.
    let mut codes = vec![0u8; tiles.len() * WORD * stream];
    codes.par_chunks_mut(WORD * stream).zip(tiles.clone()).for_each(|(out, tile)| {
        let mut column = vec![0u8; WORD * g.columns];
        for i in 0..g.columns {
            let at = (i * words + tile) * 4;
            let outputs = open([qweight[at], qweight[at + 1], qweight[at + 2], qweight[at + 3]]);
            outputs.iter().enumerate().for_each(|(r, &code)| column[r * g.columns + i] = code);
        }
        bits::pack_width(BITS, &column, out);
    });
    let skip = (rows.start - tiles.start * WORD) * stream;
    codes.truncate(skip + rows.len() * stream);
    codes.drain(..skip);
    codes
}

/// The inverse of [`read_codes`] for all rows.
fn write_codes(g: &Geometry, codes: &[u8]) -> Vec<u8> {
    let words = g.out / WORD;
    let mut all = vec![0u8; g.out * g.columns];
    all.par_chunks_mut(g.columns)
        .zip(codes.par_chunks(g.stream()))
        .for_each(|(out, stream)| bits::unpack_width(BITS, stream, out));
    let mut qweight = vec![0u8; g.columns * words * 4];
    qweight.par_chunks_mut(words * 4).enumerate().for_each(|(i, line)| {
        for (tile, word) in line.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            *word = close(std::array::from_fn(|r| all[(tile * WORD + r) * g.columns + i]));
        }
    });
    qweight
}

/// The zero points of some rows: `zeros[group · n + row]`.
fn read_zeros(g: &Geometry, qzeros: &[u8], rows: Range<usize>) -> Vec<u8> {
    let mut zeros = Vec::with_capacity(g.groups() * rows.len());
    for line in qzeros.chunks_exact(g.out / WORD * 4) {
        let words = line.as_chunks::<4>().0;
        zeros.extend(rows.clone().map(|r| open(words[r / WORD])[r % WORD]));
    }
    zeros
}

/// The inverse of [`read_zeros`] for all rows.
fn write_zeros(zeros: &[u8]) -> Vec<u8> {
    zeros.as_chunks::<WORD>().0.iter().flat_map(|eight| close(*eight)).collect()
}

/// Whether a matrix can be stored in this layout.
pub fn fits(rows: usize, _columns: usize) -> bool {
    rows.is_multiple_of(WORD)
}

/// The geometry of a tensor to be written.
fn planned(name: &str, codec: CodecId, shape: &[usize]) -> Result<Geometry> {
    let (CodecId::IntGroup { bits: BITS, group, scale, .. }, &[out, columns]) = (codec, shape) else {
        return Err(Error::failed(format!("AWQ cannot hold {codec} of {shape:?}")).tensor(name));
    };
    let g = Geometry { bits: BITS, group: group as usize, out, columns, scale };
    if out == 0 || columns == 0 || !fits(out, columns) || !columns.is_multiple_of(g.group) {
        let message = format!("shape {shape:?} does not fill words of eight outputs in groups of {group}");
        return Err(Error::failed(message).tensor(name));
    }
    Ok(g)
}

/// The planes of a tensor of this codec and logical shape.
pub(super) fn plan_planes(name: &str, codec: CodecId, shape: &[usize]) -> Result<Vec<TensorPlan>> {
    let g = planned(name, codec, shape)?;
    let module = super::module_name(name)?;
    Ok(vec![
        TensorPlan::new(format!("{module}.qweight"), "I32", &[g.columns, g.out / WORD])?,
        TensorPlan::new(format!("{module}.qzeros"), "I32", &[g.groups(), g.out / WORD])?,
        TensorPlan::float(format!("{module}.scales"), g.scale.codec(), &[g.groups(), g.out])?,
    ])
}

/// Names and bytes of the planes that [`plan_planes`] lists.
pub(super) fn split_planes(name: &str, tensor: &EncodedTensor) -> Result<Vec<(String, Cow<'static, [u8]>)>> {
    let g = planned(name, tensor.codec, &tensor.shape)?;
    let module = super::module_name(name)?;
    let planes = Planes::of_blocks(&g, &tensor.bytes).map_err(|e| e.tensor(name))?;
    if let Some(zero) = planes.zeros.iter().find(|&&z| z > 15) {
        return Err(Error::failed(format!("zero point {zero} does not fit 4 bits")).tensor(name));
    }
    let all = [write_codes(&g, &planes.codes), write_zeros(&planes.zeros), planes.scales];
    Ok(PLANES.iter().zip(all).map(|(p, bytes)| (format!("{module}.{p}"), Cow::Owned(bytes))).collect())
}
