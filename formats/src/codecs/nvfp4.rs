//! ggml's NVFP4: 64 e2m1 codes in four sub-blocks. Bytes 0–3 scales (e4m3 without sign), 4–35 codes. Checkpoints have a scale for
//! the whole tensor too; it stands beside the blocks, and the encoder takes it for 1.

use super::fp4::Layout;
use crate::codec::CodecId;

pub(super) struct Nvfp4;

/// Half of what e4m3 bytes without sign mean, NaN's bit pattern taken for 480. A table, because arithmetic with subnormal numbers
/// is slow, and many scales of real weights are subnormal.
const HALF_SCALES: [f32; 128] = {
    let (mut table, mut byte) = ([0.0; 128], 0);
    while byte < 128 {
        // Exponent and mantissa moved to their places in an f32, the bias set right by a factor.
        table[byte as usize] = f32::from_bits(byte << 20) * f32::from_bits((127 + 120 - 1) << 23);
        byte += 1;
    }
    table
};

impl Layout for Nvfp4 {
    const ID: CodecId = CodecId::NVFP4;
    const LEN: usize = 64;
    const SUB: usize = 16;
    const POWERS: bool = false;
    const TOP_SCALE: u8 = 0x7e;

    /// The sign bit is ignored, and e4m3's NaN is 0 (but for −NaN), as in ggml.
    #[inline(always)]
    fn half_scale(byte: u8) -> f32 {
        if byte == 0x7f { 0.0 } else { HALF_SCALES[byte as usize & 0x7f] }
    }

    /// A sixth of the largest magnitude, rounded to e4m3 by half a step up; from 256 on, 448.
    #[inline(always)]
    fn reference(largest: f32) -> u8 {
        let x = largest / 6.0;
        if x < 0.015_625 {
            // Subnormal: multiples of 2⁻⁹, at most seven of them.
            return ((x * 512.0 + 0.5) as u8).min(7);
        }
        // Half a step of the mantissa's three bits, and the bias of e4m3 instead of f32's; a carry goes to the exponent.
        let byte = ((x.to_bits() + 0x0008_0000) >> 20) as i32 - (120 << 3);
        if byte < 15 << 3 { byte as u8 } else { 0x7e }
    }
}
