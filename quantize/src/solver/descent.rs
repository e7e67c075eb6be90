//! Monotone improvement of any starting point: coordinate descent on codes (QuantEase, Behdin et al. 2023) and refits of
//! block scales under the full H.
//!
//! With `Δ = Ŵ − W` and `G = Δ H`, changing one code's value by δ changes the row's loss by `2 δ G_i + δ² H_ii`, so the best
//! value is the code nearest to `q_i − G_i / H_ii`. For a block b with the rest fixed, the loss is
//! `(ŵ_b − t)ᵀ H_bb (ŵ_b − t)` plus a constant, with the target `t = w_b − H_bb⁻¹ (G_b − H_bb Δ_b)`.

use super::gptq::{Rows, round_one};
use crate::hessian::Hessian;
use bitsmith_formats::{Gram, Grid};
use faer::prelude::Solve;
use faer::{Mat, Side};
use ndarray::{Array2, ArrayView2, s};

/// Rounds of descent and refit.
const ROUNDS: usize = 3;
/// Sweeps over the columns within a round.
const SWEEPS: usize = 3;

/// `H_bb` and `H_bb⁻¹` of every block of columns, shared by all rows.
pub(super) struct BlockInverses {
    blocks: Vec<(Vec<f32>, Vec<f32>)>,
}

impl BlockInverses {
    pub(super) fn new(h: &Hessian, block_len: usize) -> BlockInverses {
        use rayon::prelude::*;
        let blocks = (0..h.width() / block_len).into_par_iter().map(|b| {
            let lo = b * block_len;
            let m = Mat::<f64>::from_fn(block_len, block_len, |i, j| f64::from(h.damped[[lo + i, lo + j]]));
            let flat = h.damped.slice(s![lo..lo + block_len, lo..lo + block_len]).iter().copied().collect();
            // A block that cannot be inverted is left unrefitted: an empty inverse.
            let inverse = match m.llt(Side::Lower) {
                Ok(llt) => {
                    let inv = llt.solve(Mat::<f64>::identity(block_len, block_len));
                    (0..block_len * block_len).map(|k| inv[(k / block_len, k % block_len)] as f32).collect()
                }
                Err(_) => Vec::new(),
            };
            (flat, inverse)
        });
        BlockInverses { blocks: blocks.collect() }
    }
}

/// Per-row losses `Δ H Δᵀ`.
pub(super) fn losses(values: ArrayView2<'_, f32>, weights: ArrayView2<'_, f32>, h: &Hessian) -> Vec<f64> {
    let delta = &values - &weights;
    let g = delta.dot(&h.damped);
    delta
        .rows()
        .into_iter()
        .zip(g.rows())
        .map(|(d, g)| d.iter().zip(g).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum())
        .collect()
}

/// Alternates descent and refits until nothing improves, at most [`ROUNDS`] times.
pub(super) fn polish(grid: &dyn Grid, rows: &mut Rows, weights: ArrayView2<'_, f32>, h: &Hessian, inverses: &BlockInverses) {
    for _ in 0..ROUNDS {
        let delta = &rows.values - &weights;
        let mut g = delta.dot(&h.damped);
        let mut changed = 0;
        for r in 0..rows.values.nrows() {
            for _ in 0..SWEEPS {
                let n = descend_row(grid, rows, &mut g, r, h);
                changed += n;
                if n == 0 {
                    break;
                }
            }
        }
        // G is exact again before the refits read it.
        let mut delta = &rows.values - &weights;
        let mut g = delta.dot(&h.damped);
        let mut refitted = 0;
        for r in 0..rows.values.nrows() {
            for b in 0..rows.blocks {
                refitted += usize::from(refit_block(grid, rows, weights, &mut delta, &mut g, (r, b), h, inverses));
            }
        }
        if changed + refitted == 0 {
            break;
        }
    }
}

/// One sweep over a row's codes, most important column first. Returns the number of codes changed.
fn descend_row(grid: &dyn Grid, rows: &mut Rows, g: &mut Array2<f32>, r: usize, h: &Hessian) -> usize {
    let n = grid.block_len();
    let mut changed = 0;
    for &c in &h.order {
        let hcc = h.damped[[c, c]];
        let old = rows.values[[r, c]];
        let gradient = g[[r, c]];
        let (code, value) = round_one(grid, &rows.scales[r * rows.blocks + c / n], c % n, old - gradient / hcc);
        let step = value - old;
        if code == rows.codes[[r, c]] || step == 0.0 || 2.0 * step * gradient + step * step * hcc >= -1e-6 * step * step * hcc {
            continue;
        }
        rows.codes[[r, c]] = code;
        rows.values[[r, c]] = value;
        let mut row = g.row_mut(r);
        row.iter_mut().zip(h.damped.row(c)).for_each(|(g, h)| *g += step * h);
        changed += 1;
    }
    changed
}

/// Refits the scales of one block; keeps them only if the row's loss falls.
#[allow(clippy::too_many_arguments)]
fn refit_block(
    grid: &dyn Grid,
    rows: &mut Rows,
    weights: ArrayView2<'_, f32>,
    delta: &mut Array2<f32>,
    g: &mut Array2<f32>,
    (r, b): (usize, usize),
    h: &Hessian,
    inverses: &BlockInverses,
) -> bool {
    let n = grid.block_len();
    let lo = b * n;
    let (hbb, inverse) = &inverses.blocks[b];
    if inverse.is_empty() {
        return false;
    }
    // The gradient that the other blocks cause.
    let mut rest = vec![0f32; n];
    for i in 0..n {
        let own: f32 = hbb[i * n..(i + 1) * n].iter().enumerate().map(|(j, h)| h * delta[[r, lo + j]]).sum();
        rest[i] = g[[r, lo + i]] - own;
    }
    let target: Vec<f32> = (0..n)
        .map(|i| weights[[r, lo + i]] - inverse[i * n..(i + 1) * n].iter().zip(&rest).map(|(a, b)| a * b).sum::<f32>())
        .collect();
    let codes: Vec<u8> = rows.codes.slice(s![r, lo..lo + n]).to_vec();
    let mut scales = rows.scales[r * rows.blocks + b].clone();
    if !grid.refit(&mut scales, &codes, &target, Gram::Full(hbb)) {
        return false;
    }
    for i in 0..n {
        let s = i / scales.sub_len;
        let value = scales.step[s] * f32::from(codes[i]) + scales.offset[s];
        let step = value - rows.values[[r, lo + i]];
        if step != 0.0 {
            rows.values[[r, lo + i]] = value;
            delta[[r, lo + i]] += step;
            g.row_mut(r).iter_mut().zip(h.damped.row(lo + i)).for_each(|(g, h)| *g += step * h);
        }
    }
    rows.scales[r * rows.blocks + b] = scales;
    true
}
