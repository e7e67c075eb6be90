//! Groups of codes in streams of bits, with their scales after them, and points of codebooks.

use super::lanes::{Block, Floats, block, half, map, word, words};
use super::{E2M1, Filling, LOW, e8m0, look_up};
use crate::product::integer::{Offset, PANEL_ROWS};
use bitsmith_formats::{CodecId, Float, Micro};

/// Codes `4 j … 4 j + 3` of a little-endian stream of codes.
#[inline(always)]
fn stream(bytes: &[u8], bits: u32, j: usize) -> u32 {
    let at = 4 * bits as usize * j;
    // An odd column of four starts in the middle of a byte for odd widths, and then has 24 bits left: enough for six at most.
    let v = word(bytes, at / 8) >> (at % 8);
    match bits {
        8 => v,
        4 => (v & 0xf) | (v & 0xf0) << 4 | (v & 0xf00) << 8 | (v & 0xf000) << 12,
        _ => (0..4).fold(0, |w, i| w | (v >> (bits * i) & ((1 << bits) - 1)) << (8 * i)),
    }
}

/// [`stream`] of every row.
#[inline(always)]
fn streams(b: &Block<'_, [u8]>, bits: u32, j: usize) -> [u32; PANEL_ROWS] {
    let mut words = [0; PANEL_ROWS];
    for (word, b) in words.iter_mut().zip(b) {
        *word = stream(b, bits, j);
    }
    words
}

/// A floating-point number of every row.
#[inline(always)]
fn floats(kind: Float, b: &Block<'_, [u8]>, at: usize) -> Floats {
    let words = words(b, at);
    match kind {
        Float::F32 => map(words, f32::from_bits),
        Float::F16 => map(words, half),
        Float::BF16 => map(words, |w| f32::from_bits(w << 16)),
    }
}

/// Block `i` of every row, of `bytes` bytes.
#[inline(always)]
fn part<'a>(rows: &Block<'a, [u8]>, i: usize, bytes: usize) -> Block<'a, [u8]> {
    let mut part = *rows;
    part.iter_mut().for_each(|row| *row = &row[i * bytes..(i + 1) * bytes]);
    part
}

#[inline(always)]
pub(super) fn mlx_affine(out: &mut Filling<'_>, rows: &Block<'_, [u8]>, bits: u8, group: usize, scale: Float) {
    let codes = group * usize::from(bits) / 8;
    let bytes = codes + 2 * scale.size();
    for i in 0..rows[0].len() / bytes {
        let b = part(rows, i, bytes);
        let (steps, biases) = (floats(scale, &b, codes), floats(scale, &b, codes + scale.size()));
        for s in i * group / 32..(i + 1) * group / 32 {
            out.step(s, steps);
            out.min(s, map(biases, |b| -b));
        }
        (0..group / 4).for_each(|j| out.codes(i * group / 4 + j, streams(&b, bits.into(), j)));
    }
}

#[inline(always)]
pub(super) fn int_group(out: &mut Filling<'_>, rows: &Block<'_, [u8]>, bits: u8, group: usize, scale: Float) {
    let codes = group * usize::from(bits) / 8;
    let bytes = out.form.codec.codec().block_bytes();
    for i in 0..rows[0].len() / bytes {
        let b = part(rows, i, bytes);
        let steps = floats(scale, &b, codes);
        let mut mins = map(words(&b, codes + scale.size()), |w| f32::from(w as u8));
        mins.iter_mut().zip(steps).for_each(|(zero, step)| *zero *= step);
        for s in i * group / 32..(i + 1) * group / 32 {
            out.step(s, steps);
            out.min(s, mins);
        }
        (0..group / 4).for_each(|j| out.codes(i * group / 4 + j, streams(&b, bits.into(), j)));
    }
}

/// ggml's NVFP4: four scales, then their codes.
#[inline(always)]
pub(super) fn nvfp4(out: &mut Filling<'_>, rows: &Block<'_, [u8]>) {
    for i in 0..rows[0].len() / 36 {
        let b = block::<36>(rows, i);
        let scales = words(&b, 0);
        for s in 0..4 {
            out.step(4 * i + s, map(scales, |w| 0.5 * e4m3((w >> (8 * s)) as u8 & 0x7f)));
            for j in 0..2 {
                let w = words(&b, 4 + 8 * s + 4 * j);
                out.codes(16 * i + 4 * s + j, map(w, |w| look_up(&E2M1, w & LOW)));
                out.codes(16 * i + 4 * s + 2 + j, map(w, |w| look_up(&E2M1, w >> 4 & LOW)));
            }
        }
    }
}

#[inline(always)]
pub(super) fn micro(out: &mut Filling<'_>, rows: &Block<'_, [u8]>, micro: Micro) {
    let bytes = out.form.codec.codec().block_bytes();
    for i in 0..rows[0].len() / bytes {
        let b = part(rows, i, bytes);
        let scale = |w: u32| if micro == Micro::Nvfp4 { e4m3(w as u8) } else { e8m0(w as u8) };
        out.step(i, map(words(&b, bytes - 1), |w| 0.5 * scale(w)));
        let columns = (bytes - 1) / 2;
        (0..columns).for_each(|j| out.codes(i * columns + j, map(streams(&b, 4, j), |w| look_up(&E2M1, w))));
    }
}

/// Decoded values as multiples of their unit.
pub(super) fn points(out: &mut Filling<'_>, rows: &Block<'_, [u8]>) {
    use CodecId::*;
    /// The longest block of these formats.
    const MAX_LEN: usize = 256;
    let (form, Offset::Zero(zero)) = (out.form, out.form.offset) else { return };
    let (id, codec, zero) = (form.codec, form.codec.codec(), f32::from(zero));
    let (mut values, mut codes) = ([0f32; MAX_LEN], [0u8; MAX_LEN]);
    let (len, bytes) = (codec.block_len(), codec.block_bytes());
    let (values, codes) = (&mut values[..len], &mut codes[..len]);
    let Some(grid) = codec.grid() else { return };
    // What the grid's own steps are in units.
    let unit = match id {
        Q1_0 => 0.5,
        IQ1S | IQ1M => 0.125,
        _ => 1.0,
    };
    for (row, blocks) in rows.iter().enumerate() {
        for (i, b) in blocks.chunks_exact(bytes).enumerate() {
            codec.decode(b, values);
            let scales = grid.unpack(b, codes);
            for (s, values) in values.chunks_exact(form.segment).enumerate() {
                let unit = scales.step[s * form.segment / scales.sub_len] * unit;
                let inverse = if unit == 0.0 { 0.0 } else { 1.0 / unit };
                out.panel.steps[i * len / form.segment + s][row] = unit * out.factor;
                for (j, four) in values.as_chunks::<4>().0.iter().enumerate() {
                    let word = u32::from_le_bytes(four.map(|v| (v * inverse + zero + 0.5) as u8));
                    out.code(i * len / 4 + s * form.segment / 4 + j, row, word);
                }
            }
        }
    }
}

/// A float of four bits of exponent and three of mantissa.
fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if byte & 0x80 != 0 { -magnitude } else { magnitude }
}
