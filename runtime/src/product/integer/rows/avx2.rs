//! Loops over blocks in AVX2: products of bytes in pairs, widened with the integer scales, and one multiplication in f32 per block.

use super::Row;
use crate::product::integer::unpack::six_bits;
use bitsmith_formats::CodecId;
use std::arch::x86_64::*;

/// The product of a row of blocks and a row of activations.
pub(super) fn dot(codec: CodecId, blocks: &[u8], x: Row<'_>) -> f32 {
    // SAFETY: the processor has these instructions wherever it is said to be `Processor::Avx2` or wider.
    unsafe {
        match codec {
            CodecId::Q4_0 => q4_0(blocks, x),
            CodecId::Q8_0 => q8_0(blocks, x),
            CodecId::Q6K => q6_k(blocks, x),
            CodecId::Q5K => k_affine::<true>(blocks, x),
            _ => k_affine::<false>(blocks, x),
        }
    }
}

/// 32 bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the array is as long as the register.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}
#[inline]
#[target_feature(enable = "avx2")]
fn load_codes(codes: &[i8; 32]) -> __m256i {
    // SAFETY: the array is as long as the register.
    unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) }
}
/// Sixteen sums.
#[inline]
#[target_feature(enable = "avx2")]
fn load_sums(sums: &[i16; 16]) -> __m256i {
    // SAFETY: the array is as long as the register.
    unsafe { _mm256_loadu_si256(sums.as_ptr().cast()) }
}
/// The f16 in two bytes.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn half(bytes: [u8; 2]) -> f32 {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(u16::from_le_bytes(bytes)))))
}
/// The sum of the lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn fold(x: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q4_0(blocks: &[u8], x: Row<'_>) -> f32 {
    let low = _mm256_set1_epi8(15);
    let ones = _mm256_set1_epi16(1);
    let eight = _mm256_set1_epi8(8);
    let shifts = _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4);
    let mut sums = [_mm256_setzero_ps(); 2];
    let blocks = blocks.as_chunks::<18>().0.iter().zip(x.codes.as_chunks::<32>().0).zip(x.scales);
    for (i, ((b, x), scale)) in blocks.enumerate() {
        // SAFETY: sixteen bytes of the block, from the third.
        let codes = unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(b[2..].as_ptr().cast())) };
        let codes = _mm256_and_si256(_mm256_srlv_epi32(codes, shifts), low);
        let x = load_codes(x);
        // Sums of 16 bits hold both products of four bits and 8 times the activations.
        let pairs = _mm256_sub_epi16(_mm256_maddubs_epi16(codes, x), _mm256_maddubs_epi16(eight, x));
        let product = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, ones));
        sums[i % 2] = _mm256_fmadd_ps(product, _mm256_set1_ps(half([b[0], b[1]]) * scale), sums[i % 2]);
    }
    fold(_mm256_add_ps(sums[0], sums[1]))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q8_0(blocks: &[u8], x: Row<'_>) -> f32 {
    let mut sums = [_mm256_setzero_ps(); 2];
    let blocks = blocks.as_chunks::<34>().0.iter().zip(x.codes.as_chunks::<32>().0).zip(x.scales);
    for (i, ((b, x), scale)) in blocks.enumerate() {
        // SAFETY: sixteen bytes of the block, from the third, and then sixteen more.
        let (w0, w1) = unsafe { (_mm_loadu_si128(b[2..].as_ptr().cast()), _mm_loadu_si128(b[18..].as_ptr().cast())) };
        let x = load_codes(x);
        // In 16 bits each: −128 has no magnitude in 8.
        let p0 = _mm256_madd_epi16(_mm256_cvtepi8_epi16(w0), _mm256_cvtepi8_epi16(_mm256_castsi256_si128(x)));
        let p1 = _mm256_madd_epi16(_mm256_cvtepi8_epi16(w1), _mm256_cvtepi8_epi16(_mm256_extracti128_si256::<1>(x)));
        let product = _mm256_cvtepi32_ps(_mm256_add_epi32(p0, p1));
        sums[i % 2] = _mm256_fmadd_ps(product, _mm256_set1_ps(half([b[0], b[1]]) * scale), sums[i % 2]);
    }
    fold(_mm256_add_ps(sums[0], sums[1]))
}

/// A byte pattern that takes the 16-bit number `low` to the lower half of a register and `high` to the upper.
const fn pick(low: u8, high: u8) -> [u8; 32] {
    let mut pattern = [0; 32];
    let mut i = 0;
    while i < 32 {
        pattern[i] = 2 * (if i < 16 { low } else { high }) + (i % 2) as u8;
        i += 1;
    }
    pattern
}
/// Number g everywhere.
const EACH: [[u8; 32]; 8] = [pick(0, 0), pick(1, 1), pick(2, 2), pick(3, 3), pick(4, 4), pick(5, 5), pick(6, 6), pick(7, 7)];
/// Numbers 2 g and 2 g + 1.
const TWO: [[u8; 32]; 4] = [pick(0, 1), pick(2, 3), pick(4, 5), pick(6, 7)];

