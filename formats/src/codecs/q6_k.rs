//! Q6_K: 128 bytes of low four bits, 64 bytes of upper two bits, 16 signed 8-bit scales, `d`. In each half of 128 codes:
//! low-bits byte i (0–63) holds code i (low half) and 64 + i (high half); upper-bits byte i (0–31) holds those of codes i,
//! 32 + i, 64 + i, 96 + i, from the low end.

use super::float::{self, saturate};
use super::search::{self, ALL_ZERO};
use super::side_by_side::Group;
use super::superblock::{Block, LEN, Layout};
use crate::codec::{CodecId, Float};
use crate::simd::{IntLanes, Lanes, MAX_LANES, Portable, nearest};

pub(super) struct Q6K;

/// Weights per sub-block.
const SUB: usize = 16;
const SUBS: usize = LEN / SUB;
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
        let ints = std::array::from_fn(|j| if j < SUBS { i16::from(bytes[SCALES + j] as i8) } else { 0 });
        Block { d: float::read(Float::F16, &bytes[D..]), dmin: 0.0, ints, codes }
    }
    #[inline(always)]
    fn reference<F: Lanes>(group: &Group<'_>, blocks: &mut [Block]) {
        let (mut by_sub, mut inverses) = ([[0f32; MAX_LANES]; SUBS], [[0f32; MAX_LANES]; SUBS]);
        let (mut x, mut weights) = ([F::zero(); SUB], [F::zero(); SUB]);
        for (j, (scales, inverses)) in by_sub.iter_mut().zip(&mut inverses).enumerate() {
            group.weights(j * SUB, &mut x);
            match &group.importance {
                Some(importance) => Group::importance(importance, j * SUB, &mut weights),
                None => weights.iter_mut().zip(x).for_each(|(w, x)| *w = x * x),
            }
            let found = search::symmetric(&x, &weights, ZERO as f32);
            found.inverse.store(inverses);
            found.scale.store(scales);
        }
        for (lane, block) in blocks.iter_mut().enumerate() {
            let scales = by_sub.map(|scales| scales[lane]);
            let max = search::extreme(&scales);
            if max.abs() < ALL_ZERO {
                continue;
            }
            let inverse = Portable::<1>::splat(-128.0 / max);
            block.d = saturate(Float::F16, 1.0 / (-128.0 / max));
            for (j, scale) in scales.into_iter().enumerate() {
                let mut int = [0];
                nearest(inverse * Portable::splat(scale)).store(&mut int);
                // ggml stores the integer in an i8, which wraps.
                block.ints[j] = i16::from(int[0].min(127) as i8);
                if block.d * f32::from(block.ints[j]) == 0.0 {
                    let codes = block.codes[j * SUB..][..SUB].iter_mut();
                    search::keep_symmetric_codes(inverses[j][lane], &group.block(lane)[j * SUB..], ZERO, codes);
                }
            }
        }
    }
}
