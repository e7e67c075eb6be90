//! What each kind of node does. One file per kind.

pub mod ask;
pub mod calibrate;
pub mod encode;
pub mod evaluate;
pub mod measure;
pub mod publish;
pub mod quantize;
pub mod reference;
pub mod release;
pub mod source;

use super::record::{Output, Record};
use super::store::Store;
use bitsmith_formats::Result;
use std::path::{Path, PathBuf};

/// The name of what was measured.
const EVAL: &str = "eval.json";
/// The name of scores in tasks.
const SCORES: &str = "scores.json";
/// The name of statistics.
const STATS: &str = "model.stats";

/// The name of a text's stored predictions.
fn reference_name(text: usize) -> String {
    format!("{text}.bsref")
}

/// Keeps a finished file.
fn keep(store: &Store, name: impl Into<String>, path: &Path) -> Result<Output> {
    let output = Output::of(name, path)?;
    store.keep(path, &output.sha256)?;
    Ok(output)
}

/// Puts all files of a node into a folder, under their names. What an earlier attempt put there is put there anew.
fn lay_out(store: &Store, record: &Record, dir: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for output in &record.outputs {
        let path = dir.join(&output.name);
        let _ = std::fs::remove_file(&path);
        store.fetch(&output.sha256, &path)?;
        paths.push(path);
    }
    Ok(paths)
}
