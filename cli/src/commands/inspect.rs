//! `bitsmith inspect`.

use crate::app::App;
use crate::output::{human_bytes, table};
use bitsmith_formats::Result;
use bitsmith_pipeline::inspect::{Inspection, inspect};
use bitsmith_pipeline::model::resolve;
use clap::Args;

const EXAMPLES: &str = "\
Examples:
  bitsmith inspect model.gguf
  bitsmith inspect ./model --tensors --metadata";

/// Arguments of `inspect`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Hub id, checkpoint folder, .gguf file, or `demo`
    pub model: String,
    /// List every tensor; JSON always has them
    #[arg(long)]
    pub tensors: bool,
    /// Print the metadata; JSON always has it, and with this flag also long arrays (vocabularies) in full
    #[arg(long)]
    pub metadata: bool,
}

/// Prints the description.
pub fn run(args: &Arguments, app: &App) -> Result<()> {
    let inspection = inspect(&resolve(&args.model, &app.context)?, args.metadata && app.output.is_json())?;
    app.output.result(&inspection, |i| text(i, args))
}

fn text(i: &Inspection, args: &Arguments) -> String {
    let mut architecture = i.architecture.clone().unwrap_or_else(|| "unknown".into());
    if !i.supported {
        architecture.push_str(" (not supported)");
    }
    let bits = |bpw: Option<f64>| bpw.map_or_else(|| "–".to_string(), |b| format!("{b:.3}"));
    let pair = |key: &str, value: String| vec![key.to_string(), value];
    let mut text = table(
        &[
            pair("model", i.model.clone()),
            pair("container", i.container.to_string()),
            pair("architecture", architecture),
            pair("weights", i.params.to_string()),
            pair("size", human_bytes(i.bytes)),
            pair("bits per weight", bits(i.bpw)),
            pair("in linear layers", bits(i.bpw_linear)),
        ],
        &[],
    );
    let mut rows = vec![["codec", "tensors", "weights", "size"].map(String::from).to_vec()];
    rows.extend(
        i.by_codec()
            .into_iter()
            .map(|(codec, n, params, bytes)| vec![codec, n.to_string(), params.to_string(), human_bytes(bytes)]),
    );
    text.push_str(&format!("\n{}", table(&rows, &[1, 2, 3])));
    if args.tensors {
        let mut rows = vec![["tensor", "role", "shape", "codec", "bytes"].map(String::from).to_vec()];
        rows.extend(i.tensors.iter().map(|t| {
            let shape = t.shape.iter().map(usize::to_string).collect::<Vec<_>>().join("×");
            vec![t.name.clone(), t.role.clone().unwrap_or_else(|| "–".into()), shape, t.codec.clone(), t.bytes.to_string()]
        }));
        text.push_str(&format!("\n{}", table(&rows, &[4])));
    }
    if args.metadata {
        text.push('\n');
        match i.metadata.as_object() {
            Some(map) => map.iter().for_each(|(key, value)| text.push_str(&format!("{key} = {value}\n"))),
            None => text.push_str("no metadata\n"),
        }
    }
    text
}
