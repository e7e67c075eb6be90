//! What the source predicts of the evaluation texts, kept so that no artifact's evaluation has to run it again.

use super::{EVAL, keep, reference_name};
use crate::batch::record::Made;
use crate::batch::task::Work;
use crate::evaluate::watch;
use bitsmith_eval::{EvalResult, Reference};
use bitsmith_formats::atomic::write_file;
use bitsmith_formats::{Error, Result};
use serde_json::json;

pub fn run(work: &Work<'_>) -> Result<Made> {
    let (variant, context) = (work.variant(), work.context());
    let Some(measure) = &variant.measure else { return Err(Error::failed("the plan measures nothing")) };
    variant.texts.iter().try_for_each(|t| t.check())?;
    let model = work.source()?;
    let tokenizer = model.text_tokenizer()?;
    let options = measure.options()?;
    let name = &work.runner.plan.models[work.node.model].name;
    let (bytes, bpw) = model.size();
    let mut eval = EvalResult { model: name.clone(), bytes: Some(bytes), bpw: Some(bpw), ..EvalResult::default() };
    let mut outputs = Vec::new();
    for (i, data) in measure.data()?.iter().enumerate() {
        let windows = options.windows(data, &model, &tokenizer)?;
        let reference = Reference::new(name.as_str(), &model.checkpoint, windows, &context.device, &watch(context, name))?;
        let path = work.bench.dir.join(reference_name(i));
        reference.save(&path, &watch(context, name))?;
        eval.perplexity.push(reference.perplexity(&watch(context, name))?);
        outputs.push(keep(work.store(), reference_name(i), &path)?);
    }
    work.check_source(&model)?;
    let path = work.bench.dir.join(EVAL);
    write_file(&path, &serde_json::to_vec(&eval).map_err(|e| Error::failed(e.to_string()))?)?;
    outputs.push(keep(work.store(), EVAL, &path)?);
    Ok(Made { outputs, content: None, details: json!({}) })
}
