//! What an importance matrix knows: tokens, channels that were never active, experts that hardly were.

use super::{Entry, Imatrix};
use serde::Serialize;

/// An expert that saw less than this part of an even share is seldom used: its importance rests on few tokens.
const SELDOM: f64 = 0.1;

/// The coverage of a whole matrix.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Coverage {
    /// Names of the calibration texts.
    pub datasets: Vec<String>,
    /// Windows of text.
    pub chunk_count: u32,
    /// Tokens per window.
    pub chunk_size: u32,
    /// Per weight tensor, sorted by name.
    pub tensors: Vec<TensorCoverage>,
}

/// The coverage of one weight tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorCoverage {
    /// llama.cpp's name.
    pub name: String,
    /// Input channels per matrix.
    pub channels: usize,
    /// Stacked matrices: 1, or the experts.
    pub experts: usize,
    /// Tokens seen, by all experts together.
    pub tokens: u64,
    /// Percent of the channels that never were active, in matrices that saw any token.
    pub dead_percent: f64,
    /// Smallest importance, E(x²), of a channel.
    pub min: f64,
    /// The median importance.
    pub median: f64,
    /// The largest importance.
    pub max: f64,
    /// Experts that saw no token.
    pub experts_never: Vec<usize>,
    /// Experts that saw some, but less than a tenth of an even share.
    pub experts_seldom: Vec<usize>,
}

impl Imatrix {
    /// What the matrix covers.
    pub fn coverage(&self) -> Coverage {
        Coverage {
            datasets: self.datasets.clone(),
            chunk_count: self.chunk_count,
            chunk_size: self.chunk_size,
            tensors: self.entries.iter().map(|(name, entry)| covered(name, entry)).collect(),
        }
    }
}

fn covered(name: &str, entry: &Entry) -> TensorCoverage {
    let mut importance: Vec<f64> =
        entry.matrices().filter(|(n, _)| *n > 0).flat_map(|(n, sums)| sums.iter().map(move |s| s / n as f64)).collect();
    importance.sort_by(f64::total_cmp);
    let at = |i: usize| importance.get(i).copied().unwrap_or(0.0);
    let dead = importance.iter().take_while(|v| **v == 0.0).count();
    let tokens: u64 = entry.counts.iter().sum();
    let share = tokens as f64 / entry.counts.len().max(1) as f64;
    let experts = |wanted: &dyn Fn(u64) -> bool| (0..entry.counts.len()).filter(|&i| wanted(entry.counts[i])).collect();
    TensorCoverage {
        name: name.to_string(),
        channels: entry.width(),
        experts: entry.counts.len(),
        tokens,
        dead_percent: if importance.is_empty() { 100.0 } else { 100.0 * dead as f64 / importance.len() as f64 },
        min: at(0),
        median: at(importance.len() / 2),
        max: at(importance.len().saturating_sub(1)),
        experts_never: experts(&|n| n == 0),
        experts_seldom: experts(&|n| n > 0 && (n as f64) < SELDOM * share),
    }
}
