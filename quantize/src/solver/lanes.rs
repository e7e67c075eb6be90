//! Error feedback over rows side by side.

use super::groups::{Group, WIDEST, feedback_curvature};
use super::rows::Rows;
use crate::kernels::{ROWS, feed_back};
use bitsmith_formats::{BlockScales, Grid};
use ndarray::{Array2, ArrayView2, linalg::general_mat_mul, s};

/// Columns between lazy updates of the rest of the matrix.
pub(super) const LAZY: usize = 128;

/// Rows as lanes, for error feedback: one row's values are a column here, and columns are in visiting order. Rows that a short chunk lacks
/// stay zero.
pub(super) struct Lanes<'a> {
    /// The weights as they move, `(cols, ROWS)`.
    pub w: Array2<f32>,
    /// The errors of the columns rounded last, `(LAZY, ROWS)`.
    pub errors: Array2<f32>,
    values: Array2<f32>,
    codes: Array2<u8>,
    order: &'a [usize],
    kind: Kind<'a>,
}

/// How columns are rounded.
enum Kind<'a> {
    /// To `step · code + offset`.
    Linear {
        /// Steps and offsets of sub-blocks, `(sub-blocks, ROWS)`.
        steps: Array2<f32>,
        offsets: Array2<f32>,
        /// Each column's sub-block.
        subs: Vec<usize>,
        max_code: f32,
    },
    /// In groups, to what the grid says.
    Grouped {
        grid: &'a dyn Grid,
        /// The blocks' scales, row by row.
        scales: Vec<BlockScales>,
        blocks: usize,
    },
}

impl<'a> Lanes<'a> {
    /// `order` has the columns as they are to be visited, groups of [`Grid::step`] together.
    pub fn new(of: &Rows, grid: &'a dyn Grid, weights: ArrayView2<'_, f32>, order: &'a [usize]) -> Self {
        let (rows, cols) = weights.dim();
        let lanes = |f: &dyn Fn(usize, usize) -> f32, n: usize| {
            Array2::from_shape_fn((n, ROWS), |(i, r)| if r < rows { f(r, i) } else { 0.0 })
        };
        let kind = if grid.is_linear() {
            let sub_len = of.scales[0].sub_len;
            let per_block = grid.block_len() / sub_len;
            let scales = |r: usize, s: usize| &of.scales[r * of.blocks + s / per_block];
            Kind::Linear {
                steps: lanes(&|r, s| scales(r, s).step[s % per_block], cols / sub_len),
                offsets: lanes(&|r, s| scales(r, s).offset[s % per_block], cols / sub_len),
                subs: order.iter().map(|c| c / sub_len).collect(),
                max_code: f32::from(grid.max_code()),
            }
        } else {
            Kind::Grouped { grid, scales: of.scales.clone(), blocks: of.blocks }
        };
        Lanes {
            w: lanes(&|r, i| weights[[r, order[i]]], cols),
            errors: Array2::zeros((LAZY, ROWS)),
            values: Array2::zeros((cols, ROWS)),
            codes: Array2::zeros((cols, ROWS)),
            order,
            kind,
        }
    }

    /// Rounds the columns `lo..hi`, each moving the later ones of them; leaves their errors.
    pub fn round(&mut self, u: &Array2<f32>, lo: usize, hi: usize) {
        let corner = u.slice(s![lo..hi, lo..hi]).as_standard_layout().into_owned();
        let panel = lo * ROWS..hi * ROWS;
        match &self.kind {
            Kind::Linear { steps, offsets, subs, max_code } => feed_back(
                &mut flat(&mut self.w)[panel.clone()],
                corner.as_slice().expect("standard layout"),
                steps.as_slice().expect("standard layout"),
                offsets.as_slice().expect("standard layout"),
                &subs[lo..hi],
                *max_code,
                &mut flat(&mut self.codes)[panel.clone()],
                &mut flat(&mut self.values)[panel],
                flat(&mut self.errors),
            ),
            Kind::Grouped { grid, scales, blocks } => {
                let (w, codes) = (&mut flat(&mut self.w)[panel.clone()], &mut flat(&mut self.codes)[panel.clone()]);
                let (values, errors) = (&mut flat(&mut self.values)[panel], flat(&mut self.errors));
                let n = grid.block_len();
                for i in (0..hi - lo).step_by(grid.step()) {
                    let group = i..i + grid.step();
                    let u = corner.slice(s![group.clone(), i..]);
                    let curvature = feedback_curvature(u.slice(s![.., ..grid.step()]));
                    let column = self.order[lo + i];
                    for (r, scales) in scales.chunks_exact(*blocks).enumerate() {
                        let (scales, at) = (&scales[column / n], column % n);
                        let group = Group { grid: *grid, scales, at, curvature: &curvature[..grid.step() * grid.step()] };
                        let part = i * ROWS..(i + grid.step()) * ROWS;
                        round_group(
                            &group,
                            u,
                            r,
                            &w[part.clone()],
                            &mut codes[part.clone()],
                            &mut values[part.clone()],
                            &mut errors[part],
                        );
                    }
                    move_later(&mut w[i * ROWS..], u, &errors[i * ROWS..]);
                }
            }
        }
    }

