//! Cached rows as f32.

use crate::cache::CacheType;
use crate::product::Processor;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Decodes whole rows of heads of `width` values, to the values of the type's codec.
pub(super) fn decode(processor: Processor, kind: CacheType, width: usize, bytes: &[u8], out: &mut [f32]) {
    match (processor, kind) {
        // SAFETY: the processor has these instructions wherever it is said to be `Processor::Avx2` or wider.
        #[cfg(target_arch = "x86_64")]
        (Processor::Avx2 | Processor::Avx512, CacheType::F16) => unsafe { f16(bytes, out) },
        // SAFETY: likewise.
        #[cfg(target_arch = "x86_64")]
        (Processor::Avx2 | Processor::Avx512, CacheType::Q8_0) => unsafe { q8_0(bytes, out) },
        // SAFETY: likewise.
        #[cfg(target_arch = "x86_64")]
        (Processor::Avx2 | Processor::Avx512, CacheType::Q4_0) => unsafe { q4_0(bytes, out) },
        // SAFETY: likewise.
        #[cfg(target_arch = "x86_64")]
        (Processor::Avx2 | Processor::Avx512, CacheType::Fp8) => unsafe { fp8(width, bytes, out) },
        _ => kind.codec(width).codec().decode(bytes, out),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn f16(bytes: &[u8], out: &mut [f32]) {
    let (bytes, rest) = bytes.as_chunks::<16>();
    let (out, last) = out.as_chunks_mut::<8>();
    for (bytes, out) in bytes.iter().zip(out) {
        // SAFETY: eight halves in, eight floats out.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(bytes.as_ptr().cast()))) };
    }
    for (bytes, out) in rest.as_chunks().0.iter().zip(last) {
        *out = half(*bytes);
    }
}

/// The value of an f16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn half(bytes: [u8; 2]) -> f32 {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(u16::from_le_bytes(bytes).into())))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn q8_0(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.as_chunks::<34>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let scale = _mm256_set1_ps(half([block[0], block[1]]));
        for (codes, out) in block[2..].as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<8>().0) {
            // SAFETY: eight codes.
            let codes = unsafe { _mm_loadl_epi64(codes.as_ptr().cast()) };
            let values = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)), scale);
            // SAFETY: eight values.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), values) };
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn q4_0(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.as_chunks::<18>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let scale = _mm256_set1_ps(half([block[0], block[1]]));
        // SAFETY: the sixteen bytes after the scale.
        let codes = unsafe { _mm_loadu_si128(block[2..].as_ptr().cast()) };
        let (mask, zero) = (_mm_set1_epi8(15), _mm_set1_epi8(8));
        // The low halves of all bytes come before the high ones.
        let low = _mm_sub_epi8(_mm_and_si128(codes, mask), zero);
        let high = _mm_sub_epi8(_mm_and_si128(_mm_srli_epi16::<4>(codes), mask), zero);
        let eights = [low, _mm_srli_si128::<8>(low), high, _mm_srli_si128::<8>(high)];
        for (codes, out) in eights.into_iter().zip(out.as_chunks_mut::<8>().0) {
            let values = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)), scale);
            // SAFETY: eight values.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), values) };
        }
    }
}

/// An e4m3 number in the place of an f16's sign, low exponent bits and high mantissa bits is 2⁻⁸ of its value, subnormal or not.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn fp8(width: usize, bytes: &[u8], out: &mut [f32]) {
    for (row, out) in bytes.chunks_exact(width + 2).zip(out.chunks_exact_mut(width)) {
        let (codes, scale) = row.split_at(width);
        let scale = f32::from_bits(u32::from(u16::from_le_bytes([scale[0], scale[1]])) << 16);
        let (power, wide) = (_mm256_set1_ps(256.0), _mm256_set1_ps(scale));
        let (codes, rest) = codes.as_chunks::<8>();
        let (out, last) = out.as_chunks_mut::<8>();
        for (codes, out) in codes.iter().zip(out) {
            // SAFETY: eight codes.
            let codes = _mm_cvtepu8_epi16(unsafe { _mm_loadl_epi64(codes.as_ptr().cast()) });
            let sign = _mm_slli_epi16::<8>(_mm_and_si128(codes, _mm_set1_epi16(0x80)));
            let magnitude = _mm_slli_epi16::<7>(_mm_and_si128(codes, _mm_set1_epi16(0x7f)));
            let values = _mm256_mul_ps(_mm256_cvtph_ps(_mm_or_si128(sign, magnitude)), power);
            let values = _mm256_mul_ps(values, wide);
            // SAFETY: eight values.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), values) };
        }
        for (code, out) in rest.iter().zip(last) {
            let bits = u16::from(code & 0x80) << 8 | u16::from(code & 0x7f) << 7;
            *out = half(bits.to_le_bytes()) * 256.0 * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::tests::processors;

    #[test]
    fn every_type_decodes_as_its_codec_does() {
        for kind in CacheType::ALL {
            for width in [32, 64, 96, 128, 20, 7] {
                let id = kind.codec(width);
                let Ok(row) = id.row_bytes(width) else { continue };
                // Any bytes but e4m3's two NaNs, which no finite value is encoded as; then real values.
                let mut bytes: Vec<u8> = (0..5 * row).map(|i| (i * 89 % 251) as u8).collect();
                bytes.iter_mut().filter(|b| **b & 0x7f == 0x7f).for_each(|b| *b -= 1);
                let values: Vec<f32> = (0..5 * width).map(|i| ((i * 37 % 101) as f32 * 0.7).sin() * 0.1).collect();
                let mut encoded = vec![0; 5 * row];
                id.codec().encode_rows(&values, width, None, &mut encoded);
                for bytes in [bytes, encoded] {
                    let (mut want, mut got) = (vec![0f32; 5 * width], vec![1f32; 5 * width]);
                    id.codec().decode(&bytes, &mut want);
                    for processor in processors() {
                        decode(processor, kind, width, &bytes, &mut got);
                        let same = got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan());
                        assert!(same, "{kind} {width} {processor:?}");
                    }
                }
            }
        }
    }
}
