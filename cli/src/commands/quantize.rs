//! `bitsmith quantize`.

use super::job::{JobArgs, make};
use super::recipe::Recipe;
use super::run::MeasureArgs;
use crate::app::App;
use bitsmith_formats::{Error, Result};
use bitsmith_pipeline::Opened;
use bitsmith_pipeline::artifact::Output;
use clap::Args;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  bitsmith quantize ./model --to gguf:q4_k_m -o model-q4_k_m.gguf
  bitsmith quantize ./model --to gguf:q4_k_m,mlx:4bit --method awq+gptq --calib notes.txt -o out/
  bitsmith quantize ./model --to gguf:q4_k_m,gguf:q8_0 -o release/ --release --license apache-2.0
  bitsmith quantize ./model --to gguf:q4_k_m --tensor-type attn_v=q8_0 -o model.gguf --dry-run";

/// Arguments of `quantize`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Hub id, checkpoint folder, or `demo`
    #[arg(required_unless_present = "recipe")]
    pub model: Option<String>,
    /// What to make, and how.
    #[command(flatten)]
    pub job: JobArgs,
    /// Where to: the artifact's name, or a folder for several targets
    #[arg(short, long, value_name = "PATH", required_unless_present = "recipe")]
    pub out: Option<PathBuf>,
    /// Write what a release needs beside the artifacts: card, licences, Modelfile, importance matrix, provenance, checksums
    #[arg(long, help_heading = "Release")]
    pub release: bool,
    /// Take flags that are not given from a TOML file that has them as keys
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// Only say what it would cost in time, memory and disk
    #[arg(long)]
    pub dry_run: bool,
}

/// Makes the artifacts.
pub fn run(args: &Arguments, app: &App) -> Result<()> {
    let recipe = Recipe::read(args.recipe.as_deref())?;
    if recipe.measure != MeasureArgs::default() {
        return Err(Error::usage("the recipe says how to evaluate, which `quantize` does not do")
            .file(args.recipe.as_deref().unwrap_or(Path::new("")))
            .hint("use `bitsmith run`"));
    }
    let model =
        args.model.clone().or(recipe.model).ok_or_else(|| Error::usage("no model is given").hint("bitsmith quantize MODEL"))?;
    let out = args.out.as_ref().or(recipe.out.as_ref()).ok_or_else(|| Error::usage("no output is given").hint("-o PATH"))?;
    let job = args.job.clone().or(recipe.job);
    if job.to.is_empty() {
        return Err(Error::usage("no target is given").hint("for example --to gguf:q4_k_m; `bitsmith targets` lists them"));
    }
    let options = job.resolve(Output::from_argument(out, &job.targets()?))?;
    let mut model = Opened::find(&model, &app.context)?;
    job.describe(&mut model);
    make(&model, &options, args.release, args.dry_run, app)
}
