//! Blocks as panels: the bytes of each format to codes, scales and offsets.
//!
//! Four codes go to a word at a time, by shifts and masks of words, which is fast enough without vector instructions: a panel is taken
//! apart once for all rows of activations. Formats whose codes are points of a codebook are decoded to f32 and divided by their unit.

use super::panel::{Panel, pair};
use super::{Form, Offset, PANEL_ROWS};
use bitsmith_formats::{CodecId, Float, Micro};
use half::{bf16, f16};

/// Sixteen uneven values, in the order of their codes, shifted up by 128.
const IQ4: [u8; 16] = [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];
/// Twice the values of e2m1 codes, shifted up by 12.
const E2M1: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];
/// The low half of every byte.
const LOW: u32 = 0x0f0f_0f0f;

/// A word of a block's bytes.
#[inline(always)]
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |b| u32::from_le_bytes(*b))
}
#[inline(always)]
pub(super) fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}
/// `table[code]` for the four codes of a word of low nibbles.
#[inline(always)]
fn look_up(table: &[u8; 16], nibbles: u32) -> u32 {
    u32::from_le_bytes(nibbles.to_le_bytes().map(|n| table[usize::from(n & 15)]))
}
/// Four bits, one to a byte, at the place of a fifth bit.
#[inline(always)]
fn fifth(bits: u32) -> u32 {
    ((bits & 15).wrapping_mul(0x0020_4081) & 0x0101_0101) << 4
}

/// One row of a panel being filled.
struct Row<'a> {
    form: &'a Form,
    panel: &'a mut Panel,
    row: usize,
}

impl Row<'_> {
    /// Codes of column of four `at`.
    #[inline(always)]
    fn codes(&mut self, at: usize, word: u32) {
        if self.form.planes() == 1 {
            self.panel.codes[at][self.row] = word;
        } else {
            let steps = self.form.steps();
            let high = at / steps * 2 * steps + at % steps;
            self.panel.codes[high][self.row] = word >> 4 & LOW;
            self.panel.codes[high + steps][self.row] = word & LOW;
        }
    }
    /// The integer scale of a group.
    #[inline(always)]
    fn scale(&mut self, group: usize, scale: i16) {
        let runs = self.form.group / (4 * self.form.steps());
        for run in group * runs..(group + 1) * runs {
            self.panel.scales[run][self.row] = pair(scale, scale);
        }
    }
    #[inline(always)]
    fn offset(&mut self, at: usize, low: i16, high: i16) {
        self.panel.offsets[at][self.row] = pair(low, high);
    }
    #[inline(always)]
    fn step(&mut self, segment: usize, step: f32) {
        self.panel.steps[segment][self.row] = step;
    }
    #[inline(always)]
    fn min(&mut self, segment: usize, min: f32) {
        self.panel.mins[segment][self.row] = min;
    }
}

/// A panel for this format, with what is the same in all blocks.
pub(crate) fn panel(form: &Form) -> Panel {
    let mut panel = Panel::new(form);
    if form.segment != 256 {
        // Of two planes the higher counts 16 times as much.
        for (run, scales) in panel.scales.iter_mut().enumerate() {
            let scale = if form.planes() == 2 && run % 2 == 0 { 16 } else { 1 };
            *scales = [pair(scale, scale); PANEL_ROWS];
        }
        panel.offsets.fill([pair(1, 1); PANEL_ROWS]);
    }
    panel
}

