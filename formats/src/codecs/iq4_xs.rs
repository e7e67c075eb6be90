//! IQ4_XS: `d`, a u16 with the top two bits of eight 6-bit scales, 4 bytes with their low four bits (two each, low half first),
//! then per sub-block 16 bytes of codes as in IQ4_NL. Sub-block steps are d · (scale − 32).

use super::block::{read_nibbles, write_nibbles};
use super::float::{self, saturate};
use super::iq4;
use super::search::{extreme, nearest_one};
use super::side_by_side::{Group, SideBySide, encode_rows};
use super::tabled::{Layout, MAX_LEN, MAX_SUBS, SUB, Scales};
use crate::codec::{CodecId, Float};
use crate::simd::{Lanes, MAX_LANES};

pub(super) struct IQ4XS;

/// Offsets of the scales' parts and of the codes.
const HIGH: usize = 2;
const LOW: usize = 4;
const CODES: usize = LOW + MAX_SUBS / 2;

impl Layout for IQ4XS {
    const ID: CodecId = CodecId::IQ4XS;
    const LEN: usize = MAX_LEN;
    const BYTES: usize = CODES + MAX_LEN / 2;
    const VALUES: [f32; 16] = iq4::VALUES;
    const STEP: usize = 1;
    const INTS: (i16, i16) = (-32, 31);

    fn factor(int: i16) -> f32 {
        int as f32
    }
    fn nearest(x: &[f32], codes: &mut [u8]) {
        codes[0] = iq4::nearest(x[0]);
    }
    fn entries(step: f32, x: &[f32], entries: &mut [f32]) {
        iq4::entries(step, x, entries);
    }
    fn write(scales: &Scales, codes: &[u8], out: &mut [u8]) {
        write_scales(scales, out);
        for (out, codes) in out[CODES..].chunks_exact_mut(SUB / 2).zip(codes.chunks_exact(SUB)) {
            write_nibbles(codes, out);
        }
    }
    fn read(bytes: &[u8], codes: &mut [u8]) -> Scales {
        for (bytes, codes) in bytes[CODES..].chunks_exact(SUB / 2).zip(codes.chunks_exact_mut(SUB)) {
            read_nibbles(bytes, codes);
        }
        let high = u16::from_le_bytes([bytes[HIGH], bytes[HIGH + 1]]);
        let int = |s: usize| (bytes[LOW + s / 2] >> (4 * (s % 2)) & 15) as i16 | ((high >> (2 * s) & 3) << 4) as i16;
        Scales { d: float::read(Float::F16, bytes), ints: std::array::from_fn(|s| int(s) - 32) }
    }
    fn encode(rows: &[f32], row_len: usize, importance: Option<&[f32]>, out: &mut [u8]) {
        encode_rows(&Self, rows, row_len, importance, out);
    }
}

fn write_scales(scales: &Scales, out: &mut [u8]) {
    let ints = scales.ints.map(|int| (int + 32) as u16);
    let high = ints.iter().rev().fold(0u16, |bits, int| bits << 2 | int >> 4);
    float::write(Float::F16, scales.d, out);
    out[HIGH..LOW].copy_from_slice(&high.to_le_bytes());
    for (out, ints) in out[LOW..CODES].iter_mut().zip(ints.chunks_exact(2)) {
        *out = (ints[0] & 15 | (ints[1] & 15) << 4) as u8;
    }
}

impl SideBySide for IQ4XS {
    fn len(&self) -> usize {
        MAX_LEN
    }
    fn bytes(&self) -> usize {
        Self::BYTES
    }
    #[inline(always)]
    fn encode<F: Lanes>(&self, group: &Group<'_>, out: &mut [u8]) {
        let mut x = [F::zero(); MAX_LEN];
        group.weights(0, &mut x);
        let sigma2 = iq4::sigma2(&x);
        let mut scales = [[0f32; MAX_LANES]; MAX_SUBS];
        for (s, (scales, x)) in scales.iter_mut().zip(x.chunks_exact(SUB)).enumerate() {
            iq4::scales(group, s * SUB, x, sigma2).store(scales);
        }
        for (lane, out) in out.chunks_exact_mut(Self::BYTES).enumerate() {
            let scales = scales.map(|s| s[lane]);
            let d = -extreme(&scales) / 32.0;
            let inverse = if d != 0.0 { 1.0 / d } else { 0.0 };
            let ints = scales.map(|s| nearest_one(inverse * s).clamp(-32, 31));
            write_scales(&Scales { d: saturate(Float::F16, d), ints: ints.map(|i| i as i16) }, out);
            let subs = group.block(lane).chunks_exact(SUB).zip(out[CODES..].chunks_exact_mut(SUB / 2));
            for ((x, out), int) in subs.zip(ints) {
                iq4::write_codes::<F>(x, d * int as f32, out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::side_by_side::tests::assert_twins_agree;
    use super::IQ4XS;

    #[test]
    fn one_lane_gives_the_same_bytes() {
        assert_twins_agree(&IQ4XS, 21, 768, 11);
    }
}
