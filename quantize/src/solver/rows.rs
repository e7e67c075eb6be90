//! Rows of a matrix while they are being solved: their scales, codes and values.

use crate::kernels::nearest;
use bitsmith_formats::{BlockScales, CodecId, Grid, encode_rows};
use ndarray::{Array2, ArrayView2};

/// A chunk of rows being solved.
pub(super) struct Chunk<'w> {
    /// What is to be approximated, `(rows, cols)`.
    pub weights: ArrayView2<'w, f32>,
    /// What stands for it so far.
    pub rows: Rows,
    /// `Δ H Δᵀ` of each row, as it was last asked for.
    pub lost: Vec<f64>,
    /// `Δ H`, where it is kept up to date.
    pub gradients: Array2<f32>,
    /// Whether the polish goes on.
    pub live: bool,
}

impl<'w> Chunk<'w> {
    pub fn new(weights: ArrayView2<'w, f32>, rows: Rows) -> Self {
        Chunk { weights, rows, lost: Vec::new(), gradients: Array2::zeros((0, 0)), live: true }
    }

    /// Rows with scales fitted to the weights; codes not chosen yet.
    pub fn fit(grid: &dyn Grid, weights: ArrayView2<'w, f32>, importance: &[f32]) -> Self {
        Chunk::new(weights, Rows::fit(grid, weights, importance))
    }
}

impl Chunk<'_> {
    /// `Δ H Δᵀ` of each row, from its gradient.
    pub fn losses(&self) -> Vec<f64> {
        let rows = self.rows.values.rows().into_iter().zip(self.weights.rows()).zip(self.gradients.rows());
        rows.map(|((q, w), g)| q.iter().zip(w).zip(g).map(|((q, w), g)| f64::from(q - w) * f64::from(*g)).sum()).collect()
    }

    /// Takes the rows that lost less, and returns how many. Gradients stay what they are.
    pub fn take_better_rows(&mut self, next: &mut Chunk<'_>) -> usize {
        let mut taken = 0;
        for r in 0..self.lost.len() {
            if next.lost[r] < self.lost[r] {
                self.rows.take_row(&mut next.rows, r);
                self.lost[r] = next.lost[r];
                taken += 1;
            }
        }
        taken
    }
}

/// Scales, codes and values of rows, in the layer's own column order.
pub(super) struct Rows {
    /// Blocks per row.
    pub blocks: usize,
    /// `rows × blocks`, row-major.
    pub scales: Vec<BlockScales>,
    /// `rows × cols`.
    pub codes: Array2<u8>,
    /// Dequantized codes, `rows × cols`.
    pub values: Array2<f32>,
}

impl Rows {
    /// Scales fitted to `weights`; codes not chosen yet.
    fn fit(grid: &dyn Grid, weights: ArrayView2<'_, f32>, importance: &[f32]) -> Rows {
        Rows::with_scales(grid, weights, importance, |_, w, imp| grid.fit(w, imp))
    }

    /// What the format's own encoder makes of `weights`.
    pub fn reference(codec: CodecId, grid: &dyn Grid, weights: ArrayView2<'_, f32>, importance: &[f32]) -> Rows {
        let (rows, cols) = weights.dim();
        let (n, block_bytes) = (grid.block_len(), codec.codec().block_bytes());
        let weights = weights.as_standard_layout();
        let mut bytes = vec![0u8; rows * cols / n * block_bytes];
        encode_rows(codec, weights.as_slice().expect("standard layout"), cols, Some(importance), &mut bytes);
        Rows::unpack(codec, grid, &bytes, cols)
    }

