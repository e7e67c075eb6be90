//! What calibration knows about each linear input.

use bitsmith_formats::{Error, Result};
use bitsmith_runtime::product::add_product;
use bitsmith_runtime::role::Site;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// Rows per tile of the Gram matrix: enough for the matrix product to run at full speed, few enough to share the work of a
/// narrow model between threads.
const MIN_TILE: usize = 32;
const MAX_TILE: usize = 256;
/// Channels whose sums one thread takes.
const CHANNELS: usize = 64;
/// Most values that the Gram matrices of a site's stacked matrices may have together; beyond that, all share the site's.
const MAX_OWN: usize = 1 << 28;

/// Sums over the tokens seen at one site. All linear layers that read the site share them.
#[derive(Debug, Clone, PartialEq)]
pub struct SiteStats {
    /// Tokens seen.
    pub tokens: u64,
    /// Σ x xᵀ, `(in, in)`, lower triangle and diagonal valid, if it was asked for.
    pub gram: Option<Array2<f32>>,
    /// Σ x², one value per input channel.
    pub sum_sq: Vec<f64>,
    /// Σ x, one value per input channel; empty in statistics of earlier versions.
    pub sum: Vec<f64>,
    /// Σ |x|, one value per input channel.
    pub sum_abs: Vec<f64>,
    /// max |x|, one value per input channel.
    pub max_abs: Vec<f32>,
    /// Where stacked matrices read the site, what each of them saw: experts see the tokens that are routed to them, heads their own
    /// part of a query.
    pub matrices: Vec<MatrixStats>,
    /// Σ x xᵀ over what each stacked matrix saw, `(in, in)`, lower triangle and diagonal valid; empty where it was not asked for, would be
    /// too large, or comes from a file, which does not hold it.
    pub own_grams: Vec<Array2<f32>>,
}

/// Sums over the inputs that one of several stacked matrices saw.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MatrixStats {
    /// Inputs seen.
    pub tokens: u64,
    /// Σ x², one value per input channel; empty if nothing was seen.
    pub sum_sq: Vec<f64>,
    /// Σ x, likewise; empty in statistics of earlier versions too.
    pub sum: Vec<f64>,
}

impl SiteStats {
    /// Nothing seen yet, for inputs of `width` channels.
    pub fn new(width: usize, with_gram: bool) -> Self {
        SiteStats {
            tokens: 0,
            gram: with_gram.then(|| Array2::zeros((width, width))),
            sum_sq: vec![0.0; width],
            sum: vec![0.0; width],
            sum_abs: vec![0.0; width],
            max_abs: vec![0.0; width],
            matrices: Vec::new(),
            own_grams: Vec::new(),
        }
    }

