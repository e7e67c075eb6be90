//! Q4_0: bytes 0–1 scale, 2–17 codes; byte 2 + j holds code j (low half) and code j + 16 (high half).

use super::flat::{Layout, Shape};
use super::legacy::{self, LEN};
use crate::codec::{CodecId, Float};

pub(super) struct Q4_0;

impl Layout for Q4_0 {
    fn id(&self) -> CodecId {
        CodecId::Q4_0
    }
    fn shape(&self) -> Shape {
        Shape { max: 15, zero: Some(8), float: Float::F16 }
    }
    fn len(&self) -> usize {
        LEN
    }
    fn bytes(&self) -> usize {
        18
    }
    fn write(&self, stored: [f32; 2], codes: &[u8], out: &mut [u8]) {
        legacy::write_half(stored[0], 0, out);
        legacy::write_nibbles(codes, &mut out[2..]);
    }
    fn read(&self, bytes: &[u8], codes: &mut [u8]) -> [f32; 2] {
        legacy::read_nibbles(&bytes[2..], codes);
        [legacy::read_half(bytes, 0), 0.0]
    }
    fn reference(&self, x: &[f32], weights: Option<&[f32]>, codes: &mut [u8]) -> [f32; 2] {
        legacy::symmetric(x, weights, 8, codes)
    }
}
