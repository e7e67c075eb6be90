//! Result records. Their JSON keys are a contract: keys may be added, never changed.

use crate::landing::Landing;
use crate::metrics::Position;
use crate::stats::{grouped_stderr, mean, mean_and_stderr, percentile};
use bitsmith_datasets::{EvalWindows, Style};
use bitsmith_runtime::CacheType;
use serde::{Deserialize, Serialize};

/// Everything measured of one model: the JSON document of `bitsmith eval`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EvalResult {
    /// The model's name.
    pub model: String,
    /// Bytes of its tensors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Its bits per weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bpw: Option<f64>,
    /// How its keys and values were rounded: as a cache of this type stores them. Not written where they were exact.
    #[serde(default, skip_serializing_if = "CacheType::is_exact")]
    pub kv: CacheType,
    /// Perplexity, by data.
    pub perplexity: Vec<Perplexity>,
    /// KL divergence, by data.
    pub kld: Vec<Kld>,
    /// Task scores.
    pub tasks: Vec<TaskResult>,
}

/// Perplexity of a model on a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Perplexity {
    /// The DATA argument.
    pub data: String,
    /// Tokens per window.
    pub ctx: usize,
    /// How windows are cut and scored.
    pub style: Style,
    /// Scored tokens.
    pub tokens: usize,
    /// Mean negative log-likelihood, nats per token.
    pub nll: f64,
    /// `exp(nll)`.
    pub ppl: f64,
    /// Standard error of `ppl` as llama.cpp states it: tokens taken as independent.
    pub stderr: f64,
    /// Number of windows.
    pub windows: usize,
    /// SHA-256 of the text.
    pub sha256: String,
    /// By domain, if there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<DomainPerplexity>,
}

/// Perplexity of a model on one domain of a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DomainPerplexity {
    /// The domain's name.
    pub domain: String,
    /// Scored tokens.
    pub tokens: usize,
    /// Mean negative log-likelihood, nats per token.
    pub nll: f64,
    /// `exp(nll)`.
    pub ppl: f64,
    /// Standard error of `ppl`.
    pub stderr: f64,
}

/// `(nll, ppl, stderr of ppl)`.
fn perplexity_of(nlls: &[f64]) -> (f64, f64, f64) {
    let (nll, stderr) = mean_and_stderr(nlls);
    (nll, nll.exp(), nll.exp() * stderr)
}

impl Perplexity {
    /// From the negative log-likelihoods of each window's scored tokens, in the order of the windows.
    pub fn from_nlls(eval: &EvalWindows, by_window: &[Vec<f64>]) -> Self {
        let all = by_window.concat();
        let (nll, ppl, stderr) = perplexity_of(&all);
        let domains = by_domain(eval, by_window).map(|(domain, windows)| {
            let nlls = windows.into_iter().flatten().copied().collect::<Vec<f64>>();
            let (nll, ppl, stderr) = perplexity_of(&nlls);
            DomainPerplexity { domain, tokens: nlls.len(), nll, ppl, stderr }
        });
        Perplexity {
            data: eval.set.data.clone(),
            ctx: eval.set.ctx,
            style: eval.style,
            tokens: all.len(),
            nll,
            ppl,
            stderr,
            windows: by_window.len(),
            sha256: eval.set.sha256.clone(),
            domains: domains.collect(),
        }
    }
}

/// How a model's next-token distributions differ from those of a reference, on a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kld {
    /// The DATA argument.
    pub data: String,
    /// The reference model's name.
    pub against: String,
    /// Tokens per window.
    pub ctx: usize,
    /// How windows are cut and scored.
    pub style: Style,
    /// The numbers over all scored tokens.
    #[serde(flatten)]
    pub summary: KldSummary,
    /// Standard error of the mean divergence with windows, not tokens, taken as independent; absent for a single window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_stderr_windows: Option<f64>,
    /// Standard error of the perplexity ratio with windows, not tokens, taken as independent; absent for a single window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ppl_ratio_stderr_windows: Option<f64>,
    /// SHA-256 of the text.
    pub sha256: String,
    /// By domain, if there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<DomainKld>,
    /// By window, so that other models on the same windows can be compared in pairs.
    #[serde(default)]
    pub windows: Vec<WindowKld>,
    /// Where in the text the divergence lies, if the reference knew its tokenizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landing: Option<Landing>,
}