    /// Adds inputs `x`, `(tokens, in)`, of matrix `index` of `count` stacked ones.
    pub fn add_matrix(&mut self, index: usize, count: usize, x: ArrayView2<'_, f32>) {
        self.matrices.resize(count.max(self.matrices.len()), MatrixStats::default());
        let matrix = &mut self.matrices[index];
        matrix.tokens += x.nrows() as u64;
        matrix.sum_sq.resize(x.ncols(), 0.0);
        matrix.sum.resize(x.ncols(), 0.0);
        for row in x.rows() {
            matrix.sum_sq.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v) * f64::from(*v));
            matrix.sum.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v));
        }
        let n = x.ncols();
        if self.gram.is_some() && count * n * n <= MAX_OWN {
            self.own_grams.resize(count, Array2::zeros((n, n)));
            add_gram(&mut self.own_grams[index], x);
        }
    }

    /// The importance of each of `count` stacked matrices, one after the other: of those that saw nothing, that of all together.
    pub fn importance_of(&self, count: usize) -> Vec<f32> {
        let pooled = self.importance();
        let of = |i: usize| match self.matrices.get(i) {
            Some(m) if m.tokens > 0 => m.sum_sq.iter().map(|s| (s / m.tokens as f64) as f32).collect(),
            _ => pooled.clone(),
        };
        (0..count).flat_map(of).collect()
    }

    /// The stacked matrices that saw nothing.
    pub fn unseen(&self) -> Vec<usize> {
        (0..self.matrices.len()).filter(|&i| self.matrices[i].tokens == 0).collect()
    }

    /// Input channels.
    pub fn width(&self) -> usize {
        self.sum_sq.len()
    }

    /// Adds activations `x`, `(tokens, in)`. The result does not depend on the number of threads: every tile of the Gram
    /// matrix is one sequential product.
    pub fn add(&mut self, x: ArrayView2<'_, f32>) {
        self.tokens += x.nrows() as u64;
        let channels = self.sum_sq.par_chunks_mut(CHANNELS).zip(self.sum_abs.par_chunks_mut(CHANNELS));
        let more = self.sum.par_chunks_mut(CHANNELS).zip(self.max_abs.par_chunks_mut(CHANNELS));
        channels.zip(more).enumerate().for_each(|(i, ((sq, abs), (sum, max)))| {
            for row in x.slice(s![.., i * CHANNELS..i * CHANNELS + sq.len()]).rows() {
                for (c, &v) in row.iter().enumerate() {
                    let a = v.abs();
                    sq[c] += f64::from(v) * f64::from(v);
                    sum[c] += f64::from(v);
                    abs[c] += f64::from(a);
                    max[c] = max[c].max(a);
                }
            }
        });
        let Some(gram) = &mut self.gram else { return };
        add_gram(gram, x);
    }

    /// What the statistics would be if each channel of the input were divided by its scale.
    pub fn rescale(&mut self, scales: &[f32]) {
        for (i, &s) in scales.iter().enumerate() {
            self.sum_sq[i] /= f64::from(s) * f64::from(s);
            self.sum_abs[i] /= f64::from(s);
            self.sum.iter_mut().skip(i).take(1).for_each(|sum| *sum /= f64::from(s));
            self.max_abs[i] /= s;
        }
        for matrix in &mut self.matrices {
            matrix.sum_sq.iter_mut().zip(scales).for_each(|(sum, s)| *sum /= f64::from(*s) * f64::from(*s));
            matrix.sum.iter_mut().zip(scales).for_each(|(sum, s)| *sum /= f64::from(*s));
        }
        for gram in self.gram.iter_mut().chain(&mut self.own_grams) {
            for ((i, j), v) in gram.indexed_iter_mut() {
                *v /= scales[i] * scales[j];
            }
        }
    }

    /// What the statistics would be if channel `order[i]` of the input stood in place i.
    pub fn reorder(&mut self, order: &[usize]) {
        fn moved<T: Copy>(values: &mut Vec<T>, order: &[usize]) {
            if !values.is_empty() {
                *values = order.iter().map(|&from| values[from]).collect();
            }
        }
        for values in [&mut self.sum_sq, &mut self.sum, &mut self.sum_abs] {
            moved(values, order);
        }
        moved(&mut self.max_abs, order);
        for matrix in &mut self.matrices {
            moved(&mut matrix.sum_sq, order);
            moved(&mut matrix.sum, order);
        }
        for gram in self.gram.iter_mut().chain(&mut self.own_grams).filter(|g| !g.is_empty()) {
            // Only its lower triangle is valid.
            let lower = |i: usize, j: usize| gram[[i.max(j), i.min(j)]];
            *gram = Array2::from_shape_fn(gram.dim(), |(i, j)| lower(order[i], order[j]));
        }
    }

    /// Mean squared input per channel: the importance that block encoders use, E(x²).
    pub fn importance(&self) -> Vec<f32> {
        let n = self.tokens.max(1) as f64;
        self.sum_sq.iter().map(|s| (s / n) as f32).collect()
    }

    /// The mean input, E(x), `(in)`; `None` in statistics of earlier versions.
    pub fn mean(&self) -> Option<Vec<f32>> {
        let n = self.tokens.max(1) as f64;
        (self.sum.len() == self.width()).then(|| self.sum.iter().map(|s| (s / n) as f32).collect())
    }

    /// The mean input of one of several stacked matrices; if it saw nothing, that of all together.
    pub fn mean_of(&self, index: usize) -> Option<Vec<f32>> {
        match self.matrices.get(index) {
            Some(m) if m.tokens > 0 && m.sum.len() == self.width() => {
                Some(m.sum.iter().map(|s| (s / m.tokens as f64) as f32).collect())
            }
            _ => self.mean(),
        }
    }

    /// Mean |x| per channel.
    pub fn mean_abs(&self) -> Vec<f32> {
        let n = self.tokens.max(1) as f64;
        self.sum_abs.iter().map(|s| (s / n) as f32).collect()
    }

    /// H = E(x xᵀ), `(in, in)`, symmetric; `None` if only the diagonal was gathered.
    pub fn hessian(&self) -> Option<Array2<f32>> {
        Some(mean_gram(self.gram.as_ref()?, self.tokens))
    }

    /// H of stacked matrix `index`, drawn towards that of all together as if it had seen as many more tokens as it has channels:
    /// `(n Hᵢ + k H) / (n + k)`. What saw too little to tell is so treated like the others. `None` if it was not gathered.
    pub fn hessian_of(&self, index: usize) -> Option<Array2<f32>> {
        let own = self.own_grams.get(index)?;
        let tokens = self.matrices[index].tokens;
        let (n, k) = (tokens as f32, self.width() as f32);
        let mut h = self.hessian()? * (k / (n + k));
        h.scaled_add(n / (n + k), &mean_gram(own, tokens));
        Some(h)
    }

    /// The stacked matrices that saw something, but fewer inputs than they have channels.
    pub fn seldom(&self) -> Vec<usize> {
        (0..self.matrices.len()).filter(|&i| (1..self.width() as u64).contains(&self.matrices[i].tokens)).collect()
    }
}

