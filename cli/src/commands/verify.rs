//! `bitsmith verify`.

use super::Status;
use crate::app::App;
use crate::output::table;
use bitsmith_formats::{Error, Result};
use bitsmith_pipeline::model::resolve;
use bitsmith_pipeline::opened::Opened;
use bitsmith_pipeline::verify::{Verified, verify};
use clap::Args;

const EXAMPLES: &str = "\
Examples:
  bitsmith verify model-Q4_K_M.gguf
  bitsmith verify ./model-4bit --source org/model
  bitsmith verify model-Q8_0.gguf --source ./model --max-error 0.01

Exit codes: 0 if the artifact is sound, 65 if anything is wrong with it.";

/// Tensors that are listed for people.
const SHOWN: usize = 20;

/// Arguments of `verify`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// GGUF file, MLX folder, or any other checkpoint
    pub artifact: String,
    /// The dense model that it was made of: measure every tensor's error
    #[arg(long, value_name = "MODEL")]
    pub source: Option<String>,
    /// Largest root mean square of a tensor's error, relative to its weights' [default: by the bits of each tensor's format]
    #[arg(long, value_name = "X", requires = "source")]
    pub max_error: Option<f64>,
}

/// Prints what was verified.
pub fn run(args: &Arguments, app: &App) -> Result<Status> {
    if let Some(bad) = args.max_error.filter(|e| !e.is_finite() || *e < 0.0) {
        return Err(Error::usage(format!("--max-error {bad} is no error bound")));
    }
    let artifact = resolve(&args.artifact, &app.context)?;
    let source = args.source.as_ref().map(|s| Opened::find(s, &app.context)).transpose()?;
    let source = source.as_ref().map(|s| (&s.checkpoint, s.name.as_str()));
    let verified = verify(&artifact.path, source, args.max_error)?;
    app.output.result(&verified, text)?;
    match verified.problems.as_slice() {
        [] => Ok(Status::Done),
        [first, rest @ ..] => {
            let more = if rest.is_empty() { String::new() } else { format!(", and {} more problems", rest.len()) };
            Ok(Status::Found(Error::corrupt(format!("{first}{more}"))))
        }
    }
}

fn text(v: &Verified) -> String {
    let mut out = String::new();
    if v.source.is_some() {
        let mut rows = vec![["tensor", "codec", "relative error", "limit"].map(String::from).to_vec()];
        let number = |x: Option<f64>| x.map_or_else(|| "–".to_string(), |x| format!("{x:.5}"));
        rows.extend(
            v.tensors.iter().take(SHOWN).map(|t| vec![t.name.clone(), t.codec.clone(), number(t.rel_rmse), number(t.limit)]),
        );
        out.push_str(&table(&rows, &[2, 3]));
        if v.tensors.len() > SHOWN {
            out.push_str(&format!("and {} more tensors; --json lists all\n", v.tensors.len() - SHOWN));
        }
        out.push('\n');
    }
    for problem in &v.problems {
        out.push_str(&format!("wrong: {problem}\n"));
    }
    let decoded = v.tensors.iter().filter(|t| t.decoded).count();
    let sums = if v.checksums.is_empty() {
        "no checksums to compare with".to_string()
    } else {
        format!("checksums: {}", v.checksums.join(", "))
    };
    let verdict = if v.ok { "sound" } else { "not sound" };
    out.push_str(&format!("{}: {verdict}; {decoded} of {} tensors decoded; {sums}\n", v.artifact.display(), v.tensors.len()));
    out
}
