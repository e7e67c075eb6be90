//! The twin of the vector loops, from the formats' codes.

use super::Row;
use crate::product::integer::unpack::{six_bits, word};
use bitsmith_formats::CodecId;

/// The f16 at byte `at`.
fn half(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The product of a row of blocks and a row of activations.
pub(super) fn dot(codec: CodecId, blocks: &[u8], x: Row<'_>) -> f32 {
    let c = codec.codec();
    let Some(grid) = c.grid() else { return f32::NAN };
    let len = c.block_len();
    let mut codes = vec![0u8; len];
    let mut total = 0f32;
    for (i, (b, xs)) in blocks.chunks_exact(c.block_bytes()).zip(x.codes.chunks_exact(len)).enumerate() {
        let scales = grid.unpack(b, &mut codes);
        let sum = |from: usize, n: usize| -> i32 {
            codes[from..from + n].iter().zip(&xs[from..]).map(|(c, x)| i32::from(*c) * i32::from(*x)).sum()
        };
        let of_x = |from: usize, n: usize| -> i32 { xs[from..from + n].iter().map(|x| i32::from(*x)).sum() };
        let scale = x.scales[i];
        total += match codec {
            CodecId::Q4_0 => (sum(0, 32) - 8 * of_x(0, 32)) as f32 * (half(b, 0) * scale),
            CodecId::Q5_0 => (sum(0, 32) - 16 * of_x(0, 32)) as f32 * (half(b, 0) * scale),
            CodecId::Q8_0 => (sum(0, 32) - 128 * of_x(0, 32)) as f32 * (half(b, 0) * scale),
            CodecId::Q6K => {
                let s: i32 = (0..16).map(|g| i32::from(scales.ints[g]) * (sum(16 * g, 16) - 32 * of_x(16 * g, 16))).sum();
                s as f32 * (half(b, 208) * scale)
            }
            _ => {
                let (ints, mins) = six_bits([word(b, 4), word(b, 8), word(b, 12)]);
                let bytes = |[low, high]: [u32; 2]| (u64::from(low) | u64::from(high) << 32).to_le_bytes();
                let (ints, mins) = (bytes(ints), bytes(mins));
                let s: i32 = (0..8).map(|g| i32::from(ints[g]) * sum(32 * g, 32)).sum();
                let m: i32 = (0..8).map(|g| i32::from(mins[g]) * of_x(32 * g, 32)).sum();
                s as f32 * (half(b, 0) * scale) - m as f32 * (half(b, 2) * scale)
            }
        };
    }
    total
}
