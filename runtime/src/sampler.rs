//! Choosing the next token from logits, with a seeded generator of our own so that a seed gives the same text everywhere.

use crate::kernels;
use std::cmp::Ordering;

/// xoshiro256++ (Blackman and Vigna, 2019), seeded through SplitMix64.
#[derive(Debug, Clone)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// A generator for a seed.
    pub fn new(seed: u64) -> Self {
        let mut z = seed;
        let state = std::array::from_fn(|_| {
            z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut x = z;
            x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            x ^ (x >> 31)
        });
        Rng { state }
    }
    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let out = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        out
    }
    /// Uniform in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
    /// Standard normal (Box and Muller, 1958).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

/// How to choose tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Keeps this many of the most likely tokens.
    pub top_k: Option<usize>,
    /// Keeps the smallest set of most likely tokens whose probabilities sum to this.
    pub top_p: Option<f32>,
    /// Seed of the random generator.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 0.0, top_k: None, top_p: None, seed: 0 }
    }
}

/// Chooses tokens: temperature, then top-k, then top-p.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: Sampling,
    rng: Rng,
}

impl Sampler {
    /// A sampler in its initial state.
    pub fn new(options: Sampling) -> Self {
        let rng = Rng::new(options.seed);
        Sampler { options, rng }
    }

    /// Chooses from a row of logits. Equal logits go to the lower token id first.
    pub fn pick(&mut self, logits: &[f32]) -> u32 {
        let by_likelihood = |a: &u32, b: &u32| -> Ordering { logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)) };
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        if self.options.temperature <= 0.0 || self.options.top_k == Some(1) {
            return ids.into_iter().min_by(by_likelihood).unwrap_or(0);
        }
        let keep = self.options.top_k.unwrap_or(ids.len()).clamp(1, ids.len().max(1));
        if keep < ids.len() {
            ids.select_nth_unstable_by(keep - 1, by_likelihood);
            ids.truncate(keep);
        }
        ids.sort_unstable_by(by_likelihood);
        let mut p: Vec<f32> = ids.iter().map(|i| logits[*i as usize]).collect();
        kernels::softmax(&mut p, 1.0 / self.options.temperature);
        let mut total = 0f64;
        let limit = f64::from(self.options.top_p.unwrap_or(1.0));
        let mut kept = 0;
        for v in &p {
            total += f64::from(*v);
            kept += 1;
            if total >= limit {
                break;
            }
        }
        let mut at = self.rng.uniform() * total;
        for (id, v) in ids[..kept].iter().zip(&p) {
            at -= f64::from(*v);
            if at < 0.0 {
                return *id;
            }
        }
        ids.get(kept.saturating_sub(1)).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xoshiro_reference_values() {
        // State 1, 2, 3, 4: first outputs of the authors' program.
        let mut rng = Rng { state: [1, 2, 3, 4] };
        assert_eq!([rng.next_u64(), rng.next_u64(), rng.next_u64()], [41943041, 58720359, 3588806011781223]);
    }

    #[test]
    fn greedy_takes_first_of_equals() {
        let mut s = Sampler::new(Sampling::default());
        assert_eq!(s.pick(&[0.0, 3.0, 3.0, 1.0]), 1);
    }

    #[test]
    fn frequencies_follow_probabilities() {
        let logits: Vec<f32> = [0.5f32, 0.3, 0.15, 0.05].iter().map(|p| p.ln()).collect();
        let count = |options: Sampling| {
            let mut s = Sampler::new(options);
            let mut n = [0usize; 4];
            for _ in 0..20_000 {
                n[s.pick(&logits) as usize] += 1;
            }
            n
        };
        let base = Sampling { temperature: 1.0, seed: 7, ..Sampling::default() };
        let n = count(base.clone());
        for (n, p) in n.iter().zip([0.5, 0.3, 0.15, 0.05]) {
            assert!((*n as f64 / 20_000.0 - p).abs() < 0.015, "{n} {p}");
        }
        let n = count(Sampling { top_k: Some(2), ..base.clone() });
        assert!(n[2] == 0 && n[3] == 0 && (n[0] as f64 / 20_000.0 - 0.625).abs() < 0.015);
        let n = count(Sampling { top_p: Some(0.85), ..base.clone() });
        assert!(n[2] > 0 && n[3] == 0);
        assert_eq!(count(base.clone()), count(base));
    }
}
