//! Log-probabilities of a row of logits.

use crate::kernels;

/// How likely a token was, and which ones were likeliest.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// The token.
    pub token: u32,
    /// Its log-probability, in nats.
    pub logprob: f64,
    /// The likeliest tokens with their log-probabilities, in descending order; equal ones by id.
    pub top: Vec<(u32, f64)>,
}

impl Score {
    /// Scores `token`, with the `top` likeliest tokens beside it. `token` must be inside the vocabulary.
    pub fn of(logits: &[f32], token: u32, top: usize) -> Self {
        let total = kernels::log_sum_exp(logits);
        let logprob = |id: u32| f64::from(logits[id as usize]) - total;
        let top = likeliest(logits, top).into_iter().map(|id| (id, logprob(id))).collect();
        Score { token, logprob: logprob(token), top }
    }
}

/// The ids of the `n` largest logits, the largest first; equal ones by id.
fn likeliest(logits: &[f32], n: usize) -> Vec<u32> {
    let mut best: Vec<u32> = Vec::with_capacity(n + 1);
    for (id, logit) in logits.iter().enumerate() {
        let full = best.len() == n;
        if full && best.last().is_none_or(|worst| *logit <= logits[*worst as usize]) {
            continue;
        }
        let at = best.partition_point(|b| logits[*b as usize] >= *logit);
        best.insert(at, id as u32);
        best.truncate(n);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_log_probabilities_in_order() {
        let logits = [1.0f32, 3.0, 3.0, -2.0, 0.5];
        let score = Score::of(&logits, 3, 3);
        assert_eq!(score.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2, 0]);
        let all = Score::of(&logits, 1, 9);
        assert_eq!(all.logprob, all.top[0].1);
        assert!((all.top.iter().map(|t| t.1.exp()).sum::<f64>() - 1.0).abs() < 1e-6);
        assert_eq!(score.logprob, all.top[4].1);
        assert!(Score::of(&logits, 0, 0).top.is_empty());
    }
}
