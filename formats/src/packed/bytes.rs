//! Weights of one byte each, e4m3 or signed integers, with scales per tile: what FP8 checkpoints, W8A8 checkpoints of
//! compressed-tensors and bitsandbytes' int8 have in common.

use super::planes::{self, Scales, Tiles};
use super::{Weight, dtype};
use crate::codec::{CodecId, Float, decode_all};
use crate::container::{Encoding, TensorInfo, TensorStore};
use crate::error::Result;
use crate::safetensors::SafetensorsStore;
use std::ops::Range;

/// What the bytes are.
pub(super) const E4M3: &str = "F8_E4M3";
pub(super) const INT8: &str = "I8";

/// How a weight's scales are to be read.
#[derive(Debug, Clone, Copy)]
pub(super) struct ByteScales {
    /// Rows and columns of a tile, where the configuration says so.
    pub tile: Option<[usize; 2]>,
    /// What every scale is multiplied by.
    pub factor: f32,
}

/// The weight `name` of `module` from its planes: codes, scales, and zero points as integer weights may have them (`I8`, shaped as
/// the scales). Rows that are not whole tiles are offered decoded.
pub(super) fn weight(
    store: &SafetensorsStore,
    module: &str,
    name: &str,
    planes: &[&TensorInfo],
    scales: ByteScales,
) -> Result<Weight> {
    let (codes, scale) = (planes[0], planes[1]);
    planes::check(store, codes, &[E4M3, INT8], &codes.shape)?;
    let tiles = Tiles::of(store, &codes.shape, scale, scales.tile)?;
    let stored = Scales::float(store, scale)?;
    let float = if scales.factor == 1.0 { stored } else { Float::F32 };
    if let Some(zeros) = planes.get(2) {
        planes::check(store, zeros, &[INT8, E4M3], &scale.shape)?;
    }
    let width = codes.row_len();
    // Longer groups than any codec has are offered decoded.
    let group = u32::try_from(tiles.cols).unwrap_or(0);
    let codec = match dtype(codes).as_str() {
        E4M3 => CodecId::Fp8Group { group, scale: float },
        _ => CodecId::IntGroup { bits: 8, group, scale: float, symmetric: planes.len() < 3 },
    };
    let encoding = planes::encoding(codec, width.is_multiple_of(tiles.cols));
    Ok(planes::weight(store, module, name.to_string(), codes.shape.clone(), encoding, planes))
}

/// Some rows of such a weight, which has `planes` planes.
pub(super) fn rows(
    store: &SafetensorsStore,
    weight: &Weight,
    n_planes: usize,
    scales: ByteScales,
    rows: Range<usize>,
) -> Result<Vec<u8>> {
    let (codes, scale) = (planes::nth(store, weight, 0)?, planes::nth(store, weight, 1)?);
    let tiles = Tiles::of(store, &codes.shape, scale, scales.tile)?;
    let width = codes.row_len();
    let integers = dtype(codes) == INT8;
    let zeros = if integers && n_planes > 2 { Some(store.bytes(&planes::nth(store, weight, 2)?.name)?) } else { None };
    let bytes = store.bytes(&codes.name)?;
    let scales = Scales::open(store, scale, scales.factor)?;
    // Codes of integers are counted from −128.
    let zero = |row: usize, group: usize| 128 ^ zeros.as_ref().map_or(0, |z| z[tiles.index(row, group)]);
    match &weight.info.encoding {
        Encoding::Codec(codec) => {
            let block = codec.codec().block_bytes();
            Ok(planes::blocks(rows, tiles.across(), block, |row, group, out| {
                let (out_codes, rest) = out.split_at_mut(tiles.cols);
                out_codes.copy_from_slice(&bytes[row * width + group * tiles.cols..][..tiles.cols]);
                let scale = if integers {
                    out_codes.iter_mut().for_each(|c| *c ^= 0x80);
                    let (scale, last) = rest.split_at_mut(rest.len() - 1);
                    last[0] = zero(row, group);
                    scale
                } else {
                    rest
                };
                scales.write(tiles.index(row, group), scale);
            }))
        }
        _ => Ok(planes::decoded(rows, width, |row, out| {
            let row_bytes = &bytes[row * width..][..width];
            if integers {
                out.iter_mut().zip(row_bytes).for_each(|(v, &b)| *v = f32::from(b as i8));
            } else {
                // The row under scale 1.
                let unit = [row_bytes, &1f32.to_le_bytes()].concat();
                out.copy_from_slice(&decode_all(CodecId::Fp8Group { group: width as u32, scale: Float::F32 }, &unit));
            }
            for (group, values) in out.chunks_mut(tiles.cols).enumerate() {
                let scale = scales.value(tiles.index(row, group));
                let zero = if integers { f32::from(zero(row, group)) - 128.0 } else { 0.0 };
                values.iter_mut().for_each(|v| *v = (*v - zero) * scale);
            }
        })),
    }
}
