//! Bias correction (Nagel et al. 2019): where a linear layer has a bias, the mean of its rounding error goes into it,
//! `b += (W − Ŵ) E[x]`.
//!
//! What is left of the error is that of inputs about their mean: `tr(ΔW C ΔWᵀ)` with the covariance C of the inputs.

use super::Transform;
use bitsmith_calibrate::SiteStats;
use bitsmith_runtime::role::{Part, PartKind};
use ndarray::{Array2, ArrayView1, Axis, s};

/// See the module's documentation.
pub struct Bias;

impl Transform for Bias {
    fn name(&self) -> &'static str {
        "bias"
    }
    fn about(&self) -> &'static str {
        "puts the mean of each matrix's rounding error into its bias, where the architecture has one"
    }
    fn parts(&self) -> &'static [Part] {
        use Part::*;
        &[
            AttnQBias,
            AttnKBias,
            AttnVBias,
            AttnQkvBias,
            AttnOutputBias,
            FfnGateBias,
            FfnUpBias,
            FfnDownBias,
            FfnGateExpsBias,
            FfnUpExpsBias,
            FfnDownExpsBias,
            OutputBias,
        ]
    }
    fn corrects_biases(&self) -> bool {
        true
    }
}

/// Adds `(W − Ŵ) E[x]` to the bias of a matrix: `weights` and `solved` are `(out, in)`, of stacked matrices one after the other with
/// as many rows of biases. Without means in the statistics nothing changes.
pub fn correct(part: Part, bias: &mut Array2<f32>, weights: &Array2<f32>, solved: &[f32], site: &SiteStats) {
    let Some(solved) = ndarray::ArrayView2::from_shape(weights.dim(), solved).ok() else { return };
    let count = if part.kind() == PartKind::Stacked { bias.nrows() } else { 1 };
    let each = weights.nrows() / count;
    for (i, mut bias) in bias.axis_iter_mut(Axis(0)).enumerate() {
        let mean = if count > 1 { site.mean_of(i) } else { site.mean() };
        let Some(mean) = mean else { return };
        let rows = s![i * each..(i + 1) * each, ..];
        let (weights, solved) = (weights.slice(rows), solved.slice(rows));
        for (b, (w, q)) in bias.iter_mut().zip(weights.rows().into_iter().zip(solved.rows())) {
            *b += error_at(w, q, &mean) as f32;
        }
    }
}

fn error_at(w: ArrayView1<'_, f32>, q: ArrayView1<'_, f32>, mean: &[f32]) -> f64 {
    w.iter().zip(q).zip(mean).map(|((w, q), m)| f64::from(w - q) * f64::from(*m)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_keep_their_mean() {
        let x = Array2::from_shape_fn((50, 8), |(t, c)| ((t * 31 + c * 17) % 23) as f32 / 7.0 - 0.5);
        let mut site = SiteStats::new(8, false);
        site.add(x.view());
        let w = Array2::from_shape_fn((6, 8), |(r, c)| ((r * 13 + c * 7) % 19) as f32 / 9.0 - 1.0);
        let q = w.mapv(|v| (v * 2.0).round() / 2.0);
        let means = |w: &Array2<f32>, b: &Array2<f32>| (x.dot(&w.t()) + b.row(0)).mean_axis(Axis(0)).unwrap();
        let before = Array2::from_elem((1, 6), 0.25);
        let mut after = before.clone();
        correct(Part::AttnQ, &mut after, &w, q.as_slice().unwrap(), &site);
        let worst = |b: &Array2<f32>| (means(&q, b) - means(&w, &before)).iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!(worst(&before) > 0.1 && worst(&after) < 1e-5, "{} {}", worst(&before), worst(&after));
        // Two stacked matrices, one of which saw nothing: the mean of all stands for it.
        site.add_matrix(1, 2, x.slice(s![..9, ..]));
        let mut stacked = Array2::zeros((2, 3));
        correct(Part::FfnUpExps, &mut stacked, &w, q.as_slice().unwrap(), &site);
        assert!(
            (stacked[[0, 1]] - (after[[0, 1]] - 0.25)).abs() < 1e-5 && (stacked[[1, 1]] - (after[[0, 4]] - 0.25)).abs() > 1e-4
        );
    }
}
