//! `bitsmith compare`.

use crate::app::App;
use bitsmith_eval::sources;
use bitsmith_formats::atomic::write_file;
use bitsmith_formats::{Error, Result};
use bitsmith_pipeline::remember::recall;
use bitsmith_pipeline::run::write_figures;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  bitsmith compare q4.json q5.json q8.json
  bitsmith compare out-a/report.json out-b/report.json --html both.html --csv both.csv
  bitsmith compare q4.json llama-perplexity.log results_2026.json --latex table.tex --svg pareto.svg
  bitsmith compare --remembered my-model

A RESULT is what eval, run or map wrote, an artifact's manifest, a log of llama-perplexity,
or lm-evaluation-harness's results_*.json.";

/// Arguments of `compare`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Files with results
    #[arg(required_unless_present = "remembered", value_name = "RESULT")]
    pub results: Vec<PathBuf>,
    /// Add what is remembered of models with this in their name; an empty name takes all
    #[arg(long, value_name = "NAME")]
    pub remembered: Option<String>,
    /// Write one row per artifact and text, with all numbers
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// The same as a Parquet file
    #[arg(long, value_name = "FILE")]
    pub parquet: Option<PathBuf>,
    /// Write the tables as LaTeX with booktabs
    #[arg(long, value_name = "FILE")]
    pub latex: Option<PathBuf>,
    /// Write the tables as Markdown
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// Write a page with tables, figures and passages, which needs no other file
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Draw size against divergence as SVG
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Draw size against divergence as PNG
    #[arg(long, value_name = "FILE")]
    pub png: Option<PathBuf>,
    /// Write every figure into this folder, as SVG and as PNG
    #[arg(long, value_name = "DIR")]
    pub figures: Option<PathBuf>,
}

/// Prints the tables and writes what is asked for.
pub fn run(args: &Arguments, app: &App) -> Result<()> {
    let mut report = sources::read(&args.results)?;
    if let Some(name) = &args.remembered {
        recall(name, &app.context)?.into_iter().for_each(|eval| report.add(eval));
    }
    let pareto = || {
        report.pareto().ok_or_else(|| {
            Error::usage("there are no two artifacts with a size and a divergence to draw")
                .hint("give results of `eval --kld`, or a `report.json`")
        })
    };
    let write = |path: &Option<PathBuf>, make: &dyn Fn() -> Result<Vec<u8>>| match path {
        Some(path) => write_file(path, &make()?),
        None => Ok(()),
    };
    write(&args.csv, &|| Ok(report.to_csv().into_bytes()))?;
    write(&args.parquet, &|| report.to_parquet())?;
    write(&args.latex, &|| Ok(report.to_latex().into_bytes()))?;
    write(&args.markdown, &|| Ok(report.to_markdown().into_bytes()))?;
    write(&args.html, &|| Ok(report.to_html().into_bytes()))?;
    write(&args.svg, &|| Ok(pareto()?.to_svg().into_bytes()))?;
    write(&args.png, &|| pareto()?.to_png())?;
    if let Some(dir) = &args.figures {
        write_figures(&report, dir)?;
    }
    let document = json!({ "summary": report.summary(), "pairs": report.pairs(), "report": report });
    app.output.result(&document, |_| report.to_text())
}
