//! The inner loop: a panel of weights times a tile of activations.
//!
//! All versions do the same operations on integers, which are exact, and the same ones in f32 in the same order, so they give the same
//! bits; the scalar one is the twin that tests compare with.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

use super::activations::Packed;
use super::panel::Panel;
use super::{Form, PANEL_ROWS, PANELS};
use crate::product::processor::Processor;

/// The most rows of activations in a tile.
pub(crate) const MAX_WIDTH: usize = 6;

/// Sums of a tile: `(row of activations, row of the panels)`.
pub(crate) type Sums = [[f32; PANELS * PANEL_ROWS]; MAX_WIDTH];

/// A part of the panels' columns and the activations for them.
pub(crate) struct Job<'a> {
    pub form: &'a Form,
    pub panels: &'a [Panel; PANELS],
    pub activations: &'a Packed,
    /// Columns before this part, in parts.
    pub part: usize,
    /// Segments of this part.
    pub segments: usize,
    /// Which tile of rows.
    pub tile: usize,
}

/// Rows of activations in a tile.
pub(crate) fn width(processor: Processor) -> usize {
    match processor {
        Processor::Avx512 => 6,
        _ => 4,
    }
}

/// Whether runs of bytes start with two sums of 16 bits, and not with one of 32.
pub(crate) fn halves(processor: Processor) -> bool {
    processor != Processor::Avx512
}

/// What a tile reads, with bounds checked once. All pointers advance by fixed counts from segment to segment.
struct Parts<'a> {
    /// In each `segments × runs × steps × words` columns of codes, `segments × runs` of scales, `segments × pairs` of offsets, `segments` of
    /// steps and mins.
    panels: &'a [Panel; PANELS],
    segments: usize,
    runs: usize,
    pairs: usize,
    /// Starts of runs and codes of the tile, `width` per run and per word.
    codes: &'a [u32],
    /// Scales from the tile's first row in the part's first segment on, a segment every `stride`.
    scales: &'a [f32],
    /// Sums likewise, a pair every `stride`.
    sums: &'a [u32],
    stride: usize,
}

impl<'a> Parts<'a> {
    fn of(job: &Job<'a>, width: usize) -> Self {
        let (form, x) = (job.form, job.activations);
        let (runs, pairs, segments, stride) = (form.runs(), form.pairs(), job.segments, x.padded);
        let per_part = form.panel_columns() / form.segment;
        let parts = Parts {
            panels: job.panels,
            segments,
            runs,
            pairs,
            codes: x.codes(job.part, job.tile),
            scales: &x.scales[job.part * per_part * stride + job.tile * width..],
            sums: if pairs == 0 { &[] } else { &x.sums[job.part * per_part * pairs * stride + job.tile * width..] },
            stride,
        };
        for p in job.panels {
            assert!(p.codes.len() >= segments * runs * form.steps() * form.words() && p.scales.len() >= segments * runs);
            assert!(p.offsets.len() >= segments * pairs && p.steps.len() >= segments && p.mins.len() >= segments);
        }
        assert!(parts.codes.len() == segments * runs * (1 + form.steps() * form.words()) * width && segments > 0);
        assert!(parts.scales.len() >= (segments - 1) * stride + width);
        assert!(pairs == 0 || parts.sums.len() >= (segments * pairs - 1) * stride + width);
        parts
    }
}

/// Adds the products of a part to the sums.
pub(crate) fn tile(processor: Processor, job: &Job<'_>, sums: &mut Sums) {
    let parts = Parts::of(job, width(processor));
    match processor {
        #[cfg(target_arch = "x86_64")]
        Processor::Avx512 => avx512::tile(job.form, &parts, sums),
        #[cfg(target_arch = "x86_64")]
        Processor::Avx2 => (0..PANELS).for_each(|panel| avx2::tile(job.form, &parts, panel, sums)),
        _ => (0..PANELS).for_each(|panel| scalar::tile(job.form, &parts, panel, sums)),
    }
}
