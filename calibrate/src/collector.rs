//! The observer that turns a sweep's activations into [`SiteStats`].

use crate::on_device::{Channels, add_gram};
use crate::stats::SiteStats;
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::role::Site;
use bitsmith_runtime::{Observer, ops};
use candle_core::Tensor;
use ndarray::ArrayView2;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

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
    sums: Mutex<Sums>,
}

#[derive(Default)]
struct Sums {
    sites: BTreeMap<Site, SiteStats>,
    /// Gram matrices that a device is adding up, of one layer at a time.
    grams: BTreeMap<Site, Tensor>,
}

impl Sums {
    /// Brings Gram matrices home: those of other layers than this one, as a sweep is through with them, or all.
    fn settle(&mut self, but: Option<Site>) -> Result<()> {
        let stays = |site: &Site| but.is_some_and(|but| but.layer == site.layer);
        for (site, gram) in std::mem::take(&mut self.grams) {
            match self.sites.get_mut(&site) {
                Some(_) if stays(&site) => drop(self.grams.insert(site, gram)),
                Some(stats) => stats.add_gram(&gram)?,
                None => {}
            }
        }
        Ok(())
    }
}

impl Collector {
    /// An empty collector.
    pub fn new(detail: Detail) -> Self {
        Collector { detail, sums: Mutex::default() }
    }

    /// The statistics gathered since the start or the last call.
    pub fn take(&self) -> Result<BTreeMap<Site, SiteStats>> {
        let mut sums = self.lock();
        sums.settle(None)?;
        Ok(std::mem::take(&mut sums.sites))
    }

    fn lock(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().expect("no observer panicked")
    }

    /// Changes the statistics of a site whose inputs have this width.
    fn change(&self, sums: &mut Sums, site: Site, width: usize, f: impl FnOnce(&mut SiteStats)) {
        f(sums.sites.entry(site).or_insert_with(|| SiteStats::new(width, self.detail == Detail::Gram)));
    }

    /// [`Observer::observe`] for activations on a device, which sums them; the Gram matrix stays there until its layer is done.
    fn observe_on_device(&self, site: Site, x: &Tensor) -> Result<()> {
        let (tokens, channels) = (x.dims()[0], Channels::of(x)?);
        let mut sums = self.lock();
        sums.settle(Some(site))?;
        self.change(&mut sums, site, x.dims()[1], |stats| stats.add_channels(tokens, &channels));
        if self.detail == Detail::Gram {
            let gram = add_gram(sums.grams.remove(&site), x)?;
            sums.grams.insert(site, gram);
        }
        Ok(())
    }
}

impl Observer for Collector {
    fn observe(&self, site: Site, x: &Tensor) -> Result<()> {
        let (tokens, width) = x.dims2().map_err(|e| Error::failed(e.to_string()))?;
        if !x.device().is_cpu() && ops::all_finite(x)? {
            return self.observe_on_device(site, x);
        }
        ops::with_f32(x, |values| {
            if let Some(i) = values.iter().position(|v| !v.is_finite()) {
                return Err(Error::corrupt(format!("activation {} at {site}, channel {}", values[i], i % width))
                    .hint("the model overflows on this text: check the checkpoint, or calibrate on other text"));
            }
            let x = ArrayView2::from_shape((tokens, width), values).map_err(|e| Error::failed(e.to_string()))?;
            self.change(&mut self.lock(), site, width, |stats| stats.add(x));
            Ok(())
        })?
    }

    fn observe_matrix(&self, site: Site, index: usize, count: usize, x: &Tensor) -> Result<()> {
        let (tokens, width) = x.dims2().map_err(|e| Error::failed(e.to_string()))?;
        if !x.device().is_cpu() {
            let channels = Channels::of(x)?;
            let mut sums = self.lock();
            self.change(&mut sums, site, width, |stats| stats.add_matrix_channels(index, count, tokens, &channels));
            return Ok(());
        }
        ops::with_f32(x, |values| {
            let x = ArrayView2::from_shape((tokens, width), values).map_err(|e| Error::failed(e.to_string()))?;
            self.change(&mut self.lock(), site, width, |stats| stats.add_matrix(index, count, x));
            Ok(())
        })?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_runtime::Input;
    use candle_core::Device;

    /// A device's sums, here the CPU as one, against those of the CPU.
    #[test]
    fn a_device_gathers_the_same() {
        let site = |layer| Site { layer: Some(layer), input: Input::FfnIn };
        let (host, device) = (Collector::new(Detail::Gram), Collector::new(Detail::Gram));
        for (layer, rows, seed) in [(0, 40, 1), (0, 3, 2), (1, 17, 3)] {
            let values: Vec<f32> = (0..rows * 70).map(|i| ((i * 31 + seed * 17) % 23) as f32 / 7.0 - 1.5).collect();
            let x = Tensor::from_vec(values, (rows, 70), &Device::Cpu).unwrap();
            host.observe(site(layer), &x).unwrap();
            device.observe_on_device(site(layer), &x).unwrap();
            host.observe_matrix(site(layer), 1, 3, &x).unwrap();
            let mut sums = device.lock();
            assert_eq!(sums.grams.len(), 1, "one layer's Gram matrices at a time");
            device.change(&mut sums, site(layer), 70, |stats| stats.add_matrix_channels(1, 3, rows, &Channels::of(&x).unwrap()));
        }
        let (host, device) = (host.take().unwrap(), device.take().unwrap());
        assert_eq!((host.len(), device.len()), (2, 2));
        for (want, got) in host.values().zip(device.values()) {
            let close = |a: f64, b: f64| assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{a} {b}");
            assert_eq!((got.tokens, &got.max_abs), (want.tokens, &want.max_abs));
            got.sum_sq.iter().zip(&want.sum_sq).for_each(|(a, b)| close(*a, *b));
            got.sum_abs.iter().zip(&want.sum_abs).for_each(|(a, b)| close(*a, *b));
            got.sum.iter().zip(&want.sum).for_each(|(a, b)| close(*a, *b));
            let (a, b) = (got.hessian().unwrap(), want.hessian().unwrap());
            a.iter().zip(&b).for_each(|(a, b)| close(f64::from(*a), f64::from(*b)));
            assert_eq!(got.unseen(), want.unseen());
            got.importance_of(3).iter().zip(want.importance_of(3)).for_each(|(a, b)| close(f64::from(*a), f64::from(b)));
        }
    }
}
