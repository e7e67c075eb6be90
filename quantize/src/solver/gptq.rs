//! Error feedback into any grid (GPTQ, Frantar et al. 2022, with static groups); grids that are not linear go to `stepwise`.
//!
//! 1. Fit every block's scales to W, weighted by E(x²), so that the order of columns is free.
//! 2. Visit the columns by descending E(x²). Round column i, then move the columns not yet visited by `−e U[i, ·]`:
//!    what one column loses the others make up for.
//! 3. Fit the scales again, to the moved weights that the columns had when they were rounded, and repeat step 2;
//!    each row keeps the better of the passes.
//! 4. Polish: coordinate descent on the codes and closed-form refits of the scales (see `descent`), both monotone.
//!
//! Rows are independent given U. They are solved in chunks; the result does not depend on the number of threads. On the CPU chunks run
//! in parallel, each to its end. On a device all chunks go through each step together, so that its products are large (see `products`).

use super::descent::Descent;
use super::products::{Host, OnDevice, Products};
use super::{Problem, Solution, Solver, stepwise};
use crate::hessian::Hessian;
use crate::kernels::{ROWS, feed_back, nearest};
use bitsmith_formats::{BlockScales, EncodedTensor, Grid, Result};
use ndarray::{Array2, ArrayView2, Axis, s};
use rayon::prelude::*;

/// Columns between lazy updates of the rest of the matrix.
pub(super) const LAZY: usize = 128;
/// Rows that go to a device together: whole chunks.
const TOGETHER: usize = 256 * ROWS;
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
        let solver = match problem.hessian {
            Some(h) if problem.device.is_cpu() => Some(Solving::new(grid, h, Box::new(Host(h)))),
            Some(h) => Some(Solving::new(grid, h, Box::new(OnDevice::new(h, problem.device)?))),
            None => None,
        };
        let solve = |first: usize, out: &mut [u8]| -> Result<()> {
            let weights = problem.weights.slice(s![first..first + out.len() / row_bytes, ..]);
            let chunks = weights.axis_chunks_iter(Axis(0), ROWS).into_par_iter();
            let mut chunks: Vec<Chunk<'_>> = chunks.map(|w| Chunk::fit(grid, w, importance)).collect();
            match &solver {
                Some(solver) => solver.solve(&mut chunks)?,
                None => chunks.par_iter_mut().for_each(|chunk| chunk.rows.round(grid, chunk.weights)),
            }
            out.par_chunks_mut(ROWS * row_bytes).zip(&chunks).for_each(|(out, chunk)| chunk.rows.pack(grid, out));
            Ok(())
        };
        let mut bytes = vec![0u8; rows * row_bytes];
        if problem.device.is_cpu() {
            bytes.par_chunks_mut(ROWS * row_bytes).enumerate().try_for_each(|(i, out)| solve(i * ROWS, out))?;
        } else {
            bytes.chunks_mut(TOGETHER * row_bytes).enumerate().try_for_each(|(i, out)| solve(i * TOGETHER, out))?;
        }
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

/// A chunk of rows being solved.
pub(super) struct Chunk<'w> {
    /// What is to be approximated, `(rows, cols)`.
    pub weights: ArrayView2<'w, f32>,
    /// What stands for it so far.
    pub rows: Rows,
    /// `Δ H`, where it is kept up to date.
    pub gradients: Array2<f32>,
    /// Whether the polish goes on.
    pub live: bool,
}

impl<'w> Chunk<'w> {
    fn new(weights: ArrayView2<'w, f32>, rows: Rows) -> Self {
        Chunk { weights, rows, gradients: Array2::zeros((0, 0)), live: true }
    }

    fn fit(grid: &dyn Grid, weights: ArrayView2<'w, f32>, importance: &[f32]) -> Self {
        Chunk::new(weights, Rows::fit(grid, weights, importance))
    }
}

/// What the chunks of a matrix are solved with.
struct Solving<'a> {
    grid: &'a dyn Grid,
    hessian: &'a Hessian,
    descent: Descent<'a>,
    products: Box<dyn Products + Sync + 'a>,
}

impl<'a> Solving<'a> {
    fn new(grid: &'a dyn Grid, hessian: &'a Hessian, products: Box<dyn Products + Sync + 'a>) -> Self {
        Solving { grid, hessian, descent: Descent::new(hessian, grid.block_len()), products }
    }