/// Puts blocks of one row into a panel that [`panel`] made, as its row `row`. All values are to be multiplied by `factor`.
pub(crate) fn unpack(form: &Form, factor: f32, blocks: &[u8], row: usize, panel: &mut Panel) {
    use CodecId::*;
    let codec = form.codec.codec();
    let mut out = Row { form, panel, row };
    for (i, b) in blocks.chunks_exact(codec.block_bytes()).enumerate() {
        // Columns of four, and segments, before this block.
        let (at, segment) = (i * codec.block_len() / 4, i * codec.block_len() / form.segment);
        match form.codec {
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | IQ4NL | MXFP4 => nibbles(&mut out, b, at, segment, factor),
            Q8_0 => {
                out.step(segment, half(b, 0) * factor);
                (0..8).for_each(|j| out.codes(at + j, word(b, 2 + 4 * j) ^ 0x8080_8080));
            }
            Q4K | Q5K => k_affine(&mut out, b, at, segment, factor),
            Q6K => q6_k(&mut out, b, at, segment, factor),
            Q2K => q2_k(&mut out, b, at, segment, factor),
            Q3K => q3_k(&mut out, b, at, segment, factor),
            IQ4XS => {
                let high = u16::from_le_bytes([b[2], b[3]]);
                for s in 0..8 {
                    let int = i16::from(b[4 + s / 2] >> (4 * (s % 2)) & 15) | (high >> (2 * s) & 3).cast_signed() << 4;
                    out.step(segment + s, half(b, 0) * f32::from(int - 32) * factor);
                    for j in 0..4 {
                        let w = word(b, 8 + 16 * s + 4 * j);
                        out.codes(at + 8 * s + j, look_up(&IQ4, w & LOW));
                        out.codes(at + 8 * s + 4 + j, look_up(&IQ4, w >> 4 & LOW));
                    }
                }
            }
            NVFP4 => {
                for s in 0..4 {
                    out.step(segment + s, 0.5 * e4m3(b[s] & 0x7f) * factor);
                    for j in 0..2 {
                        let w = word(b, 4 + 8 * s + 4 * j);
                        out.codes(at + 4 * s + j, look_up(&E2M1, w & LOW));
                        out.codes(at + 4 * s + 2 + j, look_up(&E2M1, w >> 4 & LOW));
                    }
                }
            }
            Micro(micro) => {
                let (codes, scale) = b.split_at(b.len() - 1);
                out.step(segment, 0.5 * if micro == self::Micro::Nvfp4 { e4m3(scale[0]) } else { e8m0(scale[0]) } * factor);
                (0..codes.len() / 2).for_each(|j| out.codes(at + j, look_up(&E2M1, stream(codes, 4, j))));
            }
            MlxAffine { bits, group, scale } => {
                let (codes, floats) = b.split_at(usize::from(group) * usize::from(bits) / 8);
                let (step, bias) = (float(scale, floats, 0) * factor, float(scale, floats, scale.size()) * factor);
                for s in 0..usize::from(group) / 32 {
                    out.step(segment + s, step);
                    out.min(segment + s, -bias);
                }
                (0..usize::from(group) / 4).for_each(|j| out.codes(at + j, stream(codes, bits, j)));
            }
            IntGroup { bits, group, scale, .. } => {
                let group = group as usize;
                let (codes, rest) = b.split_at(group * usize::from(bits) / 8);
                let (step, zero) = (float(scale, rest, 0) * factor, f32::from(rest[scale.size()]));
                for s in segment..segment + group / 32 {
                    out.step(s, step);
                    out.min(s, step * zero);
                }
                (0..group / 4).for_each(|j| out.codes(at + j, stream(codes, bits, j)));
            }
            _ => points(&mut out, b, at, segment, factor),
        }
    }
}

/// 32 weights in 16 bytes at the block's end: byte j has the codes of columns j and j + 16.
#[inline(always)]
fn nibbles(out: &mut Row<'_>, b: &[u8], at: usize, segment: usize, factor: f32) {
    use CodecId::*;
    let codec = out.form.codec;
    out.step(segment, if codec == MXFP4 { 0.5 * e8m0(b[0]) } else { half(b, 0) } * factor);
    let fifths = match codec {
        Q5_0 => word(b, 2),
        Q5_1 => word(b, 4),
        _ => 0,
    };
    if matches!(codec, Q4_1 | Q5_1) {
        out.min(segment, -half(b, 2) * factor);
    }
    let codes = b.len() - 16;
    for j in 0..4 {
        let w = word(b, codes + 4 * j);
        let (low, high) = (w & LOW, w >> 4 & LOW);
        let (low, high) = match codec {
            IQ4NL => (look_up(&IQ4, low), look_up(&IQ4, high)),
            MXFP4 => (look_up(&E2M1, low), look_up(&E2M1, high)),
            _ => (low | fifth(fifths >> (4 * j)), high | fifth(fifths >> (16 + 4 * j))),
        };
        out.codes(at + j, low);
        out.codes(at + 4 + j, high);
    }
}

