//! MLX's affine format: groups of 32, 64 or 128 weights, codes of 4 or 8 bits, value `scale · code + bias`.
//!
//! A group's bytes here: the codes as a little-endian bit stream, then scale, then bias. Decoded values are f32, computed from
//! the stored scale and bias; MLX's own `dequantize` also rounds product and sum to the storage type, its `quantized_matmul`
//! does not.

use super::flat::{Flat, Layout, Shape};
use super::float::{self, saturate};
use crate::codec::{Codec, CodecId, Float};

/// One of the affine formats.
pub(super) struct MlxAffine {
    bits: u8,
    group: u16,
    scale: Float,
}

/// The format with these properties, if there is one.
pub(super) fn find(bits: u8, group: u16, scale: Float) -> Option<&'static dyn Codec> {
    static ALL: [Flat<MlxAffine>; 18] = {
        const WIDTHS: [u8; 2] = [4, 8];
        const GROUPS: [u16; 3] = [32, 64, 128];
        const FLOATS: [Float; 3] = [Float::F32, Float::F16, Float::BF16];
        let mut all = [const { Flat(MlxAffine { bits: 0, group: 0, scale: Float::F32 }) }; 18];
        let mut i = 0;
        while i < all.len() {
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
    fn write(&self, stored: [f32; 2], codes: &[u8], out: &mut [u8]) {
        let (packed, floats) = out.split_at_mut(self.code_bytes());
        if self.bits == 8 {
            packed.copy_from_slice(codes);
        } else {
            for (out, pair) in packed.iter_mut().zip(codes.chunks_exact(2)) {
                *out = (pair[0] & 15) | pair[1] << 4;
            }
        }
        float::write(self.scale, stored[0], floats);
        float::write(self.scale, stored[1], &mut floats[self.scale.size()..]);
    }
    #[inline(always)]
    fn read(&self, bytes: &[u8], codes: &mut [u8]) -> [f32; 2] {
        let (packed, floats) = bytes.split_at(self.code_bytes());
        if self.bits == 8 {
            codes.copy_from_slice(packed);
        } else {
            for (pair, b) in codes.chunks_exact_mut(2).zip(packed) {
                pair[0] = b & 15;
                pair[1] = b >> 4;
            }
        }
        [float::read(self.scale, floats), float::read(self.scale, &floats[self.scale.size()..])]
    }

    /// `mx.quantize` on CPU. The range's edge of larger magnitude gets code 0, and zero gets a code of its own. The codes are
    /// chosen with the unrounded scale and bias.
    #[inline(always)]
    fn reference(&self, x: &[f32], codes: &mut [u8]) -> [f32; 2] {
        // MLX takes the scales' type from the weights': they have that type to begin with.
        let x = || x.iter().map(|&x| saturate(self.scale, x));
        let (min, max) = x().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), x| (lo.min(x), hi.max(x)));
        let levels = self.shape().max as f32;
        let low_edge = min.abs() > max.abs();
        let mut scale = ((max - min) / levels).max(1e-7);
        if !low_edge {
            scale = -scale;
        }
        let edge = if low_edge { min } else { max };
        let zero_code = (edge / scale).round_ties_even();
        let mut bias = 0.0;
        if zero_code != 0.0 {
            scale = edge / zero_code;
            bias = edge;
        }
        for (code, x) in codes.iter_mut().zip(x()) {
            *code = ((x - bias) / scale).round_ties_even().clamp(0.0, levels) as u8;
        }
        [scale, bias]
    }
}
