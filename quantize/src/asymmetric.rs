//! Asymmetric calibration: a matrix is fitted to what the dense model gives, from what the quantized model gives it to read.
//!
//! With x and x̂ the input in the two models and r what the residual stream lacks that the output is added to, the least squares
//! solution of `W* x̂ ≈ W x + r` is `W* = W + (W D + R) H⁻¹` with `D = E[(x − x̂) x̂ᵀ]`, `R = E[r x̂ᵀ]`, `H = E[x̂ x̂ᵀ]` (QEP, Arai &
//! Ichikawa 2025, which has the first term). Any solver then quantizes W* under H. As D and R are estimates, each term has a strength from
//! 0 to 1: those with which W* does best on text that was held out.

use crate::hessian::Hessian;
use bitsmith_calibrate::{Held, Paired};
use bitsmith_runtime::product::add_product;
use ndarray::{Array2, ArrayView2, Axis, s};
use rayon::prelude::*;

/// Rows that one thread handles at a time.
const ROWS: usize = 128;

/// A matrix made up for what earlier ones lost.
#[derive(Debug, Clone)]
pub struct Corrected {
    /// W*, `(out, in)`.
    pub weights: Array2<f32>,
    /// Strengths of the two terms: for the difference of inputs, and for what the residual stream lacks.
    pub strengths: [f64; 2],
}

/// W* for W, `(out, in)`. The output is multiplied by `scale` before it is added to a residual stream. `None` if there are no pairs or no
/// held-out text, or H cannot be factored.
pub fn correct(weights: &Array2<f32>, paired: &Paired, hessian: &Hessian, scale: f32) -> Option<Corrected> {
    let (cross, dense, quantized) = (paired.cross.as_ref()?, paired.held.dense.as_ref()?, paired.held.quantized.as_ref()?);
    let tokens = paired.stats.tokens.max(1) as f32;
    let differences = dense - quantized;
    let residual = paired.lacking.as_ref().zip(paired.held.lacking.as_ref());
    let mut terms = [Array2::<f32>::zeros((0, 0)), Array2::zeros((0, 0))];
    terms[0] = hessian.divide(by_rows(weights.view(), |w| product(w, cross.view()) / tokens).view())?;
    if let Some((lacking, _)) = residual {
        terms[1] = hessian.divide((lacking / (tokens * scale)).view())?;
    }
    // Held-out text: the loss is quadratic in the strengths.
    let sums: Vec<([f64; 3], [f64; 2])> = (0..weights.nrows().div_ceil(ROWS))
        .into_par_iter()
        .map(|i| {
            let rows = i * ROWS..((i + 1) * ROWS).min(weights.nrows());
            let of = |m: &Array2<f32>, x: &Array2<f32>| product(x.view(), m.slice(s![rows.clone(), ..]).reversed_axes());
            let mut target = of(weights, &differences);
            let first = of(&terms[0], quantized);
            let Some((_, lacking)) = residual else {
                return ([dot(&first, &first), 0.0, 0.0], [dot(&first, &target), 0.0]);
            };
            target.scaled_add(1.0 / scale, &lacking.slice(s![.., rows.clone()]));
            let second = of(&terms[1], quantized);
            let square = [dot(&first, &first), dot(&first, &second), dot(&second, &second)];
            (square, [dot(&first, &target), dot(&second, &target)])
        })
        .collect();
    let (mut square, mut along) = ([0.0; 3], [0.0; 2]);
    for (s, a) in sums {
        square.iter_mut().zip(s).for_each(|(sum, v)| *sum += v);
        along.iter_mut().zip(a).for_each(|(sum, v)| *sum += v);
    }
    let strengths = best_strengths(square, along);
    let mut weights = weights.clone();
    for (term, strength) in terms.iter().zip(strengths).filter(|(term, _)| !term.is_empty()) {
        weights.scaled_add(strength as f32, term);
    }
    weights.iter().all(|w| w.is_finite()).then_some(Corrected { weights, strengths })
}

/// What is lost on held-out text when `candidate` stands for W: `Σ ‖W x + r − Ŵ x̂‖²`. `None` if nothing was held out.
pub fn held_loss(weights: &Array2<f32>, candidate: ArrayView2<'_, f32>, held: &Held, scale: f32) -> Option<f64> {
    let (dense, quantized) = (held.dense.as_ref()?, held.quantized.as_ref()?);
    let sums: Vec<f64> = (0..weights.nrows().div_ceil(ROWS))
        .into_par_iter()
        .map(|i| {
            let rows = i * ROWS..((i + 1) * ROWS).min(weights.nrows());
            let mut lost = product(dense.view(), weights.slice(s![rows.clone(), ..]).reversed_axes());
            lost -= &product(quantized.view(), candidate.slice(s![rows.clone(), ..]).reversed_axes());
            if let Some(lacking) = &held.lacking {
                lost.scaled_add(1.0 / scale, &lacking.slice(s![.., rows]));
            }
            dot(&lost, &lost)
        })
        .collect();
    Some(sums.iter().sum())
}

