//! Perplexity of one model.

use crate::metrics;
use crate::results::Perplexity;
use crate::states::{Stage, States, Watch};
use bitsmith_datasets::EvalWindows;
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::WeightSource;
use candle_core::Device;
use rayon::prelude::*;

/// Measures a model's perplexity.
pub fn perplexity(source: &dyn WeightSource, eval: &EvalWindows, device: &Device, watch: Watch<'_>) -> Result<Perplexity> {
    of_states(&States::run(source, eval, device, watch)?, eval, watch)
}

/// Perplexity from hidden states of the same windows.
pub(crate) fn of_states(states: &States, eval: &EvalWindows, watch: Watch<'_>) -> Result<Perplexity> {
    let vocab = states.vocab_size();
    let mut by_window = Vec::with_capacity(states.n_windows());
    for w in 0..states.n_windows() {
        watch(Stage::Windows, w, states.n_windows())?;
        let targets = &eval.set.windows[w][eval.scored()];
        let mut nlls = vec![0f64; targets.len()];
        states.for_each_chunk(w, |first, logits| {
            let rows = nlls[first..].par_iter_mut().zip(logits.par_chunks_exact(vocab)).zip(&targets[first..]);
            rows.for_each(|((nll, row), target)| *nll = metrics::nll(row, *target));
            Ok(())
        })?;
        if !nlls.iter().all(|n| n.is_finite()) {
            return Err(not_finite(w));
        }
        by_window.push(nlls);
    }
    watch(Stage::Windows, states.n_windows(), states.n_windows())?;
    Ok(Perplexity::from_nlls(eval, &by_window))
}

pub(crate) fn not_finite(window: usize) -> Error {
    Error::corrupt(format!("the logits of window {window} are not finite"))
        .hint("the output matrix or the output norm is damaged")
}
