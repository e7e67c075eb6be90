//! Blocks of 256 weights with integer scales.

use super::lanes::{Block, Floats, Lanes, block, half, map, words, zip};
use super::{Filling, IQ4, LOW, look_up};
use bitsmith_formats::CodecId;

/// The 6-bit scales of Q4_K and Q5_K in bytes, then their minima, from the three words that hold them.
#[inline(always)]
pub(in super::super) fn six_bits([x, y, z]: [u32; 3]) -> ([u32; 2], [u32; 2]) {
    let scales = [x & 0x3f3f_3f3f, (z & LOW) | (x >> 2 & 0x3030_3030)];
    let mins = [y & 0x3f3f_3f3f, (z >> 4 & LOW) | (y >> 2 & 0x3030_3030)];
    (scales, mins)
}

/// Byte `i` of every lane.
#[inline(always)]
fn byte(lanes: Lanes, i: usize) -> Lanes {
    map(lanes, |w| w >> (8 * i) & 0xff)
}

/// Q4_K (144 bytes), or with fifth bits Q5_K (176 bytes).
#[inline(always)]
pub(super) fn k_affine<const BYTES: usize>(out: &mut Filling<'_>, rows: &Block<'_, [u8]>) {
    let five = out.form.codec == CodecId::Q5K;
    for i in 0..rows[0].len() / BYTES {
        let b = block::<BYTES>(rows, i);
        let head = words(&b, 0);
        out.step(i, map(head, half));
        out.min(i, map(head, |w| half(w >> 16)));
        let [x, y, z] = [words(&b, 4), words(&b, 8), words(&b, 12)];
        let mut bytes = [[0; _]; 4];
        for row in 0..x.len() {
            let ([s0, s1], [m0, m1]) = six_bits([x[row], y[row], z[row]]);
            (bytes[0][row], bytes[1][row], bytes[2][row], bytes[3][row]) = (s0, s1, m0, m1);
        }
        let [s0, s1, m0, m1] = bytes;
        for g in 0..8 {
            out.scale(8 * i + g, byte(if g < 4 { s0 } else { s1 }, g % 4));
        }
        for p in 0..4 {
            let (m, at) = (if p < 2 { m0 } else { m1 }, 16 * (p % 2));
            out.offsets(4 * i + p, map(m, |m| m >> at & 0xff | (m >> (at + 8) & 0xff) << 16));
        }
        let low = BYTES - 128;
        for g in 0..4 {
            for j in 0..8 {
                let w = words(&b, low + 32 * g + 4 * j);
                let fifths = if five { words(&b, 16 + 4 * j) } else { [0; _] };
                let with = |w: u32, f: u32| (w & LOW) | (f & 0x0101_0101) << 4;
                out.codes(64 * i + 16 * g + j, zip(w, fifths, |w, f| with(w, f >> (2 * g))));
                out.codes(64 * i + 16 * g + 8 + j, zip(w, fifths, |w, f| with(w >> 4, f >> (2 * g + 1))));
            }
        }
    }
}

#[inline(always)]
pub(super) fn q6_k(out: &mut Filling<'_>, rows: &Block<'_, [u8]>) {
    for i in 0..rows[0].len() / 210 {
        let b = block::<210>(rows, i);
        out.step(i, map(words(&b, 206), |w| half(w >> 16)));
        for j in 0..4 {
            let w = words(&b, 192 + 4 * j);
            for k in 0..4 {
                out.scale(16 * i + 4 * j + k, map(byte(w, k), |s| i32::from((s as u8).cast_signed()).cast_unsigned()));
            }
        }
        for half in 0..2 {
            for j in 0..8 {
                let (l0, l1) = (words(&b, 64 * half + 4 * j), words(&b, 64 * half + 32 + 4 * j));
                let high = words(&b, 128 + 32 * half + 4 * j);
                for (quarter, low) in [l0, l1, l0, l1].into_iter().enumerate() {
                    let (shift, two) = (4 * (quarter / 2), 2 * quarter);
                    let codes = zip(low, high, |l, h| (l >> shift & LOW) | (h >> two & 0x0303_0303) << 4);
                    out.codes(64 * i + 32 * half + 8 * quarter + j, codes);
                }
            }
        }
    }
}

#[inline(always)]
pub(super) fn q2_k(out: &mut Filling<'_>, rows: &Block<'_, [u8]>) {
    for i in 0..rows[0].len() / 84 {
        let b = block::<84>(rows, i);
        let tail = words(&b, 80);
        out.step(i, map(tail, half));
        out.min(i, map(tail, |w| half(w >> 16)));
        for j in 0..4 {
            let w = words(&b, 4 * j);
            for k in 0..4 {
                out.scale(16 * i + 4 * j + k, map(w, |w| w >> (8 * k) & 15));
            }
            for k in 0..2 {
                out.offsets(8 * i + 2 * j + k, map(w, |w| w >> (16 * k + 4) & 15 | (w >> (16 * k + 12) & 15) << 16));
            }
        }
        for half in 0..2 {
            for j in 0..8 {
                let w = words(&b, 16 + 32 * half + 4 * j);
                (0..4).for_each(|q| out.codes(64 * i + 32 * half + 8 * q + j, map(w, |w| w >> (2 * q) & 0x0303_0303)));
            }
        }
    }
}

#[inline(always)]
pub(super) fn q3_k(out: &mut Filling<'_>, rows: &Block<'_, [u8]>) {
    for i in 0..rows[0].len() / 110 {
        let b = block::<110>(rows, i);
        out.step(i, map(words(&b, 106), |w| half(w >> 16)));
        let (low, high) = ([words(&b, 96), words(&b, 100)], words(&b, 104));
        for j in 0..16 {
            let (l, h) = (8 * (j % 4) + 4 * (j / 8), 8 * (j % 4) + 2 * (j / 4));
            let scale = zip(low[j / 4 % 2], high, |low, high| (low >> l & 15 | (high >> h & 3) << 4).wrapping_sub(32));
            out.scale(16 * i + j, scale);
        }
        for half in 0..2 {
            for j in 0..8 {
                let (low, high) = (words(&b, 32 + 32 * half + 4 * j), words(&b, 4 * j));
                for q in 0..4 {
                    let codes = zip(low, high, |l, h| (l >> (2 * q) & 0x0303_0303) | (h >> (4 * half + q) & 0x0101_0101) << 2);
                    out.codes(64 * i + 32 * half + 8 * q + j, codes);
                }
            }
        }
    }
}

/// Segments of 32 columns, each with a step that is its integer scale's multiple.
#[inline(always)]
pub(super) fn iq4_xs(out: &mut Filling<'_>, rows: &Block<'_, [u8]>) {
    for i in 0..rows[0].len() / 136 {
        let b = block::<136>(rows, i);
        let (head, low) = (words(&b, 0), words(&b, 4));
        for s in 0..8 {
            let ints = zip(head, low, |head, low| low >> (4 * s) & 15 | (head >> (16 + 2 * s) & 3) << 4);
            let mut steps: Floats = map(head, half);
            steps.iter_mut().zip(ints).for_each(|(step, int)| *step *= (int as i32 - 32) as f32);
            out.step(8 * i + s, steps);
            for j in 0..4 {
                let w = words(&b, 8 + 16 * s + 4 * j);
                out.codes(64 * i + 8 * s + j, map(w, |w| look_up(&IQ4, w)));
                out.codes(64 * i + 8 * s + 4 + j, map(w, |w| look_up(&IQ4, w >> 4)));
            }
        }
    }
}
