//! Artifacts: one, or several of one model in a single pass over it.

use super::{STATS, lay_out};
use crate::artifact::Output as Place;
use crate::batch::plan::Op;
use crate::batch::record::{Made, Output, Record};
use crate::batch::store::Store;
use crate::batch::task::Work;
use crate::manifest::{InputFile, Manifest};
use crate::quantize::{Artifact, Encoded, Job, QuantizeOptions};
use bitsmith_formats::{Error, Result};
use serde_json::json;
use std::path::Path;

/// Makes all of these, which have model and variant in common. Says of each what it took, in seconds and bytes.
pub fn run(works: &[&Work<'_>]) -> Result<Vec<(Made, f64, u64)>> {
    let Some(first) = works.first() else { return Ok(Vec::new()) };
    let (variant, settings) = (first.variant(), first.runner.settings);
    variant.files.iter().try_for_each(|f| f.check())?;
    let model = first.source()?;
    let targets: Vec<String> = works.iter().map(|w| target(w).to_string()).collect();
    let mut options = settings.options(&variant.settings, &targets, Place::Folder(first.bench.dir.clone().into()))?;
    let Place::Folder(folder) = options.out.clone() else { return Err(Error::failed("a batch writes to folders")) };
    let mut paths = Vec::new();
    for (work, target) in works.iter().zip(&options.targets) {
        let folder = crate::artifact::Folder { dir: work.bench.dir.join("out"), ..folder.clone() };
        paths.extend(Place::Folder(folder).paths(&model, std::slice::from_ref(target))?);
    }
    options.out = Place::Each(folder, paths);
    statistics(first, &mut options)?;
    options.encoded = parts(first)?;
    let artifacts = Job::new(&model, &options, first.context())?.run()?;
    first.check_source(&model)?;
    let read: Vec<InputFile> = first.inputs()?.into_iter().map(|i| i.file).collect();
    works.iter().zip(&artifacts).map(|(work, artifact)| collect(work, artifact, &read)).collect()
}

/// Gives a job the statistics that the node needs, if it needs any.
pub fn statistics(work: &Work<'_>, options: &mut QuantizeOptions) -> Result<()> {
    if let Some(statistics) = work.need(|op| matches!(op, Op::Calibrate { .. })) {
        let dir = work.bench.dir.join("statistics");
        lay_out(work.store(), statistics, &dir)?;
        options.calibration.data = None;
        options.calibration.stats = Some(dir.join(STATS));
    }
    Ok(())
}

/// The tensors that other nodes encoded for this one, if there are any.
fn parts(work: &Work<'_>) -> Result<Option<Encoded>> {
    let mut encoded = Encoded { dir: work.bench.dir.join("parts"), notes: Vec::new() };
    let parts: Vec<&Record> = work.needs(|op| matches!(op, Op::Encode { .. })).collect();
    for part in &parts {
        lay_out(work.store(), part, &encoded.dir)?;
        encoded.notes.extend(part.detail::<Vec<String>>("notes")?);
    }
    Ok((!parts.is_empty()).then_some(encoded))
}

fn target<'a>(work: &'a Work<'_>) -> &'a str {
    match &work.node.op {
        Op::Quantize { target } => target,
        _ => "",
    }
}

/// Keeps an artifact's files.
fn collect(work: &Work<'_>, artifact: &Artifact, read: &[InputFile]) -> Result<(Made, f64, u64)> {
    let manifest =
        Manifest::load(&artifact.path).ok_or_else(|| Error::failed("the artifact has no manifest").file(&artifact.path))?;
    if manifest.recipe.inputs != read {
        return Err(Error::corrupt("the source has changed while it was quantized")
            .file(&artifact.path)
            .hint("run the batch again"));
    }
    let base = work.bench.dir.join("out");
    let mut outputs = Vec::new();
    for file in &manifest.files {
        let path = match artifact.path.is_dir() {
            true => artifact.path.join(&file.name),
            false => artifact.path.with_file_name(&file.name),
        };
        outputs.push(known(work.store(), &base, &path, file.bytes, &file.sha256)?);
    }
    for companion in &manifest.companions {
        let path = artifact.path.with_file_name(&companion.file);
        outputs.push(known(work.store(), &base, &path, companion.bytes, &companion.sha256)?);
    }
    let path = artifact.path.strip_prefix(&base).unwrap_or(&artifact.path).to_path_buf();
    let (seconds, peak) = (manifest.seconds, artifact.peak_rss_bytes);
    let details = json!({ "manifest": manifest, "artifact": Artifact { path, reused: false, ..artifact.clone() } });
    Ok((Made { outputs, content: None, details }, seconds, peak))
}

/// Keeps a file whose hash the manifest has.
fn known(store: &Store, base: &Path, path: &Path, bytes: u64, sha256: &str) -> Result<Output> {
    let name = path.strip_prefix(base).unwrap_or(path).display().to_string();
    store.keep(path, sha256)?;
    Ok(Output { name, bytes, sha256: sha256.to_string() })
}
