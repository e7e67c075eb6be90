//! `bitsmith convert`.

use super::job::{JobArgs, make, repack};
use crate::app::App;
use bitsmith_formats::Result;
use bitsmith_pipeline::Opened;
use bitsmith_pipeline::artifact::Output;
use bitsmith_pipeline::repack::KEEP;
use clap::Args;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  bitsmith convert ./model --to gguf:bf16 -o model-bf16.gguf
  bitsmith convert ./model --to mlx:bf16 -o model-mlx --shard-size 5GB
  bitsmith convert model.gguf --to hf:bf16 -o model-hf
  bitsmith convert model.gguf --to gguf:keep -o model-parts.gguf --shard-size 2GB
  bitsmith convert model-parts-00001-of-00003.gguf --to gguf:keep -o merged.gguf";

/// Arguments of `convert`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Hub id, checkpoint folder, .gguf file, or `demo`
    pub model: String,
    /// Target, as container:encoding; several separated by commas. Quantized ones get the format's own encoder. `gguf:keep`, alone,
    /// copies a GGUF with every tensor as it is, to merge or split it
    #[arg(long, value_name = "TARGET", value_delimiter = ',', required = true)]
    pub to: Vec<String>,
    /// Where to: the artifact's name, or a folder for several targets
    #[arg(short, long, value_name = "PATH")]
    pub out: PathBuf,
    /// Split the weights into files of at most this size, for example 5GB
    #[arg(long, value_name = "SIZE")]
    pub shard_size: Option<String>,
    /// Only say what it would cost in time, memory and disk
    #[arg(long)]
    pub dry_run: bool,
}

/// Writes the model anew.
pub fn run(args: &Arguments, app: &App) -> Result<()> {
    if args.to == [KEEP] {
        return repack(&args.model, &args.out, args.shard_size.as_deref(), args.dry_run, app);
    }
    let job = JobArgs {
        to: args.to.clone(),
        method: Some("reference".into()),
        shard_size: args.shard_size.clone(),
        ..JobArgs::default()
    };
    let options = job.resolve(Output::from_argument(&args.out, &job.targets()?))?;
    let model = Opened::find(&args.model, &app.context)?;
    make(&model, &options, args.dry_run, app)
}
