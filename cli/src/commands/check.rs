//! `bitsmith check`.

use super::Status;
use crate::app::App;
use crate::output::{human_bytes, table};
use bitsmith_formats::{Error, Result};
use bitsmith_pipeline::check::{Checked, check};
use bitsmith_pipeline::target::Target;
use clap::Args;

const EXAMPLES: &str = "\
Examples:
  bitsmith check org/model --to gguf:q4_k_m --to mlx:4bit
  bitsmith check org/model-GGUF --file '*Q4_K_M*'
  bitsmith check ./model

Exit codes: 0 if the model can be read and run, and written to every target named; 69 if not.";

/// Arguments of `check`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Hub id, checkpoint folder, .gguf file, or `demo`; of a model on the hub only headers are fetched
    pub model: String,
    /// Targets, as container:encoding; several, or separated by commas [default: all, none of which has to be possible]
    #[arg(long, value_name = "TARGET", value_delimiter = ',')]
    pub to: Vec<String>,
    /// Which GGUF file of a repository, as a pattern
    #[arg(long, value_name = "PATTERN")]
    pub file: Option<String>,
}

/// Prints the verdict.
pub fn run(args: &Arguments, app: &App) -> Result<Status> {
    let targets: Vec<Target> = args.to.iter().map(|t| t.trim().parse()).collect::<Result<_>>()?;
    let checked = check(&args.model, &targets, args.file.as_deref(), &app.context)?;
    app.output.result(&checked, text)?;
    if checked.ok {
        return Ok(Status::Done);
    }
    let failed: Vec<&str> = checked.targets.iter().filter(|t| !t.ok).map(|t| t.target.as_str()).collect();
    let message = match (&checked.read, &checked.run) {
        (Some(problem), _) => format!("{} cannot be read: {problem}", checked.model),
        (_, Some(problem)) => format!("{} cannot be run: {problem}", checked.model),
        _ => format!("{} cannot be written to {}", checked.model, failed.join(", ")),
    };
    Ok(Status::Found(Error::unsupported(message)))
}

fn text(c: &Checked) -> String {
    let verdict = |problem: &Option<bitsmith_pipeline::problem::Problem>| match problem {
        None => "yes".to_string(),
        Some(p) => format!("no: {p}{}", p.hint.as_ref().map_or_else(String::new, |h| format!(" ({h})"))),
    };
    let mut rows = vec![vec!["model".to_string(), c.model.clone()]];
    let mut add = |key: &str, value: Option<String>| rows.extend(value.map(|v| vec![key.to_string(), v]));
    add("container", c.container.map(String::from));
    add("architecture", c.architecture.map(String::from));
    add("weights", c.params.map(|n| n.to_string()));
    add("size", c.bytes.map(human_bytes));
    add("bits per weight", c.bpw.map(|b| format!("{b:.3}")));
    add("can be read", Some(verdict(&c.read)));
    add("can be run", Some(verdict(&c.run)));
    add("left out", (!c.dropped.is_empty()).then(|| c.dropped.join(", ")));
    add("fetched", c.downloaded_bytes.map(human_bytes));
    let mut out = table(&rows, &[]);
    if !c.targets.is_empty() {
        let mut rows = vec![["target", "size", "bpw", ""].map(String::from).to_vec()];
        rows.extend(c.targets.iter().map(|t| {
            let note = match &t.problem {
                Some(problem) => format!("no: {problem}"),
                None => t.fallbacks.join("; "),
            };
            let dash = || "–".to_string();
            vec![t.target.clone(), t.bytes.map_or_else(dash, human_bytes), t.bpw.map_or_else(dash, |b| format!("{b:.3}")), note]
        }));
        out.push_str(&format!("\n{}", table(&rows, &[1, 2])));
    }
    out
}
