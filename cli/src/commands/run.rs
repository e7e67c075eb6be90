//! `bitsmith run`.

use super::Status;
use super::job::{JobArgs, estimates, positive};
use super::recipe::Recipe;
use super::task_args::TaskArgs;
use crate::app::App;
use bitsmith_datasets::DataSpec;
use bitsmith_eval::Gate;
use bitsmith_formats::{Error, Result};
use bitsmith_pipeline::Opened;
use bitsmith_pipeline::artifact::Output;
use bitsmith_pipeline::evaluate::EvalOptions;
use bitsmith_pipeline::model::DEMO;
use bitsmith_pipeline::run::{Pipeline, RunOptions};
use clap::Args;
use serde::Deserialize;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  bitsmith run                                          the built-in demo model
  bitsmith run Qwen/Qwen2.5-0.5B --to gguf:q4_k_m,mlx:4bit --out artifacts
  bitsmith run ./model --to gguf:q4_k_m --gate 'kld.mean<0.02' --gate 'ppl_ratio<1.01'";

const DEFAULT_TARGETS: [&str; 2] = ["gguf:q4_k_m", "mlx:4bit"];
const DEFAULT_OUT: &str = "bitsmith-out";

/// Arguments of `run`.
#[derive(Debug, Default, PartialEq, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Hub id, checkpoint folder, or `demo` [default: demo]
    pub model: Option<String>,
    /// What to make, and how. Without targets: gguf:q4_k_m and mlx:4bit
    #[command(flatten)]
    pub job: JobArgs,
    /// Evaluation.
    #[command(flatten)]
    pub measure: MeasureArgs,
    /// Tasks.
    #[command(flatten)]
    pub tasks: TaskArgs,
    /// Folder for artifacts and reports [default: bitsmith-out]
    #[arg(short, long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Take flags that are not given from a TOML file that has them as keys
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// Only say what it would cost in time, memory and disk
    #[arg(long)]
    pub dry_run: bool,
    /// Measure even what was measured before
    #[arg(long)]
    pub fresh: bool,
}

/// How artifacts are measured and judged.
#[derive(Debug, Clone, Default, PartialEq, Args, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct MeasureArgs {
    /// Text to measure perplexity and KL divergence on: a dataset or files; can be given several times [default: builtin]
    #[arg(long, value_name = "DATA", help_heading = "Evaluation", visible_aliases = ["ppl", "kld"])]
    pub data: Vec<String>,
    /// How text is cut and scored: llama.cpp or paper [default: llama.cpp]
    #[arg(long, value_name = "STYLE", help_heading = "Evaluation")]
    pub style: Option<String>,
    /// Tokens per window of evaluation text [default: 512, paper: 2048]
    #[arg(long, value_name = "N", help_heading = "Evaluation")]
    pub eval_ctx: Option<usize>,
    /// Evaluate on this many windows of texts and items of each task only
    #[arg(long, value_name = "N", help_heading = "Evaluation")]
    pub limit: Option<usize>,
    /// A condition on the results, like kld.mean<0.02; can be given several times. Exit code 3 if one does not hold
    #[arg(long, value_name = "EXPR", help_heading = "Evaluation")]
    pub gate: Vec<String>,
}

impl MeasureArgs {
    /// Fills what is not given from a recipe.
    pub fn or(self, recipe: MeasureArgs) -> MeasureArgs {
        MeasureArgs {
            data: if self.data.is_empty() { recipe.data } else { self.data },
            style: self.style.or(recipe.style),
            eval_ctx: self.eval_ctx.or(recipe.eval_ctx),
            limit: self.limit.or(recipe.limit),
            gate: if self.gate.is_empty() { recipe.gate } else { self.gate },
        }
    }
}

/// The texts, each once: `--ppl` and `--kld` may well name the same.
fn data(names: &[String]) -> Result<Vec<DataSpec>> {
    let mut distinct: Vec<&str> = Vec::new();
    for name in names.iter().map(String::as_str).chain(names.is_empty().then_some("builtin")) {
        if !distinct.contains(&name) {
            distinct.push(name);
        }
    }
    distinct.into_iter().map(str::parse).collect()
}

/// The whole pipeline.
pub fn run(args: &Arguments, app: &App) -> Result<Status> {
    let recipe = Recipe::read(args.recipe.as_deref())?;
    let model = args.model.clone().or(recipe.model).unwrap_or_else(|| DEMO.to_string());
    let out = args.out.clone().or(recipe.out).unwrap_or_else(|| DEFAULT_OUT.into());
    let measure = args.measure.clone().or(recipe.measure);
    let mut job = args.job.clone().or(recipe.job);
    if job.to.is_empty() {
        job.to = DEFAULT_TARGETS.map(String::from).to_vec();
    }
    let gates = measure.gate.iter().map(|g| g.parse()).collect::<Result<Vec<Gate>>>()?;
    let tasks = args.tasks.clone().or(recipe.tasks);
    if let Some(gate) = gates.iter().find(|g| g.needs_tasks()).filter(|_| tasks.tasks.is_empty()) {
        return Err(Error::usage(format!("gate `{gate}`: no tasks are measured")).hint("name them with --tasks"));
    }
    let mut options = RunOptions {
        quantize: job.resolve(Output::Folder(out.clone().into()))?,
        data: data(&measure.data)?,
        eval: EvalOptions {
            style: measure.style.as_deref().map(str::parse).transpose()?.unwrap_or_default(),
            ctx: measure.eval_ctx.map(|n| positive("--eval-ctx", Some(n), n)).transpose()?,
            limit: measure.limit.map(|n| positive("--limit", Some(n), n)).transpose()?,
        },
        gates,
        reports: out,
        fresh: args.fresh,
    };
    let tasks = tasks.prepare(options.eval.limit, &app.context)?;
    let mut model = Opened::find(&model, &app.context)?;
    job.describe(&mut model);
    if let Output::Folder(folder) = &options.quantize.out {
        // Beside the files that it is about.
        options.reports = folder.gguf_dir(&model.about.name);
    }
    let pipeline = Pipeline::new(&model, &options, &app.context)?.with_tasks(tasks);
    if args.dry_run {
        let (document, text) = estimates(&pipeline.estimates()?);
        return app.output.result(&document, |_| text).map(|()| Status::Done);
    }
    let outcome = pipeline.run()?;
    app.output.result(&outcome, |o| format!("{}\nreport: {}\n", o.table.trim_end(), o.report.html.display()))?;
    if outcome.gates_held() {
        return Ok(Status::Done);
    }
    let failed = outcome.gates.iter().filter(|(_, g)| !g.held);
    Ok(Status::GatesFailed(failed.map(|(target, g)| format!("{target}: {} is {}", g.gate, measured(g.value))).collect()))
}

/// A gate's value, for people.
pub fn measured(value: Option<f64>) -> String {
    value.map_or_else(|| "not measured".into(), |v| format!("not met by {v}"))
}