    /// Error feedback, in [`PASSES`] passes, then polish.
    fn solve(&self, chunks: &mut [Chunk<'_>]) -> Result<()> {
        let Some(u) = &self.hessian.factor else {
            chunks.par_iter_mut().for_each(|chunk| chunk.rows.round(self.grid, chunk.weights));
            self.products.gradients(chunks)?;
            return self.descent.polish(self.grid, chunks, &*self.products);
        };
        let mut moved = self.feedback(chunks, u)?;
        self.products.gradients(chunks)?;
        for _ in 1..PASSES {
            let refit =
                |(chunk, moved): (&Chunk<'_>, &Array2<f32>)| chunk.rows.refit(self.grid, moved.view(), &self.hessian.importance);
            let rows: Vec<Rows> = chunks.par_iter().zip(&moved).map(refit).collect();
            let mut next: Vec<Chunk<'_>> = chunks.iter().zip(rows).map(|(chunk, rows)| Chunk::new(chunk.weights, rows)).collect();
            moved = self.feedback(&mut next, u)?;
            self.products.gradients(&mut next)?;
            chunks.par_iter_mut().zip(&mut next).for_each(|(chunk, next)| chunk.take_better_rows(next));
        }
        self.descent.polish(self.grid, chunks, &*self.products)
    }

    /// One pass of GPTQ with the current scales. Returns the weights of each chunk as they were when each column was rounded.
    fn feedback(&self, chunks: &mut [Chunk<'_>], u: &Array2<f32>) -> Result<Vec<Array2<f32>>> {
        let order = &self.hessian.order;
        let lanes = |chunk: &Chunk<'_>| Lanes::new(&chunk.rows, self.grid, chunk.weights, order);
        let mut lanes: Vec<Lanes> = chunks.par_iter().map(lanes).collect();
        self.products.feedback(&mut lanes, u)?;
        Ok(chunks.par_iter_mut().zip(lanes).map(|(chunk, lanes)| lanes.finish(&mut chunk.rows, order)).collect())
    }
}

impl Chunk<'_> {
    /// `Δ H Δᵀ` of each row.
    pub fn losses(&self) -> Vec<f64> {
        let rows = self.rows.values.rows().into_iter().zip(self.weights.rows()).zip(self.gradients.rows());
        rows.map(|((q, w), g)| q.iter().zip(w).zip(g).map(|((q, w), g)| f64::from(q - w) * f64::from(*g)).sum()).collect()
    }

    /// Takes the rows that lose less.
    fn take_better_rows(&mut self, next: &mut Chunk<'_>) {
        for (r, (loss, new)) in self.losses().into_iter().zip(next.losses()).enumerate() {
            if new < loss {
                self.rows.take_row(&mut next.rows, r);
                self.gradients.row_mut(r).assign(&next.gradients.row(r));
            }
        }
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

    fn take_row(&mut self, other: &mut Rows, r: usize) {
        self.codes.row_mut(r).assign(&other.codes.row(r));
        self.values.row_mut(r).assign(&other.values.row(r));
        let range = r * self.blocks..(r + 1) * self.blocks;
        self.scales[range.clone()].swap_with_slice(&mut other.scales[range]);
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

/// Rows as lanes, for error feedback: one row's values are a column here, and columns are in visiting order. Rows that a short chunk lacks
/// stay zero.
pub(super) struct Lanes {
    /// The weights as they move, `(cols, ROWS)`.
    pub w: Array2<f32>,
    /// The errors of the columns rounded last, `(LAZY, ROWS)`.
    pub errors: Array2<f32>,
    values: Array2<f32>,
    codes: Array2<u8>,
    /// Steps and offsets of sub-blocks, `(sub-blocks, ROWS)`.
    steps: Array2<f32>,
    offsets: Array2<f32>,
    /// Each column's sub-block.
    subs: Vec<usize>,
    max_code: f32,
}

impl Lanes {
    fn new(of: &Rows, grid: &dyn Grid, weights: ArrayView2<'_, f32>, order: &[usize]) -> Self {
        let (rows, cols) = weights.dim();
        let sub_len = of.scales[0].sub_len;
        let per_block = grid.block_len() / sub_len;
        let lanes = |f: &dyn Fn(usize, usize) -> f32, n: usize| {
            Array2::from_shape_fn((n, ROWS), |(i, r)| if r < rows { f(r, i) } else { 0.0 })
        };
        let scales = |r: usize, s: usize| &of.scales[r * of.blocks + s / per_block];
        Lanes {
            w: lanes(&|r, i| weights[[r, order[i]]], cols),
            errors: Array2::zeros((LAZY, ROWS)),
            values: Array2::zeros((cols, ROWS)),
            codes: Array2::zeros((cols, ROWS)),
            steps: lanes(&|r, s| scales(r, s).step[s % per_block], cols / sub_len),
            offsets: lanes(&|r, s| scales(r, s).offset[s % per_block], cols / sub_len),
            subs: order.iter().map(|c| c / sub_len).collect(),
            max_code: f32::from(grid.max_code()),
        }
    }

    /// Rounds the columns `lo..hi`, each moving the later ones of them; leaves their errors.
    pub fn round(&mut self, u: &Array2<f32>, lo: usize, hi: usize) {
        let corner = u.slice(s![lo..hi, lo..hi]).as_standard_layout().into_owned();
        let panel = lo * ROWS..hi * ROWS;
        feed_back(
            &mut flat(&mut self.w)[panel.clone()],
            corner.as_slice().expect("standard layout"),
            self.steps.as_slice().expect("standard layout"),
            self.offsets.as_slice().expect("standard layout"),
            &self.subs[lo..hi],
            self.max_code,
            &mut flat(&mut self.codes)[panel.clone()],
            &mut flat(&mut self.values)[panel],
            flat(&mut self.errors),
        );
    }

    /// Gives codes and values to the rows. Returns the weights as they were when each column was rounded.
    fn finish(self, to: &mut Rows, order: &[usize]) -> Array2<f32> {
        let mut moved = Array2::zeros(to.values.dim());
        for r in 0..moved.nrows() {
            for (i, &c) in order.iter().enumerate() {
                to.codes[[r, c]] = self.codes[[i, r]];
                to.values[[r, c]] = self.values[[i, r]];
                moved[[r, c]] = self.w[[i, r]];
            }
        }
        moved
    }
}

fn flat<T>(a: &mut Array2<T>) -> &mut [T] {
    a.as_slice_mut().expect("standard layout")
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_formats::{CodecId, Float};
    use bitsmith_runtime::Device;

    /// Products on a device, here the CPU as one, against those of single chunks.
    #[test]
    fn a_device_solves_as_well() {
        let noise = |n: usize, seed: usize| -> Vec<f32> {
            (0..n).map(|i| (((i + 1) * (seed + 7) * 7919 % 10007) as f32 * 0.37).sin()).collect()
        };
        let (rows, cols) = (2 * ROWS + 5, 512);
        let x = Array2::from_shape_vec((300, cols), noise(300 * cols, 1)).unwrap();
        let shared = Array2::from_shape_vec((300, 1), noise(300, 2)).unwrap();
        let x = &x + &shared;
        let h = x.t().dot(&x) / 300.0;
        let weights = Array2::from_shape_vec((rows, cols), noise(rows * cols, 3)).unwrap();
        let loss = |h: &Hessian, values: &Array2<f32>| {
            let delta = values - &weights;
            f64::from((delta.dot(&h.damped) * &delta).sum())
        };
        let mlx = CodecId::MlxAffine { bits: 4, group: 64, scale: Float::F32 };
        for (codec, factored) in [(CodecId::Q4K, true), (CodecId::Q4_0, true), (mlx, true), (CodecId::Q3K, false)] {
            let mut hessian = Hessian::new(h.clone());
            hessian.factor = hessian.factor.filter(|_| factored);
            let grid = codec.codec().grid().unwrap();
            let solved = |products: Box<dyn Products + Sync + '_>, together: usize| {
                let solving = Solving::new(grid, &hessian, products);
                let mut values = Array2::zeros((0, cols));
                for weights in weights.axis_chunks_iter(Axis(0), together) {
                    let chunks = weights.axis_chunks_iter(Axis(0), ROWS);
                    let mut chunks: Vec<_> = chunks.map(|w| Chunk::fit(grid, w, &hessian.importance)).collect();
                    solving.solve(&mut chunks).unwrap();
                    chunks.iter().for_each(|c| values.append(Axis(0), c.rows.values.view()).unwrap());
                }
                values
            };
            let want = solved(Box::new(Host(&hessian)), ROWS);
            let got = solved(Box::new(OnDevice::new(&hessian, &Device::Cpu).unwrap()), rows);
            // Sums are rounded differently, so that a weight between two codes may go the other way, and later ones of its row after it.
            let most = want.iter().fold(0f32, |most, w| most.max(w.abs()));
            let differ = got.iter().zip(&want).filter(|(g, w)| (*g - *w).abs() > 0.02 * most).count();
            assert!(differ * 20 < got.len(), "{codec}: {differ} of {} codes differ", got.len());
            let ratio = loss(&hessian, &got) / loss(&hessian, &want);
            assert!((ratio - 1.0).abs() < 1e-3, "{codec}: {ratio}");
        }
    }
}
