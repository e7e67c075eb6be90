//! What a linear input is in two models at once: x in the dense one, x̂ in the one whose earlier matrices are quantized.
//!
//! A matrix that is fitted to x̂ alone inherits what the earlier ones lost. Fitted to `W x + r`, with r what the residual stream that its
//! output is added to lacks, it makes up for it as far as x̂ tells: asymmetric calibration (QEP, Arai & Ichikawa 2025; GPTAQ, Li et al.
//! 2025). Some of the text is held out of the sums, to judge by.

use crate::collector::{Collector, Detail};
use crate::stats::{SiteStats, add_transposed};
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::role::Site;
use bitsmith_runtime::{Observer, ops};
use candle_core::Tensor;
use ndarray::{Array2, ArrayView2, Axis, concatenate, s};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

/// Rows of a product that one thread computes.
const TILE: usize = 128;

/// What is known of a site.
#[derive(Debug, Clone)]
pub struct Paired {
    /// Statistics of x̂.
    pub stats: SiteStats,
    /// Σ (x − x̂) x̂ᵀ, `(in, in)`; `None` if the two models route tokens differently here.
    pub cross: Option<Array2<f32>>,
    /// Σ r x̂ᵀ, `(hidden, in)`.
    pub lacking: Option<Array2<f32>>,
    /// Text that is in no sum.
    pub held: Held,
}

/// Inputs of text that was held out, `(tokens, width)` each; nothing if there was too little text.
#[derive(Debug, Clone, Default)]
pub struct Held {
    /// x.
    pub dense: Option<Array2<f32>>,
    /// x̂.
    pub quantized: Option<Array2<f32>>,
    /// r, `(tokens, hidden)`.
    pub lacking: Option<Array2<f32>>,
}

/// Gathers [`Paired`] of some sites, batch by batch: first the dense model's inputs, then the quantized one's.
pub struct PairCollector<'a> {
    wants: &'a (dyn Fn(Site) -> bool + Sync),
    collector: Collector,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Whether this batch is held out.
    hold: bool,
    quantized: bool,
    /// The dense model's inputs of this batch, until the quantized model's arrive.
    dense: BTreeMap<Site, Vec<Array2<f32>>>,
    /// The quantized model's, until the end of the batch.
    inputs: BTreeMap<Site, Vec<Array2<f32>>>,
    cross: BTreeMap<Site, Array2<f32>>,
    lacking: BTreeMap<Site, Array2<f32>>,
    held: BTreeMap<Site, Held>,
    /// Sites whose inputs differ in number between the models.
    apart: BTreeSet<Site>,
}

impl<'a> PairCollector<'a> {
    /// For the sites that `wants` names.
    pub fn new(wants: &'a (dyn Fn(Site) -> bool + Sync)) -> Self {
        PairCollector { wants, collector: Collector::new(Detail::Gram), state: Mutex::default() }
    }

    /// Begins a batch: the dense model's inputs come next. Those of a batch that is held out enter no sum.
    pub fn begin(&self, hold: bool) {
        let mut state = self.state.lock().expect("no observer panicked");
        state.hold = hold;
        state.quantized = false;
    }

    /// The quantized model's inputs come next.
    pub fn quantized(&self) {
        self.state.lock().expect("no observer panicked").quantized = true;
    }

    /// Ends a batch. `lacking` is r, `(tokens, hidden)`, for the sites that `writes` names.
    pub fn end(&self, lacking: Option<ArrayView2<'_, f32>>, writes: &dyn Fn(Site) -> bool) -> Result<()> {
        let state = &mut *self.state.lock().expect("no observer panicked");
        let mut dense = std::mem::take(&mut state.dense);
        for (site, inputs) in std::mem::take(&mut state.inputs) {
            let (x, q) = (whole(dense.remove(&site).unwrap_or_default())?, whole(inputs)?);
            let r = lacking.filter(|r| writes(site) && r.nrows() == q.nrows());
            if x.dim() != q.dim() {
                state.apart.insert(site);
            } else if state.hold {
                let held = state.held.entry(site).or_default();
                append(&mut held.dense, x.view())?;
                append(&mut held.quantized, q.view())?;
                if let Some(r) = r {
                    append(&mut held.lacking, r)?;
                }
            } else {
                let add = |sum: &mut Array2<f32>, a: ArrayView2<'_, f32>| add_product(sum, a, q.view());
                let width = q.ncols();
                add(state.cross.entry(site).or_insert_with(|| Array2::zeros((width, width))), (&x - &q).view());
                if let Some(r) = r {
                    add(state.lacking.entry(site).or_insert_with(|| Array2::zeros((r.ncols(), width))), r);
                }
            }
        }
        Ok(())
    }

    /// What was gathered.
    pub fn take(self) -> Result<BTreeMap<Site, Paired>> {
        let mut state = self.state.into_inner().expect("no observer panicked");
        let sites = self.collector.take()?.into_iter();
        let paired = sites.map(|(site, stats)| {
            let together = !state.apart.contains(&site);
            let (cross, lacking) = (state.cross.remove(&site), state.lacking.remove(&site));
            let held = state.held.remove(&site).filter(|_| together).unwrap_or_default();
            (site, Paired { stats, cross: cross.filter(|_| together), lacking: lacking.filter(|_| together), held })
        });
        Ok(paired.collect())
    }
}

