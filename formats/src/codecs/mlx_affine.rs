//! MLX's affine format: groups of 32, 64 or 128 weights, codes of 2, 3, 4, 5, 6 or 8 bits, value `scale · code + bias`.
//!
//! A group's bytes here: the codes as a little-endian bit stream, then scale, then bias. Decoded values are f32, computed from
//! the stored scale and bias; MLX's own `dequantize` also rounds product and sum to the storage type, its `quantized_matmul`
//! does not.

use super::bits;
use super::flat::{Flat, Layout, MAX_LEN, Shape};
use super::float;
use crate::codec::{Codec, CodecId, Float, Grid};
use crate::simd::Lanes;

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
        assert_eq!(row.len() / self.block_len() * self.block_bytes(), out.len(), "output length");
        encode(self.0.0, row, out);
    }
    fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len() / self.block_bytes() * self.block_len(), out.len(), "output length");
        decode(self.0.0, bytes, out);
    }
    fn grid(&self) -> Option<&dyn Grid> {
        self.0.grid()
    }
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
        pack(*self, stored, codes, out);
    }
    #[inline(always)]
    fn read(&self, bytes: &[u8], codes: &mut [u8]) -> [f32; 2] {
        unpack(*self, bytes, codes)
    }
    fn reference<F: Lanes>(&self, x: &[f32], codes: &mut [u8]) -> [f32; 2] {
        quantize(*self, x, codes)
    }
}

/// 1.5 · 2²³: added to an integer, it leaves that in the low bits of the mantissa.
const MAGIC: f32 = 12_582_912.0;
/// Lanes of the search for the range; they divide every group.
const LANES: usize = 16;

/// Smallest and largest of the values.
#[inline(always)]
fn range(x: &[f32]) -> (f32, f32) {
    let (mut low, mut high) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    for x in x.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            low[i] = if x[i] < low[i] { x[i] } else { low[i] };
            high[i] = if x[i] > high[i] { x[i] } else { high[i] };
        }
    }
    // Through memory: a compiler that saw what follows would arrange the loop for it.
    let (mut low, mut high) = (std::hint::black_box(low), std::hint::black_box(high));
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            low[i] = if low[i + n] < low[i] { low[i + n] } else { low[i] };
            high[i] = if high[i + n] > high[i] { high[i + n] } else { high[i] };
        }
        n /= 2;
    }
    (low[0], high[0])
}

/// `mx.quantize` on CPU: codes, and scale and bias yet to be rounded. The edge of the range with the larger magnitude gets code 0,
/// and zero gets a code of its own. The codes are chosen with the unrounded scale and bias.
#[inline(always)]
fn quantize_group(format: Format, x: &[f32], codes: &mut [u8]) -> [f32; 2] {
    let levels = format.shape().max as f32;
    // MLX takes the scales' type from the weights': they have that type to begin with.
    let mut typed = [0f32; MAX_LEN];
    let typed = &mut typed[..x.len()];
    let x = match format.scale {
        Float::F32 => x,
        Float::F16 => {
            typed.iter_mut().zip(x).for_each(|(y, &x)| *y = float::saturate_f16(x));
            &*typed
        }
        Float::BF16 => {
            typed.iter_mut().zip(x).for_each(|(y, &x)| *y = float::saturate_bf16(x));
            &*typed
        }
    };
    let (min, max) = range(x);
    let low_edge = min.abs() > max.abs();
    let step = ((max - min) / levels).max(1e-7);
    let edge = if low_edge { min } else { max };
    let mut scale = if low_edge { step } else { -step };
    let mut bias = 0.0;
    let zero_code = (edge / scale).round_ties_even();
    if zero_code != 0.0 {
        scale = edge / zero_code;
        bias = edge;
    }
    for (code, &x) in codes.iter_mut().zip(x) {
        // Limits are integers, so that rounding after them is the same as before.
        let t = (x - bias) / scale;
        let t = if t > 0.0 { t } else { 0.0 };
        let t = if t < levels { t } else { levels };
        *code = (t + MAGIC).to_bits() as u8;
    }
    [scale, bias]
}