/// Divergence from the reference over a set of tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KldSummary {
    /// Scored tokens.
    pub tokens: usize,
    /// Mean KL divergence, nats per token.
    pub mean: f64,
    /// Standard error of the mean, tokens taken as independent.
    pub mean_stderr: f64,
    /// Median divergence.
    pub median: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
    /// Largest divergence.
    pub max: f64,
    /// Fraction of tokens where both models find the same next token most likely.
    pub same_top_p: f64,
    /// Root mean square difference of the actual next token's probability (a fraction, not per cent).
    pub rms_dp: f64,
    /// The model's perplexity.
    pub ppl: f64,
    /// The reference's perplexity on the same tokens.
    pub ppl_against: f64,
    /// `ppl / ppl_against`.
    pub ppl_ratio: f64,
    /// Standard error of the ratio from the paired differences of log-likelihoods, tokens taken as independent.
    pub ppl_ratio_stderr: f64,
}

/// Divergence from the reference on one domain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DomainKld {
    /// The domain's name.
    pub domain: String,
    /// The numbers over the domain's scored tokens.
    #[serde(flatten)]
    pub summary: KldSummary,
}

/// Means over one window's scored tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WindowKld {
    /// The window's domain.
    pub domain: String,
    /// Scored tokens.
    pub tokens: usize,
    /// The model's mean negative log-likelihood.
    pub nll: f64,
    /// The reference's mean negative log-likelihood.
    pub nll_against: f64,
    /// Mean divergence.
    pub kld: f64,
    /// Fraction with the same most likely token.
    pub same_top_p: f64,
}

impl KldSummary {
    /// From positions in any number of windows.
    pub fn of<'a>(positions: impl IntoIterator<Item = &'a Position>) -> Self {
        let positions: Vec<&Position> = positions.into_iter().collect();
        let of = |f: fn(&Position) -> f64| positions.iter().map(|p| f(p)).collect::<Vec<f64>>();
        let mut klds = of(|p| p.kld);
        let (mean_kld, mean_stderr) = mean_and_stderr(&klds);
        klds.sort_by(f64::total_cmp);
        // The delta method: a small change of the mean log ratio changes the ratio by `ratio` times as much.
        let (log_ratio, log_ratio_stderr) = mean_and_stderr(&of(|p| p.nll - p.nll_against));
        KldSummary {
            tokens: positions.len(),
            mean: mean_kld,
            mean_stderr,
            median: percentile(&klds, 0.5),
            p90: percentile(&klds, 0.9),
            p99: percentile(&klds, 0.99),
            p999: percentile(&klds, 0.999),
            max: percentile(&klds, 1.0),
            same_top_p: mean(&of(|p| f64::from(u8::from(p.same_top)))),
            rms_dp: mean(&of(|p| p.p_diff().powi(2))).sqrt(),
            ppl: mean(&of(|p| p.nll)).exp(),
            ppl_against: mean(&of(|p| p.nll_against)).exp(),
            ppl_ratio: log_ratio.exp(),
            ppl_ratio_stderr: log_ratio.exp() * log_ratio_stderr,
        }
    }
}

