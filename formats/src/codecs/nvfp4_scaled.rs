//! NVFP4 beside a scale of the whole tensor, as GPU servers have it: the value of a code is its small float times the group's e4m3 scale
//! times the tensor's. The blocks are those of [`Micro::Nvfp4`](crate::Micro); only the encoder differs.
//!
//! The reference is ModelOpt's `NVFP4QTensor.quantize`, all in f32. compressed-tensors rounds alike but for two things that hardly
//! matter: it computes scales in the weights' own type, and groups of zeros have the scale 1/8 instead of 1.

use super::minifloat::{E2M1_MAX, E4M3_MAX, from_e4m3, to_e4m3};

const LEN: usize = 16;
const BYTES: usize = 9;
/// The smallest e4m3 number but 0.
const LEAST: f32 = 1.0 / 512.0;
/// Largest magnitudes below this count as this: neither the scale nor its reciprocal may leave the normal numbers.
const SMALLEST: f32 = 1e-34;

/// The scale of a tensor whose largest magnitude is this: the group that holds it gets the largest e4m3 scale. The last bit is such that
/// the scale survives being stored as its reciprocal, as compressed-tensors has it.
pub(crate) fn tensor_scale(largest: f32) -> f32 {
    let divisor = 1.0 / (largest.max(SMALLEST) / (E2M1_MAX * E4M3_MAX));
    if divisor.is_normal() { 1.0 / divisor } else { 1.0 }
}

/// The e2m1 code nearest to `y`, ties to even; what is negative keeps its sign as zero.
#[inline(always)]
fn code(y: f32) -> u32 {
    let a = y.abs();
    let above = [0.25, 1.25, 2.5, 5.0].iter().map(|&limit| (a > limit) as u32).sum::<u32>();
    let from = [0.75, 1.75, 3.5].iter().map(|&limit| (a >= limit) as u32).sum::<u32>();
    (above + from) | ((y < 0.0) as u32) << 3
}

crate::dispatched! {
    /// Encodes whole groups of weights in a tensor with this scale, 16 weights to 9 bytes.
    pub(crate) fn encode(weights: &[f32], scale: f32, out: &mut [u8]) {
        for (x, out) in weights.as_chunks::<LEN>().0.iter().zip(out.as_chunks_mut::<BYTES>().0) {
            let largest = x.iter().fold(0f32, |most, x| most.max(x.abs()));
            let unit = match largest / (E2M1_MAX * scale) {
                0.0 => 1.0,
                unit => unit.clamp(LEAST, E4M3_MAX),
            };
            let byte = to_e4m3(unit);
            let step = from_e4m3(byte) * scale;
            let mut codes = [0u32; LEN];
            for (code_of, x) in codes.iter_mut().zip(x) {
                *code_of = code(x / step);
            }
            for (out, pair) in out.iter_mut().zip(codes.as_chunks::<2>().0) {
                *out = (pair[0] | pair[1] << 4) as u8;
            }
            out[BYTES - 1] = byte as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_even_codes() {
        let found = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 9.0].map(code);
        assert_eq!(found, [0, 2, 2, 4, 4, 6, 6, 7]);
        assert_eq!([-0.1, -0.75, -6.0, 0.0].map(code), [8, 10, 15, 0]);
    }

    #[test]
    fn the_largest_weight_is_exact_and_the_grid_is_used_whole() {
        let x: Vec<f32> = (0..64).map(|i| if i < 16 { 0.0 } else { ((i * 37 % 64) as f32 - 31.5) * 1e-3 }).collect();
        let peak = x.iter().fold(0f32, |m, x| m.max(x.abs()));
        let scale = tensor_scale(peak);
        let (mut out, mut same) = (vec![0; 36], vec![1; 36]);
        encode(&x, scale, &mut out);
        portable::encode(&x, scale, &mut same);
        assert_eq!(out, same);
        assert_eq!((out[8], *out[8..].iter().step_by(9).max().unwrap()), (0x38, 0x7e));
        let codec = crate::CodecId::Micro(crate::Micro::Nvfp4).codec();
        let mut back = vec![0f32; 64];
        codec.decode(&out, &mut back);
        for (x, back) in x.iter().zip(back.iter().map(|b| b * scale)) {
            assert!((x - back).abs() <= 0.18 * x.abs() + 0.06 * peak, "{x} {back}");
            assert!(x.abs() < peak || (x / back - 1.0).abs() < 1e-6, "{x} {back}");
        }
    }

    #[test]
    fn scales_survive_their_reciprocals() {
        let some = (0..5000).map(|i| (1.0 + i as f32 / 5000.0) * 2f32.powi(i % 200 - 100));
        for largest in some.chain([0.0, 1e-45, 1e-38, 0.1, f32::MAX, f32::INFINITY, f32::NAN]) {
            let scale = tensor_scale(largest);
            let divisor = 1.0 / scale;
            assert!(scale.is_normal() && divisor.is_normal() && 1.0 / divisor == scale, "{largest} {scale}");
            assert!(!(1e-34..1e30).contains(&largest) || (scale * 2688.0 / largest - 1.0).abs() < 1e-6, "{largest} {scale}");
        }
    }
}