impl Observer for PairCollector<'_> {
    fn wants(&self, site: Site) -> bool {
        (self.wants)(site)
    }

    fn observe(&self, site: Site, x: &Tensor) -> Result<()> {
        let dims = x.dims2().map_err(|e| Error::failed(e.to_string()))?;
        let host = ops::with_f32(x, |values| Array2::from_shape_vec(dims, values.to_vec()))?;
        let host = host.map_err(|e| Error::failed(e.to_string()))?;
        let mut state = self.state.lock().expect("no observer panicked");
        if state.quantized && !state.hold {
            self.collector.observe(site, x)?;
        }
        let to = if state.quantized { &mut state.inputs } else { &mut state.dense };
        to.entry(site).or_default().push(host);
        Ok(())
    }

    fn observe_matrix(&self, site: Site, index: usize, count: usize, x: &Tensor) -> Result<()> {
        let state = self.state.lock().expect("no observer panicked");
        match state.quantized && !state.hold {
            true => self.collector.observe_matrix(site, index, count, x),
            false => Ok(()),
        }
    }
}

/// Parts one below the other.
fn whole(parts: Vec<Array2<f32>>) -> Result<Array2<f32>> {
    match <[Array2<f32>; 1]>::try_from(parts) {
        Ok([one]) => Ok(one),
        Err(parts) if parts.is_empty() => Ok(Array2::zeros((0, 0))),
        Err(parts) => {
            let views: Vec<_> = parts.iter().map(|p| p.view()).collect();
            concatenate(Axis(0), &views).map_err(|e| Error::failed(e.to_string()))
        }
    }
}

fn append(to: &mut Option<Array2<f32>>, rows: ArrayView2<'_, f32>) -> Result<()> {
    match to {
        Some(to) => to.append(Axis(0), rows).map_err(|e| Error::failed(e.to_string())),
        None => {
            *to = Some(rows.to_owned());
            Ok(())
        }
    }
}

/// `sum += aᵀ b` for `(tokens, m)` and `(tokens, n)`. Every tile is one sequential product, so that the number of threads does not matter.
fn add_product(sum: &mut Array2<f32>, a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) {
    sum.axis_chunks_iter_mut(Axis(0), TILE).into_par_iter().enumerate().for_each(|(i, rows)| {
        let columns = i * TILE..i * TILE + rows.nrows();
        add_transposed(rows, a.slice(s![.., columns]), b);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_runtime::Input;
    use candle_core::Device;

    #[test]
    fn sums_are_of_pairs_and_held_text_is_in_none() {
        let site = Site { layer: Some(0), input: Input::FfnOut };
        let other = Site { layer: Some(0), input: Input::FfnIn };
        let wants = |s: Site| s == site;
        let collector = PairCollector::new(&wants);
        assert!(collector.wants(site) && !collector.wants(other));
        let sample = |seed: usize, width: usize| {
            Array2::from_shape_fn((5, width), |(t, c)| ((t * 31 + c * 17 + seed * 7) % 23) as f32 / 7.0 - 1.5)
        };
        let tensor = |x: &Array2<f32>| Tensor::from_vec(x.iter().copied().collect(), x.dim(), &Device::Cpu).unwrap();
        for batch in 0..3 {
            let (x, q, r) = (sample(batch, 70), sample(batch + 10, 70), sample(batch + 20, 4));
            collector.begin(batch == 1);
            collector.observe(site, &tensor(&x)).unwrap();
            collector.quantized();
            collector.observe(site, &tensor(&q)).unwrap();
            collector.end(Some(r.view()), &|_| true).unwrap();
        }
        let paired = collector.take().unwrap().remove(&site).unwrap();
        assert_eq!(paired.stats.tokens, 10);
        let sum = |f: &dyn Fn(usize) -> f32| [0, 2].into_iter().map(f).sum::<f32>();
        for (i, j) in [(0, 0), (69, 3), (12, 65)] {
            let want =
                sum(&|b| (0..5).map(|t| (sample(b, 70)[[t, i]] - sample(b + 10, 70)[[t, i]]) * sample(b + 10, 70)[[t, j]]).sum());
            assert!((paired.cross.as_ref().unwrap()[[i, j]] - want).abs() < 1e-4);
        }
        let want = sum(&|b| (0..5).map(|t| sample(b + 20, 4)[[t, 3]] * sample(b + 10, 70)[[t, 60]]).sum());
        assert!((paired.lacking.unwrap()[[3, 60]] - want).abs() < 1e-4);
        assert_eq!(paired.held.dense, Some(sample(1, 70)));
        assert_eq!(paired.held.quantized, Some(sample(11, 70)));
        assert_eq!(paired.held.lacking, Some(sample(21, 4)));
    }

    #[test]
    fn inputs_that_do_not_pair_have_only_statistics() {
        let site = Site { layer: Some(0), input: Input::ExpertOut };
        let collector = PairCollector::new(&|_| true);
        for hold in [false, true] {
            collector.begin(hold);
            collector.observe(site, &Tensor::ones((3, 4), candle_core::DType::F32, &Device::Cpu).unwrap()).unwrap();
            collector.quantized();
            collector.observe(site, &Tensor::ones((2, 4), candle_core::DType::F32, &Device::Cpu).unwrap()).unwrap();
            collector.end(None, &|_| false).unwrap();
        }
        let paired = collector.take().unwrap().remove(&site).unwrap();
        assert!(paired.stats.tokens == 2 && paired.cross.is_none() && paired.held.dense.is_none());
    }
}
