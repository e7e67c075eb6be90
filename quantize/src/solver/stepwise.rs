//! Error feedback into grids whose values are not evenly spaced: tables of values and codebooks of 4 or 8 weights (block-LDLQ, as
//! in QuIP#, Tseng et al. 2024).
//!
//! As in `gptq`, but columns are visited in groups of [`Grid::step`]. The group is rounded together, to the nearest point; its
//! errors then move the columns not yet visited, one column after the other. Scales are fitted to W weighted by E(x²), and in
//! a second pass to the moved weights. Each row keeps the best of the passes and of the format's own encoder, by the true loss.

use super::Problem;
use crate::hessian::Hessian;
use crate::kernels::add_scaled;
use bitsmith_formats::{BlockScales, Codec, Grid, Result, encode_all};
use ndarray::{Array2, ArrayView1};
use rayon::prelude::*;

/// Passes of error feedback; the later ones use scales fitted to the moved weights.
const PASSES: usize = 2;

/// The blocks of all rows. Without a factor of H the format's own encoder decides.
pub(super) fn solve(problem: &Problem<'_>, codec: &dyn Codec, grid: &dyn Grid, importance: &[f32]) -> Result<Vec<u8>> {
    let cols = problem.weights.ncols();
    let row_bytes = problem.codec.row_bytes(cols)?;
    let weights = problem.weights.as_standard_layout();
    let values = weights.as_slice().expect("standard layout");
    let mut bytes = vec![0u8; weights.nrows() * row_bytes];
    encode_all(problem.codec, values, cols, Some(importance), &mut bytes);
    let Some(hessian) = problem.hessian else { return Ok(bytes) };
    let Some((order, factor)) = hessian.factor_in_groups(grid.step()) else { return Ok(bytes) };
    let feedback = Feedback { grid, hessian, order: &order, factor: &factor };
    bytes.par_chunks_mut(row_bytes.max(1)).zip(values.par_chunks(cols.max(1))).for_each(|(bytes, row)| {
        let mut decoded = vec![0f32; cols];
        codec.decode(bytes, &mut decoded);
        let mut least = feedback.loss(row, &decoded);
        let fit = |w: &[f32], imp: &[f32], _: Option<&BlockScales>| grid.fit(w, imp);
        let mut scales = fit_row(grid, row, importance, None, fit);
        for pass in 0..PASSES {
            let (codes, values, moved) = feedback.round(row, &scales);
            let loss = feedback.loss(row, &values);
            if loss < least {
                least = loss;
                pack(grid, &scales, &codes, bytes);
            }
            if pass + 1 < PASSES {
                let near = |w: &[f32], imp: &[f32], old: Option<&BlockScales>| match old {
                    Some(old) => grid.fit_near(old, w, imp),
                    None => grid.fit(w, imp),
                };
                scales = fit_row(grid, &moved, importance, Some(&scales), near);
            }
        }
    });
    Ok(bytes)
}

/// The scales of each block of a row.
fn fit_row(
    grid: &dyn Grid,
    row: &[f32],
    importance: &[f32],
    old: Option<&[BlockScales]>,
    fit: impl Fn(&[f32], &[f32], Option<&BlockScales>) -> BlockScales,
) -> Vec<BlockScales> {
    let n = grid.block_len();
    let blocks = row.chunks_exact(n).zip(importance.chunks_exact(n)).enumerate();
    blocks.map(|(b, (w, imp))| fit(w, imp, old.map(|old| &old[b]))).collect()
}

fn pack(grid: &dyn Grid, scales: &[BlockScales], codes: &[u8], out: &mut [u8]) {
    let n = grid.block_len();
    let block_bytes = out.len() / scales.len().max(1);
    for ((scales, codes), out) in scales.iter().zip(codes.chunks_exact(n)).zip(out.chunks_exact_mut(block_bytes)) {
        grid.pack(scales, codes, out);
    }
}

/// What all rows share.
struct Feedback<'a> {
    grid: &'a dyn Grid,
    hessian: &'a Hessian,
    /// Columns in visiting order: groups of [`Grid::step`] neighbours.
    order: &'a [usize],
    /// U in that order.
    factor: &'a Array2<f32>,
}

impl Feedback<'_> {
    /// Codes and values of a row, and the weights as they were when each was rounded.
    fn round(&self, row: &[f32], scales: &[BlockScales]) -> (Vec<u8>, Vec<f32>, Vec<f32>) {
        let (n, step) = (self.grid.block_len(), self.grid.step());
        // In visiting order.
        let mut w: Vec<f32> = self.order.iter().map(|&c| row[c]).collect();
        let (mut codes, mut values, mut moved) = (vec![0u8; row.len()], vec![0f32; row.len()], vec![0f32; row.len()]);
        for i in (0..row.len()).step_by(step) {
            let c = self.order[i];
            let group = c..c + step;
            moved[group.clone()].copy_from_slice(&w[i..i + step]);
            self.grid.round(&scales[c / n], c % n, &w[i..i + step], &mut codes[group.clone()], &mut values[group]);
            for k in 0..step {
                let u = self.factor.row(i + k);
                let u = u.as_slice().expect("standard layout");
                let error = (w[i + k] - values[c + k]) / u[i + k];
                add_scaled(&mut w[i + k + 1..], -error, &u[i + k + 1..]);
            }
        }
        (codes, values, moved)
    }

    /// `Δ H Δᵀ` of one row.
    fn loss(&self, row: &[f32], values: &[f32]) -> f64 {
        let delta: Vec<f32> = values.iter().zip(row).map(|(v, w)| v - w).collect();
        let delta = ArrayView1::from(&delta);
        let gradient = self.hessian.damped.dot(&delta);
        delta.iter().zip(&gradient).map(|(d, g)| f64::from(*d) * f64::from(*g)).sum()
    }
}
