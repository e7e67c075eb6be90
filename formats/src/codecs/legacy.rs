//! Bits and encoders that ggml's formats of 32 weights share.

use super::{float, search};
use crate::codec::Float;
use crate::simd::{IntLanes, Lanes, Portable};

/// Weights per block.
pub(super) const LEN: usize = 32;

/// Writes codes of up to four bits: byte j holds code j (low half) and code j + 16 (high half).
pub(super) fn write_nibbles(codes: &[u8], out: &mut [u8]) {
    let (low, high) = codes.split_at(LEN / 2);
    for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
        *out = (low & 15) | high << 4;
    }
}
/// The inverse of [`write_nibbles`].
pub(super) fn read_nibbles(bytes: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(LEN / 2);
    for ((low, high), b) in low.iter_mut().zip(high).zip(bytes) {
        *low = b & 15;
        *high = b >> 4;
    }
}
/// Writes codes of five bits: the fifth bits as a u32 (bit i for code i), then the others as [`write_nibbles`] does.
pub(super) fn write_fives(codes: &[u8], out: &mut [u8]) {
    let high = codes.iter().enumerate().fold(0u32, |bits, (i, c)| bits | (*c as u32 >> 4 & 1) << i);
    out[..4].copy_from_slice(&high.to_le_bytes());
    write_nibbles(codes, &mut out[4..]);
}
/// The inverse of [`write_fives`].
pub(super) fn read_fives(bytes: &[u8], codes: &mut [u8]) {
    let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    read_nibbles(&bytes[4..], codes);
    for (i, c) in codes.iter_mut().enumerate() {
        *c |= ((high >> i & 1) << 4) as u8;
    }
}
/// The f16 number `i` of a block.
pub(super) fn read_half(bytes: &[u8], i: usize) -> f32 {
    float::read(Float::F16, &bytes[2 * i..])
}
/// Writes the f16 number `i` of a block.
pub(super) fn write_half(x: f32, i: usize, out: &mut [u8]) {
    float::write(Float::F16, x, &mut out[2 * i..]);
}

fn lanes(x: &[f32]) -> [Portable<1>; LEN] {
    std::array::from_fn(|i| Portable::splat(x[i]))
}

/// The reference encoder of Q4_0 and Q5_0: without importance, the extreme gets code 0.
pub(super) fn symmetric(x: &[f32], weights: Option<&[f32]>, zero: u8, codes: &mut [u8]) -> [f32; 2] {
    if let Some(weights) = weights {
        let (x1, w1) = (lanes(x), lanes(weights));
        let found = search::symmetric(&x1[..x.len()], &w1[..x.len()], f32::from(zero));
        let mut scale = [0.0];
        found.scale.store(&mut scale);
        let mut inverse = [0.0];
        found.inverse.store(&mut inverse);
        search::keep_symmetric_codes(inverse[0], x, i32::from(zero), codes.iter_mut());
        return [scale[0], 0.0];
    }
    let d = search::extreme(x) / -(zero as f32);
    let inverse = if d != 0.0 { 1.0 / d } else { 0.0 };
    for (code, &v) in codes.iter_mut().zip(x) {
        // The cast truncates; the sum is positive but for rounding errors.
        *code = ((v * inverse + (zero as f32 + 0.5)) as i32).clamp(0, 2 * zero as i32 - 1) as u8;
    }
    [d, 0.0]
}
/// The reference encoder of Q4_1 and Q5_1: without importance, the codes span the block's range.
pub(super) fn affine(x: &[f32], weights: Option<&[f32]>, levels: i32, codes: &mut [u8]) -> [f32; 2] {
    if let Some(weights) = weights {
        let (x1, w1) = (lanes(x), lanes(weights));
        let found = search::affine(&x1[..x.len()], &w1[..x.len()], levels, search::WEIGHTED);
        for (code, &x) in codes.iter_mut().zip(&x1) {
            let mut lane = [0];
            search::affine_code(found.inverse, found.origin, x, levels).store(&mut lane);
            *code = lane[0] as u8;
        }
        let (mut scale, mut min) = ([0.0], [0.0]);
        found.scale.store(&mut scale);
        found.min.store(&mut min);
        return [scale[0], min[0]];
    }
    let (mut min, mut max) = (f32::MAX, -f32::MAX);
    for &v in x {
        if v < min {
            min = v;
        }
        if v > max {
            max = v;
        }
    }
    let d = (max - min) / levels as f32;
    let inverse = if d != 0.0 { 1.0 / d } else { 0.0 };
    for (code, &v) in codes.iter_mut().zip(x) {
        *code = (((v - min) * inverse + 0.5) as i32).clamp(0, levels) as u8;
    }
    [d, min]
}
