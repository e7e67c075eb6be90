//! What logits say about a token: pure functions over rows of logits.
//!
//! Softmax terms are f32, their sums f64 in a fixed order, so that results depend on the logits alone. With `rᵢ`, `cᵢ` the two
//! models' logits less their maxima, `Z` their sums of exponentials and `p` the reference's probabilities,
//!
//! `KL(p ‖ q) = Σ pᵢ (rᵢ − cᵢ) − (ln Z_r − ln Z_c)`,
//!
//! which is exactly 0 for equal logits.

use bitsmith_runtime::kernels::exp;

const LANES: usize = 8;

/// What two models say about one token.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Position {
    /// Negative log-likelihood of the token under the reference, nats.
    pub nll_against: f64,
    /// Negative log-likelihood of the token under the candidate, nats.
    pub nll: f64,
    /// KL divergence of the candidate's distribution from the reference's, nats.
    pub kld: f64,
    /// Whether both find the same token most likely.
    pub same_top: bool,
    /// The token that the reference finds most likely.
    pub top_against: u32,
    /// The token that the candidate finds most likely.
    pub top: u32,
    /// The reference's probability of the token that it finds most likely.
    pub confidence: f64,
}

impl Position {
    /// Probability of the token under the candidate less that under the reference.
    pub fn p_diff(&self) -> f64 {
        (-self.nll).exp() - (-self.nll_against).exp()
    }
}

/// Negative log-likelihood, in nats, of `target`. NaN or infinite if a logit is. `target` must be within the row.
pub fn nll(logits: &[f32], target: u32) -> f64 {
    log_sum(logits) - f64::from(logits[target as usize])
}

