//! Q2_K: 16 bytes with the 4-bit scale (low half) and minimum (high half) of each sub-block, 64 bytes of codes, `d`, `dmin`. Byte
//! 32·h + i of the codes holds codes 128·h + i, + 32, + 64 and + 96, from the low end.

use super::float;
use super::k_affine;
use super::search::Ranges;
use super::side_by_side::Group;
use super::superblock::{Block, INTS, LEN, Layout};
use crate::codec::{CodecId, Float};
use crate::simd::Lanes;

pub(super) struct Q2K;

/// Weights per sub-block.
const SUB: usize = 16;
const SUBS: usize = LEN / SUB;
/// Offsets of the codes and of `d` in the block.
const CODES: usize = SUBS;
const D: usize = CODES + 64;

impl Layout for Q2K {
    const ID: CodecId = CodecId::Q2K;
    const BYTES: usize = D + 4;
    const SUB: usize = SUB;
    const ZERO: u8 = 0;
    const MAX: u8 = 3;
    const SCALES: (i16, i16) = (0, 15);
    const MAX_MIN: i16 = 15;

    fn write(block: &Block, out: &mut [u8]) {
        let (scales, mins) = block.ints.split_at(SUBS);
        for ((out, scale), min) in out.iter_mut().zip(scales).zip(mins) {
            *out = (*scale | min << 4) as u8;
        }
        write_pairs(&block.codes, &mut out[CODES..D]);
        float::write(Float::F16, block.d, &mut out[D..]);
        float::write(Float::F16, block.dmin, &mut out[D + 2..]);
    }
    fn read(bytes: &[u8]) -> Block {
        let mut ints = [0i16; INTS];
        for (j, &b) in bytes[..SUBS].iter().enumerate() {
            ints[j] = i16::from(b & 15);
            ints[SUBS + j] = i16::from(b >> 4);
        }
        let mut codes = [0u8; LEN];
        read_pairs(&bytes[CODES..D], &mut codes);
        Block { d: float::read(Float::F16, &bytes[D..]), dmin: float::read(Float::F16, &bytes[D + 2..]), ints, codes }
    }
    #[inline(always)]
    fn reference<F: Lanes>(group: &Group<'_>, blocks: &mut [Block]) {
        let plain = Ranges { first: -0.5, stride: 0.1, steps: 15, absolute: true };
        k_affine::reference::<F, Self>(group, plain, 1.0, blocks);
    }
}

/// Writes the low two bits of all codes.
#[inline(always)]
pub(super) fn write_pairs(codes: &[u8], out: &mut [u8]) {
    for (out, codes) in out.as_chunks_mut::<32>().0.iter_mut().zip(codes.as_chunks::<128>().0) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = (codes[i] & 3) | (codes[32 + i] & 3) << 2 | (codes[64 + i] & 3) << 4 | (codes[96 + i] & 3) << 6;
        }
    }
}

/// The inverse of [`write_pairs`].
pub(super) fn read_pairs(bytes: &[u8], codes: &mut [u8]) {
    for (bytes, codes) in bytes.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<128>().0) {
        for (quarter, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (code, b) in codes.iter_mut().zip(bytes) {
                *code = b >> (2 * quarter) & 3;
            }
        }
    }
}
