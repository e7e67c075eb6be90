//! The curvature of a linear layer's output error, `H = E[x xᵀ]`, made safe to factor.
//!
//! GPTQ (Frantar et al., 2022) visits the columns of W in some order and, after rounding column i, moves the later columns
//! by `−e U[i, i:]`, with `H⁻¹ = Uᵀ U`, U upper triangular and `e = (w_i − q_i) / U_ii`. Columns are visited by descending
//! `H_ii`, so that the columns that matter most are rounded while most others can still make up for it.

use crate::factor::factor;
use bitsmith_calibrate::SiteStats;
use ndarray::Array2;
use std::borrow::Cow;

/// Relative dampings tried in turn, as fractions of the mean diagonal.
const DAMPING: [f64; 4] = [0.01, 0.03, 0.1, 1.0];

/// `H` with its visiting order and factor. One serves every linear layer that reads the same input.
#[derive(Debug, Clone)]
pub struct Hessian {
    /// Damped H, `(in, in)`, symmetric, in the layer's own column order; its diagonal if it could not be factored.
    pub damped: Array2<f32>,
    /// Undamped mean squares, E(x²), one per channel: the importance of each column.
    pub importance: Vec<f32>,
    /// Columns by descending importance.
    pub order: Vec<usize>,
    /// U in visiting order, `(in, in)`, upper triangular; `None` if H could not be factored even with the strongest damping.
    pub factor: Option<Array2<f32>>,
    /// The damping that worked, as a fraction of the mean diagonal.
    pub damping: f64,
    /// Channels that were never active.
    pub dead: usize,
}

impl Hessian {
    /// From gathered statistics; `None` if they have no Gram matrix.
    pub fn from_stats(stats: &SiteStats) -> Option<Hessian> {
        stats.hessian().map(Self::new)
    }

    /// From H itself, `(in, in)`, symmetric. Where it is not finite, or no damping makes it positive definite, its diagonal remains.
    pub fn new(mut h: Array2<f32>) -> Hessian {
        let n = h.ncols();
        let finite = h.iter().all(|v| v.is_finite());
        if !finite {
            let most = h.diag().iter().filter(|v| v.is_finite()).fold(0f32, |m, v| m.max(*v));
            h = Array2::from_diag(&h.diag().mapv(|v| if v.is_finite() { v } else { most }));
        }
        let diag: Vec<f32> = (0..n).map(|i| h[[i, i]].max(0.0)).collect();
        let dead = diag.iter().filter(|&&d| d == 0.0).count();
        let alive_mean = diag.iter().map(|&d| f64::from(d)).sum::<f64>() / (n - dead).max(1) as f64;
        // A dead channel may still fire on other text: it keeps a small weight and is rounded to nearest.
        let floor = if alive_mean > 0.0 { alive_mean * 1e-6 } else { 1.0 };
        for i in 0..n {
            h[[i, i]] = h[[i, i]].max(floor as f32);
        }
        let importance: Vec<f32> = (0..n).map(|i| h[[i, i]]).collect();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| importance[b].total_cmp(&importance[a]).then(a.cmp(&b)));

        let mean = if alive_mean > 0.0 { alive_mean } else { 1.0 };
        for damping in DAMPING.into_iter().filter(|_| finite) {
            if let Some(factor) = factor(&h, &order, damping * mean) {
                add_diagonal(&mut h, (damping * mean) as f32);
                return Hessian { damped: h, importance, order, factor: Some(factor), damping, dead };
            }
        }
        // Under an indefinite H, descent would not improve anything.
        let damped = Array2::from_diag(&h.diag());
        Hessian { damped, importance, order, factor: None, damping: 0.0, dead }
    }

    /// How columns that are rounded in groups of `step` neighbours are visited: the most important group first.
    pub fn visits(&self, step: usize) -> Visits<'_> {
        let order = self.visiting_order(step);
        let factor = match &order {
            Cow::Borrowed(_) => self.factor.as_ref().map(Cow::Borrowed),
            Cow::Owned(order) => self.factor.as_ref().and_then(|_| factor(&self.damped, order, 0.0)).map(Cow::Owned),
        };
        Visits { order, factor }
    }

    /// The columns as [`Hessian::visits`] has them.
    pub(crate) fn visiting_order(&self, step: usize) -> Cow<'_, [usize]> {
        if step == 1 {
            return Cow::Borrowed(&self.order);
        }
        let total = |g: usize| self.importance[g * step..(g + 1) * step].iter().map(|&i| f64::from(i)).sum::<f64>();
        let mut groups: Vec<usize> = (0..self.width() / step).collect();
        groups.sort_by(|&a, &b| total(b).total_cmp(&total(a)).then(a.cmp(&b)));
        Cow::Owned(groups.into_iter().flat_map(|g| g * step..(g + 1) * step).collect())
    }

    /// Input channels.
    pub fn width(&self) -> usize {
        self.importance.len()
    }
}

