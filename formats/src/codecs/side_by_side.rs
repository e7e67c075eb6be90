//! Encoding many blocks at once: one block per lane.
//!
//! Rows are whole blocks and follow one another, so the blocks of several rows are one stream; groups of as many blocks as there
//! are lanes are cut from it, across rows. The last group has fewer, and its idle lanes repeat its first block.

use crate::simd::{COLUMNS, Kernel, Lanes, MAX_LANES, dispatch};

/// An encoder of blocks side by side. `encode` and all it calls must be `#[inline(always)]`.
pub(super) trait SideBySide {
    /// Weights per block.
    fn len(&self) -> usize;
    /// Bytes per block.
    fn bytes(&self) -> usize;
    /// See [`Kernel::CHAINS`].
    const CHAINS: bool = false;
    /// Whether [`Group::row_mean_squares`] is read.
    fn needs_row_squares(&self) -> bool {
        false
    }
    /// Encodes a group's blocks into `out`, which has their bytes.
    fn encode<F: Lanes>(&self, group: &Group<'_>, out: &mut [u8]);
}

/// Up to [`MAX_LANES`] blocks that are encoded side by side.
pub(super) struct Group<'a> {
    /// The weights, block by block.
    pub x: &'a [f32],
    /// Weights per block.
    pub len: usize,
    /// The importance of each block's weights.
    pub importance: Option<[&'a [f32]; MAX_LANES]>,
    /// Mean square of the row that each block is in, if the encoder asked for it.
    pub row_mean_squares: [f32; MAX_LANES],
}

impl<'a> Group<'a> {
    /// Number of blocks.
    pub fn used(&self) -> usize {
        self.x.len() / self.len
    }
    /// The weights of one block.
    pub fn block(&self, lane: usize) -> &'a [f32] {
        &self.x[lane * self.len..][..self.len]
    }
    /// Weights `at ..` of every block, as many as `out` has: lane i of each value belongs to block i.
    #[inline(always)]
    pub fn weights<F: Lanes>(&self, at: usize, out: &mut [F]) {
        let mut rows = [self.block(0); MAX_LANES];
        for (row, block) in rows.iter_mut().zip(self.x.chunks_exact(self.len)) {
            *row = block;
        }
        transpose(&rows, at, out);
    }
    /// The same of the importance.
    #[inline(always)]
    pub fn importance<F: Lanes>(importance: &[&'a [f32]; MAX_LANES], at: usize, out: &mut [F]) {
        transpose(importance, at, out);
    }
}

/// `out[j]` lane i = `rows[i][at + j]`. A multiple of [`COLUMNS`].
#[inline(always)]
fn transpose<F: Lanes>(rows: &[&[f32]; MAX_LANES], at: usize, out: &mut [F]) {
    for (c, out) in out.as_chunks_mut::<COLUMNS>().0.iter_mut().enumerate() {
        F::transpose(rows, at + c * COLUMNS, out);
    }
}

/// Encodes rows with the widest lanes there are.
pub(super) fn encode_rows(encoder: &impl SideBySide, rows: &[f32], row_len: usize, importance: Option<&[f32]>, out: &mut [u8]) {
    assert!(row_len.is_multiple_of(encoder.len()) && rows.len().is_multiple_of(row_len.max(1)), "whole blocks and rows");
    assert_eq!(rows.len() / encoder.len() * encoder.bytes(), out.len(), "output length");
    assert!(importance.is_none_or(|q| q.len() >= row_len), "one importance per column");
    if !rows.is_empty() {
        dispatch(Rows { encoder, rows, row_len, importance, out });
    }
}

pub(super) struct Rows<'a, E> {
    pub encoder: &'a E,
    pub rows: &'a [f32],
    pub row_len: usize,
    pub importance: Option<&'a [f32]>,
    pub out: &'a mut [u8],
}

impl<E: SideBySide> Kernel for Rows<'_, E> {
    type Output = ();
    const CHAINS: bool = E::CHAINS;

    #[inline(always)]
    fn run<F: Lanes>(self) {
        let Rows { encoder, rows, row_len, importance, out } = self;
        let len = encoder.len();
        let squares = match encoder.needs_row_squares() {
            true => row_mean_squares::<F>(rows, row_len),
            false => vec![0.0; rows.len() / row_len],
        };
        // Where the next block is.
        let (mut row, mut column) = (0, 0);
        let groups = rows.chunks(F::N * len).zip(out.chunks_mut(F::N * encoder.bytes()));
        for (g, (x, out)) in groups.enumerate() {
            F::prefetch(rows.get((g + 1) * F::N * len..(g + 2) * F::N * len).unwrap_or(&[]));
            let (mut columns, mut row_mean_squares) = ([column; MAX_LANES], [squares[row]; MAX_LANES]);
            for (to, square) in columns.iter_mut().zip(&mut row_mean_squares).take(x.len() / len) {
                (*to, *square) = (column, squares[row]);
                column += len;
                if column == row_len {
                    (row, column) = (row + 1, 0);
                }
            }
            let importance = importance.map(|q| columns.map(|column| &q[column..][..len]));
            encoder.encode::<F>(&Group { x, len, importance, row_mean_squares }, out);
        }
    }
}

