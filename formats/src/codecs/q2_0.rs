//! ggml's Q2_0: 64 weights of two bits. Bytes 0–1 scale, 2–17 codes, four to a byte, first weight in the lowest bits. Codes 0 … 3
//! are −1, 0, 1 and 2 times the scale; the reference encoder does not use the last, because its scale is the largest magnitude.

use super::block::{inverse, read_half, store_half};
use super::flat::{Layout, Shape};
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
        for (out, c) in out[2..].iter_mut().zip(codes.as_chunks::<4>().0) {
            *out = c[0] | c[1] << 2 | c[2] << 4 | c[3] << 6;
        }
    }
    #[inline(always)]
    fn read(&self, bytes: &[u8], codes: &mut [u8]) -> [f32; 2] {
        for (codes, b) in codes.as_chunks_mut::<4>().0.iter_mut().zip(&bytes[2..]) {
            *codes = [b & 3, b >> 2 & 3, b >> 4 & 3, b >> 6];
        }
        [read_half(bytes, 0), 0.0]
    }
    #[inline(always)]
    fn reference<F: Lanes>(&self, x: &[f32], codes: &mut [u8]) -> [f32; 2] {
        let d = tq1_0::ternary::<F>(x, codes);
        // ggml's quotients by a scale too small to divide by give code 0.
        if !inverse(d).is_finite() {
            codes.fill(0);
        }
        [d, 0.0]
    }
}
