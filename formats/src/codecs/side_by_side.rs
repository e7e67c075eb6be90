//! Encoding many blocks at once: one block per lane.
//!
//! Rows are whole blocks and follow one another, so the blocks of several rows are one stream; groups of as many blocks as there
//! are lanes are cut from it, across rows. The last group has fewer, and its idle lanes repeat its first block.

use crate::simd::{Kernel, Lanes, MAX_LANES, dispatch};

/// An encoder of blocks side by side. `encode` and all it calls must be `#[inline(always)]`.
pub(super) trait SideBySide {
    /// Weights per block.
    fn len(&self) -> usize;
    /// Bytes per block.
    fn bytes(&self) -> usize;
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
    /// A single block.
    pub fn one(x: &'a [f32], importance: Option<&'a [f32]>) -> Self {
        Group { x, len: x.len(), importance: importance.map(|q| [q; MAX_LANES]), row_mean_squares: [0.0; MAX_LANES] }
    }
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
        let used = self.used();
        transpose(|lane| &self.block(if lane < used { lane } else { 0 })[at..], out);
    }
    /// The same of the importance.
    #[inline(always)]
    pub fn importance<F: Lanes>(importance: &[&'a [f32]; MAX_LANES], at: usize, out: &mut [F]) {
        transpose(|lane| &importance[lane][at..], out);
    }
}

/// Columns that are gathered before they are loaded: a load that follows its stores closely would wait for them.
const COLUMNS: usize = 16;

/// `out[j]` lane i = `row(i)[j]`. A multiple of [`COLUMNS`].
#[inline(always)]
fn transpose<'a, F: Lanes>(row: impl Fn(usize) -> &'a [f32], out: &mut [F]) {
    let mut buffer = [[0f32; MAX_LANES]; COLUMNS];
    for (c, out) in out.as_chunks_mut::<COLUMNS>().0.iter_mut().enumerate() {
        for lane in 0..F::N {
            let from = &row(lane)[c * COLUMNS..][..COLUMNS];
            for (to, &x) in buffer.iter_mut().zip(from) {
                to[lane] = x;
            }
        }
        for (out, column) in out.iter_mut().zip(&buffer) {
            *out = F::load(column);
        }
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

    #[inline(always)]
    fn run<F: Lanes>(self) {
        let Rows { encoder, rows, row_len, importance, out } = self;
        let (len, per_row) = (encoder.len(), row_len / encoder.len());
        let squares = match encoder.needs_row_squares() {
            true => row_mean_squares(rows, row_len),
            false => Vec::new(),
        };
        let groups = rows.chunks(F::N * len).zip(out.chunks_mut(F::N * encoder.bytes()));
        for (g, (x, out)) in groups.enumerate() {
            let used = x.len() / len;
            let block = |lane: usize| g * F::N + if lane < used { lane } else { 0 };
            let importance = importance.map(|q| std::array::from_fn(|lane| &q[block(lane) % per_row * len..][..len]));
            let row_mean_squares = std::array::from_fn(|lane| squares.get(block(lane) / per_row).copied().unwrap_or(0.0));
            encoder.encode::<F>(&Group { x, len, importance, row_mean_squares }, out);
        }
    }
}

/// Mean square of each row, summed in order. Several rows at a time, as each sum is a chain of additions.
#[inline(always)]
fn row_mean_squares(rows: &[f32], row_len: usize) -> Vec<f32> {
    const ROWS: usize = 8;
    let mut means = Vec::with_capacity(rows.len() / row_len);
    for rows in rows.chunks(ROWS * row_len) {
        let n = rows.len() / row_len;
        let mut sums = [0f32; ROWS];
        if n == ROWS {
            for i in 0..row_len {
                for (r, sum) in sums.iter_mut().enumerate() {
                    let x = rows[r * row_len + i];
                    *sum += x * x;
                }
            }
        } else {
            for (sum, row) in sums.iter_mut().zip(rows.chunks_exact(row_len)) {
                *sum = row.iter().fold(0f32, |sum, &x| sum + x * x);
            }
        }
        means.extend(sums[..n].iter().map(|sum| sum / row_len as f32));
    }
    means
}
