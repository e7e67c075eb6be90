//! Monotone improvement of any starting point: coordinate descent on codes (QuantEase, Behdin et al. 2023), refits of block
//! scales under the full H, and blocks solved anew (see `blocks`).
//!
//! With `Δ = Ŵ − W` and `G = Δ H`, changing one code's value by δ changes the row's loss by `2 δ G_i + δ² H_ii`, so the best
//! value is the code nearest to `q_i − G_i / H_ii`; while `|G_i| / H_ii` is below half a step, that is the code there is.
//! Changing a block's values by δ changes the loss by `2 δ G_b + δᵀ H_bb δ`: all that a refit of its scales needs to know.

use super::blocks::Block;
use super::gptq::Effort;
use super::groups::{Group, WIDEST};
use super::products::{Products, Refits};
use super::rows::{Chunk, Rows};
use crate::hessian::Hessian;
use crate::kernels::{add_scaled, nearest};
use bitsmith_formats::{Gram, Grid, Result};
use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;

/// Sweeps over the columns within a round, at most.
const SWEEPS: usize = 3;
/// Longest blocks whose scales are refitted: for scales of whole rows, `H_bb` is all of H, and each row's refit would take several
/// products with it.
const MAX_REFITTED: usize = 512;

/// By how much a block of several rows moved, `(rows, block)`, and in how many of them.
type Moved = (Array2<f32>, usize);

/// What all rows share.
pub(super) struct Polish<'a> {
    hessian: &'a Hessian,
    /// Columns as they are visited, groups together.
    order: &'a [usize],
    /// `H_ii`.
    diagonal: Vec<f32>,
    /// `H_gg` of every group of columns that are chosen together, row-major; empty for linear grids.
    groups: Vec<f32>,
    /// Every block of columns; empty where blocks are not refitted.
    blocks: Vec<Block>,
}

impl<'a> Polish<'a> {
    pub(super) fn new(hessian: &'a Hessian, order: &'a [usize], grid: &dyn Grid) -> Self {
        let h = &hessian.damped;
        let square = |at: usize, n: usize| h.slice(s![at..at + n, at..at + n]).iter().copied().collect::<Vec<f32>>();
        let block_len = grid.block_len();
        let n_blocks = if block_len > MAX_REFITTED { 0 } else { hessian.width() / block_len };
        let blocks = (0..n_blocks).into_par_iter().map(|b| Block::new(hessian, order, grid, b)).collect();
        let n_groups = if grid.is_linear() { 0 } else { hessian.width() / grid.step() };
        let groups = (0..n_groups).flat_map(|g| square(g * grid.step(), grid.step())).collect();
        Polish { hessian, order, diagonal: h.diag().to_vec(), groups, blocks }
    }

