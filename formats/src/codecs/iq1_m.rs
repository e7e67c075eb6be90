//! IQ1_M: the low eight bits of 32 points; 32 times four bits (the high three bits of a point, and whether its levels are shifted
//! down), the first of two lower; then four times 16 bits: four 3-bit scales and four bits of `d`, lowest first.

use super::book8::{Block, DOWN, GROUPS, LEN, Layout, Marks, SCALES, read_scale};
use super::codebook8::{self, Codebook, WIDTH};
use super::float;
use super::iq1;
use crate::codec::{CodecId, Float};
use crate::simd::Lanes;

pub(super) struct IQ1M;

/// Weights and groups per sub-block.
const SUB: usize = 16;
const PARTS: usize = 2;
/// Where high bits and scales start.
const HIGH_AT: usize = GROUPS;
const SCALES_AT: usize = HIGH_AT + GROUPS / 2;
/// Sub-blocks without a magnitude as large as this count as zero.
const LEAST: f32 = 1e-7;
/// What ggml multiplies the block's scale by before it is stored.
const STRETCH: f32 = 1.1125;

impl Layout for IQ1M {
    const ID: CodecId = CodecId::IQ1M;
    const BYTES: usize = SCALES_AT + LEN / 32;
    const SUB: usize = SUB;
    const MARKS: Marks = Marks::Shift;

    fn book() -> &'static Codebook {
        &codebook8::IQ1
    }
    #[inline(always)]
    fn reference<F: Lanes>(x: &[f32], importance: Option<&[f32]>) -> Block {
        let mut weights = [0f32; LEN];
        iq1::weigh::<F>(x, importance, |_, x| x * x, &mut weights);
        let (mut block, mut scales) = (Block::ZERO, [0f32; SCALES]);
        let mut marks = block.marks;
        for (s, (x, weights)) in x.chunks_exact(SUB).zip(weights.chunks_exact(SUB)).enumerate() {
            if let Some(found) = iq1::two_shifts::<F>(Self::book(), x, weights, LEAST) {
                scales[s] = found.scale;
                for p in 0..PARTS {
                    block.points[PARTS * s + p] = found.points[p];
                    marks[PARTS * s + p] = DOWN * found.down[p] as u8;
                }
            }
        }
        if let Some(mut d) = iq1::store_scales(&scales, &mut block) {
            block.marks = marks;
            // With all integers fixed, the best scale.
            let (mut qx, mut q2) = (0f32, 0f32);
            for (i, (&x, &w)) in x.iter().zip(&weights).enumerate() {
                let g = i / WIDTH;
                let value = iq1::value(usize::from(marks[g] != 0), Self::book().levels(block.points[g]), i % WIDTH);
                let q = value * f32::from(2 * block.scales[i / SUB] + 1);
                qx += w * q * x;
                q2 += w * q * q;
            }
            if q2 > 0.0 {
                d = qx / q2;
            }
            block.d = d * STRETCH;
        }
        block
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
