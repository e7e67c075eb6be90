//! IQ2_S: `d`, the low eight bits of 32 points, the signs of 32 times eight weights, the high two bits of the points (four to a byte,
//! the first lowest), then 16 4-bit scales.

use super::book8::{Block, GROUPS, LEN, Layout, Marks, Shape, read_nibbles, read_scale, write_nibbles};
use super::codebook8;
use super::float;
use super::iq2::{self, Rules};
use crate::codec::{CodecId, Float};

pub(super) struct IQ2S;

/// Where signs, high bits and scales start.
const SIGNS_AT: usize = 2 + GROUPS;
const HIGH_AT: usize = SIGNS_AT + GROUPS;
const SCALES_AT: usize = HIGH_AT + GROUPS / 4;

const RULES: Rules = Rules { sigma: 2.0, plain: Some(0.25), least: 1e-8, reach: 9, thorough: false, shrink: 0.9875, keep: true };

impl Layout for IQ2S {
    const ID: CodecId = CodecId::IQ2S;
    const BYTES: usize = SCALES_AT + LEN / 32;
    const SHAPE: Shape = Shape { book: &codebook8::IQ2_S, marks: Marks::Signs, sub: 16 };

    fn reference(x: &[f32], importance: Option<&[f32]>, blocks: &mut [Block]) {
        iq2::encode(Self::SHAPE, &RULES, x, importance, blocks);
    }
    fn write(block: &Block, out: &mut [u8]) {
        float::write(Float::F16, block.d, out);
        out[HIGH_AT..SCALES_AT].fill(0);
        for (g, (point, marks)) in block.points.iter().zip(&block.marks).enumerate() {
            out[2 + g] = *point as u8;
            out[SIGNS_AT + g] = *marks;
            out[HIGH_AT + g / 4] |= ((point >> 8) << (2 * (g % 4))) as u8;
        }
        write_nibbles(&block.scales, &mut out[SCALES_AT..]);
    }
    fn read(bytes: &[u8]) -> Block {
        let mut block = Block { d: read_scale(bytes), scales: read_nibbles(&bytes[SCALES_AT..]), ..Block::ZERO };
        for g in 0..GROUPS {
            let high = bytes[HIGH_AT + g / 4] >> (2 * (g % 4)) & 3;
            block.points[g] = u16::from(bytes[2 + g]) | u16::from(high) << 8;
            block.marks[g] = bytes[SIGNS_AT + g];
        }
        block
    }
}
