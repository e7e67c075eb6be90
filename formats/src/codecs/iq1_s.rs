//! IQ1_S: `d`, the low eight bits of 32 points, then for each 32 weights 16 bits: four times the high three bits of a point, the
//! 3-bit scale, and whether the levels are shifted down.
//!
//! ggml demands importance for this format; without it, every weight counts as if its importance were 1.

use super::book8::{Block, DOWN, GROUPS, LEN, Layout, Marks, Shape, read_scale};
use super::codebook8;
use super::float;
use super::iq1::{self, Rules};
use crate::codec::{CodecId, Float};

pub(super) struct IQ1S;

/// Weights and groups per sub-block.
const SUB: usize = 32;
const PARTS: usize = 4;
/// Where the 16-bit parts start.
const HIGH_AT: usize = 2 + GROUPS;
const RULES: Rules = Rules { plain: None, least: 1e-12, stretch: 1.125, refit: false };

impl Layout for IQ1S {
    const ID: CodecId = CodecId::IQ1S;
    const BYTES: usize = HIGH_AT + LEN / 16;
    const SHAPE: Shape = Shape { book: &codebook8::IQ1, marks: Marks::SharedShift, sub: SUB };

    fn reference(x: &[f32], importance: Option<&[f32]>, blocks: &mut [Block]) {
        iq1::encode(Self::SHAPE, &RULES, x, importance, blocks);
    }
    fn write(block: &Block, out: &mut [u8]) {
        float::write(Float::F16, block.d, out);
        for (s, out) in out[HIGH_AT..].chunks_exact_mut(2).enumerate() {
            let mut high = u16::from(block.scales[s]) << 12 | u16::from(block.marks[PARTS * s] != 0) << 15;
            for p in 0..PARTS {
                high |= (block.points[PARTS * s + p] >> 8) << (3 * p);
            }
            out.copy_from_slice(&high.to_le_bytes());
        }
        for (out, point) in out[2..HIGH_AT].iter_mut().zip(block.points) {
            *out = point as u8;
        }
    }
    fn read(bytes: &[u8]) -> Block {
        let mut block = Block { d: read_scale(bytes), ..Block::ZERO };
        for (s, high) in bytes[HIGH_AT..].chunks_exact(2).enumerate() {
            let high = u16::from_le_bytes([high[0], high[1]]);
            block.scales[s] = (high >> 12) as u8 & 7;
            for p in 0..PARTS {
                let g = PARTS * s + p;
                block.points[g] = u16::from(bytes[2 + g]) | (high >> (3 * p) & 7) << 8;
                block.marks[g] = DOWN * (high >> 15) as u8;
            }
        }
        block
    }
}
