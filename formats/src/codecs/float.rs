//! Plain floating-point storage: f32, f16, bf16, one value per "block", little-endian.

use crate::codec::{Codec, CodecId, Float, Grid};
use crate::simd::Lanes;

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
        encode(self.0, row, out);
    }
    fn encode_rows(&self, rows: &[f32], _row_len: usize, _importance: Option<&[f32]>, out: &mut [u8]) {
        self.encode(rows, None, out);
    }
    fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(out.len() * self.0.size(), bytes.len(), "output length");
        decode(self.0, bytes, out);
    }
    fn grid(&self) -> Option<&dyn Grid> {
        None
    }
}

/// The distance from 1 to the next larger number of the type.
pub(super) fn epsilon(float: Float) -> f32 {
    match float {
        Float::F32 => f32::EPSILON,
        Float::F16 => half::f16::EPSILON.to_f32(),
        Float::BF16 => half::bf16::EPSILON.to_f32(),
    }
}

crate::dispatched! {
    fn encode(float: Float, x: &[f32], out: &mut [u8]) {
        match float {
            Float::F32 => out.as_chunks_mut().0.iter_mut().zip(x).for_each(|(b, x)| *b = x.to_le_bytes()),
            Float::F16 => out.as_chunks_mut().0.iter_mut().zip(x).for_each(|(b, x)| *b = f16_bits(*x).to_le_bytes()),
            Float::BF16 => out.as_chunks_mut().0.iter_mut().zip(x).for_each(|(b, x)| *b = bf16_bits(*x).to_le_bytes()),
        }
    }

    fn decode(float: Float, bytes: &[u8], out: &mut [f32]) {
        match float {
            Float::F32 => bytes.as_chunks().0.iter().zip(out).for_each(|(b, x)| *x = f32::from_le_bytes(*b)),
            Float::F16 => bytes.as_chunks().0.iter().zip(out).for_each(|(b, x)| *x = from_f16_bits(u16::from_le_bytes(*b))),
            Float::BF16 => bytes.as_chunks().0.iter().zip(out).for_each(|(b, x)| *x = from_bf16_bits(u16::from_le_bytes(*b))),
        }
    }
}

/// `x` as f16, rounded to nearest, ties to even. Without branches, for vector registers.
#[inline(always)]
pub(crate) fn f16_bits(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16) as u16 & 0x8000;
    let a = x.to_bits() & 0x7fff_ffff;
    // Half a step, less a bit if that would make an even mantissa odd; the exponent's bias from 127 to 15.
    let normal = (a + 0x0fff + (a >> 13 & 1)).wrapping_sub(112 << 23) >> 13;
    // The steps of 0.5 .. 1 in f32 are those of subnormal f16.
    let subnormal = (f32::from_bits(a) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let finite = if a < 113 << 23 { subnormal } else { normal.min(0x7c00) };
    let magnitude = if a >= 0x7f80_0000 { 0x7c00 + (((a > 0x7f80_0000) as u32) << 9) } else { finite };
    sign | magnitude as u16
}

/// The value of an f16.
#[inline(always)]
fn from_f16_bits(bits: u16) -> f32 {
    let sign = (bits as u32 & 0x8000) << 16;
    let a = (bits as u32 & 0x7fff) << 13;
    let normal = a + (112 << 23);
    let special = a + (224 << 23);
    // Steps of 2⁻²⁴.
    let subnormal = ((bits & 0x03ff) as i32 as f32 * (1.0 / 16_777_216.0)).to_bits();
    let magnitude = if a >= 31 << 23 { special } else { normal };
    f32::from_bits(sign | if a < 1 << 23 { subnormal } else { magnitude })
}

/// `x` as bf16, rounded to nearest, ties to even; NaN stays NaN.
#[inline(always)]
pub(super) fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    (if x.is_nan() { bits >> 16 | 0x40 } else { rounded }) as u16
}

