//! `bitsmith generate`.

use crate::app::App;
use crate::args::{Compute, Kv};
use bitsmith_formats::{Error, Result};
use bitsmith_pipeline::Opened;
use bitsmith_pipeline::text::{GenerateOptions, generate};
use bitsmith_runtime::sampler::Sampling;
use clap::Args;

const EXAMPLES: &str = "\
Examples:
  bitsmith generate model.gguf -p 'Once upon a time' -n 64
  bitsmith generate demo -p 'The lighthouse' --temp 0.8 --seed 7 --stop '.'
  bitsmith generate ./model --chat -p 'Why is the sky blue?' --temp 0.7 --top-p 0.9";

/// Arguments of `generate`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Hub id, checkpoint folder, .gguf file, or `demo`
    pub model: String,
    /// The text to continue, or with --chat what the user says
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: String,
    /// Most tokens to generate
    #[arg(short, long = "tokens", value_name = "N", default_value_t = 128)]
    pub n: usize,
    /// Temperature; 0 always takes the most likely token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temp: f32,
    /// Choose among the most likely tokens whose probabilities sum to this
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// Choose among this many of the most likely tokens
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// How keys and values of tokens already read are stored
    #[arg(long, value_enum, value_name = "TYPE", default_value_t)]
    pub kv: Kv,
    /// Stop before this text; may be given several times
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub stop: Vec<String>,
    /// How to compute matrix products [default: int8 on the CPU, f32 on devices]
    #[arg(long, value_enum, value_name = "MODE")]
    pub compute: Option<Compute>,
    /// Use the model's chat template
    #[arg(long)]
    pub chat: bool,
    /// With --chat, what the system says first
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub system: Option<String>,
}

/// Generates and prints text as it comes.
pub fn run(args: &Arguments, app: &App) -> Result<()> {
    if !(args.temp >= 0.0 && args.temp.is_finite()) {
        return Err(Error::usage("--temp must be 0 or more"));
    }
    if args.top_p.is_some_and(|p| !(p > 0.0 && p <= 1.0)) {
        return Err(Error::usage("--top-p must be above 0 and at most 1"));
    }
    if args.top_k == Some(0) {
        return Err(Error::usage("--top-k must be at least 1"));
    }
    let options = GenerateOptions {
        prompt: args.prompt.clone(),
        chat: args.chat,
        system: args.system.clone(),
        max_tokens: args.n,
        sampling: Sampling {
            temperature: args.temp,
            top_k: args.top_k,
            top_p: args.top_p,
            seed: app.context.seed,
            ..Sampling::default()
        },
        cache: args.kv.into(),
        stop: args.stop.clone(),
    };
    let compute = Compute::mode(args.compute, Compute::Int8, &app.context.device)?;
    let model = Opened::find(&args.model, &app.context)?.with_compute(compute);
    let generation =
        generate(&model, &options, &app.context, |piece| if app.output.is_json() { Ok(()) } else { app.output.text(piece) })?;
    app.output.result(&generation, |_| "\n".into())?;
    let g = &generation;
    let (first, speed) = (g.seconds_to_first_token, g.tokens_per_second);
    let times = [first.map(|s| format!("first after {s:.2} s")), speed.map(|t| format!("then {t:.1} tokens/s"))];
    let times: String = times.into_iter().flatten().map(|t| format!(", {t}")).collect();
    app.context.progress.note(&format!("{} + {} tokens{times}; stopped at: {}", g.prompt_tokens, g.tokens.len(), g.stop));
    Ok(())
}
