//! Sixteen lanes in AVX-512 registers.
//!
//! SAFETY of every block below: the intrinsics need the instructions that [`super::dispatch`] has found before it runs a kernel with
//! these lanes, and nothing else constructs them; loads and stores touch slices whose length was checked.

use super::{COLUMNS, IntLanes, Lanes, MAX_LANES, MaskLanes};
use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, BitOr, Div, Mul, Not, Sub};

/// 16 numbers of type f32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(__m512);
/// 16 numbers of type i32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ints(__m512i);
/// 16 truth values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mask(__mmask16);

const LANES: usize = 16;

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
operators!(Avx512: Add add _mm512_add_ps, Sub sub _mm512_sub_ps, Mul mul _mm512_mul_ps, Div div _mm512_div_ps);
operators!(Ints: Add add _mm512_add_epi32, Sub sub _mm512_sub_epi32, BitAnd bitand _mm512_and_si512, BitOr bitor _mm512_or_si512);

impl BitAnd for Mask {
    type Output = Self;
    #[inline(always)]
    fn bitand(self, other: Self) -> Self {
        Mask(self.0 & other.0)
    }
}
impl BitOr for Mask {
    type Output = Self;
    #[inline(always)]
    fn bitor(self, other: Self) -> Self {
        Mask(self.0 | other.0)
    }
}
impl Not for Mask {
    type Output = Self;
    #[inline(always)]
    fn not(self) -> Self {
        Mask(!self.0)
    }
}
impl MaskLanes for Mask {
    const N: usize = LANES;

    #[inline(always)]
    fn bits(self) -> u32 {
        u32::from(self.0)
    }
}

