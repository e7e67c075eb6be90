//! One decoder layer's computation: norm, attention, norm, gated feed-forward, each with a residual connection.

use crate::attention::{self, attention};
use crate::generate::LayerCache;
use crate::layer::Layer;
use crate::ops::{self, rms_norm};
use crate::role::{Input, Part, Site};
use crate::rope::RopeTable;
use crate::spec::ModelSpec;
use bitsmith_formats::Result;
use candle_core::Tensor;

/// Sees the inputs of linear layers while a model runs. Calls for one site come one after the other, in the order of the
/// windows, so sums accumulated in an observer do not depend on the number of threads.
pub trait Observer: Sync {
    /// `x` is `(tokens, in)`, f32, contiguous ([`crate::ops::with_f32`] gives its values).
    fn observe(&self, site: Site, x: &Tensor) -> Result<()>;
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

/// What running a layer needs besides weights and activations.
pub(crate) struct Run<'a> {
    pub spec: &'a ModelSpec,
    pub rope: &'a RopeTable,
    pub layer_index: usize,
    pub observer: Option<&'a dyn Observer>,
}

impl Run<'_> {
    fn observe(&self, input: Input, x: &Tensor) -> Result<()> {
        let site = Site { layer: Some(self.layer_index), input };
        match self.observer {
            Some(o) if o.wants(site) => o.observe(site, x),
            _ => Ok(()),
        }
    }

    /// Pushes `x`, `(windows × len, hidden)`, through the layer. With a cache (one window only), earlier keys and values come from
    /// it and new ones are appended. The input is left unchanged.
    pub fn forward(&self, layer: &Layer, x: &Tensor, rows: Rows, cache: Option<&mut LayerCache>) -> Result<Tensor> {
        let (hidden, inner) = self.until_down(layer, x, rows, cache)?;
        let out = project(layer, Part::FfnDown, &inner)?;
        ops::add_in_place(&out, &hidden)?;
        Ok(out)
    }

    /// The layer up to the input of the down projection: the residual stream after attention, and that input.
    pub fn until_down(&self, layer: &Layer, x: &Tensor, rows: Rows, cache: Option<&mut LayerCache>) -> Result<(Tensor, Tensor)> {
        let spec = self.spec;
        let normed = rms_norm(x, layer.get(Part::AttnNorm)?, spec.rms_eps)?;
        self.observe(Input::AttnIn, &normed)?;
        let mut q = project(layer, Part::AttnQ, &normed)?;
        let mut k = project(layer, Part::AttnK, &normed)?;
        let v = project(layer, Part::AttnV, &normed)?;
        if let Some(w) = layer.find(Part::AttnQNorm) {
            q = rms_norm(&q, w, spec.rms_eps)?;
        }
        if let Some(w) = layer.find(Part::AttnKNorm) {
            k = rms_norm(&k, w, spec.rms_eps)?;
        }
        self.rope.apply(&q, rows.len, rows.start)?;
        self.rope.apply(&k, rows.len, rows.start)?;
        let mixed = match cache {
            None => attention(spec, &q, &k, &v, attention::Shape { windows: rows.windows, queries: rows.len, keys: rows.len })?,
            Some(cache) => {
                let (k, v) = cache.append(&k, &v)?;
                attention(spec, &q, &k, &v, attention::Shape { windows: 1, queries: rows.len, keys: rows.start + rows.len })?
            }
        };
        self.observe(Input::AttnOut, &mixed)?;
        let hidden = project(layer, Part::AttnOutput, &mixed)?;
        ops::add_in_place(&hidden, x)?;

        let normed = rms_norm(&hidden, layer.get(Part::FfnNorm)?, spec.rms_eps)?;
        self.observe(Input::FfnIn, &normed)?;
        let gate = project(layer, Part::FfnGate, &normed)?;
        let up = project(layer, Part::FfnUp, &normed)?;
        ops::swiglu_in_place(&gate, &up)?;
        self.observe(Input::FfnOut, &gate)?;
        Ok((hidden, gate))
    }
}

/// A linear layer with its bias, if it has one. The result owns its storage.
fn project(layer: &Layer, part: Part, x: &Tensor) -> Result<Tensor> {
    let y = layer.weight(part)?.product(x, layer.mode())?;
    if let Some(bias) = part.bias().and_then(|b| layer.find(b)) {
        ops::add_bias_in_place(&y, bias)?;
    }
    Ok(y)
}
