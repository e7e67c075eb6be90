//! Q5_1: bytes 0–1 scale, 2–3 minimum (the value of code 0), then codes as in Q5_0.

use super::flat::{Layout, Shape};
use super::legacy::{self, LEN};
use crate::codec::{CodecId, Float};

pub(super) struct Q5_1;

impl Layout for Q5_1 {
    fn id(&self) -> CodecId {
        CodecId::Q5_1
    }
    fn shape(&self) -> Shape {
        Shape { max: 31, zero: None, float: Float::F16 }
    }
    fn len(&self) -> usize {
        LEN
    }
    fn bytes(&self) -> usize {
        24
    }
    fn write(&self, stored: [f32; 2], codes: &[u8], out: &mut [u8]) {
        legacy::write_half(stored[0], 0, out);
        legacy::write_half(stored[1], 1, out);
        legacy::write_fives(codes, &mut out[4..]);
    }
    fn read(&self, bytes: &[u8], codes: &mut [u8]) -> [f32; 2] {
        legacy::read_fives(&bytes[4..], codes);
        [legacy::read_half(bytes, 0), legacy::read_half(bytes, 1)]
    }
    fn reference(&self, x: &[f32], weights: Option<&[f32]>, codes: &mut [u8]) -> [f32; 2] {
        legacy::affine(x, weights, 31, codes)
    }
}
