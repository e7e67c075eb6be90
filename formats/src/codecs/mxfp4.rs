//! ggml's MXFP4: 32 e2m1 codes. Byte 0 scale (e8m0), 1–16 codes.

use super::fp4::Layout;
use crate::codec::CodecId;

pub(super) struct Mxfp4;

impl Layout for Mxfp4 {
    const ID: CodecId = CodecId::MXFP4;
    const LEN: usize = 32;
    const SUB: usize = 32;
    const POWERS: bool = true;
    const TOP_SCALE: u8 = 252;

    /// 2^(byte − 128), also for the byte that the standard gives to NaN.
    #[inline(always)]
    fn half_scale(byte: u8) -> f32 {
        f32::from_bits(if byte < 2 { 0x0020_0000 << byte } else { (byte as u32 - 1) << 23 })
    }

    /// The largest magnitude's exponent less that of e2m1's largest value. Below 2^−125 it wraps, as in ggml; all codes are 0
    /// under scales that large.
    #[inline(always)]
    fn reference(largest: f32) -> u8 {
        if largest > 0.0 { (floor_log2(largest) + 125) as u8 } else { 0 }
    }
}

/// ⌊log2 x⌋ as C computes it from log2f, which rounds up to the next integer just below a power of two.
#[inline(always)]
fn floor_log2(x: f32) -> i32 {
    /// Mantissas within this many steps of the next power may be rounded up, and below the normal numbers bits tell nothing.
    const NEAR: u32 = 64;
    let bits = x.to_bits();
    if bits & 0x007f_ffff > 0x007f_ffff - NEAR || bits < 0x0080_0000 || x.is_infinite() {
        return careful_floor_log2(x);
    }
    (bits >> 23) as i32 - 127
}

#[cold]
fn careful_floor_log2(x: f32) -> i32 {
    ((x as f64).log2() as f32).floor() as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_just_below_a_power_round_up() {
        for (x, want) in [(1.0, 0), (8.0, 3), (7.999_999_5, 3), (7.999_999, 2), (0.5, -1), (1e-45, -149), (3e38, 127)] {
            assert_eq!(floor_log2(x), want, "{x}");
        }
        assert_eq!((Mxfp4::half_scale(0), Mxfp4::half_scale(128)), (f32::from_bits(0x0020_0000), 1.0));
    }
}
