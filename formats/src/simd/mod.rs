//! Lanes: one algorithm written once for any width of vector register.
//!
//! The reference encoders search scales in long chains of f32 operations whose order decides the bytes, so a chain itself cannot
//! be made parallel. Blocks can: lane i of a [`Lanes`] value belongs to block i, and every lane performs exactly the scalar
//! operations in the scalar order. No operation here is fused or reassociated, so AVX-512 (16 lanes), AVX2 (8, or 16 as pairs of
//! registers), the portable lanes (which the compiler turns into NEON or SSE2) and a single lane all give the same bytes; the single
//! lane is the scalar twin that tests compare with.
//!
//! Seen from outside for the solvers' kernels alone, and no part of the library's promises.
//!
//! A [`Kernel`] is a function generic over the lanes; [`dispatch`] runs it with the widest ones that the processor has. Kernels and
//! everything they call must be `#[inline(always)]`: only then is it compiled for the registers chosen.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod pair;
mod portable;

use crate::kernels::{Vectors, vectors};
pub use portable::Portable;
use std::ops::{Add, BitAnd, BitOr, Div, Mul, Not, Sub};

/// The most lanes that any processor has.
pub const MAX_LANES: usize = 16;

/// Columns that are transposed at a time.
pub const COLUMNS: usize = 16;

/// Several f32 numbers side by side. Operators work lane by lane, as IEEE 754 says, with rounding to nearest.
pub trait Lanes: Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self> {
    /// Number of lanes.
    const N: usize;
    /// As many integers.
    type Int: IntLanes<Mask = Self::Mask>;
    /// As many truth values.
    type Mask: MaskLanes;
    /// Four numbers to [`Lanes::pick`] from.
    type Quad: Copy;

    /// The same number in every lane.
    fn splat(x: f32) -> Self;
    /// The first `N` numbers of a slice.
    fn load(x: &[f32]) -> Self;
    /// To the first `N` places of a slice.
    fn store(self, out: &mut [f32]);
    /// Square root.
    fn sqrt(self) -> Self;
    /// Magnitude.
    fn abs(self) -> Self;
    /// `if self < other { self } else { other }`: with NaN, or zeros of both signs, the other.
    fn min(self, other: Self) -> Self;
    /// `if self > other { self } else { other }`.
    fn max(self, other: Self) -> Self;
    /// `self < other`, false with NaN.
    fn lt(self, other: Self) -> Self::Mask;
    /// `self <= other`, false with NaN.
    fn le(self, other: Self) -> Self::Mask;
    /// `self == other`, false with NaN.
    fn eq(self, other: Self) -> Self::Mask;
    /// `if mask { a } else { b }`.
    fn select(mask: Self::Mask, a: Self, b: Self) -> Self;
    /// The bit patterns.
    fn to_bits(self) -> Self::Int;
    /// The numbers with these bit patterns.
    fn from_bits(bits: Self::Int) -> Self;
    /// Integers as numbers, rounded to nearest.
    fn from_int(x: Self::Int) -> Self;
    /// `table[index]`.
    ///
    /// # Panics
    /// If an index is not within the table.
    fn gather(table: &[f32], index: Self::Int) -> Self;
    /// A table of four numbers.
    fn quad(table: &[f32; 4]) -> Self::Quad;
    /// `quad[index mod 4]`.
    fn pick(quad: Self::Quad, index: Self::Int) -> Self;

    /// The least of the lanes, none of them NaN. Of zeros of both signs, either.
    fn least(self) -> f32;
    /// `out[j]` lane i = `rows[i][at + j]`, for [`COLUMNS`] columns.
    #[inline(always)]
    fn transpose(rows: &[&[f32]; MAX_LANES], at: usize, out: &mut [Self; COLUMNS]) {
        let mut buffer = [[0f32; MAX_LANES]; COLUMNS];
        for (lane, row) in rows.iter().enumerate().take(Self::N) {
            for (to, &x) in buffer.iter_mut().zip(&row[at..][..COLUMNS]) {
                to[lane] = x;
            }
        }
        for (out, column) in out.iter_mut().zip(&buffer) {
            *out = Self::load(column);
        }
    }
    /// Tells the processor that these numbers will be read soon.
    #[inline(always)]
    fn prefetch(_: &[f32]) {}
    /// Lane i: the least of the lanes of value i, none of them NaN, for as many values as there are lanes.
    #[inline(always)]
    fn least_of_each(values: &[Self]) -> Self {
        let mut least = [0f32; MAX_LANES];
        for (least, value) in least.iter_mut().zip(&values[..Self::N]) {
            *least = value.least();
        }
        Self::load(&least)
    }
    /// Rounded towards zero. NaN and what leaves i32 gives `i32::MIN`, as on x86.
    fn truncate(self) -> Self::Int;
    /// Rounded to f16, ties to even, and back; for magnitudes up to 65504.
    fn through_half(self) -> Self;
    /// The f16 nearest to a number, ties to even, as its bits; some NaN for NaN.
    fn half(x: f32) -> u16;
    /// The highest bit of each byte, the first byte's lowest.
    fn high_bits(bytes: &[u8; 32]) -> u32;

    /// The nearest whole number, ties to even, for |x| < 2²². Zero has any sign.
    #[inline(always)]
    fn round(self) -> Self {
        (self + Self::splat(MAGIC)) - Self::splat(MAGIC)
    }
    /// `self > other`, false with NaN.
    #[inline(always)]
    fn gt(self, other: Self) -> Self::Mask {
        other.lt(self)
    }
    /// The greatest of the lanes, none of them NaN; +0 for zero.
    #[inline(always)]
    fn greatest(self) -> f32 {
        0.0 - (Self::zero() - self).least()
    }
    /// The number with the magnitude of one and the sign bit of another.
    #[inline(always)]
    fn with_sign(self, sign: Self) -> Self {
        Self::from_bits(self.abs().to_bits() | sign.to_bits() & Self::Int::splat(i32::MIN))
    }
    /// Zero in every lane.
    #[inline(always)]
    fn zero() -> Self {
        Self::splat(0.0)
    }
}

