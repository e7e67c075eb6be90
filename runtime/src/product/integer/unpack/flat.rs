//! Blocks of 32 weights.

use super::lanes::{Block, block, half, map, words, zip};
use super::{E2M1, Filling, IQ4, LOW, e8m0, look_up};
use bitsmith_formats::CodecId;

/// 32 weights in 16 bytes at the block's end: byte j has the codes of columns j and j + 16.
#[inline(always)]
pub(super) fn nibbles<const BYTES: usize>(out: &mut Filling<'_>, rows: &Block<'_, [u8]>) {
    use CodecId::*;
    let codec = out.form.codec;
    for i in 0..rows[0].len() / BYTES {
        let b = block::<BYTES>(rows, i);
        let head = words(&b, 0);
        out.step(i, if codec == MXFP4 { map(head, |w| 0.5 * e8m0(w as u8)) } else { map(head, half) });
        if matches!(codec, Q4_1 | Q5_1) {
            out.min(i, map(head, |w| -half(w >> 16)));
        }
        let fifths = match codec {
            Q5_0 => words(&b, 2),
            Q5_1 => words(&b, 4),
            _ => [0; _],
        };
        for j in 0..4 {
            let w = words(&b, BYTES - 16 + 4 * j);
            let (low, high) = match codec {
                IQ4NL => (map(w, |w| look_up(&IQ4, w)), map(w, |w| look_up(&IQ4, w >> 4))),
                MXFP4 => (map(w, |w| look_up(&E2M1, w)), map(w, |w| look_up(&E2M1, w >> 4))),
                Q4_0 | Q4_1 => (map(w, |w| w & LOW), map(w, |w| w >> 4 & LOW)),
                _ => (
                    zip(w, fifths, |w, f| (w & LOW) | fifth(f >> (4 * j))),
                    zip(w, fifths, |w, f| (w >> 4 & LOW) | fifth(f >> (16 + 4 * j))),
                ),
            };
            out.codes(8 * i + j, low);
            out.codes(8 * i + 4 + j, high);
        }
    }
}

#[inline(always)]
pub(super) fn q8_0(out: &mut Filling<'_>, rows: &Block<'_, [u8]>) {
    for i in 0..rows[0].len() / 34 {
        let b = block::<34>(rows, i);
        out.step(i, map(words(&b, 0), half));
        for j in 0..8 {
            out.codes(8 * i + j, map(words(&b, 2 + 4 * j), |w| w ^ 0x8080_8080));
        }
    }
}

/// Four bits, one to a byte, at the place of a fifth bit.
#[inline(always)]
fn fifth(bits: u32) -> u32 {
    ((bits & 15).wrapping_mul(0x0020_4081) & 0x0101_0101) << 4
}