/// `xᵀ x` for `(tokens, in)`, whole.
pub fn gram(x: ArrayView2<'_, f32>) -> Array2<f32> {
    let mut gram = Array2::zeros((x.ncols(), x.ncols()));
    add_gram(&mut gram, x);
    mean_gram(&gram, 1)
}

/// `gram += xᵀ x`, lower triangle. Every tile is one sequential product.
fn add_gram(gram: &mut Array2<f32>, x: ArrayView2<'_, f32>) {
    let n = gram.ncols();
    let tile = (n / 8).clamp(MIN_TILE, MAX_TILE);
    gram.axis_chunks_iter_mut(Axis(0), tile).into_par_iter().enumerate().for_each(|(i, mut rows)| {
        let lo = i * tile;
        // Up to and including the diagonal tile.
        let hi = (lo + tile).min(n);
        add_transposed(rows.slice_mut(s![.., ..hi]), x.slice(s![.., lo..hi]), x.slice(s![.., ..hi]));
    });
}

/// `sum += aᵀ b` for `(tokens, m)` and `(tokens, n)`, on this thread.
pub(crate) fn add_transposed(mut sum: ArrayViewMut2<'_, f32>, a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) {
    let columns = a.reversed_axes().as_standard_layout().into_owned();
    let rows = columns.rows().into_iter().zip(sum.rows_mut());
    let mut rows: Vec<_> = rows.filter_map(|(a, c)| Some((a.to_slice()?, c.into_slice()?))).collect();
    add_product(&mut rows, b);
}

/// A Gram matrix whose lower triangle is valid, symmetric and divided by the tokens in it.
fn mean_gram(gram: &Array2<f32>, tokens: u64) -> Array2<f32> {
    /// Rows and columns of a square that the caches hold.
    const SQUARE: usize = 64;
    let scale = 1.0 / tokens.max(1) as f32;
    let n = gram.ncols();
    let mut h = Array2::zeros((n, n));
    h.axis_chunks_iter_mut(Axis(0), SQUARE).into_par_iter().enumerate().for_each(|(block, mut rows)| {
        let first = block * SQUARE;
        for left in (0..n).step_by(SQUARE) {
            for (i, mut row) in rows.rows_mut().into_iter().enumerate().map(|(i, row)| (first + i, row)) {
                for j in left..(left + SQUARE).min(n) {
                    row[j] = gram[[i.max(j), i.min(j)]] * scale;
                }
            }
        }
    });
    h
}

