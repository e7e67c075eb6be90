//! `bitsmith logits`.

use crate::app::App;
use crate::args::Compute;
use bitsmith_formats::Result;
use bitsmith_pipeline::Opened;
use bitsmith_pipeline::text::{Sequences, logits};
use clap::Args;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  bitsmith tokenize ./model -p 'Hello' --json > tokens.json
  bitsmith logits ./model --tokens tokens.json --top 5 --json";

/// Arguments of `logits`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Hub id, checkpoint folder, .gguf file, or `demo`
    pub model: String,
    /// Token ids, as `bitsmith tokenize --json` writes them: {"sequences":[[id,…],…]}
    #[arg(long, value_name = "FILE")]
    pub tokens: PathBuf,
    /// How many of the most likely next tokens to give
    #[arg(long, value_name = "K", default_value_t = 10)]
    pub top: usize,
    /// How to compute matrix products [default: f32]
    #[arg(long, value_enum, value_name = "MODE")]
    pub compute: Option<Compute>,
}

/// Prints distributions.
pub fn run(args: &Arguments, app: &App) -> Result<()> {
    let sequences = Sequences::read(&args.tokens)?;
    let compute = Compute::mode(args.compute, Compute::F32, &app.context.device)?;
    let model = Opened::find(&args.model, &app.context)?.with_compute(compute);
    let result = logits(&model, &sequences, args.top, &app.context)?;
    app.output.result(&result, |r| {
        let mut text = String::new();
        for (s, positions) in r.sequences.iter().enumerate() {
            for next in positions {
                let top: Vec<String> = next.top.iter().map(|(id, logprob)| format!("{id}:{logprob:.4}")).collect();
                text.push_str(&format!("{s} {} {}\n", next.position, top.join(" ")));
            }
        }
        text
    })
}
