//! Activation-aware weight quantization (AWQ, Lin et al. 2023): important input channels get larger weights.
//!
//! A linear layer's columns are multiplied by `s` and whatever makes its input is divided by `s`: the preceding norm's
//! weights, or the rows of the preceding linear layer. The function stays; the rounding error of column j is divided by
//! `s_j`. Scales are searched along `s = a^r / w^(1−r)` and `s = a^r` for r in 0..1, with `a` the mean |x| of a channel and `w` the
//! mean of its weights relative to their block's largest. The loss of a candidate is `tr(ΔW H ΔWᵀ)` of the stored formats,
//! so no activations are kept.
//!
//! A solver with error feedback fits scales by importance and compensates, which leaves less to gain: there a candidate must
//! also win when a sample of the rows is really solved with and without it.
//!
//! Under a solver that treats all weights alike, ranges are then clipped per block to 0.5–1 of their largest magnitude,
//! whichever loses least.

use super::fold::{Fold, PARTS, normalised};
use super::{Context, DenseLayer, Transform};
use crate::hessian::Hessian;
use crate::solver::Problem;
use bitsmith_calibrate::SiteStats;
use bitsmith_formats::{CodecId, Result};
use bitsmith_runtime::Device;
use bitsmith_runtime::product::quadratic_forms;
use bitsmith_runtime::role::{Input, Part};
use ndarray::{Array2, ArrayView1, ArrayView2, Axis, s};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Steps of the exponent r.
const STEPS: usize = 16;
/// Rows per reader used to score candidates, and solved to confirm the best.
const SAMPLE_ROWS: usize = 96;
/// What the confirmation must gain, relatively.
const MIN_SOLVED_GAIN: f64 = 0.04;
/// A fold must lower the loss at least this much, relatively: less is noise of the sample.
const MIN_GAIN: f64 = 0.002;
/// Clipping ratios tried.
const CLIPS: [f32; 11] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5];

/// See the module's documentation.
pub struct Awq;

impl Transform for Awq {
    fn name(&self) -> &'static str {
        "awq"
    }
    fn about(&self) -> &'static str {
        "scales important channels up, folded into the preceding norm or linear layer; clips ranges where the solver does not weigh errors"
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
            let Some(h) = site.hessian() else { continue };
            if let Some(scales) = search(layer, &fold, &h, site, context) {
                fold.apply(layer, &scales, site, context);
            }
            if !context.weighted_solver() {
                let h = site.hessian().expect("gathered above");
                for &part in &fold.readers {
                    // Clipping q and k would change attention scores too sharply.
                    if !matches!(part, Part::AttnQ | Part::AttnK | Part::AttnQkv) {
                        clip(layer.get_mut(&part).expect("a reader"), &h, (context.codec)(part));
                    }
                }
            }
        }
        Ok(Vec::new())
    }
}

/// The best scales, one per source channel; `None` if none beats leaving the layer alone.
fn search(layer: &DenseLayer, fold: &Fold, h: &Array2<f32>, site: &SiteStats, context: &Context<'_>) -> Option<Vec<f32>> {
    let importance = site.importance();
    let samples: Vec<(Part, Array2<f32>)> = fold.readers.iter().map(|&p| (p, sample_rows(&layer[&p], SAMPLE_ROWS))).collect();
    // Of channels that share a scale, the sum stands for the mean.
    let a = fold.merged(&site.mean_abs(), |a, b| a + b);
    let w = fold.merged(&column_magnitudes(&samples, context), |a, b| a + b);
    let loss = |scales: &[f32]| -> f64 {
        let per_column = fold.per_column(scales);
        let of = |(part, rows): &(Part, Array2<f32>)| {
            let codec = (context.codec)(*part);
            let scaled: Vec<f32> = per_column.iter().zip(&importance).map(|(s, i)| i / (s * s)).collect();
            error(rows, &per_column, codec, context.weighted_solver().then_some(&scaled[..]), h)
                + input_rounding(rows, &per_column, codec, &scaled)
        };
        samples.iter().map(of).sum()
    };
    let mut candidates = Vec::new();
    for step in 0..STEPS {
        let r = step as f32 / STEPS as f32;
        candidates.push(normalised(a.iter().zip(&w).map(|(a, w)| a.powf(r) / w.powf(1.0 - r).max(1e-4))));
        if step > 0 {
            candidates.push(normalised(a.iter().map(|a| a.powf(r))));
        }
    }
    let start = loss(&vec![1.0; fold.n_channels()]);
    let losses: Vec<f64> = candidates.par_iter().map(|c| loss(c)).collect();
    let best = (0..candidates.len()).min_by(|&i, &j| losses[i].total_cmp(&losses[j]))?;
    if losses[best] >= start * (1.0 - MIN_GAIN) {
        return None;
    }
    let scales = candidates.swap_remove(best);
    if context.solver.needs_hessian() {
        let per_column = fold.per_column(&scales);
        let scaled = solved_error(&samples, &per_column, h, site, context)?;
        if scaled >= solved_error(&samples, &vec![1.0; fold.channels.len()], h, site, context)? * (1.0 - MIN_SOLVED_GAIN) {
            return None;
        }
    }
    Some(scales)
}

