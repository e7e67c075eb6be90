//! bitsandbytes' NF4: the quantiles of a normal distribution as 16 levels, scaled by the largest magnitude of a group
//! (Dettmers et al. 2023).

use super::levels::{Leveled, Levels};
use super::registry::Registry;
use crate::codec::{Codec, CodecId, Float};

/// The levels, as bitsandbytes has them.
pub(crate) const LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Smallest magnitude that the reference divides by.
const TINY: f32 = 1e-38;

/// A group length.
pub(super) struct Nf4 {
    group: usize,
}

/// The format with this group; `None` where a group is not whole bytes.
pub(super) fn find(group: u32) -> Option<&'static dyn Codec> {
    static ALL: Registry<u32, Leveled<Nf4>> = Registry::new();
    (group > 0 && group.is_multiple_of(2)).then(|| ALL.get(group, || Leveled(Nf4 { group: group as usize })) as &dyn Codec)
}

impl Levels for Nf4 {
    fn id(&self) -> CodecId {
        CodecId::Nf4 { group: self.group as u32 }
    }
    fn len(&self) -> usize {
        self.group
    }
    fn code_bytes(&self) -> usize {
        self.group / 2
    }
    fn float(&self) -> Float {
        Float::F32
    }
    fn max_code(&self) -> u8 {
        15
    }
    fn level(&self, code: u8) -> f32 {
        LEVELS[usize::from(code & 15)]
    }
    fn nearest(&self, x: f32) -> u8 {
        // Halves go down.
        LEVELS.windows(2).filter(|pair| (pair[0] + pair[1]) / 2.0 < x).count() as u8
    }
    fn code(&self, bytes: &[u8], i: usize) -> u8 {
        if i.is_multiple_of(2) { bytes[i / 2] >> 4 } else { bytes[i / 2] & 15 }
    }
    fn pack(&self, codes: &[u8], out: &mut [u8]) {
        for (out, pair) in out.iter_mut().zip(codes.chunks_exact(2)) {
            *out = pair[0] << 4 | (pair[1] & 15);
        }
    }

    /// bitsandbytes' `quantize_4bit`: the largest magnitude becomes 1.
    fn reference(&self, x: &[f32], codes: &mut [u8]) -> f32 {
        let peak = x.iter().fold(0f32, |peak, x| peak.max(x.abs()));
        let inverse = 1.0 / peak.max(TINY);
        codes.iter_mut().zip(x).for_each(|(code, x)| *code = self.nearest((x * inverse).clamp(-1.0, 1.0)));
        peak
    }

    fn multiples(&self) -> &'static [f32] {
        &[0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_decode_to_themselves() {
        let codec = find(16).unwrap();
        let x = LEVELS.map(|l| l * 3.5);
        let mut bytes = [0; 12];
        codec.encode(&x, None, &mut bytes);
        assert_eq!(bytes[..8], [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef], "the first weight is in the high half");
        let mut back = [0.0; 16];
        codec.decode(&bytes, &mut back);
        assert_eq!(back, x);
        assert!(find(0).is_none() && find(33).is_none());
    }
}
