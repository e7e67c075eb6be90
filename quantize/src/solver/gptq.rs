//! Error feedback into any grid (GPTQ, Frantar et al. 2022, with static groups; block-LDLQ where codes are chosen in groups).
//!
//! 1. Fit every block's scales to W, weighted by E(x²), so that the order of columns is free.
//! 2. Visit the columns by descending E(x²). Round column i, then move the columns not yet visited by `−e U[i, ·]`:
//!    what one column loses the others make up for.
//! 3. Fit the scales again, to the moved weights that the columns had when they were rounded, and repeat step 2;
//!    each row keeps the better of the passes and of the format's own encoder.
//! 4. Polish: coordinate descent on the codes, closed-form refits of the scales, blocks solved anew (see `polish`), all monotone.
//!
//! Rows are independent given U. They are solved in chunks; the result does not depend on the number of threads. On the CPU a thread takes
//! some chunks to their end, one step after the other, so that what it reads of U and H serves them all. On a device many go through each
//! step together (see `products`).

use super::lanes::Lanes;
use super::polish::Polish;
use super::products::{Host, OnDevice, Products};
use super::rows::{Chunk, Rows};
use super::{Problem, Solution, Solver};
use crate::hessian::{Hessian, Visits};
use crate::kernels::ROWS;
use bitsmith_formats::{CodecId, EncodedTensor, Grid, Result};
use bitsmith_runtime::Device;
use ndarray::{Array2, ArrayView2, Axis, s};
use rayon::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Rows that go to a device together: whole chunks.
const TOGETHER: usize = 256 * ROWS;
/// Chunks that one thread takes at most.
const CHUNKS: usize = 8;
/// Tasks for each thread, at least, where there are chunks for so many.
const TASKS: usize = 4;

/// How long a matrix is worked on.
pub(super) struct Effort {
    /// Passes of error feedback; the later ones use scales fitted to the moved weights.
    pub passes: usize,
    /// Rounds of polish at most.
    pub rounds: usize,
    /// Polish ends when a round lowers the loss by less than this fraction.
    pub gain: f64,
}

/// Two passes, and what is quickly had of polish.
pub(super) const EFFORT: Effort = Effort { passes: 2, rounds: 3, gain: 1e-3 };
/// Of wide matrices, in more than 4 bits: a round costs as many products with H as both passes, and the later ones gain a few hundredths.
const WIDE_EFFORT: Effort = Effort { rounds: 1, ..EFFORT };
const WIDE: usize = 2048;

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
        let (n, block_bytes) = (problem.codec.codec().block_len(), problem.codec.codec().block_bytes());
        let fine = 8 * block_bytes > 4 * n;
        solve(problem, if fine && problem.weights.ncols() >= WIDE { &WIDE_EFFORT } else { &EFFORT })
    }
}

