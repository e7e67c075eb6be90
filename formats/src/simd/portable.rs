//! Lanes as arrays, for every processor: the compiler finds the vector instructions that the target always has.

use super::{IntLanes, Lanes, MaskLanes};
use crate::codecs::float::{f16_bits, saturate_f16};
use std::array::from_fn;
use std::ops::{Add, BitAnd, BitOr, Div, Mul, Not, Sub};

/// `K` numbers of type f32.
#[derive(Clone, Copy, Debug)]
pub struct Portable<const K: usize>([f32; K]);
/// `K` numbers of type i32.
#[derive(Clone, Copy, Debug)]
pub struct Ints<const K: usize>([i32; K]);
/// `K` truth values.
#[derive(Clone, Copy, Debug)]
pub struct Bools<const K: usize>([bool; K]);

macro_rules! operators {
    ($name:ident: $($trait:ident $method:ident $f:expr),*) => {$(
        impl<const K: usize> $trait for $name<K> {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                $name(from_fn(|i| $f(self.0[i], other.0[i])))
            }
        }
    )*};
}
operators!(Portable: Add add |a, b| a + b, Sub sub |a, b| a - b, Mul mul |a, b| a * b, Div div |a, b| a / b);
operators!(Ints: Add add i32::wrapping_add, Sub sub i32::wrapping_sub, BitAnd bitand |a, b| a & b, BitOr bitor |a, b| a | b);
operators!(Bools: BitAnd bitand |a, b| a & b, BitOr bitor |a, b| a | b);

impl<const K: usize> Not for Bools<K> {
    type Output = Self;
    #[inline(always)]
    fn not(self) -> Self {
        Bools(self.0.map(|b| !b))
    }
}

impl<const K: usize> MaskLanes for Bools<K> {
    const N: usize = K;

    #[inline(always)]
    fn bits(self) -> u32 {
        (0..K).fold(0, |bits, i| bits | u32::from(self.0[i]) << i)
    }
}

impl<const K: usize> Lanes for Portable<K> {
    const N: usize = K;
    type Int = Ints<K>;
    type Mask = Bools<K>;
    type Quad = [f32; 4];

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Portable([x; K])
    }
    #[inline(always)]
    fn load(x: &[f32]) -> Self {
        let x = &x[..K];
        Portable(from_fn(|i| x[i]))
    }
    #[inline(always)]
    fn store(self, out: &mut [f32]) {
        out[..K].copy_from_slice(&self.0);
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        Portable(self.0.map(f32::sqrt))
    }
    #[inline(always)]
    fn abs(self) -> Self {
        Portable(self.0.map(f32::abs))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Portable(from_fn(|i| if self.0[i] < other.0[i] { self.0[i] } else { other.0[i] }))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Portable(from_fn(|i| if self.0[i] > other.0[i] { self.0[i] } else { other.0[i] }))
    }
    #[inline(always)]
    fn lt(self, other: Self) -> Bools<K> {
        Bools(from_fn(|i| self.0[i] < other.0[i]))
    }
    #[inline(always)]
    fn le(self, other: Self) -> Bools<K> {
        Bools(from_fn(|i| self.0[i] <= other.0[i]))
    }
    #[inline(always)]
    fn eq(self, other: Self) -> Bools<K> {
        Bools(from_fn(|i| self.0[i] == other.0[i]))
    }
    #[inline(always)]
    fn select(mask: Bools<K>, a: Self, b: Self) -> Self {
        Portable(from_fn(|i| if mask.0[i] { a.0[i] } else { b.0[i] }))
    }
    #[inline(always)]
    fn to_bits(self) -> Ints<K> {
        Ints(self.0.map(|x| x.to_bits().cast_signed()))
    }
    #[inline(always)]
    fn from_bits(bits: Ints<K>) -> Self {
        Portable(bits.0.map(|x| f32::from_bits(x.cast_unsigned())))
    }
    #[inline(always)]
    fn from_int(x: Ints<K>) -> Self {
        Portable(x.0.map(|x| x as f32))
    }
    #[inline(always)]
    fn gather(table: &[f32], index: Ints<K>) -> Self {
        Portable(index.0.map(|i| table[i.cast_unsigned() as usize]))
    }
    #[inline(always)]
    fn quad(table: &[f32; 4]) -> [f32; 4] {
        *table
    }
    #[inline(always)]
    fn pick(quad: [f32; 4], index: Ints<K>) -> Self {
        Portable(index.0.map(|i| quad[(i & 3).cast_unsigned() as usize]))
    }
    #[inline(always)]
    fn least(self) -> f32 {
        self.0.into_iter().fold(f32::INFINITY, f32::min)
    }
    #[inline(always)]
    fn truncate(self) -> Ints<K> {
        Ints(self.0.map(|x| if x.abs() < 2_147_483_648.0 { x as i32 } else { i32::MIN }))
    }
    #[inline(always)]
    fn through_half(self) -> Self {
        Portable(self.0.map(saturate_f16))
    }
    #[inline(always)]
    fn half(x: f32) -> u16 {
        f16_bits(x)
    }
    #[inline(always)]
    fn high_bits(bytes: &[u8; 32]) -> u32 {
        // Byte i's bit goes to bit i of the product's top byte.
        let eight = |bytes: &[u8; 8]| {
            let bits = u64::from_le_bytes(*bytes) >> 7 & 0x0101_0101_0101_0101;
            (bits.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u32
        };
        bytes.as_chunks().0.iter().rev().fold(0, |all, bytes| all << 8 | eight(bytes))
    }
}

impl<const K: usize> IntLanes for Ints<K> {
    const N: usize = K;
    type Mask = Bools<K>;

    #[inline(always)]
    fn splat(x: i32) -> Self {
        Ints([x; K])
    }
    #[inline(always)]
    fn load(x: &[i32]) -> Self {
        let x = &x[..K];
        Ints(from_fn(|i| x[i]))
    }
    #[inline(always)]
    fn store(self, out: &mut [i32]) {
        out[..K].copy_from_slice(&self.0);
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Ints(from_fn(|i| self.0[i].min(other.0[i])))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Ints(from_fn(|i| self.0[i].max(other.0[i])))
    }
    #[inline(always)]
    fn gt(self, other: Self) -> Bools<K> {
        Bools(from_fn(|i| self.0[i] > other.0[i]))
    }
    #[inline(always)]
    fn eq(self, other: Self) -> Bools<K> {
        Bools(from_fn(|i| self.0[i] == other.0[i]))
    }
    #[inline(always)]
    fn select(mask: Bools<K>, a: Self, b: Self) -> Self {
        Ints(from_fn(|i| if mask.0[i] { a.0[i] } else { b.0[i] }))
    }
    #[inline(always)]
    fn shl<const BITS: u32>(self) -> Self {
        Ints(self.0.map(|x| x << BITS))
    }
    #[inline(always)]
    fn shr<const BITS: u32>(self) -> Self {
        Ints(self.0.map(|x| (x.cast_unsigned() >> BITS).cast_signed()))
    }
    #[inline(always)]
    fn store_bytes(values: &[Self], out: &mut [u8]) {
        for (value, out) in values.iter().zip(out[..K * values.len()].as_chunks_mut::<K>().0) {
            *out = value.0.map(|x| x.clamp(0, 255) as u8);
        }
    }
}