/// The 6-bit scales of Q4_K and Q5_K, then their minima.
#[inline(always)]
pub(super) fn six_bits(b: &[u8]) -> ([u8; 8], [u8; 8]) {
    let [x, y, z] = [word(b, 0), word(b, 4), word(b, 8)];
    let scales = [x & 0x3f3f_3f3f, (z & LOW) | (x >> 2 & 0x3030_3030)];
    let mins = [y & 0x3f3f_3f3f, (z >> 4 & LOW) | (y >> 2 & 0x3030_3030)];
    let bytes = |w: [u32; 2]| (u64::from(w[0]) | u64::from(w[1]) << 32).to_le_bytes();
    (bytes(scales), bytes(mins))
}

#[inline(always)]
fn k_affine(out: &mut Row<'_>, b: &[u8], at: usize, segment: usize, factor: f32) {
    out.step(segment, half(b, 0) * factor);
    out.min(segment, half(b, 2) * factor);
    let (scales, mins) = six_bits(&b[4..16]);
    (0..8).for_each(|g| out.scale(8 * segment + g, i16::from(scales[g])));
    (0..4).for_each(|p| out.offset(4 * segment + p, i16::from(mins[2 * p]), i16::from(mins[2 * p + 1])));
    let five = out.form.codec == CodecId::Q5K;
    let low = if five { 48 } else { 16 };
    for g in 0..4 {
        for j in 0..8 {
            let w = word(b, low + 32 * g + 4 * j);
            let fifths = if five { word(b, 16 + 4 * j) >> (2 * g) } else { 0 };
            out.codes(at + 16 * g + j, (w & LOW) | (fifths & 0x0101_0101) << 4);
            out.codes(at + 16 * g + 8 + j, (w >> 4 & LOW) | (fifths >> 1 & 0x0101_0101) << 4);
        }
    }
}

#[inline(always)]
fn q6_k(out: &mut Row<'_>, b: &[u8], at: usize, segment: usize, factor: f32) {
    out.step(segment, half(b, 208) * factor);
    for (p, &[low, high]) in b[192..208].as_chunks::<2>().0.iter().enumerate() {
        let (low, high) = (i16::from(low.cast_signed()), i16::from(high.cast_signed()));
        out.scale(16 * segment + 2 * p, low);
        out.scale(16 * segment + 2 * p + 1, high);
    }
    for half in 0..2 {
        for j in 0..8 {
            let (l0, l1) = (word(b, 64 * half + 4 * j), word(b, 64 * half + 32 + 4 * j));
            let high = word(b, 128 + 32 * half + 4 * j);
            let two = |shift: u32| (high >> shift & 0x0303_0303) << 4;
            for (quarter, low) in [l0, l1, l0 >> 4, l1 >> 4].into_iter().enumerate() {
                out.codes(at + 32 * half + 8 * quarter + j, (low & LOW) | two(2 * quarter as u32));
            }
        }
    }
}

#[inline(always)]
fn q2_k(out: &mut Row<'_>, b: &[u8], at: usize, segment: usize, factor: f32) {
    out.step(segment, half(b, 80) * factor);
    out.min(segment, half(b, 82) * factor);
    for (p, &[low, high]) in b[..16].as_chunks::<2>().0.iter().enumerate() {
        out.scale(16 * segment + 2 * p, i16::from(low & 15));
        out.scale(16 * segment + 2 * p + 1, i16::from(high & 15));
        out.offset(8 * segment + p, i16::from(low >> 4), i16::from(high >> 4));
    }
    for half in 0..2 {
        for j in 0..8 {
            let w = word(b, 16 + 32 * half + 4 * j);
            (0..4).for_each(|q| out.codes(at + 32 * half + 8 * q + j, w >> (2 * q) & 0x0303_0303));
        }
    }
}