impl Kld {
    /// From the scored positions of each window, in the order of the windows.
    pub fn from_positions(eval: &EvalWindows, against: &str, by_window: &[Vec<Position>]) -> Self {
        let summary = KldSummary::of(by_window.iter().flatten());
        let grouped = |f: fn(&Position) -> f64| {
            let sums: Vec<_> = by_window.iter().map(|w| (w.iter().map(f).sum::<f64>(), w.len())).collect();
            grouped_stderr(&sums)
        };
        let domains = by_domain(eval, by_window)
            .map(|(domain, windows)| DomainKld { domain, summary: KldSummary::of(windows.into_iter().flatten()) });
        let window = |(w, domain): (&Vec<Position>, &usize)| {
            let of = |f: fn(&Position) -> f64| mean(&w.iter().map(f).collect::<Vec<f64>>());
            WindowKld {
                domain: eval.set.domains[*domain].clone(),
                tokens: w.len(),
                nll: of(|p| p.nll),
                nll_against: of(|p| p.nll_against),
                kld: of(|p| p.kld),
                same_top_p: of(|p| f64::from(u8::from(p.same_top))),
            }
        };
        Kld {
            data: eval.set.data.clone(),
            against: against.to_string(),
            ctx: eval.set.ctx,
            style: eval.style,
            mean_stderr_windows: grouped(|p| p.kld),
            ppl_ratio_stderr_windows: grouped(|p| p.nll - p.nll_against).map(|e| e * summary.ppl_ratio),
            summary,
            sha256: eval.set.sha256.clone(),
            domains: domains.collect(),
            windows: by_window.iter().zip(&eval.set.domain_of).map(window).collect(),
            landing: None,
        }
    }
}

/// The windows of each domain that has any; nothing if there is one domain only.
fn by_domain<'a, T>(eval: &'a EvalWindows, by_window: &'a [T]) -> impl Iterator<Item = (String, Vec<&'a T>)> {
    let several = eval.set.domains.len() > 1;
    let names = eval.set.domains.iter().enumerate().filter(move |_| several);
    names
        .map(|(d, name)| {
            let windows = by_window.iter().zip(&eval.set.domain_of).filter(|(_, of)| **of == d);
            (name.clone(), windows.map(|(w, _)| w).collect::<Vec<_>>())
        })
        .filter(|(_, windows)| !windows.is_empty())
}

/// A model's score in a task.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// The task's name.
    pub task: String,
    /// Items scored.
    pub n: usize,
    /// What `value` is, `acc_norm` for example.
    pub metric: String,
    /// The score.
    pub value: f64,
    /// Standard error of the score.
    pub stderr: f64,
    /// Examples before each question.
    #[serde(default)]
    pub shots: usize,
    /// The score's 95 % interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<[f64; 2]>,
    /// Comparison with the reference on the same items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paired: Option<Paired>,
}

