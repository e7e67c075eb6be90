//! What ggml's formats without super-blocks share: a block's extremes, the reciprocals of scales, f16 scales among the bytes.

use super::float;
use crate::codec::Float;
use crate::kernels::MAGIC;

/// Lanes of a comparison over a block. Extremes do not depend on the order.
const LANES: usize = 16;

/// Smallest and largest element, but at least `low` and at most `high`, as ggml starts its comparisons. NaN is passed over.
#[inline(always)]
pub(super) fn range(x: &[f32], low: f32, high: f32) -> (f32, f32) {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let (mut mins, mut maxs) = ([high; LANES], [low; LANES]);
    for x in chunks {
        for i in 0..LANES {
            mins[i] = min(x[i], mins[i]);
            maxs[i] = max(x[i], maxs[i]);
        }
    }
    (rest.iter().fold(fold(mins, min), |m, &x| min(x, m)), rest.iter().fold(fold(maxs, max), |m, &x| max(x, m)))
}

/// Largest magnitude.
#[inline(always)]
pub(super) fn largest(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut maxs = [0f32; LANES];
    for x in chunks {
        for i in 0..LANES {
            maxs[i] = max(x[i].abs(), maxs[i]);
        }
    }
    rest.iter().fold(fold(maxs, max), |m, x| max(x.abs(), m))
}

/// The smaller; the second if one is NaN. One instruction, unlike `f32::min`.
#[inline(always)]
fn min(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// The larger; the second if one is NaN.
#[inline(always)]
fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The element of largest magnitude, sign kept (the first of equals), or 0.
#[inline(always)]
pub(super) fn extreme(x: &[f32]) -> f32 {
    let (min, max) = range(x, 0.0, 0.0);
    if -min > max {
        min
    } else if max > -min || max == 0.0 {
        max
    } else {
        x.iter().copied().find(|v| v.abs() == max).unwrap_or(0.0)
    }
}

#[inline(always)]
fn fold(mut v: [f32; LANES], pick: impl Fn(f32, f32) -> f32) -> f32 {
    let mut n = LANES;
    while n > 1 {
        n /= 2;
        for i in 0..n {
            v[i] = pick(v[i], v[i + n]);
        }
    }
    v[0]
}

/// 1/d, or 0 for d = 0. It is infinite where d is too small to divide by.
#[inline(always)]
pub(super) fn inverse(d: f32) -> f32 {
    if d != 0.0 { 1.0 / d } else { 0.0 }
}

/// Adding 1.5 · 2²³ leaves a small whole number in the low bits, for vector registers cheaper than a conversion that saturates.
#[inline(always)]
pub(super) fn low_byte(whole: f32) -> u8 {
    (whole + MAGIC).to_bits() as u8
}

/// Number `i` of the f16 numbers that `bytes` starts with.
#[inline(always)]
pub(super) fn read_half(bytes: &[u8], i: usize) -> f32 {
    float::read(Float::F16, &bytes[2 * i..])
}

/// Writes number `i` of the f16 numbers that `out` starts with.
#[inline(always)]
pub(super) fn write_half(x: f32, i: usize, out: &mut [u8]) {
    float::write(Float::F16, x, &mut out[2 * i..]);
}

/// Writes codes of four bits: byte j holds code j (low half) and the code half a block later (high half).
#[inline(always)]
pub(super) fn write_nibbles(codes: &[u8], out: &mut [u8]) {
    let (low, high) = codes.split_at(codes.len() / 2);
    for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
        *out = (low & 15) | high << 4;
    }
}

/// The inverse of [`write_nibbles`].
#[inline(always)]
pub(super) fn read_nibbles(bytes: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(codes.len() / 2);
    for ((low, high), b) in low.iter_mut().zip(high).zip(bytes) {
        *low = b & 15;
        *high = b >> 4;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Weights of all magnitudes, some zero, some equal, some in blocks of one value; for tests of encoders.
    pub(in crate::codecs) fn weights(n: usize) -> Vec<f32> {
        let mut state = 88_172_645_463_325_252u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / 8_388_608.0 - 1.0
        };
        let mut magnitude = 1.0;
        let mut weight = |i: usize| {
            if i.is_multiple_of(64) {
                magnitude = 10f32.powf(25.0 * next());
            }
            match i / 256 % 5 {
                0 => 0.02 * next(),
                1 => magnitude * next(),
                2 => (next() * 3.0).round() * 0.25,
                3 => {
                    if next() < 0.8 {
                        0.0
                    } else {
                        next()
                    }
                }
                _ => magnitude,
            }
        };
        (0..n).map(&mut weight).collect()
    }

    #[test]
    fn extremes_keep_the_first_sign() {
        let mut x = [0.5f32; 32];
        x[7] = -2.0;
        x[9] = 2.0;
        assert_eq!((extreme(&x), largest(&x)), (-2.0, 2.0));
        x[3] = 2.0;
        assert_eq!(extreme(&x), 2.0);
        x[20] = -3.0;
        assert_eq!(extreme(&x), -3.0);
        assert_eq!(extreme(&[-0.0; 32]).to_bits(), 0);
        assert_eq!(range(&x, -f32::MAX, f32::MAX), (-3.0, 2.0));
        x[0] = f32::NAN;
        assert_eq!((extreme(&x), largest(&x)), (-3.0, 3.0));
    }
}