    /// Alternates moves of codes and of blocks, in each chunk as long as `effort` allows. The chunks' gradients are `Δ H` to begin with, and
    /// no longer at the end.
    pub(super) fn polish(
        &self,
        grid: &dyn Grid,
        chunks: &mut [Chunk<'_>],
        products: &dyn Products,
        effort: &Effort,
    ) -> Result<()> {
        let total = |chunk: &Chunk<'_>| chunk.losses().iter().sum::<f64>();
        let mut losses: Vec<f64> = chunks.iter().map(total).collect();
        for round in 1..=effort.rounds {
            let last = round == effort.rounds;
            let descend = |chunk: &mut Chunk<'_>| match chunk.live {
                true if grid.is_linear() => (0..chunk.rows.values.nrows()).map(|r| self.descend_row(grid, chunk, r)).sum(),
                true => (0..chunk.rows.values.nrows()).map(|r| self.descend_groups(grid, chunk, r)).sum(),
                false => 0,
            };
            let mut changed: Vec<usize> = chunks.par_iter_mut().with_min_len(products.least_at_once()).map(descend).collect();
            let refit = |rows: &mut Rows, b: usize, g: ArrayView2<'_, f32>| self.move_block(grid, rows, b, g);
            let refits = Refits { blocks: self.blocks.len(), block_len: grid.block_len(), last, refit: &refit };
            for (changed, refitted) in changed.iter_mut().zip(products.refit(chunks, &refits)?) {
                *changed += refitted;
            }
            if last {
                break;
            }
            for ((chunk, loss), changed) in chunks.iter_mut().zip(&mut losses).zip(changed).filter(|((c, _), _)| c.live) {
                let before = std::mem::replace(loss, total(chunk));
                chunk.live = changed > 0 && before - *loss >= effort.gain * before;
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
            for &c in self.order {
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

    /// The same for codes that are chosen in groups. Returns the number of groups changed.
    fn descend_groups(&self, grid: &dyn Grid, chunk: &mut Chunk<'_>, r: usize) -> usize {
        let (rows, g) = (&mut chunk.rows, &mut chunk.gradients);
        let (len, n) = (grid.block_len(), grid.step());
        let scales = &rows.scales[r * rows.blocks..][..rows.blocks];
        let (mut codes, mut values, mut g) = (rows.codes.row_mut(r), rows.values.row_mut(r), g.row_mut(r));
        let codes = codes.as_slice_mut().expect("standard layout");
        let values = values.as_slice_mut().expect("standard layout");
        let g = g.as_slice_mut().expect("standard layout");
        let mut changed = 0;
        for _ in 0..SWEEPS {
            let before = changed;
            for &c in self.order.iter().step_by(n) {
                let (mut old, mut gradient) = ([0f32; WIDEST], [0f32; WIDEST]);
                old[..n].copy_from_slice(&values[c..c + n]);
                gradient[..n].copy_from_slice(&g[c..c + n]);
                let group = Group { grid, scales: &scales[c / len], at: c % len, curvature: &self.groups[c * n..(c + n) * n] };
                if !group.settle(&mut codes[c..c + n], &mut values[c..c + n], &mut gradient[..n]) {
                    continue;
                }
                for (k, old) in old.into_iter().enumerate().take(n) {
                    let h = self.hessian.damped.row(c + k);
                    add_scaled(g, values[c + k] - old, h.as_slice().expect("standard layout"));
                }
                changed += 1;
            }
            if changed == before {
                break;
            }
        }
        changed
    }

    /// Refits the rows' block `b`, then solves it anew, where that lowers the loss; as [`Polish::refit_block`].
    fn move_block(&self, grid: &dyn Grid, rows: &mut Rows, b: usize, g: ArrayView2<'_, f32>) -> Option<Moved> {
        let block = &self.blocks[b];
        let Some((moves, refitted)) = self.refit_block(grid, rows, b, g) else { return block.solve(grid, rows, b, g) };
        Some(match block.solve(grid, rows, b, block.add_curved(g, &moves).view()) {
            Some((more, solved)) => (moves + more, refitted + solved),
            None => (moves, refitted),
        })
    }

    /// Refits the scales of the rows' block `b` where that lowers the loss, given the block's columns of `Δ H`. Returns by how much its
    /// values moved, `(rows, block)`, and in how many rows; nothing if none did.
    fn refit_block(&self, grid: &dyn Grid, rows: &mut Rows, b: usize, g: ArrayView2<'_, f32>) -> Option<Moved> {
        let n = grid.block_len();
        let range = b * n..(b + 1) * n;
        let mut moves = Array2::<f32>::zeros((rows.values.nrows(), n));
        let mut gradient = vec![0f64; n];
        let curvature = self.blocks[b].curvature.as_slice().expect("standard layout");
        let mut refitted = 0;
        for (r, mut moves) in moves.rows_mut().into_iter().enumerate() {
            gradient.iter_mut().zip(g.row(r)).for_each(|(to, &g)| *to = f64::from(g));
            let codes = rows.codes.row(r);
            let codes = &codes.to_slice().expect("standard layout")[range.clone()];
            let scales = &mut rows.scales[r * rows.blocks + b];
            if !grid.descend(scales, codes, &gradient, Gram::Full(curvature)) {
                continue;
            }
            refitted += 1;
            let values = rows.values.slice_mut(s![r, range.clone()]);
            for (i, ((value, m), &code)) in values.into_iter().zip(&mut moves).zip(codes).enumerate() {
                let new = grid.value(scales, i, code);
                *m = new - *value;
                *value = new;
            }
        }
        (refitted > 0).then_some((moves, refitted))
    }
}