/// Several i32 numbers side by side; sums wrap.
pub trait IntLanes: Copy + Add<Output = Self> + Sub<Output = Self> + BitAnd<Output = Self> + BitOr<Output = Self> {
    /// Number of lanes.
    const N: usize;
    /// As many truth values.
    type Mask: MaskLanes;

    /// The same number in every lane.
    fn splat(x: i32) -> Self;
    /// The first `N` numbers of a slice.
    fn load(x: &[i32]) -> Self;
    /// To the first `N` places of a slice.
    fn store(self, out: &mut [i32]);
    /// The lesser.
    fn min(self, other: Self) -> Self;
    /// The greater.
    fn max(self, other: Self) -> Self;
    /// `self > other`.
    fn gt(self, other: Self) -> Self::Mask;
    /// `self == other`.
    fn eq(self, other: Self) -> Self::Mask;
    /// `if mask { a } else { b }`.
    fn select(mask: Self::Mask, a: Self, b: Self) -> Self;
    /// Shifted left.
    fn shl<const BITS: u32>(self) -> Self;
    /// Shifted right, filled with zeros.
    fn shr<const BITS: u32>(self) -> Self;
    /// Writes each number of each value as a byte, 0 for what is below and 255 for what is above.
    fn store_bytes(values: &[Self], out: &mut [u8]);
}

/// Several truth values side by side.
pub trait MaskLanes: Copy + BitAnd<Output = Self> + BitOr<Output = Self> + Not<Output = Self> {
    /// Number of lanes.
    const N: usize;

    /// Bit i: lane i.
    fn bits(self) -> u32;
    /// Whether any lane is true.
    #[inline(always)]
    fn any(self) -> bool {
        self.bits() != 0
    }
    /// Whether all lanes are true.
    #[inline(always)]
    fn all(self) -> bool {
        !(!self).any()
    }
}

/// A function generic over the lanes. `run` must be `#[inline(always)]`.
pub trait Kernel {
    /// What it returns.
    type Output;
    /// Whether it waits for chains of operations rather than for the registers' units, so that two blocks' chains side by side gain.
    /// AVX2 alone is paired: AVX-512 has as many lanes as can be, and the portable lanes are several registers already.
    const CHAINS: bool = false;
    /// Runs it.
    fn run<F: Lanes>(self) -> Self::Output;
}

/// Runs a kernel with the widest lanes there are.
pub fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(feature = "twins")]
    if vectors() == Vectors::Scalar {
        return kernel.run::<Portable<1>>();
    }
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2")]
        fn wider<K: Kernel>(kernel: K) -> K::Output {
            kernel.run::<avx512::Avx512>()
        }
        #[target_feature(enable = "avx2,f16c")]
        fn wide<K: Kernel>(kernel: K) -> K::Output {
            if K::CHAINS { kernel.run::<pair::Pair<avx2::Avx2>>() } else { kernel.run::<avx2::Avx2>() }
        }
        match vectors() {
            // SAFETY: `vectors` has found all the features that the function needs.
            Vectors::Avx512 => return unsafe { wider(kernel) },
            // SAFETY: `vectors` has found AVX2, and the function needs nothing else.
            Vectors::Avx2 => return unsafe { wide(kernel) },
            _ => {}
        }
    }
    kernel.run::<Portable<8>>()
}

/// Numbers whose bytes [`bytes_of`] makes at a time.
pub(crate) const STEP: usize = 32;

/// The bytes that `f` makes of numbers, `f(at, numbers)` of those from place `at`, as [`IntLanes::store_bytes`] stores them.
#[inline(always)]
pub(crate) fn bytes_of<F: Lanes>(x: &[f32; STEP], out: &mut [u8; STEP], f: impl Fn(usize, F) -> F::Int) {
    /// Registers that are packed together, of those with few lanes. More in one array would stand in memory.
    const TOGETHER: usize = 4;
    let n = TOGETHER.min(STEP / F::N);
    let mut ints = [F::Int::splat(0); TOGETHER];
    for (part, (x, out)) in x.chunks_exact(n * F::N).zip(out.chunks_exact_mut(n * F::N)).enumerate() {
        for (i, (int, x)) in ints[..n].iter_mut().zip(x.chunks_exact(F::N)).enumerate() {
            *int = f((part * n + i) * F::N, F::load(x));
        }
        F::Int::store_bytes(&ints[..n], out);
    }
}

/// 1.5 · 2²³: adding it leaves the rounded integer in the low bits of the mantissa.
const MAGIC: f32 = 12_582_912.0;

/// The nearest integer, ties to even, for |x| < 2²². Beyond that the result is an arbitrary integer, the same as ggml's
/// (`nearest_int` in `ggml-quants.c`).
#[inline(always)]
pub(crate) fn nearest<F: Lanes>(x: F) -> F::Int {
    ((x + F::splat(MAGIC)).to_bits() & F::Int::splat(0x007f_ffff)) - F::Int::splat(0x0040_0000)
}

/// The nearest whole number, ties to even, of any number.
#[inline(always)]
pub(crate) fn round_any<F: Lanes>(x: F) -> F {
    // From 2²³ on there are only whole numbers.
    let limit = F::splat(8_388_608.0);
    F::select(x.abs().lt(limit), ((x.abs() + limit) - limit).with_sign(x), x)
}

#[cfg(test)]
mod tests;
