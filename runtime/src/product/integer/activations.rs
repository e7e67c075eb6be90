//! Activations rounded to 8 bits, as llama.cpp rounds them.

use super::{Form, Offset};
use crate::kernels::round_to_bytes;
use rayon::prelude::*;

/// Sums of activations are kept for so many columns.
pub(crate) const SUM: usize = 16;

/// Rows of 8-bit activations with a scale per block.
#[derive(Debug)]
pub(crate) struct Activations {
    /// Number of rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Columns that share a scale.
    pub block: usize,
    /// Codes, row-major.
    pub codes: Vec<i8>,
    /// Scales, `(rows, columns / block)`.
    pub scales: Vec<f32>,
    /// Sums of codes, `(rows, columns / SUM)`.
    pub sums: Vec<i16>,
}

impl Activations {
    /// Rounds rows of activations: `block` 32 as ggml's Q8_0 (scale in f16), 256 as its Q8_K (scale in f32).
    pub fn new(x: &[f32], columns: usize, block: usize) -> Self {
        let rows = x.len() / columns.max(1);
        let mut codes = vec![0i8; x.len()];
        let mut scales = vec![0f32; x.len() / block];
        let mut sums = vec![0i16; x.len() / SUM];
        x.par_chunks(columns.max(1))
            .zip(codes.par_chunks_mut(columns.max(1)))
            .zip(scales.par_chunks_mut((columns / block).max(1)))
            .zip(sums.par_chunks_mut((columns / SUM).max(1)))
            .with_min_len(4)
            .for_each(|(((x, codes), scales), sums)| {
                round_to_bytes(x, block, codes, scales);
                for (sum, codes) in sums.iter_mut().zip(codes.as_chunks::<SUM>().0) {
                    *sum = codes.iter().map(|c| i16::from(*c)).sum();
                }
            });
        Activations { rows, columns, block, codes, scales, sums }
    }

    /// The values that codes and scales stand for.
    #[cfg(test)]
    pub fn decode(&self) -> Vec<f32> {
        self.codes.iter().enumerate().map(|(i, c)| f32::from(*c) * self.scales[i / self.block]).collect()
    }

    /// The activations in the order in which [`super::tile`] reads them: `width` rows side by side. With `halves`, runs of bytes start with
    /// two sums of 16 bits, otherwise with one of 32.
    pub fn pack(&self, form: &Form, width: usize, halves: bool) -> Packed {
        let padded = self.rows.next_multiple_of(width);
        let panel = form.panel_columns();
        let run = 4 * form.steps();
        // A run has a word for its start before the words of its codes.
        let run_words = 1 + form.steps() * form.words();
        let words = |columns: usize| columns / run * run_words;
        let mut codes = vec![0u32; padded * words(self.columns)];
        // One part per panel of columns, in it one per tile of rows.
        codes.par_chunks_mut(words(panel) * padded).enumerate().for_each(|(part, codes)| {
            let first = part * panel;
            let columns = panel.min(self.columns - first);
            for (tile, codes) in codes.chunks_exact_mut(words(columns) * width).enumerate() {
                for (r, row) in (tile * width..self.rows).take(width).enumerate() {
                    let row = &self.codes[row * self.columns + first..][..columns];
                    let runs = codes.chunks_exact_mut(run_words * width).zip(row.chunks_exact(run));
                    for (to, codes) in runs {
                        let words = to[width + r..].iter_mut().step_by(width);
                        if form.words() == 1 {
                            for (to, four) in words.zip(codes.as_chunks::<4>().0) {
                                *to = u32::from_le_bytes(four.map(|c| c.cast_unsigned()));
                            }
                            to[r] = start(codes, form.zero(), halves);
                        } else {
                            for (to, [low, high]) in words.zip(codes.as_chunks::<2>().0) {
                                *to = super::panel::pair(i16::from(*low), i16::from(*high));
                            }
                        }
                    }
                }
            }
        });
        let segments = self.columns / form.segment;
        let mut scales = vec![0f32; segments * padded];
        let per_row = self.columns / self.block;
        for (segment, scales) in scales.chunks_exact_mut(padded).enumerate() {
            let block = segment * form.segment / self.block;
            for (row, scale) in scales[..self.rows].iter_mut().enumerate() {
                *scale = self.scales[row * per_row + block];
            }
        }
        let pairs = if form.offset == Offset::Min { self.columns / form.pair_span() } else { 0 };
        let mut sums = vec![0u32; pairs * padded];
        let per_row = self.columns / SUM;
        for (pair, sums) in sums.chunks_exact_mut(padded).enumerate() {
            for (row, sum) in sums[..self.rows].iter_mut().enumerate() {
                let of = &self.sums[row * per_row..][..per_row];
                let (low, high) = match form.pair_span() {
                    32 => (of[2 * pair], of[2 * pair + 1]),
                    _ => (of[4 * pair] + of[4 * pair + 1], of[4 * pair + 2] + of[4 * pair + 3]),
                };
                *sum = super::panel::pair(low, high);
            }
        }
        Packed { padded, columns: self.columns, panel, run, run_words, width, codes, scales, sums }
    }
}

/// Activations as tiles of rows.
#[derive(Debug)]
pub(crate) struct Packed {
    /// Rows, those of zeros that fill the last tile included.
    pub padded: usize,
    columns: usize,
    /// Columns of a part.
    panel: usize,
    /// Columns of a run.
    run: usize,
    /// Words of a run.
    run_words: usize,
    /// Rows of a tile.
    width: usize,
    /// `(part, tile, run, word, row of the tile)`: the run's start, then four codes to a word, or two as 16-bit numbers.
    codes: Vec<u32>,
    /// `(segment, row)`.
    pub scales: Vec<f32>,
    /// `(pair of sums, row)`, two 16-bit sums each.
    pub sums: Vec<u32>,
}

impl Packed {
    /// Runs of a tile within a part of the columns.
    pub fn codes(&self, part: usize, tile: usize) -> &[u32] {
        let words = |columns: usize| columns / self.run * self.run_words;
        let len = words(self.panel.min(self.columns - part * self.panel)) * self.width;
        &self.codes[part * words(self.panel) * self.padded + tile * len..][..len]
    }
}

/// What the sum of a run starts with, so that codes count from the one that means zero: in halves for the two pairs of each four codes
/// that are multiplied together, or as one number.
fn start(codes: &[i8], zero: i16, halves: bool) -> u32 {
    let [mut low, mut high] = [0i16; 2];
    for [a, b, c, d] in codes.as_chunks::<4>().0 {
        low += i16::from(*a) + i16::from(*b);
        high += i16::from(*c) + i16::from(*d);
    }
    match halves {
        true => super::panel::pair(-zero * low, -zero * high),
        false => (-i32::from(zero) * (i32::from(low) + i32::from(high))).cast_unsigned(),
    }
}
