//! `bitsmith datasets`.

use crate::app::App;
use crate::output::{human_bytes, table};
use bitsmith_datasets::registry;
use bitsmith_formats::Result;
use clap::Args;
use serde_json::json;

const EXAMPLES: &str = "\
Example:
  bitsmith datasets

DATA arguments take one of these names or files (.txt, .raw, .jsonl), joined by commas, each as [name=]source[:weight].";

/// Arguments of `datasets`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {}

/// Prints the registry.
pub fn run(_args: &Arguments, app: &App) -> Result<()> {
    let list = registry::list();
    app.output.result(&json!({ "datasets": list }), |_| {
        let mut rows = vec![["name", "for", "size", "domains", "licence", "description"].map(String::from).to_vec()];
        rows.extend(list.iter().map(|d| {
            let start = [d.name.to_string(), d.purpose.to_string(), human_bytes(d.bytes), d.domains.join(", ")];
            start.into_iter().chain([d.license.to_string(), d.description.to_string()]).collect()
        }));
        table(&rows, &[2])
    })
}
