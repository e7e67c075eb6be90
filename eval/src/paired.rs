//! Intervals and tests for scores over items, and for the differences of two models on the same items.

use crate::stats::{mean, percentile};
use bitsmith_runtime::sampler::Rng;

/// Standard errors on each side of a 95 % interval.
pub const Z95: f64 = 1.959_963_984_540_054;
/// Below this probability a difference counts as one.
pub const SIGNIFICANCE: f64 = 0.05;
const RESAMPLES: usize = 2000;
const FLIPS: usize = 10_000;
/// Up to so many differences all signs are tried.
const ALL_SIGNS: usize = 13;
/// Resampling draws the same every time, so that the same scores give the same numbers.
const SEED: u64 = 0x5eed;

/// The 95 % interval of a proportion `p` of `n` (Wilson, 1927), which is right near 0 and 1 too.
pub fn wilson(p: f64, n: usize) -> [f64; 2] {
    let (n, z2) = (n as f64, Z95 * Z95);
    let middle = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z95 / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    [(middle - half).max(0.0), (middle + half).min(1.0)]
}

/// McNemar's test in its mid-p form (Fagerland et al., 2013): the probability of flips at least so uneven if both ways are alike, those
/// exactly so uneven counted half. The exact test rejects too seldom, the asymptotic one too often.
pub fn mcnemar(gained: usize, lost: usize) -> f64 {
    let (n, few) = (gained + lost, gained.min(lost));
    if gained == lost {
        return 1.0;
    }
    // Binomial probabilities in logarithms, from 0 successes up.
    let mut log = -(n as f64) * std::f64::consts::LN_2;
    let mut below = 0.0;
    for i in 0..few {
        below += log.exp();
        log += ((n - i) as f64 / (i + 1) as f64).ln();
    }
    (2.0 * below + log.exp()).min(1.0)
}

/// The probability of a sum of differences so far from 0 if each could as well have the other sign: exact for few differences, from
/// random signs for more.
pub fn sign_flip(differences: &[f64]) -> f64 {
    let observed = differences.iter().sum::<f64>().abs();
    // Sums in another order may be rounded differently.
    let limit = observed - 1e-12 * differences.iter().map(|d| d.abs()).sum::<f64>();
    // Signs in blocks of 64, a word each.
    let is_extreme = |word: &mut dyn FnMut() -> u64| {
        let flip = |chunk: &[f64], signs: u64| -> f64 {
            chunk.iter().enumerate().map(|(i, d)| if signs >> i & 1 == 1 { -d } else { *d }).sum()
        };
        let sum: f64 = differences.chunks(64).map(|chunk| flip(chunk, word())).sum();
        sum.abs() >= limit
    };
    if differences.len() <= ALL_SIGNS {
        let all = 1u64 << differences.len();
        return (0..all).filter(|signs| is_extreme(&mut || *signs)).count() as f64 / all as f64;
    }
    let mut rng = Rng::new(SEED);
    let extreme = (0..FLIPS).filter(|_| is_extreme(&mut || rng.next_u64())).count();
    // The observed signs are one of the draws, so that no result is impossible.
    (extreme + 1) as f64 / (FLIPS + 1) as f64
}

/// The 95 % interval of the mean difference, by resampling items (Efron, 1979).
pub fn bootstrap(differences: &[f64]) -> [f64; 2] {
    bootstrap_seeded(differences, RESAMPLES, &mut Rng::new(SEED))
}

fn bootstrap_seeded(differences: &[f64], resamples: usize, rng: &mut Rng) -> [f64; 2] {
    if differences.iter().all(|d| *d == differences[0]) {
        let d = mean(differences);
        return [d, d];
    }
    let n = differences.len();
    let mut means: Vec<f64> =
        (0..resamples).map(|_| (0..n).map(|_| differences[below(rng, n)]).sum::<f64>() / n as f64).collect();
    interval(&mut means)
}

/// The 95 % interval of a statistic of `n` items, which is given the resampled items' indices.
pub fn bootstrap_of(n: usize, statistic: impl Fn(&[usize]) -> f64) -> [f64; 2] {
    let mut rng = Rng::new(SEED);
    let mut values: Vec<f64> =
        (0..RESAMPLES).map(|_| statistic(&(0..n).map(|_| below(&mut rng, n)).collect::<Vec<_>>())).collect();
    interval(&mut values)
}

/// Uniform below `n` (Lemire, 2019, without the correction, which is below 2⁻⁴⁰ for any number of items).
fn below(rng: &mut Rng, n: usize) -> usize {
    ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize
}

fn interval(values: &mut [f64]) -> [f64; 2] {
    values.sort_by(f64::total_cmp);
    [percentile(values, 0.025), percentile(values, 0.975)]
}

