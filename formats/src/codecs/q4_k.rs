//! Q4_K: header of `k_affine.rs`, then 128 bytes of codes: byte 32·p + i holds code 64·p + i (low half) and 64·p + 32 + i
//! (high half).

use super::k_affine::{self, HEADER, MAX_INT, SUB};
use super::search::Ranges;
use super::side_by_side::Group;
use super::superblock::{Block, Layout};
use crate::codec::CodecId;
use crate::simd::Lanes;

pub(super) struct Q4K;

impl Layout for Q4K {
    const ID: CodecId = CodecId::Q4K;
    const BYTES: usize = 144;
    const SUB: usize = SUB;
    const ZERO: u8 = 0;
    const MAX: u8 = 15;
    const SCALES: (i16, i16) = (0, MAX_INT);
    const MAX_MIN: i16 = MAX_INT;

    fn write(block: &Block, out: &mut [u8]) {
        k_affine::write_header(block, out);
        write_low(&block.codes, &mut out[HEADER..]);
    }
    fn read(bytes: &[u8]) -> Block {
        let mut block = k_affine::read_header(bytes);
        read_low(&bytes[HEADER..], &mut block.codes);
        block
    }
    #[inline(always)]
    fn reference<F: Lanes>(group: &Group<'_>, blocks: &mut [Block]) {
        let plain = Ranges { first: -1.0, stride: 0.1, steps: 20, absolute: false };
        k_affine::reference::<F, Self>(group, plain, 2.0, blocks);
    }
}

/// Writes the low four bits of all codes.
pub(super) fn write_low(codes: &[u8], out: &mut [u8]) {
    for (out, codes) in out.chunks_exact_mut(32).zip(codes.chunks_exact(64)) {
        let (low, high) = codes.split_at(32);
        for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
            *out = (low & 15) | high << 4;
        }
    }
}

/// The inverse of [`write_low`].
pub(super) fn read_low(bytes: &[u8], codes: &mut [u8]) {
    for (bytes, codes) in bytes.chunks_exact(32).zip(codes.chunks_exact_mut(64)) {
        let (low, high) = codes.split_at_mut(32);
        for ((low, high), b) in low.iter_mut().zip(high).zip(bytes) {
            *low = b & 15;
            *high = b >> 4;
        }
    }
}
