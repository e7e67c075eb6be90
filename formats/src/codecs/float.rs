//! Plain floating-point storage: f32, f16, bf16, one value per "block", little-endian.

use crate::codec::{Codec, CodecId, Float, Grid};

/// The codec that stores values of one [`Float`] type, rounded to nearest, ties to even.
pub struct Plain(pub(super) Float);

impl Codec for Plain {
    fn id(&self) -> CodecId {
        self.0.codec()
    }
    fn block_len(&self) -> usize {
        1
    }
    fn block_bytes(&self) -> usize {
        self.0.size()
    }
    fn encode(&self, row: &[f32], _importance: Option<&[f32]>, out: &mut [u8]) {
        assert_eq!(row.len() * self.0.size(), out.len(), "output length");
        match self.0 {
            Float::F32 => each(row, out, |x| x.to_le_bytes()),
            Float::F16 => each(row, out, |x| half::f16::from_f32(x).to_le_bytes()),
            Float::BF16 => each(row, out, |x| half::bf16::from_f32(x).to_le_bytes()),
        }
    }
    fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(out.len() * self.0.size(), bytes.len(), "output length");
        for (x, b) in out.iter_mut().zip(bytes.chunks_exact(self.0.size())) {
            *x = read(self.0, b);
        }
    }
    fn grid(&self) -> Option<&dyn Grid> {
        None
    }
}

fn each<const N: usize>(row: &[f32], out: &mut [u8], convert: impl Fn(f32) -> [u8; N]) {
    for (&x, b) in row.iter().zip(out.chunks_exact_mut(N)) {
        b.copy_from_slice(&convert(x));
    }
}

/// The value of type `float` at the start of `bytes`.
#[inline]
pub(crate) fn read(float: Float, bytes: &[u8]) -> f32 {
    match float {
        Float::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        Float::F16 => half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        Float::BF16 => half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
    }
}

/// Writes `x`, rounded to `float`, to the start of `bytes`.
#[inline]
pub(super) fn write(float: Float, x: f32, bytes: &mut [u8]) {
    match float {
        Float::F32 => bytes[..4].copy_from_slice(&x.to_le_bytes()),
        Float::F16 => bytes[..2].copy_from_slice(&half::f16::from_f32(x).to_le_bytes()),
        Float::BF16 => bytes[..2].copy_from_slice(&half::bf16::from_f32(x).to_le_bytes()),
    }
}

/// `x` rounded to `float`; what would round to infinity becomes the largest finite value, so that no finite weight can
/// make a whole block infinite.
pub(super) fn saturate(float: Float, x: f32) -> f32 {
    let limit = match float {
        Float::F32 => f32::MAX,
        Float::F16 => half::f16::MAX.to_f32(),
        Float::BF16 => half::bf16::MAX.to_f32(),
    };
    float.round(x).clamp(-limit, limit)
}

/// [`saturate`] for BF16 without branches, for loops over many values.
#[inline(always)]
pub(super) fn saturate_bf16(x: f32) -> f32 {
    const MAX: f32 = f32::from_bits(0x7f7f_0000);
    let bits = x.to_bits();
    let rounded = f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000);
    if x.abs() < MAX { rounded } else { x.clamp(-MAX, MAX) }
}

/// [`saturate`] for F16 without branches, for loops over many values.
#[inline(always)]
pub(super) fn saturate_f16(x: f32) -> f32 {
    const MAX: f32 = 65504.0;
    let (bits, sign) = (x.to_bits(), x.to_bits() & 0x8000_0000);
    let large = f32::from_bits(bits.wrapping_add(0xfff + (bits >> 13 & 1)) & 0xffff_e000);
    // Below 2⁻¹⁴ there are only multiples of 2⁻²⁴, the last place of 0.5.
    let small = f32::from_bits(((x.abs() + 0.5) - 0.5).to_bits() | sign);
    let rounded = if x.abs() < 6.103_515_6e-5 { small } else { large };
    if x.abs() < MAX { rounded } else { x.clamp(-MAX, MAX) }
}

/// The finite values of type `float` next to `x`, below and above; `x` itself where there is none.
pub(super) fn neighbours(float: Float, x: f32) -> [f32; 2] {
    let next = |up: bool| {
        // Bit patterns of one sign are in order of magnitude.
        let away = (x > 0.0) == up;
        let step = |bits: u16, tiny: u16| match (x == 0.0, away) {
            (true, _) => {
                if up {
                    tiny
                } else {
                    tiny | 0x8000
                }
            }
            (_, true) => bits + 1,
            (_, false) => bits - 1,
        };
        let y = match float {
            Float::F32 => {
                if up {
                    x.next_up()
                } else {
                    x.next_down()
                }
            }
            Float::F16 => half::f16::from_bits(step(half::f16::from_f32(x).to_bits(), 1)).to_f32(),
            Float::BF16 => half::bf16::from_bits(step(half::bf16::from_f32(x).to_bits(), 1)).to_f32(),
        };
        if y.is_finite() { y } else { x }
    };
    if x.is_finite() { [next(false), next(true)] } else { [x, x] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branchless_rounding_is_the_same() {
        let bits = (0..200_000u32).map(|i| i.wrapping_mul(0x9e37_79b9)).chain((0..2000).map(|i| 0x3300_0000 + (i << 9)));
        let special =
            [0.0, -0.0, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, 65504.0, 65519.0, 65520.0, 3.3895e38, 1e-45];
        for x in bits.map(f32::from_bits).chain(special).filter(|x| !x.is_nan()) {
            assert_eq!(saturate_bf16(x).to_bits(), saturate(Float::BF16, x).to_bits(), "{x}");
            assert_eq!(saturate_f16(x).to_bits(), saturate(Float::F16, x).to_bits(), "{x}");
        }
        assert!(saturate_bf16(f32::NAN).is_nan() && saturate_f16(f32::NAN).is_nan());
    }

    #[test]
    fn neighbours_are_adjacent() {
        for float in [Float::F32, Float::F16, Float::BF16] {
            for x in [0.0, 1.0, -1.0, 0.3, -1e-7, saturate(float, f32::MAX), saturate(float, f32::MIN)] {
                let x = float.round(x);
                let [below, above] = neighbours(float, x);
                assert!(below <= x && x <= above && below < above && above.is_finite() && below.is_finite(), "{float:?} {x}");
                assert_eq!((float.round(below), float.round(above)), (below, above));
                if above != x && below != x {
                    assert_eq!(float.round(below / 2.0 + above / 2.0), x, "{float:?}: nothing else lies between");
                }
            }
        }
    }
}
