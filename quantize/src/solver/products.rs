//! The large products of `gptq`, on the CPU or on a device.
//!
//! A device holds what is multiplied again and again, U, H and the matrix that a product changes, while columns are rounded and scales
//! refitted on the CPU: of a feedback pass, panels of the weights come and their errors go; of a refit, blocks of gradients come and
//! moves go.

use super::lanes::{LAZY, Lanes};
use super::rows::{Chunk, Rows};
use crate::hessian::Hessian;
use crate::kernels::ROWS;
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::ops;
use candle_core::{Device, Tensor};
use ndarray::{Array2, ArrayView2, linalg::general_mat_mul, s};
use rayon::prelude::*;

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
    /// Rounds all columns of lanes, [`LAZY`] at a time, each time moving the rest: `w[hi.., ·] −= U[lo..hi, hi..]ᵀ e`.
    fn feedback(&self, lanes: &mut [Lanes<'_>], u: &Array2<f32>) -> Result<()>;
    /// Sets the chunks' gradients: `Δ H`.
    fn gradients(&self, chunks: &mut [Chunk<'_>]) -> Result<()>;
    /// Refits the blocks of live chunks in turn, adding `moves H` to the gradients. Returns the number of refits of each chunk.
    fn refit(&self, chunks: &mut [Chunk<'_>], refits: &Refits<'_>) -> Result<Vec<usize>>;
}

/// Products on the CPU, chunk by chunk.
pub(super) struct Host<'a>(pub &'a Hessian);

impl Products for Host<'_> {
    fn feedback(&self, lanes: &mut [Lanes<'_>], u: &Array2<f32>) -> Result<()> {
        lanes.iter_mut().for_each(|lanes| lanes.round_all(u));
        Ok(())
    }

    fn gradients(&self, chunks: &mut [Chunk<'_>]) -> Result<()> {
        for chunk in chunks {
            chunk.gradients = (&chunk.rows.values - &chunk.weights).dot(&self.0.damped);
        }
        Ok(())
    }

    fn refit(&self, chunks: &mut [Chunk<'_>], refits: &Refits<'_>) -> Result<Vec<usize>> {
        let of_chunk = |chunk: &mut Chunk<'_>| {
            let mut refitted = 0;
            for b in 0..refits.blocks {
                let (range, from) = refits.columns(b);
                let g = chunk.gradients.slice(s![.., range.clone()]);
                let Some((moves, n)) = (refits.refit)(&mut chunk.rows, b, g) else { continue };
                refitted += n;
                let h = self.0.damped.slice(s![range, from..]);
                general_mat_mul(1.0, &moves, &h, 1.0, &mut chunk.gradients.slice_mut(s![.., from..]));
            }
            refitted
        };
        Ok(chunks.iter_mut().map(|chunk| if chunk.live { of_chunk(chunk) } else { 0 }).collect())
    }
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
    fn feedback(&self, lanes: &mut [Lanes<'_>], u: &Array2<f32>) -> Result<()> {
        let factor = self.factor.as_ref().ok_or_else(|| Error::failed("H has no factor on the device"))?;
        let (cols, width) = (u.ncols(), lanes.len() * ROWS);
        // The columns of all chunks beside each other, `(columns, lanes)`.
        let beside = |lanes: &[Lanes<'_>], n: usize, of: for<'l> fn(&'l Lanes<'_>) -> &'l Array2<f32>| {
            let values = (0..n).flat_map(|i| lanes.iter().flat_map(move |l| of(l).row(i).to_slice().unwrap_or_default()));
            ops::from_host(values.copied().collect(), &[n, width], self.device)
        };
        // The columns not yet rounded.
        let mut rest = beside(lanes, cols, |l| &l.w)?;
        for lo in (0..cols).step_by(LAZY) {
            let hi = (lo + LAZY).min(cols);
            let panel = failed(rest.narrow(0, 0, hi - lo).and_then(|panel| panel.force_contiguous()))?;
            ops::with_f32(&panel, |panel| {
                lanes.par_iter_mut().enumerate().for_each(|(i, lanes)| {
                    for (mut row, new) in lanes.w.slice_mut(s![lo..hi, ..]).rows_mut().into_iter().zip(panel.chunks_exact(width))
                    {
                        row.iter_mut().zip(&new[i * ROWS..]).for_each(|(w, new)| *w = *new);
                    }
                    lanes.round(u, lo, hi);
                });
            })?;
            if hi < cols {
                let errors = beside(lanes, hi - lo, |l| &l.errors)?;
                let moved = || {
                    let u = factor.narrow(0, lo, hi - lo)?.narrow(1, hi, cols - hi)?.t()?.contiguous()?;
                    rest.narrow(0, hi - lo, cols - hi)? - u.matmul(&errors)?
                };
                rest = failed(moved())?;
            }
        }
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
