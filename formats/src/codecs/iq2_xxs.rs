//! IQ2_XXS: `d`, then for each 32 weights four bytes of points, and 32 bits: four times the signs of seven weights (the eighth makes
//! the number of negative ones even), then the 4-bit scale.
//!
//! ggml demands importance for this format; without it, every weight counts as if its importance were 1.

use super::book8::{Block, LEN, Layout, Marks, Shape, read_scale, with_eighth};
use super::codebook8;
use super::float;
use super::iq2::{self, Rules};
use super::search::ALL_ZERO;
use crate::codec::{CodecId, Float};

pub(super) struct IQ2XXS;

/// Weights per sub-block.
const SUB: usize = 32;
/// Groups per sub-block.
const PARTS: usize = 4;

const RULES: Rules = Rules { sigma: 1.0, plain: None, least: ALL_ZERO, reach: 6, thorough: true, shrink: 1.0, keep: false };

impl Layout for IQ2XXS {
    const ID: CodecId = CodecId::IQ2XXS;
    const BYTES: usize = 2 + LEN / 4;
    const SHAPE: Shape = Shape { book: &codebook8::IQ2_XXS, marks: Marks::EvenSigns, sub: SUB };

    fn reference(x: &[f32], importance: Option<&[f32]>, blocks: &mut [Block]) {
        iq2::encode(Self::SHAPE, &RULES, x, importance, blocks);
    }
    fn write(block: &Block, out: &mut [u8]) {
        float::write(Float::F16, block.d, out);
        for (s, out) in out[2..].chunks_exact_mut(8).enumerate() {
            let mut tail = u32::from(block.scales[s]) << 28;
            let parts = block.points[PARTS * s..].iter().zip(&block.marks[PARTS * s..]);
            for (p, (out, (point, marks))) in out[..PARTS].iter_mut().zip(parts).enumerate() {
                *out = *point as u8;
                tail |= u32::from(marks & 127) << (7 * p);
            }
            out[4..].copy_from_slice(&tail.to_le_bytes());
        }
    }
    fn read(bytes: &[u8]) -> Block {
        let mut block = Block { d: read_scale(bytes), ..Block::ZERO };
        for (s, bytes) in bytes[2..].chunks_exact(8).enumerate() {
            let tail = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
            block.scales[s] = (tail >> 28) as u8;
            for (p, &point) in bytes[..PARTS].iter().enumerate() {
                block.points[PARTS * s + p] = u16::from(point);
                block.marks[PARTS * s + p] = with_eighth((tail >> (7 * p)) as u8 & 127);
            }
        }
        block
    }
}
