//! A block solved anew, with all other columns as they are.
//!
//! Given the gradient g of the row's loss at a block's values q, the loss as a function of the block is least at `q − g H_bb⁻¹`. Scales
//! near the old ones are fitted to that, and error feedback within the block chooses the codes: scales and codes move together, where
//! descent on either alone is stuck.

use super::lanes::{Lanes, pairs, round_all};
use super::rows::Rows;
use crate::factor::factor;
use crate::hessian::Hessian;
use bitsmith_formats::{BlockScales, Grid};
use bitsmith_runtime::product::Packed;
use ndarray::{Array2, ArrayView2, s};

/// What is the same for all rows of a block of columns.
pub(super) struct Block {
    /// `H_bb`.
    pub curvature: Array2<f32>,
    packed: Packed,
    diagonal: Vec<f32>,
    /// How error feedback visits the columns; `None` if `H_bb` cannot be factored.
    visits: Option<Visits>,
}

struct Visits {
    /// The block's columns, groups together.
    order: Vec<usize>,
    /// U in that order.
    u: Array2<f32>,
    /// `H_bb⁻¹`, in the block's own order.
    inverse: Packed,
}

impl Block {
    /// Block `b` of columns, as wide as the grid's blocks. `order` are all columns, groups together.
    pub fn new(hessian: &Hessian, order: &[usize], grid: &dyn Grid, b: usize) -> Self {
        let range = b * grid.block_len()..(b + 1) * grid.block_len();
        let curvature = hessian.damped.slice(s![range.clone(), range.clone()]).to_owned();
        let own: Vec<usize> = order.iter().copied().filter(|c| range.contains(c)).collect();
        let visits = factor(&hessian.damped, &own, 0.0).map(|u| {
            let order: Vec<usize> = own.iter().map(|c| c - range.start).collect();
            let (ordered, mut inverse) = (u.t().dot(&u), Array2::zeros(u.dim()));
            ordered.indexed_iter().for_each(|((i, j), v)| inverse[[order[i], order[j]]] = *v);
            Visits { order, u, inverse: Packed::new(inverse.view()) }
        });
        Block { diagonal: curvature.diag().to_vec(), packed: Packed::new(curvature.view()), curvature, visits }
    }

    /// `G + M H_bb` for the rows of G and M, `(rows, block)`.
    pub fn add_curved(&self, g: ArrayView2<'_, f32>, moves: &Array2<f32>) -> Array2<f32> {
        let mut sums = g.to_owned();
        self.packed.add_product(&mut pairs(moves, moves.ncols(), &mut sums, 0).collect::<Vec<_>>());
        sums
    }

    /// Solves block `b` of the rows anew where that lowers the loss, given its columns of `Δ H`. Returns by how much its values moved,
    /// `(rows, block)`, and in how many rows; nothing if none did.
    pub fn solve(&self, grid: &dyn Grid, rows: &mut Rows, b: usize, g: ArrayView2<'_, f32>) -> Option<(Array2<f32>, usize)> {
        let Visits { order, u, inverse } = self.visits.as_ref()?;
        let n = grid.block_len();
        let range = b * n..(b + 1) * n;
        let old = rows.values.slice(s![.., range.clone()]).to_owned();
        let mut target = old.clone();
        inverse.add_product(&mut pairs(&g.mapv(|g| -g), n, &mut target, 0).collect::<Vec<_>>());
        let near = |(r, target): (usize, ndarray::ArrayView1<'_, f32>)| -> BlockScales {
            let target = target.to_slice().expect("standard layout");
            grid.fit_near(&rows.scales[r * rows.blocks + b], target, &self.diagonal)
        };
        let scales = target.rows().into_iter().enumerate().map(near).collect();
        let mut new = Rows { blocks: 1, scales, codes: Array2::zeros(old.dim()), values: Array2::zeros(old.dim()) };
        let mut lanes = Lanes::new(&new, grid, target.view(), order);
        round_all(std::slice::from_mut(&mut lanes), u);
        lanes.finish(&mut new);
        let mut moves = &new.values - &old;
        let along = self.add_curved(Array2::zeros(moves.dim()).view(), &moves);
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
