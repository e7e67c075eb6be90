//! Statistics of the dense model, for all targets that can do with them.

use super::{STATS, keep, lay_out};
use crate::artifact::Output;
use crate::batch::plan::Op;
use crate::batch::record::{Made, Record};
use crate::batch::task::Work;
use crate::calibrate::calibrate;
use crate::share::Share;
use bitsmith_calibrate::{Detail, Stats};
use bitsmith_formats::Result;
use serde_json::json;

/// Gathers them, or adds up what parts of the text gave, in the text's order.
pub fn run(work: &Work<'_>, gram: bool) -> Result<Made> {
    let parts: Vec<&Record> = work.needs(|op| matches!(op, Op::Observe { .. })).collect();
    if parts.is_empty() {
        return observe(work, gram, Share::WHOLE);
    }
    let mut all = Stats::default();
    for (i, part) in parts.into_iter().enumerate() {
        let dir = work.bench.dir.join(i.to_string());
        lay_out(work.store(), part, &dir)?;
        let path = dir.join(STATS);
        all.merge(Stats::load(&path)?).map_err(|e| e.file(path))?;
    }
    let path = work.bench.dir.join(STATS);
    all.save(&path)?;
    let outputs = vec![keep(work.store(), STATS, &path)?];
    let meta = &all.meta;
    Ok(Made { outputs, content: None, details: json!({ "samples": meta.samples, "ctx": meta.ctx }) })
}

/// Gathers them from a share of the text.
pub fn observe(work: &Work<'_>, gram: bool, share: Share) -> Result<Made> {
    let variant = work.variant();
    variant.files.iter().try_for_each(|f| f.check())?;
    let out = Output::Folder(work.bench.dir.clone().into());
    let options = work.runner.settings.options(&variant.settings, &[], out)?;
    let model = work.source()?;
    let path = work.bench.dir.join(STATS);
    let detail = if gram { Detail::Gram } else { Detail::Channels };
    let found = calibrate(&model, &options.calibration, share, detail, Some(&path), None, work.context())?;
    work.check_source(&model)?;
    let outputs = vec![keep(work.store(), STATS, &path)?];
    Ok(Made { outputs, content: None, details: json!({ "tokens": found.tokens, "samples": found.samples, "ctx": found.ctx }) })
}
