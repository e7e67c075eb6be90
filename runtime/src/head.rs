//! The output matrix: logits and log-probabilities from normed hidden states, a bounded number of rows at a time.

use crate::checkpoint::WeightSource;
use crate::embedding::global;
use crate::kernels;
use crate::ops::{self, OrFail};
use crate::product::{ComputeMode, Weight};
use crate::role::{Part, Role};
use bitsmith_formats::{Error, Result};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

/// Logits held at once: 32 Mi values, 128 MiB.
const MAX_LOGITS: usize = 32 << 20;

/// The matrix that makes logits, `(vocab, hidden)`, and what happens to them.
#[derive(Debug, Clone)]
pub struct Head {
    weight: Weight,
    mode: ComputeMode,
    bias: Option<Tensor>,
    scale: f32,
    softcap: Option<f32>,
}

impl Head {
    /// Reads the output matrix, or the embedding if they are tied.
    pub fn load(source: &dyn WeightSource, device: &Device) -> Result<Self> {
        let spec = source.spec();
        spec.require_head()?;
        Self::with_matrix(source, source.weight(Role::global(spec.head_part()), device)?, device)
    }

    /// As [`Head::load`], with another matrix, `(vocab, hidden)`.
    pub fn with_matrix(source: &dyn WeightSource, weight: Weight, device: &Device) -> Result<Self> {
        let spec = source.spec();
        spec.require_head()?;
        let want = spec.shape(spec.head_part());
        if weight.dims() != want {
            return Err(Error::corrupt(format!("shape {:?}, expected {want:?}", weight.dims())).tensor(spec.head_part().name()));
        }
        let bias = global(source, Part::OutputBias, device)?;
        Ok(Head { weight, mode: source.compute(), bias, scale: spec.scales.logits, softcap: spec.logit_softcap })
    }

    /// The same with another matrix of the same shape.
    pub(crate) fn with_weight(&self, weight: impl Into<Weight>) -> Self {
        Head { weight: weight.into(), ..self.clone() }
    }

    /// The matrix.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// Rows of the matrix.
    pub fn vocab_size(&self) -> usize {
        self.weight.dims()[0]
    }

    /// Rows whose logits [`Head::for_each_chunk`] computes at once.
    pub fn chunk_rows(&self) -> usize {
        (MAX_LOGITS / self.vocab_size().max(1)).clamp(1, 1024)
    }

    /// Logits `(rows, vocab)` of normed hidden states `(rows, hidden)`. All at once: for many rows use [`Head::for_each_chunk`].
    pub fn logits(&self, normed: &Tensor) -> Result<Tensor> {
        let mut logits = self.weight.product(normed, self.mode)?;
        if let Some(bias) = &self.bias {
            logits = ops::add_bias(logits, bias)?;
        }
        let logits = ops::scale(logits, self.scale)?;
        match self.softcap {
            Some(cap) => ops::softcap(logits, cap),
            None => Ok(logits),
        }
    }

    /// Calls `f(first_row, logits)` for successive chunks of rows of `normed`, `(rows, hidden)`; `logits` is row-major,
    /// `(chunk, vocab)`. Chunks depend on the vocabulary alone and come in order.
    pub fn for_each_chunk(&self, normed: &Tensor, mut f: impl FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
        let rows = normed.dim(0).or_fail()?;
        for first in (0..rows).step_by(self.chunk_rows()) {
            let n = self.chunk_rows().min(rows - first);
            let logits = self.logits(&normed.narrow(0, first, n).or_fail()?)?;
            ops::with_f32(&logits, |v| f(first, v))??;
        }
        Ok(())
    }

    /// Negative log-likelihood, in nats, of one target token per row of `normed`.
    pub fn nll(&self, normed: &Tensor, targets: &[u32]) -> Result<Vec<f64>> {
        let vocab = self.vocab_size();
        if normed.dim(0).or_fail()? != targets.len() {
            return Err(Error::failed(format!("{} targets for {} rows", targets.len(), normed.dim(0).or_fail()?)));
        }
        if let Some(bad) = targets.iter().find(|t| **t as usize >= vocab) {
            return Err(Error::corrupt(format!("token {bad} is outside the vocabulary of {vocab}")));
        }
        let mut out = vec![0f64; targets.len()];
        self.for_each_chunk(normed, |first, logits| {
            out[first..]
                .par_iter_mut()
                .zip(logits.par_chunks_exact(vocab))
                .zip(&targets[first..])
                .for_each(|((o, row), t)| *o = kernels::log_sum_exp(row) - f64::from(row[*t as usize]));
            Ok(())
        })?;
        Ok(out)
    }
}

/// Turns a row of logits into log-probabilities, in place.
pub fn log_softmax(row: &mut [f32]) {
    let total = kernels::log_sum_exp(row) as f32;
    for v in row {
        *v -= total;
    }
}
