//! MLX's affine format: groups of 32, 64 or 128 weights, codes of 2, 3, 4, 5, 6 or 8 bits, value `scale · code + bias`.
//!
//! A group's bytes here: the codes as a little-endian bit stream, then scale, then bias. Decoded values are f32, computed from
//! the stored scale and bias; MLX's own `dequantize` also rounds product and sum to the storage type, its `quantized_matmul`
//! does not.

use super::bits;
use super::block::range;
use super::flat::{Flat, Layout, Lines, MAX_LEN, Shape};
use super::float::{self, bf16_bits, limits};
use crate::codec::{Codec, CodecId, Float, Grid};
use crate::simd::{IntLanes, Lanes, MaskLanes, bytes_of, round_any};

/// The properties of one of the affine formats.
#[derive(Clone, Copy)]
struct Format {
    bits: u8,
    group: u16,
    scale: Float,
}

/// One of the affine formats.
pub(super) struct MlxAffine(Flat<Format>);

/// The format with these properties, if there is one.
pub(super) fn find(bits: u8, group: u16, scale: Float) -> Option<&'static dyn Codec> {
    const WIDTHS: [u8; 6] = [2, 3, 4, 5, 6, 8];
    const GROUPS: [u16; 3] = [32, 64, 128];
    const FLOATS: [Float; 3] = [Float::F32, Float::F16, Float::BF16];
    const N: usize = WIDTHS.len() * 9;
    static ALL: [MlxAffine; N] = {
        let mut all = [const { MlxAffine(Flat(Format { bits: 0, group: 0, scale: Float::F32 })) }; N];
        let mut i = 0;
        while i < N {
            all[i] = MlxAffine(Flat(Format { bits: WIDTHS[i / 9], group: GROUPS[i / 3 % 3], scale: FLOATS[i % 3] }));
            i += 1;
        }
        all
    };
    ALL.iter().find(|c| c.0.id() == CodecId::MlxAffine { bits, group, scale }).map(|c| c as &dyn Codec)
}

/// Whole rows at a time; the grid is that of all formats with one scale per block.
impl Codec for MlxAffine {
    fn id(&self) -> CodecId {
        self.0.id()
    }
    fn block_len(&self) -> usize {
        Layout::len(&self.0.0)
    }
    fn block_bytes(&self) -> usize {
        self.0.0.bytes()
    }
    fn encode(&self, row: &[f32], _importance: Option<&[f32]>, out: &mut [u8]) {
        let Format { bits, group, scale } = self.0.0;
        macro_rules! by_size {
            ($($bits:literal),*) => {
                match (bits, group) {
                    $(($bits, 32) => Flat(Sized::<$bits, 32>(scale)).encode(row, None, out),
                    ($bits, 64) => Flat(Sized::<$bits, 64>(scale)).encode(row, None, out),
                    ($bits, 128) => Flat(Sized::<$bits, 128>(scale)).encode(row, None, out),)*
                    _ => self.0.encode(row, None, out),
                }
            };
        }
        by_size!(2, 3, 4, 5, 6, 8)
    }
    fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len() / self.block_bytes() * self.block_len(), out.len(), "output length");
        decode(self.0.0, bytes, out);
    }
    fn grid(&self) -> Option<&dyn Grid> {
        self.0.grid()
    }
}

/// Calls a function of the width with the width as a constant, and with the types named first.
macro_rules! by_width {
    ($format:expr, $function:ident::<$($ty:ident)?>($($arg:expr),*)) => {
        match $format.bits {
            2 => $function::<2, $($ty)?>($format.scale, $($arg),*),
            3 => $function::<3, $($ty)?>($format.scale, $($arg),*),
            4 => $function::<4, $($ty)?>($format.scale, $($arg),*),
            5 => $function::<5, $($ty)?>($format.scale, $($arg),*),
            6 => $function::<6, $($ty)?>($format.scale, $($arg),*),
            _ => $function::<8, $($ty)?>($format.scale, $($arg),*),
        }
    };
}

impl Format {
    /// Bytes of a group's codes.
    fn code_bytes(&self) -> usize {
        self.group as usize * self.bits as usize / 8
    }
}

