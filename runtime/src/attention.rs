//! Attention with grouped key and value heads (GQA), sliding windows, capped scores and sinks.
//!
//! Queries go in blocks of [`QUERY_BLOCK`] rows, each against the keys it may see only, so that scores take
//! `QUERY_BLOCK × context` values per thread whatever the window's length, and masked blocks cost nothing.

use crate::kernels;
use crate::ops::{OrFail, RowsInPlace};
use bitsmith_formats::{Error, Result};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

/// Query rows whose scores are computed together.
pub const QUERY_BLOCK: usize = 128;

/// The shape of an attention call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Independent sequences.
    pub windows: usize,
    /// Queries per sequence.
    pub queries: usize,
    /// Keys per sequence; the last `queries` of them are at the queries' own positions.
    pub keys: usize,
}

/// One layer's flavour of attention.
#[derive(Debug, Clone)]
pub(crate) struct Attention {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads, which groups of query heads share.
    pub n_kv_heads: usize,
    /// Width of a query's and a key's head.
    pub k_dim: usize,
    /// Width of a value's head.
    pub v_dim: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    /// Scores become `c tanh(score / c)`.
    pub softcap: Option<f32>,
    /// Tokens that a query may look back, itself included.
    pub window: Option<usize>,
    /// Whether a window is a chunk: a query sees the keys since the last multiple of its length.
    pub chunked: bool,
    /// Whether queries see no later keys.
    pub causal: bool,
    /// A logit per head that takes a share of the attention and gives no value.
    pub sinks: Option<Vec<f32>>,
}

impl Attention {
    /// `softmax(scale q kᵀ) v`. `q` is `(windows × queries, heads × k_dim)`, `k` `(windows × keys, kv_heads × k_dim)` and `v`
    /// `(windows × keys, kv_heads × v_dim)`. Gives `(windows × queries, heads × v_dim)`.
    pub fn run(&self, q: &Tensor, k: &Tensor, v: &Tensor, shape: Shape) -> Result<Tensor> {
        let rows = q.dim(0).or_fail()?;
        if rows != shape.windows * shape.queries || k.dim(0).or_fail()? != shape.windows * shape.keys {
            return Err(Error::failed(format!("attention: {rows} query rows for {shape:?}")));
        }
        let width = self.n_heads * self.v_dim;
        let mut out = vec![0f32; rows * width];
        let mut tasks = Vec::new();
        let mut rest = out.as_mut_slice();
        for window in 0..shape.windows {
            for first in (0..shape.queries).step_by(QUERY_BLOCK) {
                let n = QUERY_BLOCK.min(shape.queries - first);
                let (part, tail) = rest.split_at_mut(n * width);
                rest = tail;
                tasks.push((window, first, n, part));
            }
        }
        let one = |(window, first, n, out)| self.block([q, k, v], shape, window, first, n, out);
        tasks.into_par_iter().try_for_each(one).or_fail()?;
        Tensor::from_vec(out, (rows, width), &Device::Cpu).and_then(|t| t.to_device(q.device())).or_fail()
    }

    /// All heads of `n` queries of one window.
    fn block(
        &self,
        [q, k, v]: [&Tensor; 3],
        shape: Shape,
        window: usize,
        first: usize,
        n: usize,
        out: &mut [f32],
    ) -> candle_core::Result<()> {
        let group = self.n_heads / self.n_kv_heads;
        let width = self.n_heads * self.v_dim;
        // Key index of the first query, and the keys that any query of the block sees: [low, high).
        let at = shape.keys - shape.queries + first;
        let (low, high) = (self.first_key(at), if self.causal { at + n } else { shape.keys });
        let q = q.narrow(0, window * shape.queries + first, n)?;
        let k = k.narrow(0, window * shape.keys + low, high - low)?;
        let v = v.narrow(0, window * shape.keys + low, high - low)?;
        for head in 0..self.n_heads {
            let kv = head / group;
            let keys = k.narrow(1, kv * self.k_dim, self.k_dim)?;
            let scores = q.narrow(1, head * self.k_dim, self.k_dim)?.matmul(&keys.t()?)?;
            let mask_and_softmax = |first_row: usize, rows: &mut [f32]| {
                for (i, row) in rows.chunks_exact_mut(high - low).enumerate() {
                    let position = at + first_row + i;
                    let begin = self.first_key(position).max(low) - low;
                    let end = if self.causal { position + 1 - low } else { high - low };
                    row[..begin].fill(0.0);
                    row[end..].fill(0.0);
                    self.softmax(&mut row[begin..end], head);
                }
            };
            scores.inplace_op1(&RowsInPlace { name: "softmax", width: high - low, f: mask_and_softmax })?;
            let mixed = scores.matmul(&v.narrow(1, kv * self.v_dim, self.v_dim)?)?;
            let (storage, layout) = mixed.storage_and_layout();
            let values = match &*storage {
                candle_core::Storage::Cpu(s) => &s.as_slice::<f32>()?[layout.start_offset()..],
                _ => candle_core::bail!("attention runs on the CPU only"),
            };
            for (o, m) in out.chunks_exact_mut(width).zip(values.chunks_exact(self.v_dim)) {
                o[head * self.v_dim..(head + 1) * self.v_dim].copy_from_slice(m);
            }
        }
        Ok(())
    }

    /// The first key that the query at this position sees.
    fn first_key(&self, position: usize) -> usize {
        match self.window.map(|w| w.max(1)) {
            None => 0,
            Some(chunk) if self.chunked => position / chunk * chunk,
            Some(window) => (position + 1).saturating_sub(window),
        }
    }

    /// Turns a row of products into the shares of its keys.
    fn softmax(&self, row: &mut [f32], head: usize) {
        let mut scale = self.scale;
        if let Some(cap) = self.softcap {
            kernels::softcap(row, scale, cap);
            scale = 1.0;
        }
        let Some(sinks) = &self.sinks else { return kernels::softmax(row, scale) };
        row.iter_mut().for_each(|v| *v *= scale);
        let share = 1.0 / (1.0 + (f64::from(sinks[head]) - kernels::log_sum_exp(row)).exp());
        kernels::softmax(row, 1.0);
        row.iter_mut().for_each(|v| *v *= share as f32);
    }
}
