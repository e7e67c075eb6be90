//! Everything about a model's artifacts beside them: manifests, report, and what makes their folders releases.

use super::{EVAL, SCORES, STATS, keep, lay_out};
use crate::artifact::Output as Place;
use crate::batch::plan::Op;
use crate::batch::record::{Made, Record};
use crate::batch::task::Work;
use crate::manifest::Manifest;
use crate::quantize::{Artifact, Job, QuantizeOptions};
use crate::release;
use crate::run::{facts, source_row, write_report};
use crate::tasks::{Scored, join, results, same_questions};
use bitsmith_eval::{EvalResult, Gate, Measured, Report, ReportRow};
use bitsmith_formats::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// An artifact, laid out, and what was measured of it.
struct Done {
    artifact: Artifact,
    eval: Option<EvalResult>,
}

pub fn run(work: &Work<'_>) -> Result<Made> {
    let variant = work.variant();
    let model = work.source()?;
    let base = work.bench.dir.join("out");
    // What a killed attempt left there has no place in a release.
    if base.exists() {
        std::fs::remove_dir_all(&base).map_err(|e| Error::write(&base, e))?;
    }
    std::fs::create_dir_all(&base).map_err(|e| Error::write(&base, e))?;
    let (mut done, mut theirs) = (Vec::new(), BTreeSet::new());
    let source_scores = scored(work, None)?;
    for (record, target) in quantized(work) {
        theirs.extend(lay_out(work.store(), record, &base)?);
        let mut eval = evaluated(work, target)?;
        if let (Some(eval), Some(theirs)) = (&mut eval, &source_scores) {
            let scores = scored(work, Some(target))?.unwrap_or_default();
            same_questions(&scores, theirs)?;
            eval.tasks = results(&scores, Some((&model.about.name, theirs)));
        }
        let mut artifact: Artifact = record.detail("artifact")?;
        artifact.path = base.join(&artifact.path);
        let mut manifest: Manifest = record.detail("manifest")?;
        if let Some(eval) = &eval {
            let mut short = eval.clone();
            short.kld.iter_mut().for_each(|k| k.landing = None);
            manifest.quality = Some(serde_json::to_value(&short).map_err(|e| Error::failed(e.to_string()))?);
        }
        manifest.save(&artifact.path)?;
        done.push(Done { artifact, eval });
    }
    let targets: Vec<String> = done.iter().map(|d| d.artifact.target.clone()).collect();
    let options = work.runner.settings.options(&variant.settings, &targets, Place::Folder(base.clone().into()))?;
    let Place::Folder(folder) = options.out.clone() else { return Err(Error::failed("a batch writes to folders")) };
    let gates = variant.gates.iter().map(|g| g.parse()).collect::<Result<Vec<Gate>>>()?;
    let mut report = Report { model: model.about.name.clone(), facts: facts(&model, &options), ..Report::default() };
    if let Some(source) = work.need(|op| matches!(op, Op::Reference)) {
        let (bytes, bpw) = model.size();
        let tasks = source_scores.iter().flat_map(|s| results(s, None)).collect();
        report.rows.push(source_row(EvalResult { tasks, ..eval_of(work, source)? }, bytes, bpw));
    }
    for Done { artifact, eval } in &done {
        let peak = Some(artifact.peak_rss_bytes).filter(|b| *b > 0);
        let (bytes, bpw, seconds) = (Some(artifact.bytes), Some(artifact.bpw), Some(artifact.seconds));
        let measured = Measured { eval: eval.as_ref(), bytes, bpw, seconds, peak_rss_bytes: peak };
        report.gates.extend(gates.iter().map(|g| (artifact.target.clone(), g.judge(&measured))));
        report.notes.extend(artifact.notes.iter().map(|n| format!("{}: {n}", artifact.target)));
        report.rows.push(ReportRow {
            target: artifact.target.clone(),
            method: artifact.method.clone(),
            bytes,
            bpw,
            seconds,
            peak_rss_bytes: peak,
            eval: eval.clone().unwrap_or_default(),
        });
    }
    if report.rows.iter().any(|r| !r.eval.perplexity.is_empty()) {
        write_report(&report, &folder.gguf_dir(&model.about.name))?;
    }
    if variant.release {
        let options = bookkeeping(work, options)?;
        let job = Job::new(&model, &options, work.context())?;
        let artifacts: Vec<Artifact> = done.iter().map(|d| d.artifact.clone()).collect();
        release::write(&job, &artifacts)?;
    }
    work.check_source(&model)?;
    let mut outputs = Vec::new();
    for path in files(&base)?.into_iter().filter(|p| !theirs.contains(p)) {
        let name = path.strip_prefix(&base).unwrap_or(&path).display().to_string();
        outputs.push(keep(work.store(), name, &path)?);
    }
    Ok(Made { outputs, content: None, details: json!({ "gates": report.gates }) })
}

/// The artifacts' records, with their targets.
fn quantized<'w>(work: &'w Work<'_>) -> impl Iterator<Item = (&'w Record, &'w str)> {
    let nodes = &work.runner.plan.nodes;
    work.node.deps.iter().zip(&work.needs).filter_map(|(d, record)| match &nodes[*d].op {
        Op::Quantize { target } => Some((record, target.as_str())),
        _ => None,
    })
}

fn evaluated(work: &Work<'_>, of: &str) -> Result<Option<EvalResult>> {
    let record = work.need(|op| matches!(op, Op::Evaluate { target } if target == of));
    record.map(|r| eval_of(work, r)).transpose()
}

/// What a target, or the source, scored in the job's tasks, if it has any.
fn scored(work: &Work<'_>, of: Option<&str>) -> Result<Option<Vec<Scored>>> {
    let mut shares = Vec::new();
    for record in work.needs(|op| matches!(op, Op::Ask { target, .. } if target.as_deref() == of)) {
        shares.push(read_json(work, record, SCORES)?);
    }
    (!shares.is_empty()).then(|| join(shares)).transpose()
}

fn eval_of(work: &Work<'_>, record: &Record) -> Result<EvalResult> {
    read_json(work, record, EVAL)
}

/// What a file of a need says.
fn read_json<T: DeserializeOwned>(work: &Work<'_>, record: &Record, name: &str) -> Result<T> {
    let path = work.bench.dir.join(name);
    let _ = std::fs::remove_file(&path);
    work.store().fetch(&record.output(name)?.sha256, &path)?;
    let json = std::fs::read(&path).map_err(|e| Error::read(&path, e))?;
    serde_json::from_slice(&json).map_err(|e| Error::corrupt(e.to_string()).file(&path))
}

/// Options for writing about artifacts that are made already: nothing is calibrated again.
fn bookkeeping(work: &Work<'_>, options: QuantizeOptions) -> Result<QuantizeOptions> {
    let mut options = QuantizeOptions { method: "reference".parse()?, ..options };
    if let Some(statistics) = work.need(|op| matches!(op, Op::Calibrate { .. })) {
        let dir = work.bench.dir.join("statistics");
        lay_out(work.store(), statistics, &dir)?;
        options.calibration.stats = Some(dir.join(STATS));
    }
    options.calibration.data = None;
    Ok(options)
}

/// All files below a folder, sorted.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(|e| Error::read(&folder, e))? {
            let path = entry.map_err(|e| Error::read(&folder, e))?.path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    Ok(found)
}