/// A difference in words; `delta` above 0 is an improvement.
pub fn verdict(delta: f64, p_value: f64) -> &'static str {
    match p_value < SIGNIFICANCE {
        false => "not distinguishable",
        true if delta > 0.0 => "better",
        true => "worse",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::mean_and_stderr;

    #[test]
    fn known_values() {
        // 2 of 10 flips one way: 2 (1 + 10) / 1024 + 45 / 1024.
        assert!((mcnemar(2, 8) - (22.0 + 45.0) / 1024.0).abs() < 1e-12);
        assert_eq!(mcnemar(2, 8), mcnemar(8, 2));
        assert_eq!((mcnemar(0, 0), mcnemar(7, 7)), (1.0, 1.0));
        assert!((mcnemar(0, 1) - 0.5).abs() < 1e-15);
        assert!(mcnemar(4000, 5000) < 1e-20 && mcnemar(4000, 5000) > 0.0);
        // Wilson's interval of 8 of 10, from the literature.
        let [low, high] = wilson(0.8, 10);
        assert!((low - 0.4902).abs() < 1e-4 && (high - 0.9433).abs() < 1e-4, "{low} {high}");
        assert_eq!(wilson(0.0, 10)[0], 0.0);
        // All 16 sign patterns of equal differences: 2 are as extreme.
        assert_eq!(sign_flip(&[1.0; 4]), 0.125);
        assert_eq!(sign_flip(&[0.1, 0.2, 0.1, 0.3, 0.2, 0.1]), 2.0 / 64.0);
        assert_eq!((sign_flip(&[1.0, -1.0]), sign_flip(&[]), sign_flip(&[0.0; 40])), (1.0, 1.0, 1.0));
        assert_eq!(verdict(-0.1, 0.06), "not distinguishable");
    }

    /// Whether 95 % intervals cover the truth in 93 to 97 % of 2,000 experiments.
    fn covers(name: &str, mut experiment: impl FnMut(&mut Rng) -> bool) {
        let mut rng = Rng::new(7);
        let covered = (0..2000).filter(|_| experiment(&mut rng)).count() as f64 / 2000.0;
        assert!((0.93..=0.97).contains(&covered), "{name}: {covered}");
    }

    #[test]
    fn intervals_of_scores_cover_the_truth() {
        for (p, n) in [(0.25, 100), (0.6, 400), (0.9, 200)] {
            covers(&format!("wilson {p} {n}"), |rng| {
                let right = (0..n).filter(|_| rng.uniform() < p).count();
                let [low, high] = wilson(right as f64 / n as f64, n);
                low <= p && p <= high
            });
        }
        covers("shares", |rng| {
            let values: Vec<f64> = (0..200).map(|_| rng.uniform().powi(2)).collect();
            let (m, e) = mean_and_stderr(&values);
            (m - 1.0 / 3.0).abs() <= Z95 * e
        });
    }

    /// Differences of two models of which one gains and the other loses so often.
    fn flips(rng: &mut Rng, n: usize, gain: f64, loss: f64) -> Vec<f64> {
        let flip = |u: f64| {
            if u < gain {
                1.0
            } else if u < gain + loss {
                -1.0
            } else {
                0.0
            }
        };
        (0..n).map(|_| flip(rng.uniform())).collect()
    }

    #[test]
    fn intervals_of_differences_cover_the_truth() {
        for (gain, loss) in [(0.08, 0.08), (0.05, 0.10), (0.2, 0.1)] {
            covers(&format!("bootstrap {gain} {loss}"), |rng| {
                let differences = flips(rng, 250, gain, loss);
                let [low, high] = bootstrap_seeded(&differences, 400, rng);
                low <= gain - loss && gain - loss <= high
            });
        }
    }

    /// How often a test finds a difference where there is none.
    fn false_positives(experiments: usize, mut p_value: impl FnMut(&mut Rng) -> f64) -> f64 {
        let mut rng = Rng::new(11);
        (0..experiments).filter(|_| p_value(&mut rng) < SIGNIFICANCE).count() as f64 / experiments as f64
    }

    #[test]
    fn the_paired_test_errs_in_five_per_cent() {
        for rate in [0.05, 0.1, 0.2] {
            let found = false_positives(10_000, |rng| {
                let differences = flips(rng, 500, rate, rate);
                let count = |sign: f64| differences.iter().filter(|d| **d == sign).count();
                mcnemar(count(1.0), count(-1.0))
            });
            assert!((0.04..=0.06).contains(&found), "{rate}: {found}");
        }
        // Skewed, as windows' divergences are, but for both models alike.
        for n in [10, 12, 40] {
            let experiments = if n > ALL_SIGNS { 400 } else { 2000 };
            let found = false_positives(experiments, |rng| {
                let mut value = || -(1.0 - rng.uniform()).ln();
                sign_flip(&(0..n).map(|_| value() - value()).collect::<Vec<f64>>())
            });
            let slack = if n > ALL_SIGNS { 0.025 } else { 0.015 };
            assert!((found - 0.05).abs() < slack, "{n} windows: {found}");
        }
    }

    #[test]
    fn a_difference_is_found() {
        let found = false_positives(500, |rng| {
            let differences = flips(rng, 500, 0.03, 0.10);
            let count = |sign: f64| differences.iter().filter(|d| **d == sign).count();
            mcnemar(count(1.0), count(-1.0))
        });
        assert!(found > 0.95, "{found}");
        let mut rng = Rng::new(3);
        let shifted: Vec<f64> = (0..100).map(|_| rng.normal() + 0.5).collect();
        assert!(sign_flip(&shifted) < 1e-3);
    }
}
