//! The whole pipeline: quantize every target, load each artifact back, measure it against its source, report, judge.

use crate::context::Context;
use crate::evaluate::{EvalOptions, watch};
use crate::manifest::Manifest;
use crate::model::Located;
use crate::opened::Opened;
use crate::quantize::{Artifact, Job, QuantizeOptions};
use crate::release;
use bitsmith_datasets::{DataSpec, EvalWindows};
use bitsmith_eval::{EvalResult, Gate, GateOutcome, Measured, Reference, Report, ReportRow};
use bitsmith_formats::atomic::write_file;
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::WeightSource;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What to do, besides quantizing.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Targets, method, calibration.
    pub quantize: QuantizeOptions,
    /// Texts to evaluate on.
    pub data: Vec<DataSpec>,
    /// How.
    pub eval: EvalOptions,
    /// Conditions that every artifact must meet.
    pub gates: Vec<Gate>,
    /// Folder of the reports.
    pub reports: PathBuf,
}

/// What came out.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The artifacts, in the order of the targets.
    pub artifacts: Vec<Artifact>,
    /// The report's files.
    pub report: ReportFiles,
    /// The source's results, then those of the artifacts.
    pub eval: Vec<EvalResult>,
    /// Gates, by target.
    pub gates: Vec<(String, GateOutcome)>,
    /// Folders that are ready to be published.
    pub releases: Vec<PathBuf>,
    /// The report's content, for the terminal.
    #[serde(skip)]
    pub table: String,
}

/// Where the report went.
#[derive(Debug, Clone, Serialize)]
pub struct ReportFiles {
    /// For reading in a browser.
    pub html: PathBuf,
    /// For model cards and CI summaries.
    pub markdown: PathBuf,
    /// All numbers.
    pub json: PathBuf,
}

impl Outcome {
    /// Whether every gate held.
    pub fn gates_held(&self) -> bool {
        self.gates.iter().all(|(_, g)| g.held)
    }
}

/// A pipeline ready to run.
pub struct Pipeline<'a> {
    model: &'a Opened,
    options: &'a RunOptions,
    context: &'a Context,
    job: Job<'a>,
    windows: Vec<EvalWindows>,
}

impl<'a> Pipeline<'a> {
    /// Checks everything that can be checked before the work.
    pub fn new(model: &'a Opened, options: &'a RunOptions, context: &'a Context) -> Result<Self> {
        let tokenizer = model.text_tokenizer()?;
        let job = Job::new(model, &options.quantize, context)?;
        release::check(&job)?;
        let windows = options.data.iter().map(|d| options.eval.windows(d, model, &tokenizer)).collect::<Result<_>>()?;
        Ok(Pipeline { model, options, context, job, windows })
    }

    /// What it will cost.
    pub fn estimates(&self) -> Result<Vec<crate::estimate::Estimate>> {
        self.job.estimates(self.windows.iter().map(|w| w.set.n_tokens()).sum())
    }

    /// Does it.
    pub fn run(self) -> Result<Outcome> {
        let Pipeline { model, options, context, job, windows } = self;
        let artifacts = job.run()?;
        for note in windows.iter().flat_map(|w| &w.set.notes) {
            context.progress.note(note);
        }
        let mut references = Vec::new();
        let mut source = EvalResult { model: model.name.clone(), ..EvalResult::default() };
        for windows in windows {
            let reference =
                Reference::new(&model.name, &model.checkpoint, windows, &context.device, &watch(context, &model.name))?;
            source.perplexity.push(reference.perplexity(&watch(context, &model.name))?);
            references.push(reference);
        }
        let mut report = Report { model: model.about.name.clone(), facts: facts(model, options), ..Report::default() };
        report.rows.push(source_row(model, source.clone())?);
        let mut eval = vec![source];
        for artifact in &artifacts {
            let result = measure(&references, artifact, context)?;
            let measured = Measured {
                eval: Some(&result),
                bytes: Some(artifact.bytes),
                bpw: Some(artifact.bpw),
                seconds: Some(artifact.seconds),
                peak_rss_bytes: Some(artifact.peak_rss_bytes).filter(|b| *b > 0),
            };
            report.gates.extend(options.gates.iter().map(|g| (artifact.target.clone(), g.judge(&measured))));
            report.notes.extend(artifact.notes.iter().map(|n| format!("{}: {n}", artifact.target)));
            report.rows.push(ReportRow {
                target: artifact.target.clone(),
                method: artifact.method.clone(),
                bytes: Some(artifact.bytes),
                bpw: Some(artifact.bpw),
                seconds: Some(artifact.seconds),
                peak_rss_bytes: Some(artifact.peak_rss_bytes).filter(|b| *b > 0),
                eval: result.clone(),
            });
            eval.push(result);
        }
        let files = write_report(&report, &options.reports)?;
        let releases = release::write(&job, &artifacts)?;
        Ok(Outcome { artifacts, report: files, eval, gates: report.gates.clone(), releases, table: report.to_text() })
    }
}

