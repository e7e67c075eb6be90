//! A block solved anew, with all other columns as they are.
//!
//! Given the gradient g of the row's loss at a block's values q, the loss as a function of the block is least at `q − g H_bb⁻¹`. Scales
//! near the old ones are fitted to that, and error feedback within the block chooses the codes: scales and codes move together, where
//! descent on either alone is stuck.

use super::lanes::Lanes;
use super::rows::Rows;
use crate::hessian::{Hessian, factor};
use bitsmith_formats::{BlockScales, Grid};
use ndarray::{Array2, ArrayView2, s};

/// What is the same for all rows of a block of columns.
pub(super) struct Block {
    /// `H_bb`.
    pub curvature: Array2<f32>,
    diagonal: Vec<f32>,
    /// The block's columns as they are visited, groups together, and U in that order; `None` if `H_bb` cannot be factored.
    visits: Option<(Vec<usize>, Array2<f32>)>,
}

impl Block {
    /// Block `b` of columns, as wide as the grid's blocks. `order` are all columns, groups together.
    pub fn new(hessian: &Hessian, order: &[usize], grid: &dyn Grid, b: usize) -> Self {
        let range = b * grid.block_len()..(b + 1) * grid.block_len();
        let curvature = hessian.damped.slice(s![range.clone(), range.clone()]).to_owned();
        let own: Vec<usize> = order.iter().copied().filter(|c| range.contains(c)).collect();
        let u = factor(&hessian.damped, &own, 0.0);
        let visits = u.map(|u| (own.iter().map(|c| c - range.start).collect(), u));
        Block { diagonal: curvature.diag().to_vec(), curvature, visits }
    }

    /// Solves block `b` of the rows anew where that lowers the loss, given its columns of `Δ H`. Returns by how much its values moved,
    /// `(rows, block)`, and in how many rows; nothing if none did.
    pub fn solve(&self, grid: &dyn Grid, rows: &mut Rows, b: usize, g: ArrayView2<'_, f32>) -> Option<(Array2<f32>, usize)> {
        let (order, u) = self.visits.as_ref()?;
        let n = grid.block_len();
        let range = b * n..(b + 1) * n;
        let old = rows.values.slice(s![.., range.clone()]).to_owned();
        let ordered = Array2::from_shape_fn(g.dim(), |(r, i)| g[[r, order[i]]]);
        let step = ordered.dot(&u.t()).dot(u);
        let mut target = old.clone();
        for (i, &c) in order.iter().enumerate() {
            target.column_mut(c).zip_mut_with(&step.column(i), |t, s| *t -= s);
        }
        let near = |(r, target): (usize, ndarray::ArrayView1<'_, f32>)| -> BlockScales {
            let target = target.to_slice().expect("standard layout");
            grid.fit_near(&rows.scales[r * rows.blocks + b], target, &self.diagonal)
        };
        let scales = target.rows().into_iter().enumerate().map(near).collect();
        let mut new = Rows { blocks: 1, scales, codes: Array2::zeros(old.dim()), values: Array2::zeros(old.dim()) };
        let mut lanes = Lanes::new(&new, grid, target.view(), order);
        lanes.round_all(u);
        lanes.finish(&mut new);
        let mut moves = &new.values - &old;
        let along = moves.dot(&self.curvature);
        let mut solved = 0;
        for r in 0..moves.nrows() {
            let sum = |a: ArrayView2<'_, f32>| -> f64 {
                a.row(r).iter().zip(moves.row(r)).map(|(a, m)| f64::from(*a) * f64::from(*m)).sum()
            };
            let (slope, square) = (sum(g), sum(along.view()));
            if 2.0 * slope + square < -1e-6 * square {
                rows.codes.slice_mut(s![r, range.clone()]).assign(&new.codes.row(r));
                rows.values.slice_mut(s![r, range.clone()]).assign(&new.values.row(r));
                std::mem::swap(&mut rows.scales[r * rows.blocks + b], &mut new.scales[r]);
                solved += 1;
            } else {
                moves.row_mut(r).fill(0.0);
            }
        }
        (solved > 0).then_some((moves, solved))
    }
}
