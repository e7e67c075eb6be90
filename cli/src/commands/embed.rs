//! `bitsmith embed`.

use crate::app::App;
use bitsmith_formats::Result;
use bitsmith_pipeline::Opened;
use bitsmith_pipeline::text::{Sequences, embed};
use clap::Args;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  bitsmith tokenize ./encoder -p 'Hello' --json > tokens.json
  bitsmith embed ./encoder --tokens tokens.json --json";

/// Arguments of `embed`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Hub id, checkpoint folder, .gguf file, or `demo`
    pub model: String,
    /// Token ids, as `bitsmith tokenize --json` writes them: {"sequences":[[id,…],…]}
    #[arg(long, value_name = "FILE")]
    pub tokens: PathBuf,
}

/// Prints hidden states and embeddings.
pub fn run(args: &Arguments, app: &App) -> Result<()> {
    let sequences = Sequences::read(&args.tokens)?;
    let model = Opened::find(&args.model, &app.context)?;
    let result = embed(&model, &sequences, &app.context)?;
    app.output.result(&result, |r| {
        let row = |values: &[f32]| values.iter().map(|v| format!("{v:.5}")).collect::<Vec<_>>().join(" ");
        let mut text = String::new();
        for (s, one) in r.sequences.iter().enumerate() {
            match &one.embedding {
                Some(embedding) => text.push_str(&format!("{s} {}\n", row(embedding))),
                None => one.states.iter().enumerate().for_each(|(i, state)| text.push_str(&format!("{s} {i} {}\n", row(state)))),
            }
        }
        text
    })
}