impl Layout for Format {
    fn id(&self) -> CodecId {
        CodecId::MlxAffine { bits: self.bits, group: self.group, scale: self.scale }
    }
    #[inline(always)]
    fn shape(&self) -> Shape {
        Shape { max: ((1u32 << self.bits) - 1) as u8, zero: None, float: self.scale }
    }
    #[inline(always)]
    fn len(&self) -> usize {
        self.group as usize
    }
    #[inline(always)]
    fn bytes(&self) -> usize {
        self.code_bytes() + 2 * self.scale.size()
    }
    #[inline(always)]
    fn write<F: Lanes>(&self, stored: [f32; 2], codes: &[u8], out: &mut [u8]) {
        by_width!(self, pack_group::<F>(stored, codes, out))
    }
    #[inline(always)]
    fn read(&self, bytes: &[u8], codes: &mut [u8]) -> [f32; 2] {
        unpack(*self, bytes, codes)
    }
    #[inline(always)]
    fn extremes<F: Lanes>(&self, x: &[f32]) -> (F, F) {
        range(x, f32::NEG_INFINITY, f32::INFINITY)
    }
    #[inline(always)]
    fn lines<F: Lanes>(&self, _blocks: &[f32], low: F, high: F) -> Lines<F> {
        lines(self, low, high)
    }
    #[inline(always)]
    fn codes<F: Lanes>(&self, x: &[f32], line: [f32; 2], codes: &mut [u8]) {
        choose::<F>(self, x, line, codes);
    }
}

/// The format with its sizes known to the compiler, for encoding.
struct Sized<const BITS: usize, const GROUP: usize>(Float);

impl<const BITS: usize, const GROUP: usize> Layout for Sized<BITS, GROUP> {
    fn id(&self) -> CodecId {
        Format { bits: BITS as u8, group: GROUP as u16, scale: self.0 }.id()
    }
    #[inline(always)]
    fn shape(&self) -> Shape {
        Shape { max: ((1u32 << BITS) - 1) as u8, zero: None, float: self.0 }
    }
    #[inline(always)]
    fn len(&self) -> usize {
        GROUP
    }
    #[inline(always)]
    fn bytes(&self) -> usize {
        GROUP * BITS / 8 + 2 * self.0.size()
    }
    #[inline(always)]
    fn write<F: Lanes>(&self, stored: [f32; 2], codes: &[u8], out: &mut [u8]) {
        pack_group::<BITS, F>(self.0, stored, &codes[..GROUP], out);
    }
    fn read(&self, bytes: &[u8], codes: &mut [u8]) -> [f32; 2] {
        unpack_group::<BITS>(self.0, bytes, codes)
    }
    #[inline(always)]
    fn extremes<F: Lanes>(&self, x: &[f32]) -> (F, F) {
        range(&x[..GROUP], f32::NEG_INFINITY, f32::INFINITY)
    }
    #[inline(always)]
    fn lines<F: Lanes>(&self, _blocks: &[f32], low: F, high: F) -> Lines<F> {
        lines(self, low, high)
    }
    #[inline(always)]
    fn codes<F: Lanes>(&self, x: &[f32], line: [f32; 2], codes: &mut [u8]) {
        choose::<F>(self, &x[..GROUP], line, &mut codes[..GROUP]);
    }
}

/// `mx.quantize` on CPU: the edge of the range with the larger magnitude gets code 0, and zero gets a code of its own. The codes are
/// chosen with the unrounded scale and bias.
#[inline(always)]
fn lines<F: Lanes>(layout: &impl Layout, low: F, high: F) -> Lines<F> {
    let Shape { max, float, .. } = layout.shape();
    // MLX takes the scales' type from the weights': they have that type to begin with. Rounding keeps the order.
    let (low, high) = (typed(float, low), typed(float, high));
    let low_edge = low.abs().gt(high.abs());
    let step = ((high - low) / F::splat(max as f32)).max(F::splat(1e-7));
    let edge = F::select(low_edge, low, high);
    let scale = F::select(low_edge, step, F::zero() - step);
    let zero_code = round_any(edge / scale);
    let none = zero_code.eq(F::zero());
    let scale = F::select(none, scale, edge / zero_code);
    let bias = F::select(none, F::zero(), edge);
    Lines { scale, bias, origin: bias, factor: scale }
}

/// 1.5 · 2²³: added to an integer, it leaves that in the low bits of the mantissa.
const MAGIC: f32 = 12_582_912.0;

/// Rounded to a type, infinite values to the largest finite ones.
#[inline(always)]
fn typed<F: Lanes>(float: Float, x: F) -> F {
    let finite = limits(float, x);
    match float {
        Float::F32 => finite,
        Float::F16 => finite.through_half(),
        Float::BF16 => {
            let bits = finite.to_bits();
            let even = bits.shr::<16>() & F::Int::splat(1);
            F::from_bits((bits + F::Int::splat(0x7fff) + even) & F::Int::splat(-0x1_0000))
        }
    }
}

/// Whether some of the weights have bits that BF16 does not have.
#[inline(always)]
fn has_low_bits<F: Lanes>(x: &[f32]) -> bool {
    let mut all = F::Int::splat(0);
    for x in x.chunks_exact(F::N) {
        all = all | F::load(x).to_bits();
    }
    !(all & F::Int::splat(0xffff)).eq(F::Int::splat(0)).all()
}

