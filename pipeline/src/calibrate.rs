//! Statistics of a dense model, saved for reuse, and as llama.cpp's importance matrix.

use crate::calibration::{CalibrationOptions, stats_meta};
use crate::context::Context;
use crate::estimate::Cost;
use crate::gather::{Gathered, gather};
use crate::opened::Opened;
use crate::share::Share;
pub use bitsmith_calibrate::Detail;
use bitsmith_calibrate::Stats;
use bitsmith_calibrate::imatrix::{Imatrix, Layout};
use bitsmith_formats::Result;
use bitsmith_runtime::{Input, WeightSource};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What was gathered.
#[derive(Debug, Clone, Serialize)]
pub struct Calibrated {
    /// The statistics file.
    pub stats: Option<PathBuf>,
    /// The importance matrix.
    pub imatrix: Option<PathBuf>,
    /// Windows.
    pub samples: usize,
    /// Tokens per window.
    pub ctx: usize,
    /// Tokens seen.
    pub tokens: usize,
    /// Input channels that never were active, by site.
    pub dead_channels: Vec<(String, usize)>,
    /// Experts that no token went to, by site.
    pub unseen_experts: Vec<(String, Vec<usize>)>,
}

/// What [`calibrate`] will cost.
pub fn cost(model: &Opened, options: &CalibrationOptions, with_stats: bool, context: &Context) -> Result<Cost> {
    let windows = options.windows(model)?;
    Ok(Cost::of_calibration(model.checkpoint.spec(), windows.n_tokens(), windows.ctx, with_stats, context.threads))
}

/// Runs a share of the text through the model and writes what is asked for. An importance matrix takes no more than channel sums.
pub fn calibrate(
    model: &Opened,
    options: &CalibrationOptions,
    share: Share,
    detail: Detail,
    stats_path: Option<&Path>,
    imatrix_path: Option<&Path>,
    context: &Context,
) -> Result<Calibrated> {
    let spec = model.checkpoint.spec();
    let mut windows = options.windows(model)?;
    windows.windows = windows.windows[share.of(windows.windows.len())].to_vec();
    for note in &windows.notes {
        context.progress.note(note);
    }
    let cost = Cost::of_calibration(spec, windows.n_tokens(), windows.ctx, detail == Detail::Gram, context.threads);
    cost.check_ram("calibration", context.max_ram)?;
    let gathered = match windows.windows.is_empty() {
        // More parts than windows.
        true => Gathered::default(),
        false => gather(&model.checkpoint, &windows.windows, detail, context)?,
    };
    let stats = Stats { meta: stats_meta(&model.name, &windows, gathered.peak), sites: gathered.sites };
    if let Some(path) = stats_path {
        stats.save(path)?;
    }
    if let Some(path) = imatrix_path {
        Imatrix::from_stats(&stats, spec).write(path, Layout::of(path).unwrap_or(Layout::Gguf))?;
    }
    let dead = stats.sites.iter().map(|(site, s)| (site.to_string(), s.sum_sq.iter().filter(|v| **v == 0.0).count()));
    let unseen = stats.sites.iter().filter(|(site, _)| site.input == Input::ExpertOut);
    let unseen = unseen.map(|(site, s)| (site.to_string(), s.unseen())).filter(|(_, experts)| !experts.is_empty());
    Ok(Calibrated {
        stats: stats_path.map(Path::to_path_buf),
        imatrix: imatrix_path.map(Path::to_path_buf),
        samples: windows.windows.len(),
        ctx: windows.ctx,
        tokens: windows.n_tokens(),
        dead_channels: dead.filter(|(_, n)| *n > 0).collect(),
        unseen_experts: unseen.collect(),
    })
}
