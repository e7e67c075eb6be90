//! Q3_K: 32 bytes of third bits (bit p of byte i for code 32·p + i), 64 bytes of the low two bits as in Q2_K, 12 bytes of 6-bit
//! scales, `d`. Of scale j, shifted by 32, the low four bits are in half j / 8 of byte j % 8 and the upper two in byte 8 + j % 4, at
//! bit 2·(j / 4).

use super::float::{self, saturate};
use super::q2_k::{read_pairs, write_pairs};
use super::search;
use super::side_by_side::Group;
use super::superblock::{Block, INTS, LEN, Layout};
use crate::codec::{CodecId, Float};
use crate::simd::{IntLanes, Lanes, MAX_LANES, Portable, nearest};

pub(super) struct Q3K;

/// Weights per sub-block.
const SUB: usize = 16;
const SUBS: usize = LEN / SUB;
const ZERO: i32 = 4;
/// What is added to integer scales.
const SHIFT: i32 = 32;
/// Offsets of the low bits, the scales and `d` in the block.
const LOW: usize = 32;
const SCALES: usize = LOW + 64;
const D: usize = SCALES + 12;

impl Layout for Q3K {
    const ID: CodecId = CodecId::Q3K;
    const BYTES: usize = D + 2;
    const SUB: usize = SUB;
    const ZERO: u8 = ZERO as u8;
    const MAX: u8 = 7;
    const SCALES: (i16, i16) = (-32, 31);
    const MAX_MIN: i16 = 0;

    fn write(block: &Block, out: &mut [u8]) {
        let high = &mut out[..LOW];
        high.fill(0);
        for (bit, codes) in block.codes.as_chunks::<32>().0.iter().enumerate() {
            for (high, code) in high.iter_mut().zip(codes) {
                *high |= (code >> 2 & 1) << bit;
            }
        }
        write_pairs(&block.codes, &mut out[LOW..SCALES]);
        let scales = &mut out[SCALES..D];
        scales.fill(0);
        for (j, int) in block.ints[..SUBS].iter().enumerate() {
            let code = (i32::from(*int) + SHIFT) as u8;
            scales[j % 8] |= (code & 15) << (4 * (j / 8));
            scales[8 + j % 4] |= code >> 4 << (2 * (j / 4));
        }
        float::write(Float::F16, block.d, &mut out[D..]);
    }
    fn read(bytes: &[u8]) -> Block {
        let mut codes = [0u8; LEN];
        read_pairs(&bytes[LOW..SCALES], &mut codes);
        for (bit, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (code, high) in codes.iter_mut().zip(bytes) {
                *code |= (high >> bit & 1) << 2;
            }
        }
        let scales = &bytes[SCALES..D];
        let mut ints = [0i16; INTS];
        for (j, int) in ints[..SUBS].iter_mut().enumerate() {
            let code = (scales[j % 8] >> (4 * (j / 8)) & 15) | (scales[8 + j % 4] >> (2 * (j / 4)) & 3) << 4;
            *int = (i32::from(code) - SHIFT) as i16;
        }
        Block { d: float::read(Float::F16, &bytes[D..]), dmin: 0.0, ints, codes }
    }
    #[inline(always)]
    fn reference<F: Lanes>(group: &Group<'_>, blocks: &mut [Block]) {
        match &group.importance {
            Some(importance) => weighted::<F>(group, importance, blocks),
            None => plain::<F>(group, blocks),
        }
    }
}

/// Without importance: every sub-block's scale by moving single codes, the largest scale on integer −32.
#[inline(always)]
fn plain<F: Lanes>(group: &Group<'_>, blocks: &mut [Block]) {
    let mut levels = [F::zero(); LEN];
    let mut by_sub = [[0f32; MAX_LANES]; SUBS];
    let (mut x, mut lanes) = ([F::zero(); SUB], [0f32; MAX_LANES]);
    for (j, scales) in by_sub.iter_mut().enumerate() {
        group.weights(j * SUB, &mut x);
        search::symmetric_moves(&x, ZERO as f32, &mut levels[j * SUB..][..SUB]).store(scales);
    }
    for (lane, block) in blocks.iter_mut().enumerate() {
        let scales = by_sub.map(|scales| scales[lane]);
        let max = search::extreme(&scales);
        if max == 0.0 {
            block.ints[..SUBS].fill(-(SHIFT as i16));
        } else {
            let inverse = -(SHIFT as f32) / max;
            block.d = saturate(Float::F16, 1.0 / inverse);
            for (int, scale) in block.ints.iter_mut().zip(scales) {
                let mut found = [0];
                nearest(Portable::<1>::splat(inverse * scale)).store(&mut found);
                // ggml keeps the integer in an i8, which wraps, before it limits it.
                *int = i16::from(found[0] as i8).clamp(-32, 31);
            }
        }
        for j in 0..SUBS {
            if block.d * f32::from(block.ints[j]) == 0.0 {
                for (i, code) in block.codes[j * SUB..][..SUB].iter_mut().enumerate() {
                    levels[j * SUB + i].store(&mut lanes);
                    *code = (lanes[lane] as i32 + ZERO) as u8;
                }
            }
        }
    }
}

/// With importance: every sub-block's scale by search, and the super-block's by the same search over theirs.
#[inline(always)]
fn weighted<F: Lanes>(group: &Group<'_>, importance: &[&[f32]; MAX_LANES], blocks: &mut [Block]) {
    let mut x = [F::zero(); LEN];
    group.weights(0, &mut x);
    let mut sum = F::zero();
    for &x in &x {
        sum = sum + x * x;
    }
    let sigma2 = F::splat(2.0) * sum / F::splat(LEN as f32);
    let (mut scales, mut sums, mut weights) = ([F::zero(); SUBS], [F::zero(); SUBS], [F::zero(); SUB]);
    let mut inverses = [[0f32; MAX_LANES]; SUBS];
    for j in 0..SUBS {
        let x = &x[j * SUB..][..SUB];
        Group::importance(importance, j * SUB, &mut weights);
        for (w, &x) in weights.iter_mut().zip(x) {
            *w = *w * (sigma2 + x * x).sqrt();
            sums[j] = sums[j] + *w;
        }
        let found = search::symmetric(x, &weights, ZERO as f32);
        scales[j] = found.scale;
        found.inverse.store(&mut inverses[j]);
    }
    let found = search::symmetric(&scales, &sums, SHIFT as f32);
    let mut ds = [0f32; MAX_LANES];
    found.scale.store(&mut ds);
    let mut ints = [[0i32; MAX_LANES]; SUBS];
    for (ints, &scale) in ints.iter_mut().zip(&scales) {
        search::symmetric_codes(&found, scale, SHIFT).store(ints);
    }
    for (lane, block) in blocks.iter_mut().enumerate() {
        block.d = saturate(Float::F16, ds[lane]);
        for (j, ints) in ints.iter().enumerate() {
            block.ints[j] = (ints[lane] - SHIFT) as i16;
            if block.d * f32::from(block.ints[j]) == 0.0 {
                let codes = block.codes[j * SUB..][..SUB].iter_mut();
                search::keep_symmetric_codes(inverses[j][lane], &group.block(lane)[j * SUB..], ZERO, codes);
            }
        }
    }
}
