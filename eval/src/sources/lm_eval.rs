//! lm-evaluation-harness's `results_*.json`.

use crate::report::{Report, ReportRow};
use crate::results::{EvalResult, TaskResult};
use bitsmith_formats::Result;
use serde_json::Value;

pub(super) fn read(text: &str, name: &str) -> Option<Result<Report>> {
    let json: Value = serde_json::from_str(text).ok()?;
    let results = json.get("results")?.as_object()?;
    let mut tasks = Vec::new();
    for (task, metrics) in results {
        let n = json["n-samples"][task]["effective"].as_u64().unwrap_or(0) as usize;
        let shots = json["n-shot"][task].as_u64().unwrap_or(0) as usize;
        for (key, value) in metrics.as_object()? {
            // `metric,filter`; groups and aliases have no comma.
            let Some((metric, filter)) = key.split_once(',').filter(|(m, _)| !m.ends_with("_stderr")) else { continue };
            let Some(value) = value.as_f64() else { continue };
            let stderr = metrics[format!("{metric}_stderr,{filter}")].as_f64().unwrap_or(0.0);
            let metric = if filter == "none" { metric.to_string() } else { key.clone() };
            tasks.push(TaskResult { task: task.clone(), n, metric, value, stderr, shots, interval: None, paired: None });
        }
    }
    let target = model(&json).unwrap_or_else(|| name.to_string());
    let eval = EvalResult { model: target.clone(), tasks, ..EvalResult::default() };
    let row = ReportRow { target: target.clone(), eval, ..ReportRow::default() };
    Some(Ok(Report { model: target, rows: vec![row], ..Report::default() }))
}

/// What was evaluated: `pretrained=…` of the model's arguments, or the name.
fn model(json: &Value) -> Option<String> {
    let arguments = &json["config"]["model_args"];
    let pretrained = match arguments {
        Value::String(text) => text.split(',').find_map(|a| a.strip_prefix("pretrained=")),
        other => other["pretrained"].as_str(),
    };
    let name = pretrained.or(json["model_name"].as_str()).filter(|n| !n.is_empty())?;
    Some(name.to_string())
}