/// Mean square of each row, summed in order. A row per lane, as each sum is a chain of additions.
#[inline(always)]
fn row_mean_squares<F: Lanes>(rows: &[f32], row_len: usize) -> Vec<f32> {
    let mut means = Vec::with_capacity(rows.len() / row_len);
    for group in rows.chunks(F::N * row_len) {
        let n = group.len() / row_len;
        let whole = if n == F::N { row_len / COLUMNS * COLUMNS } else { 0 };
        let mut lanes = [&group[..row_len]; MAX_LANES];
        for (lane, row) in lanes.iter_mut().zip(group.chunks_exact(row_len)) {
            *lane = row;
        }
        let mut sum = F::zero();
        for at in (0..whole).step_by(COLUMNS) {
            let mut columns = [F::zero(); COLUMNS];
            F::transpose(&lanes, at, &mut columns);
            for x in columns {
                sum = sum + x * x;
            }
        }
        let mut sums = [0f32; MAX_LANES];
        sum.store(&mut sums);
        for (sum, row) in sums.into_iter().zip(group.chunks_exact(row_len)) {
            means.push(row[whole..].iter().fold(sum, |sum, &x| sum + x * x) / row_len as f32);
        }
    }
    means
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::simd::Portable;

    /// Rows of many kinds: bell-shaped, heavy tails, sparse, one-sided, coarse, constant, of all magnitudes.
    pub fn varied_rows(rows: usize, row_len: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut uniform = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u32 << 24) as f32
        };
        let mut out = Vec::with_capacity(rows * row_len);
        for row in 0..rows {
            let scale = if row % 8 == 5 { 10f32.powf(40.0 * uniform() - 36.0) } else { 0.02 };
            for _ in 0..row_len {
                let bell = (0..6).map(|_| uniform()).sum::<f32>() - 3.0;
                out.push(
                    scale
                        * match row % 8 {
                            0 | 5 => bell,
                            1 => bell / (uniform() + 1e-3),
                            2 => {
                                if uniform() < 0.05 {
                                    bell
                                } else {
                                    0.0
                                }
                            }
                            3 => -bell.abs(),
                            4 => (2.0 * bell).round(),
                            6 => 1.0,
                            _ => bell + 3.0,
                        },
                );
            }
        }
        out
    }

    /// The widest lanes and a single one must give the same bytes.
    pub fn assert_twins_agree(encoder: &impl SideBySide, rows: usize, row_len: usize, seed: u64) {
        let x = varied_rows(rows, row_len, seed);
        let importance: Vec<f32> = varied_rows(1, row_len, seed + 1).iter().map(|w| w * w).collect();
        for importance in [None, Some(&importance[..])] {
            let bytes = x.len() / encoder.len() * encoder.bytes();
            let (mut one, mut many) = (vec![0xaa; bytes], vec![0x55; bytes]);
            Rows { encoder, rows: &x, row_len, importance, out: &mut one }.run::<Portable<1>>();
            encode_rows(encoder, &x, row_len, importance, &mut many);
            for (b, (one, many)) in one.chunks(encoder.bytes()).zip(many.chunks(encoder.bytes())).enumerate() {
                assert_eq!(one, many, "block {b} of rows of {row_len}, importance: {}", importance.is_some());
            }
        }
    }

    #[test]
    fn importance_and_rows_follow_the_blocks() {
        /// Writes the sum of weight × importance and the row's mean square of each block of 16.
        struct Probe;
        impl SideBySide for Probe {
            fn len(&self) -> usize {
                16
            }
            fn bytes(&self) -> usize {
                8
            }
            fn needs_row_squares(&self) -> bool {
                true
            }
            #[inline(always)]
            fn encode<F: Lanes>(&self, group: &Group<'_>, out: &mut [u8]) {
                let (mut x, mut q) = ([F::zero(); 16], [F::zero(); 16]);
                group.weights(0, &mut x);
                Group::importance(group.importance.as_ref().expect("importance"), 0, &mut q);
                let sum = x.iter().zip(&q).fold(F::zero(), |s, (&x, &q)| s + x * q);
                let mut sums = [0f32; MAX_LANES];
                sum.store(&mut sums);
                for (lane, out) in out.chunks_exact_mut(8).enumerate() {
                    out[..4].copy_from_slice(&sums[lane].to_le_bytes());
                    out[4..].copy_from_slice(&group.row_mean_squares[lane].to_le_bytes());
                }
            }
        }
        let (rows, row_len) = (11, 48);
        let (x, q) = (varied_rows(rows, row_len, 3), varied_rows(1, row_len, 4));
        let mut out = vec![0u8; rows * 3 * 8];
        encode_rows(&Probe, &x, row_len, Some(&q), &mut out);
        for (b, out) in out.chunks_exact(8).enumerate() {
            let (x, q) = (&x[b * 16..][..16], &q[b % 3 * 16..][..16]);
            let sum = x.iter().zip(q).fold(0f32, |s, (x, q)| s + x * q);
            let row = &varied_rows(rows, row_len, 3)[b / 3 * row_len..][..row_len];
            let mean = row.iter().fold(0f32, |s, x| s + x * x) / row_len as f32;
            assert_eq!([out[..4].try_into().unwrap(), out[4..].try_into().unwrap()].map(f32::from_le_bytes), [sum, mean]);
        }
    }
}