/// Q4_K, or with fifth bits Q5_K.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn k_affine<const FIVE: bool>(blocks: &[u8], x: Row<'_>) -> f32 {
    let low = _mm256_set1_epi8(15);
    let bit = _mm256_set1_epi8(16);
    let mut sum = _mm256_setzero_ps();
    let mut offset = _mm_setzero_ps();
    let bytes = if FIVE { 176 } else { 144 };
    for (((b, x), scale), sums) in
        blocks.chunks_exact(bytes).zip(x.codes.as_chunks::<256>().0).zip(x.scales).zip(x.sums.as_chunks::<16>().0)
    {
        let (head, codes) = b.split_at(if FIVE { 48 } else { 16 });
        let (scales, mins) = six_bits(&head[4..16]);
        let scales = _mm_cvtepu8_epi16(_mm_cvtsi64_si128(i64::from_le_bytes(scales)));
        let scales = _mm256_broadcastsi128_si256(scales);
        let mins = _mm_cvtepu8_epi16(_mm_cvtsi64_si128(i64::from_le_bytes(mins)));
        let sums = load_sums(sums);
        let sums = _mm_hadd_epi16(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
        let least = _mm_cvtepi32_ps(_mm_madd_epi16(mins, sums));
        offset = _mm_fmadd_ps(least, _mm_set1_ps(half([head[2], head[3]]) * scale), offset);

        let fifths = match head.get(16..).and_then(|h| h.first_chunk()) {
            Some(fifths) if FIVE => load(fifths),
            _ => _mm256_setzero_si256(),
        };
        let mut whole = _mm256_setzero_si256();
        let pairs = codes.as_chunks::<32>().0.iter().zip(x.as_chunks::<64>().0);
        for (g, (codes, x)) in pairs.enumerate() {
            let codes = load(codes);
            let (mut c0, mut c1) = (_mm256_and_si256(codes, low), _mm256_and_si256(_mm256_srli_epi16::<4>(codes), low));
            if FIVE {
                let shift = |n: usize| _mm_cvtsi32_si128(n as i32);
                // Bit 2 g to bit 4, whatever the direction.
                let (f0, f1) = match g {
                    0 => (_mm256_slli_epi16::<4>(fifths), _mm256_slli_epi16::<3>(fifths)),
                    1 => (_mm256_slli_epi16::<2>(fifths), _mm256_slli_epi16::<1>(fifths)),
                    _ => (_mm256_srl_epi16(fifths, shift(2 * g - 4)), _mm256_srl_epi16(fifths, shift(2 * g - 3))),
                };
                c0 = _mm256_or_si256(c0, _mm256_and_si256(f0, bit));
                c1 = _mm256_or_si256(c1, _mm256_and_si256(f1, bit));
            }
            let (x0, x1) = x.split_at(32);
            let (Some(x0), Some(x1)) = (x0.first_chunk(), x1.first_chunk()) else { unreachable!() };
            let p0 = _mm256_maddubs_epi16(c0, load_codes(x0));
            let p1 = _mm256_maddubs_epi16(c1, load_codes(x1));
            let s0 = _mm256_shuffle_epi8(scales, load(&EACH[2 * g]));
            let s1 = _mm256_shuffle_epi8(scales, load(&EACH[2 * g + 1]));
            whole = _mm256_add_epi32(whole, _mm256_add_epi32(_mm256_madd_epi16(p0, s0), _mm256_madd_epi16(p1, s1)));
        }
        sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), _mm256_set1_ps(half([head[0], head[1]]) * scale), sum);
    }
    fold(sum) - fold(_mm256_set_m128(_mm_setzero_ps(), offset))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q6_k(blocks: &[u8], x: Row<'_>) -> f32 {
    let low = _mm256_set1_epi8(15);
    let two = _mm256_set1_epi8(0x30);
    let mut sum = _mm256_setzero_ps();
    for (((b, x), scale), sums) in
        blocks.as_chunks::<210>().0.iter().zip(x.codes.as_chunks::<256>().0).zip(x.scales).zip(x.sums.as_chunks::<16>().0)
    {
        // SAFETY: sixteen bytes of the block, from byte 192.
        let scales = _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(b[192..].as_ptr().cast()) });
        let offset = _mm256_slli_epi32::<5>(_mm256_madd_epi16(scales, load_sums(sums)));
        let mut whole = _mm256_sub_epi32(_mm256_setzero_si256(), offset);
        let halves = [_mm256_permute2x128_si256::<0x00>(scales, scales), _mm256_permute2x128_si256::<0x11>(scales, scales)];
        for (half, scales) in halves.into_iter().enumerate() {
            // SAFETY: 32 bytes of the block each: from 64 · half, 32 after that, and from 128 + 32 · half.
            let (l0, l1, high) = unsafe {
                let at = |i: usize| _mm256_loadu_si256(b[i..i + 32].as_ptr().cast());
                (at(64 * half), at(64 * half + 32), at(128 + 32 * half))
            };
            let codes = [
                (l0, _mm256_slli_epi16::<4>(high)),
                (l1, _mm256_slli_epi16::<2>(high)),
                (_mm256_srli_epi16::<4>(l0), high),
                (_mm256_srli_epi16::<4>(l1), _mm256_srli_epi16::<2>(high)),
            ];
            let x = x[128 * half..][..128].as_chunks::<32>().0;
            for (g, ((lower, upper), x)) in codes.into_iter().zip(x).enumerate() {
                let codes = _mm256_or_si256(_mm256_and_si256(lower, low), _mm256_and_si256(upper, two));
                let scale = _mm256_shuffle_epi8(scales, load(&TWO[g]));
                whole = _mm256_add_epi32(whole, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, load_codes(x)), scale));
            }
        }
        sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), _mm256_set1_ps(half([b[208], b[209]]) * scale), sum);
    }
    fold(sum)
}
