//! `bitsmith eval`.

use super::Status;
use super::job::{costs, positive};
use super::task_args::{TaskArgs, failed_gates, task_table};
use crate::app::App;
use crate::args::{Compute, Kv};
use crate::output::table;
use bitsmith_datasets::DataSpec;
use bitsmith_eval::{EvalResult, Gate, Measured};
use bitsmith_formats::atomic::write_file;
use bitsmith_formats::{Error, Result};
use bitsmith_pipeline::Opened;
use bitsmith_pipeline::evaluate::{Against, EvalOptions, cost, evaluate};
use bitsmith_pipeline::remember::Memory;
use bitsmith_runtime::CacheType;
use clap::Args;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  bitsmith eval model-q4_k_m.gguf --ppl wiki.test.raw
  bitsmith eval model-q4_k_m.gguf --kld builtin --against ./model --json
  bitsmith eval ./model --kld builtin --against ./model --kv q8_0
  bitsmith eval model-q4_k_m.gguf --tasks hellaswag,arc_easy --against ./model --gate 'tasks.hellaswag.delta>-0.005'
  bitsmith eval q8.gguf --kld wiki.txt --against ./model --save-reference wiki.bsref
  bitsmith eval q4.gguf --kld wiki.txt --against wiki.bsref -o q4.json";

/// Arguments of `eval`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Hub id, checkpoint folder, .gguf file, or `demo`
    pub model: String,
    /// Measure perplexity on this text; can be given several times
    #[arg(long, value_name = "DATA", required_unless_present_any = ["kld", "tasks"])]
    pub ppl: Vec<String>,
    /// Measure KL divergence from another model on this text; can be given several times
    #[arg(long, value_name = "DATA", requires = "against")]
    pub kld: Vec<String>,
    /// The model that --kld and --tasks compare with; for --kld also a file of --save-reference
    #[arg(long, value_name = "MODEL|FILE")]
    pub against: Option<String>,
    /// Keep the predictions of --against in this file, for later comparisons without that model: the likeliest tokens and the mass of
    /// the rest, at least 20 times less than 16-bit logits
    #[arg(long, value_name = "FILE", requires = "kld")]
    pub save_reference: Option<PathBuf>,
    /// Tokens per window [default: 512, paper: 2048]
    #[arg(long, value_name = "N")]
    pub ctx: Option<usize>,
    /// How text is cut and scored: llama.cpp or paper
    #[arg(long, value_name = "STYLE", default_value = "llama.cpp")]
    pub style: String,
    /// Use this many windows of texts and items of each task only
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Tasks.
    #[command(flatten)]
    pub tasks: TaskArgs,
    /// A condition on the results, like tasks.hellaswag.delta>-0.005; can be given several times. Exit code 3 if one does not hold
    #[arg(long, value_name = "EXPR")]
    pub gate: Vec<String>,
    /// How to compute the model's matrix products; --against is always computed in f32 [default: f32]
    #[arg(long, value_enum, value_name = "MODE")]
    pub compute: Option<Compute>,
    /// Round the model's keys and values as a cache of this type stores them; --against keeps its own exact
    #[arg(long, value_enum, value_name = "TYPE", default_value_t)]
    pub kv: Kv,
    /// Measure even what was measured before
    #[arg(long)]
    pub fresh: bool,
    /// Write the results as JSON to this file too
    #[arg(short, long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Only say what it would cost in time and memory
    #[arg(long)]
    pub dry_run: bool,
}

