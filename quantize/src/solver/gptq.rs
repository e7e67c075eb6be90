//! Error feedback into any grid (GPTQ, Frantar et al. 2022, with static groups); grids that are not linear go to `stepwise`.
//!
//! 1. Fit every block's scales to W, weighted by E(x²), so that the order of columns is free.
//! 2. Visit the columns by descending E(x²). Round column i, then move the columns not yet visited by `−e U[i, ·]`:
//!    what one column loses the others make up for.
//! 3. Fit the scales again, to the moved weights that the columns had when they were rounded, and repeat step 2;
//!    each row keeps the better of the passes.
//! 4. Polish: coordinate descent on the codes and closed-form refits of the scales (see `descent`), both monotone.
//!
//! Rows are independent given U. They are solved in chunks, in parallel; the result does not depend on the number of threads.

use super::descent::{self, Descent};
use super::{Problem, Solution, Solver, stepwise};
use crate::hessian::Hessian;
use crate::kernels::{ROWS, feed_back, nearest};
use bitsmith_formats::{BlockScales, EncodedTensor, Grid, Result};
use ndarray::{Array2, ArrayView2, linalg::general_mat_mul, s};
use rayon::prelude::*;

/// Columns between lazy updates of the rest of the matrix.
const LAZY: usize = 128;
/// Passes of error feedback; the later ones use scales fitted to the moved weights.
const PASSES: usize = 2;

/// See the module's documentation.
pub struct Gptq;

impl Solver for Gptq {
    fn name(&self) -> &'static str {
        "gptq"
    }
    fn about(&self) -> &'static str {
        "error feedback through the inverse Hessian into any format, importance-fitted scales, coordinate descent and refits"
    }
    fn needs_hessian(&self) -> bool {
        true
    }
    fn solve(&self, problem: &Problem<'_>) -> Result<Solution> {
        let (rows, cols) = problem.weights.dim();
        let codec = problem.codec.codec();
        let Some(grid) = codec.grid() else { return super::reference::Reference.solve(problem) };
        if problem.scale != 1.0 {
            // Blocks know nothing of the tensor's scale, and the best codes for W / s under H are the best for W.
            let divided = problem.weights.mapv(|w| w / problem.scale);
            let mut solution = self.solve(&Problem { weights: divided.view(), scale: 1.0, ..*problem })?;
            solution.tensor.scale = problem.scale;
            return Ok(solution);
        }
        let row_bytes = problem.codec.row_bytes(cols)?;
        let mut notes = Vec::new();
        let ones;
        let importance = match (problem.hessian, problem.importance) {
            (Some(h), _) => &h.importance[..],
            (None, Some(imp)) => imp,
            (None, None) => {
                ones = vec![1.0; cols];
                &ones
            }
        };
        if let Some(h) = problem.hessian {
            report(h, &mut notes);
        }
        if !grid.is_linear() {
            let bytes = stepwise::solve(problem, codec, grid, importance)?;
            return Ok(Solution { tensor: EncodedTensor::new(&[rows, cols], problem.codec, bytes), notes });
        }
        let descent = problem.hessian.map(|h| Descent::new(h, grid.block_len()));
        let mut bytes = vec![0u8; rows * row_bytes];
        bytes.par_chunks_mut(ROWS * row_bytes).enumerate().for_each(|(chunk, out)| {
            let lo = chunk * ROWS;
            let hi = (lo + ROWS).min(rows);
            let weights = problem.weights.slice(s![lo..hi, ..]);
            let mut state = Rows::fit(grid, weights, importance);
            match (problem.hessian, &descent) {
                (Some(h), Some(descent)) => state.solve(grid, weights, h, descent),
                _ => state.round(grid, weights),
            }
            state.pack(grid, out);
        });
        Ok(Solution { tensor: EncodedTensor::new(&[rows, cols], problem.codec, bytes), notes })
    }
}

fn report(h: &Hessian, notes: &mut Vec<String>) {
    if h.dead > 0 {
        notes.push(format!("{} of {} input channels were never active in calibration", h.dead, h.width()));
    }
    if h.factor.is_none() {
        notes.push("H could not be factored: rounded by importance and coordinate descent, without error feedback".into());
    } else if h.damping > 0.02 {
        notes.push(format!("H needed damping {} to be factored", h.damping));
    }
}