/// The logarithm of the sum of exponentials: what is taken from a logit to get the logarithm of its probability.
pub(crate) fn log_sum(logits: &[f32]) -> f64 {
    let m = max(logits);
    let mut lanes = [0f64; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for c in chunks {
        for i in 0..LANES {
            lanes[i] += f64::from(exp(c[i] - m));
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(exp(v - m));
    }
    fold(lanes).ln() + f64::from(m)
}

/// Compares two rows of logits over the same vocabulary. Results are not finite if a logit is not. `target` must be within the
/// rows.
pub fn compare(reference: &[f32], candidate: &[f32], target: u32) -> Position {
    debug_assert_eq!(reference.len(), candidate.len());
    let (mr, mc) = (max(reference), max(candidate));
    let (mut zr, mut zc, mut weighted) = ([0f64; LANES], [0f64; LANES], [0f64; LANES]);
    let mut add = |i: usize, r: f32, c: f32| {
        let (r, c) = (r - mr, c - mc);
        let e = exp(r);
        zr[i] += f64::from(e);
        zc[i] += f64::from(exp(c));
        weighted[i] += f64::from(e) * f64::from(r - c);
    };
    let (r_chunks, r_rest) = reference.as_chunks::<LANES>();
    let (c_chunks, c_rest) = candidate.as_chunks::<LANES>();
    for (r, c) in r_chunks.iter().zip(c_chunks) {
        for i in 0..LANES {
            add(i, r[i], c[i]);
        }
    }
    for (i, (r, c)) in r_rest.iter().zip(c_rest).enumerate() {
        add(i, *r, *c);
    }
    let (zr, zc) = (fold(zr), fold(zc));
    let target = target as usize;
    let kld = fold(weighted) / zr - (zr.ln() - zc.ln());
    let (top_against, top) = (first(reference, mr), first(candidate, mc));
    Position {
        nll_against: zr.ln() + f64::from(mr) - f64::from(reference[target]),
        nll: zc.ln() + f64::from(mc) - f64::from(candidate[target]),
        // Never below 0 but for rounding. `f64::max` would hide NaN.
        kld: if kld < 0.0 { 0.0 } else { kld },
        same_top: top_against == top,
        top_against: top_against.unwrap_or(0) as u32,
        top: top.unwrap_or(0) as u32,
        // The largest term of the sum is 1.
        confidence: 1.0 / zr,
    }
}

/// Largest value, NaN ignored.
fn max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for c in chunks {
        for i in 0..LANES {
            lanes[i] = if c[i] > lanes[i] { c[i] } else { lanes[i] };
        }
    }
    rest.iter().chain(&lanes).fold(f32::NEG_INFINITY, |m, v| if *v > m { *v } else { m })
}

/// Where a row first has its largest value.
fn first(row: &[f32], max: f32) -> Option<usize> {
    row.iter().position(|v| *v == max)
}

fn fold(lanes: [f64; LANES]) -> f64 {
    let pairs = [lanes[0] + lanes[4], lanes[1] + lanes[5], lanes[2] + lanes[6], lanes[3] + lanes[7]];
    (pairs[0] + pairs[2]) + (pairs[1] + pairs[3])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logs(p: &[f64], shift: f64) -> Vec<f32> {
        p.iter().map(|v| (v.ln() + shift) as f32).collect()
    }

    #[test]
    fn uniform_logits() {
        for n in [1, 7, 8, 1000, 32_003] {
            assert!((nll(&vec![3.5; n], 0) - (n as f64).ln()).abs() < 1e-12);
        }
    }

    #[test]
    fn known_divergence() {
        // Probabilities that are exact by hand; logits may be shifted freely.
        let (p, q) = ([0.5, 0.25, 0.25], [0.25, 0.25, 0.5]);
        let at = compare(&logs(&p, 3.0), &logs(&q, -7.0), 2);
        // 0.5 ln 2 + 0 − 0.25 ln 2.
        assert!((at.kld - 0.25 * 2f64.ln()).abs() < 1e-6, "{}", at.kld);
        assert!((at.nll_against - 4f64.ln()).abs() < 1e-6);
        assert!((at.nll - 2f64.ln()).abs() < 1e-6);
        assert!((at.p_diff() - 0.25).abs() < 1e-6);
        assert!(!at.same_top);
        assert_eq!((at.top_against, at.top), (0, 2));
        assert!((at.confidence - 0.5).abs() < 1e-6);
    }

    #[test]
    fn divergence_agrees_with_f64() {
        let row = |seed: u64| -> Vec<f32> {
            (0..5003u64).map(|i| (((i * 2_654_435_761 + seed * 97) % 10_007) as f32 / 10_007.0 - 0.5) * 20.0).collect()
        };
        let (r, c) = (row(1), row(5));
        let lse = |x: &[f32]| x.iter().map(|v| f64::from(*v).exp()).sum::<f64>().ln();
        let (lr, lc) = (lse(&r), lse(&c));
        let want: f64 = r
            .iter()
            .zip(&c)
            .map(|(r, c)| {
                let (r, c) = (f64::from(*r) - lr, f64::from(*c) - lc);
                r.exp() * (r - c)
            })
            .sum();
        let at = compare(&r, &c, 17);
        assert!((at.kld - want).abs() < 1e-6 * want, "{} {want}", at.kld);
        assert!((at.nll - (lc - f64::from(c[17]))).abs() < 1e-6);
        assert!((at.nll - nll(&c, 17)).abs() < 1e-12 && (at.nll_against - nll(&r, 17)).abs() < 1e-12);
    }

    #[test]
    fn equal_logits_have_no_divergence() {
        let r: Vec<f32> = (0..999).map(|i| ((i * 7919) % 997) as f32 * 0.03).collect();
        let at = compare(&r, &r, 5);
        assert_eq!(at.kld, 0.0);
        assert_eq!(at.p_diff(), 0.0);
        assert!(at.same_top);
    }

    #[test]
    fn small_divergence_is_resolved() {
        // Σ p x²/2 for small changes x of zero mean: ± 1e-3 on equal halves gives 5e-7.
        let r = vec![0f32; 1000];
        let c: Vec<f32> = (0..1000).map(|i| if i % 2 == 0 { 1e-3 } else { -1e-3 }).collect();
        assert!((compare(&r, &c, 0).kld / 5e-7 - 1.0).abs() < 0.02);
    }

    #[test]
    fn damaged_logits_show() {
        assert!(compare(&[0.0, f32::NAN], &[0.0, 1.0], 0).kld.is_nan());
        assert!(!compare(&[0.0, f32::INFINITY], &[0.0, 1.0], 0).kld.is_finite());
        assert!(nll(&[0.0, f32::NAN], 0).is_nan());
        assert!(!nll(&[0.0, f32::INFINITY], 0).is_finite());
    }
}
