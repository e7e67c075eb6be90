//! Causal attention with grouped key and value heads (GQA) and an optional sliding window.
//!
//! Queries go in blocks of [`QUERY_BLOCK`] rows, each against the keys it may see only, so that scores take
//! `QUERY_BLOCK × context` values per thread whatever the window's length, and masked blocks cost nothing.

use crate::kernels;
use crate::ops::{OrFail, RowsInPlace};
use crate::spec::ModelSpec;
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

/// `softmax(q kᵀ / √head_dim) v`. `q` is `(windows × queries, heads × head_dim)`; `k` and `v` are
/// `(windows × keys, kv_heads × head_dim)`. Gives the shape of `q`.
pub(crate) fn attention(spec: &ModelSpec, q: &Tensor, k: &Tensor, v: &Tensor, shape: Shape) -> Result<Tensor> {
    let (rows, width) = q.dims2().or_fail()?;
    if rows != shape.windows * shape.queries || k.dim(0).or_fail()? != shape.windows * shape.keys {
        return Err(Error::failed(format!("attention: {rows} query rows for {shape:?}")));
    }
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
    tasks.into_par_iter().try_for_each(|(window, first, n, out)| block(spec, q, k, v, shape, window, first, n, out)).or_fail()?;
    Tensor::from_vec(out, (rows, width), &Device::Cpu).and_then(|t| t.to_device(q.device())).or_fail()
}

/// All heads of `n` queries of one window.
#[expect(clippy::too_many_arguments)]
fn block(
    spec: &ModelSpec,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    shape: Shape,
    window: usize,
    first: usize,
    n: usize,
    out: &mut [f32],
) -> candle_core::Result<()> {
    let dim = spec.head_dim;
    let group = spec.n_heads / spec.n_kv_heads;
    let width = spec.n_heads * dim;
    let scale = 1.0 / (dim as f32).sqrt();
    let look_back = spec.sliding_window.unwrap_or(usize::MAX).max(1);
    // Key index of the first query, and the keys that any query of the block sees: [low, high).
    let at = shape.keys - shape.queries + first;
    let (low, high) = ((at + 1).saturating_sub(look_back), at + n);
    let q = q.narrow(0, window * shape.queries + first, n)?;
    let k = k.narrow(0, window * shape.keys + low, high - low)?;
    let v = v.narrow(0, window * shape.keys + low, high - low)?;
    let mask_and_softmax = |first_row: usize, rows: &mut [f32]| {
        for (i, row) in rows.chunks_exact_mut(high - low).enumerate() {
            let position = at + first_row + i;
            let begin = (position + 1).saturating_sub(look_back).max(low) - low;
            let end = position + 1 - low;
            row[..begin].fill(0.0);
            row[end..].fill(0.0);
            kernels::softmax(&mut row[begin..end], scale);
        }
    };
    for head in 0..spec.n_heads {
        let kv = head / group * dim;
        let scores = q.narrow(1, head * dim, dim)?.matmul(&k.narrow(1, kv, dim)?.t()?)?;
        scores.inplace_op1(&RowsInPlace { name: "softmax", width: high - low, f: mask_and_softmax })?;
        let mixed = scores.matmul(&v.narrow(1, kv, dim)?)?;
        let (storage, layout) = mixed.storage_and_layout();
        let values = match &*storage {
            candle_core::Storage::Cpu(s) => &s.as_slice::<f32>()?[layout.start_offset()..],
            _ => candle_core::bail!("attention runs on the CPU only"),
        };
        for (o, m) in out.chunks_exact_mut(width).zip(values.chunks_exact(dim)) {
            o[head * dim..(head + 1) * dim].copy_from_slice(m);
        }
    }
    Ok(())
}