#[inline(always)]
fn q3_k(out: &mut Row<'_>, b: &[u8], at: usize, segment: usize, factor: f32) {
    out.step(segment, half(b, 108) * factor);
    let int = |j: usize| {
        let code = (b[96 + j % 8] >> (4 * (j / 8)) & 15) | (b[104 + j % 4] >> (2 * (j / 4)) & 3) << 4;
        i16::from(code) - 32
    };
    for p in 0..8 {
        let (low, high) = (int(2 * p), int(2 * p + 1));
        out.scale(16 * segment + 2 * p, low);
        out.scale(16 * segment + 2 * p + 1, high);
    }
    for half in 0..2 {
        for j in 0..8 {
            let (low, high) = (word(b, 32 + 32 * half + 4 * j), word(b, 4 * j));
            for q in 0..4 {
                let third = (high >> (4 * half + q) & 0x0101_0101) << 2;
                out.codes(at + 32 * half + 8 * q + j, (low >> (2 * q) & 0x0303_0303) | third);
            }
        }
    }
}

/// Decoded values as multiples of their unit.
fn points(out: &mut Row<'_>, b: &[u8], at: usize, segment: usize, factor: f32) {
    use CodecId::*;
    /// The longest block of these formats.
    const MAX_LEN: usize = 256;
    let (codec, Offset::Zero(zero)) = (out.form.codec, out.form.offset) else { return };
    let zero = f32::from(zero);
    let (mut values, mut codes) = ([0f32; MAX_LEN], [0u8; MAX_LEN]);
    let len = codec.codec().block_len();
    let (values, codes) = (&mut values[..len], &mut codes[..len]);
    codec.codec().decode(b, values);
    let Some(grid) = codec.codec().grid() else { return };
    let scales = grid.unpack(b, codes);
    // What the grid's own steps are in units.
    let unit = match codec {
        Q1_0 => 0.5,
        IQ1S | IQ1M => 0.125,
        _ => 1.0,
    };
    for (s, values) in values.chunks_exact(out.form.segment).enumerate() {
        let unit = scales.step[s * out.form.segment / scales.sub_len] * unit;
        let inverse = if unit == 0.0 { 0.0 } else { 1.0 / unit };
        out.step(segment + s, unit * factor);
        for (j, four) in values.as_chunks::<4>().0.iter().enumerate() {
            let word = u32::from_le_bytes(four.map(|v| (v * inverse + zero + 0.5) as u8));
            out.codes(at + s * out.form.segment / 4 + j, word);
        }
    }
}

/// Codes `4 j … 4 j + 3` of a little-endian stream of codes.
#[inline(always)]
fn stream(bytes: &[u8], bits: u8, j: usize) -> u32 {
    let bits = u32::from(bits);
    let at = 4 * bits as usize * j;
    let bytes = &bytes[at / 8..];
    let v = match bytes.first_chunk() {
        Some(four) => u32::from_le_bytes(*four),
        None => bytes.iter().rev().fold(0, |v, b| v << 8 | u32::from(*b)),
    } >> (at % 8);
    let mask = (1 << bits) - 1;
    // An odd column of four starts in the middle of a byte for odd widths, and then has 24 bits left: enough for six at most.
    (0..4).fold(0, |w, i| w | (v >> (bits * i) & mask) << (8 * i))
}

fn float(kind: Float, bytes: &[u8], at: usize) -> f32 {
    match kind {
        Float::F32 => f32::from_bits(word(bytes, at)),
        Float::F16 => half(bytes, at),
        Float::BF16 => bf16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32(),
    }
}

/// 2^(byte − 127).
fn e8m0(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        b => f32::from_bits(u32::from(b) << 23),
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