/// The value of a bf16.
#[inline(always)]
fn from_bf16_bits(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// The value of type `float` at the start of `bytes`.
#[inline(always)]
pub(crate) fn read(float: Float, bytes: &[u8]) -> f32 {
    match float {
        Float::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        Float::F16 => from_f16_bits(u16::from_le_bytes([bytes[0], bytes[1]])),
        Float::BF16 => from_bf16_bits(u16::from_le_bytes([bytes[0], bytes[1]])),
    }
}

/// Writes `x`, rounded to `float`, to the start of `bytes`.
#[inline(always)]
pub(super) fn write(float: Float, x: f32, bytes: &mut [u8]) {
    match float {
        Float::F32 => bytes[..4].copy_from_slice(&x.to_le_bytes()),
        Float::F16 => bytes[..2].copy_from_slice(&f16_bits(x).to_le_bytes()),
        Float::BF16 => bytes[..2].copy_from_slice(&bf16_bits(x).to_le_bytes()),
    }
}

/// `x`, or the largest finite value of `float` where `x` would round to infinity, so that no finite weight can make a whole
/// block infinite.
#[inline(always)]
pub(super) fn limit(float: Float, x: f32) -> f32 {
    let limit = largest_finite(float);
    x.clamp(-limit, limit)
}

/// [`limit`] in each lane; of NaN, the largest negative value.
#[inline(always)]
pub(super) fn limits<F: Lanes>(float: Float, x: F) -> F {
    let limit = largest_finite(float);
    x.max(F::splat(-limit)).min(F::splat(limit))
}

#[inline(always)]
fn largest_finite(float: Float) -> f32 {
    match float {
        Float::F32 => f32::MAX,
        Float::F16 => 65_504.0,
        Float::BF16 => f32::from_bits(0x7f7f_0000),
    }
}

/// [`limit`], rounded to `float`.
pub(super) fn saturate(float: Float, x: f32) -> f32 {
    float.round(limit(float, x))
}

/// [`saturate`] for F16 without branches, for loops over many values.
#[inline(always)]
pub(crate) fn saturate_f16(x: f32) -> f32 {
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
    use half::{bf16, f16};

    /// Some numbers of every exponent, and all of one.
    fn numbers() -> impl Iterator<Item = f32> {
        let bits = (0..=u16::MAX).flat_map(|h| {
            // Around every f16 and bf16, and around the middle between it and the next.
            let (a, b) = (f16::from_bits(h).to_f32().to_bits(), (h as u32) << 16);
            [a, a + 0x1000, b, b + 0x8000].into_iter().flat_map(|m| [m.wrapping_sub(1), m, m.wrapping_add(1)])
        });
        bits.map(f32::from_bits)
    }

    #[test]
    fn halves_are_those_of_ieee_754() {
        let x: Vec<f32> = numbers().collect();
        let (mut wide, mut narrow) = (vec![0; 2 * x.len()], vec![0; 2 * x.len()]);
        type Convert = fn(f32) -> u16;
        let halves: [(Float, Convert); 2] =
            [(Float::F16, |x| f16::from_f32(x).to_bits()), (Float::BF16, |x| bf16::from_f32(x).to_bits())];
        for (float, expected) in halves {
            encode(float, &x, &mut wide);
            portable::encode(float, &x, &mut narrow);
            assert_eq!(wide, narrow);
            for (x, got) in x.iter().zip(wide.as_chunks().0) {
                let got = u16::from_le_bytes(*got);
                assert!(got == expected(*x) || x.is_nan() && float.round(*x).is_nan(), "{float:?} {x}: {got:x}");
            }
            let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
            let (mut wide, mut narrow) = (vec![0.0; 1 << 16], vec![0.0; 1 << 16]);
            decode(float, &all, &mut wide);
            portable::decode(float, &all, &mut narrow);
            for (h, (a, b)) in wide.iter().zip(&narrow).enumerate() {
                let want =
                    if float == Float::F16 { f16::from_bits(h as u16).to_f32() } else { bf16::from_bits(h as u16).to_f32() };
                assert!(
                    a.to_bits() == b.to_bits()
                        && (*a == want && a.is_sign_negative() == want.is_sign_negative() || a.is_nan() && want.is_nan()),
                    "{h:x}"
                );
            }
        }
    }

    #[test]
    fn branchless_rounding_is_the_same() {
        let bits = (0..200_000u32).map(|i| i.wrapping_mul(0x9e37_79b9)).chain((0..2000).map(|i| 0x3300_0000 + (i << 9)));
        let special =
            [0.0, -0.0, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, 65504.0, 65519.0, 65520.0, 3.3895e38, 1e-45];
        for x in bits.map(f32::from_bits).chain(special).filter(|x| !x.is_nan()) {
            assert_eq!(saturate_f16(x).to_bits(), saturate(Float::F16, x).to_bits(), "{x}");
        }
        assert!(saturate_f16(f32::NAN).is_nan());
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