/// `tr(ΔW H ΔWᵀ)` over sampled rows when they are solved with their columns multiplied by `scales`.
fn solved_error(
    samples: &[(Part, Array2<f32>)],
    scales: &[f32],
    h: &Array2<f32>,
    site: &SiteStats,
    context: &Context<'_>,
) -> Option<f64> {
    let mut stats = site.clone();
    stats.rescale(scales);
    let hessian = Hessian::from_stats(&stats)?;
    let scales = ArrayView1::from(scales);
    let mut total = 0.0;
    for (part, rows) in samples {
        let scaled = rows * &scales;
        let importance = Some(&hessian.importance[..]);
        let codec = (context.codec)(*part);
        let problem =
            Problem { weights: scaled.view(), codec, scale: 1.0, importance, hessian: Some(&hessian), device: &Device::Cpu };
        // A few rows: not worth a device.
        let solution = context.solver.solve(&problem).ok()?;
        let decoded = Array2::from_shape_vec(rows.dim(), solution.tensor.decode()).ok()?;
        total += quadratic((decoded / scales - rows).view(), h);
        let per_column = scales.as_slice().expect("a slice");
        total += input_rounding(rows, per_column, (context.codec)(*part), &stats.importance());
    }
    Some(total)
}

/// At most `most` rows, evenly spread.
fn sample_rows(w: &Array2<f32>, most: usize) -> Array2<f32> {
    let stride = w.nrows().div_ceil(most);
    w.slice(s![..;stride, ..]).to_owned()
}

/// Mean over rows of |w| relative to the largest in the weight's block.
fn column_magnitudes(samples: &[(Part, Array2<f32>)], context: &Context<'_>) -> Vec<f32> {
    let n = samples[0].1.ncols();
    let mut sum = vec![0f64; n];
    let mut rows = 0usize;
    for (part, w) in samples {
        let block = scale_group((context.codec)(*part), n);
        rows += w.nrows();
        for row in w.rows() {
            for (b, chunk) in row.axis_chunks_iter(Axis(0), block).enumerate() {
                let max = chunk.iter().fold(0f32, |m, v| m.max(v.abs())).max(1e-30);
                for (i, v) in chunk.iter().enumerate() {
                    sum[b * block + i] += f64::from(v.abs() / max);
                }
            }
        }
    }
    sum.iter().map(|s| (s / rows.max(1) as f64) as f32).collect()
}

/// Weights that share a scale, as far as ranges are concerned.
fn scale_group(codec: CodecId, row: usize) -> usize {
    if codec.float().is_some() { row } else { codec.codec().block_len().min(32) }
}

/// `tr(ΔW H ΔWᵀ)` over the rows when their columns are multiplied by `scales`, stored in `codec`, and divided again.
fn error(rows: &Array2<f32>, scales: &[f32], codec: CodecId, importance: Option<&[f32]>, h: &Array2<f32>) -> f64 {
    let mut delta = Array2::zeros(rows.dim());
    let c = codec.codec();
    let n = rows.ncols();
    let mut scaled = vec![0f32; n];
    let mut decoded = vec![0f32; n];
    let mut bytes = vec![0u8; n / c.block_len() * c.block_bytes()];
    for (row, mut out) in rows.rows().into_iter().zip(delta.rows_mut()) {
        scaled.iter_mut().zip(row).zip(scales).for_each(|((o, w), s)| *o = w * s);
        c.encode(&scaled, importance, &mut bytes);
        c.decode(&bytes, &mut decoded);
        for i in 0..n {
            out[i] = decoded[i] / scales[i] - row[i];
        }
    }
    quadratic(delta.view(), h)
}

