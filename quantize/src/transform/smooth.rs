//! Migration of outliers from activations to weights (SmoothQuant, Xiao et al. 2023): input channels are divided by
//! `s = max|x|^α / max|w|^(1−α)` with α = ½, columns multiplied by it, so that both are equally hard to round.
//!
//! Nothing is searched, and weights alone may lose by it: what gains are runtimes that round inputs, as servers with FP8 or 8-bit
//! activations do, and llama.cpp.

use super::fold::{Fold, PARTS, normalised};
use super::{Context, DenseLayer, Transform};
use bitsmith_calibrate::SiteStats;
use bitsmith_formats::Result;
use bitsmith_runtime::role::{Input, Part};
use std::collections::BTreeMap;

/// The exponent of the activations' range.
const ALPHA: f32 = 0.5;
/// Channels of the weights that are smaller than this fraction of the largest count as that large.
const FLOOR: f32 = 1e-5;

/// See the module's documentation.
pub struct Smooth;

impl Transform for Smooth {
    fn name(&self) -> &'static str {
        "smooth"
    }
    fn about(&self) -> &'static str {
        "evens out the ranges of inputs and weights, folded into the preceding norm or linear layer, for runtimes that round inputs"
    }
    fn parts(&self) -> &'static [Part] {
        PARTS
    }
    fn apply(
        &self,
        layer: &mut DenseLayer,
        stats: &mut BTreeMap<Input, SiteStats>,
        context: &Context<'_>,
    ) -> Result<Vec<String>> {
        for fold in Fold::all(layer, context.spec) {
            let Some(site) = stats.get_mut(&fold.input) else { continue };
            let x = fold.merged(&site.max_abs, f32::max);
            let mut columns = vec![0f32; fold.channels.len()];
            for row in fold.readers.iter().flat_map(|part| layer[part].rows()) {
                columns.iter_mut().zip(row).for_each(|(m, w)| *m = m.max(w.abs()));
            }
            let w = fold.merged(&columns, f32::max);
            let floor = FLOOR * w.iter().fold(0f32, |m, v| m.max(*v));
            let scales = normalised(x.iter().zip(&w).map(|(x, w)| x.powf(ALPHA) / w.max(floor).powf(1.0 - ALPHA)));
            fold.apply(layer, &scales, site, context);
        }
        Ok(Vec::new())
    }
}
