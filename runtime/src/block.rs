//! One decoder layer's computation: attention and a feed-forward block, normed before or after, each added to the residual stream.

use crate::attention::{Attention, Span};
use crate::cache::{KvHeads, LayerCache};
use crate::ffn;
use crate::generate::Segment;
use crate::layer::Layer;
use crate::ops::{self, OrFail};
use crate::role::{Input, Part, Site};
use crate::rope::{RopeTable, Rotated};
use crate::spec::{Latent, ModelSpec, Norm, RopeUse};
use bitsmith_formats::Result;
use candle_core::Tensor;
use std::borrow::Cow;

/// Sees the inputs of linear layers while a model runs. Calls for one site come one after the other, in the order of the
/// windows, so sums accumulated in an observer do not depend on the number of threads.
pub trait Observer: Sync {
    /// `x` is `(tokens, in)`, f32, contiguous ([`crate::ops::with_f32`] gives its values).
    fn observe(&self, site: Site, x: &Tensor) -> Result<()>;
    /// What one of `count` stacked matrices that read the site sees: of all experts each its own tokens, of all heads each its part of a
    /// query. [`Observer::observe`] sees all of it together.
    fn observe_matrix(&self, site: Site, index: usize, count: usize, x: &Tensor) -> Result<()> {
        let _ = (site, index, count, x);
        Ok(())
    }
    /// Whether this site interests the observer; others are not offered to it.
    fn wants(&self, site: Site) -> bool {
        let _ = site;
        true
    }
}

/// Rows of hidden states and where they stand in their sequences.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows {
    /// Independent sequences.
    pub windows: usize,
    /// Rows per sequence.
    pub len: usize,
    /// Position of each sequence's first row.
    pub start: usize,
}

/// The rope tables of a model.
#[derive(Debug, Clone)]
pub(crate) struct Ropes {
    global: RopeTable,
    local: Option<RopeTable>,
}

impl Ropes {
    /// Tables for texts of `positions` tokens.
    pub fn new(spec: &ModelSpec, positions: usize) -> Self {
        let local = spec.local_rope.as_ref().map(|r| RopeTable::new(r, positions));
        Ropes { global: RopeTable::new(&spec.rope, positions), local }
    }
    /// Tables for a text of `length` tokens that is still growing: larger by half where the same frequencies serve longer texts.
    pub fn for_growing(spec: &ModelSpec, length: usize) -> Self {
        let ropes = [Some(&spec.rope), spec.local_rope.as_ref()];
        let limit = ropes.into_iter().flatten().map(|r| r.serves(length)).min().unwrap_or(length);
        Ropes::new(spec, (length + length / 2).next_multiple_of(256).min(limit))
    }
    /// Whether the tables serve a text of this many tokens.
    pub fn covers(&self, length: usize) -> bool {
        self.global.covers(length) && self.local.as_ref().is_none_or(|t| t.covers(length))
    }
}

/// What attention gives, `(windows × len, heads)`, while a layer is run piece by piece.
#[derive(Debug, Clone, Default)]
pub(crate) enum Mixed {
    /// Neither there nor to be kept.
    #[default]
    Not,
    /// To be kept.
    Wanted,
    /// Kept.
    Kept(Tensor),
}

/// What running a layer needs besides weights and activations.
pub(crate) struct Run<'a> {
    pub spec: &'a ModelSpec,
    pub ropes: &'a Ropes,
    pub layer_index: usize,
    pub observer: Option<&'a dyn Observer>,
}

