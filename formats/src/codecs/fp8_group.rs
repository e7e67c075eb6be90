//! Groups of e4m3 bytes with one scale, as FP8 checkpoints have them.

use super::float::{epsilon, saturate};
use super::levels::{Leveled, Levels};
use super::minifloat::{E4M3, E4M3_MAX, to_e4m3};
use super::registry::Registry;
use crate::codec::{Codec, CodecId, Float};

/// A group length and a type of scales.
pub(super) struct Fp8Group {
    group: usize,
    scale: Float,
}

/// The format with these properties; `None` for empty groups.
pub(super) fn find(group: u32, scale: Float) -> Option<&'static dyn Codec> {
    static ALL: Registry<(u32, Float), Leveled<Fp8Group>> = Registry::new();
    (group > 0).then(|| ALL.get((group, scale), || Leveled(Fp8Group { group: group as usize, scale })) as &dyn Codec)
}

/// Where the byte stands among all by value, −448 first; the two NaNs are last.
fn rank(byte: u8) -> u8 {
    match byte {
        0xff => 255,
        0x80.. => 254 - byte,
        _ => 127 + byte,
    }
}

/// The inverse of [`rank`].
fn byte(rank: u8) -> u8 {
    match rank {
        255 => 0xff,
        127.. => rank - 127,
        _ => 254 - rank,
    }
}

impl Levels for Fp8Group {
    fn id(&self) -> CodecId {
        CodecId::Fp8Group { group: self.group as u32, scale: self.scale }
    }
    fn len(&self) -> usize {
        self.group
    }
    fn code_bytes(&self) -> usize {
        self.group
    }
    fn float(&self) -> Float {
        self.scale
    }
    fn max_code(&self) -> u8 {
        rank(0x7e)
    }
    fn level(&self, code: u8) -> f32 {
        E4M3[byte(code) as usize]
    }
    fn nearest(&self, x: f32) -> u8 {
        rank(to_e4m3(x) as u8)
    }
    fn code(&self, bytes: &[u8], i: usize) -> u8 {
        rank(bytes[i])
    }
    fn pack(&self, codes: &[u8], out: &mut [u8]) {
        out.iter_mut().zip(codes).for_each(|(out, &code)| *out = byte(code));
    }

    /// compressed-tensors': the largest magnitude becomes 448; a group of zeros has the type's epsilon for a scale.
    fn reference(&self, x: &[f32], codes: &mut [u8]) -> f32 {
        let peak = x.iter().fold(0f32, |peak, x| peak.max(x.abs()));
        let scale = match saturate(self.scale, peak / E4M3_MAX) {
            0.0 => epsilon(self.scale),
            scale => scale,
        };
        codes.iter_mut().zip(x).for_each(|(code, x)| *code = self.nearest(x / scale));
        scale
    }

    /// The largest weight on another of the sixteen highest levels: the grid repeats itself beyond an octave.
    fn multiples(&self) -> &'static [f32] {
        &[1.0, 448.0 / 416.0, 448.0 / 384.0, 448.0 / 352.0, 448.0 / 320.0, 448.0 / 288.0, 448.0 / 256.0, 448.0 / 240.0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_in_order_of_value() {
        for b in 0..=255u8 {
            assert_eq!(byte(rank(b)), b);
        }
        for r in 1..=rank(0x7e) {
            let [low, high] = [r - 1, r].map(|r| E4M3[byte(r) as usize]);
            assert!(low < high || (low, high) == (0.0, 0.0), "{low} {high}");
        }
        assert!([254, 255].iter().all(|&r| E4M3[byte(r) as usize].is_nan()));
    }

    #[test]
    fn the_largest_weight_is_exact_and_the_others_within_a_sixteenth() {
        let codec = find(48, Float::F32).unwrap();
        let x: Vec<f32> = (0..96).map(|i| (i as f32 - 40.3) * 0.37).collect();
        let mut bytes = vec![0; 2 * 52];
        codec.encode(&x, None, &mut bytes);
        let mut decoded = vec![0.0; 96];
        codec.decode(&bytes, &mut decoded);
        for (group, back) in x.chunks(48).zip(decoded.chunks(48)) {
            let peak = group.iter().fold(0f32, |p, x| p.max(x.abs()));
            for (x, y) in group.iter().zip(back) {
                assert!((x - y).abs() <= x.abs() / 16.0 + peak * 1e-5, "{x} {y}");
                assert!(x.abs() < peak || (x - y).abs() < 1e-5 * peak, "{x} {y}");
            }
        }
        assert!(find(0, Float::F32).is_none());
    }
}
