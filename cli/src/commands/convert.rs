//! `bitsmith convert`.

use super::job::{JobArgs, make, repack};
use crate::app::App;
use bitsmith_formats::{Container, Result};
use bitsmith_pipeline::artifact::Output;
use bitsmith_pipeline::model::resolve;
use bitsmith_pipeline::{Opened, keep};
use clap::Args;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  bitsmith convert ./model --to gguf:bf16 -o model-bf16.gguf
  bitsmith convert ./model --to mlx:bf16 -o model-mlx --shard-size 5GB
  bitsmith convert ./model-awq --to mlx:keep -o model-mlx
  bitsmith convert model.gguf --to hf:bf16 -o model-hf
  bitsmith convert model.gguf --to gguf:keep -o model-parts.gguf --shard-size 2GB
  bitsmith convert model-parts-00001-of-00003.gguf --to gguf:keep -o merged.gguf";

/// Arguments of `convert`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Hub id, checkpoint folder, .gguf file, or `demo`
    pub model: String,
    /// Target, as container:encoding; several separated by commas. Quantized ones get the format's own encoder. `gguf:keep`,
    /// `mlx:keep` and the like, alone, keep every tensor as it is: quantized ones in the formats that have their grids, and a GGUF
    /// as a GGUF byte for byte, to merge or split it
    #[arg(long, value_name = "TARGET", value_delimiter = ',', required = true)]
    pub to: Vec<String>,
    /// Where to: the artifact's name, or a folder for several targets
    #[arg(short, long, value_name = "PATH")]
    pub out: PathBuf,
    /// Split the weights into files of at most this size, for example 5GB
    #[arg(long, value_name = "SIZE")]
    pub shard_size: Option<String>,
    /// Names of GGUF files in a folder: hub (MODEL-BF16.gguf) or spec (GGUF's convention, MODEL-7B-v1.0-BF16.gguf) [default: hub]
    #[arg(long, value_name = "hub|spec")]
    pub naming: Option<String>,
    /// Quantize weights a second time that are quantized already; otherwise they must have a place in the target's grid
    #[arg(long)]
    pub allow_requantize: bool,
    /// Layers for multi-token prediction: keep them after the others, split them off into a file of their own, or drop them [default:
    /// keep, and drop in MLX folders, which have no place for them]
    #[arg(long, value_name = "keep|split|drop")]
    pub mtp: Option<String>,
    /// Only say what it would cost in time, memory and disk
    #[arg(long)]
    pub dry_run: bool,
}

/// Writes the model anew.
pub fn run(args: &Arguments, app: &App) -> Result<()> {
    if let [target] = &args.to[..]
        && let Some(container) = keep::container(target)
    {
        return keep(args, container, app);
    }
    let job = JobArgs {
        to: args.to.clone(),
        method: Some("reference".into()),
        shard_size: args.shard_size.clone(),
        allow_requantize: args.allow_requantize,
        mtp: args.mtp.clone(),
        naming: args.naming.clone(),
        ..JobArgs::default()
    };
    let options = job.resolve(Output::from_argument(&args.out, &job.targets()?))?;
    let model = Opened::find(&args.model, &app.context)?;
    make(&model, &options, false, args.dry_run, app)
}

/// Writes the model with every tensor as it is: a GGUF as a copy of its bytes, others in formats that have the same grids.
fn keep(args: &Arguments, container: &str, app: &App) -> Result<()> {
    let located = resolve(&args.model, &app.context)?;
    if container == "gguf" && Container::detect(&located.path)? == Container::Gguf {
        return repack(&located.path, &args.out, args.shard_size.as_deref(), args.dry_run, app);
    }
    let model = Opened::open(located)?;
    let kept = keep::find(&model, container)?;
    let job = JobArgs {
        to: vec![kept.target.to_string()],
        method: Some("reference".into()),
        shard_size: args.shard_size.clone(),
        allow_requantize: args.allow_requantize,
        mtp: args.mtp.clone(),
        naming: args.naming.clone(),
        ..JobArgs::default()
    };
    let mut options = job.resolve(Output::from_argument(&args.out, &[kept.target]))?;
    options.plan.overrides = kept.formats;
    options.mlx_dtype = kept.mlx_dtype;
    make(&model, &options, false, args.dry_run, app)
}