impl Run<'_> {
    /// Whether an observer wants to see this input of this layer.
    pub fn observes(&self, input: Input) -> bool {
        self.observer.is_some_and(|o| o.wants(Site { layer: Some(self.layer_index), input }))
    }

    /// Shows the observer what one of several stacked matrices sees of an input of this layer.
    pub fn observe_matrix(&self, input: Input, index: usize, count: usize, x: &Tensor) -> Result<()> {
        let site = Site { layer: Some(self.layer_index), input };
        match self.observer {
            Some(o) if o.wants(site) => o.observe_matrix(site, index, count, x),
            _ => Ok(()),
        }
    }

    /// Shows the observer an input of this layer.
    pub fn observe(&self, input: Input, x: &Tensor) -> Result<()> {
        let site = Site { layer: Some(self.layer_index), input };
        match self.observer {
            Some(o) if o.wants(site) => o.observe(site, x),
            _ => Ok(()),
        }
    }

    /// Pushes `x`, `(windows × len, hidden)`, through the layer. With segments (one window only), each is a sequence of its own:
    /// earlier keys and values come from its cache and new ones are appended. The input is left unchanged.
    pub fn forward(&self, layer: &Layer, x: &Tensor, rows: Rows, segments: Option<&mut [Segment<'_>]>) -> Result<Tensor> {
        self.forward_from(layer, x, rows, segments, &mut Mixed::Not)
    }

    /// As [`Run::forward`], from where an earlier run through the same attention left off.
    pub fn forward_from(
        &self,
        layer: &Layer,
        x: &Tensor,
        rows: Rows,
        segments: Option<&mut [Segment<'_>]>,
        mixed: &mut Mixed,
    ) -> Result<Tensor> {
        let (hidden, normed) = self.until_ffn(layer, x, rows, segments, mixed)?;
        let out = ffn::forward(self, layer, &normed, true)?.unwrap_or_else(|| normed.into_owned());
        let out = match layer.find(Part::FfnPostNorm) {
            Some(_) => self.norm(layer, Part::FfnPostNorm, &out)?.into_owned(),
            None => out,
        };
        let out = ops::add(ops::scale(out, self.spec.scales.residual)?, &hidden)?;
        Ok(match layer.find(Part::LayerOutputNorm) {
            Some(_) => self.norm(layer, Part::LayerOutputNorm, &out)?.into_owned(),
            None => out,
        })
    }

    /// Shows the observer all inputs of the layer and computes nothing beyond them.
    pub fn observe_all(&self, layer: &Layer, x: &Tensor, rows: Rows) -> Result<()> {
        let (_, normed) = self.until_ffn(layer, x, rows, None, &mut Mixed::Not)?;
        ffn::forward(self, layer, &normed, false)?;
        Ok(())
    }

    /// Shows the observer the layer's inputs up to `last`, which its matrices read in the order of [`Input::ALL`]. Returns the residual
    /// stream that the output of the block which reads `last` is added to. What attention gives is kept in `mixed` once nothing that it
    /// comes from is among the inputs, and taken from there.
    pub fn observe_until(&self, layer: &Layer, x: &Tensor, rows: Rows, last: Input, mixed: &mut Mixed) -> Result<Tensor> {
        if last == Input::AttnIn {
            self.observe(last, self.norm(layer, Part::AttnNorm, x)?.as_ref())?;
            return Ok(x.clone());
        }
        let not = &mut Mixed::Not;
        let (hidden, normed) = self.until_ffn(layer, x, rows, None, if last < Input::AttnOut { not } else { mixed })?;
        if last < Input::FfnIn {
            return Ok(x.clone());
        }
        if last == Input::FfnIn && !self.spec.layers[self.layer_index].mixture {
            self.observe(last, &normed)?;
        } else {
            ffn::forward(self, layer, &normed, false)?;
        }
        Ok(hidden)
    }

    /// The layer up to the feed-forward block: the residual stream that its output is added to, and its input.
    fn until_ffn<'x>(
        &self,
        layer: &Layer,
        x: &'x Tensor,
        rows: Rows,
        segments: Option<&mut [Segment<'_>]>,
        mixed: &mut Mixed,
    ) -> Result<(Tensor, Cow<'x, Tensor>)> {
        let normed = self.norm(layer, Part::AttnNorm, x)?;
        let heads = match mixed {
            Mixed::Kept(heads) => heads.clone(),
            _ => self.attention(layer, &normed, rows, segments)?,
        };
        self.observe(Input::AttnOut, &heads)?;
        let out = project(layer, Part::AttnOutput, &heads)?;
        if matches!(mixed, Mixed::Wanted) {
            *mixed = Mixed::Kept(heads);
        }
        let out = self.norm(layer, Part::AttnPostNorm, &out)?.into_owned();
        let out = ops::add(ops::scale(out, self.spec.scales.residual)?, x)?;
        if self.spec.parallel {
            // With one norm for both, its output is read again.
            let input = if layer.find(Part::FfnNorm).is_some() { self.norm(layer, Part::FfnNorm, x)? } else { normed };
            return Ok((out, input));
        }
        let hidden = self.norm(layer, Part::AttnResidualNorm, &out)?.into_owned();
        let input = self.norm(layer, Part::FfnNorm, &hidden)?.into_owned();
        Ok((hidden, Cow::Owned(input)))
    }

    /// The norm of this part; where the model has none, its input. The result of a norm owns its storage.
    fn norm<'x>(&self, layer: &Layer, part: Part, x: &'x Tensor) -> Result<Cow<'x, Tensor>> {
        let Some(weight) = layer.find(part) else { return Ok(Cow::Borrowed(x)) };
        let bias = part.bias().and_then(|b| layer.find(b));
        Ok(Cow::Owned(ops::norm(x, weight, bias, self.spec.norm)?))
    }

    /// What attention gives the output matrix to read.
    fn attention(&self, layer: &Layer, x: &Tensor, rows: Rows, segments: Option<&mut [Segment<'_>]>) -> Result<Tensor> {
        let spec = self.spec;
        self.observe(Input::AttnIn, x)?;
        let spans: Vec<Rows> = match &segments {
            Some(segments) => segments.iter().map(|s| Rows { windows: 1, len: s.len, start: s.start }).collect(),
            None => vec![rows],
        };
        let [q, k, v] = match spec.latent {
            Some(latent) => self.latent(layer, x, &spans, latent)?,
            None => self.heads(layer, x, &spans)?,
        };
        let attention = Attention {
            n_heads: spec.n_heads,
            scale: spec.attention_scale(),
            softcap: spec.attention_softcap,
            window: spec.window(self.layer_index),
            chunked: spec.chunked,
            causal: spec.causal,
            sinks: layer.find(Part::AttnSinks).map(|t| t.to_vec1().or_fail()).transpose()?,
        };
        let mut first = 0;
        let mut next = |n: usize| -> Result<[Tensor; 2]> {
            first += n;
            let part = |t: &Tensor| t.narrow(0, first - n, n).or_fail();
            Ok([part(&k)?, part(&v)?])
        };
        match segments {
            None => {
                let window = |_| next(rows.len).and_then(|[k, v]| LayerCache::of(layer.cache(), KvHeads::of(spec), &k, &v));
                let caches = (0..rows.windows).map(window).collect::<Result<Vec<_>>>()?;
                let spans: Vec<_> = caches.iter().map(|cache| Span { cache, queries: rows.len }).collect();
                attention.run(&q, &spans)
            }
            Some(segments) => {
                for i in 0..segments.len() {
                    let (before, rest) = segments.split_at_mut(i);
                    let s = &mut rest[0];
                    if let Some(parent) = s.parent {
                        *s.cache = before[parent].cache.fork(s.start)?;
                    }
                    let [k, v] = next(s.len)?;
                    s.cache.append(&k, &v, s.start)?;
                }
                let spans: Vec<_> = segments.iter().map(|s| Span { cache: &*s.cache, queries: s.len }).collect();
                attention.run(&q, &spans)
            }
        }
    }

    /// Queries, keys and values of usual attention, normed and rotated.
    fn heads(&self, layer: &Layer, x: &Tensor, spans: &[Rows]) -> Result<[Tensor; 3]> {
        let spec = self.spec;
        let (q_width, k_width) = (spec.q_width(), spec.n_kv_heads * spec.head_dim);
        let [q, k, v] = match layer.has(Part::AttnQkv) {
            true => {
                let all = project(layer, Part::AttnQkv, x)?;
                let v_width = spec.n_kv_heads * spec.v_head_dim;
                [(0, q_width), (q_width, k_width), (q_width + k_width, v_width)].map(|(from, n)| ops::columns(&all, from, n))
            }
            false => [Part::AttnQ, Part::AttnK, Part::AttnV].map(|part| project(layer, part, x)),
        };
        let q = self.norm(layer, Part::AttnQNorm, &q?)?.into_owned();
        let k = self.norm(layer, Part::AttnKNorm, &k?)?.into_owned();
        let whole = Rotated { head: spec.head_dim, from: 0 };
        let mut q = self.rotate(q, spans, whole)?;
        let k = self.rotate(k, spans, whole)?;
        let rotated = spec.layers[self.layer_index].rope != RopeUse::None;
        if rotated && spec.qk_unit_norm {
            let ones = Tensor::ones(spec.head_dim, q.dtype(), q.device()).or_fail()?;
            let unit = |x: &Tensor| ops::norm(x, &ones, None, Norm::rms(spec.norm.eps));
            return Ok([unit(&q)?, unit(&k)?, v?]);
        }
        if let (Some(temperature), false) = (spec.temperature, rotated) {
            let positions = spans.iter().flat_map(|r| (0..r.windows * r.len).map(move |i| r.start + i % r.len));
            let factors: Vec<f32> = positions.map(|p| temperature.factor(p)).collect();
            let n = factors.len();
            let factors = Tensor::from_vec(factors, (n, 1), q.device()).or_fail()?;
            q = ops::scale_rows(q, &factors)?;
        }
        Ok([q, k, v?])
    }

    /// Queries, keys and values of latent attention: a head is a part without positions and a rotated part, and keys share the latter.
    fn latent(&self, layer: &Layer, x: &Tensor, spans: &[Rows], latent: Latent) -> Result<[Tensor; 3]> {
        let spec = self.spec;
        let nope = spec.head_dim - latent.rope_dim;
        let q = match latent.q_rank {
            Some(_) => {
                let narrow = project(layer, Part::AttnQA, x)?;
                let narrow = self.norm(layer, Part::AttnQANorm, &narrow)?;
                self.observe(Input::QueryLatent, &narrow)?;
                project(layer, Part::AttnQB, &narrow)?
            }
            None => project(layer, Part::AttnQ, x)?,
        };
        let q = self.rotate(q, spans, Rotated { head: spec.head_dim, from: nope })?;
        let both = project(layer, Part::AttnKvA, x)?;
        let shared = ops::columns(&both, latent.kv_rank, latent.rope_dim)?;
        let shared = self.rotate(shared, spans, Rotated { head: latent.rope_dim, from: 0 })?;
        let narrow = ops::columns(&both, 0, latent.kv_rank)?;
        let narrow = self.norm(layer, Part::AttnKvANorm, &narrow)?;
        self.observe(Input::KvLatent, &narrow)?;
        let n = narrow.dim(0).or_fail()?;
        if self.observes(Input::QueryHeads) {
            let heads = || q.reshape((n * spec.n_heads, spec.head_dim))?.narrow(1, 0, nope)?.contiguous();
            self.observe(Input::QueryHeads, &heads().or_fail()?)?;
            for head in 0..spec.n_heads {
                let own = ops::columns(&q, head * spec.head_dim, nope)?;
                self.observe_matrix(Input::QueryHeads, head, spec.n_heads, &own)?;
            }
        }
        let (keys, values) = (layer.weight(Part::AttnKB)?, layer.weight(Part::AttnVB)?);
        let (mut k, mut v) = (Vec::new(), Vec::new());
        for head in 0..spec.n_heads {
            let key = keys.expert(head)?.to_tensor(x.device())?;
            let key = || narrow.matmul(&key);
            k.extend([key().or_fail()?, shared.clone()]);
            v.push(values.expert(head)?.product(&narrow, layer.mode())?);
        }
        Ok([q, Tensor::cat(&k, 1).or_fail()?, Tensor::cat(&v, 1).or_fail()?])
    }

    /// Rotates a part of every head; the rows of `x` are those of the spans, one after the other.
    fn rotate(&self, x: Tensor, spans: &[Rows], part: Rotated) -> Result<Tensor> {
        let table = match self.spec.layers[self.layer_index].rope {
            RopeUse::None => return Ok(x),
            RopeUse::Global => &self.ropes.global,
            RopeUse::Local => self.ropes.local.as_ref().unwrap_or(&self.ropes.global),
        };
        table.apply(x, spans, part)
    }
}

/// A linear layer with its bias, if it has one. The result owns its storage.
pub(crate) fn project(layer: &Layer, part: Part, x: &Tensor) -> Result<Tensor> {
    let y = layer.weight(part)?.product(x, layer.mode())?;
    match part.bias().and_then(|b| layer.find(b)) {
        Some(bias) => ops::add_bias(y, bias),
        None => Ok(y),
    }
}
