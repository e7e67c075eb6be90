//! What ggml's formats without super-blocks share: a block's extremes, the reciprocals of scales, f16 scales among the bytes.

use super::float;
use crate::codec::Float;
use crate::simd::{Lanes, MAX_LANES, Portable};

/// By lane the smallest and largest elements there, but at least `low` and at most `high`, as ggml starts its comparisons. NaN is
/// passed over. Lanes are weights, a multiple of them: extremes do not depend on the order.
#[inline(always)]
pub(super) fn range<F: Lanes>(x: &[f32], low: f32, high: f32) -> (F, F) {
    let (mut mins, mut maxs) = (F::splat(high), F::splat(low));
    for x in x.chunks_exact(F::N) {
        let x = F::load(x);
        mins = x.min(mins);
        maxs = x.max(maxs);
    }
    (mins, maxs)
}

/// By lane the largest magnitude there. NaN is passed over. Lanes are weights, a multiple of them.
#[inline(always)]
pub(super) fn magnitudes<F: Lanes>(x: &[f32]) -> F {
    let mut maxs = F::zero();
    for x in x.chunks_exact(F::N) {
        maxs = F::load(x).abs().max(maxs);
    }
    maxs
}

/// Largest magnitude of each block of `len` weights, at most [`MAX_LANES`] of them.
#[inline(always)]
pub(super) fn largest_of_each<F: Lanes>(x: &[f32], len: usize) -> [f32; MAX_LANES] {
    let mut most = [0f32; MAX_LANES];
    for (most, x) in most.chunks_mut(F::N).zip(x.chunks(F::N * len)) {
        let mut least = [F::zero(); MAX_LANES];
        for (least, x) in least.iter_mut().zip(x.chunks_exact(len)) {
            *least = F::zero() - magnitudes::<F>(x);
        }
        (F::zero() - F::least_of_each(&least)).store(most);
    }
    most
}

/// Largest magnitude.
#[inline(always)]
pub(super) fn largest(x: &[f32]) -> f32 {
    magnitudes::<Portable<8>>(x).greatest()
}

/// The element of largest magnitude, sign kept (the first of equals), or 0.
pub(super) fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(0f32, |most, &v| if v.abs() > most.abs() { v } else { most })
}

/// The first of the zeros, with its sign; +0 if there is none.
#[cold]
#[inline(never)]
pub(super) fn first_zero(x: &[f32]) -> f32 {
    x.iter().copied().find(|&v| v == 0.0).unwrap_or(0.0)
}

/// 1/d, or 0 for d = 0. It is infinite where d is too small to divide by.
#[inline(always)]
pub(super) fn inverses<F: Lanes>(d: F) -> F {
    F::select(d.eq(F::zero()), F::zero(), F::splat(1.0) / d)
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

/// [`write_half`] as the lanes' processor does it.
#[inline(always)]
pub(super) fn store_half<F: Lanes>(x: f32, i: usize, out: &mut [u8]) {
    out[2 * i..2 * i + 2].copy_from_slice(&F::half(x).to_le_bytes());
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
        let (mins, maxs) = range::<Portable<8>>(&x, -f32::MAX, f32::MAX);
        assert_eq!((mins.least(), maxs.greatest()), (-3.0, 2.0));
        x[0] = f32::NAN;
        assert_eq!((extreme(&x), largest(&x)), (-3.0, 3.0));
    }
}
