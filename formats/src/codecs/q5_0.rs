//! Q5_0: bytes 0–1 scale, 2–5 the codes' fifth bits (bit i for code i), 6–21 the low four bits as in Q4_0.

use super::flat::{Layout, Shape};
use super::legacy::{self, LEN};
use crate::codec::{CodecId, Float};

pub(super) struct Q5_0;

impl Layout for Q5_0 {
    fn id(&self) -> CodecId {
        CodecId::Q5_0
    }
    fn shape(&self) -> Shape {
        Shape { max: 31, zero: Some(16), float: Float::F16 }
    }
    fn len(&self) -> usize {
        LEN
    }
    fn bytes(&self) -> usize {
        22
    }
    fn write(&self, stored: [f32; 2], codes: &[u8], out: &mut [u8]) {
        legacy::write_half(stored[0], 0, out);
        legacy::write_fives(codes, &mut out[2..]);
    }
    fn read(&self, bytes: &[u8], codes: &mut [u8]) -> [f32; 2] {
        legacy::read_fives(&bytes[2..], codes);
        [legacy::read_half(bytes, 0), 0.0]
    }
    fn reference(&self, x: &[f32], weights: Option<&[f32]>, codes: &mut [u8]) -> [f32; 2] {
        legacy::symmetric(x, weights, 16, codes)
    }
}
