//! Codes that are chosen together: points of codebooks for 4 or 8 weights, and values of uneven tables for one.
//!
//! With half gradient g and curvature M of a group, moving its values by δ changes the loss by `2 g·δ + δᵀ M δ`. In error feedback
//! `M = U_gg⁻¹ U_gg⁻ᵀ` (block-LDLQ, as in QuIP#, Tseng et al. 2024), in descent `M = H_gg`. Grids find points near a target by plain
//! distance, which ignores M; so several targets are tried, and the loss itself chooses.

use bitsmith_formats::{BlockScales, Grid};
use ndarray::ArrayView2;

/// The widest group of any grid.
pub(super) const WIDEST: usize = 8;
/// Moves of one group at most.
const MOVES: usize = 3;

/// A group that moves as long as the loss falls.
pub(super) struct Group<'a> {
    pub grid: &'a dyn Grid,
    pub scales: &'a BlockScales,
    /// Its first weight's place in the block.
    pub at: usize,
    /// M, row-major.
    pub curvature: &'a [f32],
}

impl Group<'_> {
    /// Moves codes and values while that lowers the loss, and the half gradient with them. Returns whether they moved.
    pub fn settle(&self, codes: &mut [u8], values: &mut [f32], gradient: &mut [f32]) -> bool {
        let n = codes.len();
        let (mut target, mut move_by) = ([0f32; WIDEST], [0f32; WIDEST]);
        let (mut code, mut value) = ([0u8; WIDEST], [0f32; WIDEST]);
        let mut moved = false;
        for _ in 0..MOVES {
            let mut least = 0f32;
            let mut found = ([0u8; WIDEST], [0f32; WIDEST]);
            // All weights to where each by itself would be best, then one after the other alone.
            for alone in std::iter::once(None).chain((0..n).map(Some).filter(|_| n > 1)) {
                for i in 0..n {
                    let stays = alone.is_some_and(|k| k != i);
                    target[i] = if stays { values[i] } else { values[i] - gradient[i] / self.curvature[i * n + i] };
                }
                self.grid.round(self.scales, self.at, &target[..n], &mut code[..n], &mut value[..n]);
                if code[..n] == *codes {
                    continue;
                }
                (0..n).for_each(|i| move_by[i] = value[i] - values[i]);
                let (slope, square) = self.change(&move_by[..n], gradient);
                if 2.0 * slope + square < least.min(-1e-6 * square) {
                    least = 2.0 * slope + square;
                    found = (code, value);
                }
            }
            if least == 0.0 {
                break;
            }
            for i in 0..n {
                move_by[i] = found.1[i] - values[i];
                values[i] = found.1[i];
            }
            codes.copy_from_slice(&found.0[..n]);
            for (g, row) in gradient.iter_mut().zip(self.curvature.chunks_exact(n)) {
                *g += row.iter().zip(&move_by).map(|(m, d)| m * d).sum::<f32>();
            }
            moved = true;
        }
        moved
    }

    /// `g·δ` and `δᵀ M δ`.
    fn change(&self, move_by: &[f32], gradient: &[f32]) -> (f32, f32) {
        let n = move_by.len();
        let slope = move_by.iter().zip(gradient).map(|(d, g)| d * g).sum();
        let along = |row: &[f32]| row.iter().zip(move_by).map(|(m, d)| m * d).sum::<f32>();
        (slope, self.curvature.chunks_exact(n).zip(move_by).map(|(row, d)| d * along(row)).sum())
    }
}

/// `U⁻¹ U⁻ᵀ` of an upper triangular U, row-major.
pub(super) fn feedback_curvature(u: ArrayView2<'_, f32>) -> [f32; WIDEST * WIDEST] {
    let n = u.nrows();
    let mut inverse = [[0f64; WIDEST]; WIDEST];
    for j in 0..n {
        inverse[j][j] = 1.0 / f64::from(u[[j, j]]);
        for i in (0..j).rev() {
            let sum: f64 = (i + 1..=j).map(|k| f64::from(u[[i, k]]) * inverse[k][j]).sum();
            inverse[i][j] = -sum / f64::from(u[[i, i]]);
        }
    }
    let mut m = [0f32; WIDEST * WIDEST];
    for i in 0..n {
        for j in 0..n {
            m[i * n + j] = inverse[i].iter().zip(&inverse[j]).map(|(a, b)| a * b).sum::<f64>() as f32;
        }
    }
    m
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_formats::CodecId;
    use ndarray::Array2;

    fn noise(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| (((i + 1) * (seed + 7) * 7919 % 10007) as f32 * 0.37).sin()).collect()
    }

    #[test]
    fn the_curvature_is_that_of_the_triangle() {
        let u = Array2::from_shape_fn((8, 8), |(i, j)| if j < i { 0.0 } else { 1.0 / (1.0 + (2 * i + 3 * j) as f32) });
        let m = feedback_curvature(u.view());
        let m = Array2::from_shape_vec((8, 8), m.to_vec()).unwrap();
        // u m uᵀ = 1.
        let eye = u.dot(&m).dot(&u.t());
        for ((i, j), v) in eye.indexed_iter() {
            assert!((v - f32::from(i == j)).abs() < 1e-3, "({i}, {j}): {v}");
        }
    }

    #[test]
    fn groups_only_get_better() {
        for (codec, n) in [(CodecId::IQ2XXS, 8), (CodecId::IQ3S, 4), (CodecId::IQ4XS, 1), (CodecId::IQ1S, 8)] {
            let grid = codec.codec().grid().unwrap();
            assert_eq!(grid.step(), n);
            let w = noise(256, 1);
            let scales = grid.fit(&w, &[1.0; 256]);
            let x = Array2::from_shape_vec((24, n), noise(24 * n, 2)).unwrap() + 0.7;
            let h = x.t().dot(&x);
            let curvature: Vec<f32> = h.iter().copied().collect();
            let mut moves = 0;
            for at in (0..256).step_by(n) {
                let (mut codes, mut values) = (vec![0; n], vec![0.0; n]);
                grid.round(&scales, at, &w[at..at + n], &mut codes, &mut values);
                let delta = |v: &[f32]| ndarray::Array1::from_iter(v.iter().zip(&w[at..]).map(|(v, w)| v - w));
                let loss = |v: &[f32]| delta(v).dot(&h.dot(&delta(v)));
                let (before, mut gradient) = (loss(&values), h.dot(&delta(&values)).to_vec());
                let moved =
                    Group { grid, scales: &scales, at, curvature: &curvature }.settle(&mut codes, &mut values, &mut gradient);
                let (mut again, mut same) = (vec![0; n], vec![0.0; n]);
                grid.round(&scales, at, &values, &mut again, &mut same);
                assert_eq!((&again, &same), (&codes, &values), "{codec}: a point of the grid");
                assert!(if moved { loss(&values) < before } else { loss(&values) == before }, "{codec}");
                let want = h.dot(&delta(&values));
                assert!(gradient.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-3 * (1.0 + w.abs())), "{codec}");
                moves += usize::from(moved);
            }
            assert!(n == 1 || moves > 0, "{codec}: plain distance was best everywhere");
        }
    }
}