/// Loads the artifact back, as any user would, and compares it with the source; the manifest keeps the result.
fn measure(references: &[Reference], artifact: &Artifact, context: &Context) -> Result<EvalResult> {
    let located = Located { path: artifact.path.clone(), name: artifact.path.display().to_string(), pulled: None };
    let written = Opened::open(located)?;
    let mut result = EvalResult { model: written.name, ..EvalResult::default() };
    for reference in references {
        let comparison = reference.compare(&written.checkpoint, &watch(context, &artifact.target))?;
        result.perplexity.push(comparison.perplexity);
        result.kld.push(comparison.kld);
    }
    if let Some(mut manifest) = Manifest::load(&artifact.path) {
        manifest.quality = Some(serde_json::to_value(&result).map_err(|e| Error::failed(e.to_string()))?);
        manifest.save(&artifact.path)?;
    }
    Ok(result)
}

fn source_row(model: &Opened, eval: EvalResult) -> Result<ReportRow> {
    let store = model.checkpoint.store();
    let bytes: usize = store.tensors().iter().map(|t| t.n_bytes).sum();
    Ok(ReportRow {
        target: "source".into(),
        method: String::new(),
        bytes: Some(bytes as u64),
        bpw: Some(bytes as f64 * 8.0 / model.checkpoint.spec().n_weights() as f64),
        seconds: None,
        peak_rss_bytes: None,
        eval,
    })
}

fn facts(model: &Opened, options: &RunOptions) -> Vec<(String, String)> {
    let calibration = &options.quantize.calibration;
    let files = |list: &[PathBuf]| list.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
    let data = match (&calibration.data, &calibration.stats, &calibration.imatrix[..]) {
        (Some(data), _, _) => data.to_string(),
        (_, Some(path), _) => path.display().to_string(),
        (_, _, []) => "builtin".into(),
        (_, _, list) => files(list),
    };
    vec![
        ("Model".into(), model.name.clone()),
        ("Architecture".into(), model.checkpoint.spec().arch.name.into()),
        ("Weights".into(), model.checkpoint.spec().n_weights().to_string()),
        ("Calibration".into(), format!("{data}, {} windows of {} tokens", calibration.samples, calibration.ctx)),
        ("Tool".into(), concat!("bitsmith ", env!("CARGO_PKG_VERSION")).into()),
    ]
}

fn write_report(report: &Report, dir: &Path) -> Result<ReportFiles> {
    std::fs::create_dir_all(dir).map_err(|e| Error::write(dir, e))?;
    let files = ReportFiles { html: dir.join("report.html"), markdown: dir.join("report.md"), json: dir.join("report.json") };
    write_file(&files.html, report.to_html().as_bytes())?;
    write_file(&files.markdown, report.to_markdown().as_bytes())?;
    let json = serde_json::to_vec_pretty(report).map_err(|e| Error::failed(e.to_string()))?;
    write_file(&files.json, &json)?;
    Ok(files)
}