/// A chunk of rows being solved: scales, codes and values in the layer's own column order.
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

    /// Scales like these, fitted to `weights` that have moved.
    fn refit(&self, grid: &dyn Grid, weights: ArrayView2<'_, f32>, importance: &[f32]) -> Rows {
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

    /// Rounds every weight to its nearest code.
    fn round(&mut self, grid: &dyn Grid, weights: ArrayView2<'_, f32>) {
        let (n, max) = (grid.block_len(), f32::from(grid.max_code()));
        for ((r, c), &w) in weights.indexed_iter() {
            let scales = &self.scales[r * self.blocks + c / n];
            let s = c % n / scales.sub_len;
            (self.codes[[r, c]], self.values[[r, c]]) = nearest(scales.step[s], scales.offset[s], max, w);
        }
    }

    /// Error feedback, in [`PASSES`] passes, then polish.
    fn solve(&mut self, grid: &dyn Grid, weights: ArrayView2<'_, f32>, h: &Hessian, descent: &Descent<'_>) {
        let Some(u) = &h.factor else {
            self.round(grid, weights);
            let (mut g, _) = descent::gradients(self.values.view(), weights, h);
            return descent.polish(grid, self, weights, &mut g);
        };
        let mut moved = self.feedback(grid, weights, u, &h.order);
        let (mut g, mut losses) = descent::gradients(self.values.view(), weights, h);
        for _ in 1..PASSES {
            let mut next = self.refit(grid, moved.view(), &h.importance);
            moved = next.feedback(grid, weights, u, &h.order);
            let (next_g, next_losses) = descent::gradients(next.values.view(), weights, h);
            for (r, (loss, new)) in losses.iter_mut().zip(next_losses).enumerate() {
                if new < *loss {
                    *loss = new;
                    self.take_row(&mut next, r);
                    g.row_mut(r).assign(&next_g.row(r));
                }
            }
        }
        descent.polish(grid, self, weights, &mut g);
    }

    fn take_row(&mut self, other: &mut Rows, r: usize) {
        self.codes.row_mut(r).assign(&other.codes.row(r));
        self.values.row_mut(r).assign(&other.values.row(r));
        let range = r * self.blocks..(r + 1) * self.blocks;
        self.scales[range.clone()].swap_with_slice(&mut other.scales[range]);
    }

    /// One pass of GPTQ with the current scales, columns in `order`. Returns the weights as they were when each column was
    /// rounded.
    fn feedback(&mut self, grid: &dyn Grid, weights: ArrayView2<'_, f32>, u: &Array2<f32>, order: &[usize]) -> Array2<f32> {
        let (rows, cols) = weights.dim();
        let sub_len = self.scales[0].sub_len;
        let per_block = grid.block_len() / sub_len;
        // One row's values are a column here: lanes. Rows that a short chunk lacks stay zero.
        let lanes = |f: &dyn Fn(usize, usize) -> f32, n: usize| {
            Array2::from_shape_fn((n, ROWS), |(i, r)| if r < rows { f(r, i) } else { 0.0 })
        };
        let scales = |r: usize, s: usize| &self.scales[r * self.blocks + s / per_block];
        let steps = lanes(&|r, s| scales(r, s).step[s % per_block], cols / sub_len);
        let offsets = lanes(&|r, s| scales(r, s).offset[s % per_block], cols / sub_len);
        // Columns in visiting order.
        let mut w = lanes(&|r, i| weights[[r, order[i]]], cols);
        let mut values = Array2::<f32>::zeros((cols, ROWS));
        let mut codes = Array2::<u8>::zeros((cols, ROWS));
        let mut errors = Array2::<f32>::zeros((LAZY, ROWS));
        let subs: Vec<usize> = order.iter().map(|c| c / sub_len).collect();
        for lo in (0..cols).step_by(LAZY) {
            let hi = (lo + LAZY).min(cols);
            let corner = u.slice(s![lo..hi, lo..hi]).as_standard_layout().into_owned();
            let panel = lo * ROWS..hi * ROWS;
            feed_back(
                &mut flat(&mut w)[panel.clone()],
                corner.as_slice().expect("standard layout"),
                steps.as_slice().expect("standard layout"),
                offsets.as_slice().expect("standard layout"),
                &subs[lo..hi],
                f32::from(grid.max_code()),
                &mut flat(&mut codes)[panel.clone()],
                &mut flat(&mut values)[panel],
                flat(&mut errors),
            );
            if hi < cols {
                let e = errors.slice(s![..hi - lo, ..]);
                general_mat_mul(-1.0, &u.slice(s![lo..hi, hi..]).t(), &e, 1.0, &mut w.slice_mut(s![hi.., ..]));
            }
        }
        let mut moved = Array2::zeros((rows, cols));
        for r in 0..rows {
            for (i, &c) in order.iter().enumerate() {
                self.codes[[r, c]] = codes[[i, r]];
                self.values[[r, c]] = values[[i, r]];
                moved[[r, c]] = w[[i, r]];
            }
        }
        moved
    }

    fn pack(&self, grid: &dyn Grid, out: &mut [u8]) {
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
