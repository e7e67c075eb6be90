//! `bitsmith imatrix`.

use crate::app::App;
use crate::output::table;
use bitsmith_formats::{Error, Result};
use bitsmith_pipeline::imatrix::{DEFAULT_CHUNK_SIZE, ImatrixReport, TensorCoverage, imatrix};
use clap::Args;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  bitsmith imatrix model.imatrix.gguf
  bitsmith imatrix code.dat chat.imatrix.gguf -o both.imatrix.gguf
  bitsmith imatrix model.imatrix.gguf -o model.dat";

/// Arguments of `imatrix`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Importance matrices in llama.cpp's layouts; several are added up
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Write the sum here, in the layout that the extension names: .gguf or .dat
    #[arg(short, long, value_name = "OUT")]
    pub out: Option<PathBuf>,
    /// Tokens that one call of a .dat file stands for, which the file does not say
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CHUNK_SIZE, value_parser = clap::value_parser!(u32).range(1..))]
    pub chunk_size: u32,
}

/// Prints the coverage, and writes the sum.
pub fn run(args: &Arguments, app: &App) -> Result<()> {
    if let Some(same) = args.out.as_ref().filter(|out| args.files.iter().any(|f| same_file(f, out))) {
        return Err(Error::usage("this file is read: choose another output").file(same));
    }
    app.output.result(&imatrix(&args.files, args.out.as_deref(), args.chunk_size)?, text)
}

fn same_file(a: &std::path::Path, b: &std::path::Path) -> bool {
    a == b || a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b))
}

fn text(report: &ImatrixReport) -> String {
    let c = &report.coverage;
    let texts = if c.datasets.is_empty() { "unknown text".to_string() } else { c.datasets.join(", ") };
    let mut out = format!("{} windows of {} tokens: {texts}\n\n", c.chunk_count, c.chunk_size);
    let mut rows = vec![["tensor", "channels", "tokens", "dead", "min", "median", "max", "experts"].map(String::from).to_vec()];
    rows.extend(c.tensors.iter().map(|t| {
        let number = |v: f64| format!("{v:.3e}");
        vec![
            t.name.clone(),
            t.channels.to_string(),
            t.tokens.to_string(),
            format!("{:.1} %", t.dead_percent),
            number(t.min),
            number(t.median),
            number(t.max),
            experts(t),
        ]
    }));
    out.push_str(&table(&rows, &[1, 2, 3, 4, 5, 6]));
    if let Some(path) = &report.out {
        out.push_str(&format!("\n{}\n", path.display()));
    }
    out
}

fn experts(t: &TensorCoverage) -> String {
    match (t.experts, t.experts_never.len(), t.experts_seldom.len()) {
        (1, 0, _) => "–".into(),
        (n, 0, 0) => n.to_string(),
        (n, never, seldom) => format!("{n}, {never} never and {seldom} seldom used"),
    }
}
