//! Whether one model is closer to the reference than another: the same windows, compared in pairs.

use crate::paired::{SIGNIFICANCE, sign_flip};
use crate::results::{EvalResult, Kld};
use crate::stats::mean_and_stderr;
use serde::{Deserialize, Serialize};

/// Two models on the same windows of a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// The text.
    pub data: String,
    /// The first model.
    pub a: String,
    /// The second model.
    pub b: String,
    /// Windows that both were measured on.
    pub windows: usize,
    /// Mean divergence of `b` less that of `a`, nats per token: above 0 where `a` is closer to the reference.
    pub difference: f64,
    /// Its standard error, windows taken as independent.
    pub stderr: f64,
    /// Of a two-sided randomization test that the signs of the windows' differences are chance.
    pub p_value: f64,
}

impl Pair {
    /// Compares two results on every text that both were measured on, window by window. Texts are the same if their hash, the reference
    /// and the windows are.
    pub fn of(a: (&str, &EvalResult), b: (&str, &EvalResult)) -> Vec<Pair> {
        let same = |x: &Kld, y: &Kld| {
            (&x.sha256, &x.against, x.ctx, x.style) == (&y.sha256, &y.against, y.ctx, y.style)
                && !x.windows.is_empty()
                && x.windows.len() == y.windows.len()
                && x.windows.iter().zip(&y.windows).all(|(v, w)| (&v.domain, v.tokens) == (&w.domain, w.tokens))
        };
        let pair = |x: &Kld| {
            let y = b.1.kld.iter().find(|y| same(x, y))?;
            let differences: Vec<f64> = x.windows.iter().zip(&y.windows).map(|(v, w)| w.kld - v.kld).collect();
            let (difference, stderr) = mean_and_stderr(&differences);
            let p_value = sign_flip(&differences);
            Some(Pair {
                data: x.data.clone(),
                a: a.0.into(),
                b: b.0.into(),
                windows: differences.len(),
                difference,
                stderr,
                p_value,
            })
        };
        a.1.kld.iter().filter_map(pair).collect()
    }

    /// Whether the two can be told apart.
    pub fn is_distinguishable(&self) -> bool {
        self.p_value < SIGNIFICANCE
    }

    /// The verdict in words.
    pub fn verdict(&self) -> String {
        match (self.is_distinguishable(), self.difference > 0.0) {
            (false, _) => "not distinguishable".into(),
            (true, true) => format!("{} is closer", self.a),
            (true, false) => format!("{} is closer", self.b),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Position;
    use crate::results::tests::eval_windows;

    fn result(klds: &[f64], against: &str) -> EvalResult {
        let eval = eval_windows(&["a"], &vec![0; klds.len()]);
        let windows: Vec<Vec<Position>> = klds.iter().map(|k| vec![Position { kld: *k, ..Position::default() }]).collect();
        EvalResult { kld: vec![Kld::from_positions(&eval, against, &windows)], ..EvalResult::default() }
    }

    #[test]
    fn pairs_say_who_is_closer() {
        let near: Vec<f64> = (0..20).map(|i| 0.01 + 0.001 * f64::from(i % 3)).collect();
        let far: Vec<f64> = near.iter().enumerate().map(|(i, v)| v + 0.002 + 0.0001 * (i % 5) as f64).collect();
        let mixed: Vec<f64> = near.iter().enumerate().map(|(i, v)| v + if i % 2 == 0 { 0.002 } else { -0.002 }).collect();
        let (near, far, mixed) = (result(&near, "r"), result(&far, "r"), result(&mixed, "r"));
        let pair = &Pair::of(("near", &near), ("far", &far))[0];
        assert!(pair.is_distinguishable() && pair.verdict() == "near is closer" && pair.difference > 0.002, "{pair:?}");
        assert_eq!(Pair::of(("far", &far), ("near", &near))[0].verdict(), "near is closer");
        assert_eq!(Pair::of(("near", &near), ("mixed", &mixed))[0].verdict(), "not distinguishable");
        // Another reference or other windows are not comparable.
        assert!(Pair::of(("near", &near), ("x", &result(&[0.1; 20], "other"))).is_empty());
        assert!(Pair::of(("near", &near), ("x", &result(&[0.1; 19], "r"))).is_empty());
    }
}
