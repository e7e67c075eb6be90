//! ggml's Q8_0: bytes 0–1 scale, 2–33 signed codes, here shifted by 128. The reference encoder uses −127 … 127 and ignores
//! importance; −128 is a valid code all the same.

use super::block::{inverse, largest, low_byte, read_half, write_half};
use super::flat::{Layout, Shape};
use crate::codec::{CodecId, Float};

pub(super) struct Q8_0;

impl Layout for Q8_0 {
    fn id(&self) -> CodecId {
        CodecId::Q8_0
    }
    #[inline(always)]
    fn shape(&self) -> Shape {
        Shape { max: 255, zero: Some(128), float: Float::F16 }
    }
    #[inline(always)]
    fn len(&self) -> usize {
        32
    }
    #[inline(always)]
    fn bytes(&self) -> usize {
        34
    }
    #[inline(always)]
    fn write(&self, stored: [f32; 2], codes: &[u8], out: &mut [u8]) {
        write_half(stored[0], 0, out);
        for (out, code) in out[2..].iter_mut().zip(codes) {
            *out = code ^ 128;
        }
    }
    #[inline(always)]
    fn read(&self, bytes: &[u8], codes: &mut [u8]) -> [f32; 2] {
        for (code, b) in codes.iter_mut().zip(&bytes[2..]) {
            *code = b ^ 128;
        }
        [read_half(bytes, 0), 0.0]
    }
    #[inline(always)]
    fn reference(&self, x: &[f32], codes: &mut [u8]) -> [f32; 2] {
        let d = largest(x) / 127.0;
        let inverse = inverse(d);
        for (code, &v) in codes.iter_mut().zip(x) {
            // Ties away from zero, as C's roundf: the number below one half keeps what is below a tie below it.
            let t = v * inverse;
            *code = low_byte((t + 0.499_999_97f32.copysign(t)).trunc()) ^ 128;
        }
        if !inverse.is_finite() {
            codes.fill(128);
        }
        [d, 0.0]
    }
}
