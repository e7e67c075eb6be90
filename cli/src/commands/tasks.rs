//! `bitsmith tasks`.

use crate::app::App;
use crate::output::table;
use bitsmith_eval::tasks::{Metric, Task, all};
use bitsmith_formats::Result;
use clap::Args;
use serde_json::json;

const EXAMPLES: &str = "\
Example:
  bitsmith tasks

Names and groups are for `eval --tasks`. Records come from the hub, or from local files with --task-data. A task of your own is a TOML
file: name, data (a file of records: .jsonl, .csv, .parquet), prompt (a Jinja template), choices and answer (expressions).";

/// Arguments of `tasks`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {}

/// Prints the registry.
pub fn run(_args: &Arguments, app: &App) -> Result<()> {
    let tasks = all();
    let metrics = |t: &Task| t.metrics.iter().map(Metric::name).collect::<Vec<_>>();
    let entry = |t: &Task| {
        json!({
            "name": t.name, "groups": t.groups, "metrics": metrics(t), "fewshot": t.shots, "source": t.source.to_string(),
            "description": t.description,
        })
    };
    app.output.result(&json!({ "tasks": tasks.iter().map(entry).collect::<Vec<_>>() }), |_| {
        let mut rows = vec![["name", "groups", "metrics", "examples", "source", "description"].map(String::from).to_vec()];
        rows.extend(tasks.iter().map(|t| {
            let start = [t.name.clone(), t.groups.join(" "), metrics(t).join(" "), t.shots.to_string()];
            start.into_iter().chain([t.source.to_string(), t.description.clone()]).collect()
        }));
        table(&rows, &[3])
    })
}
