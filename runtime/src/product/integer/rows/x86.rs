//! Loops over blocks with registers of 256 bits, in AVX2 and with VNNI. Products of bytes are summed with integer scales, and there is one
//! multiplication in f32 per block and row of activations.

/// Instantiates the loops: `$dot(sum, codes, x)` adds products of unsigned and signed bytes to sums of 32 bits, of which 16 bits must
/// hold every two; `$dot16(sum, a, b)` adds products of 16-bit numbers.
macro_rules! loops {
    ($features:literal, $dot:ident, $dot16:ident) => {
        use super::super::Row;
        use crate::product::integer::unpack::{six_bits, word};
        use crate::product::processor::fetch_behind;
        use bitsmith_formats::CodecId;
        use std::arch::x86_64::*;

        /// The products of a row of blocks and rows of activations.
        ///
        /// # Safety
        /// Needs the instructions that the module is named for.
        #[target_feature(enable = $features)]
        pub unsafe fn dot<const N: usize>(codec: CodecId, blocks: &[u8], x: [Row<'_>; N]) -> [f32; N] {
            match codec {
                CodecId::Q4_0 => flat::<18, N>(blocks, x, |b| nibbles(b, 2), |codes, x, start| $dot(start, codes, x)),
                CodecId::Q5_0 => flat::<22, N>(
                    blocks,
                    x,
                    |b| _mm256_or_si256(nibbles(b, 6), fifths(u32::from_le_bytes([b[2], b[3], b[4], b[5]]))),
                    |codes, x, start| $dot(start, codes, x),
                ),
                // Magnitudes, and the signs on the other side.
                CodecId::Q8_0 => flat::<34, N>(
                    blocks,
                    x,
                    |b| eights(b),
                    |codes, x, _| $dot(_mm256_setzero_si256(), _mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes)),
                ),
                CodecId::Q6K => q6_k(blocks, x),
                CodecId::Q5K => k_affine::<true, N>(blocks, x),
                _ => k_affine::<false, N>(blocks, x),
            }
        }

        /// 32 bytes.
        #[inline]
        #[target_feature(enable = $features)]
        fn load(bytes: &[u8; 32]) -> __m256i {
            // SAFETY: the array is as long as the register.
            unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn load_codes(codes: &[i8; 32]) -> __m256i {
            // SAFETY: the array is as long as the register.
            unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) }
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn load_starts(starts: &[i32; 8]) -> __m256i {
            // SAFETY: the array is as long as the register.
            unsafe { _mm256_loadu_si256(starts.as_ptr().cast()) }
        }
        /// Sixteen sums.
        #[inline]
        #[target_feature(enable = $features)]
        fn load_sums(sums: &[i16; 16]) -> __m256i {
            // SAFETY: the array is as long as the register.
            unsafe { _mm256_loadu_si256(sums.as_ptr().cast()) }
        }
        /// The f16 in two bytes, everywhere.
        #[inline]
        #[target_feature(enable = $features)]
        fn half(bytes: [u8; 2]) -> __m256 {
            _mm256_cvtph_ps(_mm_set1_epi16(i16::from_le_bytes(bytes)))
        }
        /// The sum of the lanes.
        #[inline]
        #[target_feature(enable = $features)]
        fn fold(x: __m256) -> f32 {
            let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
        /// Sixteen bytes from `at` as 32 codes of 4 bits: the low halves, then the high ones.
        #[inline]
        #[target_feature(enable = $features)]
        fn nibbles<const BYTES: usize>(b: &[u8; BYTES], at: usize) -> __m256i {
            // SAFETY: sixteen bytes, as the slice's bounds say.
            let codes = unsafe { _mm_loadu_si128(b[at..at + 16].as_ptr().cast()) };
            let both = _mm256_srlv_epi32(_mm256_broadcastsi128_si256(codes), _mm256_set_epi32(4, 4, 4, 4, 0, 0, 0, 0));
            _mm256_and_si256(both, _mm256_set1_epi8(15))
        }
        /// 32 bits as bytes of 16 or 0.
        #[inline]
        #[target_feature(enable = $features)]
        fn fifths(bits: u32) -> __m256i {
            let each = _mm256_shuffle_epi8(_mm256_set1_epi32(bits.cast_signed()), load(&BYTE_OF_BIT));
            let bit = _mm256_set1_epi64x(i64::from_le_bytes([1, 2, 4, 8, 16, 32, 64, 128]));
            _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(each, bit), bit), _mm256_set1_epi8(16))
        }

        /// The 32 codes of a block of Q8_0.
        #[inline]
        #[target_feature(enable = $features)]
        fn eights(b: &[u8; 34]) -> __m256i {
            // SAFETY: 32 bytes of the block, from the third.
            unsafe { _mm256_loadu_si256(b[2..].as_ptr().cast()) }
        }
        /// The same numbers. Compilers do not see that they are the same four twice, and so take one of them everywhere by a shuffle within
        /// lanes, which is faster than one across them.
        #[inline]
        #[target_feature(enable = $features)]
        fn opaque(mut x: __m256) -> __m256 {
            // SAFETY: no instruction at all.
            unsafe { std::arch::asm!("/* {0} */", inout(ymm_reg) x, options(pure, nomem, nostack, preserves_flags)) };
            x
        }
        /// The steps of eight blocks, which begin with them.
        #[inline]
        #[target_feature(enable = $features)]
        fn steps<const BYTES: usize>(b: &[[u8; BYTES]; 8]) -> __m256 {
            let each = |i: usize| i16::from_le_bytes([b[i][0], b[i][1]]);
            _mm256_cvtph_ps(_mm_set_epi16(each(7), each(6), each(5), each(4), each(3), each(2), each(1), each(0)))
        }

        /// Blocks of 32 codes after a step: `decode` gives the codes, `dot` sums of products of codes with activations, given those with the
        /// code that means zero.
        #[inline]
        #[target_feature(enable = $features)]
        fn flat<const BYTES: usize, const N: usize>(
            blocks: &[u8],
            x: [Row<'_>; N],
            decode: impl Fn(&[u8; BYTES]) -> __m256i,
            dot: impl Fn(__m256i, __m256i, __m256i) -> __m256i,
        ) -> [f32; N] {
            let mut sums = [[_mm256_setzero_ps(); N]; 2];
            let (groups, rest) = blocks.as_chunks::<BYTES>().0.as_chunks::<8>();
            let (n, done) = (groups.len(), 8 * groups.len());
            let codes = x.map(|x| &x.codes.as_chunks::<32>().0.as_chunks::<8>().0[..n]);
            let scales = x.map(|x| &x.scales.as_chunks::<8>().0[..n]);
            let starts = x.map(|x| &x.starts.as_chunks::<8>().0[..n]);
            for (g, blocks) in groups.iter().enumerate() {
                fetch_behind(blocks.as_flattened());
                let steps = steps(blocks);
                let factors: [[__m256; 2]; N] = std::array::from_fn(|row| {
                    // SAFETY: eight scales.
                    let factors = _mm256_mul_ps(steps, unsafe { _mm256_loadu_ps(scales[row][g].as_ptr()) });
                    let twice = [_mm256_permute2f128_ps::<0x00>(factors, factors), _mm256_permute2f128_ps::<0x11>(factors, factors)];
                    [opaque(twice[0]), opaque(twice[1])]
                });
                for i in 0..8 {
                    let w = decode(&blocks[i]);
                    for row in 0..N {
                        let product = dot(w, load_codes(&codes[row][g][i]), load_starts(&starts[row][g][i]));
                        let four = factors[row][i / 4];
                        let factor = match i % 4 {
                            0 => _mm256_permute_ps::<0x00>(four),
                            1 => _mm256_permute_ps::<0x55>(four),
                            2 => _mm256_permute_ps::<0xaa>(four),
                            _ => _mm256_permute_ps::<0xff>(four),
                        };
                        sums[i % 2][row] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(product), factor, sums[i % 2][row]);
                    }
                }
            }
            for (i, block) in rest.iter().enumerate() {
                let (w, step) = (decode(block), half([block[0], block[1]]));
                for row in 0..N {
                    let codes = &x[row].codes.as_chunks::<32>().0[done + i];
                    let product = dot(w, load_codes(codes), load_starts(&x[row].starts[done + i]));
                    let factor = _mm256_mul_ps(step, _mm256_set1_ps(x[row].scales[done + i]));
                    sums[0][row] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(product), factor, sums[0][row]);
                }
            }
            std::array::from_fn(|i| fold(_mm256_add_ps(sums[0][i], sums[1][i])))
        }

        /// Q4_K, or with fifth bits Q5_K.
        #[inline]
        #[target_feature(enable = $features)]
        fn k_affine<const FIVE: bool, const N: usize>(blocks: &[u8], x: [Row<'_>; N]) -> [f32; N] {
            let low = _mm256_set1_epi8(15);
            let bit = _mm256_set1_epi8(16);
            let mut sums = [_mm256_setzero_ps(); N];
            let mut offsets = [_mm_setzero_ps(); N];
            let blocks = blocks.chunks_exact(if FIVE { 176 } else { 144 });
            let n = blocks.len();
            let x = x.map(|x| (&x.codes.as_chunks::<256>().0[..n], &x.scales[..n], &x.sums.as_chunks::<16>().0[..n]));
            for (i, b) in blocks.enumerate() {
                fetch_behind(b);
                let (head, codes) = b.split_at(if FIVE { 48 } else { 16 });
                let (scales, mins) = six_bits([word(head, 4), word(head, 8), word(head, 12)]);
                let wide = |[low, high]: [u32; 2]| _mm_cvtepu8_epi16(_mm_set_epi32(0, 0, high.cast_signed(), low.cast_signed()));
                let scales = _mm256_broadcastsi128_si256(wide(scales));
                let mins = wide(mins);
                let (step, min) = (half([head[0], head[1]]), _mm256_castps256_ps128(half([head[2], head[3]])));
                for (offset, (_, scales, sums)) in offsets.iter_mut().zip(x) {
                    let sums = load_sums(&sums[i]);
                    let sums = _mm_hadd_epi16(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
                    let least = _mm_cvtepi32_ps(_mm_madd_epi16(mins, sums));
                    *offset = _mm_fmadd_ps(least, _mm_mul_ps(min, _mm_set1_ps(scales[i])), *offset);
                }
                let fifths = match head.get(16..).and_then(|h| h.first_chunk()) {
                    Some(fifths) if FIVE => load(fifths),
                    _ => _mm256_setzero_si256(),
                };
                let mut whole = [_mm256_setzero_si256(); N];
                for (g, codes) in codes.as_chunks::<32>().0.iter().enumerate() {
                    let codes = load(codes);
                    let mut c = [_mm256_and_si256(codes, low), _mm256_and_si256(_mm256_srli_epi16::<4>(codes), low)];
                    if FIVE {
                        let shift = |n: usize| _mm_cvtsi32_si128(n as i32);
                        // Bit 2 g to bit 4, whatever the direction.
                        let (f0, f1) = match g {
                            0 => (_mm256_slli_epi16::<4>(fifths), _mm256_slli_epi16::<3>(fifths)),
                            1 => (_mm256_slli_epi16::<2>(fifths), _mm256_slli_epi16::<1>(fifths)),
                            _ => (_mm256_srl_epi16(fifths, shift(2 * g - 4)), _mm256_srl_epi16(fifths, shift(2 * g - 3))),
                        };
                        c = [_mm256_or_si256(c[0], _mm256_and_si256(f0, bit)), _mm256_or_si256(c[1], _mm256_and_si256(f1, bit))];
                    }
                    for (half, c) in c.into_iter().enumerate() {
                        let scale = _mm256_shuffle_epi8(scales, load(&EACH[2 * g + half]));
                        for (whole, (x, ..)) in whole.iter_mut().zip(x) {
                            let x = load_codes(&x[i].as_chunks::<32>().0[2 * g + half]);
                            *whole = $dot16(*whole, _mm256_maddubs_epi16(c, x), scale);
                        }
                    }
                }
                for ((sum, whole), (_, scales, _)) in sums.iter_mut().zip(whole).zip(x) {
                    *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), _mm256_mul_ps(step, _mm256_set1_ps(scales[i])), *sum);
                }
            }
            std::array::from_fn(|i| fold(sums[i]) - fold(_mm256_set_m128(_mm_setzero_ps(), offsets[i])))
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn q6_k<const N: usize>(blocks: &[u8], x: [Row<'_>; N]) -> [f32; N] {
            let low = _mm256_set1_epi8(15);
            let two = _mm256_set1_epi8(0x30);
            let mut sums = [_mm256_setzero_ps(); N];
            let blocks = blocks.as_chunks::<210>().0;
            let n = blocks.len();
            let x = x.map(|x| (&x.codes.as_chunks::<256>().0[..n], &x.scales[..n], &x.sums.as_chunks::<16>().0[..n]));
            for (i, b) in blocks.iter().enumerate() {
                fetch_behind(b);
                // SAFETY: sixteen bytes of the block, from byte 192.
                let scales = _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(b[192..].as_ptr().cast()) });
                let mut whole = [_mm256_setzero_si256(); N];
                for (whole, (_, _, sums)) in whole.iter_mut().zip(x) {
                    let offset = _mm256_slli_epi32::<5>(_mm256_madd_epi16(scales, load_sums(&sums[i])));
                    *whole = _mm256_sub_epi32(*whole, offset);
                }
                let halves =
                    [_mm256_permute2x128_si256::<0x00>(scales, scales), _mm256_permute2x128_si256::<0x11>(scales, scales)];
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
                    for (g, (lower, upper)) in codes.into_iter().enumerate() {
                        let codes = _mm256_or_si256(_mm256_and_si256(lower, low), _mm256_and_si256(upper, two));
                        let scale = _mm256_shuffle_epi8(scales, load(&TWO[g]));
                        for (whole, (x, ..)) in whole.iter_mut().zip(x) {
                            let x = load_codes(&x[i].as_chunks::<32>().0[4 * half + g]);
                            *whole = $dot16(*whole, _mm256_maddubs_epi16(codes, x), scale);
                        }
                    }
                }
                let step = self::half([b[208], b[209]]);
                for ((sum, whole), (_, scales, _)) in sums.iter_mut().zip(whole).zip(x) {
                    *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), _mm256_mul_ps(step, _mm256_set1_ps(scales[i])), *sum);
                }
            }
            sums.map(|sum| fold(sum))
        }
    };
}

