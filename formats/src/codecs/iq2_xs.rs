//! IQ2_XS: `d`, then for each eight weights two bytes (nine bits of the point, the signs of seven weights; the eighth makes the
//! number of negative ones even), then 16 4-bit scales.
//!
//! ggml demands importance for this format; without it, every weight counts as if its importance were 1.

use super::book8::{Block, GROUPS, LEN, Layout, Marks, Shape, read_nibbles, read_scale, with_eighth, write_nibbles};
use super::codebook8;
use super::float;
use super::iq2::{self, Rules};
use super::search::ALL_ZERO;
use crate::codec::{CodecId, Float};

pub(super) struct IQ2XS;

/// Where the scales start.
const SCALES_AT: usize = 2 + 2 * GROUPS;

const RULES: Rules = Rules { sigma: 1.0, plain: None, least: ALL_ZERO, reach: 9, thorough: false, shrink: 1.0, keep: false };

impl Layout for IQ2XS {
    const ID: CodecId = CodecId::IQ2XS;
    const BYTES: usize = SCALES_AT + LEN / 32;
    const SHAPE: Shape = Shape { book: &codebook8::IQ2_XS, marks: Marks::EvenSigns, sub: 16 };

    fn reference(x: &[f32], importance: Option<&[f32]>, blocks: &mut [Block]) {
        iq2::encode(Self::SHAPE, &RULES, x, importance, blocks);
    }
    fn write(block: &Block, out: &mut [u8]) {
        float::write(Float::F16, block.d, out);
        let groups = block.points.iter().zip(&block.marks);
        for ((point, marks), out) in groups.zip(out[2..SCALES_AT].chunks_exact_mut(2)) {
            out.copy_from_slice(&(point | u16::from(marks & 127) << 9).to_le_bytes());
        }
        write_nibbles(&block.scales, &mut out[SCALES_AT..]);
    }
    fn read(bytes: &[u8]) -> Block {
        let mut block = Block { d: read_scale(bytes), scales: read_nibbles(&bytes[SCALES_AT..]), ..Block::ZERO };
        for (g, bytes) in bytes[2..SCALES_AT].chunks_exact(2).enumerate() {
            let both = u16::from_le_bytes([bytes[0], bytes[1]]);
            block.points[g] = both & 511;
            block.marks[g] = with_eighth((both >> 9) as u8);
        }
        block
    }
}
