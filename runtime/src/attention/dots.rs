//! Products of a few queries with keys as they lie in the cache: not worth turning the keys around for.

use crate::product::Processor;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// `out[r][j] = q[r] · keys[j]` for up to [`super::TILE`] queries and any number of keys of `width` values; `out` has rows of
/// `stride` values.
pub(super) fn scores(processor: Processor, q: &[f32], keys: &[f32], width: usize, out: &mut [f32], stride: usize) {
    let (rows, n) = (q.len() / width, keys.len() / width);
    assert!(n <= stride && rows * stride <= out.len() + stride - n, "room for scores");
    match processor {
        #[cfg(target_arch = "x86_64")]
        Processor::Avx512 | Processor::Avx2 => {
            let mut row = 0;
            while row < rows {
                let (q, out) = (&q[row * width..], &mut out[row * stride..]);
                let wide = processor == Processor::Avx512;
                // SAFETY: the processor has these instructions wherever it is said to be so; as many rows as there are left.
                row += unsafe {
                    match (rows - row, wide) {
                        (4.., true) => avx512::<4>(q, keys, width, out, stride),
                        (2.., true) => avx512::<2>(q, keys, width, out, stride),
                        (_, true) => avx512::<1>(q, keys, width, out, stride),
                        (4.., false) => avx2::<4>(q, keys, width, out, stride),
                        (2.., false) => avx2::<2>(q, keys, width, out, stride),
                        (_, false) => avx2::<1>(q, keys, width, out, stride),
                    }
                };
            }
        }
        _ => {
            for (row, q) in q.chunks_exact(width).enumerate() {
                for (key, out) in keys.chunks_exact(width).zip(&mut out[row * stride..]) {
                    *out = scalar(q, key);
                }
            }
        }
    }
}

/// The twin of the others, which fuse multiplications and additions.
fn scalar(a: &[f32], b: &[f32]) -> f32 {
    let mut acc = [0f32; 16];
    for (a, b) in a.chunks(16).zip(b.chunks(16)) {
        for ((acc, a), b) in acc.iter_mut().zip(a).zip(b) {
            *acc += a * b;
        }
    }
    acc.iter().sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512<const ROWS: usize>(q: &[f32], keys: &[f32], width: usize, out: &mut [f32], stride: usize) -> usize {
    let q: [&[f32]; ROWS] = std::array::from_fn(|r| &q[r * width..][..width]);
    for (j, key) in keys.chunks_exact(width).enumerate() {
        let mut acc = [_mm512_setzero_ps(); ROWS];
        for (i, part) in key.chunks(16).enumerate() {
            let mask = u16::MAX >> (16 - part.len());
            // SAFETY: the mask keeps to the values that there are.
            let part = unsafe { _mm512_maskz_loadu_ps(mask, part.as_ptr()) };
            for (acc, q) in acc.iter_mut().zip(q) {
                // SAFETY: a query is as wide as a key.
                let q = unsafe { _mm512_maskz_loadu_ps(mask, q[16 * i..].as_ptr()) };
                *acc = _mm512_fmadd_ps(q, part, *acc);
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            out[r * stride + j] = _mm512_reduce_add_ps(acc);
        }
    }
    ROWS
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<const ROWS: usize>(q: &[f32], keys: &[f32], width: usize, out: &mut [f32], stride: usize) -> usize {
    let q: [&[f32]; ROWS] = std::array::from_fn(|r| &q[r * width..][..width]);
    for (j, key) in keys.chunks_exact(width).enumerate() {
        let mut acc = [_mm256_setzero_ps(); ROWS];
        let (parts, rest) = key.as_chunks::<8>();
        for (i, part) in parts.iter().enumerate() {
            // SAFETY: eight values.
            let part = unsafe { _mm256_loadu_ps(part.as_ptr()) };
            for (acc, q) in acc.iter_mut().zip(q) {
                // SAFETY: a query is as wide as a key.
                let q = unsafe { _mm256_loadu_ps(q[8 * i..].as_ptr()) };
                *acc = _mm256_fmadd_ps(q, part, *acc);
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            let four = _mm_add_ps(_mm256_castps256_ps128(acc), _mm256_extractf128_ps::<1>(acc));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            let sum = _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
            out[r * stride + j] = sum + scalar(&q[r][width - rest.len()..], rest);
        }
    }
    ROWS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::tests::{processors, ramp};

    #[test]
    fn scores_by_definition() {
        for (rows, n, width) in [(1, 64, 128), (2, 3, 7), (3, 10, 80), (6, 64, 64), (7, 1, 33)] {
            let (q, keys) = (ramp(rows * width, 1), ramp(n * width, 2));
            for processor in processors() {
                let mut got = vec![0f32; rows * 64];
                scores(processor, &q, &keys, width, &mut got, 64);
                for (row, q) in q.chunks(width).enumerate() {
                    for (j, key) in keys.chunks(width).enumerate() {
                        let want: f64 = q.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                        assert!((f64::from(got[row * 64 + j]) - want).abs() < 1e-4, "{processor:?} {row} {j}");
                    }
                }
            }
        }
    }
}
