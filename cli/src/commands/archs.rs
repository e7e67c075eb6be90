//! `bitsmith archs`.

use crate::app::App;
use crate::output::table;
use bitsmith_formats::Result;
use bitsmith_runtime::arch::vision::{WRAPPERS, Wrapper};
use bitsmith_runtime::{ARCHITECTURES, Architecture};
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
    let proof = |a: &Architecture| a.proof.iter().map(|c| c.name()).collect::<Vec<_>>();
    let entry = |a: &&Architecture| json!({"name": a.name, "model_types": a.model_types, "gguf": a.gguf, "proof": proof(a)});
    let list: Vec<_> = ARCHITECTURES.iter().map(entry).collect();
    let wrapper = |w: &&Wrapper| json!({"name": w.name, "model_types": w.model_types, "projector": w.projector});
    let wrappers: Vec<_> = WRAPPERS.iter().map(wrapper).collect();
    app.output.result(&json!({ "architectures": list, "vision": wrappers }), |_| {
        let mut rows = vec![["name", "model_type in config.json", "in GGUF", "compared with"].map(String::from).to_vec()];
        let row = |a: &&Architecture| vec![a.name.into(), a.model_types.join(", "), a.gguf.into(), proof(a).join(", ")];
        rows.extend(ARCHITECTURES.iter().map(row));
        let mut seeing =
            vec![["with a vision tower", "model_type in config.json", "projector in GGUF"].map(String::from).to_vec()];
        seeing.extend(WRAPPERS.iter().map(|w| vec![w.name.into(), w.model_types.join(", "), w.projector.into()]));
        format!("{}\n{}", table(&rows, &[]), table(&seeing, &[]))
    })
}
