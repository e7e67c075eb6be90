//! `bitsmith targets`.

use crate::app::App;
use crate::output::table;
use bitsmith_formats::{Float, Result};
use bitsmith_pipeline::Target;
use bitsmith_pipeline::target::TYPICAL_ROW;
use clap::Args;
use serde::Serialize;
use serde_json::json;

const EXAMPLES: &str = "\
Example:
  bitsmith targets --json";

/// Arguments of `targets`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {}

#[derive(Serialize)]
struct Entry {
    target: String,
    container: &'static str,
    encoding: String,
    codec: String,
    bpw: f64,
}

/// Prints every target. Mixes have more bits per weight than their base format, by an amount that depends on the model.
pub fn run(_args: &Arguments, app: &App) -> Result<()> {
    let entry = |t: Target| {
        let base = t.base(Float::BF16, TYPICAL_ROW);
        let (codec, bpw) = (base.to_string(), base.bits_per_weight());
        Entry { target: t.to_string(), container: t.container(), encoding: t.encoding(), codec, bpw }
    };
    let entries: Vec<Entry> = Target::all().into_iter().map(entry).collect();
    app.output.result(&json!({ "targets": entries }), |_| {
        let mut rows = vec![["target", "base format", "its bits per weight"].map(String::from).to_vec()];
        rows.extend(entries.iter().map(|e| vec![e.target.clone(), e.codec.clone(), format!("{:.4}", e.bpw)]));
        table(&rows, &[2])
    })
}