/// Measures the model.
pub fn run(args: &Arguments, app: &App) -> Result<Status> {
    let specs = |list: &[String]| list.iter().map(|d| d.parse()).collect::<Result<Vec<DataSpec>>>();
    let (ppl, kld) = (specs(&args.ppl)?, specs(&args.kld)?);
    let options = EvalOptions {
        style: args.style.parse()?,
        ctx: args.ctx.map(|n| positive("--ctx", Some(n), n)).transpose()?,
        limit: args.limit.map(|n| positive("--limit", Some(n), n)).transpose()?,
    };
    let gates = args.gate.iter().map(|g| g.parse()).collect::<Result<Vec<Gate>>>()?;
    if args.against.is_some() && kld.is_empty() && args.tasks.tasks.is_empty() {
        return Err(Error::usage("--against has nothing to compare").hint("give --kld or --tasks too"));
    }
    let tasks = args.tasks.prepare(options.limit, &app.context)?;
    let compute = Compute::mode(args.compute, Compute::F32, &app.context.device)?;
    let model = Opened::find(&args.model, &app.context)?.with_compute(compute).with_cache(args.kv.into())?;
    let against = args.against.as_deref().map(|m| Against::find(m, &app.context)).transpose()?;
    // Tasks need answers, which a file of predictions does not have.
    let rival = match (&against, &tasks) {
        (Some(Against::Stored(path)), Some(_)) => {
            return Err(Error::usage("--tasks compares with a model, not with stored predictions")
                .file(path)
                .hint("name the model with --against, or leave --tasks out"));
        }
        (Some(Against::Model(rival)), Some(_)) => Some(rival.as_ref()),
        _ => None,
    };
    if args.dry_run {
        let data: Vec<&DataSpec> = ppl.iter().chain(&kld).collect();
        let models = 1 + against.as_ref().filter(|_| !kld.is_empty()).map_or(0, Against::models);
        let mut all = cost(&model, &data, models, &options, &app.context)?;
        if let Some(tasks) = &tasks {
            for model in rival.into_iter().chain([&model]) {
                all = all.then(tasks.cost(model, &app.context)?);
            }
        }
        return costs(&all, app).map(|()| Status::Done);
    }
    let memory = if args.fresh { Memory::none() } else { Memory::open(&app.context) };
    let save = args.save_reference.as_deref();
    let mut result = evaluate(&model, &ppl, &kld, against.as_ref(), save, &options, &memory, &app.context)?;
    if let Some(tasks) = &tasks {
        let reference = rival.map(|a| tasks.answer(a, &memory, &app.context)).transpose()?;
        let answered = tasks.answer(&model, &memory, &app.context)?;
        result.tasks = answered.results(reference.as_ref());
    }
    if let Some(path) = &args.out {
        let mut json = serde_json::to_vec_pretty(&result).map_err(|e| Error::failed(e.to_string()))?;
        json.push(b'\n');
        write_file(path, &json)?;
    }
    app.output.result(&result, text)?;
    let measured = Measured { eval: Some(&result), ..Measured::default() };
    let failed = failed_gates(gates.iter().map(|g| g.judge(&measured)));
    Ok(if failed.is_empty() { Status::Done } else { Status::GatesFailed(failed) })
}

fn text(result: &EvalResult) -> String {
    let mut text = String::new();
    if !result.perplexity.is_empty() {
        let mut rows = vec![["data", "ctx", "style", "tokens", "perplexity", "±"].map(String::from).to_vec()];
        rows.extend(result.perplexity.iter().map(|p| {
            let numbers = [p.tokens.to_string(), format!("{:.4}", p.ppl), format!("{:.4}", p.stderr)];
            [p.data.clone(), p.ctx.to_string(), p.style.to_string()].into_iter().chain(numbers).collect()
        }));
        text.push_str(&table(&rows, &[1, 3, 4, 5]));
    }
    if !result.kld.is_empty() {
        let header = ["data", "against", "tokens", "mean KLD", "median", "p99", "max", "same top", "RMS Δp", "ppl ratio"];
        let mut rows = vec![header.map(String::from).to_vec()];
        rows.extend(result.kld.iter().map(|k| {
            let s = &k.summary;
            let nats = [s.mean, s.median, s.p99, s.max].map(|v| format!("{v:.6}"));
            let rest =
                [format!("{:.2} %", 100.0 * s.same_top_p), format!("{:.2} %", 100.0 * s.rms_dp), format!("{:.4}", s.ppl_ratio)];
            [k.data.clone(), k.against.clone(), s.tokens.to_string()].into_iter().chain(nats).chain(rest).collect()
        }));
        text.push_str(&table(&rows, &[2, 3, 4, 5, 6, 7, 8, 9]));
    }
    text.push_str(&task_table(&result.tasks));
    if result.kv != CacheType::F32 {
        text.push_str(&format!("keys and values rounded as a cache of type {} stores them\n", result.kv));
    }
    text
}
