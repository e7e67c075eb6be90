//! ggml's Q2_0: 64 weights of two bits. Bytes 0–1 scale, 2–17 codes, four to a byte, first weight in the lowest bits. Codes 0 … 3
//! are −1, 0, 1 and 2 times the scale; the reference encoder does not use the last, because its scale is the largest magnitude.

use super::block::{inverse, largest, read_half, write_half};
use super::flat::{Layout, Shape};
use crate::codec::{CodecId, Float};

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
    fn write(&self, stored: [f32; 2], codes: &[u8], out: &mut [u8]) {
        write_half(stored[0], 0, out);
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
    fn reference(&self, x: &[f32], codes: &mut [u8]) -> [f32; 2] {
        let d = largest(x);
        let inverse = inverse(d);
        for (code, &v) in codes.iter_mut().zip(x) {
            let t = v * inverse;
            *code = 1 + (t >= 0.5) as u8 - (t <= -0.5) as u8;
        }
        // ggml's quotients by a scale too small to divide by give code 0.
        if !inverse.is_finite() {
            codes.fill(0);
        }
        [d, 0.0]
    }
}
