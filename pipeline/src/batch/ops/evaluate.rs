//! Loads an artifact back, as any user would, and compares it with what the source predicts.

use super::{EVAL, keep, lay_out, reference_name};
use crate::batch::plan::Op;
use crate::batch::record::Made;
use crate::batch::task::Work;
use crate::evaluate::{Against, evaluate, judge};
use crate::model::Located;
use crate::opened::Opened;
use crate::quantize::Artifact;
use crate::remember::Memory;
use bitsmith_eval::EvalResult;
use bitsmith_formats::atomic::write_file;
use bitsmith_formats::{Error, Result};
use serde_json::json;
use std::path::PathBuf;

/// The name of what a share of a text's measuring found.
pub fn positions_name(text: usize) -> String {
    format!("{text}.positions")
}

/// The artifact of the node, opened, and what it is called.
pub fn artifact(work: &Work<'_>) -> Result<(Opened, String)> {
    let made = work.need(|op| matches!(op, Op::Quantize { .. }));
    let made = made.ok_or_else(|| Error::failed("the plan does not say what to measure"))?;
    let dir = work.bench.dir.join("artifact");
    lay_out(work.store(), made, &dir)?;
    let artifact: Artifact = made.detail("artifact")?;
    let name = artifact.path.display().to_string();
    Ok((Opened::open(Located { path: dir.join(&artifact.path), name: name.clone(), pulled: None })?, name))
}

/// Measures it, or judges what was measured of parts of the texts.
pub fn run(work: &Work<'_>) -> Result<Made> {
    let (variant, context) = (work.variant(), work.context());
    let (Some(measure), Some(reference)) = (&variant.measure, work.need(|op| matches!(op, Op::Reference))) else {
        return Err(Error::failed("the plan does not say what to measure"));
    };
    variant.texts.iter().try_for_each(|t| t.check())?;
    let predictions = work.bench.dir.join("reference");
    lay_out(work.store(), reference, &predictions)?;
    let (written, name) = artifact(work)?;
    let mut parts: Vec<PathBuf> = Vec::new();
    for (i, part) in work.needs(|op| matches!(op, Op::Measure { .. })).enumerate() {
        parts.push(work.bench.dir.join(format!("part-{i}")));
        lay_out(work.store(), part, &parts[i])?;
    }
    let (bytes, bpw) = written.size();
    let mut result = EvalResult { model: name, bytes: Some(bytes), bpw: Some(bpw), ..EvalResult::default() };
    for (i, data) in measure.data()?.into_iter().enumerate() {
        let (stored, options) = (predictions.join(reference_name(i)), measure.options()?);
        if parts.is_empty() {
            let against = Against::Stored(stored);
            let found = evaluate(&written, &[], &[data], Some(&against), None, &options, &Memory::none(), context)?;
            result.perplexity.extend(found.perplexity);
            result.kld.extend(found.kld);
        } else {
            let files: Vec<PathBuf> = parts.iter().map(|dir| dir.join(positions_name(i))).collect();
            let found = judge(&written, &data, &stored, &files, &options, context)?;
            result.perplexity.push(found.perplexity);
            result.kld.push(found.kld);
        }
    }
    let path = work.bench.dir.join(EVAL);
    write_file(&path, &serde_json::to_vec(&result).map_err(|e| Error::failed(e.to_string()))?)?;
    let outputs = vec![keep(work.store(), EVAL, &path)?];
    // Windows and passages are in the file.
    result.kld.iter_mut().for_each(|k| (k.landing, k.windows) = (None, Vec::new()));
    Ok(Made { outputs, content: None, details: json!({ "eval": result }) })
}