/// Feedback and polish with this effort; see the module's documentation.
pub(super) fn solve(problem: &Problem<'_>, effort: &Effort) -> Result<Solution> {
    let (rows, cols) = problem.weights.dim();
    let codec = problem.codec.codec();
    let Some(grid) = codec.grid() else { return super::reference::Reference.solve(problem) };
    if problem.scale != 1.0 {
        // Blocks know nothing of the tensor's scale, and the best codes for W / s under H are the best for W.
        let divided = problem.weights.mapv(|w| w / problem.scale);
        let mut solution = solve(&Problem { weights: divided.view(), scale: 1.0, ..*problem }, effort)?;
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
    match problem.hessian {
        Some(h) => report(h, &mut notes),
        None if !grid.is_linear() => return super::reference::Reference.solve(problem),
        None => {}
    }
    let visits = problem.hessian.map(|h| h.visits(grid.step()));
    let solver = match (problem.hessian, &visits) {
        (Some(h), Some(visits)) => {
            let products: Box<dyn Products + Sync> = match problem.device.is_cpu() {
                true => Box::new(Host(h)),
                false => Box::new(OnDevice::new(h, visits.factor.as_deref(), problem.device)?),
            };
            Some(Solving::new(problem.codec, grid, h, visits, products, effort))
        }
        _ => None,
    };
    let solve = |first: usize, out: &mut [u8]| -> Result<()> {
        let weights = problem.weights.slice(s![first..first + out.len() / row_bytes, ..]);
        let at_once = if problem.device.is_cpu() { usize::MAX } else { 1 };
        let chunks = weights.axis_chunks_iter(Axis(0), ROWS).into_par_iter().with_min_len(at_once);
        let mut chunks: Vec<Chunk<'_>> = chunks.map(|w| Chunk::fit(grid, w, importance)).collect();
        match &solver {
            Some(solver) => solver.solve(&mut chunks)?,
            None => chunks.iter_mut().for_each(|chunk| chunk.rows.round(grid, chunk.weights)),
        }
        let packed = out.par_chunks_mut(ROWS * row_bytes).zip(&chunks).with_min_len(at_once);
        packed.for_each(|(out, chunk)| chunk.rows.pack(grid, out));
        Ok(())
    };
    let mut bytes = vec![0u8; rows * row_bytes];
    by_rows(&mut bytes, row_bytes, problem.device, solve)?;
    let kept = solver.as_ref().map_or(0, |s| s.kept.load(Ordering::Relaxed));
    if kept > 0 {
        notes.push(format!("{kept} of {rows} rows lose least as the format's own encoder has them, and are polished from there"));
    }
    Ok(Solution { tensor: EncodedTensor::new(&[rows, cols], problem.codec, bytes), notes })
}

/// Polishes an encoded matrix from what it has toward another target, `(out, in)`, with this effort.
pub(super) fn improve(
    tensor: &EncodedTensor,
    target: ArrayView2<'_, f32>,
    hessian: &Hessian,
    device: &Device,
    effort: &Effort,
) -> Result<EncodedTensor> {
    let Some(grid) = tensor.codec.codec().grid() else { return Ok(tensor.clone()) };
    let cols = target.ncols();
    let row_bytes = tensor.codec.row_bytes(cols)?;
    // Blocks know nothing of the tensor's scale.
    let target = target.mapv(|w| w / tensor.scale);
    let order = hessian.visiting_order(grid.step());
    let polish = Polish::new(hessian, &order, grid);
    let products: Box<dyn Products + Sync> = match device.is_cpu() {
        true => Box::new(Host(hessian)),
        false => Box::new(OnDevice::new(hessian, None, device)?),
    };
    let polish = |first: usize, out: &mut [u8]| -> Result<()> {
        let targets = target.slice(s![first..first + out.len() / row_bytes, ..]);
        let parts = targets.axis_chunks_iter(Axis(0), ROWS).zip(out.chunks(ROWS * row_bytes));
        let chunk = |(target, bytes)| Chunk::new(target, Rows::unpack(tensor.codec, grid, bytes, cols));
        let mut chunks: Vec<Chunk<'_>> = parts.map(chunk).collect();
        products.gradients(&mut chunks)?;
        polish.polish(grid, &mut chunks, &*products, effort)?;
        out.chunks_mut(ROWS * row_bytes).zip(&chunks).for_each(|(out, chunk)| chunk.rows.pack(grid, out));
        Ok(())
    };
    let mut bytes = tensor.bytes.clone();
    by_rows(&mut bytes, row_bytes, device, polish)?;
    Ok(EncodedTensor { scale: tensor.scale, ..EncodedTensor::new(&tensor.shape, tensor.codec, bytes) })
}

/// Calls `solve` with the first row and the bytes of so many rows as are solved together: on the CPU, on several threads.
fn by_rows(
    bytes: &mut [u8],
    row_bytes: usize,
    device: &Device,
    solve: impl Fn(usize, &mut [u8]) -> Result<()> + Sync,
) -> Result<()> {
    if !device.is_cpu() {
        return bytes.chunks_mut(TOGETHER * row_bytes).enumerate().try_for_each(|(i, out)| solve(i * TOGETHER, out));
    }
    let chunks = bytes.len() / (ROWS * row_bytes) / (TASKS * rayon::current_num_threads());
    let rows = ROWS * chunks.clamp(1, CHUNKS);
    bytes.par_chunks_mut(rows * row_bytes).enumerate().try_for_each(|(i, out)| solve(i * rows, out))
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

/// What the chunks of a matrix are solved with.
struct Solving<'a> {
    codec: CodecId,
    grid: &'a dyn Grid,
    hessian: &'a Hessian,
    visits: &'a Visits<'a>,
    polish: Polish<'a>,
    effort: &'a Effort,
    products: Box<dyn Products + Sync + 'a>,
    /// Rows of which the format's own encoder lost least.
    kept: AtomicUsize,
}

impl<'a> Solving<'a> {
    fn new(
        codec: CodecId,
        grid: &'a dyn Grid,
        hessian: &'a Hessian,
        visits: &'a Visits<'a>,
        products: Box<dyn Products + Sync + 'a>,
        effort: &'a Effort,
    ) -> Self {
        let polish = Polish::new(hessian, &visits.order, grid);
        Solving { codec, grid, hessian, visits, polish, effort, products, kept: AtomicUsize::new(0) }
    }

    /// Error feedback, then polish.
    fn solve(&self, chunks: &mut [Chunk<'_>]) -> Result<()> {
        let (grid, importance) = (self.grid, &self.hessian.importance[..]);
        let at_once = self.products.least_at_once();
        let factor = self.visits.factor.as_deref().filter(|_| self.effort.passes > 0);
        if let Some(u) = factor {
            let mut moved = self.feedback(chunks, u)?;
            for _ in 1..self.effort.passes {
                let again = chunks.par_iter().zip(&moved).with_min_len(at_once);
                let rows = again.map(|(chunk, moved)| chunk.rows.refit(grid, moved.view(), importance)).collect();
                let mut next = with_rows(chunks, rows);
                moved = self.feedback(&mut next, u)?;
                chunks.iter_mut().zip(&mut next).for_each(|(chunk, next)| _ = chunk.take_better_rows(next));
            }
        } else {
            chunks.par_iter_mut().with_min_len(at_once).for_each(|chunk| chunk.rows.round(grid, chunk.weights));
            self.products.losses(chunks)?;
        }
        let own = |chunk: &Chunk<'_>| Rows::reference(self.codec, grid, chunk.weights, importance);
        let mut reference = with_rows(chunks, chunks.par_iter().with_min_len(at_once).map(own).collect());
        self.products.losses(&mut reference)?;
        let kept: usize = chunks.iter_mut().zip(&mut reference).map(|(chunk, next)| chunk.take_better_rows(next)).sum();
        self.kept.fetch_add(kept, Ordering::Relaxed);
        drop(reference);
        self.products.gradients(chunks)?;
        self.polish.polish(grid, chunks, &*self.products, self.effort)
    }

    /// One pass of GPTQ with the current scales. Returns the weights of each chunk as they were when each column was rounded.
    fn feedback(&self, chunks: &mut [Chunk<'_>], u: &Array2<f32>) -> Result<Vec<Array2<f32>>> {
        let at_once = self.products.least_at_once();
        let lanes = |chunk: &Chunk<'_>| Lanes::new(&chunk.rows, self.grid, chunk.weights, &self.visits.order);
        let mut lanes: Vec<Lanes> = chunks.par_iter().with_min_len(at_once).map(lanes).collect();
        self.products.feedback(&mut lanes, u)?;
        let finish = |(chunk, lanes): (&mut Chunk<'_>, Lanes<'_>)| {
            let (moved, lost) = lanes.finish(&mut chunk.rows);
            chunk.lost = lost;
            moved
        };
        Ok(chunks.par_iter_mut().zip(lanes).with_min_len(at_once).map(finish).collect())
    }
}

/// Other rows for the same weights.
fn with_rows<'w>(chunks: &[Chunk<'w>], rows: Vec<Rows>) -> Vec<Chunk<'w>> {
    chunks.iter().zip(rows).map(|(chunk, rows)| Chunk::new(chunk.weights, rows)).collect()
}

#[cfg(test)]
#[path = "gptq_tests.rs"]
mod tests;
