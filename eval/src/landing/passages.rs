//! The passages where a model is furthest from its reference, token by token.

use crate::metrics::Position;
use bitsmith_datasets::EvalWindows;
use bitsmith_runtime::Tokenizer;
use serde::{Deserialize, Serialize};

/// How many are kept.
const KEPT: usize = 20;
/// Scored tokens by whose sum of divergences passages are found.
const SPAN: usize = 24;
/// Tokens shown before them.
const BEFORE: usize = 12;

/// A passage of the text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Passage {
    /// Its domain.
    pub domain: String,
    /// Number of its window.
    pub window: usize,
    /// Position within the window of the first token.
    pub position: usize,
    /// Mean divergence over the tokens that it was chosen by, nats per token.
    pub kld: f64,
    /// The tokens that lead up to it, and its own.
    pub tokens: Vec<PassageToken>,
}

/// A token of a passage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PassageToken {
    /// Its text. A character that is spread over several tokens is the text of the last of them.
    pub text: String,
    /// Divergence of the distributions that should have predicted it; absent where the window is not scored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kld: Option<f64>,
    /// Its probability under the reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p_against: Option<f64>,
    /// Its probability under the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p: Option<f64>,
    /// What the reference found most likely and what the model did, where they disagree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tops: Option<(String, String)>,
}

/// The worst passages, the worst first.
pub(super) fn worst(eval: &EvalWindows, by_window: &[Vec<Position>], tokenizer: &Tokenizer) -> Vec<Passage> {
    // Spans begin at every scored token; the sum slides along.
    let mut spans: Vec<(f64, usize, usize, usize)> = Vec::new();
    for (w, scores) in by_window.iter().enumerate() {
        let len = SPAN.min(scores.len());
        for first in 0..scores.len() + 1 - len {
            let sum: f64 = scores[first..first + len].iter().map(|p| p.kld).sum();
            spans.push((sum, w, first, len));
        }
    }
    spans.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let mut chosen: Vec<(f64, usize, usize, usize)> = Vec::new();
    for span in spans {
        if chosen.len() == KEPT || span.0 <= 0.0 {
            break;
        }
        if chosen.iter().all(|c| c.1 != span.1 || c.2.abs_diff(span.2) >= span.3) {
            chosen.push(span);
        }
    }
    let passage = |(sum, w, first, len): (f64, usize, usize, usize)| {
        let start = eval.scored().start + first;
        let shown = start.saturating_sub(BEFORE)..start + len;
        Passage {
            domain: eval.set.domains[eval.set.domain_of[w]].clone(),
            window: w,
            position: start,
            kld: rounded(sum / len as f64),
            tokens: tokens(eval, w, shown, &by_window[w], tokenizer),
        }
    };
    chosen.into_iter().map(passage).collect()
}

fn tokens(
    eval: &EvalWindows,
    window: usize,
    shown: std::ops::Range<usize>,
    scores: &[Position],
    tokenizer: &Tokenizer,
) -> Vec<PassageToken> {
    let text = |id: u32| String::from_utf8_lossy(&tokenizer.bytes(id).unwrap_or_default()).into_owned();
    let mut pending: Vec<u8> = Vec::new();
    let token = |place: usize| {
        let id = eval.set.windows[window][place];
        pending.extend(tokenizer.bytes(id).unwrap_or_default());
        let bytes = match std::str::from_utf8(&pending) {
            // The rest of the character may come.
            Err(e) if e.error_len().is_none() && pending.len() - e.valid_up_to() < 4 => {
                pending.drain(..e.valid_up_to()).collect()
            }
            _ => std::mem::take(&mut pending),
        };
        let at = place.checked_sub(eval.scored().start).and_then(|i| scores.get(i));
        PassageToken {
            text: String::from_utf8_lossy(&bytes).into_owned(),
            kld: at.map(|p| rounded(p.kld)),
            p_against: at.map(|p| rounded((-p.nll_against).exp())),
            p: at.map(|p| rounded((-p.nll).exp())),
            tops: at.filter(|p| !p.same_top).map(|p| (text(p.top_against), text(p.top))),
        }
    };
    shown.map(token).collect()
}

/// Four significant digits: what people look at needs no more, and files stay small.
fn rounded(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}
