//! Products of rows of weights with few rows of activations, without panels.

use super::FEW;
use crate::product::processor::Processor;
use bitsmith_formats::CodecId;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Lanes of a sum.
const LANES: usize = 32;

/// Whether the format is one of plain floats, which [`dot_floats`] reads as they are.
pub(super) fn has(codec: CodecId) -> bool {
    matches!(codec, CodecId::F32 | CodecId::F16 | CodecId::BF16)
}

/// The products of a row of plain floats with at most [`FEW`] rows of activations, all of one length, which lie one after the other;
/// those beyond are 0.
pub(super) fn dot_floats(processor: Processor, codec: CodecId, weights: &[u8], x: &[f32]) -> [f32; FEW] {
    let columns = weights.len() / codec.codec().block_bytes();
    let mut sums = [0f32; FEW];
    match processor {
        #[cfg(target_arch = "x86_64")]
        Processor::Avx2 | Processor::Avx512 => {
            for (sum, x) in sums.iter_mut().zip(x.chunks_exact(columns)) {
                // SAFETY: the processor has these instructions wherever it is said to be `Processor::Avx2` or wider.
                *sum = unsafe {
                    match codec {
                        CodecId::BF16 => avx2_halves::<false>(weights, x),
                        CodecId::F16 => avx2_halves::<true>(weights, x),
                        _ => avx2_words(weights, x),
                    }
                };
            }
        }
        _ => {
            let mut values = vec![0f32; columns];
            codec.codec().decode(weights, &mut values);
            sums.iter_mut().zip(x.chunks_exact(columns)).for_each(|(sum, x)| *sum = scalar(&values, x));
        }
    }
    sums
}

/// `Σ a b` of slices of equal length.
pub(super) fn dot(processor: Processor, a: &[f32], b: &[f32]) -> f32 {
    match processor {
        // SAFETY: the processor has these instructions wherever it is said to be `Processor::Avx2` or wider.
        #[cfg(target_arch = "x86_64")]
        Processor::Avx2 | Processor::Avx512 => unsafe { avx2(a, b) },
        _ => scalar(a, b),
    }
}

/// The twin of the others, which fuse multiplications and additions.
fn scalar(a: &[f32], b: &[f32]) -> f32 {
    let mut acc = [0f32; LANES];
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        for ((acc, a), b) in acc.iter_mut().zip(a).zip(b) {
            *acc += a * b;
        }
    }
    acc.iter().sum()
}

/// The sum of all lanes.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn fold(acc: [__m256; 4]) -> f32 {
    let acc = _mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3]));
    let four = _mm_add_ps(_mm256_castps256_ps128(acc), _mm256_extractf128_ps::<1>(acc));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
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
    fold(acc) + scalar(a_rest, b_rest)
}

/// Weights of four bytes: f32.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2_words(weights: &[u8], x: &[f32]) -> f32 {
    let mut acc = [_mm256_setzero_ps(); 4];
    let ((w, w_rest), (x, x_rest)) = (weights.as_chunks::<{ 4 * LANES }>(), x.as_chunks::<LANES>());
    for (w, x) in w.iter().zip(x) {
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: a quarter of the arrays each.
            let (w, x) =
                unsafe { (_mm256_loadu_ps(w.as_ptr().cast::<f32>().add(8 * i)), _mm256_loadu_ps(x.as_ptr().add(8 * i))) };
            *acc = _mm256_fmadd_ps(w, x, *acc);
        }
    }
    let rest = w_rest.as_chunks().0.iter().zip(x_rest).map(|(w, x)| f32::from_le_bytes(*w) * x);
    fold(acc) + rest.sum::<f32>()
}

/// Weights of two bytes: f16 or bf16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2_halves<const F16: bool>(weights: &[u8], x: &[f32]) -> f32 {
    let mut acc = [_mm256_setzero_ps(); 4];
    let ((w, w_rest), (x, x_rest)) = (weights.as_chunks::<{ 2 * LANES }>(), x.as_chunks::<LANES>());
    for (w, x) in w.iter().zip(x) {
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: a quarter of the arrays each.
            let (w, x) =
                unsafe { (_mm_loadu_si128(w.as_ptr().cast::<__m128i>().add(i)), _mm256_loadu_ps(x.as_ptr().add(8 * i))) };
            let w = if F16 { _mm256_cvtph_ps(w) } else { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(w))) };
            *acc = _mm256_fmadd_ps(w, x, *acc);
        }
    }
    let rest = w_rest.as_chunks().0.iter().zip(x_rest).map(|(w, x)| {
        let w = if F16 { half::f16::from_le_bytes(*w).to_f32() } else { half::bf16::from_le_bytes(*w).to_f32() };
        w * x
    });
    fold(acc) + rest.sum::<f32>()
}
