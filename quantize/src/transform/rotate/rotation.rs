//! Orthogonal matrices that spread every channel over all others, and their application to rows and columns of weights.

use bitsmith_runtime::sampler::Rng;
use faer::Mat;
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

/// Rows that one thread turns at a time.
const CHUNK: usize = 16;

/// An orthogonal matrix T, `(n, n)`: random signs, then a Walsh–Hadamard matrix over each run of `run` channels, then a random
/// orthogonal matrix over the channels that have the same place in their runs.
#[derive(Debug, Clone)]
pub(super) struct Rotation {
    signs: Vec<f64>,
    /// A power of two.
    run: usize,
    /// `(n / run, n / run)`; `None` for one run.
    mix: Option<Array2<f64>>,
}

impl Rotation {
    /// As much of a Hadamard matrix as the width allows: the largest power of two that divides it.
    pub fn hadamard(width: usize, seed: u64) -> Self {
        Self::new(width, 1 << width.trailing_zeros(), seed)
    }

    /// A random orthogonal matrix, evenly distributed (Haar).
    pub fn random(width: usize, seed: u64) -> Self {
        Self::new(width, 1, seed)
    }

    fn new(width: usize, run: usize, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let signs = (0..width).map(|_| if rng.next_u64() >> 63 == 0 { 1.0 } else { -1.0 }).collect();
        let runs = width / run;
        Rotation { signs, run, mix: (runs > 1).then(|| orthogonal(runs, &mut rng)) }
    }

    fn width(&self) -> usize {
        self.signs.len()
    }

    /// Puts `T (g ∘ w)` in the place of every row `w`, `(rows, n)`; `gains` is g. Computed in f64.
    pub fn turn_rows(&self, rows: &mut [f32], gains: Option<&[f32]>) {
        let n = self.width();
        rows.par_chunks_mut(n * CHUNK).for_each(|chunk| {
            let mut values: Vec<f64> = chunk.iter().map(|v| f64::from(*v)).collect();
            for row in values.chunks_exact_mut(n) {
                if let Some(gains) = gains {
                    row.iter_mut().zip(gains).for_each(|(v, g)| *v *= f64::from(*g));
                }
                row.iter_mut().zip(&self.signs).for_each(|(v, s)| *v *= s);
                row.chunks_exact_mut(self.run).for_each(hadamard);
            }
            if let Some(mix) = &self.mix {
                values = self.mixed(mix, &values);
            }
            chunk.iter_mut().zip(values).for_each(|(v, turned)| *v = turned as f32);
        });
    }

    /// Puts `T w` in the place of every column `w`, `(n, columns)`.
    pub fn turn_columns(&self, matrix: &mut [f32]) {
        let n = self.width();
        let columns = matrix.len() / n;
        let view = ArrayView2::from_shape((n, columns), &*matrix).expect("whole rows");
        let mut turned: Vec<f32> = view.t().iter().copied().collect();
        self.turn_rows(&mut turned, None);
        matrix.par_chunks_mut(columns.max(1)).enumerate().for_each(|(r, row)| {
            row.iter_mut().enumerate().for_each(|(c, v)| *v = turned[c * n + r]);
        });
    }

    /// The random orthogonal matrix applied across the runs of each row.
    fn mixed(&self, mix: &Array2<f64>, rows: &[f64]) -> Vec<f64> {
        let (n, runs) = (self.width(), mix.nrows());
        if self.run == 1 {
            let rows = ArrayView2::from_shape((rows.len() / n, n), rows).expect("whole rows");
            return rows.dot(&mix.t()).into_iter().collect();
        }
        let of = |row: &[f64]| mix.dot(&ArrayView2::from_shape((runs, self.run), row).expect("whole runs"));
        rows.chunks_exact(n).flat_map(|row| of(row).into_iter()).collect()
    }
}

/// The fast Walsh–Hadamard transform, scaled to be orthogonal.
fn hadamard(v: &mut [f64]) {
    let n = v.len();
    let mut half = 1;
    while half < n {
        for pair in v.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            low.iter_mut().zip(high).for_each(|(a, b)| (*a, *b) = (*a + *b, *a - *b));
        }
        half *= 2;
    }
    let scale = (n as f64).sqrt().recip();
    v.iter_mut().for_each(|v| *v *= scale);
}

/// The Q of a matrix of normal deviates whose R has a positive diagonal: evenly distributed orthogonal matrices (Mezzadri, 2007).
fn orthogonal(n: usize, rng: &mut Rng) -> Array2<f64> {
    let normal: Vec<f64> = (0..n * n).map(|_| rng.normal()).collect();
    let qr = Mat::from_fn(n, n, |i, j| normal[i * n + j]).qr();
    let (q, r) = (qr.compute_thin_Q(), qr.thin_R());
    Array2::from_shape_fn((n, n), |(i, j)| if r[(j, j)] < 0.0 { -q[(i, j)] } else { q[(i, j)] })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T itself.
    fn matrix(rotation: &Rotation) -> Array2<f32> {
        let n = rotation.width();
        let mut columns = Array2::eye(n);
        rotation.turn_columns(columns.as_slice_mut().unwrap());
        columns
    }

    #[test]
    fn rotations_are_orthogonal_and_spread_every_channel() {
        for n in [1, 2, 32, 48, 96, 7, 80] {
            for rotation in [Rotation::hadamard(n, 5), Rotation::random(n, 5)] {
                let t = matrix(&rotation);
                let error = (t.dot(&t.t()) - Array2::<f32>::eye(n)).iter().fold(0f32, |m, v| m.max(v.abs()));
                assert!(error < 1e-5, "{n}: {error}");
            }
        }
        let t = matrix(&Rotation::hadamard(64, 1));
        assert!(t.iter().all(|v| (v.abs() - 0.125).abs() < 1e-7));
        assert_ne!(t, matrix(&Rotation::hadamard(64, 2)));
        // 3 × 16: the random part has the size of what is no power of two.
        let t = matrix(&Rotation::hadamard(48, 1));
        assert!(t.iter().fold(0f32, |m, v| m.max(v.abs())) < 0.26);
    }

    #[test]
    fn rows_and_columns_are_turned_alike() {
        for n in [32, 24] {
            let rotation = Rotation::hadamard(n, 3);
            let t = matrix(&rotation);
            let w = Array2::from_shape_fn((37, n), |(i, j)| ((i * 31 + j * 17) % 23) as f32 - 11.0);
            let gains: Vec<f32> = (0..n).map(|i| 1.0 + i as f32).collect();
            let mut rows = w.clone();
            rotation.turn_rows(rows.as_slice_mut().unwrap(), Some(&gains));
            let want = (&w * &ndarray::ArrayView1::from(&gains)).dot(&t.t());
            assert!((&rows - &want).iter().all(|d| d.abs() < 2e-3));
            let mut columns = w.t().as_standard_layout().into_owned();
            rotation.turn_columns(columns.as_slice_mut().unwrap());
            assert!((&columns - &t.dot(&w.t())).iter().all(|d| d.abs() < 2e-4));
        }
    }

    #[test]
    fn threads_change_nothing() {
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| matrix(&Rotation::random(150, 9)))
        };
        assert_eq!(on(1), on(3));
    }
}
