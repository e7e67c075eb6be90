//! IQ1_S: `d`, the low eight bits of 32 points, then for each 32 weights 16 bits: four times the high three bits of a point, the
//! 3-bit scale, and whether the levels are shifted down.
//!
//! ggml demands importance for this format; without it, every weight counts as if its importance were 1.

use super::book8::{Block, DOWN, GROUPS, LEN, Layout, Marks, SCALES, read_scale};
use super::codebook8::{self, Codebook};
use super::float;
use super::iq1;
use crate::codec::{CodecId, Float};
use crate::simd::Lanes;

pub(super) struct IQ1S;

/// Weights and groups per sub-block.
const SUB: usize = 32;
const PARTS: usize = 4;
/// Where the 16-bit parts start.
const HIGH_AT: usize = 2 + GROUPS;
/// Sub-blocks without a magnitude as large as this count as zero.
const LEAST: f32 = 1e-12;
/// What ggml multiplies the block's scale by before it is stored.
const STRETCH: f32 = 1.125;

impl Layout for IQ1S {
    const ID: CodecId = CodecId::IQ1S;
    const BYTES: usize = HIGH_AT + LEN / 16;
    const SUB: usize = SUB;
    const MARKS: Marks = Marks::SharedShift;

    fn book() -> &'static Codebook {
        &codebook8::IQ1
    }
    #[inline(always)]
    fn reference<F: Lanes>(x: &[f32], importance: Option<&[f32]>) -> Block {
        let mut weights = [0f32; LEN];
        iq1::weigh::<F>(x, importance, |sigma2, x| (sigma2 + x * x).sqrt(), &mut weights);
        let (mut block, mut scales) = (Block::ZERO, [0f32; SCALES]);
        let mut marks = block.marks;
        for (s, (x, weights)) in x.chunks_exact(SUB).zip(weights.chunks_exact(SUB)).enumerate() {
            if let Some(found) = iq1::one_shift::<F>(Self::book(), x, weights, LEAST) {
                scales[s] = found.scale;
                for p in 0..PARTS {
                    block.points[PARTS * s + p] = found.points[p];
                    marks[PARTS * s + p] = DOWN * found.down[p] as u8;
                }
            }
        }
        if let Some(d) = iq1::store_scales(&scales, &mut block) {
            block.marks = marks;
            block.d = d * STRETCH;
        }
        block
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
