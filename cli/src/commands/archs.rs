//! `bitsmith archs`.

use crate::app::App;
use crate::output::table;
use bitsmith_formats::Result;
use bitsmith_runtime::ARCHITECTURES;
use clap::Args;
use serde_json::json;

const EXAMPLES: &str = "\
Example:
  bitsmith archs --json";

/// Arguments of `archs`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {}

/// Prints the architecture table.
pub fn run(_args: &Arguments, app: &App) -> Result<()> {
    let entry = |a: &&bitsmith_runtime::Architecture| json!({"name": a.name, "model_types": a.model_types, "gguf": a.gguf});
    let list: Vec<_> = ARCHITECTURES.iter().map(entry).collect();
    app.output.result(&json!({ "architectures": list }), |_| {
        let mut rows = vec![["name", "model_type in config.json", "in GGUF"].map(String::from).to_vec()];
        rows.extend(ARCHITECTURES.iter().map(|a| vec![a.name.to_string(), a.model_types.join(", "), a.gguf.to_string()]));
        table(&rows, &[])
    })
}
