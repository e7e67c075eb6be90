//! What Q4_K and Q5_K share: 8 sub-blocks of 32 weights with 6-bit scales and minima, and ggml's encoder for both.
//!
//! Bytes 0–1 `d`, 2–3 `dmin`, 4–15 the 6-bit integers: of sub-blocks 0–3 the scales are the low six bits of bytes 0–3 and the
//! minima those of bytes 4–7; of sub-block j = 4–7 the low four bits are in byte j + 4 (scale low half, minimum high half) and
//! the upper two bits are the upper bits of bytes j − 4 (scale) and j (minimum).

use super::float::{self, saturate};
use super::search::{self, Ranges, nearest};
use super::superblock::{Block, LEN};
use crate::codec::Float;

/// Weights per sub-block.
pub(super) const SUB: usize = 32;
/// Sub-blocks per super-block.
pub(super) const SUBS: usize = LEN / SUB;
/// Bytes before the codes.
pub(super) const HEADER: usize = 16;
/// Largest integer scale and minimum.
pub(super) const MAX_INT: i16 = 63;

/// Writes `d`, `dmin` and the integers to the first [`HEADER`] bytes.
pub(super) fn write_header(block: &Block, out: &mut [u8]) {
    float::write(Float::F16, block.d, out);
    float::write(Float::F16, block.dmin, &mut out[2..]);
    let out = &mut out[4..HEADER];
    for j in 0..SUBS {
        let (scale, min) = (block.ints[j] as u8, block.ints[SUBS + j] as u8);
        if j < 4 {
            out[j] = scale;
            out[j + 4] = min;
        } else {
            out[j + 4] = (scale & 15) | (min & 15) << 4;
            out[j - 4] |= scale >> 4 << 6;
            out[j] |= min >> 4 << 6;
        }
    }
}

/// The inverse of [`write_header`], with all codes 0.
pub(super) fn read_header(bytes: &[u8]) -> Block {
    let d = float::read(Float::F16, bytes);
    let dmin = float::read(Float::F16, &bytes[2..]);
    let packed = &bytes[4..HEADER];
    let mut ints = [0i16; 2 * SUBS];
    for j in 0..SUBS {
        let (scale, min) = if j < 4 {
            (packed[j] & 63, packed[j + 4] & 63)
        } else {
            ((packed[j + 4] & 15) | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
        };
        ints[j] = scale as i16;
        ints[SUBS + j] = min as i16;
    }
    Block { d, dmin, ints, codes: [0; LEN] }
}

/// ggml's encoder for codes `0 ..= levels`; `ranges` are those it tries without importance.
pub(super) fn reference(x: &[f32], importance: Option<&[f32]>, levels: i32, ranges: Ranges) -> Block {
    let mut codes = [0u8; LEN];
    let (mut scales, mut mins) = ([0f32; SUBS], [0f32; SUBS]);
    let (mut int_scales, mut int_mins) = ([0u8; SUBS], [0u8; SUBS]);
    let mut weights = [0f32; SUB];
    let (d, dmin);
    match importance {
        Some(importance) => {
            let sigma2 = 2.0 * sum_of_squares(x) / LEN as f32;
            let mut sums = [0f32; SUBS];
            for j in 0..SUBS {
                let (x, q) = (&x[SUB * j..][..SUB], &importance[SUB * j..][..SUB]);
                for ((w, &x), &q) in weights.iter_mut().zip(x).zip(q) {
                    *w = q * (sigma2 + x * x).sqrt();
                    sums[j] += *w;
                }
                (scales[j], mins[j]) = search::affine(x, &weights, levels, search::WEIGHTED, &mut codes[SUB * j..][..SUB]);
            }
            d = search::positive(&scales, &sums, MAX_INT as i32, &mut int_scales);
            dmin = search::positive(&mins, &sums, MAX_INT as i32, &mut int_mins);
        }
        None => {
            for j in 0..SUBS {
                let x = &x[SUB * j..][..SUB];
                let root_mean_square = (sum_of_squares(x) / SUB as f32).sqrt();
                for (w, &x) in weights.iter_mut().zip(x) {
                    *w = root_mean_square + x.abs();
                }
                (scales[j], mins[j]) = search::affine(x, &weights, levels, ranges, &mut codes[SUB * j..][..SUB]);
            }
            let quantize = |values: &[f32; SUBS], ints: &mut [u8; SUBS]| {
                let max = values.iter().fold(0f32, |m, &v| if v > m { v } else { m });
                let inverse = if max > 0.0 { MAX_INT as f32 / max } else { 0.0 };
                for (int, &v) in ints.iter_mut().zip(values) {
                    *int = nearest(inverse * v) as u8;
                }
                max / MAX_INT as f32
            };
            d = quantize(&scales, &mut int_scales);
            dmin = quantize(&mins, &mut int_mins);
        }
    }

    let (d, dmin) = (saturate(Float::F16, d), saturate(Float::F16, dmin));
    let mut ints = [0i16; 2 * SUBS];
    for j in 0..SUBS {
        ints[j] = (int_scales[j] as i16).min(MAX_INT);
        ints[SUBS + j] = (int_mins[j] as i16).min(MAX_INT);
        let step = d * ints[j] as f32;
        if step == 0.0 {
            continue; // The search's codes stay, whatever they are.
        }
        let min = dmin * ints[SUBS + j] as f32;
        for (code, &x) in codes[SUB * j..][..SUB].iter_mut().zip(&x[SUB * j..]) {
            *code = nearest((x + min) / step).clamp(0, levels) as u8;
        }
    }
    Block { d, dmin, ints, codes }
}

fn sum_of_squares(x: &[f32]) -> f32 {
    x.iter().fold(0f32, |sum, &x| sum + x * x)
}
