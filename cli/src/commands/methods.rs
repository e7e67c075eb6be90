//! `bitsmith methods`.

use crate::app::App;
use crate::output::table;
use bitsmith_formats::Result;
use bitsmith_quantize::Method;
use bitsmith_quantize::solver::SOLVERS;
use bitsmith_quantize::transform::TRANSFORMS;
use clap::Args;
use serde_json::json;

const EXAMPLES: &str = "\
Example:
  bitsmith methods

A method is any number of transforms and one solver, joined by `+`: awq+qep+gptq.";

/// Arguments of `methods`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {}

/// Prints transforms and solvers.
pub fn run(_args: &Arguments, app: &App) -> Result<()> {
    let transforms: Vec<_> = TRANSFORMS.iter().map(|t| ("transform", t.name(), t.about())).collect();
    let roles: Vec<Vec<&str>> = TRANSFORMS.iter().map(|t| t.parts().iter().map(|p| p.name()).collect()).collect();
    let solvers: Vec<_> = SOLVERS.iter().map(|s| ("solver", s.name(), s.about())).collect();
    let list = |entries: &[(&str, &str, &str)]| {
        entries.iter().map(|(_, name, about)| json!({"name": name, "about": about})).collect::<Vec<_>>()
    };
    let mut document = json!({"transforms": list(&transforms), "solvers": list(&solvers), "best": Method::BEST});
    for (entry, roles) in document["transforms"].as_array_mut().into_iter().flatten().zip(&roles) {
        entry["roles"] = json!(roles);
    }
    app.output.result(&document, |_| {
        let rows: Vec<_> = transforms.iter().chain(&solvers).map(|e| [e.0, e.1, e.2].map(String::from).to_vec()).collect();
        let touched = transforms.iter().zip(&roles).map(|(t, roles)| format!("{} changes {}.\n", t.1, roles.join(", ")));
        format!("{}\n{}\n`best` is {}.\n", table(&rows, &[]), touched.collect::<String>(), Method::BEST)
    })
}
