//! ggml's TQ1_0: 256 ternary weights, five to a byte. Bytes 0–47 and 48–51 codes, 52–53 scale.
//!
//! A byte's codes are the digits of a number in base 3, first weight first, stored as the fraction number / 243 of 256, rounded
//! up: multiplying by 3 pushes out digit after digit. Of 256 bytes 243 are used; the others decode as well.

use super::block::{inverses, magnitudes, read_half, store_half};
use super::flat::{Layout, Lines, Shape};
use crate::codec::{CodecId, Float};
use crate::simd::{IntLanes, Lanes, bytes_of};

pub(super) struct TQ1_0;

const LEN: usize = 256;
const SCALE: usize = 52;

/// Groups of bytes: how many, and how many weights each holds (of five; missing digits are 0). In a group of n bytes, byte m
/// holds weights m, m + n, m + 2n, … of the group.
const GROUPS: [(usize, usize); 3] = [(32, 5), (16, 5), (4, 4)];

impl Layout for TQ1_0 {
    fn id(&self) -> CodecId {
        CodecId::TQ1_0
    }
    #[inline(always)]
    fn shape(&self) -> Shape {
        SHAPE
    }
    #[inline(always)]
    fn len(&self) -> usize {
        LEN
    }
    #[inline(always)]
    fn bytes(&self) -> usize {
        54
    }
    #[inline(always)]
    fn write<F: Lanes>(&self, stored: [f32; 2], mut codes: &[u8], out: &mut [u8]) {
        store_half::<F>(stored[0], 0, &mut out[SCALE..]);
        let mut out = &mut out[..SCALE];
        for (n, weights) in GROUPS {
            let group;
            (group, out) = out.split_at_mut(n);
            for (m, byte) in group.iter_mut().enumerate() {
                let digit = |k: usize| if k < weights { codes[m + k * n] as u16 } else { 0 };
                let number = (0..5).fold(0, |number, k| 3 * number + digit(k));
                *byte = (number * 256).div_ceil(243) as u8;
            }
            codes = &codes[n * weights..];
        }
    }
    #[inline(always)]
    fn read(&self, mut bytes: &[u8], mut codes: &mut [u8]) -> [f32; 2] {
        let scale = read_half(&bytes[SCALE..], 0);
        for (n, weights) in GROUPS {
            let (group, digits);
            (group, bytes) = bytes.split_at(n);
            (digits, codes) = codes.split_at_mut(n * weights);
            let mut power = 1u8;
            for digits in digits.chunks_exact_mut(n) {
                for (digit, byte) in digits.iter_mut().zip(group) {
                    *digit = ((byte.wrapping_mul(power) as u16 * 3) >> 8) as u8;
                }
                power = power.wrapping_mul(3);
            }
        }
        [scale, 0.0]
    }
    #[inline(always)]
    fn extremes<F: Lanes>(&self, x: &[f32]) -> (F, F) {
        (F::zero(), magnitudes(x))
    }
    #[inline(always)]
    fn lines<F: Lanes>(&self, _blocks: &[f32], _low: F, high: F) -> Lines<F> {
        lines(high)
    }
    #[inline(always)]
    fn codes<F: Lanes>(&self, x: &[f32], line: [f32; 2], codes: &mut [u8]) {
        ternary::<F>(x, line[1], codes);
    }
}

/// Codes 0, 1 and 2 are −1, 0 and 1 times the scale.
pub(super) const SHAPE: Shape = Shape { max: 2, zero: Some(1), float: Float::F16 };

/// ggml's encoder of both ternary formats: the largest magnitude is the scale, and what reaches half of it is not zero.
#[inline(always)]
pub(super) fn lines<F: Lanes>(largest: F) -> Lines<F> {
    let factor = inverses(largest);
    // Quotients by a scale too small to divide by give zeros.
    let factor = F::select(factor.lt(F::splat(f32::INFINITY)), factor, F::zero());
    Lines { scale: largest, bias: F::zero(), origin: F::zero(), factor }
}

/// The codes of weights that `factor` takes to −1 … 1.
#[inline(always)]
pub(super) fn ternary<F: Lanes>(x: &[f32], factor: f32, codes: &mut [u8]) {
    let factor = F::splat(factor);
    for (codes, x) in codes.as_chunks_mut().0.iter_mut().zip(x.as_chunks().0) {
        bytes_of::<F>(x, codes, |_, x| {
            // Doubled quotients, rounded towards zero, are −2 … 2.
            let t = x * factor;
            (t + t).truncate() + F::Int::splat(2)
        });
        for code in codes {
            *code = (*code > 1) as u8 + (*code > 2) as u8;
        }
    }
}
