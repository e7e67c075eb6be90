//! `bitsmith doctor`.

use super::Status;
use crate::app::App;
use bitsmith_formats::{Error, Result};
use bitsmith_pipeline::Opened;
use bitsmith_pipeline::doctor::{Diagnosis, DoctorOptions, Severity, doctor};
use bitsmith_pipeline::model::resolve;
use clap::Args;

const EXAMPLES: &str = "\
Examples:
  bitsmith doctor model-Q4_K_M.gguf
  bitsmith doctor their-Q4_K_M.gguf --source org/model --fix
  bitsmith doctor ./model-4bit --fix

Exit codes: 0 if nothing is wrong, or nothing any more; 65 if a fault is left.";

/// Arguments of `doctor`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// GGUF file (the first of a set), or checkpoint folder
    pub artifact: String,
    /// The model that it was made of, from which missing metadata are taken
    #[arg(long, value_name = "MODEL")]
    pub source: Option<String>,
    /// The value of `tokenizer.ggml.pre`, where it is missing or wrong
    #[arg(long, value_name = "NAME")]
    pub pre: Option<String>,
    /// Mend what metadata are at fault; tensors are not touched
    #[arg(long)]
    pub fix: bool,
    /// Do not look at the tensors' values, which takes the most time
    #[arg(long)]
    pub headers_only: bool,
}

/// Prints what is wrong.
pub fn run(args: &Arguments, app: &App) -> Result<Status> {
    let artifact = resolve(&args.artifact, &app.context)?;
    let source = args.source.as_ref().map(|s| Opened::find(s, &app.context)).transpose()?;
    if let Some(pre) = &args.pre {
        bitsmith_runtime::tokenizer::pre::by_name(pre)?;
    }
    let options =
        DoctorOptions { source: source.as_ref(), pre: args.pre.clone(), fix: args.fix, headers_only: args.headers_only };
    let diagnosis = doctor(&artifact.path, &options)?;
    app.output.result(&diagnosis, text)?;
    match diagnosis.findings.iter().filter(|f| !f.fixed).count() {
        0 => Ok(Status::Done),
        n => Ok(Status::Found(Error::corrupt(format!("{n} faults")).file(artifact.path))),
    }
}

fn text(d: &Diagnosis) -> String {
    let mut out = String::new();
    for f in &d.findings {
        let severity = if f.severity == Severity::Error { "error" } else { "warning" };
        let tensor = f.tensor.as_ref().map_or(String::new(), |t| format!(" tensor `{t}`:"));
        out.push_str(&format!("{severity}: {}:{tensor} {}\n", f.file.display(), f.message));
        match (&f.remedy, f.fixed) {
            (Some(remedy), true) => out.push_str(&format!("  mended: {remedy}\n")),
            (Some(remedy), false) => out.push_str(&format!("  --fix {remedy}\n")),
            (None, _) => {}
        }
    }
    if d.findings.is_empty() {
        out.push_str(&format!("{}: nothing is wrong\n", d.artifact.display()));
    }
    out
}
