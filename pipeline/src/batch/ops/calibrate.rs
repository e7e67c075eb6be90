//! Statistics of the dense model, for all targets that can do with them.

use super::{STATS, keep};
use crate::artifact::Output;
use crate::batch::record::Made;
use crate::batch::task::Work;
use crate::calibrate::calibrate;
use bitsmith_calibrate::Detail;
use bitsmith_formats::Result;
use serde_json::json;

pub fn run(work: &Work<'_>, gram: bool) -> Result<Made> {
    let variant = work.variant();
    variant.files.iter().try_for_each(|f| f.check())?;
    let out = Output::Folder(work.bench.dir.clone().into());
    let options = work.runner.settings.options(&variant.settings, &[], out)?;
    let model = work.source()?;
    let path = work.bench.dir.join(STATS);
    let detail = if gram { Detail::Gram } else { Detail::Channels };
    let found = calibrate(&model, &options.calibration, detail, Some(&path), None, work.context())?;
    work.check_source(&model)?;
    let outputs = vec![keep(work.store(), STATS, &path)?];
    Ok(Made { outputs, content: None, details: json!({ "tokens": found.tokens, "samples": found.samples, "ctx": found.ctx }) })
}
