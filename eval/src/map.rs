//! The quality map: what quantizing each tensor alone costs, by codec and domain. Its JSON keys are a contract: keys may be added,
//! never changed.

use crate::metrics::Position;
use crate::results::Kld;
use crate::stats::{grouped_stderr, mean, mean_and_stderr};
use bitsmith_datasets::EvalWindows;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The document of `bitsmith map`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct QualityMap {
    /// The model's name.
    pub model: String,
    /// SHA-256 of the model's files: of its `sha256  name` lines if there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_sha256: Option<String>,
    /// What chose the codes.
    pub method: String,
    /// The texts, one entry per domain.
    pub data: Vec<MapData>,
    /// The candidate codecs, in the order of the targets.
    pub codecs: Vec<String>,
    /// What the dense model scores, by domain.
    pub baseline: BTreeMap<String, Baseline>,
    /// Every matrix in every codec: tensors in file order, codecs in the order of `codecs` within each.
    pub entries: Vec<MapEntry>,
    /// How errors propagate when everything is quantized, one entry per codec.
    pub depth: Vec<Depth>,
    /// What the sum over single tensors predicts for everything quantized, against the measurement, one entry per codec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plan_check: Vec<PlanCheck>,
    /// How far the estimates follow the measurements, where both were made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
}

/// One domain of the map's text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MapData {
    /// The DATA argument.
    pub data: String,
    /// The domain's name.
    pub domain: String,
    /// Scored tokens.
    pub tokens: usize,
    /// Windows.
    pub windows: usize,
}

/// The dense model on one domain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// Scored tokens.
    pub tokens: usize,
    /// Mean negative log-likelihood, nats per token.
    pub nll: f64,
    /// `exp(nll)`.
    pub ppl: f64,
    /// Standard error of `ppl`, tokens taken as independent.
    pub stderr: f64,
}

/// One tensor in one codec, the rest dense.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MapEntry {
    /// The tensor: `blk.0.attn_q`, `token_embd`.
    pub role: String,
    /// Its part: `attn_q`.
    pub part: String,
    /// Its decoder layer; `null` outside the layers.
    pub layer: Option<usize>,
    /// The candidate codec.
    pub codec: String,
    /// The codec that it has instead, where its dimensions do not allow the candidate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead: Option<String>,
    /// Bytes of the tensor in this codec.
    pub bytes: u64,
    /// Bits per weight.
    pub bpw: f64,
    /// Squared error of the layer's output relative to the output's own square, `tr(ΔW H ΔWᵀ) / tr(W H Wᵀ)`.
    pub error: f64,
    /// Estimated mean divergence over all domains, nats per token.
    pub estimate: Option<f64>,
    /// Measured divergence, by domain; empty where only estimates were asked for.
    pub measured: Vec<Measured>,
}

impl MapEntry {
    /// Measured mean divergence over all domains, each with the same weight.
    pub fn kld(&self) -> Option<f64> {
        let klds: Vec<f64> = self.measured.iter().map(|m| m.kld).collect();
        (!klds.is_empty()).then(|| mean(&klds))
    }
}

/// What a change to the model costs on one domain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The domain's name.
    pub domain: String,
    /// Mean KL divergence from the dense model, nats per token.
    pub kld: f64,
    /// Its standard error: windows taken as independent, or tokens where there is one window.
    pub stderr: f64,
    /// Perplexity divided by the dense model's.
    pub ppl_ratio: f64,
}

impl Measured {
    /// From the scored positions of each window, domain by domain.
    pub fn by_domain(eval: &EvalWindows, by_window: &[Vec<Position>]) -> Vec<Measured> {
        let of = |(d, domain): (usize, &String)| {
            let windows: Vec<&Vec<Position>> =
                by_window.iter().zip(&eval.set.domain_of).filter(|(_, of)| **of == d).map(|(w, _)| w).collect();
            let all = |f: fn(&Position) -> f64| windows.iter().flat_map(|w| w.iter().map(f)).collect::<Vec<f64>>();
            let (kld, by_tokens) = mean_and_stderr(&all(|p| p.kld));
            let sums: Vec<_> = windows.iter().map(|w| (w.iter().map(|p| p.kld).sum::<f64>(), w.len())).collect();
            let ppl_ratio = mean(&all(|p| p.nll - p.nll_against)).exp();
            let stderr = grouped_stderr(&sums).unwrap_or(by_tokens);
            (!windows.is_empty()).then(|| Measured { domain: domain.clone(), kld, stderr, ppl_ratio })
        };
        eval.set.domains.iter().enumerate().filter_map(of).collect()
    }
}

/// How the error of a model in which everything is quantized to one codec grows with depth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Depth {
    /// The codec.
    pub codec: String,
    /// Of the embedded tokens, `‖x̂ − x‖ / ‖x‖` over all tokens.
    pub embedding: f64,
    /// Of the hidden states after each layer.
    pub layers: Vec<f64>,
}

/// Everything quantized to one codec: what was predicted and what was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanCheck {
    /// The codec.
    pub codec: String,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// The sum over single tensors: of measurements, or of estimates where there are no others.
    pub predicted: f64,
    /// The measured mean divergence.
    pub measured: f64,
    /// All that was measured of it, and where in the text it lands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kld: Option<Kld>,
}

/// How far the estimates follow the measurements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// Spearman's rank correlation over all entries.
    pub spearman: f64,
    /// Tokens that went through decoder layers for the estimates, divided by those for the measurements.
    pub cost: f64,
}