/// The order in which error feedback visits columns, and U in that order.
pub struct Visits<'a> {
    /// Columns, those of a group together.
    pub order: Cow<'a, [usize]>,
    /// U, `(in, in)`, upper triangular; `None` if H could not be factored.
    pub factor: Option<Cow<'a, Array2<f32>>>,
}

fn add_diagonal(h: &mut Array2<f32>, value: f32) {
    for i in 0..h.ncols() {
        h[[i, i]] += value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn correlated(n: usize) -> Array2<f32> {
        let x = Array2::from_shape_fn((4 * n, n), |(t, c)| {
            let noise = (((t * 7919 + c * 104_729) % 1009) as f32 / 1009.0) - 0.5;
            let shared = ((t * 31 % 97) as f32 / 97.0) - 0.5;
            (noise + shared) * if c % 5 == 0 { 4.0 } else { 1.0 }
        });
        x.t().dot(&x) / (4 * n) as f32
    }

    #[test]
    fn factor_is_the_upper_cholesky_factor_of_the_inverse() {
        let hess = Hessian::new(correlated(24));
        let u = hess.factor.as_ref().unwrap();
        // H U⁻¹ … in other words Uᵀ U H = I, in visiting order.
        let n = 24;
        let h = Array2::from_shape_fn((n, n), |(i, j)| hess.damped[[hess.order[i], hess.order[j]]]);
        let eye = u.t().dot(u).dot(&h);
        for i in 0..n {
            for j in 0..n {
                let want = f32::from(i == j);
                assert!((eye[[i, j]] - want).abs() < 1e-2, "({i}, {j}): {}", eye[[i, j]]);
            }
            assert!(u[[i, i]] > 0.0);
        }
        assert!(hess.order.windows(2).all(|w| hess.importance[w[0]] >= hess.importance[w[1]]));
    }

    #[test]
    fn dead_and_duplicated_channels_are_survived() {
        let mut h = correlated(16);
        for i in 0..16 {
            for (a, b) in [(3, 3), (7, 7)] {
                h[[i, a]] = 0.0;
                h[[b, i]] = 0.0;
            }
            h[[i, 5]] = h[[i, 4]];
        }
        for i in 0..16 {
            h[[5, i]] = h[[4, i]];
        }
        let hess = Hessian::new(h);
        assert_eq!(hess.dead, 2);
        assert!(hess.factor.is_some());
        assert!(Hessian::new(Array2::zeros((8, 8))).factor.is_some());
    }

    #[test]
    fn what_cannot_be_factored_keeps_its_diagonal() {
        let mut broken = correlated(8);
        broken[[2, 2]] = f32::INFINITY;
        broken[[1, 3]] = f32::NAN;
        let hess = Hessian::new(broken);
        assert!(hess.factor.is_none() && hess.damped.iter().chain(&hess.importance).all(|v| v.is_finite()));
        let indefinite = Array2::from_shape_fn((8, 8), |(i, j)| if i == j { 1.0 } else { -3.0 });
        let hess = Hessian::new(indefinite);
        assert_eq!((hess.factor.is_none(), hess.damped[[0, 1]], hess.damped[[3, 3]]), (true, 0.0, 1.0));
    }

    #[test]
    fn few_tokens_and_huge_outliers_are_survived() {
        // Three tokens for 32 channels, one of which is a million times larger.
        let x =
            Array2::from_shape_fn((3, 32), |(t, c)| ((t * 31 + c * 17) % 23) as f32 / 7.0 * if c == 5 { 1e6 } else { 1.0 } - 1.5);
        let hess = Hessian::new(x.t().dot(&x) / 3.0);
        assert!(hess.factor.as_ref().is_some_and(|u| u.iter().all(|v| v.is_finite())));
        assert_eq!(hess.order[0], 5);
    }
}
