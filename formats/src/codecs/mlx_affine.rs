//! MLX's affine format: groups of 32, 64 or 128 weights, codes of 2, 3, 4, 5, 6 or 8 bits, value `scale · code + bias`.
//!
//! A group's bytes here: the codes as a little-endian bit stream, then scale, then bias. Decoded values are f32, computed from
//! the stored scale and bias; MLX's own `dequantize` also rounds product and sum to the storage type, its `quantized_matmul`
//! does not.

use super::bits;
use super::flat::{Flat, Layout, MAX_LEN, Shape};
use super::float;
use crate::codec::{Codec, CodecId, Float};

/// One of the affine formats.
pub(super) struct MlxAffine {
    bits: u8,
    group: u16,
    scale: Float,
}

/// The format with these properties, if there is one.
pub(super) fn find(bits: u8, group: u16, scale: Float) -> Option<&'static dyn Codec> {
    const WIDTHS: [u8; 6] = [2, 3, 4, 5, 6, 8];
    const GROUPS: [u16; 3] = [32, 64, 128];
    const FLOATS: [Float; 3] = [Float::F32, Float::F16, Float::BF16];
    const N: usize = WIDTHS.len() * 9;
    static ALL: [Flat<MlxAffine>; N] = {
        let mut all = [const { Flat(MlxAffine { bits: 0, group: 0, scale: Float::F32 }) }; N];
        let mut i = 0;
        while i < N {
            all[i] = Flat(MlxAffine { bits: WIDTHS[i / 9], group: GROUPS[i / 3 % 3], scale: FLOATS[i % 3] });
            i += 1;
        }
        all
    };
    ALL.iter().find(|c| (c.0.bits, c.0.group, c.0.scale) == (bits, group, scale)).map(|c| c as &dyn Codec)
}

impl MlxAffine {
    /// Bytes of a group's codes.
    fn code_bytes(&self) -> usize {
        self.group as usize * self.bits as usize / 8
    }
}

impl Layout for MlxAffine {
    fn id(&self) -> CodecId {
        CodecId::MlxAffine { bits: self.bits, group: self.group, scale: self.scale }
    }
    fn shape(&self) -> Shape {
        Shape { max: ((1u32 << self.bits) - 1) as u8, zero: None, float: self.scale }
    }
    fn len(&self) -> usize {
        self.group as usize
    }
    fn bytes(&self) -> usize {
        self.code_bytes() + 2 * self.scale.size()
    }
    fn write(&self, stored: [f32; 2], codes: &[u8], out: &mut [u8]) {
        let (packed, floats) = out.split_at_mut(self.code_bytes());
        pack(self.bits, codes, packed);
        float::write(self.scale, stored[0], floats);
        float::write(self.scale, stored[1], &mut floats[self.scale.size()..]);
    }
    fn read(&self, bytes: &[u8], codes: &mut [u8]) -> [f32; 2] {
        let (packed, floats) = bytes.split_at(self.code_bytes());
        unpack(self.bits, packed, codes);
        [float::read(self.scale, floats), float::read(self.scale, &floats[self.scale.size()..])]
    }
    fn reference(&self, x: &[f32], _weights: Option<&[f32]>, codes: &mut [u8]) -> [f32; 2] {
        quantize(self.scale, self.shape().max as f32, x, codes)
    }
}

/// 1.5 · 2²³: added to an integer, it leaves that in the low bits of the mantissa.
const MAGIC: f32 = 12_582_912.0;

crate::dispatched! {
    /// `mx.quantize` on CPU: codes up to `levels`, and scale and bias yet to be rounded. The edge of the range with the larger
    /// magnitude gets code 0, and zero gets a code of its own. The codes are chosen with the unrounded scale and bias.
    fn quantize(float: Float, levels: f32, x: &[f32], codes: &mut [u8]) -> [f32; 2] {
        let mut typed = [0f32; MAX_LEN];
        let typed = &mut typed[..x.len()];
        // MLX takes the scales' type from the weights': they have that type to begin with.
        match float {
            Float::F32 => typed.copy_from_slice(x),
            Float::F16 => typed.iter_mut().zip(x).for_each(|(y, &x)| *y = float::saturate_f16(x)),
            Float::BF16 => typed.iter_mut().zip(x).for_each(|(y, &x)| *y = float::saturate_bf16(x)),
        }
        let x = &*typed;
        const LANES: usize = 16;
        let (mut low, mut high) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
        for x in x.as_chunks::<LANES>().0 {
            for i in 0..LANES {
                low[i] = if x[i] < low[i] { x[i] } else { low[i] };
                high[i] = if x[i] > high[i] { x[i] } else { high[i] };
            }
        }
        let min = low.iter().fold(f32::INFINITY, |least, &x| if x < least { x } else { least });
        let max = high.iter().fold(f32::NEG_INFINITY, |most, &x| if x > most { x } else { most });

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

    /// [`bits::pack`] for a width known only now.
    fn pack(width: u8, codes: &[u8], out: &mut [u8]) {
        match width {
            2 => bits::pack::<2>(codes, out),
            3 => bits::pack::<3>(codes, out),
            4 => bits::pack::<4>(codes, out),
            5 => bits::pack::<5>(codes, out),
            6 => bits::pack::<6>(codes, out),
            _ => out.copy_from_slice(codes),
        }
    }

    /// [`bits::unpack`] for a width known only now.
    fn unpack(width: u8, bytes: &[u8], codes: &mut [u8]) {
        match width {
            2 => bits::unpack::<2>(bytes, codes),
            3 => bits::unpack::<3>(bytes, codes),
            4 => bits::unpack::<4>(bytes, codes),
            5 => bits::unpack::<5>(bytes, codes),
            6 => bits::unpack::<6>(bytes, codes),
            _ => codes.copy_from_slice(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_registers_give_the_same_bits() {
        let x: Vec<f32> = (0..128).map(|i| (i as f32 * 12.9898).sin() * 43758.547 % 1.0).collect();
        for float in [Float::F32, Float::F16, Float::BF16] {
            for bits in [2, 3, 4, 5, 6, 8] {
                let levels = ((1 << bits) - 1) as f32;
                let (mut a, mut b) = ([1; 128], [2; 128]);
                assert_eq!(quantize(float, levels, &x, &mut a), portable::quantize(float, levels, &x, &mut b));
                assert_eq!(a, b);
                assert!(a.iter().all(|&code| code as f32 <= levels));
                let (mut c, mut d) = ([1; 128], [2; 128]);
                pack(bits, &a, &mut c[..16 * bits as usize]);
                portable::pack(bits, &a, &mut d[..16 * bits as usize]);
                assert_eq!(c[..16 * bits as usize], d[..16 * bits as usize]);
                unpack(bits, &c[..16 * bits as usize], &mut b);
                assert_eq!(a, b);
                portable::unpack(bits, &c[..16 * bits as usize], &mut b);
                assert_eq!(a, b);
            }
        }
    }
}
