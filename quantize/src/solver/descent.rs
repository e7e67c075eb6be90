//! Monotone improvement of any starting point: coordinate descent on codes (QuantEase, Behdin et al. 2023) and refits of
//! block scales under the full H.
//!
//! With `Δ = Ŵ − W` and `G = Δ H`, changing one code's value by δ changes the row's loss by `2 δ G_i + δ² H_ii`, so the best
//! value is the code nearest to `q_i − G_i / H_ii`; while `|G_i| / H_ii` is below half a step, that is the code there is.
//! Changing a block's values by δ changes the loss by `2 δ G_b + δᵀ H_bb δ`: all that a refit of its scales needs to know.

use super::gptq::{Chunk, Rows};
use super::products::{Products, Refits};
use crate::hessian::Hessian;
use crate::kernels::{add_scaled, nearest};
use bitsmith_formats::{Gram, Grid, Result};
use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;

/// Rounds of descent and refit, at most.
const ROUNDS: usize = 3;
/// Sweeps over the columns within a round, at most.
const SWEEPS: usize = 3;
/// Longest blocks whose scales are refitted: for scales of whole rows, `H_bb` is all of H, and each row's refit would take several
/// products with it.
const MAX_REFITTED: usize = 512;
/// Rounds end when one lowers the loss by less than this fraction.
const GAIN: f64 = 1e-3;

/// What all rows share.
pub(super) struct Descent<'a> {
    hessian: &'a Hessian,
    /// `H_ii`.
    diagonal: Vec<f32>,
    /// `H_bb` of every block of columns; empty where blocks are not refitted.
    blocks: Vec<Vec<f32>>,
}

impl<'a> Descent<'a> {
    pub(super) fn new(hessian: &'a Hessian, block_len: usize) -> Self {
        let h = &hessian.damped;
        let block = |b: usize| {
            let range = b * block_len..(b + 1) * block_len;
            h.slice(s![range.clone(), range]).iter().copied().collect()
        };
        let n_blocks = if block_len > MAX_REFITTED { 0 } else { hessian.width() / block_len };
        let blocks = (0..n_blocks).map(block).collect();
        Descent { hessian, diagonal: h.diag().to_vec(), blocks }
    }

    /// Alternates descent and refits, in each chunk at most [`ROUNDS`] times. The chunks' gradients are `Δ H` to begin with, and no longer at
    /// the end.
    pub(super) fn polish(&self, grid: &dyn Grid, chunks: &mut [Chunk<'_>], products: &dyn Products) -> Result<()> {
        let total = |chunk: &Chunk<'_>| chunk.losses().iter().sum::<f64>();
        let mut losses: Vec<f64> = chunks.iter().map(total).collect();
        for round in 1..=ROUNDS {
            let last = round == ROUNDS;
            let descend = |chunk: &mut Chunk<'_>| match chunk.live {
                true => (0..chunk.rows.values.nrows()).map(|r| self.descend_row(grid, chunk, r)).sum(),
                false => 0,
            };
            let mut changed: Vec<usize> = chunks.par_iter_mut().map(descend).collect();
            let refit = |rows: &mut Rows, b: usize, g: ArrayView2<'_, f32>| self.refit_block(grid, rows, b, g);
            let refits = Refits { blocks: self.blocks.len(), block_len: grid.block_len(), last, refit: &refit };
            for (changed, refitted) in changed.iter_mut().zip(products.refit(chunks, &refits)?) {
                *changed += refitted;
            }
            if last {
                break;
            }
            for ((chunk, loss), changed) in chunks.iter_mut().zip(&mut losses).zip(changed).filter(|((c, _), _)| c.live) {
                let before = std::mem::replace(loss, total(chunk));
                chunk.live = changed > 0 && before - *loss >= GAIN * before;
            }
            if !chunks.iter().any(|chunk| chunk.live) {
                break;
            }
        }
        Ok(())
    }

    /// Sweeps over a row's codes, most important column first. Returns the number of codes changed.
    fn descend_row(&self, grid: &dyn Grid, chunk: &mut Chunk<'_>, r: usize) -> usize {
        let (rows, g) = (&mut chunk.rows, &mut chunk.gradients);
        let (n, blocks, max) = (grid.block_len(), rows.blocks, f32::from(grid.max_code()));
        // Each column's step, offset, and the gradient that a change takes at least.
        let mut lines = Vec::with_capacity(blocks * n);
        for (b, scales) in rows.scales[r * blocks..][..blocks].iter().enumerate() {
            for (s, (&step, &offset)) in scales.step.iter().zip(&scales.offset).enumerate() {
                let columns = &self.diagonal[b * n + s * scales.sub_len..][..scales.sub_len];
                lines.extend(columns.iter().map(|h| (step, offset, 0.4999 * step.abs() * h)));
            }
        }
        let (mut codes, mut values, mut g) = (rows.codes.row_mut(r), rows.values.row_mut(r), g.row_mut(r));
        let codes = codes.as_slice_mut().expect("standard layout");
        let values = values.as_slice_mut().expect("standard layout");
        let g = g.as_slice_mut().expect("standard layout");
        let mut changed = 0;
        for _ in 0..SWEEPS {
            let before = changed;
            for &c in &self.hessian.order {
                let (step, offset, enough) = lines[c];
                let gradient = g[c];
                if gradient.abs() <= enough {
                    continue;
                }
                let (hcc, old) = (self.diagonal[c], values[c]);
                let (code, value) = nearest(step, offset, max, old - gradient / hcc);
                let move_by = value - old;
                let square = move_by * move_by * hcc;
                if code == codes[c] || move_by == 0.0 || 2.0 * move_by * gradient + square >= -1e-6 * square {
                    continue;
                }
                codes[c] = code;
                values[c] = value;
                let h = self.hessian.damped.row(c);
                add_scaled(g, move_by, h.as_slice().expect("standard layout"));
                changed += 1;
            }
            if changed == before {
                break;
            }
        }
        changed
    }

    /// Refits the scales of the rows' block `b` where that lowers the loss, given the block's columns of `Δ H`. Returns by how much its
    /// values moved, `(rows, block)`, and in how many rows; nothing if none did.
    fn refit_block(&self, grid: &dyn Grid, rows: &mut Rows, b: usize, g: ArrayView2<'_, f32>) -> Option<(Array2<f32>, usize)> {
        let n = grid.block_len();
        let range = b * n..(b + 1) * n;
        let mut moves = Array2::<f32>::zeros((rows.values.nrows(), n));
        let mut gradient = vec![0f64; n];
        let mut refitted = 0;
        for (r, mut moves) in moves.rows_mut().into_iter().enumerate() {
            gradient.iter_mut().zip(g.row(r)).for_each(|(to, &g)| *to = f64::from(g));
            let codes = rows.codes.row(r);
            let codes = &codes.to_slice().expect("standard layout")[range.clone()];
            let scales = &mut rows.scales[r * rows.blocks + b];
            if !grid.descend(scales, codes, &gradient, Gram::Full(&self.blocks[b])) {
                continue;
            }
            refitted += 1;
            let values = rows.values.slice_mut(s![r, range.clone()]);
            for (i, ((value, m), &code)) in values.into_iter().zip(&mut moves).zip(codes).enumerate() {
                let s = i / scales.sub_len;
                let new = scales.step[s] * f32::from(code) + scales.offset[s];
                *m = new - *value;
                *value = new;
            }
        }
        (refitted > 0).then_some((moves, refitted))
    }
}
