//! Scores the source or an artifact on a share of each task's items.

use super::evaluate::artifact;
use super::{SCORES, keep};
use crate::batch::record::Made;
use crate::batch::task::Work;
use crate::context::Context;
use crate::share::Share;
use crate::tasks::Tasks;
use bitsmith_formats::atomic::write_file;
use bitsmith_formats::{Error, Result};
use serde_json::json;

pub fn run(work: &Work<'_>, of_artifact: bool, share: Share) -> Result<Made> {
    let variant = work.variant();
    let Some(options) = variant.measure.as_ref().map(|m| m.asks()).transpose()?.flatten() else {
        return Err(Error::failed("the plan does not say what to ask"));
    };
    variant.questions.iter().try_for_each(|q| q.check())?;
    // Answers of a killed attempt are there, and not among those of other runs.
    let context = Context { cache_dir: work.bench.dir.join("cache"), ..work.context().clone() };
    let tasks = Tasks::new(options, &context)?;
    let scored = match of_artifact {
        true => tasks.score(&artifact(work)?.0, share, &context)?,
        false => {
            let model = work.source()?;
            let scored = tasks.score(&model, share, &context)?;
            work.check_source(&model)?;
            scored
        }
    };
    let path = work.bench.dir.join(SCORES);
    write_file(&path, &serde_json::to_vec(&scored).map_err(|e| Error::failed(e.to_string()))?)?;
    Ok(Made { outputs: vec![keep(work.store(), SCORES, &path)?], content: None, details: json!({}) })
}
