//! Q6_K: 128 bytes of low four bits, 64 bytes of upper two bits, 16 signed 8-bit scales, `d`. In each half of 128 codes:
//! low-bits byte i (0–63) holds code i (low half) and 64 + i (high half); upper-bits byte i (0–31) holds those of codes i,
//! 32 + i, 64 + i, 96 + i, from the low end.

use super::float::{self, saturate};
use super::search::{self, ALL_ZERO, nearest};
use super::superblock::{Block, INTS, LEN, Layout};
use crate::codec::{CodecId, Float};

pub(super) struct Q6K;

/// Weights per sub-block.
const SUB: usize = 16;
const ZERO: i32 = 32;
/// Offsets of upper bits, scales and `d` in the block.
const HIGH: usize = 128;
const SCALES: usize = HIGH + 64;
const D: usize = SCALES + 16;

impl Layout for Q6K {
    const ID: CodecId = CodecId::Q6K;
    const BYTES: usize = D + 2;
    const SUB: usize = SUB;
    const ZERO: u8 = ZERO as u8;
    const MAX: u8 = 63;
    const SCALES: (i16, i16) = (-128, 127);
    const MAX_MIN: i16 = 0;

    fn write(block: &Block, out: &mut [u8]) {
        for (half, codes) in block.codes.chunks_exact(128).enumerate() {
            for i in 0..64 {
                out[64 * half + i] = (codes[i] & 15) | codes[64 + i] << 4;
            }
            for i in 0..32 {
                out[HIGH + 32 * half + i] =
                    codes[i] >> 4 | codes[32 + i] >> 4 << 2 | codes[64 + i] >> 4 << 4 | codes[96 + i] >> 4 << 6;
            }
        }
        for (out, scale) in out[SCALES..D].iter_mut().zip(block.ints) {
            *out = scale as i8 as u8;
        }
        float::write(Float::F16, block.d, &mut out[D..]);
    }
    fn read(bytes: &[u8]) -> Block {
        let mut codes = [0u8; LEN];
        for (half, codes) in codes.chunks_exact_mut(128).enumerate() {
            let low = &bytes[64 * half..][..64];
            let high = &bytes[HIGH + 32 * half..][..32];
            for (quarter, codes) in codes.chunks_exact_mut(32).enumerate() {
                let low = &low[32 * (quarter % 2)..][..32];
                let (low_shift, high_shift) = (4 * (quarter / 2), 2 * quarter);
                for ((code, low), high) in codes.iter_mut().zip(low).zip(high) {
                    *code = (low >> low_shift & 15) | (high >> high_shift & 3) << 4;
                }
            }
        }
        let ints = std::array::from_fn(|j| bytes[SCALES + j] as i8 as i16);
        Block { d: float::read(Float::F16, &bytes[D..]), dmin: 0.0, ints, codes }
    }
    fn reference(x: &[f32], importance: Option<&[f32]>) -> Block {
        let mut codes = [0u8; LEN];
        let mut scales = [0f32; INTS];
        for (j, scale) in scales.iter_mut().enumerate() {
            let x = &x[SUB * j..][..SUB];
            let weights: [f32; SUB] = match importance {
                Some(q) => std::array::from_fn(|i| q[SUB * j + i]),
                None => std::array::from_fn(|i| x[i] * x[i]),
            };
            *scale = search::symmetric(x, &weights, ZERO, &mut codes[SUB * j..][..SUB]);
        }
        let max = search::extreme(&scales);
        if max.abs() < ALL_ZERO {
            return Block { d: 0.0, dmin: 0.0, ints: [0; INTS], codes: [0; LEN] };
        }
        let inverse = -128.0 / max;
        let d = saturate(Float::F16, 1.0 / inverse);
        // ggml stores the integer in an i8, which wraps.
        let ints = scales.map(|s| nearest(inverse * s).min(127) as i8 as i16);
        for (j, &int) in ints.iter().enumerate() {
            let step = d * int as f32;
            if step == 0.0 {
                continue; // The search's codes stay, whatever they are.
            }
            for (code, &x) in codes[SUB * j..][..SUB].iter_mut().zip(&x[SUB * j..]) {
                *code = (nearest(x / step).clamp(-ZERO, ZERO - 1) + ZERO) as u8;
            }
        }
        Block { d, dmin: 0.0, ints, codes }
    }
}
