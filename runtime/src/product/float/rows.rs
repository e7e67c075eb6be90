//! Dot products.

use crate::product::processor::Processor;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Lanes of a sum.
const LANES: usize = 32;

/// `Σ a b` of slices of equal length.
pub(super) fn dot(processor: Processor, a: &[f32], b: &[f32]) -> f32 {
    match processor {
        // SAFETY: the processor has these instructions wherever it is said to be `Processor::Avx2` or wider.
        #[cfg(target_arch = "x86_64")]
        Processor::Avx2 | Processor::Avx512 => unsafe { avx2(a, b) },
        _ => scalar(a, b),
    }
}

/// The twin of the other, which fuses multiplications and additions.
fn scalar(a: &[f32], b: &[f32]) -> f32 {
    let mut acc = [0f32; LANES];
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        for ((acc, a), b) in acc.iter_mut().zip(a).zip(b) {
            *acc += a * b;
        }
    }
    acc.iter().sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(a: &[f32], b: &[f32]) -> f32 {
    let mut acc = [_mm256_setzero_ps(); 4];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: a quarter of the arrays each.
            let (a, b) = unsafe { (_mm256_loadu_ps(a.as_ptr().add(8 * i)), _mm256_loadu_ps(b.as_ptr().add(8 * i))) };
            *acc = _mm256_fmadd_ps(a, b, *acc);
        }
    }
    let acc = _mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3]));
    let four = _mm_add_ps(_mm256_castps256_ps128(acc), _mm256_extractf128_ps::<1>(acc));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two))) + scalar(a_rest, b_rest)
}
