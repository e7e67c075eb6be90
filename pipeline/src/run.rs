//! The whole pipeline: quantize every target, load each artifact back, measure it against its source, report, judge.

use crate::context::Context;
use crate::evaluate::{EvalOptions, watch};
use crate::manifest::Manifest;
use crate::model::Located;
use crate::opened::Opened;
use crate::quantize::{Artifact, Job, QuantizeOptions};
use crate::release;
use crate::remember::{Memory, Scores};
use crate::tasks::{Answered, Tasks};
use bitsmith_datasets::{DataSpec, EvalWindows};
use bitsmith_eval::{EvalResult, Gate, GateOutcome, Measured, Reference, Report, ReportRow};
use bitsmith_formats::atomic::write_file;
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::WeightSource;
use serde::Serialize;
use std::cell::OnceCell;
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
    /// Whether everything is measured anew, though it was before.
    pub fresh: bool,
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
    /// The figures, as SVG and PNG.
    pub figures: PathBuf,
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
    tasks: Option<Tasks>,
}

impl<'a> Pipeline<'a> {
    /// Checks everything that can be checked before the work.
    pub fn new(model: &'a Opened, options: &'a RunOptions, context: &'a Context) -> Result<Self> {
        let tokenizer = model.text_tokenizer()?;
        let job = Job::new(model, &options.quantize, context)?;
        release::check(&job)?;
        let windows = options.data.iter().map(|d| options.eval.windows(d, model, &tokenizer)).collect::<Result<_>>()?;
        Ok(Pipeline { model, options, context, job, windows, tasks: None })
    }

    /// Scores the source and every artifact on these tasks too.
    pub fn with_tasks(self, tasks: Option<Tasks>) -> Self {
        Pipeline { tasks, ..self }
    }

    /// What it will cost.
    pub fn estimates(&self) -> Result<Vec<crate::estimate::Estimate>> {
        self.job.estimates(self.windows.iter().map(|w| w.set.n_tokens()).sum())
    }

    /// Does it.
    pub fn run(self) -> Result<Outcome> {
        let Pipeline { model, options, context, job, windows, tasks } = self;
        let artifacts = job.run()?;
        for note in windows.iter().flat_map(|w| &w.set.notes) {
            context.progress.note(note);
        }
        let memory = if options.fresh { Memory::none() } else { Memory::open(context) };
        let (bytes, bpw) = model.size();
        let mut source = EvalResult { model: model.name.clone(), bytes: Some(bytes), bpw: Some(bpw), ..EvalResult::default() };
        let texts: Vec<Text<'_>> =
            windows.into_iter().map(|windows| Text { model, windows, reference: OnceCell::new() }).collect();
        for text in &texts {
            let compute = || {
                let perplexity = text.reference(context)?.perplexity(&watch(context, &model.name))?;
                Ok(Scores { perplexity, kld: None })
            };
            source.perplexity.push(memory.scores(model, None, &text.windows, context, compute)?.perplexity);
        }
        let tasks = match tasks {
            Some(tasks) => {
                let answered = tasks.answer(model, &memory, context)?;
                source.tasks = answered.results(None);
                Some((tasks, answered))
            }
            None => None,
        };
        let mut report = Report { model: model.about.name.clone(), facts: facts(model, &options.quantize), ..Report::default() };
        report.rows.push(source_row(source.clone(), bytes, bpw));
        let mut eval = vec![source];
        for artifact in &artifacts {
            let result = measure(&texts, tasks.as_ref(), artifact, &memory, context)?;
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

/// One text, and what the source model predicts of it once that is needed.
struct Text<'a> {
    model: &'a Opened,
    windows: EvalWindows,
    reference: OnceCell<Reference>,
}

impl Text<'_> {
    fn reference(&self, context: &Context) -> Result<&Reference> {
        if self.reference.get().is_none() {
            let (name, source) = (&self.model.name, &self.model.checkpoint);
            let made = Reference::new(name, source, self.windows.clone(), &context.device, &watch(context, name))?;
            // Nobody else fills it in between.
            let _ = self.reference.set(made.with_tokenizer(self.model.text_tokenizer()?));
        }
        self.reference.get().ok_or_else(|| Error::failed("the reference is gone"))
    }
}

/// Loads the artifact back, as any user would, and compares it with the source; the manifest keeps the result.
fn measure(
    texts: &[Text<'_>],
    tasks: Option<&(Tasks, Answered)>,
    artifact: &Artifact,
    memory: &Memory,
    context: &Context,
) -> Result<EvalResult> {
    let located = Located { path: artifact.path.clone(), name: artifact.path.display().to_string(), pulled: None };
    let written = Opened::open(located)?;
    let (bytes, bpw) = written.size();
    let mut result = EvalResult { model: written.name.clone(), bytes: Some(bytes), bpw: Some(bpw), ..EvalResult::default() };
    for text in texts {
        let compare = || {
            let comparison = text.reference(context)?.compare(&written.checkpoint, &watch(context, &artifact.target))?;
            Ok(Scores { perplexity: comparison.perplexity, kld: Some(comparison.kld) })
        };
        let scores = memory.scores(&written, Some(text.model), &text.windows, context, compare)?;
        result.perplexity.push(scores.perplexity);
        result.kld.extend(scores.kld);
    }
    if let Some((tasks, source)) = tasks {
        result.tasks = tasks.answer(&written, memory, context)?.results(Some(source));
    }
    if let Some(mut manifest) = Manifest::load(&artifact.path) {
        // The report has the passages.
        let mut short = result.clone();
        short.kld.iter_mut().for_each(|k| k.landing = None);
        manifest.quality = Some(serde_json::to_value(&short).map_err(|e| Error::failed(e.to_string()))?);
        manifest.save(&artifact.path)?;
    }
    Ok(result)
}

pub(crate) fn source_row(eval: EvalResult, bytes: u64, bpw: f64) -> ReportRow {
    ReportRow { target: "source".into(), bytes: Some(bytes), bpw: Some(bpw), eval, ..ReportRow::default() }
}

pub(crate) fn facts(model: &Opened, options: &QuantizeOptions) -> Vec<(String, String)> {
    let calibration = &options.calibration;
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

pub(crate) fn write_report(report: &Report, dir: &Path) -> Result<ReportFiles> {
    let files = ReportFiles {
        html: dir.join("report.html"),
        markdown: dir.join("report.md"),
        json: dir.join("report.json"),
        figures: dir.join("figures"),
    };
    write_figures(report, &files.figures)?;
    write_file(&files.html, report.to_html().as_bytes())?;
    write_file(&files.markdown, report.to_markdown().as_bytes())?;
    let json = serde_json::to_vec_pretty(report).map_err(|e| Error::failed(e.to_string()))?;
    write_file(&files.json, &json)?;
    Ok(files)
}

/// Writes every figure of a report into a folder, as SVG and as PNG.
pub fn write_figures(report: &Report, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| Error::write(dir, e))?;
    for (name, figure) in report.figures() {
        write_file(dir.join(format!("{name}.svg")), figure.to_svg().as_bytes())?;
        write_file(dir.join(format!("{name}.png")), &figure.to_png()?)?;
    }
    Ok(())
}
