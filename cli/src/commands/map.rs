//! `bitsmith map`.

use super::job::{costs, positive};
use crate::app::App;
use crate::output::{human_bytes, table};
use bitsmith_eval::report::heat;
use bitsmith_eval::{MapEntry, QualityMap, Report};
use bitsmith_formats::Result;
use bitsmith_formats::atomic::write_file;
use bitsmith_pipeline::calibration::{CalibrationOptions, DEFAULT_CTX, DEFAULT_SAMPLES};
use bitsmith_pipeline::evaluate::EvalOptions;
use bitsmith_pipeline::map::{DEFAULT_WINDOWS, MapOptions, cost, map};
use bitsmith_pipeline::{Opened, Target};
use clap::Args;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  bitsmith map ./model --to gguf:q4_k_m,gguf:q3_k_m -o map.json --report map.html
  bitsmith map ./model --to mlx:4bit --data prose=wiki.txt:1,code=code.txt:1 -o map.json
  bitsmith map ./model --to gguf:q4_k_m --quick -o map.json";

/// Lines of the table.
const WORST: usize = 10;

/// Arguments of `map`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Hub id, checkpoint folder, .gguf file, or `demo`
    pub model: String,
    /// Targets, separated by commas; the base format of each is tried on every matrix
    #[arg(long, value_name = "TARGET", value_delimiter = ',', required = true)]
    pub to: Vec<String>,
    /// The map's file, JSON
    #[arg(short, long, value_name = "FILE")]
    pub out: PathBuf,
    /// Write a page with heatmaps and figures, which needs no other file
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Text to measure on: a dataset or files, each of which is a domain
    #[arg(long, value_name = "DATA", default_value = "builtin")]
    pub data: String,
    /// Estimate what every tensor costs from a few measurements, instead of measuring each
    #[arg(long)]
    pub quick: bool,
    /// The solver that chooses codes; transforms change several tensors at once and are left out
    #[arg(long, value_name = "METHOD", default_value = "best")]
    pub method: String,
    /// How text is cut and scored: llama.cpp or paper
    #[arg(long, value_name = "STYLE", default_value = "llama.cpp", help_heading = "Evaluation")]
    pub style: String,
    /// Tokens per window of text to measure on [default: 512, paper: 2048]
    #[arg(long, value_name = "N", help_heading = "Evaluation")]
    pub eval_ctx: Option<usize>,
    /// Windows of text to measure on, over all domains
    #[arg(long, value_name = "N", default_value_t = DEFAULT_WINDOWS, help_heading = "Evaluation")]
    pub limit: usize,
    /// Calibration text for the solver: a dataset or files
    #[arg(long, value_name = "DATA", default_value = "builtin", help_heading = "Calibration")]
    pub calib: String,
    /// Windows of calibration text
    #[arg(long, value_name = "N", default_value_t = DEFAULT_SAMPLES, help_heading = "Calibration")]
    pub samples: usize,
    /// Tokens per window of calibration text
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CTX, help_heading = "Calibration")]
    pub ctx: usize,
    /// Only say what it would cost in time, memory and disk
    #[arg(long)]
    pub dry_run: bool,
}

/// Makes the map.
pub fn run(args: &Arguments, app: &App) -> Result<()> {
    let options = MapOptions {
        targets: args.to.iter().map(|t| t.trim().parse()).collect::<Result<Vec<Target>>>()?,
        method: args.method.parse()?,
        calibration: CalibrationOptions {
            data: Some(args.calib.parse()?),
            samples: positive("--samples", Some(args.samples), DEFAULT_SAMPLES)?,
            ctx: positive("--ctx", Some(args.ctx), DEFAULT_CTX)?,
            ..CalibrationOptions::default()
        },
        data: args.data.parse()?,
        eval: EvalOptions {
            style: args.style.parse()?,
            ctx: args.eval_ctx.map(|n| positive("--eval-ctx", Some(n), n)).transpose()?,
            limit: Some(positive("--limit", Some(args.limit), DEFAULT_WINDOWS)?),
        },
        quick: args.quick,
        out: args.out.clone(),
    };
    let model = Opened::find(&args.model, &app.context)?;
    if args.dry_run {
        return costs(&cost(&model, &options, &app.context)?, app);
    }
    let made = map(&model, &options, &app.context)?;
    if let Some(path) = &args.report {
        write_file(path, Report::of_map(made.clone()).to_html().as_bytes())?;
    }
    app.output.result(&made, |made| text(made, args))
}

/// The costliest tensors of each codec, and what all together cost.
fn text(map: &QualityMap, args: &Arguments) -> String {
    let mut text = String::new();
    for check in &map.plan_check {
        let cost = |e: &MapEntry| e.kld().or(e.estimate).unwrap_or(0.0);
        let mut of: Vec<&MapEntry> = map.entries.iter().filter(|e| e.codec == check.codec).collect();
        of.sort_by(|a, b| cost(b).total_cmp(&cost(a)).then(a.role.cmp(&b.role)));
        let (codec, bytes) = (&check.codec, human_bytes(check.bytes));
        text.push_str(&format!("{codec}: all matrices, {bytes}, cost {:.6}; their sum {:.6}\n", check.measured, check.predicted));
        let domains = map.data.iter().map(|d| d.domain.clone());
        let mut rows: Vec<Vec<String>> =
            vec![["tensor", "size", "KLD"].map(String::from).into_iter().chain(domains.filter(|_| !args.quick)).collect()];
        for e in of.into_iter().take(WORST) {
            let each = e.measured.iter().map(|m| format!("{:.6}", m.kld));
            rows.push([e.role.clone(), human_bytes(e.bytes), format!("{:.6}", cost(e))].into_iter().chain(each).collect());
        }
        let numbers: Vec<usize> = (1..rows[0].len()).collect();
        text.push_str(&table(&rows, &numbers));
    }
    if let Some(agreement) = &map.agreement {
        let (rank, cost) = (agreement.spearman, 100.0 * agreement.cost);
        text.push_str(&format!("estimates rank as measurements do with ρ = {rank:.3}, at {cost:.1} % of their cost\n"));
    }
    text.push_str(&format!("\n{}\nmap: {}\n", heat::to_text(map), args.out.display()));
    if let Some(path) = &args.report {
        text.push_str(&format!("report: {}\n", path.display()));
    }
    text
}
