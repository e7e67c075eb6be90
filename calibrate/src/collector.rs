//! The observer that turns a sweep's activations into [`SiteStats`].

use crate::stats::SiteStats;
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::role::Site;
use bitsmith_runtime::{Observer, ops};
use candle_core::Tensor;
use ndarray::ArrayView2;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// How much to gather.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Channel sums only: enough for importance (imatrix) and AWQ's magnitudes.
    Channels,
    /// Channel sums and the full Gram matrix, `(in, in)` f32 per site.
    Gram,
}

/// Gathers statistics of every site that a sweep visits.
pub struct Collector {
    detail: Detail,
    sites: Mutex<BTreeMap<Site, SiteStats>>,
}

impl Collector {
    /// An empty collector.
    pub fn new(detail: Detail) -> Self {
        Collector { detail, sites: Mutex::default() }
    }

    /// The statistics gathered since the start or the last call.
    pub fn take(&self) -> BTreeMap<Site, SiteStats> {
        std::mem::take(&mut *self.sites.lock().expect("no observer panicked"))
    }
}

impl Observer for Collector {
    fn observe(&self, site: Site, x: &Tensor) -> Result<()> {
        let (tokens, width) = x.dims2().map_err(|e| Error::failed(e.to_string()))?;
        ops::with_f32(x, |values| {
            if let Some(i) = values.iter().position(|v| !v.is_finite()) {
                return Err(Error::corrupt(format!("activation {} at {site}, channel {}", values[i], i % width))
                    .hint("the model overflows on this text: check the checkpoint, or calibrate on other text"));
            }
            let x = ArrayView2::from_shape((tokens, width), values).map_err(|e| Error::failed(e.to_string()))?;
            let mut sites = self.sites.lock().expect("no observer panicked");
            sites.entry(site).or_insert_with(|| SiteStats::new(width, self.detail == Detail::Gram)).add(x);
            Ok(())
        })?
    }

    fn observe_matrix(&self, site: Site, index: usize, count: usize, x: &Tensor) -> Result<()> {
        let (tokens, width) = x.dims2().map_err(|e| Error::failed(e.to_string()))?;
        ops::with_f32(x, |values| {
            let x = ArrayView2::from_shape((tokens, width), values).map_err(|e| Error::failed(e.to_string()))?;
            let mut sites = self.sites.lock().expect("no observer panicked");
            let stats = sites.entry(site).or_insert_with(|| SiteStats::new(width, self.detail == Detail::Gram));
            stats.add_matrix(index, count, x);
            Ok(())
        })?
    }
}
