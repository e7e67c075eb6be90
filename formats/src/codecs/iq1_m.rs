//! IQ1_M: the low eight bits of 32 points; 32 times four bits (the high three bits of a point, and whether its levels are shifted
//! down), the first of two lower; then four times 16 bits: four 3-bit scales and four bits of `d`, lowest first.

use super::book8::{Block, DOWN, GROUPS, LEN, Layout, Marks, Shape, read_scale};
use super::codebook8;
use super::float;
use super::iq1::{self, Rules};
use crate::codec::{CodecId, Float};

pub(super) struct IQ1M;

/// Weights per sub-block.
const SUB: usize = 16;
/// Where high bits and scales start.
const HIGH_AT: usize = GROUPS;
const SCALES_AT: usize = HIGH_AT + GROUPS / 2;
const RULES: Rules = Rules { plain: Some(0.0), least: 1e-7, stretch: 1.1125, refit: true };

impl Layout for IQ1M {
    const ID: CodecId = CodecId::IQ1M;
    const BYTES: usize = SCALES_AT + LEN / 32;
    const SHAPE: Shape = Shape { book: &codebook8::IQ1, marks: Marks::Shift, sub: SUB };

    fn reference(x: &[f32], importance: Option<&[f32]>, blocks: &mut [Block]) {
        iq1::encode(Self::SHAPE, &RULES, x, importance, blocks);
    }
    fn write(block: &Block, out: &mut [u8]) {
        for (out, point) in out[..HIGH_AT].iter_mut().zip(block.points) {
            *out = point as u8;
        }
        let nibble = |g: usize| (block.points[g] >> 8) as u8 | block.marks[g] & 8;
        for (k, out) in out[HIGH_AT..SCALES_AT].iter_mut().enumerate() {
            *out = nibble(2 * k) | nibble(2 * k + 1) << 4;
        }
        let mut d = [0; 2];
        float::write(Float::F16, block.d, &mut d);
        let d = u16::from_le_bytes(d);
        for (k, (out, ints)) in out[SCALES_AT..].chunks_exact_mut(2).zip(block.scales.chunks_exact(4)).enumerate() {
            let ints = ints.iter().rev().fold(0, |all, &int| all << 3 | u16::from(int));
            out.copy_from_slice(&(ints | (d >> (4 * k) & 15) << 12).to_le_bytes());
        }
    }
    fn read(bytes: &[u8]) -> Block {
        let mut block = Block::ZERO;
        for g in 0..GROUPS {
            let nibble = bytes[HIGH_AT + g / 2] >> (4 * (g % 2));
            block.points[g] = u16::from(bytes[g]) | u16::from(nibble & 7) << 8;
            block.marks[g] = DOWN * (nibble >> 3 & 1);
        }
        let mut d = 0;
        for (k, word) in bytes[SCALES_AT..].chunks_exact(2).enumerate() {
            let word = u16::from_le_bytes([word[0], word[1]]);
            d |= word >> 12 << (4 * k);
            for j in 0..4 {
                block.scales[4 * k + j] = (word >> (3 * j)) as u8 & 7;
            }
        }
        block.d = read_scale(&d.to_le_bytes());
        block
    }
}
