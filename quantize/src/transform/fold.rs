//! Scales that move between the columns of linear layers and whatever makes their input, which leaves the function alone: columns are
//! multiplied by `s`, and the weights of the preceding norm, or the rows of the preceding linear layer, are divided by `s`.

use super::{Context, DenseLayer};
use bitsmith_calibrate::SiteStats;
use bitsmith_runtime::role::{Input, Part};
use bitsmith_runtime::spec::{Activation, ModelSpec};

/// A place where scales can move.
pub(super) struct Fold {
    /// The input whose channels are scaled.
    pub input: Input,
    /// The matrices that read it and are quantized.
    pub readers: Vec<Part>,
    /// For each input channel, the channel of the source that makes it: query heads that share a value head share its channels.
    pub channels: Vec<usize>,
    /// What makes the input.
    source: Part,
    /// Its row that makes channel 0, if it is a matrix: values may stand behind queries and keys, up behind the gate.
    first_row: usize,
    /// What else reads the input: routers.
    others: Vec<Part>,
}

const PLACES: [(Input, &[Part]); 6] = [
    (Input::AttnIn, &[Part::AttnNorm]),
    (Input::AttnOut, &[Part::AttnV, Part::AttnQkv]),
    (Input::FfnIn, &[Part::FfnNorm]),
    (Input::FfnOut, &[Part::FfnUp]),
    (Input::SharedOut, &[Part::FfnUpShexp]),
    (Input::Head, &[Part::OutputNorm]),
];

/// The parts that folds may change.
pub(super) const PARTS: &[Part] = {
    use Part::*;
    &[
        AttnNorm,
        AttnQ,
        AttnK,
        AttnV,
        AttnQkv,
        AttnQA,
        AttnKvA,
        AttnOutput,
        FfnNorm,
        FfnGateInp,
        FfnGate,
        FfnUp,
        FfnDown,
        FfnGateExps,
        FfnUpExps,
        FfnGateInpShexp,
        FfnGateShexp,
        FfnUpShexp,
        FfnDownShexp,
        OutputNorm,
        Output,
    ]
};

impl Fold {
    /// The places of this layer.
    pub fn all(layer: &DenseLayer, spec: &ModelSpec) -> Vec<Fold> {
        PLACES.iter().filter_map(|(input, sources)| Self::at(*input, sources, layer, spec)).collect()
    }

    fn at(input: Input, sources: &[Part], layer: &DenseLayer, spec: &ModelSpec) -> Option<Fold> {
        let present = |parts: &[Part]| -> Vec<Part> { parts.iter().copied().filter(|p| layer.contains_key(p)).collect() };
        let source = *present(sources).first()?;
        let readers = present(input.readers());
        let width = layer[readers.first()?].ncols();
        let linear = spec.activation != Activation::SwigluOai;
        let (possible, first_row) = match input {
            // A norm that the feed-forward block of a parallel layer reads as well.
            Input::AttnIn => (!spec.parallel || spec.has(Part::FfnNorm), 0),
            Input::AttnOut => {
                let before = if source == Part::AttnQkv { (spec.n_heads + spec.n_kv_heads) * spec.head_dim } else { 0 };
                (spec.head_dim == spec.v_head_dim && spec.latent.is_none(), before)
            }
            Input::FfnOut if spec.fused_gate => (linear, spec.ffn_size),
            Input::FfnOut => (linear && layer.contains_key(&Part::FfnGate), 0),
            Input::SharedOut => (linear && layer.contains_key(&Part::FfnGateShexp), 0),
            _ => (true, 0),
        };
        let group = spec.n_heads / spec.n_kv_heads;
        let channel = |c: usize| match input {
            Input::AttnOut => c / spec.head_dim / group * spec.head_dim + c % spec.head_dim,
            _ => c,
        };
        let routers: &[Part] = if input == Input::FfnIn { &[Part::FfnGateInp, Part::FfnGateInpShexp] } else { &[] };
        let channels = (0..width).map(channel).collect();
        possible.then(|| Fold { input, readers, channels, source, first_row, others: present(routers) })
    }

    /// Channels of the source.
    pub fn n_channels(&self) -> usize {
        self.channels.iter().max().map_or(0, |c| c + 1)
    }

    /// The scale of each input channel.
    pub fn per_column(&self, scales: &[f32]) -> Vec<f32> {
        self.channels.iter().map(|&c| scales[c]).collect()
    }

    /// What `merge` makes of the values of the input channels that a channel of the source makes.
    pub fn merged(&self, per_input: &[f32], merge: impl Fn(f32, f32) -> f32) -> Vec<f32> {
        let mut merged: Vec<Option<f32>> = vec![None; self.n_channels()];
        for (&v, &c) in per_input.iter().zip(&self.channels) {
            merged[c] = Some(merged[c].map_or(v, |m| merge(m, v)));
        }
        merged.into_iter().map(|m| m.unwrap_or(0.0)).collect()
    }

    /// Divides the source by the scales, multiplies the readers' columns by what the source really lost after rounding to its
    /// storage type, and rescales the statistics.
    pub fn apply(&self, layer: &mut DenseLayer, scales: &[f32], site: &mut SiteStats, context: &Context<'_>) {
        let mut effective = scales.to_vec();
        if self.source.is_matrix() {
            let w = layer.get_mut(&self.source).expect("found in this layer");
            w.rows_mut().into_iter().skip(self.first_row).zip(scales).for_each(|(mut row, s)| row /= *s);
        } else {
            let offset = context.spec.norm.offset;
            let norm = layer.get_mut(&self.source).expect("found in this layer");
            for (v, s) in norm.iter_mut().zip(&mut effective) {
                let stored = context.vector_type.round((*v + offset) / *s - offset);
                if stored + offset != 0.0 && stored.is_finite() {
                    *s = (*v + offset) / (stored + offset);
                    *v = stored;
                } else {
                    *s = 1.0;
                }
            }
        }
        if let Some(bias) = self.source.bias().and_then(|b| layer.get_mut(&b)) {
            bias.iter_mut().skip(self.first_row).zip(&effective).for_each(|(b, s)| *b /= s);
        }
        let per_column = self.per_column(&effective);
        for part in self.readers.iter().chain(&self.others) {
            let w = layer.get_mut(part).expect("found in this layer");
            w.rows_mut().into_iter().for_each(|mut row| row.iter_mut().zip(&per_column).for_each(|(w, s)| *w *= s));
        }
        site.rescale(&per_column);
    }
}

/// Scales around 1, safe to divide by; silent channels keep 1.
pub(super) fn normalised(raw: impl Iterator<Item = f32>) -> Vec<f32> {
    let raw: Vec<f32> = raw.collect();
    let usable = || raw.iter().copied().filter(|v| v.is_finite() && *v > 0.0);
    let (min, max) = usable().fold((f32::MAX, 0f32), |(lo, hi), v| (lo.min(v), hi.max(v)));
    let centre = (min * max).sqrt();
    let scale = |v: f32| if v.is_finite() && v > 0.0 && centre > 0.0 { (v / centre).clamp(1e-4, 1e4) } else { 1.0 };
    raw.iter().map(|&v| scale(v)).collect()
}