/// Codes, scale and bias of a group to its bytes.
#[inline(always)]
fn pack_group<const BITS: usize>(format: Format, stored: [f32; 2], codes: &[u8], out: &mut [u8]) {
    let (packed, floats) = out.split_at_mut(codes.len() * BITS / 8);
    bits::pack::<BITS>(codes, packed);
    let (scale, bias) = floats.split_at_mut(format.scale.size());
    match format.scale {
        Float::F32 => {
            scale.copy_from_slice(&stored[0].to_le_bytes());
            bias.copy_from_slice(&stored[1].to_le_bytes());
        }
        Float::BF16 => {
            scale.copy_from_slice(&float::saturate_bf16(stored[0]).to_le_bytes()[2..]);
            bias.copy_from_slice(&float::saturate_bf16(stored[1]).to_le_bytes()[2..]);
        }
        Float::F16 => {
            float::write(Float::F16, float::saturate_f16(stored[0]), scale);
            float::write(Float::F16, float::saturate_f16(stored[1]), bias);
        }
    }
}

/// The inverse of [`pack_group`].
#[inline(always)]
fn unpack_group<const BITS: usize>(format: Format, bytes: &[u8], codes: &mut [u8]) -> [f32; 2] {
    let (packed, floats) = bytes.split_at(codes.len() * BITS / 8);
    bits::unpack::<BITS>(packed, codes);
    [float::read(format.scale, floats), float::read(format.scale, &floats[format.scale.size()..])]
}

#[inline(always)]
fn encode_groups<const BITS: usize>(format: Format, row: &[f32], out: &mut [u8]) {
    let len = format.len();
    let mut codes = [0u8; MAX_LEN];
    for (x, out) in row.chunks_exact(len).zip(out.chunks_exact_mut(format.bytes())) {
        let stored = quantize_group(format, x, &mut codes[..len]);
        pack_group::<BITS>(format, stored, &codes[..len], out);
    }
}

#[inline(always)]
fn decode_groups<const BITS: usize>(format: Format, bytes: &[u8], out: &mut [f32]) {
    let len = format.len();
    let mut codes = [0u8; MAX_LEN];
    for (bytes, out) in bytes.chunks_exact(format.bytes()).zip(out.chunks_exact_mut(len)) {
        let [scale, bias] = unpack_group::<BITS>(format, bytes, &mut codes[..len]);
        for (value, &code) in out.iter_mut().zip(&codes) {
            *value = code as f32 * scale + bias;
        }
    }
}

/// Calls a function of the width with the width as a constant.
macro_rules! by_width {
    ($format:expr, $function:ident($($arg:expr),*)) => {
        match $format.bits {
            2 => $function::<2>($format, $($arg),*),
            3 => $function::<3>($format, $($arg),*),
            4 => $function::<4>($format, $($arg),*),
            5 => $function::<5>($format, $($arg),*),
            6 => $function::<6>($format, $($arg),*),
            _ => $function::<8>($format, $($arg),*),
        }
    };
}

crate::dispatched! {
    /// The bytes of whole groups.
    fn encode(format: Format, row: &[f32], out: &mut [u8]) {
        by_width!(format, encode_groups(row, out))
    }

    /// The values of whole groups.
    fn decode(format: Format, bytes: &[u8], out: &mut [f32]) {
        by_width!(format, decode_groups(bytes, out))
    }

    /// [`quantize_group`].
    fn quantize(format: Format, x: &[f32], codes: &mut [u8]) -> [f32; 2] {
        quantize_group(format, x, codes)
    }

    /// [`pack_group`] for a width known only now.
    fn pack(format: Format, stored: [f32; 2], codes: &[u8], out: &mut [u8]) {
        by_width!(format, pack_group(stored, codes, out))
    }

    /// [`unpack_group`] for a width known only now.
    fn unpack(format: Format, bytes: &[u8], codes: &mut [u8]) -> [f32; 2] {
        by_width!(format, unpack_group(bytes, codes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_registers_give_the_same_bits() {
        let x: Vec<f32> = (0..256).map(|i| (i as f32 * 12.9898).sin() * 43758.547 % 1.0).collect();
        for scale in [Float::F32, Float::F16, Float::BF16] {
            for bits in [2, 3, 4, 5, 6, 8] {
                let format = Format { bits, group: 64, scale };
                let (mut a, mut b) = (vec![1; 4 * format.bytes()], vec![2; 4 * format.bytes()]);
                encode(format, &x, &mut a);
                portable::encode(format, &x, &mut b);
                assert_eq!(a, b);
                let (mut u, mut v, mut w) = ([0.0; 256], [1.0; 256], [2.0; 256]);
                decode(format, &a, &mut u);
                portable::decode(format, &a, &mut v);
                // Block by block, as the grid has it.
                Flat(format).decode(&a, &mut w);
                assert_eq!((u, v), (w, w));
                Flat(format).encode(&x, None, &mut b);
                assert_eq!(a, b);
            }
        }
    }
}
