//! bitsandbytes, 4 and 8 bits.
//!
//! 4 bits: `X.weight` holds the codes of the flattened matrix, the first of two in the high half of a byte, whatever its dtype;
//! `X.weight.absmax` one scale per group, F32, or U8 codes into `nested_quant_map` under `nested_absmax` (double quantization);
//! `X.weight.quant_map` the 16 levels; `X.weight.quant_state.bitsandbytes__nf4` (or `fp4`) a JSON text with shape and group length.
//! 8 bits: `X.weight` I8, `X.SCB` F32, the largest magnitude of each row; `X.weight_format` 0.

use super::bytes::{self, ByteScales};
use super::planes::{self, at, mismatch};
use super::{Layout, Weight};
use crate::codec::CodecId;
use crate::codecs::nf4;
use crate::container::{Encoding, TensorInfo, TensorStore};
use crate::error::{Error, Result};
use crate::safetensors::SafetensorsStore;
use serde_json::Value;
use std::ops::Range;

const STATE: &str = ".quant_state.bitsandbytes__";
/// Rows hold 127ths of their largest magnitude.
const ROW_MAXIMA: ByteScales = ByteScales { tile: None, factor: 1.0 / 127.0 };

/// The layout.
#[derive(Debug)]
struct BitsAndBytes;

/// The layout that a `quantization_config` asks for.
pub(super) fn from_config(config: &Value) -> Result<Option<Box<dyn Layout>>> {
    let ours = config.get("quant_method").and_then(Value::as_str) == Some("bitsandbytes");
    Ok(ours.then(|| Box::new(BitsAndBytes) as Box<dyn Layout>))
}

impl Layout for BitsAndBytes {
    fn name(&self) -> &'static str {
        "bitsandbytes"
    }
    fn weights(&self, store: &SafetensorsStore) -> Result<Vec<Weight>> {
        let mut weights = Vec::new();
        for info in store.tensors() {
            if let Some((name, kind)) = info.name.split_once(STATE) {
                weights.push(Four::open(store, name, kind, info)?.weight(store, name)?);
            } else if let Some(module) = info.name.strip_suffix(".SCB") {
                weights.push(int8(store, module, info)?);
            }
        }
        Ok(weights)
    }
    fn rows(&self, store: &SafetensorsStore, weight: &Weight, rows: Range<usize>) -> Result<Vec<u8>> {
        let state = weight.planes.iter().find_map(|p| p.split_once(STATE).map(|(name, kind)| (name, kind, p)));
        match state {
            None => bytes::rows(store, weight, 2, ROW_MAXIMA, rows),
            Some((name, kind, state)) => Four::open(store, name, kind, find(store, state)?)?.rows(store, weight, rows),
        }
    }
}

/// A tensor that must be there.
fn find<'a>(store: &'a SafetensorsStore, name: &str) -> Result<&'a TensorInfo> {
    let missing = || Error::missing("this part of a quantized weight is missing").hint("the checkpoint is incomplete");
    store.find(name).ok_or_else(|| missing().file(store.path()).tensor(name))
}

fn int8(store: &SafetensorsStore, module: &str, scb: &TensorInfo) -> Result<Weight> {
    let codes = find(store, &format!("{module}.weight"))?;
    planes::check(store, codes, &[bytes::INT8], &codes.shape)?;
    planes::check(store, scb, &["f32"], &[codes.shape.first().copied().unwrap_or(0)])?;
    let format = store.find(&format!("{module}.weight_format"));
    if let Some(info) = format
        && store.bytes(&info.name)?.iter().any(|&b| b != 0)
    {
        return Err(at(store, &info.name, Error::unsupported("bitsandbytes' tiled orders of int8 weights cannot be read"))
            .hint("save the checkpoint again with a recent bitsandbytes"));
    }
    let mut weight = bytes::weight(store, module, &codes.name, &[codes, scb], ROW_MAXIMA)?;
    weight.planes.extend(format.map(|f| f.name.clone()));
    Ok(weight)
}

/// A weight of 4 bits.
struct Four<'a> {
    codes: &'a TensorInfo,
    state: &'a TensorInfo,
    absmax: &'a TensorInfo,
    map: &'a TensorInfo,
    nested: Option<Nested<'a>>,
    levels: Vec<f32>,
    shape: Vec<usize>,
    group: usize,
    kind: &'a str,
}

/// How the scales themselves are quantized.
struct Nested<'a> {
    absmax: &'a TensorInfo,
    map: &'a TensorInfo,
    group: usize,
    offset: f32,
}

