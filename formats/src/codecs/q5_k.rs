//! Q5_K: header of `k_affine.rs`, then 32 bytes of fifth bits (bit p of byte i for code 32·p + i), then the low four bits as in
//! Q4_K.

use super::k_affine::{self, HEADER, MAX_INT, SUB};
use super::q4_k::{read_low, write_low};
use super::search::Ranges;
use super::side_by_side::Group;
use super::superblock::{Block, Layout};
use crate::codec::CodecId;
use crate::simd::Lanes;

pub(super) struct Q5K;

/// Bytes of fifth bits.
const HIGH: usize = 32;

impl Layout for Q5K {
    const ID: CodecId = CodecId::Q5K;
    const BYTES: usize = 176;
    const SUB: usize = SUB;
    const ZERO: u8 = 0;
    const MAX: u8 = 31;
    const SCALES: (i16, i16) = (0, MAX_INT);
    const MAX_MIN: i16 = MAX_INT;

    fn write(block: &Block, out: &mut [u8]) {
        k_affine::write_header(block, out);
        let (high, low) = out[HEADER..].split_at_mut(HIGH);
        high.fill(0);
        for (bit, codes) in block.codes.chunks_exact(32).enumerate() {
            for (high, code) in high.iter_mut().zip(codes) {
                *high |= (code >> 4 & 1) << bit;
            }
        }
        write_low(&block.codes, low);
    }
    fn read(bytes: &[u8]) -> Block {
        let mut block = k_affine::read_header(bytes);
        let (high, low) = bytes[HEADER..].split_at(HIGH);
        read_low(low, &mut block.codes);
        for (bit, codes) in block.codes.chunks_exact_mut(32).enumerate() {
            for (code, high) in codes.iter_mut().zip(high) {
                *code |= (high >> bit & 1) << 4;
            }
        }
        block
    }
    #[inline(always)]
    fn reference<F: Lanes>(group: &Group<'_>, blocks: &mut [Block]) {
        let plain = Ranges { first: -0.5, stride: 0.1, steps: 15, absolute: false };
        k_affine::reference::<F, Self>(group, plain, 2.0, blocks);
    }
}
