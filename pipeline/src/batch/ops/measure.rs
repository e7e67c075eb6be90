//! An artifact measured on a share of each text, for `evaluate` to judge together.

use super::evaluate::{artifact, positions_name};
use super::{keep, lay_out, reference_name};
use crate::batch::plan::Op;
use crate::batch::record::Made;
use crate::batch::task::Work;
use crate::evaluate::measure;
use crate::share::Share;
use bitsmith_eval::positions;
use bitsmith_formats::{Error, Result};
use serde_json::json;

pub fn run(work: &Work<'_>, share: Share) -> Result<Made> {
    let variant = work.variant();
    let (Some(how), Some(reference)) = (&variant.measure, work.need(|op| matches!(op, Op::Reference))) else {
        return Err(Error::failed("the plan does not say what to measure"));
    };
    variant.texts.iter().try_for_each(|t| t.check())?;
    let predictions = work.bench.dir.join("reference");
    lay_out(work.store(), reference, &predictions)?;
    let (written, _) = artifact(work)?;
    let mut outputs = Vec::new();
    for (i, data) in how.data()?.iter().enumerate() {
        let stored = predictions.join(reference_name(i));
        let found = measure(&written, data, &stored, share, &how.options()?, work.context())?;
        let path = work.bench.dir.join(positions_name(i));
        positions::write(&path, &found)?;
        outputs.push(keep(work.store(), positions_name(i), &path)?);
    }
    Ok(Made { outputs, content: None, details: json!({}) })
}
