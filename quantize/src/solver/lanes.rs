//! Error feedback over rows side by side.

use super::groups::{Group, WIDEST, feedback_curvature};
use super::rows::Rows;
use crate::kernels::{FeedBack, ROWS};
use bitsmith_formats::simd::dispatch;
use bitsmith_formats::{BlockScales, Grid};
use bitsmith_runtime::product::{RowPair, add_product};
use ndarray::{Array2, ArrayView2, s};

/// Columns between lazy updates of the rest of the matrix.
pub(super) const LAZY: usize = 128;

/// At most [`ROWS`] rows in error feedback, whose columns are in visiting order. While a panel of columns is rounded, the rows are lanes.
pub(super) struct Lanes<'a> {
    /// The weights as they move, `(rows, cols)`: those of a rounded column as they were when it was rounded.
    pub w: Array2<f32>,
    /// The errors of the columns rounded last, over `U_ii`, with their sign turned, `(rows, LAZY)`.
    pub errors: Array2<f32>,
    /// `Δ H Δᵀ` of each row in the columns rounded so far: the sum of squared errors, as `Δ = e U` and `U H Uᵀ = 1`.
    losses: Vec<f64>,
    values: Array2<f32>,
    codes: Array2<u8>,
    order: &'a [usize],
    kind: Kind<'a>,
    panel: Panel,
}

/// Columns that are being rounded, `(column, lane)`; lanes without a row are zero.
struct Panel {
    w: Vec<f32>,
    codes: Vec<u8>,
    values: Vec<f32>,
    errors: Vec<f32>,
}

/// How columns are rounded.
enum Kind<'a> {
    /// To `step · code + offset`.
    Linear {
        /// Steps and offsets of sub-blocks, `(sub-blocks, ROWS)`.
        steps: Vec<f32>,
        offsets: Vec<f32>,
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
        let kind = if grid.is_linear() {
            let sub_len = of.scales[0].sub_len;
            let (mut steps, mut offsets) = (vec![0f32; cols / sub_len * ROWS], vec![0f32; cols / sub_len * ROWS]);
            for (r, scales) in of.scales.chunks_exact(of.blocks).enumerate() {
                let subs =
                    scales.iter().flat_map(|scales| scales.step.iter().zip(&scales.offset).take(grid.block_len() / sub_len));
                let to = steps.iter_mut().zip(&mut offsets).skip(r).step_by(ROWS);
                to.zip(subs).for_each(|(to, (step, offset))| (*to.0, *to.1) = (*step, *offset));
            }
            Kind::Linear {
                steps,
                offsets,
                subs: order.iter().map(|c| c / sub_len).collect(),
                max_code: f32::from(grid.max_code()),
            }
        } else {
            Kind::Grouped { grid, scales: of.scales.clone(), blocks: of.blocks }
        };
        let mut w = Array2::zeros((rows, cols));
        for (mut to, from) in w.rows_mut().into_iter().zip(weights.rows()) {
            to.iter_mut().zip(order).for_each(|(to, &c)| *to = from[c]);
        }
        Lanes {
            w,
            errors: Array2::zeros((rows, LAZY)),
            losses: vec![0.0; rows],
            values: Array2::zeros((rows, cols)),
            codes: Array2::zeros((rows, cols)),
            order,
            kind,
            panel: Panel {
                w: vec![0.0; LAZY * ROWS],
                codes: vec![0; LAZY * ROWS],
                values: vec![0.0; LAZY * ROWS],
                errors: vec![0.0; LAZY * ROWS],
            },
        }
    }

    /// Rounds the columns `lo..hi`, each moving the later ones of them; leaves their errors. `corner` is `U[lo..hi, lo..hi]`.
    pub fn round(&mut self, corner: &Array2<f32>, lo: usize, hi: usize) {
        let n = hi - lo;
        for (r, row) in self.w.rows().into_iter().enumerate() {
            let row = &row.to_slice().expect("standard layout")[lo..hi];
            self.panel.w[r..].iter_mut().step_by(ROWS).zip(row).for_each(|(to, w)| *to = *w);
        }
        self.round_panel(corner, lo);
        let columns = lo..hi;
        for r in 0..self.w.nrows() {
            let errors = &self.panel.errors[..n * ROWS];
            let to = self.errors.row_mut(r).into_slice().expect("standard layout");
            to.iter_mut().zip(errors[r..].iter().step_by(ROWS)).for_each(|(to, e)| *to = -*e);
            self.losses[r] += to[..n].iter().map(|e| f64::from(e * e)).sum::<f64>();
            take_lane(&mut self.w, &self.panel.w, r, columns.clone());
            take_lane(&mut self.values, &self.panel.values, r, columns.clone());
            take_lane(&mut self.codes, &self.panel.codes, r, columns.clone());
        }
    }

    /// Rounds the panel, whose first column is visited as the one numbered `lo`.
    fn round_panel(&mut self, corner: &Array2<f32>, lo: usize) {
        let n = corner.ncols();
        let Panel { w, codes, values, errors } = &mut self.panel;
        match &self.kind {
            Kind::Linear { steps, offsets, subs, max_code } => dispatch(FeedBack {
                w,
                u: corner.as_slice().expect("standard layout"),
                steps,
                offsets,
                subs: &subs[lo..lo + n],
                max: *max_code,
                codes,
                values,
                errors,
            }),
            Kind::Grouped { grid, scales, blocks } => {
                let (step, block_len) = (grid.step(), grid.block_len());
                for i in (0..n).step_by(step) {
                    let group = i..i + step;
                    let u = corner.slice(s![group.clone(), i..]);
                    let curvature = feedback_curvature(u.slice(s![.., ..step]));
                    let column = self.order[lo + i];
                    for (r, scales) in scales.chunks_exact(*blocks).enumerate() {
                        let (scales, at) = (&scales[column / block_len], column % block_len);
                        let group = Group { grid: *grid, scales, at, curvature: &curvature[..step * step] };
                        let part = i * ROWS..(i + step) * ROWS;
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
                    move_later(&mut w[i * ROWS..n * ROWS], u, &errors[i * ROWS..]);
                }
            }
        }
    }

    /// Gives codes and values to the rows. Returns the weights as they were when each column was rounded, and what each row lost.
    pub fn finish(self, to: &mut Rows) -> (Array2<f32>, Vec<f64>) {
        let mut moved = Array2::zeros(to.values.dim());
        put_back(&mut to.codes, &self.codes, self.order);
        put_back(&mut to.values, &self.values, self.order);
        put_back(&mut moved, &self.w, self.order);
        (moved, self.losses)
    }
}

