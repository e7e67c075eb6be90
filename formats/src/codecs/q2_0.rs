//! ggml's Q2_0: 64 weights of two bits. Bytes 0–1 scale, 2–17 codes, four to a byte, first weight in the lowest bits. Codes 0 … 3
//! are −1, 0, 1 and 2 times the scale; the reference encoder does not use the last, because its scale is the largest magnitude.

use super::bits;
use super::block::{inverses, magnitudes, read_half, store_half};
use super::flat::{Layout, Lines, Shape};
use super::tq1_0;
use crate::codec::{CodecId, Float};
use crate::simd::Lanes;

pub(super) struct Q2_0;

impl Layout for Q2_0 {
    fn id(&self) -> CodecId {
        CodecId::Q2_0
    }
    #[inline(always)]
    fn shape(&self) -> Shape {
        Shape { max: 3, zero: Some(1), float: Float::F16 }
    }
    #[inline(always)]
    fn len(&self) -> usize {
        64
    }
    #[inline(always)]
    fn bytes(&self) -> usize {
        18
    }
    #[inline(always)]
    fn write<F: Lanes>(&self, stored: [f32; 2], codes: &[u8], out: &mut [u8]) {
        store_half::<F>(stored[0], 0, out);
        bits::pack::<2>(codes, &mut out[2..]);
    }
    #[inline(always)]
    fn read(&self, bytes: &[u8], codes: &mut [u8]) -> [f32; 2] {
        bits::unpack::<2>(&bytes[2..], codes);
        [read_half(bytes, 0), 0.0]
    }
    #[inline(always)]
    fn extremes<F: Lanes>(&self, x: &[f32]) -> (F, F) {
        (F::zero(), magnitudes(x))
    }
    #[inline(always)]
    fn lines<F: Lanes>(&self, _blocks: &[f32], _low: F, high: F) -> Lines<F> {
        Lines { scale: high, bias: F::zero(), origin: F::zero(), factor: inverses(high) }
    }
    #[inline(always)]
    fn codes<F: Lanes>(&self, x: &[f32], line: [f32; 2], codes: &mut [u8]) {
        tq1_0::ternary::<F>(x, line[1], codes);
        // ggml's quotients by a scale too small to divide by give code 0.
        if !line[1].is_finite() {
            codes.fill(0);
        }
    }
}
