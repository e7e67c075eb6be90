//! The quadratic form of [`Gram`] as [`Grid::refit`](crate::Grid::refit) needs it, in f64: losses that differ little decide.

use crate::codec::Gram;
use crate::kernels;

impl Gram<'_> {
    /// H v, for `v` with values at `at .. at + v.len()` of the block and zero elsewhere; `out` has the block's length.
    pub(crate) fn apply(&self, v: &[f64], at: usize, out: &mut [f64]) {
        match self {
            Gram::Diagonal(h) => {
                out.fill(0.0);
                for (i, &v) in v.iter().enumerate() {
                    out[at + i] = h[at + i] as f64 * v;
                }
            }
            Gram::Full(h) => {
                let n = out.len();
                kernels::combine_rows(&h[at * n..][..v.len() * n], n, v, out);
            }
        }
    }

    /// The same in f32 and only from `at` on, for integers and ones: `out` has the values `at ..` of the block of `n`.
    pub(super) fn apply_levels(&self, v: &[f32], at: usize, n: usize, out: &mut [f32]) {
        match self {
            Gram::Diagonal(h) => {
                out.fill(0.0);
                for ((out, h), v) in out.iter_mut().zip(&h[at..]).zip(v) {
                    *out = h * v;
                }
            }
            Gram::Full(h) => kernels::combine_rows_f32(&h[at * n + at..][..v.len() * n - at], n, v, out),
        }
    }
}

/// Σ a b.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0f64; 4];
    let (a4, b4) = (a.chunks_exact(4), b.chunks_exact(4));
    let rest: f64 = a4.remainder().iter().zip(b4.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a4.zip(b4) {
        for i in 0..4 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// The quadratic loss as a function of two parameters: how it changes when they move by (p, q).
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    /// Half gradient.
    pub gradient: [f64; 2],
    /// Half curvature: pp, pq, qq.
    pub curvature: [f64; 3],
}

impl Pair {
    /// For values that move along `a` and `b`, given H a, H b and the half gradient H e.
    pub fn new(a: &[f64], b: &[f64], ha: &[f64], hb: &[f64], he: &[f64]) -> Self {
        Pair { gradient: [dot(a, he), dot(b, he)], curvature: [dot(a, ha), dot(a, hb), dot(b, hb)] }
    }
    /// The change of the loss at (p, q).
    pub fn change(&self, p: f64, q: f64) -> f64 {
        let [pp, pq, qq] = self.curvature;
        2.0 * (p * self.gradient[0] + q * self.gradient[1]) + p * p * pp + 2.0 * p * q * pq + q * q * qq
    }
    /// The best p and q together, or p alone where they cannot be told apart.
    pub fn best(&self) -> (f64, f64) {
        let [pp, pq, qq] = self.curvature;
        let det = pp * qq - pq * pq;
        if det > 1e-9 * pp * qq {
            ((pq * self.gradient[1] - qq * self.gradient[0]) / det, (pq * self.gradient[0] - pp * self.gradient[1]) / det)
        } else {
            (self.best_p(0.0), 0.0)
        }
    }
    /// The best p for this q; 0 if p does nothing.
    pub fn best_p(&self, q: f64) -> f64 {
        let [pp, pq, _] = self.curvature;
        if pp > 0.0 { -(self.gradient[0] + q * pq) / pp } else { 0.0 }
    }
    /// The best q for this p; 0 if q does nothing.
    pub fn best_q(&self, p: f64) -> f64 {
        let [_, pq, qq] = self.curvature;
        if qq > 0.0 { -(self.gradient[1] + p * pq) / qq } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_block_sees_its_columns() {
        let h: Vec<f32> = (0..16).map(|i| (i / 4 + i % 4) as f32).collect();
        let diagonal = [1.0, 2.0, 3.0, 4.0];
        for (gram, want) in [(Gram::Full(&h), [-3.0, -4.0, -5.0, -6.0]), (Gram::Diagonal(&diagonal), [0.0, 2.0, -6.0, 0.0])] {
            let mut out = [9.0; 4];
            gram.apply(&[1.0, -2.0], 1, &mut out);
            assert_eq!(out, want);
            let mut out = [9.0; 3];
            gram.apply_levels(&[1.0, -2.0], 1, 4, &mut out);
            assert_eq!(out.map(f64::from), want[1..]);
        }
    }

    #[test]
    fn best_is_the_minimum() {
        let pair = Pair { gradient: [1.0, -2.0], curvature: [2.0, 0.5, 1.0] };
        let (p, q) = pair.best();
        let at = pair.change(p, q);
        for (dp, dq) in [(1e-3, 0.0), (-1e-3, 0.0), (0.0, 1e-3), (0.0, -1e-3)] {
            assert!(pair.change(p + dp, q + dq) > at);
        }
        assert!((pair.best_p(q) - p).abs() < 1e-12 && (pair.best_q(p) - q).abs() < 1e-12);
    }
}