/// The a and b from 0 to 1 where `[aa, ab, bb]·(a, b)² − 2 along·(a, b)` is least: one after the other, which converges as the form is
/// convex.
fn best_strengths([aa, ab, bb]: [f64; 3], along: [f64; 2]) -> [f64; 2] {
    let best = |square: f64, along: f64| if square > 0.0 { (along / square).clamp(0.0, 1.0) } else { 0.0 };
    let (mut a, mut b) = (0.0, 0.0);
    for _ in 0..100 {
        a = best(aa, along[0] - ab * b);
        b = best(bb, along[1] - ab * a);
    }
    [a, b]
}

/// Applies `f` to chunks of rows in parallel.
fn by_rows(m: ArrayView2<'_, f32>, f: impl Fn(ArrayView2<'_, f32>) -> Array2<f32> + Sync) -> Array2<f32> {
    let mut out = Array2::zeros(m.dim());
    let parts = out.axis_chunks_iter_mut(Axis(0), ROWS).into_par_iter().zip(m.axis_chunks_iter(Axis(0), ROWS));
    parts.for_each(|(mut out, m)| out.assign(&f(m)));
    out
}

/// `a b`, on this thread.
fn product(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> Array2<f32> {
    let a = a.as_standard_layout();
    let mut c = Array2::zeros((a.nrows(), b.ncols()));
    let rows = a.rows().into_iter().zip(c.rows_mut());
    let mut rows: Vec<_> = rows.filter_map(|(a, c)| Some((a.to_slice()?, c.into_slice()?))).collect();
    add_product(&mut rows, b);
    c
}

fn dot(a: &Array2<f32>, b: &Array2<f32>) -> f64 {
    a.rows().into_iter().zip(b.rows()).map(|(a, b)| f64::from(a.dot(&b))).sum()
}

impl Hessian {
    /// `B H⁻¹` for `(rows, in)`; `None` if H could not be factored.
    pub(crate) fn divide(&self, b: ArrayView2<'_, f32>) -> Option<Array2<f32>> {
        let u = self.factor.as_ref()?;
        let ordered = |b: ArrayView2<'_, f32>| Array2::from_shape_fn(b.dim(), |(r, i)| b[[r, self.order[i]]]);
        let quotient = by_rows(b, |b| product(product(ordered(b).view(), u.t()).view(), u.view()));
        let mut out = Array2::zeros(b.dim());
        for (i, &c) in self.order.iter().enumerate() {
            out.column_mut(c).assign(&quotient.column(i));
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_calibrate::SiteStats;

    fn noise(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        Array2::from_shape_simple_fn((rows, cols), &mut next)
    }

    /// Inputs that a linear map spoils, and noise.
    fn pairs(tokens: usize, seed: u64) -> (Array2<f32>, Array2<f32>, Array2<f32>) {
        let x = noise(tokens, 24, seed);
        let spoil = noise(24, 24, 1) * 0.05;
        let quantized = &x + &x.dot(&spoil) + noise(tokens, 24, seed + 1) * 0.02;
        let lacking = quantized.dot(&noise(24, 6, 2)) * 0.1 + noise(tokens, 6, seed + 2) * 0.02;
        (x, quantized, lacking)
    }

    #[test]
    fn a_corrected_matrix_gives_what_the_dense_model_gives() {
        let (x, quantized, lacking) = pairs(400, 10);
        let mut stats = SiteStats::new(24, true);
        stats.add(quantized.view());
        let (hx, hq, hr) = pairs(100, 50);
        let held = Held { dense: Some(hx), quantized: Some(hq), lacking: Some(hr) };
        let paired = Paired {
            stats,
            cross: Some((&x - &quantized).t().dot(&quantized)),
            lacking: Some(lacking.t().dot(&quantized)),
            held,
        };
        let hessian = Hessian::from_stats(&paired.stats).unwrap();
        let w = noise(6, 24, 3);
        let found = correct(&w, &paired, &hessian, 2.0).unwrap();
        let loss = |w2: &Array2<f32>| held_loss(&w, w2.view(), &paired.held, 2.0).unwrap();
        assert!(loss(&found.weights) < 0.05 * loss(&w), "{} {}", loss(&found.weights), loss(&w));
        assert!(found.strengths.iter().all(|s| *s > 0.8 && *s <= 1.0), "{:?}", found.strengths);
        // Differences that the held-out text does not have are not made up for.
        let same = Held { quantized: paired.held.dense.clone(), lacking: None, ..paired.held.clone() };
        let found = correct(&w, &Paired { held: same, lacking: None, ..paired.clone() }, &hessian, 1.0).unwrap();
        assert_eq!((found.strengths, &found.weights), ([0.0, 0.0], &w));
        assert!(correct(&w, &Paired { held: Held::default(), ..paired }, &hessian, 1.0).is_none());
    }

    #[test]
    fn strengths_are_where_the_form_is_least() {
        let (square, along) = ([2.0, 0.7, 1.0], [1.3, 0.9]);
        let value = |a: f64, b: f64| {
            square[0] * a * a + 2.0 * square[1] * a * b + square[2] * b * b - 2.0 * (along[0] * a + along[1] * b)
        };
        let [a, b] = best_strengths(square, along);
        for i in 0..=20 {
            for j in 0..=20 {
                assert!(value(a, b) <= value(i as f64 / 20.0, j as f64 / 20.0) + 1e-9);
            }
        }
    }
}
