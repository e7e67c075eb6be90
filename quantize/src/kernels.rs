//! Inner loops of the solvers, for wide vector registers too. No order of sums depends on the processor.

use bitsmith_formats::simd::{IntLanes, Kernel, Lanes};

/// Rows that error feedback solves side by side: one lane each.
pub const ROWS: usize = 32;
/// 1.5 · 2²³: adding it rounds to the nearest integer, ties to even, and leaves the integer in the low bits of the mantissa.
const MAGIC: f32 = 12_582_912.0;

/// The code nearest to `x` of those that `step · code + offset` takes, as [`Grid::round`](bitsmith_formats::Grid::round) chooses
/// it, and its value.
#[inline(always)]
pub fn nearest(step: f32, offset: f32, max: f32, x: f32) -> (u8, f32) {
    let t = (x - offset) / step;
    let t = if t < 0.0 { 0.0 } else { t };
    let t = if t > max { max } else { t };
    // A step of 0 has no quotient: code 0.
    let t = if step == 0.0 { 0.0 } else { t } + MAGIC;
    (t.to_bits() as u8, step * (t - MAGIC) + offset)
}

bitsmith_formats::dispatched! {
    /// `y += a · x`.
    pub fn add_scaled(y: &mut [f32], a: f32, x: &[f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += a * x;
        }
    }
}

/// Columns whose sums of earlier errors are taken together.
const COLUMNS: usize = 8;

/// Error feedback within a panel of columns, from left to right. Column i is rounded, and later columns move by `−e u[i, ·]` with the
/// error e, over `u[i, i]`.
pub struct FeedBack<'a> {
    /// [`ROWS`] rows' values of each column; those of a rounded column stay as they were when it was rounded.
    pub w: &'a mut [f32],
    /// The panel's corner of U, row-major.
    pub u: &'a [f32],
    /// The rows' grids by sub-block, `(sub-block, row)`.
    pub steps: &'a [f32],
    pub offsets: &'a [f32],
    /// Each column's sub-block.
    pub subs: &'a [usize],
    /// The largest code.
    pub max: f32,
    /// Results, `(column, row)`.
    pub codes: &'a mut [u8],
    pub values: &'a mut [f32],
    pub errors: &'a mut [f32],
}

impl FeedBack<'_> {
    /// The columns from `left` on, `N` of them, of the rows from `row` on.
    #[inline(always)]
    fn columns<F: Lanes, const N: usize>(&mut self, row: usize, left: usize) {
        let width = self.subs.len();
        let mut moved: [F; N] = std::array::from_fn(|c| F::load(&self.w[(left + c) * ROWS + row..]));
        for (errors, u) in self.errors.chunks_exact(ROWS).zip(self.u.chunks_exact(width)).take(left) {
            let (e, u) = (F::load(&errors[row..]), &u[left..left + N]);
            for c in 0..N {
                moved[c] = moved[c] - e * F::splat(u[c]);
            }
        }
        for c in 0..N {
            let (at, sub) = ((left + c) * ROWS + row, self.subs[left + c] * ROWS + row);
            let x = moved[c];
            let (code, value) = nearest_lanes(F::load(&self.steps[sub..]), F::load(&self.offsets[sub..]), F::splat(self.max), x);
            F::Int::store_bytes(&[code], &mut self.codes[at..at + F::N]);
            value.store(&mut self.values[at..]);
            x.store(&mut self.w[at..]);
            let u = &self.u[(left + c) * width + left..][..N];
            let e = (x - value) / F::splat(u[c]);
            e.store(&mut self.errors[at..]);
            for d in c + 1..N {
                moved[d] = moved[d] - e * F::splat(u[d]);
            }
        }
    }
}

impl Kernel for FeedBack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<F: Lanes>(mut self) {
        let width = self.subs.len();
        for row in (0..ROWS).step_by(F::N) {
            let mut left = 0;
            while left + COLUMNS <= width {
                self.columns::<F, COLUMNS>(row, left);
                left += COLUMNS;
            }
            (left..width).for_each(|left| self.columns::<F, 1>(row, left));
        }
    }
}

/// [`nearest`], lane by lane.
#[inline(always)]
fn nearest_lanes<F: Lanes>(step: F, offset: F, max: F, x: F) -> (F::Int, F) {
    let zero = F::zero();
    let t = F::select(step.eq(zero), zero, ((x - offset) / step).max(zero).min(max)) + F::splat(MAGIC);
    (t.to_bits() & F::Int::splat(0xff), step * (t - F::splat(MAGIC)) + offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_formats::simd::{Portable, dispatch};

    fn noise(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729 + i * i % 8191) % 2003) as f32 / 1001.5 - 1.0).collect()
    }

    #[test]
    fn wide_registers_give_the_same_bits() {
        // Whole steps of columns, and some left.
        let (width, count) = (43, 5);
        let u: Vec<f32> =
            noise(width * width, 1).iter().enumerate().map(|(k, u)| if k % (width + 1) == 0 { 1.5 } else { *u }).collect();
        let mut steps: Vec<f32> = noise(count * ROWS, 2).iter().map(|s| 0.1 * s).collect();
        steps[7] = 0.0;
        let offsets = noise(count * ROWS, 3);
        let subs: Vec<usize> = (0..width).map(|i| i * 3 % count).collect();
        let run = |scalar: bool| {
            let mut w = noise(width * ROWS, 4);
            let (mut codes, mut values, mut errors) = (vec![0; w.len()], vec![0.0; w.len()], vec![0.0; w.len()]);
            let kernel = FeedBack {
                w: &mut w,
                u: &u,
                steps: &steps,
                offsets: &offsets,
                subs: &subs,
                max: 15.0,
                codes: &mut codes,
                values: &mut values,
                errors: &mut errors,
            };
            if scalar {
                kernel.run::<Portable<1>>()
            } else {
                dispatch(kernel)
            }
            add_scaled(&mut w, 0.3, &errors);
            let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            (bits(w), codes, bits(values), bits(errors))
        };
        assert_eq!(run(false), run(true));
    }

    #[test]
    fn nearest_is_what_linear_grids_round_to() {
        for id in bitsmith_formats::CodecId::GGML {
            let grid = id.codec().grid().unwrap();
            if !grid.is_linear() {
                continue;
            }
            let n = grid.block_len();
            let scales = grid.fit(&noise(n, 5), &vec![1.0; n]);
            for (i, x) in noise(n, 6).into_iter().enumerate() {
                let (mut code, mut value) = ([0], [0.0]);
                grid.round(&scales, i, &[x], &mut code, &mut value);
                let s = i / scales.sub_len;
                assert_eq!((code[0], value[0]), nearest(scales.step[s], scales.offset[s], f32::from(grid.max_code()), x), "{id}");
            }
        }
    }
}
