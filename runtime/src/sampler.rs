//! Choosing the next token from logits, with a seeded generator of our own so that a seed gives the same text everywhere.

use crate::kernels;
use std::cmp::Ordering;
use std::collections::BTreeMap;

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
    /// Taken from the logits of tokens that were chosen before.
    pub presence_penalty: f32,
    /// Taken from the logits of tokens for every time they were chosen before.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub bias: Vec<(u32, f32)>,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            seed: 0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            bias: Vec::new(),
        }
    }
}

/// Chooses tokens: bias and penalties, temperature, then top-k, then top-p.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: Sampling,
    rng: Rng,
    /// How often each token was chosen, if penalties ask.
    chosen: BTreeMap<u32, u32>,
}

impl Sampler {
    /// A sampler in its initial state.
    pub fn new(options: Sampling) -> Self {
        let rng = Rng::new(options.seed);
        Sampler { options, rng, chosen: BTreeMap::new() }
    }

    /// Chooses from a row of logits. Equal logits go to the lower token id first.
    pub fn pick(&mut self, logits: &[f32]) -> u32 {
        self.pick_except(logits, &[])
    }

    /// As [`Sampler::pick`], but never one of `banned` unless there is nothing else.
    pub fn pick_except(&mut self, logits: &[f32], banned: &[u32]) -> u32 {
        let penalised = self.options.presence_penalty != 0.0 || self.options.frequency_penalty != 0.0;
        if !penalised && self.options.bias.is_empty() && banned.is_empty() {
            return self.choose(logits);
        }
        let mut logits = logits.to_vec();
        let mut change = |id: u32, by: f32| {
            if let Some(l) = logits.get_mut(id as usize) {
                *l += by;
            }
        };
        for (id, bias) in &self.options.bias {
            change(*id, *bias);
        }
        for (id, times) in &self.chosen {
            change(*id, -self.options.presence_penalty - self.options.frequency_penalty * *times as f32);
        }
        for id in banned {
            change(*id, f32::NEG_INFINITY);
        }
        let token = self.choose(&logits);
        if penalised {
            *self.chosen.entry(token).or_default() += 1;
        }
        token
    }

    fn choose(&mut self, logits: &[f32]) -> u32 {
        let by_likelihood = |a: &u32, b: &u32| -> Ordering { logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)) };
        if self.options.temperature <= 0.0 || self.options.top_k == Some(1) {
            return (0..logits.len() as u32).min_by(by_likelihood).unwrap_or(0);
        }
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        let keep = self.options.top_k.unwrap_or(ids.len()).clamp(1, ids.len().max(1));
        if keep < ids.len() {
            ids.select_nth_unstable_by(keep - 1, by_likelihood);
            ids.truncate(keep);
        }
        let mut p: Vec<f32> = ids.iter().map(|i| logits[*i as usize]).collect();
        kernels::softmax(&mut p, 1.0 / self.options.temperature);
        let mut candidates: Vec<(u32, f32)> = ids.into_iter().zip(p).collect();
        let limit = f64::from(self.options.top_p.unwrap_or(1.0));
        let u = self.rng.uniform();
        // Most of the probability lies in few tokens: sort no more than are needed to find the choice.
        let (mut sorted, mut total, mut kept) = (0, 0f64, 0);
        while kept < candidates.len() {
            if kept == sorted {
                let more = (8 * sorted).max(64).min(candidates.len());
                let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then_with(|| by_likelihood(&a.0, &b.0));
                if more < candidates.len() {
                    candidates[sorted..].select_nth_unstable_by(more - 1 - sorted, order);
                }
                candidates[sorted..more].sort_unstable_by(order);
                sorted = more;
            }
            total += f64::from(candidates[kept].1);
            kept += 1;
            if total >= limit || (limit >= 1.0 && u < total) {
                break;
            }
        }
        // Without a limit the probabilities sum to 1, give or take a rounding error.
        let mut at = u * if limit >= 1.0 { 1.0 } else { total };
        for (id, p) in &candidates[..kept] {
            at -= f64::from(*p);
            if at < 0.0 {
                return *id;
            }
        }
        candidates.get(kept.saturating_sub(1)).map_or(0, |c| c.0)
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

    #[test]
    fn wide_distributions_are_sampled_whole() {
        let logits: Vec<f32> = (0..1000).map(|i| ((i * 389) % 1000) as f32 * 1e-3).collect();
        let mut s = Sampler::new(Sampling { temperature: 1.0, seed: 1, ..Sampling::default() });
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..20_000 {
            seen.insert(s.pick(&logits));
        }
        assert!(seen.len() > 990, "{}", seen.len());
        // The 300 likeliest of 1000 nearly equal ones.
        let mut s = Sampler::new(Sampling { temperature: 100.0, top_p: Some(0.3), ..Sampling::default() });
        for _ in 0..2000 {
            assert!(logits[s.pick(&logits) as usize] > 0.69);
        }
    }

    #[test]
    fn bias_penalties_and_bans() {
        let logits = [0.0f32, 3.0, 2.0, 1.0];
        let mut s = Sampler::new(Sampling { presence_penalty: 1.5, ..Sampling::default() });
        assert_eq!([s.pick(&logits), s.pick(&logits), s.pick(&logits)], [1, 2, 1]);
        let mut s = Sampler::new(Sampling { frequency_penalty: 0.75, ..Sampling::default() });
        assert_eq!([s.pick(&logits), s.pick(&logits), s.pick(&logits), s.pick(&logits)], [1, 1, 2, 1]);
        let mut s = Sampler::new(Sampling { bias: vec![(3, 5.0), (1, -100.0), (9, 1.0)], ..Sampling::default() });
        assert_eq!(s.pick(&logits), 3);
        assert_eq!(Sampler::new(Sampling::default()).pick_except(&logits, &[1, 2]), 3);
    }
}