/// What rounding the inputs to 8 bits per block, as llama.cpp computes with ggml's formats, adds to the output error of the rows:
/// `Σ (s w)² · E[max²] / (12 · 127²)`. `importance` is E(x²) of the scaled inputs; the expected largest square of a block is taken
/// from it as `(Σ E[x²]⁴)^¼`, which is exact for one outlier and a fair guess for channels that are alike.
fn input_rounding(rows: &Array2<f32>, scales: &[f32], codec: CodecId, importance: &[f32]) -> f64 {
    let block = match codec {
        CodecId::Q4K | CodecId::Q5K | CodecId::Q6K => 256,
        CodecId::MlxAffine { .. }
        | CodecId::Micro(_)
        | CodecId::IntGroup { .. }
        | CodecId::Fp8Group { .. }
        | CodecId::F32
        | CodecId::F16
        | CodecId::BF16 => return 0.0,
        _ => 32,
    };
    let mut total = 0.0;
    for start in (0..rows.ncols()).step_by(block) {
        let end = (start + block).min(rows.ncols());
        let largest = importance[start..end].iter().map(|m| f64::from(*m).powi(4)).sum::<f64>().powf(0.25);
        let weights: f64 =
            (start..end).map(|c| rows.column(c).iter().map(|w| f64::from(w * scales[c]).powi(2)).sum::<f64>()).sum();
        total += weights * largest / (12.0 * 127.0 * 127.0);
    }
    total
}

fn quadratic(delta: ArrayView2<'_, f32>, h: &Array2<f32>) -> f64 {
    let delta = delta.as_standard_layout();
    quadratic_forms(&delta.rows().into_iter().filter_map(|r| r.to_slice()).collect::<Vec<_>>(), h.view()).iter().sum()
}

/// Longest blocks that are clipped: beyond, `H_bb` costs more than clipping the few weights at the end of such a range can gain.
const MAX_CLIPPED: usize = 1024;

/// Clips each block of each row to the fraction of its largest magnitude that loses least, by `δᵀ H_bb δ`.
fn clip(w: &mut Array2<f32>, h: &Array2<f32>, codec: CodecId) {
    let c = codec.codec();
    let n = c.block_len();
    if codec.float().is_some() || n > MAX_CLIPPED || !w.ncols().is_multiple_of(n) {
        return;
    }
    let blocks: Vec<Array2<f32>> =
        (0..w.ncols() / n).map(|b| h.slice(s![b * n..(b + 1) * n, b * n..(b + 1) * n]).to_owned()).collect();
    let group = scale_group(codec, n);
    w.axis_chunks_iter_mut(Axis(0), 16).into_par_iter().for_each(|mut rows| {
        let (mut clipped, mut decoded, mut bytes) = (vec![0f32; n], vec![0f32; n], vec![0u8; c.block_bytes()]);
        for mut row in rows.rows_mut() {
            for (b, hbb) in blocks.iter().enumerate() {
                let mut block = row.slice_mut(s![b * n..(b + 1) * n]);
                let original = block.to_vec();
                let mut best = (f64::INFINITY, 1.0);
                for ratio in CLIPS {
                    clip_groups(&original, group, ratio, &mut clipped);
                    c.encode(&clipped, None, &mut bytes);
                    c.decode(&bytes, &mut decoded);
                    let delta = Array2::from_shape_fn((1, n), |(_, i)| decoded[i] - original[i]);
                    let loss = quadratic(delta.view(), hbb);
                    if loss < best.0 {
                        best = (loss, ratio);
                    }
                }
                clip_groups(&original, group, best.1, &mut clipped);
                block.iter_mut().zip(&clipped).for_each(|(w, v)| *w = *v);
            }
        }
    });
}

fn clip_groups(values: &[f32], group: usize, ratio: f32, out: &mut [f32]) {
    for (v, o) in values.chunks(group).zip(out.chunks_mut(group)) {
        let limit = ratio * v.iter().fold(0f32, |m, x| m.max(x.abs()));
        o.iter_mut().zip(v).for_each(|(o, x)| *o = x.clamp(-limit, limit));
    }
}
