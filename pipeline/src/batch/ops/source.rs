//! Gets a model and hashes all of it: from here on it is known what the batch works on.

use crate::batch::inputs::read_all;
use crate::batch::plan::hash;
use crate::batch::record::Made;
use crate::batch::task::Work;
use crate::model::resolve;
use bitsmith_formats::Result;
use serde_json::json;

pub fn run(work: &Work<'_>) -> Result<Made> {
    let model = &work.runner.plan.models[work.node.model];
    model.origin.check()?;
    let located = resolve(&model.argument, work.context())?;
    let inputs = read_all(&located.path)?;
    model.origin.check()?;
    // Artifacts carry the model's name.
    let files: Vec<(&str, &str)> = inputs.iter().map(|i| (i.file.name.as_str(), i.file.sha256.as_str())).collect();
    let content = hash(&json!([model.name, files]));
    Ok(Made { outputs: Vec::new(), content: Some(content), details: json!({ "model": located.name, "inputs": inputs }) })
}
