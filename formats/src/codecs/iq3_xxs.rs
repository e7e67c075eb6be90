//! IQ3_XXS: `d`, 64 bytes of points, then a u32 per sub-block: for each eight weights seven sign bits (the eighth makes their
//! number even), from the low end, and the scale in the top four bits. Sub-block steps are d · (scale + ½) / 2.

use super::codebook::{self, Codebook};
use super::codebook_nearest::Nearest;
use super::float;
use super::iq3::{Block, LEN, Layout, SUBS};
use crate::codec::{CodecId, Float};
use std::sync::LazyLock;

pub(super) struct IQ3XXS;

/// Offsets of points and of the words of signs and scales.
const POINTS: usize = 2;
const WORDS: usize = POINTS + LEN / 4;

impl Layout for IQ3XXS {
    const ID: CodecId = CodecId::IQ3XXS;
    const BYTES: usize = WORDS + 4 * SUBS;
    const VALUES: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
    const EVEN: bool = true;
    const TRIES: i32 = 15;
    const ALL_ZERO: f32 = 1e-8;
    const KEEP: bool = true;
    const FUDGE: f32 = 1.0125;
    const SLIPS: bool = false;

    fn book() -> &'static Codebook {
        &codebook::IQ3_XXS
    }
    fn nearest() -> &'static Nearest {
        static NEAREST: LazyLock<Nearest> = LazyLock::new(|| Nearest::new(&codebook::IQ3_XXS, <IQ3XXS as Layout>::VALUES));
        &NEAREST
    }
    fn factor(int: u8) -> f32 {
        (0.5 + int as f32) * 0.5
    }
    fn write(block: &Block, out: &mut [u8]) {
        float::write(Float::F16, block.d, out);
        for (out, &point) in out[POINTS..WORDS].iter_mut().zip(&block.points) {
            *out = point as u8;
        }
        let words = out[WORDS..].chunks_exact_mut(4);
        for ((out, signs), &int) in words.zip(block.signs.chunks_exact(4)).zip(&block.ints) {
            let bits = signs.iter().rev().fold(0u32, |bits, &s| bits << 7 | (s & 127) as u32);
            out.copy_from_slice(&(bits | (int as u32) << 28).to_le_bytes());
        }
    }
    fn read(bytes: &[u8]) -> Block {
        let (mut signs, mut ints) = ([0u8; LEN / 8], [0u8; SUBS]);
        let words = bytes[WORDS..].chunks_exact(4);
        for ((word, signs), int) in words.zip(signs.chunks_exact_mut(4)).zip(&mut ints) {
            let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            *int = (word >> 28) as u8;
            for (k, signs) in signs.iter_mut().enumerate() {
                let seven = (word >> (7 * k)) as u8 & 127;
                *signs = seven | ((seven.count_ones() % 2) << 7) as u8;
            }
        }
        let points = std::array::from_fn(|i| bytes[POINTS + i] as u16);
        Block { d: float::read(Float::F16, bytes), ints, points, signs }
    }
}
