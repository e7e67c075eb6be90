//! `bitsmith tokenize`.

use crate::app::App;
use bitsmith_formats::{Error, Result};
use bitsmith_pipeline::text::tokenize;
use clap::Args;
use std::io::Read;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  bitsmith tokenize ./model -p 'Hello, world'
  bitsmith tokenize model.gguf --file prompts.txt --lines --json > tokens.json";

/// Arguments of `tokenize`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Hub id, checkpoint folder, .gguf file, or `demo`
    pub model: String,
    /// Text in a file; `-` is standard input
    #[arg(long, value_name = "FILE", required_unless_present = "prompt", conflicts_with = "prompt")]
    pub file: Option<PathBuf>,
    /// Text on the command line
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// One sequence per line that is not empty
    #[arg(long)]
    pub lines: bool,
    /// Add the special tokens that the model expects around every text
    #[arg(long)]
    pub special: bool,
}

/// Prints token ids.
pub fn run(args: &Arguments, app: &App) -> Result<()> {
    let text = match (&args.file, &args.prompt) {
        (Some(path), _) => read(path)?,
        (None, prompt) => prompt.clone().unwrap_or_default(),
    };
    let texts: Vec<&str> = if args.lines { text.split('\n').filter(|l| !l.is_empty()).collect() } else { vec![&text] };
    let sequences = tokenize(&args.model, &texts, args.special, &app.context)?;
    app.output.result(&sequences, |s| {
        let line = |ids: &Vec<u32>| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ") + "\n";
        s.sequences.iter().map(line).collect()
    })
}

fn read(path: &Path) -> Result<String> {
    let bytes = if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(path)
    };
    let bytes = bytes.map_err(|e| Error::read(path, e))?;
    String::from_utf8(bytes).map_err(|e| {
        Error::corrupt(format!("not UTF-8 at byte {}", e.utf8_error().valid_up_to())).file(path).hint("convert the text to UTF-8")
    })
}
