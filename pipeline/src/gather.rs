//! Statistics of a whole dense model, layer by layer.

use crate::context::Context;
use bitsmith_calibrate::{Collector, Detail, SiteStats};
use bitsmith_formats::Result;
use bitsmith_runtime::{Layer, Site, Sweep, WeightSource};
use std::collections::BTreeMap;

/// Statistics of a whole dense model.
#[derive(Debug, Default)]
pub struct Gathered {
    /// Per site.
    pub sites: BTreeMap<Site, SiteStats>,
    /// Largest magnitude among hidden states and linear inputs.
    pub peak: f32,
}

/// Gathers the statistics of a whole dense model: independent mode.
pub fn gather(source: &dyn WeightSource, windows: &[Vec<u32>], detail: Detail, context: &Context) -> Result<Gathered> {
    let spec = source.spec();
    let device = &context.device;
    let collector = Collector::new(detail);
    context.progress.start("calibrate", spec.n_layers as u64);
    let mut sweep = Sweep::new(spec, windows, device)?;
    sweep.embed_from(source)?;
    let mut peak = sweep.hidden()?.max_abs()?;
    for index in 0..spec.n_layers {
        sweep.run_layer(&Layer::load(source, index, device)?, index, Some(&collector))?;
        peak = peak.max(sweep.hidden()?.max_abs()?);
        context.progress.advance(1);
    }
    sweep.finish_from(source, Some(&collector))?;
    context.progress.finish();
    let sites = collector.take()?;
    let inputs = sites.values().flat_map(|s| &s.max_abs).fold(0f32, |m, v| m.max(*v));
    Ok(Gathered { sites, peak: peak.max(inputs) })
}
