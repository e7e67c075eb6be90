//! Inner loops of the solvers, for wide vector registers too. No order of sums depends on the processor.

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

    /// Error feedback within a panel of `subs.len()` columns: `w` has [`ROWS`] rows' values of each column, `u` the panel's
    /// corner of U (row-major), `steps` and `offsets` the rows' grids by sub-block, `subs` each column's sub-block. Column i is
    /// rounded to `codes` and `values`, and later columns move by `−e u[i, ·]` with the error e, over `u[i, i]`, left in
    /// `errors`.
    pub fn feed_back(
        w: &mut [f32], u: &[f32], steps: &[f32], offsets: &[f32], subs: &[usize], max: f32,
        codes: &mut [u8], values: &mut [f32], errors: &mut [f32]
    ) {
        let width = subs.len();
        let (w, steps, offsets) = (w.as_chunks_mut::<ROWS>().0, steps.as_chunks::<ROWS>().0, offsets.as_chunks::<ROWS>().0);
        let codes = codes.as_chunks_mut::<ROWS>().0;
        let (values, errors) = (values.as_chunks_mut::<ROWS>().0, errors.as_chunks_mut::<ROWS>().0);
        for i in 0..width {
            let (step, offset) = (&steps[subs[i]], &offsets[subs[i]]);
            let u = &u[i * width..][..width];
            let mut e = [0f32; ROWS];
            for r in 0..ROWS {
                let (code, value) = nearest(step[r], offset[r], max, w[i][r]);
                codes[i][r] = code;
                values[i][r] = value;
                e[r] = (w[i][r] - value) / u[i];
            }
            errors[i] = e;
            for (w, &u) in w[i + 1..].iter_mut().zip(&u[i + 1..]) {
                for r in 0..ROWS {
                    w[r] -= e[r] * u;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729 + i * i % 8191) % 2003) as f32 / 1001.5 - 1.0).collect()
    }

    #[test]
    fn wide_registers_give_the_same_bits() {
        let (width, count) = (40, 5);
        let u: Vec<f32> =
            noise(width * width, 1).iter().enumerate().map(|(k, u)| if k % (width + 1) == 0 { 1.5 } else { *u }).collect();
        let mut steps: Vec<f32> = noise(count * ROWS, 2).iter().map(|s| 0.1 * s).collect();
        steps[7] = 0.0;
        let offsets = noise(count * ROWS, 3);
        let subs: Vec<usize> = (0..width).map(|i| i * 3 % count).collect();
        let run = |portable: bool| {
            let mut w = noise(width * ROWS, 4);
            let (mut codes, mut values, mut errors) = (vec![0; w.len()], vec![0.0; w.len()], vec![0.0; w.len()]);
            let solve = if portable { portable::feed_back } else { feed_back };
            solve(&mut w, &u, &steps, &offsets, &subs, 15.0, &mut codes, &mut values, &mut errors);
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
