//! `gptq`, after which all matrices are tuned together, end to end: codes and scales move so that the model's distributions come closer
//! to the dense model's.
//!
//! Near the quantized model, what the mean KL divergence L changes by when row r of a matrix moves by δ is taken as
//! `G_r · δ + ½ κ s_r δ H δᵀ`: G is the gradient, H = E[x xᵀ] of the matrix's input, and `s_r = E[g_r²]` the second moment of the
//! derivative by the row's output over tokens that the model itself samples, i.e. the diagonal of the Fisher information, to which the
//! curvature of a KL divergence is equal at its minimum. (K-FAC, Martens and Grosse 2015, with a diagonal second factor.) κ, some hundreds,
//! makes up for all that moves at the same time. The form is least at `Ŵ − G H⁻¹ / (κ s)`: toward that, the encoded matrix is polished from where it is,
//! in whatever format it has. The caller repeats this with new gradients, and chooses κ on held-out text.

use super::gptq::{self, Effort};
use super::{Problem, Solution, Solver};
use crate::hessian::Hessian;
use bitsmith_formats::{EncodedTensor, Error, Result};
use bitsmith_runtime::Device;
use ndarray::{ArrayView1, ArrayView2, Axis};

/// Polish of one step.
const STEP: Effort = Effort { passes: 0, rounds: 3, gain: 1e-3 };
/// Rows count as at least this fraction of the mean curvature: little is known of those that hardly matter.
const LEAST: f64 = 0.05;

/// See the module's documentation.
pub struct Tuned;

impl Solver for Tuned {
    fn name(&self) -> &'static str {
        "tuned"
    }
    fn about(&self) -> &'static str {
        "gptq, then codes and scales of all matrices moved together along the gradient of the model's divergence"
    }
    fn needs_hessian(&self) -> bool {
        true
    }
    fn tunes(&self) -> bool {
        true
    }
    fn solve(&self, problem: &Problem<'_>) -> Result<Solution> {
        gptq::solve(problem, &gptq::EFFORT)
    }
}

/// `s` of each row, given the gradient `(out, in)` of the mean over `tokens` sampled tokens of their negative log-likelihood, and E(x²) per
/// column: as the tokens' derivatives are independent with mean 0, `E[G_ri²] = s_r E[x_i²] / tokens`.
pub fn row_curvature(gradient: ArrayView2<'_, f32>, importance: &[f32], tokens: usize) -> Vec<f32> {
    let alive = importance.iter().filter(|i| **i > 0.0).count().max(1);
    let of_row = |row: ArrayView1<'_, f32>| {
        let each = row.iter().zip(importance).filter(|(_, i)| **i > 0.0);
        each.map(|(g, i)| f64::from(*g).powi(2) / f64::from(*i)).sum::<f64>() * tokens as f64 / alive as f64
    };
    let curvature: Vec<f64> = gradient.rows().into_iter().map(of_row).collect();
    let least = LEAST * curvature.iter().sum::<f64>() / curvature.len().max(1) as f64;
    curvature.into_iter().map(|s| s.max(least) as f32).collect()
}

/// An encoded matrix `(out, in)` after one step; `curvature` is κ s of each row. Where H could not be factored, or a curvature is not
/// positive, it stays as it is.
pub fn step(
    tensor: &EncodedTensor,
    gradient: ArrayView2<'_, f32>,
    curvature: &[f32],
    hessian: &Hessian,
    device: &Device,
) -> Result<EncodedTensor> {
    if !curvature.iter().all(|s| *s > 0.0 && s.is_finite()) {
        return Ok(tensor.clone());
    }
    let mut scaled = gradient.to_owned();
    scaled.axis_iter_mut(Axis(0)).zip(curvature).for_each(|(mut row, s)| row /= *s);
    let Some(newton) = hessian.divide(scaled.view()) else { return Ok(tensor.clone()) };
    let values = tensor.decode();
    let values = ArrayView2::from_shape(gradient.dim(), &values).map_err(|e| Error::failed(e.to_string()))?;
    gptq::improve(tensor, (&values - &newton).view(), hessian, device, &STEP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_formats::CodecId;
    use bitsmith_runtime::sampler::Rng;
    use ndarray::Array2;

    /// `Σ_r s_r (Ŵ − W)_r H (Ŵ − W)_rᵀ`.
    fn loss(of: &EncodedTensor, w: &Array2<f32>, s: &[f32], h: &Array2<f32>) -> f64 {
        let delta = Array2::from_shape_vec(w.dim(), of.decode()).unwrap() - w;
        let by_row = delta.dot(h) * &delta;
        by_row.rows().into_iter().zip(s).map(|(r, s)| f64::from(r.sum() * s)).sum()
    }

    #[test]
    fn steps_lower_a_quadratic_loss_in_every_kind_of_grid() {
        let mut rng = Rng::new(1);
        let mut noise = |rows: usize, cols: usize| Array2::from_shape_simple_fn((rows, cols), || rng.normal() as f32);
        let (x, w, extra) = (noise(900, 256), noise(40, 256), noise(40, 256));
        let h = x.t().dot(&x) / 900.0;
        let hessian = Hessian::new(h.clone());
        let s: Vec<f32> = (0..40).map(|r| 0.5 + r as f32 / 20.0).collect();
        let affine = CodecId::MlxAffine { bits: 3, group: 64, scale: bitsmith_formats::Float::F16 };
        for codec in [CodecId::Q4K, CodecId::Q3K, CodecId::Q4_0, CodecId::IQ4NL, CodecId::IQ3S, affine] {
            // Encoded for other weights: the best for these is not far.
            let start = EncodedTensor::encode(codec, &[40, 256], (&w + &(&extra * 0.1)).as_slice().unwrap(), None).unwrap();
            let delta = Array2::from_shape_vec(w.dim(), start.decode()).unwrap() - &w;
            let mut gradient = delta.dot(&h) * 2.0;
            gradient.axis_iter_mut(Axis(0)).zip(&s).for_each(|(mut row, s)| row *= *s);
            let curvature: Vec<f32> = s.iter().map(|s| 2.0 * s).collect();
            let moved = step(&start, gradient.view(), &curvature, &hessian, &Device::Cpu).unwrap();
            let (before, after) = (loss(&start, &w, &s, &h), loss(&moved, &w, &s, &h));
            assert!(after < 0.8 * before, "{codec:?}: {before} {after}");
            let caution: Vec<f32> = curvature.iter().map(|s| s * 1e6).collect();
            let still = step(&start, gradient.view(), &caution, &hessian, &Device::Cpu).unwrap();
            assert!(loss(&still, &w, &s, &h) < 1.05 * before, "{codec:?}");
        }
    }

    #[test]
    fn curvature_is_found_from_sampled_gradients() {
        let (rows, cols, tokens) = (8, 512, 2000);
        let mut rng = Rng::new(3);
        let x = Array2::from_shape_fn((tokens, cols), |(_, c)| rng.normal() as f32 * (1.0 + (c % 7) as f32));
        let g = Array2::from_shape_fn((tokens, rows), |(_, r)| rng.normal() as f32 * (1.0 + r as f32));
        let gradient = g.t().dot(&x) / tokens as f32;
        let importance: Vec<f32> = x.columns().into_iter().map(|c| c.dot(&c) / tokens as f32).collect();
        for (r, s) in row_curvature(gradient.view(), &importance, tokens).into_iter().enumerate() {
            let want = (1.0 + r as f32).powi(2).max(LEAST as f32 * 25.5);
            assert!((s / want - 1.0).abs() < 0.3, "{r}: {s} {want}");
        }
    }
}
