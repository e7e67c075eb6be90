//! IQ4_NL: bytes 0–1 scale, 2–17 codes; byte 2 + j holds code j (low half) and code j + 16 (high half).

use super::block::{read_nibbles, write_nibbles};
use super::float::{self, saturate};
use super::iq4;
use super::side_by_side::{Group, SideBySide, encode_rows};
use super::tabled::{Layout, MAX_SUBS, SUB, Scales};
use crate::codec::{CodecId, Float};
use crate::simd::{Lanes, MAX_LANES};

pub(super) struct IQ4NL;

impl Layout for IQ4NL {
    const ID: CodecId = CodecId::IQ4NL;
    const LEN: usize = SUB;
    const BYTES: usize = 2 + SUB / 2;
    const VALUES: [f32; 16] = iq4::VALUES;
    const STEP: usize = 1;
    const INTS: (i16, i16) = (0, 0);

    fn factor(_: i16) -> f32 {
        1.0
    }
    fn nearest(x: &[f32], codes: &mut [u8]) {
        codes[0] = iq4::nearest(x[0]);
    }
    fn entries(step: f32, x: &[f32], entries: &mut [f32]) {
        iq4::entries(step, x, entries);
    }
    fn write(scales: &Scales, codes: &[u8], out: &mut [u8]) {
        float::write(Float::F16, scales.d, out);
        write_nibbles(&codes[..SUB], &mut out[2..]);
    }
    fn read(bytes: &[u8], codes: &mut [u8]) -> Scales {
        read_nibbles(&bytes[2..], &mut codes[..SUB]);
        Scales { d: float::read(Float::F16, bytes), ints: [0; MAX_SUBS] }
    }
    fn encode(rows: &[f32], row_len: usize, importance: Option<&[f32]>, out: &mut [u8]) {
        encode_rows(&Self, rows, row_len, importance, out);
    }
}

impl SideBySide for IQ4NL {
    fn len(&self) -> usize {
        SUB
    }
    fn bytes(&self) -> usize {
        Self::BYTES
    }
    #[inline(always)]
    fn encode<F: Lanes>(&self, group: &Group<'_>, out: &mut [u8]) {
        let mut x = [F::zero(); SUB];
        group.weights(0, &mut x);
        let mut scales = [0f32; MAX_LANES];
        iq4::scales(group, 0, &x, iq4::sigma2(&x)).store(&mut scales);
        for (lane, out) in out.chunks_exact_mut(Self::BYTES).enumerate() {
            float::write(Float::F16, saturate(Float::F16, scales[lane]), out);
            iq4::write_codes::<F>(group.block(lane), scales[lane], &mut out[2..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::side_by_side::tests::assert_twins_agree;
    use super::IQ4NL;

    #[test]
    fn one_lane_gives_the_same_bytes() {
        assert_twins_agree(&IQ4NL, 21, 768, 11);
    }
}