impl SiteStats {
    /// Adds what other text showed at the same site.
    fn merge(&mut self, other: SiteStats) -> Result<()> {
        if other.width() != self.width() || other.sum.len() != self.sum.len() || other.gram.is_some() != self.gram.is_some() {
            return Err(Error::corrupt("these statistics are of other inputs than those they are added to"));
        }
        self.tokens += other.tokens;
        add(&mut self.sum_sq, &other.sum_sq);
        add(&mut self.sum, &other.sum);
        add(&mut self.sum_abs, &other.sum_abs);
        self.max_abs.iter_mut().zip(&other.max_abs).for_each(|(a, b)| *a = a.max(*b));
        if let (Some(to), Some(from)) = (&mut self.gram, &other.gram) {
            *to += from;
        }
        self.matrices.resize(other.matrices.len().max(self.matrices.len()), MatrixStats::default());
        for (to, from) in self.matrices.iter_mut().zip(&other.matrices) {
            to.tokens += from.tokens;
            for (to, from) in [(&mut to.sum_sq, &from.sum_sq), (&mut to.sum, &from.sum)] {
                to.resize(from.len().max(to.len()), 0.0);
                add(to, from);
            }
        }
        match (self.own_grams.is_empty(), other.own_grams.is_empty()) {
            (true, false) => self.own_grams = other.own_grams,
            _ => self.own_grams.iter_mut().zip(&other.own_grams).for_each(|(to, from)| *to += from),
        }
        Ok(())
    }
}

/// Sums of what both have.
fn add(to: &mut [f64], from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(a, b)| *a += b);
}

impl Stats {
    /// Adds what a later part of the same text showed. Parts are to be added in the text's order, for sums depend on it.
    pub fn merge(&mut self, other: Stats) -> Result<()> {
        let samples = self.meta.samples + other.meta.samples;
        let peak = self.meta.peak.max(other.meta.peak);
        self.meta = StatsMeta { samples, peak, ..other.meta };
        for (site, stats) in other.sites {
            match self.sites.entry(site) {
                Entry::Vacant(free) => drop(free.insert(stats)),
                Entry::Occupied(mut there) => there.get_mut().merge(stats)?,
            }
        }
        Ok(())
    }
}

/// Where statistics came from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StatsMeta {
    /// The model, as the user named it.
    pub model: String,
    /// The calibration data, as the user named it.
    pub data: String,
    /// sha256 of the calibration text.
    pub data_sha256: String,
    /// Windows.
    pub samples: usize,
    /// Tokens per window.
    pub ctx: usize,
    /// Largest magnitude among hidden states and linear inputs: whether a type with a small range can hold them.
    pub peak: f32,
}

