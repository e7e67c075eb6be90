//! The large products of `gptq`, on the CPU or on a device.
//!
//! A device holds what is multiplied again and again, U, H and the matrix that a product changes, while columns are rounded and scales
//! refitted on the CPU: of a feedback pass, panels of the weights come and their errors go; of a refit, blocks of gradients come and
//! moves go.

use super::lanes::{LAZY, Lanes, pairs, round_all};
use super::rows::{Chunk, Rows};
use crate::hessian::Hessian;
use crate::kernels::ROWS;
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::ops;
use bitsmith_runtime::product::{RowPair, add_product, quadratic_forms};
use candle_core::{Device, Tensor};
use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;
use std::ops::Range;

/// A round of refits: block by block, given the block's columns of `Δ H`, the values of rows move.
pub(super) struct Refits<'a> {
    /// Blocks to refit, from the first column on.
    pub blocks: usize,
    pub block_len: usize,
    /// Whether only the blocks to come still read the gradients.
    pub last: bool,
    /// Refits a block of some rows: by how much its values moved, and in how many rows.
    pub refit: &'a Refit<'a>,
}

/// See [`Refits::refit`].
pub(super) type Refit<'a> = dyn Fn(&mut Rows, usize, ArrayView2<'_, f32>) -> Option<(Array2<f32>, usize)> + Sync + 'a;

impl Refits<'_> {
    /// The block's columns, and the first column whose gradients it has to keep up to date.
    fn columns(&self, b: usize) -> (std::ops::Range<usize>, usize) {
        let range = b * self.block_len..(b + 1) * self.block_len;
        let from = if self.last { range.end } else { 0 };
        (range, from)
    }
}

