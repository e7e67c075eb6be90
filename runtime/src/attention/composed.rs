//! Attention put together from candle's operations, for keys and values on a device: a bounded number of queries at a time, each with
//! all the scores of its keys.

use super::{Attention, Span};
use crate::ops::{OrFail, composed};
use bitsmith_formats::Result;
use candle_core::{D, Tensor};

/// Scores computed at once: 32 Mi values, 128 MiB, of which a few copies live together.
const MAX_SCORES: usize = 32 << 20;

impl Attention {
    /// [`Attention::run`], whose checks were made.
    pub(super) fn composed(&self, q: &Tensor, spans: &[Span<'_>]) -> Result<Tensor> {
        let (mut mixed, mut row) = (Vec::new(), 0);
        for span in spans {
            let planes = span.cache.planes()?;
            let keys = span.cache.len();
            let at_once = (MAX_SCORES / (self.n_heads * keys.max(1))).max(1);
            for first in (0..span.queries).step_by(at_once) {
                let tokens = at_once.min(span.queries - first);
                let position = keys - span.queries + first;
                let part = || self.mix(&q.narrow(0, row + first, tokens)?, &planes, span, position);
                mixed.push(part().or_fail()?);
            }
            row += span.queries;
        }
        Tensor::cat(&mixed, 0).or_fail()
    }

    /// Consecutive queries `(tokens, heads × k_dim)` of a span, the first at `position`.
    fn mix(&self, q: &Tensor, planes: &[Tensor; 2], span: &Span<'_>, position: usize) -> candle_core::Result<Tensor> {
        let heads = span.cache.heads();
        let (tokens, group) = (q.dim(0)?, self.n_heads / heads.n);
        let low = self.first_key(position);
        let high = if self.causal { position + tokens } else { span.cache.len() };
        let seen = high - low;
        // A matrix per key head, whose rows are the tokens' query heads or the keys.
        let rows = |plane: &Tensor, width: usize| {
            plane.narrow(0, low, seen)?.reshape((seen, heads.n, width))?.transpose(0, 1)?.contiguous()
        };
        let (k, v) = (rows(&planes[0], heads.k_dim)?, rows(&planes[1], heads.v_dim)?);
        let q = (q.reshape((tokens, heads.n, group, heads.k_dim))? * f64::from(self.scale))?;
        let q = q.transpose(0, 1)?.contiguous()?.reshape((heads.n, tokens * group, heads.k_dim))?;
        let mut scores = q.matmul(&k.t()?)?.reshape((heads.n, tokens, group, seen))?;
        if let Some(cap) = self.softcap {
            scores = composed::softcap(&scores, cap)?;
        }
        if let Some(mask) = self.mask(position, tokens, low, high) {
            scores = scores.broadcast_add(&Tensor::from_vec(mask, (1, tokens, 1, seen), q.device())?)?;
        }
        let mut most = scores.max_keepdim(D::Minus1)?;
        let sinks = match &self.sinks {
            Some(sinks) => Some(Tensor::from_slice(sinks, (heads.n, 1, group, 1), q.device())?.broadcast_as(most.shape())?),
            None => None,
        };
        if let Some(sinks) = &sinks {
            most = most.maximum(sinks)?;
        }
        let shares = scores.broadcast_sub(&most)?.exp()?;
        let mut total = shares.sum_keepdim(D::Minus1)?;
        if let Some(sinks) = &sinks {
            total = (total + (sinks - &most)?.exp()?)?;
        }
        let mixed = shares.reshape((heads.n, tokens * group, seen))?.matmul(&v)?;
        let mixed = mixed.reshape((heads.n, tokens, group, heads.v_dim))?.broadcast_div(&total)?;
        mixed.transpose(0, 1)?.contiguous()?.reshape((tokens, self.n_heads * heads.v_dim))
    }

    /// What is added to the scores of the keys `low..high`, `(tokens, keys)`: minus infinity for keys that a query does not see. Nothing
    /// if every query sees all.
    fn mask(&self, position: usize, tokens: usize, low: usize, high: usize) -> Option<Vec<f32>> {
        let hides = |at: usize, key: usize| key < self.first_key(at) || (self.causal && key > at);
        let each = || (position..position + tokens).flat_map(|at| (low..high).map(move |key| (at, key)));
        each()
            .any(|(at, key)| hides(at, key))
            .then(|| each().map(|(at, key)| if hides(at, key) { f32::NEG_INFINITY } else { 0.0 }).collect())
    }
}