    /// Encoded rows of `cols` weights.
    pub fn unpack(codec: CodecId, grid: &dyn Grid, bytes: &[u8], cols: usize) -> Rows {
        let (n, block_bytes) = (grid.block_len(), codec.codec().block_bytes());
        let rows = bytes.len() / (cols / n * block_bytes);
        let (mut codes, mut values) = (Array2::zeros((rows, cols)), Array2::zeros((rows, cols)));
        let blocks = flat(&mut codes).chunks_exact_mut(n).zip(flat(&mut values).chunks_exact_mut(n));
        let scales = bytes.chunks_exact(block_bytes).zip(blocks).map(|(bytes, (codes, values))| {
            let scales = grid.unpack(bytes, codes);
            values.iter_mut().zip(&*codes).enumerate().for_each(|(i, (v, &code))| *v = grid.value(&scales, i, code));
            scales
        });
        let scales = scales.collect();
        Rows { blocks: cols / n, scales, codes, values }
    }

    /// Scales like these, fitted to `weights` that have moved.
    pub fn refit(&self, grid: &dyn Grid, weights: ArrayView2<'_, f32>, importance: &[f32]) -> Rows {
        Rows::with_scales(grid, weights, importance, |k, w, imp| grid.fit_near(&self.scales[k], w, imp))
    }

    /// Scales that `fit` chooses for each block, given its index, weights and importance.
    fn with_scales(
        grid: &dyn Grid,
        weights: ArrayView2<'_, f32>,
        importance: &[f32],
        fit: impl Fn(usize, &[f32], &[f32]) -> BlockScales,
    ) -> Rows {
        let n = grid.block_len();
        let (rows, cols) = weights.dim();
        let mut scales = Vec::with_capacity(rows * cols / n);
        let mut buffer = vec![0f32; cols];
        for row in weights.rows() {
            buffer.iter_mut().zip(row).for_each(|(b, w)| *b = *w);
            for (w, imp) in buffer.chunks_exact(n).zip(importance.chunks_exact(n)) {
                scales.push(fit(scales.len(), w, imp));
            }
        }
        Rows { blocks: cols / n, scales, codes: Array2::zeros((rows, cols)), values: Array2::zeros((rows, cols)) }
    }

    /// Rounds every weight to its nearest code, or every group to the nearest point.
    pub fn round(&mut self, grid: &dyn Grid, weights: ArrayView2<'_, f32>) {
        let (n, step, max) = (grid.block_len(), grid.step(), f32::from(grid.max_code()));
        if grid.is_linear() {
            for ((r, c), &w) in weights.indexed_iter() {
                let scales = &self.scales[r * self.blocks + c / n];
                let s = c % n / scales.sub_len;
                (self.codes[[r, c]], self.values[[r, c]]) = nearest(scales.step[s], scales.offset[s], max, w);
            }
            return;
        }
        let cols = weights.ncols();
        let weights = weights.as_standard_layout();
        let groups = weights.as_slice().expect("standard layout").chunks_exact(step);
        let codes = flat(&mut self.codes).chunks_exact_mut(step).zip(flat(&mut self.values).chunks_exact_mut(step));
        for (g, (w, (codes, values))) in groups.zip(codes).enumerate() {
            let (r, c) = (g * step / cols, g * step % cols);
            grid.round(&self.scales[r * self.blocks + c / n], c % n, w, codes, values);
        }
    }

    fn take_row(&mut self, other: &mut Rows, r: usize) {
        self.codes.row_mut(r).assign(&other.codes.row(r));
        self.values.row_mut(r).assign(&other.values.row(r));
        let range = r * self.blocks..(r + 1) * self.blocks;
        self.scales[range.clone()].swap_with_slice(&mut other.scales[range]);
    }

    /// Writes the rows' blocks.
    pub fn pack(&self, grid: &dyn Grid, out: &mut [u8]) {
        let n = grid.block_len();
        let row_bytes = out.len() / self.codes.nrows();
        let block_bytes = row_bytes / self.blocks;
        for (r, row) in out.chunks_exact_mut(row_bytes).enumerate() {
            let codes = self.codes.row(r);
            let codes = codes.as_slice().expect("standard layout");
            for (b, block) in row.chunks_exact_mut(block_bytes).enumerate() {
                grid.pack(&self.scales[r * self.blocks + b], &codes[b * n..(b + 1) * n], block);
            }
        }
    }
}

fn flat<T>(a: &mut Array2<T>) -> &mut [T] {
    a.as_slice_mut().expect("standard layout")
}