/// Products with U and H.
pub(super) trait Products {
    /// How many chunks one thread takes through a step one after the other, at least.
    fn least_at_once(&self) -> usize;
    /// Rounds all columns of lanes, as [`round_all`] does.
    fn feedback(&self, lanes: &mut [Lanes<'_>], u: &Array2<f32>) -> Result<()>;
    /// Sets what the chunks' rows lost: `Δ H Δᵀ`.
    fn losses(&self, chunks: &mut [Chunk<'_>]) -> Result<()>;
    /// Sets the chunks' gradients: `Δ H`.
    fn gradients(&self, chunks: &mut [Chunk<'_>]) -> Result<()>;
    /// Refits the blocks of live chunks in turn, adding `moves H` to the gradients. Returns the number of refits of each chunk.
    fn refit(&self, chunks: &mut [Chunk<'_>], refits: &Refits<'_>) -> Result<Vec<usize>>;
}

/// Products on the CPU, on this thread.
pub(super) struct Host<'a>(pub &'a Hessian);

impl Products for Host<'_> {
    fn least_at_once(&self) -> usize {
        usize::MAX
    }

    fn feedback(&self, lanes: &mut [Lanes<'_>], u: &Array2<f32>) -> Result<()> {
        round_all(lanes, u);
        Ok(())
    }

    fn losses(&self, chunks: &mut [Chunk<'_>]) -> Result<()> {
        let deltas: Vec<Array2<f32>> = chunks.iter().map(|c| &c.rows.values - &c.weights).collect();
        let rows = deltas.iter().flat_map(|d| d.as_slice().expect("standard layout").chunks_exact(d.ncols()));
        let mut lost = quadratic_forms(&rows.collect::<Vec<_>>(), self.0.damped.view()).into_iter();
        chunks.iter_mut().for_each(|c| c.lost = lost.by_ref().take(c.weights.nrows()).collect());
        Ok(())
    }

    fn gradients(&self, chunks: &mut [Chunk<'_>]) -> Result<()> {
        let deltas: Vec<Array2<f32>> = chunks.iter().map(|c| &c.rows.values - &c.weights).collect();
        chunks.iter_mut().for_each(|c| c.gradients = Array2::zeros(c.weights.dim()));
        let rows = deltas.iter().zip(chunks).flat_map(|(delta, c)| pairs(delta, delta.ncols(), &mut c.gradients, 0));
        add_product(&mut rows.collect::<Vec<_>>(), self.0.damped.view());
        Ok(())
    }

    /// What moves in some blocks next to each other reaches their own columns at once, and all others together.
    fn refit(&self, chunks: &mut [Chunk<'_>], refits: &Refits<'_>) -> Result<Vec<usize>> {
        let (h, len, cols) = (&self.0.damped, refits.block_len, self.0.width());
        let mut refitted = vec![0; chunks.len()];
        let together = (STRIP / len).max(1);
        for first in (0..refits.blocks).step_by(together) {
            let blocks = first..(first + together).min(refits.blocks);
            let strip = blocks.start * len..blocks.end * len;
            let mut moved: Vec<Array2<f32>> = chunks.iter().map(|c| Array2::zeros((c.weights.nrows(), strip.len()))).collect();
            for b in blocks {
                let block = b * len..(b + 1) * len;
                let from = if refits.last { block.end } else { strip.start };
                let refit = |c: &mut Chunk<'_>| (refits.refit)(&mut c.rows, b, c.gradients.slice(s![.., block.clone()]));
                let moves: Vec<_> = chunks.iter_mut().map(|c| if c.live { refit(c) } else { None }).collect();
                for (i, (moves, n)) in moves.iter().enumerate().filter_map(|(i, moves)| Some((i, moves.as_ref()?))) {
                    refitted[i] += n;
                    moved[i].slice_mut(s![.., block.start - strip.start..block.end - strip.start]).assign(moves);
                }
                let moves = chunks.iter_mut().zip(&moves).filter_map(|(c, moves)| Some((c, &moves.as_ref()?.0)));
                let rows = moves.flat_map(|(c, moves)| moving(moves, &mut c.gradients, from..strip.end));
                add_product(&mut rows.collect::<Vec<_>>(), h.slice(s![block, from..strip.end]));
            }
            let before = if refits.last { 0..0 } else { 0..strip.start };
            for columns in [before, strip.end..cols] {
                let rows = moved.iter().zip(&mut *chunks).flat_map(|(m, c)| moving(m, &mut c.gradients, columns.clone()));
                add_product(&mut rows.collect::<Vec<_>>(), h.slice(s![strip.clone(), columns.clone()]));
            }
        }
        Ok(refitted)
    }
}

/// Columns whose refits reach the others together.
const STRIP: usize = 512;

/// The rows of `moves` in which something moves, with columns of those of `c`.
fn moving<'p>(moves: &'p Array2<f32>, c: &'p mut Array2<f32>, columns: Range<usize>) -> Vec<RowPair<'p>> {
    let (n, out) = (moves.ncols(), c.ncols());
    let moves = moves.as_slice().expect("standard layout").chunks_exact(n);
    let rows = moves.zip(c.as_slice_mut().expect("standard layout").chunks_exact_mut(out));
    rows.filter(|(m, _)| m.iter().any(|m| *m != 0.0)).map(|(m, c)| (m, &mut c[columns.clone()])).collect()
}

/// Products on a device, of all chunks together.
pub(super) struct OnDevice<'a> {
    device: &'a Device,
    /// H, `(in, in)`.
    damped: Tensor,
    /// U, `(in, in)`.
    factor: Option<Tensor>,
}

impl<'a> OnDevice<'a> {
    /// Puts H and U on the device.
    pub fn new(h: &Hessian, factor: Option<&Array2<f32>>, device: &'a Device) -> Result<Self> {
        let matrix = |m: &Array2<f32>| stacked([m.view()].into_iter(), m.ncols(), device);
        Ok(OnDevice { device, damped: matrix(&h.damped)?, factor: factor.map(matrix).transpose()? })
    }
}

impl Products for OnDevice<'_> {
    fn least_at_once(&self) -> usize {
        1
    }

    fn feedback(&self, lanes: &mut [Lanes<'_>], u: &Array2<f32>) -> Result<()> {
        let factor = self.factor.as_ref().ok_or_else(|| Error::failed("H has no factor on the device"))?;
        let cols = u.ncols();
        // The columns not yet rounded, of the rows of all chunks.
        let mut rest = stacked(lanes.iter().map(|l| l.w.view()), cols, self.device)?;
        for lo in (0..cols).step_by(LAZY) {
            let hi = (lo + LAZY).min(cols);
            let corner = u.slice(s![lo..hi, lo..hi]).as_standard_layout().into_owned();
            let panel = failed(rest.narrow(1, 0, hi - lo).and_then(|panel| panel.force_contiguous()))?;
            ops::with_f32(&panel, |panel| {
                lanes.par_iter_mut().zip(panel.par_chunks(ROWS * (hi - lo))).for_each(|(lanes, panel)| {
                    for (row, new) in lanes.w.rows_mut().into_iter().zip(panel.chunks_exact(hi - lo)) {
                        row.into_slice().expect("standard layout")[lo..hi].copy_from_slice(new);
                    }
                    lanes.round(&corner, lo, hi);
                });
            })?;
            if hi < cols {
                let errors = stacked(lanes.iter().map(|l| l.errors.slice(s![.., ..hi - lo])), hi - lo, self.device)?;
                let moved = || {
                    let u = factor.narrow(0, lo, hi - lo)?.narrow(1, hi, cols - hi)?.contiguous()?;
                    rest.narrow(1, hi - lo, cols - hi)? + errors.matmul(&u)?
                };
                rest = failed(moved())?;
            }
        }
        Ok(())
    }

    fn losses(&self, chunks: &mut [Chunk<'_>]) -> Result<()> {
        self.gradients(chunks)?;
        chunks.par_iter_mut().for_each(|c| c.lost = c.losses());
        Ok(())
    }

    fn gradients(&self, chunks: &mut [Chunk<'_>]) -> Result<()> {
        let cols = self.damped.dims()[1];
        let delta = chunks.par_iter().map(|c| &c.rows.values - &c.weights).collect::<Vec<_>>();
        let delta = stacked(delta.iter().map(|part| part.view()), cols, self.device)?;
        take_gradients(chunks, &failed(delta.matmul(&self.damped))?)
    }

    fn refit(&self, chunks: &mut [Chunk<'_>], refits: &Refits<'_>) -> Result<Vec<usize>> {
        let mut refitted = vec![0; chunks.len()];
        if refits.blocks == 0 {
            return Ok(refitted);
        }
        let cols = self.damped.dims()[1];
        let gradients = stacked(chunks.iter().map(|c| c.gradients.view()), cols, self.device)?;
        for b in 0..refits.blocks {
            let (range, from) = refits.columns(b);
            let block = failed(gradients.narrow(1, range.start, range.len()).and_then(|g| g.force_contiguous()))?;
            let moves: Vec<Option<(Array2<f32>, usize)>> = ops::with_f32(&block, |block| {
                let parts = block.par_chunks(ROWS * range.len());
                let refit = |(chunk, g): (&mut Chunk<'_>, &[f32])| {
                    let g = ArrayView2::from_shape((g.len() / range.len(), range.len()), g).ok().filter(|_| chunk.live)?;
                    (refits.refit)(&mut chunk.rows, b, g)
                };
                chunks.par_iter_mut().zip(parts).map(refit).collect()
            })?;
            refitted.iter_mut().zip(&moves).for_each(|(sum, moved)| *sum += moved.as_ref().map_or(0, |(_, n)| *n));
            if from == cols || moves.iter().all(Option::is_none) {
                continue;
            }
            let still = |chunk: &Chunk<'_>| Array2::zeros((chunk.weights.nrows(), range.len()));
            let moves: Vec<Array2<f32>> =
                moves.into_iter().zip(&*chunks).map(|(moved, chunk)| moved.map_or_else(|| still(chunk), |(m, _)| m)).collect();
            let moves = stacked(moves.iter().map(|part| part.view()), range.len(), self.device)?;
            let add = || {
                let h = self.damped.narrow(0, range.start, range.len())?.narrow(1, from, cols - from)?.contiguous()?;
                let sum = (gradients.narrow(1, from, cols - from)? + moves.matmul(&h)?)?;
                gradients.slice_set(&sum.contiguous()?, 1, from)
            };
            failed(add())?;
        }
        if !refits.last {
            take_gradients(chunks, &gradients)?;
        }
        Ok(refitted)
    }
}

/// A matrix on the device whose rows are those of all parts, one after the other.
fn stacked<'p>(parts: impl Iterator<Item = ArrayView2<'p, f32>>, columns: usize, device: &Device) -> Result<Tensor> {
    let mut values = Vec::new();
    for part in parts {
        values.extend(part.iter());
    }
    let rows = values.len() / columns.max(1);
    ops::from_host(values, &[rows, columns], device)
}

/// Brings the gradients of all chunks' rows to the CPU.
fn take_gradients(chunks: &mut [Chunk<'_>], gradients: &Tensor) -> Result<()> {
    let columns = gradients.dims()[1];
    ops::with_f32(gradients, |values| {
        chunks.par_iter_mut().zip(values.par_chunks(ROWS * columns)).try_for_each(|(chunk, values)| {
            let rows = Array2::from_shape_vec((values.len() / columns, columns), values.to_vec());
            chunk.gradients = rows.map_err(|e| Error::failed(e.to_string()))?;
            Ok(())
        })
    })?
}

fn failed<T>(result: candle_core::Result<T>) -> Result<T> {
    result.map_err(|e| Error::failed(format!("tensor operation failed: {e}")).with_source(e))
}
