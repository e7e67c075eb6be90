//! Two registers as one value of twice the lanes.
//!
//! A search is a chain of dependent additions, and a processor that waits for one addition could start several. Pairs make two chains
//! of each, so that it works on the second while it waits for the first.

use super::{COLUMNS, IntLanes, Lanes, MAX_LANES, MaskLanes};
use std::array::from_fn;
use std::ops::{Add, BitAnd, BitOr, Div, Mul, Not, Sub};

/// The lanes of the first value, then those of the second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair<T>(T, T);

macro_rules! operators {
    ($($trait:ident $method:ident),*) => {$(
        impl<T: $trait<Output = T>> $trait for Pair<T> {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                Pair(self.0.$method(other.0), self.1.$method(other.1))
            }
        }
    )*};
}
operators!(Add add, Sub sub, Mul mul, Div div, BitAnd bitand, BitOr bitor);

impl<T: Not<Output = T>> Not for Pair<T> {
    type Output = Self;
    #[inline(always)]
    fn not(self) -> Self {
        Pair(!self.0, !self.1)
    }
}

/// Methods of pairs, done to both.
macro_rules! both {
    ($($name:ident($($arg:ident),*) -> $out:ty),*) => {$(
        #[inline(always)]
        fn $name(self $(, $arg: Self)*) -> $out {
            Pair(self.0.$name($($arg.0),*), self.1.$name($($arg.1),*))
        }
    )*};
}

impl<M: MaskLanes> MaskLanes for Pair<M> {
    const N: usize = 2 * M::N;

    #[inline(always)]
    fn bits(self) -> u32 {
        self.0.bits() | self.1.bits() << M::N
    }
    #[inline(always)]
    fn any(self) -> bool {
        (self.0 | self.1).any()
    }
}

impl<I: IntLanes> IntLanes for Pair<I> {
    const N: usize = 2 * I::N;
    type Mask = Pair<I::Mask>;

    both!(min(other) -> Self, max(other) -> Self, gt(other) -> Pair<I::Mask>, eq(other) -> Pair<I::Mask>);

    #[inline(always)]
    fn splat(x: i32) -> Self {
        Pair(I::splat(x), I::splat(x))
    }
    #[inline(always)]
    fn load(x: &[i32]) -> Self {
        Pair(I::load(x), I::load(&x[I::N..]))
    }
    #[inline(always)]
    fn store(self, out: &mut [i32]) {
        let (first, second) = out.split_at_mut(I::N);
        self.0.store(first);
        self.1.store(second);
    }
    #[inline(always)]
    fn select(mask: Pair<I::Mask>, a: Self, b: Self) -> Self {
        Pair(I::select(mask.0, a.0, b.0), I::select(mask.1, a.1, b.1))
    }
    #[inline(always)]
    fn shl<const BITS: u32>(self) -> Self {
        Pair(self.0.shl::<BITS>(), self.1.shl::<BITS>())
    }
    #[inline(always)]
    fn shr<const BITS: u32>(self) -> Self {
        Pair(self.0.shr::<BITS>(), self.1.shr::<BITS>())
    }
    #[inline(always)]
    fn store_bytes(values: &[Self], out: &mut [u8]) {
        let (twos, rest) = values.as_chunks::<2>();
        let (wide, narrow) = out.split_at_mut(2 * Self::N * twos.len());
        for (&[a, b], out) in twos.iter().zip(wide.chunks_exact_mut(2 * Self::N)) {
            I::store_bytes(&[a.0, a.1, b.0, b.1], out);
        }
        for (one, out) in rest.iter().zip(narrow.chunks_exact_mut(Self::N)) {
            I::store_bytes(&[one.0, one.1], out);
        }
    }
}

impl<F: Lanes> Lanes for Pair<F> {
    const N: usize = 2 * F::N;
    type Int = Pair<F::Int>;
    type Mask = Pair<F::Mask>;
    type Quad = F::Quad;

    both!(round() -> Self, sqrt() -> Self, abs() -> Self, min(other) -> Self, max(other) -> Self, through_half() -> Self);
    both!(lt(other) -> Pair<F::Mask>, le(other) -> Pair<F::Mask>, eq(other) -> Pair<F::Mask>);
    both!(to_bits() -> Pair<F::Int>, truncate() -> Pair<F::Int>);

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Pair(F::splat(x), F::splat(x))
    }
    #[inline(always)]
    fn load(x: &[f32]) -> Self {
        Pair(F::load(x), F::load(&x[F::N..]))
    }
    #[inline(always)]
    fn store(self, out: &mut [f32]) {
        let (first, second) = out.split_at_mut(F::N);
        self.0.store(first);
        self.1.store(second);
    }
    #[inline(always)]
    fn select(mask: Pair<F::Mask>, a: Self, b: Self) -> Self {
        Pair(F::select(mask.0, a.0, b.0), F::select(mask.1, a.1, b.1))
    }
    #[inline(always)]
    fn from_bits(bits: Pair<F::Int>) -> Self {
        Pair(F::from_bits(bits.0), F::from_bits(bits.1))
    }
    #[inline(always)]
    fn from_int(x: Pair<F::Int>) -> Self {
        Pair(F::from_int(x.0), F::from_int(x.1))
    }
    #[inline(always)]
    fn gather(table: &[f32], index: Pair<F::Int>) -> Self {
        Pair(F::gather(table, index.0), F::gather(table, index.1))
    }
    #[inline(always)]
    fn quad(table: &[f32; 4]) -> F::Quad {
        F::quad(table)
    }
    #[inline(always)]
    fn pick(quad: F::Quad, index: Pair<F::Int>) -> Self {
        Pair(F::pick(quad, index.0), F::pick(quad, index.1))
    }
    #[inline(always)]
    fn least(self) -> f32 {
        self.0.min(self.1).least()
    }
    #[inline(always)]
    fn transpose(rows: &[&[f32]; MAX_LANES], at: usize, out: &mut [Self; COLUMNS]) {
        let (mut first, mut second) = ([F::zero(); COLUMNS], [F::zero(); COLUMNS]);
        F::transpose(rows, at, &mut first);
        F::transpose(&from_fn(|i| rows[(F::N + i) % MAX_LANES]), at, &mut second);
        *out = from_fn(|i| Pair(first[i], second[i]));
    }
    #[inline(always)]
    fn prefetch(x: &[f32]) {
        F::prefetch(x);
    }
    #[inline(always)]
    fn half(x: f32) -> u16 {
        F::half(x)
    }
    #[inline(always)]
    fn high_bits(bytes: &[u8; 32]) -> u32 {
        F::high_bits(bytes)
    }
}