/// A model's score against a reference's, item by item.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// The reference model's name.
    pub against: String,
    /// Score less the reference's.
    pub delta: f64,
    /// Items that one of the two got right and the other wrong.
    pub flips: usize,
    /// Of a test that flips go either way alike: McNemar's in its mid-p form. For scores that are not right or wrong, of a test that
    /// flips the signs of differences.
    pub p_value: f64,
    /// Items that the model got right and the reference wrong.
    #[serde(default)]
    pub gained: usize,
    /// Items that the model got wrong and the reference right.
    #[serde(default)]
    pub lost: usize,
    /// The 95 % interval of `delta`, by resampling items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<[f64; 2]>,
    /// `better`, `worse` or `not distinguishable`, at 5 %.
    #[serde(default)]
    pub verdict: String,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use bitsmith_datasets::WindowSet;

    pub(crate) fn eval_windows(domains: &[&str], domain_of: &[usize]) -> EvalWindows {
        let set = WindowSet {
            data: "test".into(),
            sha256: "00".into(),
            ctx: 512,
            domains: domains.iter().map(|d| d.to_string()).collect(),
            windows: vec![vec![0; 512]; domain_of.len()],
            domain_of: domain_of.to_vec(),
            notes: Vec::new(),
        };
        EvalWindows { set, style: Style::LlamaCpp }
    }

    fn position(nll_against: f64, nll: f64, kld: f64, same_top: bool) -> Position {
        Position { nll_against, nll, kld, same_top, ..Position::default() }
    }

    #[test]
    fn perplexity_by_hand() {
        let eval = eval_windows(&["a", "b"], &[0, 1]);
        let p = Perplexity::from_nlls(&eval, &[vec![1.0, 2.0], vec![3.0, 6.0]]);
        assert_eq!((p.tokens, p.windows, p.nll), (4, 2, 3.0));
        assert!((p.ppl - 3f64.exp()).abs() < 1e-12);
        assert!((p.stderr - 3f64.exp() * (14.0f64 / 12.0).sqrt()).abs() < 1e-12);
        assert_eq!(p.domains.iter().map(|d| (d.domain.as_str(), d.nll)).collect::<Vec<_>>(), [("a", 1.5), ("b", 4.5)]);
        let one = Perplexity::from_nlls(&eval_windows(&["a"], &[0]), &[vec![1.0]]);
        assert!(one.domains.is_empty());
        assert_eq!(one.stderr, 0.0);
    }

    #[test]
    fn divergence_by_hand() {
        let eval = eval_windows(&["a", "b", "empty"], &[0, 1]);
        let windows = [
            vec![position(1.0, 1.1, 0.01, true), position(2.0, 2.3, 0.03, true)],
            vec![position(0.5, 0.4, 0.02, true), position(3.0, 3.1, 0.06, false)],
        ];
        let k = Kld::from_positions(&eval, "ref", &windows);
        let s = &k.summary;
        assert_eq!(s.tokens, 4);
        assert!((s.mean - 0.03).abs() < 1e-15);
        assert!((s.median - 0.025).abs() < 1e-15);
        assert_eq!(s.max, 0.06);
        assert_eq!(s.same_top_p, 0.75);
        // Differences 0.1, 0.3, −0.1, 0.1: mean 0.1, deviations 0, 0.2, −0.2, 0.
        assert!((s.ppl_ratio - 0.1f64.exp()).abs() < 1e-12);
        assert!((s.ppl_ratio_stderr - 0.1f64.exp() * (0.08f64 / 12.0).sqrt()).abs() < 1e-12);
        assert!((s.ppl_ratio - s.ppl / s.ppl_against).abs() < 1e-12);
        let dp = [0.1f64, 0.3, -0.1, 0.1].iter().zip([1.0f64, 2.0, 0.5, 3.0]).map(|(d, n)| ((-n - d).exp() - (-n).exp()).powi(2));
        assert!((s.rms_dp - (dp.sum::<f64>() / 4.0).sqrt()).abs() < 1e-12);
        // Window means 0.2 and 0.0 of the differences: standard error 0.1.
        assert!((k.ppl_ratio_stderr_windows.unwrap() - 0.1f64.exp() * 0.1).abs() < 1e-12);
        assert_eq!(k.domains.len(), 2);
        assert_eq!(k.domains[1].summary.same_top_p, 0.5);
        assert!((k.windows[1].kld - 0.04).abs() < 1e-15);
    }

    #[test]
    fn json_keys_are_the_contract() {
        let eval = eval_windows(&["a"], &[0, 0]);
        let windows = [vec![position(1.0, 1.1, 0.01, true)], vec![position(2.0, 2.3, 0.03, true)]];
        let result = EvalResult {
            model: "m".into(),
            bytes: Some(1000),
            bpw: None,
            kv: CacheType::Q8_0,
            perplexity: vec![Perplexity::from_nlls(&eval, &[vec![1.0], vec![2.0]])],
            kld: vec![Kld::from_positions(&eval, "ref", &windows)],
            tasks: vec![],
        };
        let json = serde_json::to_value(&result).unwrap();
        for key in ["data", "ctx", "style", "tokens", "nll", "ppl", "stderr"] {
            assert!(json["perplexity"][0].get(key).is_some(), "{key}");
        }
        let keys =
            ["data", "against", "tokens", "mean", "median", "p90", "p99", "p999", "max", "same_top_p", "rms_dp", "ppl_ratio"];
        for key in keys {
            assert!(json["kld"][0].get(key).is_some(), "{key}");
        }
        assert_eq!(json["perplexity"][0]["style"], "llama.cpp");
        assert_eq!((&json["tasks"], &json["kv"]), (&serde_json::json!([]), &serde_json::json!("q8_0")));
        assert_eq!(serde_json::from_value::<EvalResult>(json).unwrap(), result);
    }
}
