//! ggml's TQ2_0: 256 ternary weights, four to a byte. Bytes 0–63 codes, 64–65 scale. Byte 32h + m has in its bits 2n and 2n + 1
//! the code of weight 128h + 32n + m. No encoder writes code 3; it decodes as twice the scale.

use super::block::{magnitudes, read_half, store_half};
use super::flat::{Layout, Lines, Shape};
use super::tq1_0;
use crate::codec::CodecId;
use crate::simd::Lanes;

pub(super) struct TQ2_0;

const LEN: usize = 256;
const SCALE: usize = LEN / 4;

impl Layout for TQ2_0 {
    fn id(&self) -> CodecId {
        CodecId::TQ2_0
    }
    #[inline(always)]
    fn shape(&self) -> Shape {
        tq1_0::SHAPE
    }
    #[inline(always)]
    fn len(&self) -> usize {
        LEN
    }
    #[inline(always)]
    fn bytes(&self) -> usize {
        SCALE + 2
    }
    #[inline(always)]
    fn write<F: Lanes>(&self, stored: [f32; 2], codes: &[u8], out: &mut [u8]) {
        for (codes, out) in codes.as_chunks::<128>().0.iter().zip(out.as_chunks_mut::<32>().0) {
            for (m, out) in out.iter_mut().enumerate() {
                *out = codes[m] | codes[m + 32] << 2 | codes[m + 64] << 4 | codes[m + 96] << 6;
            }
        }
        store_half::<F>(stored[0], 0, &mut out[SCALE..]);
    }
    #[inline(always)]
    fn read(&self, bytes: &[u8], codes: &mut [u8]) -> [f32; 2] {
        for (codes, bytes) in codes.as_chunks_mut::<128>().0.iter_mut().zip(bytes.as_chunks::<32>().0) {
            for (n, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                for (code, byte) in codes.iter_mut().zip(bytes) {
                    *code = byte >> (2 * n) & 3;
                }
            }
        }
        [read_half(&bytes[SCALE..], 0), 0.0]
    }
    #[inline(always)]
    fn extremes<F: Lanes>(&self, x: &[f32]) -> (F, F) {
        (F::zero(), magnitudes(x))
    }
    #[inline(always)]
    fn lines<F: Lanes>(&self, _blocks: &[f32], _low: F, high: F) -> Lines<F> {
        tq1_0::lines(high)
    }
    #[inline(always)]
    fn codes<F: Lanes>(&self, x: &[f32], line: [f32; 2], codes: &mut [u8]) {
        tq1_0::ternary::<F>(x, line[1], codes);
    }
}