/// Patterns that take the bytes of a register's lanes elsewhere.
mod patterns {
    /// A pattern that takes the 16-bit number `low` to the lower half of a register and `high` to the upper.
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
    pub const EACH: [[u8; 32]; 8] =
        [pick(0, 0), pick(1, 1), pick(2, 2), pick(3, 3), pick(4, 4), pick(5, 5), pick(6, 6), pick(7, 7)];
    /// Numbers 2 g and 2 g + 1.
    pub const TWO: [[u8; 32]; 4] = [pick(0, 1), pick(2, 3), pick(4, 5), pick(6, 7)];
    /// Bit i is in byte i / 8.
    pub const BYTE_OF_BIT: [u8; 32] = {
        let mut pattern = [0; 32];
        let mut i = 0;
        while i < 32 {
            pattern[i] = (i / 8) as u8;
            i += 1;
        }
        pattern
    };
}

pub(super) mod avx2 {
    use super::patterns::*;
    loops!("avx2,fma,f16c", dot8, dot16);

    #[inline]
    #[target_feature(enable = "avx2")]
    fn dot8(sum: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        dot16(sum, _mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1))
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    fn dot16(sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
    }
}

pub(super) mod vnni {
    use super::patterns::*;
    loops!("avx2,fma,f16c,avx512f,avx512vl,avx512vnni", _mm256_dpbusd_epi32, _mm256_dpwssd_epi32);
}
