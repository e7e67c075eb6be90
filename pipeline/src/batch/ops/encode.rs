//! A part of an artifact's tensors, encoded apart.

use super::keep;
use super::quantize::statistics;
use crate::artifact::Output;
use crate::batch::record::Made;
use crate::batch::task::Work;
use crate::quantize::Job;
use crate::share::Share;
use bitsmith_formats::Result;
use serde_json::json;

pub fn run(work: &Work<'_>, target: &str, share: Share) -> Result<Made> {
    let (variant, settings) = (work.variant(), work.runner.settings);
    variant.files.iter().try_for_each(|f| f.check())?;
    let model = work.source()?;
    let place = Output::Folder(work.bench.dir.clone().into());
    let mut options = settings.options(&variant.settings, &[target.to_string()], place)?;
    statistics(work, &mut options)?;
    let dir = work.bench.dir.join("part");
    let part = Job::new(&model, &options, work.context())?.encode(share, &dir)?;
    work.check_source(&model)?;
    let outputs = part.files.iter().map(|name| keep(work.store(), name, &dir.join(name))).collect::<Result<_>>()?;
    Ok(Made { outputs, content: None, details: json!({ "notes": part.notes }) })
}
