//! IQ3_S: `d`, 64 bytes of points, 8 bytes with their ninth bits, 32 bytes of signs, 4 bytes of scales, two each, low half
//! first. Sub-block steps are d · (2 · scale + 1).

use super::codebook::{self, Codebook};
use super::codebook_nearest::Nearest;
use super::float;
use super::iq3::{Block, LEN, Layout, SUBS};
use crate::codec::{CodecId, Float};
use std::sync::LazyLock;

pub(super) struct IQ3S;

/// Offsets of points, their ninth bits, signs and scales.
const POINTS: usize = 2;
const NINTHS: usize = POINTS + LEN / 4;
const SIGNS: usize = NINTHS + LEN / 32;
const SCALES: usize = SIGNS + LEN / 8;

impl Layout for IQ3S {
    const ID: CodecId = CodecId::IQ3S;
    const BYTES: usize = SCALES + SUBS / 2;
    const VALUES: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];
    const EVEN: bool = false;
    const TRIES: i32 = 9;
    const ALL_ZERO: f32 = 0.0;
    const KEEP: bool = false;
    const FUDGE: f32 = 1.033;
    const SLIPS: bool = true;

    fn book() -> &'static Codebook {
        &codebook::IQ3_S
    }
    fn nearest() -> &'static Nearest {
        static NEAREST: LazyLock<Nearest> = LazyLock::new(|| Nearest::new(&codebook::IQ3_S, <IQ3S as Layout>::VALUES));
        &NEAREST
    }
    fn factor(int: u8) -> f32 {
        (1 + 2 * int) as f32
    }
    fn write(block: &Block, out: &mut [u8]) {
        float::write(Float::F16, block.d, out);
        for (out, &point) in out[POINTS..NINTHS].iter_mut().zip(&block.points) {
            *out = point as u8;
        }
        for (out, points) in out[NINTHS..SIGNS].iter_mut().zip(block.points.chunks_exact(8)) {
            *out = points.iter().rev().fold(0, |bits, point| bits << 1 | (point >> 8) as u8);
        }
        out[SIGNS..SCALES].copy_from_slice(&block.signs);
        for (out, ints) in out[SCALES..].iter_mut().zip(block.ints.chunks_exact(2)) {
            *out = ints[0] | ints[1] << 4;
        }
    }
    fn read(bytes: &[u8]) -> Block {
        let ninth = |i: usize| (bytes[NINTHS + i / 8] as u16 >> (i % 8) & 1) << 8;
        let mut signs = [0; LEN / 8];
        signs.copy_from_slice(&bytes[SIGNS..SCALES]);
        Block {
            d: float::read(Float::F16, bytes),
            ints: std::array::from_fn(|s| bytes[SCALES + s / 2] >> (4 * (s % 2)) & 15),
            points: std::array::from_fn(|i| bytes[POINTS + i] as u16 | ninth(i)),
            signs,
        }
    }
}
