//! Blocks as panels: the bytes of each format to codes, scales and offsets, sixteen rows at a time and four codes to a word, by shifts
//! and masks of words. Formats whose codes are points of a codebook are decoded to f32 and divided by their unit.

mod flat;
mod lanes;
mod nested;
mod packed;

use super::panel::{Panel, pair};
use super::{Form, PANEL_ROWS};
use crate::product::processor::Processor;
use bitsmith_formats::CodecId;
pub(super) use lanes::word;
use lanes::{Block, Floats, Lanes, map};
pub(super) use nested::six_bits;

/// The low half of every byte.
const LOW: u32 = 0x0f0f_0f0f;

/// A panel being filled.
struct Filling<'a> {
    form: &'a Form,
    /// What all values are multiplied by.
    factor: f32,
    panel: &'a mut Panel,
}

impl Filling<'_> {
    /// Codes of column of four `at`.
    #[inline(always)]
    fn codes(&mut self, at: usize, words: Lanes) {
        if self.form.words() == 1 {
            self.panel.codes[at] = words;
        } else {
            let zero = self.form.zero();
            self.panel.codes[2 * at] = map(words, |w| wide(w, zero)[0]);
            self.panel.codes[2 * at + 1] = map(words, |w| wide(w, zero)[1]);
        }
    }
    /// [`Filling::codes`] of one row.
    fn code(&mut self, at: usize, row: usize, word: u32) {
        if self.form.words() == 1 {
            self.panel.codes[at][row] = word;
        } else {
            [self.panel.codes[2 * at][row], self.panel.codes[2 * at + 1][row]] = wide(word, self.form.zero());
        }
    }
    /// The integer scales of a group, 16-bit numbers in the low halves of words.
    #[inline(always)]
    fn scale(&mut self, group: usize, scales: Lanes) {
        let runs = self.form.group / (4 * self.form.steps());
        let twice = map(scales, |s| s & 0xffff | s << 16);
        self.panel.scales[group * runs..(group + 1) * runs].fill(twice);
    }
    /// A pair of offsets.
    #[inline(always)]
    fn offsets(&mut self, at: usize, pairs: Lanes) {
        self.panel.offsets[at] = pairs;
    }
    #[inline(always)]
    fn step(&mut self, segment: usize, steps: Floats) {
        self.panel.steps[segment] = map(steps, |s| s * self.factor);
    }
    #[inline(always)]
    fn min(&mut self, segment: usize, mins: Floats) {
        self.panel.mins[segment] = map(mins, |m| m * self.factor);
    }
}

/// A panel for this format, with what is the same in all blocks.
pub(crate) fn panel(form: &Form) -> Panel {
    let mut panel = Panel::new(form);
    if form.segment != 256 {
        panel.scales.fill([pair(1, 1); PANEL_ROWS]);
        panel.offsets.fill([pair(1, 1); PANEL_ROWS]);
    }
    panel
}

/// Puts blocks of sixteen rows, equally many of each, into a panel that [`panel`] made. All values are to be multiplied by `factor`.
pub(crate) fn unpack(processor: Processor, form: &Form, factor: f32, rows: [&[u8]; PANEL_ROWS], panel: &mut Panel) {
    let out = Filling { form, factor, panel };
    match processor {
        // SAFETY: the processor has these instructions wherever it is said to be `Processor::Avx512`.
        #[cfg(target_arch = "x86_64")]
        Processor::Avx512 => unsafe { avx512(out, &rows) },
        // SAFETY: likewise.
        #[cfg(target_arch = "x86_64")]
        Processor::Avx2 => unsafe { avx2(out, &rows) },
        _ => fill(out, &rows),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(out: Filling<'_>, rows: &Block<'_, [u8]>) {
    fill(out, rows);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn avx512(out: Filling<'_>, rows: &Block<'_, [u8]>) {
    fill(out, rows);
}

/// Always inlined, so that it is compiled for the instructions of its callers.
#[inline(always)]
fn fill(mut out: Filling<'_>, rows: &Block<'_, [u8]>) {
    use CodecId::*;
    let out = &mut out;
    match out.form.codec {
        Q4_0 => flat::nibbles::<18>(out, rows),
        Q4_1 => flat::nibbles::<20>(out, rows),
        Q5_0 => flat::nibbles::<22>(out, rows),
        Q5_1 => flat::nibbles::<24>(out, rows),
        IQ4NL => flat::nibbles::<18>(out, rows),
        MXFP4 => flat::nibbles::<17>(out, rows),
        Q8_0 => flat::q8_0(out, rows),
        Q4K => nested::k_affine::<144>(out, rows),
        Q5K => nested::k_affine::<176>(out, rows),
        Q6K => nested::q6_k(out, rows),
        Q2K => nested::q2_k(out, rows),
        Q3K => nested::q3_k(out, rows),
        IQ4XS => nested::iq4_xs(out, rows),
        NVFP4 => packed::nvfp4(out, rows),
        Micro(micro) => packed::micro(out, rows, micro),
        MlxAffine { bits, group, scale } => packed::mlx_affine(out, rows, bits, group.into(), scale),
        IntGroup { bits, group, scale, .. } => packed::int_group(out, rows, bits, group as usize, scale),
        _ => packed::points(out, rows),
    }
}

/// The four codes of a word less the one that means zero, as 16-bit numbers in two words.
#[inline(always)]
fn wide(word: u32, zero: i16) -> [u32; 2] {
    let less = |code: u32| (code as u8 as i16 - zero).cast_unsigned();
    let both = |low: u32, high: u32| u32::from(less(low)) | u32::from(less(high)) << 16;
    [both(word, word >> 8), both(word >> 16, word >> 24)]
}

/// `table[code]` for the four codes of a word of low nibbles.
#[inline(always)]
fn look_up(table: &[u8; 16], nibbles: u32) -> u32 {
    u32::from_le_bytes(nibbles.to_le_bytes().map(|n| table[usize::from(n & 15)]))
}

/// Sixteen uneven values, in the order of their codes, shifted up by 128.
const IQ4: [u8; 16] = [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];
/// Twice the values of e2m1 codes, shifted up by 12.
const E2M1: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

/// 2^(byte − 127).
fn e8m0(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        b => f32::from_bits(u32::from(b) << 23),
    }
}