impl Lanes for Avx512 {
    const N: usize = LANES;
    type Int = Ints;
    type Mask = Mask;
    type Quad = __m512;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: see the top of the file.
        Avx512(unsafe { _mm512_set1_ps(x) })
    }
    #[inline(always)]
    fn load(x: &[f32]) -> Self {
        // SAFETY: see the top of the file.
        Avx512(unsafe { _mm512_loadu_ps(x[..LANES].as_ptr()) })
    }
    #[inline(always)]
    fn store(self, out: &mut [f32]) {
        // SAFETY: see the top of the file.
        unsafe { _mm512_storeu_ps(out[..LANES].as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: see the top of the file.
        Avx512(unsafe { _mm512_sqrt_ps(self.0) })
    }
    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: see the top of the file.
        Avx512(unsafe { _mm512_abs_ps(self.0) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: see the top of the file.
        Avx512(unsafe { _mm512_min_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: see the top of the file.
        Avx512(unsafe { _mm512_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn lt(self, other: Self) -> Mask {
        // SAFETY: see the top of the file.
        Mask(unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, other.0) })
    }
    #[inline(always)]
    fn le(self, other: Self) -> Mask {
        // SAFETY: see the top of the file.
        Mask(unsafe { _mm512_cmp_ps_mask::<_CMP_LE_OQ>(self.0, other.0) })
    }
    #[inline(always)]
    fn eq(self, other: Self) -> Mask {
        // SAFETY: see the top of the file.
        Mask(unsafe { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(self.0, other.0) })
    }
    #[inline(always)]
    fn select(mask: Mask, a: Self, b: Self) -> Self {
        // SAFETY: see the top of the file.
        Avx512(unsafe { _mm512_mask_blend_ps(mask.0, b.0, a.0) })
    }
    #[inline(always)]
    fn to_bits(self) -> Ints {
        // SAFETY: see the top of the file.
        Ints(unsafe { _mm512_castps_si512(self.0) })
    }
    #[inline(always)]
    fn from_bits(bits: Ints) -> Self {
        // SAFETY: see the top of the file.
        Avx512(unsafe { _mm512_castsi512_ps(bits.0) })
    }
    #[inline(always)]
    fn from_int(x: Ints) -> Self {
        // SAFETY: see the top of the file.
        Avx512(unsafe { _mm512_cvtepi32_ps(x.0) })
    }
    #[inline(always)]
    fn gather(table: &[f32], index: Ints) -> Self {
        index.check(table.len());
        // SAFETY: see the top of the file; every index is within the table.
        Avx512(unsafe { _mm512_i32gather_ps::<4>(index.0, table.as_ptr().cast()) })
    }
    #[inline(always)]
    fn quad(table: &[f32; 4]) -> __m512 {
        // SAFETY: see the top of the file.
        unsafe { _mm512_broadcast_f32x4(_mm_loadu_ps(table.as_ptr())) }
    }
    #[inline(always)]
    fn pick(quad: __m512, index: Ints) -> Self {
        // SAFETY: see the top of the file.
        Avx512(unsafe { _mm512_permutevar_ps(quad, index.0) })
    }
    #[inline(always)]
    fn least(self) -> f32 {
        // SAFETY: see the top of the file.
        unsafe { _mm512_reduce_min_ps(self.0) }
    }
    #[inline(always)]
    fn transpose(rows: &[&[f32]; MAX_LANES], at: usize, out: &mut [Self; COLUMNS]) {
        for (out, row) in out.iter_mut().zip(rows) {
            *out = Self::load(&row[at..]);
        }
        turn(out);
    }
    #[inline(always)]
    fn least_of_each(values: &[Self]) -> Self {
        let mut least = *values.first_chunk().expect("a value per lane");
        turn(&mut least);
        for n in [8, 4, 2, 1] {
            for i in 0..n {
                least[i] = least[i].min(least[n + i]);
            }
        }
        least[0]
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
        Avx512(unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }
    #[inline(always)]
    fn truncate(self) -> Ints {
        // SAFETY: see the top of the file.
        Ints(unsafe { _mm512_cvttps_epi32(self.0) })
    }
    #[inline(always)]
    fn through_half(self) -> Self {
        // SAFETY: see the top of the file.
        Avx512(unsafe { _mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) })
    }
    #[inline(always)]
    fn half(x: f32) -> u16 {
        // SAFETY: see the top of the file.
        unsafe {
            _mm_cvtsi128_si32(_mm256_castsi256_si128(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm512_set1_ps(x)))) as u16
        }
    }
    #[inline(always)]
    fn high_bits(bytes: &[u8; 32]) -> u32 {
        // SAFETY: see the top of the file.
        unsafe { _mm256_movemask_epi8(_mm256_loadu_si256(bytes.as_ptr().cast())) }.cast_unsigned()
    }
}

/// Lane j of value i changes places with lane i of value j.
#[inline(always)]
fn turn(v: &mut [Avx512; LANES]) {
    // SAFETY: see the top of the file. Pairs come together, fours within quarters of registers, then the quarters.
    unsafe {
        for i in 0..8 {
            let (a, b) = (v[2 * i].0, v[2 * i + 1].0);
            (v[2 * i].0, v[2 * i + 1].0) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        }
        for i in [0, 4, 8, 12] {
            let [a, b, c, d] = [v[i].0, v[i + 1].0, v[i + 2].0, v[i + 3].0];
            v[i].0 = _mm512_shuffle_ps::<0b01_00_01_00>(a, c);
            v[i + 1].0 = _mm512_shuffle_ps::<0b11_10_11_10>(a, c);
            v[i + 2].0 = _mm512_shuffle_ps::<0b01_00_01_00>(b, d);
            v[i + 3].0 = _mm512_shuffle_ps::<0b11_10_11_10>(b, d);
        }
        for i in 0..4 {
            let [a, b, c, d] = [v[i].0, v[i + 4].0, v[i + 8].0, v[i + 12].0];
            // The even quarters of two registers, and the odd ones.
            let (even, even_too) = (_mm512_shuffle_f32x4::<0b10_00_10_00>(a, b), _mm512_shuffle_f32x4::<0b10_00_10_00>(c, d));
            let (odd, odd_too) = (_mm512_shuffle_f32x4::<0b11_01_11_01>(a, b), _mm512_shuffle_f32x4::<0b11_01_11_01>(c, d));
            v[i].0 = _mm512_shuffle_f32x4::<0b10_00_10_00>(even, even_too);
            v[i + 4].0 = _mm512_shuffle_f32x4::<0b10_00_10_00>(odd, odd_too);
            v[i + 8].0 = _mm512_shuffle_f32x4::<0b11_01_11_01>(even, even_too);
            v[i + 12].0 = _mm512_shuffle_f32x4::<0b11_01_11_01>(odd, odd_too);
        }
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
        Ints(unsafe { _mm512_set1_epi32(x) })
    }
    #[inline(always)]
    fn load(x: &[i32]) -> Self {
        // SAFETY: see the top of the file.
        Ints(unsafe { _mm512_loadu_si512(x[..LANES].as_ptr().cast()) })
    }
    #[inline(always)]
    fn store(self, out: &mut [i32]) {
        // SAFETY: see the top of the file.
        unsafe { _mm512_storeu_si512(out[..LANES].as_mut_ptr().cast(), self.0) }
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: see the top of the file.
        Ints(unsafe { _mm512_min_epi32(self.0, other.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: see the top of the file.
        Ints(unsafe { _mm512_max_epi32(self.0, other.0) })
    }
    #[inline(always)]
    fn gt(self, other: Self) -> Mask {
        // SAFETY: see the top of the file.
        Mask(unsafe { _mm512_cmpgt_epi32_mask(self.0, other.0) })
    }
    #[inline(always)]
    fn eq(self, other: Self) -> Mask {
        // SAFETY: see the top of the file.
        Mask(unsafe { _mm512_cmpeq_epi32_mask(self.0, other.0) })
    }
    #[inline(always)]
    fn select(mask: Mask, a: Self, b: Self) -> Self {
        // SAFETY: see the top of the file.
        Ints(unsafe { _mm512_mask_blend_epi32(mask.0, b.0, a.0) })
    }
    #[inline(always)]
    fn shl<const BITS: u32>(self) -> Self {
        // SAFETY: see the top of the file.
        Ints(unsafe { _mm512_sll_epi32(self.0, _mm_cvtsi32_si128(BITS.cast_signed())) })
    }
    #[inline(always)]
    fn shr<const BITS: u32>(self) -> Self {
        // SAFETY: see the top of the file.
        Ints(unsafe { _mm512_srl_epi32(self.0, _mm_cvtsi32_si128(BITS.cast_signed())) })
    }
    #[inline(always)]
    fn store_bytes(values: &[Self], out: &mut [u8]) {
        // SAFETY: see the top of the file.
        let bytes = |value: &Ints| unsafe { _mm512_cvtusepi32_epi8(_mm512_max_epi32(value.0, _mm512_setzero_si512())) };
        let (pairs, last) = values.as_chunks::<2>();
        let (out, rest) = out.as_chunks_mut::<{ 2 * LANES }>();
        // In one store: what reads 32 bytes next need not wait for two halves to reach the cache.
        for (pair, out) in pairs.iter().zip(out) {
            // SAFETY: see the top of the file.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_set_m128i(bytes(&pair[1]), bytes(&pair[0]))) };
        }
        for (value, out) in last.iter().zip(rest.as_chunks_mut::<LANES>().0) {
            // SAFETY: see the top of the file.
            unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), bytes(value)) };
        }
    }
}
