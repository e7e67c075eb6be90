//! ggml's Q8_0: bytes 0–1 scale, 2–33 signed codes, here shifted by 128. The reference encoder uses −127 … 127 and ignores
//! importance; −128 is a valid code all the same.

use super::block::{inverses, magnitudes, read_half, store_half};
use super::flat::{Layout, Lines, Shape};
use crate::codec::{CodecId, Float};
use crate::simd::{IntLanes, Lanes, bytes_of};

pub(super) struct Q8_0;

const LEN: usize = 32;

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
        LEN
    }
    #[inline(always)]
    fn bytes(&self) -> usize {
        34
    }
    #[inline(always)]
    fn write<F: Lanes>(&self, stored: [f32; 2], codes: &[u8], out: &mut [u8]) {
        store_half::<F>(stored[0], 0, out);
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
    fn extremes<F: Lanes>(&self, x: &[f32]) -> (F, F) {
        (F::zero(), magnitudes(x))
    }
    #[inline(always)]
    fn lines<F: Lanes>(&self, _blocks: &[f32], _low: F, high: F) -> Lines<F> {
        let scale = high / F::splat(127.0);
        Lines { scale, bias: F::zero(), origin: F::zero(), factor: inverses(scale) }
    }
    #[inline(always)]
    fn codes<F: Lanes>(&self, x: &[f32], line: [f32; 2], codes: &mut [u8]) {
        for (x, codes) in x.as_chunks().0.iter().zip(codes.as_chunks_mut().0) {
            bytes_of::<F>(x, codes, |_, x| {
                // Ties away from zero, as C's roundf: the number below one half keeps what is below a tie below it.
                let t = x * F::splat(line[1]);
                (t + F::splat(0.499_999_97).with_sign(t)).truncate() + F::Int::splat(128)
            });
        }
        if !line[1].is_finite() {
            codes.fill(128);
        }
    }
}
