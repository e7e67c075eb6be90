//! Known faults of GGUF files and checkpoint folders, whoever wrote them: found, and mended where the metadata alone are at fault.
//!
//! Tensors are looked at and never touched: a file is written anew with other metadata and the same tensor bytes, and takes the old
//! one's place when it is whole.

mod folder;
mod gguf;

use crate::opened::Opened;
use crate::problem::Problem;
use crate::verify::values_of;
use bitsmith_formats::store::open_store;
use bitsmith_formats::{Error, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What the doctor may be told.
#[derive(Default)]
pub struct DoctorOptions<'a> {
    /// The model that the artifact was made of: what is missing is taken from there.
    pub source: Option<&'a Opened>,
    /// The value of a missing or wrong `tokenizer.ggml.pre`.
    pub pre: Option<String>,
    /// Whether to mend.
    pub fix: bool,
    /// Whether to leave out the look at every tensor's values, which takes the most time.
    pub headers_only: bool,
}

/// How bad a fault is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Some runtime refuses the artifact, or computes nonsense.
    Error,
    /// Something works less well than it could.
    Warning,
}

/// A fault.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// Its stable name.
    pub fault: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, and what comes of it.
    pub message: String,
    /// The file concerned.
    pub file: PathBuf,
    /// The tensor concerned.
    pub tensor: Option<String>,
    /// What `--fix` does about it; nothing if it cannot.
    pub remedy: Option<String>,
    /// Whether it was mended.
    pub fixed: bool,
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Diagnosis {
    /// The file or folder.
    pub artifact: PathBuf,
    /// The faults, in the order of the files.
    pub findings: Vec<Finding>,
    /// Whether nothing is wrong, or nothing any more.
    pub ok: bool,
}

/// Looks for faults, and mends those that it can if it is asked to.
pub fn doctor(artifact: &Path, options: &DoctorOptions<'_>) -> Result<Diagnosis> {
    std::fs::metadata(artifact).map_err(|e| Error::read(artifact, e))?;
    let mut findings = match artifact.is_dir() {
        true => folder::examine(artifact, options)?,
        false => gguf::examine(artifact, options)?,
    };
    if !options.headers_only {
        findings.extend(tensors(artifact));
    }
    let ok = findings.iter().all(|f| f.fixed);
    Ok(Diagnosis { artifact: artifact.to_path_buf(), findings, ok })
}

/// Tensors that are cut off, or whose values are not finite.
fn tensors(artifact: &Path) -> Vec<Finding> {
    let problems: Vec<Problem> = match open_store(artifact) {
        Ok(store) => values_of(store.as_ref()),
        Err(e) => vec![e.into()],
    };
    let finding = |p: Problem| Finding {
        fault: "damaged-tensor",
        severity: Severity::Error,
        message: p.message,
        file: p.file.unwrap_or_else(|| artifact.to_path_buf()),
        tensor: p.tensor,
        remedy: None,
        fixed: false,
    };
    problems.into_iter().map(finding).collect()
}

/// A fault that `--fix` mends.
fn mendable(
    file: &Path,
    fault: &'static str,
    severity: Severity,
    message: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    Finding { remedy: Some(remedy.into()), ..fatal(file, fault, severity, message) }
}

/// A fault that it cannot mend.
fn fatal(file: &Path, fault: &'static str, severity: Severity, message: impl Into<String>) -> Finding {
    Finding { fault, severity, message: message.into(), file: file.to_path_buf(), tensor: None, remedy: None, fixed: false }
}