    /// Rounds all columns, [`LAZY`] at a time, each time moving the rest.
    pub fn round_all(&mut self, u: &Array2<f32>) {
        let cols = u.ncols();
        for lo in (0..cols).step_by(LAZY) {
            let hi = (lo + LAZY).min(cols);
            self.round(u, lo, hi);
            if hi < cols {
                let e = self.errors.slice(s![..hi - lo, ..]);
                general_mat_mul(-1.0, &u.slice(s![lo..hi, hi..]).t(), &e, 1.0, &mut self.w.slice_mut(s![hi.., ..]));
            }
        }
    }

    /// Gives codes and values to the rows. Returns the weights as they were when each column was rounded.
    pub fn finish(self, to: &mut Rows) -> Array2<f32> {
        let mut moved = Array2::zeros(to.values.dim());
        for r in 0..moved.nrows() {
            for (i, &c) in self.order.iter().enumerate() {
                to.codes[[r, c]] = self.codes[[i, r]];
                to.values[[r, c]] = self.values[[i, r]];
                moved[[r, c]] = self.w[[i, r]];
            }
        }
        moved
    }
}

/// Rounds a group of one row; all slices are `(group, ROWS)`. Errors are over `u[k, k]`, each as the group's earlier ones have moved it.
fn round_group(
    group: &Group<'_>,
    u: ArrayView2<'_, f32>,
    r: usize,
    w: &[f32],
    codes: &mut [u8],
    values: &mut [f32],
    errors: &mut [f32],
) {
    let n = u.nrows();
    let (mut x, mut code, mut value, mut gradient) = ([0f32; WIDEST], [0u8; WIDEST], [0f32; WIDEST], [0f32; WIDEST]);
    (0..n).for_each(|k| x[k] = w[k * ROWS + r]);
    group.grid.round(group.scales, group.at, &x[..n], &mut code[..n], &mut value[..n]);
    if n > 1 {
        for (g, row) in gradient.iter_mut().zip(group.curvature.chunks_exact(n)) {
            *g = row.iter().zip(value.iter().zip(&x)).map(|(m, (v, x))| m * (v - x)).sum();
        }
        group.settle(&mut code[..n], &mut value[..n], &mut gradient[..n]);
    }
    for k in 0..n {
        let error = (x[k] - value[k]) / u[[k, k]];
        (k + 1..n).for_each(|l| x[l] -= error * u[[k, l]]);
        codes[k * ROWS + r] = code[k];
        values[k * ROWS + r] = value[k];
        errors[k * ROWS + r] = error;
    }
}

/// Moves the columns after a group by its errors: `w` begins with the group, `u` are its rows of U from the group on.
fn move_later(w: &mut [f32], u: ArrayView2<'_, f32>, errors: &[f32]) {
    let (w, n) = (w.as_chunks_mut::<ROWS>().0, u.nrows());
    for (u, e) in u.rows().into_iter().zip(errors.as_chunks::<ROWS>().0) {
        for (w, &u) in w.iter_mut().zip(u).skip(n) {
            for r in 0..ROWS {
                w[r] -= e[r] * u;
            }
        }
    }
}

fn flat<T>(a: &mut Array2<T>) -> &mut [T] {
    a.as_slice_mut().expect("standard layout")
}