/// Rounds all columns of lanes, [`LAZY`] at a time, each time moving the rest: `w[·, hi..] −= e U[lo..hi, hi..]`.
pub(super) fn round_all(lanes: &mut [Lanes<'_>], u: &Array2<f32>) {
    let cols = u.ncols();
    for lo in (0..cols).step_by(LAZY) {
        let hi = (lo + LAZY).min(cols);
        let corner = u.slice(s![lo..hi, lo..hi]).as_standard_layout().into_owned();
        lanes.iter_mut().for_each(|lanes| lanes.round(&corner, lo, hi));
        if hi < cols {
            let mut rows: Vec<_> = lanes.iter_mut().flat_map(|l| pairs(&l.errors, hi - lo, &mut l.w, hi)).collect();
            add_product(&mut rows, u.slice(s![lo..hi, hi..]));
        }
    }
}

/// The first `inner` numbers of each row of one matrix with those of another from a column on.
pub(super) fn pairs<'p>(
    a: &'p Array2<f32>,
    inner: usize,
    c: &'p mut Array2<f32>,
    from: usize,
) -> impl Iterator<Item = RowPair<'p>> {
    let (width, out) = (a.ncols(), c.ncols());
    let a = a.as_slice().expect("standard layout").chunks_exact(width).map(move |row| &row[..inner]);
    a.zip(c.as_slice_mut().expect("standard layout").chunks_exact_mut(out).map(move |row| &mut row[from..]))
}

/// Puts a lane of a panel into the columns of a row.
fn take_lane<T: Copy>(to: &mut Array2<T>, panel: &[T], r: usize, columns: std::ops::Range<usize>) {
    let row = to.row_mut(r).into_slice().expect("standard layout");
    row[columns].iter_mut().zip(panel[r..].iter().step_by(ROWS)).for_each(|(to, from)| *to = *from);
}

/// Columns in visiting order back to the layer's own.
fn put_back<T: Copy>(to: &mut Array2<T>, from: &Array2<T>, order: &[usize]) {
    for (to, from) in to.rows_mut().into_iter().zip(from.rows()) {
        let to = to.into_slice().expect("standard layout");
        from.iter().zip(order).for_each(|(from, &c)| to[c] = *from);
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