/// The codes of a group's weights for a bias and a scale.
#[inline(always)]
fn choose<F: Lanes>(layout: &impl Layout, x: &[f32], line: [f32; 2], codes: &mut [u8]) {
    let Shape { max, float, .. } = layout.shape();
    match float {
        // Most weights have that type already.
        Float::BF16 if !has_low_bits::<F>(x) => choose_typed::<F>(Float::F32, max, x, line, codes),
        Float::BF16 => choose_typed::<F>(Float::BF16, max, x, line, codes),
        Float::F16 => choose_typed::<F>(Float::F16, max, x, line, codes),
        Float::F32 => choose_typed::<F>(Float::F32, max, x, line, codes),
    }
}

#[inline(always)]
fn choose_typed<F: Lanes>(float: Float, max: u8, x: &[f32], [bias, scale]: [f32; 2], codes: &mut [u8]) {
    let (levels, bias, scale) = (F::splat(max as f32), F::splat(bias), F::splat(scale));
    for (codes, x) in codes.as_chunks_mut().0.iter_mut().zip(x.as_chunks().0) {
        bytes_of::<F>(x, codes, |_, x| {
            // Limits are integers, so that rounding after them is the same as before.
            let t = ((typed(float, x) - bias) / scale).max(F::zero()).min(levels);
            (t + F::splat(MAGIC)).to_bits() - F::splat(MAGIC).to_bits()
        });
    }
}

/// Codes, scale and bias of a group to its bytes.
#[inline(always)]
fn pack_group<const BITS: usize, F: Lanes>(float: Float, stored: [f32; 2], codes: &[u8], out: &mut [u8]) {
    let (packed, floats) = out.split_at_mut(codes.len() * BITS / 8);
    bits::pack::<BITS>(codes, packed);
    let (scale, bias) = floats.split_at_mut(float.size());
    match float {
        Float::F32 => {
            scale.copy_from_slice(&stored[0].to_le_bytes());
            bias.copy_from_slice(&stored[1].to_le_bytes());
        }
        Float::BF16 => {
            scale.copy_from_slice(&bf16_bits(stored[0]).to_le_bytes());
            bias.copy_from_slice(&bf16_bits(stored[1]).to_le_bytes());
        }
        Float::F16 => {
            scale.copy_from_slice(&F::half(stored[0]).to_le_bytes());
            bias.copy_from_slice(&F::half(stored[1]).to_le_bytes());
        }
    }
}

/// The inverse of [`pack_group`].
#[inline(always)]
fn unpack_group<const BITS: usize>(float: Float, bytes: &[u8], codes: &mut [u8]) -> [f32; 2] {
    let (packed, floats) = bytes.split_at(codes.len() * BITS / 8);
    bits::unpack::<BITS>(packed, codes);
    [float::read(float, floats), float::read(float, &floats[float.size()..])]
}

#[inline(always)]
fn decode_groups<const BITS: usize>(float: Float, group: u16, bytes: &[u8], out: &mut [f32]) {
    let len = usize::from(group);
    let mut codes = [0u8; MAX_LEN];
    for (bytes, out) in bytes.chunks_exact(len * BITS / 8 + 2 * float.size()).zip(out.chunks_exact_mut(len)) {
        let [scale, bias] = unpack_group::<BITS>(float, bytes, &mut codes[..len]);
        for (value, &code) in out.iter_mut().zip(&codes) {
            *value = code as f32 * scale + bias;
        }
    }
}

crate::dispatched! {
    /// The values of whole groups.
    fn decode(format: Format, bytes: &[u8], out: &mut [f32]) {
        by_width!(format, decode_groups::<>(format.group, bytes, out))
    }

    /// [`unpack_group`] for a width known only now.
    fn unpack(format: Format, bytes: &[u8], codes: &mut [u8]) -> [f32; 2] {
        by_width!(format, unpack_group::<>(bytes, codes))
    }
}

#[cfg(test)]
mod tests {
    use super::super::flat::Encode;
    use super::*;
    use crate::simd::{Kernel, Portable};

    #[test]
    fn wide_registers_give_the_same_bits() {
        let x: Vec<f32> = (0..256).map(|i| (i as f32 * 12.9898).sin() * 43758.547 % 1.0).collect();
        for scale in [Float::F32, Float::F16, Float::BF16] {
            for bits in [2, 3, 4, 5, 6, 8] {
                let format = Format { bits, group: 64, scale };
                let (mut a, mut b) = (vec![1; 4 * format.bytes()], vec![2; 4 * format.bytes()]);
                Flat(format).encode(&x, None, &mut a);
                Encode { layout: &format, x: &x, out: &mut b }.run::<Portable<1>>();
                assert_eq!(a, b);
                let (mut u, mut v, mut w) = ([0.0; 256], [1.0; 256], [2.0; 256]);
                decode(format, &a, &mut u);
                portable::decode(format, &a, &mut v);
                // Block by block, as the grid has it.
                Flat(format).decode(&a, &mut w);
                assert_eq!((u, v), (w, w));
            }
        }
    }
}