impl<'a> Four<'a> {
    /// Reads the state of weight `name` and holds its planes against it.
    fn open(store: &'a SafetensorsStore, name: &str, kind: &'a str, state: &'a TensorInfo) -> Result<Self> {
        let wrong = |message: String| at(store, &state.name, mismatch(message));
        if !["nf4", "fp4"].contains(&kind) {
            return Err(at(store, &state.name, Error::unsupported(format!("bitsandbytes' `{kind}` cannot be read"))));
        }
        planes::check(store, state, &["U8"], &state.shape)?;
        let json: Value = serde_json::from_slice(&store.bytes(&state.name)?).map_err(|e| wrong(format!("is not JSON: {e}")))?;
        let number = |key: &str| {
            let n = json.get(key).and_then(Value::as_u64).filter(|n| (1..=1 << 20).contains(n));
            n.map(|n| n as usize).ok_or_else(|| wrong(format!("has no usable `{key}`")))
        };
        let group = number("blocksize")?;
        let shape: Option<Vec<usize>> = json
            .get("shape")
            .and_then(Value::as_array)
            .and_then(|s| s.iter().map(|n| n.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0)).collect());
        let weights = shape.iter().flatten().try_fold(1usize, |n, &d| n.checked_mul(d));
        let (Some(shape), Some(n)) = (shape.filter(|s| s.len() >= 2), weights) else {
            return Err(wrong("has no usable `shape`".into()));
        };
        let codes = find(store, name)?;
        // The storage type may be wider than a byte; what counts are the bytes.
        if codes.n_bytes < n.div_ceil(2) || codes.n_bytes - n.div_ceil(2) >= 8 {
            let message = format!("has {} bytes, but shape {shape:?} needs {}", codes.n_bytes, n.div_ceil(2));
            return Err(at(store, name, mismatch(message)));
        }
        let (absmax, map) = (find(store, &format!("{name}.absmax"))?, find(store, &format!("{name}.quant_map"))?);
        planes::check(store, map, &["f32"], &[16])?;
        let groups = n.div_ceil(group);
        let nested = match store.find(&format!("{name}.nested_absmax")) {
            None => {
                planes::check(store, absmax, &["f32"], &[groups])?;
                None
            }
            Some(outer) => {
                let nested_group = number("nested_blocksize")?;
                let offset = json.get("nested_offset").and_then(Value::as_f64).filter(|o| o.is_finite());
                let offset = offset.ok_or_else(|| wrong("has no usable `nested_offset`".into()))? as f32;
                planes::check(store, absmax, &["U8"], &[groups])?;
                planes::check(store, outer, &["f32"], &[groups.div_ceil(nested_group)])?;
                let map = find(store, &format!("{name}.nested_quant_map"))?;
                planes::check(store, map, &["f32"], &[256])?;
                Some(Nested { absmax: outer, map, group: nested_group, offset })
            }
        };
        let table = store.bytes(&map.name)?;
        let levels = (0..16).map(|i| f32_at(&table, i)).collect();
        Ok(Four { codes, state, absmax, map, nested, levels, shape, group, kind })
    }

    fn weight(&self, store: &SafetensorsStore, name: &str) -> Result<Weight> {
        let width = self.shape[self.shape.len() - 1];
        // Levels in another order, as FP4 has them, are no codec here.
        let ours = self.levels.iter().zip(nf4::LEVELS).all(|(a, b)| (a - b).abs() < 1e-6);
        let encoding = match ours && width.is_multiple_of(self.group) && self.group.is_multiple_of(2) {
            true => Encoding::Codec(CodecId::Nf4 { group: self.group as u32 }),
            false => Encoding::Decoded(format!("{}-g{}", self.kind, self.group)),
        };
        let mut planes = vec![self.codes, self.absmax, self.map, self.state];
        planes.extend(self.nested.iter().flat_map(|n| [n.absmax, n.map]));
        let module = name.strip_suffix(".weight").unwrap_or(name);
        Ok(planes::weight(store, module, name.to_string(), self.shape.clone(), encoding, &planes))
    }

    fn rows(&self, store: &SafetensorsStore, weight: &Weight, rows: Range<usize>) -> Result<Vec<u8>> {
        let (codes, absmax) = (store.bytes(&self.codes.name)?, store.bytes(&self.absmax.name)?);
        let nested = match &self.nested {
            None => None,
            Some(n) => Some((store.bytes(&n.absmax.name)?, store.bytes(&n.map.name)?, n)),
        };
        let scale = |group: usize| match &nested {
            None => f32_at(&absmax, group),
            Some((outer, map, n)) => f32_at(map, usize::from(absmax[group])) * f32_at(outer, group / n.group) + n.offset,
        };
        let width = weight.info.row_len();
        if let Encoding::Codec(codec) = weight.info.encoding {
            let groups = width / self.group;
            return Ok(planes::blocks(rows, groups, codec.codec().block_bytes(), |row, group, out| {
                let at = row * groups + group;
                let (out_codes, out_scale) = out.split_at_mut(self.group / 2);
                out_codes.copy_from_slice(&codes[at * self.group / 2..][..self.group / 2]);
                out_scale.copy_from_slice(&scale(at).to_le_bytes());
            }));
        }
        Ok(planes::decoded(rows, width, |row, out| {
            for (column, value) in out.iter_mut().enumerate() {
                let at = row * width + column;
                let byte = codes[at / 2];
                let code = if at.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
                *value = self.levels[usize::from(code)] * scale(at / self.group);
            }
        }))
    }
}

/// Number `i` of an f32 plane.
fn f32_at(bytes: &[u8], i: usize) -> f32 {
    let b = &bytes[i * 4..][..4];
    f32::from_le_bytes([b[0], b[1], b[2], b[3]])
}
