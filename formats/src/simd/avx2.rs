//! Eight lanes in AVX2 registers.
//!
//! SAFETY of every block below: the intrinsics need the instructions that [`super::dispatch`] has found before it runs a kernel with
//! these lanes, and nothing else constructs them; loads and stores touch slices whose length was checked.

use super::{COLUMNS, IntLanes, Lanes, MAX_LANES, MaskLanes};
use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, BitOr, Div, Mul, Not, Sub};

/// 8 numbers of type f32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(__m256);
/// 8 numbers of type i32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ints(__m256i);
/// 8 truth values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mask(__m256);

const LANES: usize = 8;

macro_rules! operators {
    ($name:ident: $($trait:ident $method:ident $f:ident),*) => {$(
        impl $trait for $name {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: see the top of the file.
                $name(unsafe { $f(self.0, other.0) })
            }
        }
    )*};
}
operators!(Avx2: Add add _mm256_add_ps, Sub sub _mm256_sub_ps, Mul mul _mm256_mul_ps, Div div _mm256_div_ps);
operators!(Ints: Add add _mm256_add_epi32, Sub sub _mm256_sub_epi32, BitAnd bitand _mm256_and_si256, BitOr bitor _mm256_or_si256);

operators!(Mask: BitAnd bitand _mm256_and_ps, BitOr bitor _mm256_or_ps);

impl Not for Mask {
    type Output = Self;
    #[inline(always)]
    fn not(self) -> Self {
        // SAFETY: see the top of the file.
        Mask(unsafe { _mm256_xor_ps(self.0, _mm256_castsi256_ps(_mm256_set1_epi32(-1))) })
    }
}
impl MaskLanes for Mask {
    const N: usize = LANES;

    #[inline(always)]
    fn bits(self) -> u32 {
        // SAFETY: see the top of the file.
        unsafe { _mm256_movemask_ps(self.0) }.cast_unsigned()
    }
}