/// Statistics of a whole model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// Where they came from.
    pub meta: StatsMeta,
    /// Per site.
    pub sites: BTreeMap<Site, SiteStats>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(tokens: usize, width: usize) -> Array2<f32> {
        Array2::from_shape_fn((tokens, width), |(t, c)| ((t * 31 + c * 17) % 23) as f32 / 7.0 - 1.5)
    }

    #[test]
    fn parts_add_up_to_the_whole() {
        let x = sample(48, 40);
        let site = Site { layer: Some(1), input: bitsmith_runtime::Input::FfnIn };
        let of = |rows: std::ops::Range<usize>| {
            let mut s = SiteStats::new(40, true);
            s.add(x.slice(s![rows.clone(), ..]));
            s.add_matrix(rows.start % 3, 3, x.slice(s![rows.clone(), ..]));
            let meta = StatsMeta { samples: rows.len(), peak: rows.end as f32, ..StatsMeta::default() };
            Stats { meta, sites: BTreeMap::from([(site, s)]) }
        };
        let mut merged = Stats::default();
        for rows in [0..16, 16..32, 32..48] {
            merged.merge(of(rows)).unwrap();
        }
        assert_eq!((merged.meta.samples, merged.meta.peak), (48, 48.0));
        let (sum, mut whole) = (&merged.sites[&site], SiteStats::new(40, true));
        whole.add(x.view());
        assert_eq!((sum.tokens, &sum.max_abs), (48, &whole.max_abs));
        let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9 * b.abs().max(1.0));
        assert!(close(&sum.sum_sq, &whole.sum_sq) && close(&sum.sum, &whole.sum) && close(&sum.sum_abs, &whole.sum_abs));
        let difference = sum.gram.as_ref().unwrap() - whole.gram.as_ref().unwrap();
        assert!(difference.iter().all(|d| d.abs() < 1e-3));
        assert_eq!(sum.matrices.iter().map(|m| m.tokens).collect::<Vec<_>>(), [16, 16, 16]);
        let other = Stats { sites: BTreeMap::from([(site, SiteStats::new(8, true))]), ..Stats::default() };
        assert!(merged.merge(other).is_err());
    }

    #[test]
    fn gram_equals_the_definition() {
        let x = sample(40, 300);
        let mut s = SiteStats::new(300, true);
        s.add(x.slice(s![..25, ..]));
        s.add(x.slice(s![25.., ..]));
        let h = s.hessian().unwrap();
        for (i, j) in [(0, 0), (299, 0), (17, 255), (256, 255), (299, 299), (100, 290)] {
            let want: f64 = (0..40).map(|t| f64::from(x[[t, i]]) * f64::from(x[[t, j]])).sum::<f64>() / 40.0;
            assert!((f64::from(h[[i, j]]) - want).abs() < 1e-4, "({i}, {j}): {} and {want}", h[[i, j]]);
        }
        assert!((s.importance()[5] - h[[5, 5]]).abs() < 1e-5);
        assert!((s.mean().unwrap()[7] - x.column(7).sum() / 40.0).abs() < 1e-5);
        assert_eq!(s.tokens, 40);
    }

    #[test]
    fn stacked_matrices_have_sums_of_their_own() {
        let x = sample(12, 4);
        let mut s = SiteStats::new(4, false);
        s.add(x.view());
        s.add_matrix(2, 3, x.slice(s![..5, ..]));
        s.add_matrix(0, 3, x.slice(s![5.., ..]));
        let all = s.importance_of(3);
        let mean =
            |rows: std::ops::Range<usize>, c: usize| rows.clone().map(|t| x[[t, c]] * x[[t, c]]).sum::<f32>() / rows.len() as f32;
        for (got, want) in [(all[1], mean(5..12, 1)), (all[5], mean(0..12, 1)), (all[11], mean(0..5, 3))] {
            assert!((got - want).abs() < 1e-5, "{got} {want}");
        }
        assert_eq!((s.unseen(), all.len()), (vec![1], 12));
        assert!(s.hessian_of(0).is_none(), "not asked for");
        let means = [s.mean_of(2), s.mean_of(1)].map(Option::unwrap);
        assert!((means[0][3] - x.slice(s![..5, 3]).sum() / 5.0).abs() < 1e-5 && means[1] == s.mean().unwrap());
        s.rescale(&[2.0; 4]);
        assert!((s.importance_of(3)[11] - mean(0..5, 3) / 4.0).abs() < 1e-5);
    }

    #[test]
    fn what_saw_little_is_drawn_towards_the_rest() {
        let x = sample(40, 4);
        let mut s = SiteStats::new(4, true);
        s.add(x.view());
        s.add_matrix(0, 3, x.slice(s![..2, ..]));
        s.add_matrix(2, 3, x.slice(s![2.., ..]));
        let pooled = s.hessian().unwrap();
        let rows = |range: std::ops::Range<usize>| x.slice(s![range, ..]).to_owned();
        let (few, most) = (rows(0..2), rows(2..40));
        // Four channels count as four tokens: (2 H + 4 P) / 6 and (38 H + 4 P) / 42.
        for (index, own, n) in [(0, few, 2.0f32), (2, most, 38.0)] {
            let want = (own.t().dot(&own) + &pooled * 4.0) / (n + 4.0);
            let got = s.hessian_of(index).unwrap();
            assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-4), "{index}");
        }
        assert_eq!(s.hessian_of(1).unwrap(), pooled, "unseen");
        assert_eq!((s.unseen(), s.seldom()), (vec![1], vec![0]));
    }

    #[test]
    fn thread_count_does_not_change_a_bit() {
        let x = sample(100, 700);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut s = SiteStats::new(700, true);
                s.add(x.view());
                s
            })
        };
        assert_eq!(run(1), run(3));
    }
}
