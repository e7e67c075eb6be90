//! Loads an artifact back, as any user would, and compares it with what the source predicts.

use super::{EVAL, keep, lay_out, reference_name};
use crate::batch::plan::Op;
use crate::batch::record::Made;
use crate::batch::task::Work;
use crate::evaluate::{Against, evaluate};
use crate::model::Located;
use crate::opened::Opened;
use crate::quantize::Artifact;
use crate::remember::Memory;
use bitsmith_eval::EvalResult;
use bitsmith_formats::atomic::write_file;
use bitsmith_formats::{Error, Result};
use serde_json::json;

pub fn run(work: &Work<'_>) -> Result<Made> {
    let (variant, context) = (work.variant(), work.context());
    let measured =
        (&variant.measure, work.need(|op| matches!(op, Op::Quantize { .. })), work.need(|op| matches!(op, Op::Reference)));
    let (Some(measure), Some(made), Some(reference)) = measured else {
        return Err(Error::failed("the plan does not say what to measure"));
    };
    variant.texts.iter().try_for_each(|t| t.check())?;
    let (dir, predictions) = (work.bench.dir.join("artifact"), work.bench.dir.join("reference"));
    lay_out(work.store(), made, &dir)?;
    lay_out(work.store(), reference, &predictions)?;
    let artifact: Artifact = made.detail("artifact")?;
    let name = artifact.path.display().to_string();
    let written = Opened::open(Located { path: dir.join(&artifact.path), name: name.clone(), pulled: None })?;
    let (bytes, bpw) = written.size();
    let mut result = EvalResult { model: name, bytes: Some(bytes), bpw: Some(bpw), ..EvalResult::default() };
    for (i, data) in measure.data()?.into_iter().enumerate() {
        let against = Against::Stored(predictions.join(reference_name(i)));
        let found = evaluate(&written, &[], &[data], Some(&against), None, &measure.options()?, &Memory::none(), context)?;
        result.perplexity.extend(found.perplexity);
        result.kld.extend(found.kld);
    }
    let path = work.bench.dir.join(EVAL);
    write_file(&path, &serde_json::to_vec(&result).map_err(|e| Error::failed(e.to_string()))?)?;
    let outputs = vec![keep(work.store(), EVAL, &path)?];
    // Windows and passages are in the file.
    result.kld.iter_mut().for_each(|k| (k.landing, k.windows) = (None, Vec::new()));
    Ok(Made { outputs, content: None, details: json!({ "eval": result }) })
}