impl Lanes for Avx2 {
    const N: usize = LANES;
    type Int = Ints;
    type Mask = Mask;
    type Quad = __m256;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: see the top of the file.
        Avx2(unsafe { _mm256_set1_ps(x) })
    }
    #[inline(always)]
    fn load(x: &[f32]) -> Self {
        // SAFETY: see the top of the file.
        Avx2(unsafe { _mm256_loadu_ps(x[..LANES].as_ptr()) })
    }
    #[inline(always)]
    fn store(self, out: &mut [f32]) {
        // SAFETY: see the top of the file.
        unsafe { _mm256_storeu_ps(out[..LANES].as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: see the top of the file.
        Avx2(unsafe { _mm256_sqrt_ps(self.0) })
    }
    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: see the top of the file.
        Avx2(unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: see the top of the file.
        Avx2(unsafe { _mm256_min_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: see the top of the file.
        Avx2(unsafe { _mm256_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn lt(self, other: Self) -> Mask {
        // SAFETY: see the top of the file.
        Mask(unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, other.0) })
    }
    #[inline(always)]
    fn le(self, other: Self) -> Mask {
        // SAFETY: see the top of the file.
        Mask(unsafe { _mm256_cmp_ps::<_CMP_LE_OQ>(self.0, other.0) })
    }
    #[inline(always)]
    fn eq(self, other: Self) -> Mask {
        // SAFETY: see the top of the file.
        Mask(unsafe { _mm256_cmp_ps::<_CMP_EQ_OQ>(self.0, other.0) })
    }
    #[inline(always)]
    fn select(mask: Mask, a: Self, b: Self) -> Self {
        // SAFETY: see the top of the file.
        Avx2(unsafe { _mm256_blendv_ps(b.0, a.0, mask.0) })
    }
    #[inline(always)]
    fn to_bits(self) -> Ints {
        // SAFETY: see the top of the file.
        Ints(unsafe { _mm256_castps_si256(self.0) })
    }
    #[inline(always)]
    fn from_bits(bits: Ints) -> Self {
        // SAFETY: see the top of the file.
        Avx2(unsafe { _mm256_castsi256_ps(bits.0) })
    }
    #[inline(always)]
    fn from_int(x: Ints) -> Self {
        // SAFETY: see the top of the file.
        Avx2(unsafe { _mm256_cvtepi32_ps(x.0) })
    }
    #[inline(always)]
    fn gather(table: &[f32], index: Ints) -> Self {
        index.check(table.len());
        // SAFETY: see the top of the file; every index is within the table.
        Avx2(unsafe { _mm256_i32gather_ps::<4>(table.as_ptr(), index.0) })
    }
    #[inline(always)]
    fn quad(table: &[f32; 4]) -> __m256 {
        // SAFETY: see the top of the file.
        unsafe { _mm256_broadcast_ps(&_mm_loadu_ps(table.as_ptr())) }
    }
    #[inline(always)]
    fn pick(quad: __m256, index: Ints) -> Self {
        // SAFETY: see the top of the file.
        Avx2(unsafe { _mm256_permutevar_ps(quad, index.0) })
    }
    #[inline(always)]
    fn least(self) -> f32 {
        // SAFETY: see the top of the file.
        unsafe {
            let four = _mm_min_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_min_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn transpose(rows: &[&[f32]; MAX_LANES], at: usize, out: &mut [Self; COLUMNS]) {
        for (half, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let mut v = [Self::zero(); LANES];
            for (v, row) in v.iter_mut().zip(rows) {
                *v = Self::load(&row[at..][half * LANES..]);
            }
            // SAFETY: see the top of the file. Pairs of rows, fours, eights come together.
            unsafe {
                for i in 0..4 {
                    let (a, b) = (v[2 * i].0, v[2 * i + 1].0);
                    (v[2 * i].0, v[2 * i + 1].0) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
                }
                for i in [0, 4] {
                    let [a, b, c, d] = [v[i].0, v[i + 1].0, v[i + 2].0, v[i + 3].0];
                    v[i].0 = _mm256_shuffle_ps::<0b01_00_01_00>(a, c);
                    v[i + 1].0 = _mm256_shuffle_ps::<0b11_10_11_10>(a, c);
                    v[i + 2].0 = _mm256_shuffle_ps::<0b01_00_01_00>(b, d);
                    v[i + 3].0 = _mm256_shuffle_ps::<0b11_10_11_10>(b, d);
                }
                for i in 0..4 {
                    out[i].0 = _mm256_permute2f128_ps::<0x20>(v[i].0, v[i + 4].0);
                    out[i + 4].0 = _mm256_permute2f128_ps::<0x31>(v[i].0, v[i + 4].0);
                }
            }
        }
    }
    #[inline(always)]
    fn least_of_each(v: &[Self]) -> Self {
        let v = v.first_chunk::<LANES>().expect("a value per lane");
        // SAFETY: see the top of the file. Each step halves the registers: pairs, fours, eights.
        unsafe {
            let pair = |a: Self, b: Self| _mm256_min_ps(_mm256_unpacklo_ps(a.0, b.0), _mm256_unpackhi_ps(a.0, b.0));
            let four = |a, b| _mm256_min_ps(_mm256_shuffle_ps::<0b01_00_01_00>(a, b), _mm256_shuffle_ps::<0b11_10_11_10>(a, b));
            let low = four(pair(v[0], v[1]), pair(v[2], v[3]));
            let high = four(pair(v[4], v[5]), pair(v[6], v[7]));
            Avx2(_mm256_min_ps(_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high)))
        }
    }
    #[inline(always)]
    fn prefetch(x: &[f32]) {
        // A line of cache is 64 bytes.
        for line in x.chunks(16) {
            // SAFETY: the address is that of a number; a prefetch has no other effect.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
        }
    }
    #[inline(always)]
    fn round(self) -> Self {
        // SAFETY: see the top of the file.
        Avx2(unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }
    #[inline(always)]
    fn truncate(self) -> Ints {
        // SAFETY: see the top of the file.
        Ints(unsafe { _mm256_cvttps_epi32(self.0) })
    }
    #[inline(always)]
    fn through_half(self) -> Self {
        // SAFETY: see the top of the file.
        Avx2(unsafe { _mm256_cvtph_ps(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) })
    }
    #[inline(always)]
    fn half(x: f32) -> u16 {
        // SAFETY: see the top of the file.
        unsafe { _mm_cvtsi128_si32(_mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm_set_ss(x))) as u16 }
    }
    #[inline(always)]
    fn high_bits(bytes: &[u8; 32]) -> u32 {
        // SAFETY: see the top of the file.
        unsafe { _mm256_movemask_epi8(_mm256_loadu_si256(bytes.as_ptr().cast())) }.cast_unsigned()
    }
}

impl Ints {
    /// Panics unless every lane is an index of something of this length.
    #[inline(always)]
    fn check(self, len: usize) {
        let last = Self::splat(i32::try_from(len).unwrap_or(i32::MAX) - 1);
        let outside = self.gt(last) | Self::splat(0).gt(self);
        assert!(!outside.any(), "an index is outside the table");
    }
}

impl IntLanes for Ints {
    const N: usize = LANES;
    type Mask = Mask;

    #[inline(always)]
    fn splat(x: i32) -> Self {
        // SAFETY: see the top of the file.
        Ints(unsafe { _mm256_set1_epi32(x) })
    }
    #[inline(always)]
    fn load(x: &[i32]) -> Self {
        // SAFETY: see the top of the file.
        Ints(unsafe { _mm256_loadu_si256(x[..LANES].as_ptr().cast()) })
    }
    #[inline(always)]
    fn store(self, out: &mut [i32]) {
        // SAFETY: see the top of the file.
        unsafe { _mm256_storeu_si256(out[..LANES].as_mut_ptr().cast(), self.0) }
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: see the top of the file.
        Ints(unsafe { _mm256_min_epi32(self.0, other.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: see the top of the file.
        Ints(unsafe { _mm256_max_epi32(self.0, other.0) })
    }
    #[inline(always)]
    fn gt(self, other: Self) -> Mask {
        // SAFETY: see the top of the file.
        Mask(unsafe { _mm256_castsi256_ps(_mm256_cmpgt_epi32(self.0, other.0)) })
    }
    #[inline(always)]
    fn eq(self, other: Self) -> Mask {
        // SAFETY: see the top of the file.
        Mask(unsafe { _mm256_castsi256_ps(_mm256_cmpeq_epi32(self.0, other.0)) })
    }
    #[inline(always)]
    fn select(mask: Mask, a: Self, b: Self) -> Self {
        // SAFETY: see the top of the file.
        Ints(unsafe { _mm256_blendv_epi8(b.0, a.0, _mm256_castps_si256(mask.0)) })
    }
    #[inline(always)]
    fn shl<const BITS: u32>(self) -> Self {
        // SAFETY: see the top of the file.
        Ints(unsafe { _mm256_sll_epi32(self.0, _mm_cvtsi32_si128(BITS.cast_signed())) })
    }
    #[inline(always)]
    fn shr<const BITS: u32>(self) -> Self {
        // SAFETY: see the top of the file.
        Ints(unsafe { _mm256_srl_epi32(self.0, _mm_cvtsi32_si128(BITS.cast_signed())) })
    }
    #[inline(always)]
    fn store_bytes(values: &[Self], out: &mut [u8]) {
        let (fours, rest) = values.as_chunks::<4>();
        let (wide, narrow) = out[..LANES * values.len()].split_at_mut(4 * LANES * fours.len());
        for (four, out) in fours.iter().zip(wide.as_chunks_mut::<{ 4 * LANES }>().0) {
            // SAFETY: see the top of the file. Packing works within halves of a register; the permutation sets that right.
            unsafe {
                let low = _mm256_packs_epi32(four[0].0, four[1].0);
                let high = _mm256_packs_epi32(four[2].0, four[3].0);
                let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
                let bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order);
                _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes);
            }
        }
        for (one, out) in rest.iter().zip(narrow.as_chunks_mut::<LANES>().0) {
            // SAFETY: see the top of the file.
            unsafe {
                let words = _mm_packs_epi32(_mm256_castsi256_si128(one.0), _mm256_extracti128_si256::<1>(one.0));
                _mm_storel_epi64(out.as_mut_ptr().cast(), _mm_packus_epi16(words, words));
            }
        }
    }
}
