//! A model's output-normed hidden states at the scored positions of every window: all that is needed, with the output matrix, to
//! get any logits back. A token's state takes `4 · hidden_size` bytes, its logits `4 · vocab_size`.

use bitsmith_datasets::EvalWindows;
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::sweep::Normed;
use bitsmith_runtime::{Head, Layer, ModelSpec, Sweep, WeightSource, ops};
use candle_core::{Device, Tensor};

/// What a [`Watch`] is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Decoder layers run.
    Layers,
    /// Windows scored.
    Windows,
}

/// Called with the steps done and their total when work goes on; an error from it ends the work, for interruptions.
pub type Watch<'a> = &'a dyn Fn(Stage, usize, usize) -> Result<()>;

/// A [`Watch`] that does nothing.
pub fn ignore_progress(_: Stage, _: usize, _: usize) -> Result<()> {
    Ok(())
}

/// Hidden states and output matrix of one model.
#[derive(Debug)]
pub struct States {
    /// `(scored, hidden)` for each window; row `i` predicts the scored token `i`.
    windows: Vec<Tensor>,
    head: Head,
}

impl States {
    /// Runs the windows through the model, layer by layer.
    pub fn run(source: &dyn WeightSource, eval: &EvalWindows, device: &Device, watch: Watch<'_>) -> Result<Self> {
        let spec = source.spec();
        spec.require_head()?;
        let mut sweep = Sweep::new(spec, &eval.set.windows, device)?;
        watch(Stage::Layers, 0, spec.n_layers)?;
        sweep.embed_from(source)?;
        for index in 0..spec.n_layers {
            sweep.run_layer(&Layer::load(source, index, device)?, index, None)?;
            watch(Stage::Layers, index + 1, spec.n_layers)?;
        }
        let normed = sweep.finish_from(source, None)?;
        drop(sweep);
        Self::of_normed(&normed, eval, Head::load(source, device)?)
    }

    /// The scored states of a finished sweep over the windows, and an output matrix.
    pub(crate) fn of_normed(normed: &Normed, eval: &EvalWindows, head: Head) -> Result<Self> {
        let scored = eval.scored();
        // The state at position t predicts the token at t + 1. Copies, so that unscored states can go.
        let rows = |w| {
            let all = normed.window(w)?;
            failed(all.narrow(0, scored.start - 1, scored.len()).and_then(|t| t.force_contiguous()))
        };
        let windows = (0..normed.n_windows()).map(rows).collect::<Result<_>>()?;
        Ok(States { windows, head })
    }

    /// The output matrix.
    pub(crate) fn head(&self) -> &Head {
        &self.head
    }
    /// Number of windows.
    pub fn n_windows(&self) -> usize {
        self.windows.len()
    }
    /// Size of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.head.vocab_size()
    }
    /// Bytes of main memory held.
    pub fn bytes(&self) -> u64 {
        let elements: usize = self.windows.iter().map(Tensor::elem_count).sum();
        4 * elements as u64 + self.head.weight().bytes()
    }

    /// Calls `f(first_row, logits)` for successive chunks of a window's scored rows; `logits` is `(chunk, vocab)`, row-major.
    pub(crate) fn for_each_chunk(&self, window: usize, f: impl FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
        self.head.for_each_chunk(&self.windows[window], f)
    }

    /// Calls `f(first_row, logits, other_logits)` for successive chunks of a window's scored rows in both models, whose
    /// vocabularies must be of the same size; the other has it as window `theirs`.
    pub(crate) fn for_each_pair(
        &self,
        other: &States,
        window: usize,
        theirs: usize,
        mut f: impl FnMut(usize, &[f32], &[f32]) -> Result<()>,
    ) -> Result<()> {
        self.for_each_of(&[other], window, theirs, |_, first, mine, theirs| f(first, mine, theirs))
    }

    /// As [`States::for_each_pair`], with several other models in turn: `f(model, first_row, logits, other_logits)`. Our logits are
    /// computed once for all.
    pub(crate) fn for_each_of(
        &self,
        others: &[&States],
        window: usize,
        theirs: usize,
        mut f: impl FnMut(usize, usize, &[f32], &[f32]) -> Result<()>,
    ) -> Result<()> {
        let mine = &self.windows[window];
        let rows = failed(mine.dim(0))?;
        for first in (0..rows).step_by(self.head.chunk_rows()) {
            let n = self.head.chunk_rows().min(rows - first);
            let a = self.head.logits(&failed(mine.narrow(0, first, n))?)?;
            for (i, other) in others.iter().enumerate() {
                let b = other.head.logits(&failed(other.windows[theirs].narrow(0, first, n))?)?;
                ops::with_f32(&a, |a| ops::with_f32(&b, |b| f(i, first, a, b)))???;
            }
        }
        Ok(())
    }
}

fn failed<T>(result: candle_core::Result<T>) -> Result<T> {
    result.map_err(|e| Error::failed(format!("tensor operation failed: {e}")).with_source(e))
}

/// Bytes of main memory that comparing models of shape `spec` takes at most, weights of one layer included: hidden states of all
/// tokens of the model that runs, scored states and output matrix of both, and two chunks of logits.
pub fn working_bytes(spec: &ModelSpec, eval: &EvalWindows) -> u64 {
    let hidden = |tokens: usize| 4 * (tokens * spec.hidden_size) as u64;
    let layer = spec.largest_layer();
    let matrix = 4 * spec.numel(spec.head_part()) as u64;
    // Normed states exist beside the hidden states while the output norm is applied.
    let running = 2 * hidden(eval.set.n_tokens()) + (4 * layer as u64).max(matrix);
    let scoring = hidden(eval.n_scored()) + matrix + 2 * (64 << 20);
    hidden(eval.n_scored()) + matrix + running.max(scoring)
}
