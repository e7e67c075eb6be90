//! Puts what is done where the user wants it: links to the store's files where the file system has them, copies otherwise.

use super::plan::{Op, Plan};
use super::record::{Output, Record};
use super::store::Store;
use crate::quantize::Artifact;
use bitsmith_eval::GateOutcome;
use bitsmith_formats::hash::sha256_file;
use bitsmith_formats::{Error, Result};
use serde::Serialize;
use std::fs;
use std::path::Path;

/// Files up to this size are copied, so that a card can be edited.
const SMALL: u64 = 1 << 20;

/// What is there.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Exported {
    /// The artifacts that are made.
    pub artifacts: Vec<ModelArtifact>,
    /// Gates, by model and target.
    pub gates: Vec<(String, String, GateOutcome)>,
}

/// An artifact of a model.
#[derive(Debug, Clone, Serialize)]
pub struct ModelArtifact {
    /// The model.
    pub model: String,
    /// The job of the recipe, where it has a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// The artifact.
    #[serde(flatten)]
    pub artifact: Artifact,
}

/// Puts everything that is done in its place. What is there already, and the same, stays.
pub fn export(plan: &Plan, store: &Store) -> Result<Exported> {
    let mut all = Exported::default();
    for node in &plan.nodes {
        let (model, folder) = (&plan.models[node.model].name, plan.folder(node));
        if !matches!(node.op, Op::Quantize { .. } | Op::Release) {
            continue;
        }
        let Some(record) = Record::load(store, &node.key)? else { continue };
        for output in &record.outputs {
            place(store, output, &folder.join(&output.name))?;
        }
        match &node.op {
            Op::Quantize { .. } => {
                let mut artifact: Artifact = record.detail("artifact")?;
                artifact.path = folder.join(&artifact.path);
                let job = plan.variants[node.variant].name.clone();
                all.artifacts.push(ModelArtifact { model: model.clone(), job, artifact });
            }
            _ => {
                let gates: Vec<(String, GateOutcome)> = record.detail("gates")?;
                all.gates.extend(gates.into_iter().map(|(target, gate)| (model.clone(), target, gate)));
            }
        }
    }
    Ok(all)
}

fn place(store: &Store, output: &Output, path: &Path) -> Result<()> {
    if is_there(store, output, path)? {
        return Ok(());
    }
    let failed = |e| Error::write(path, e);
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(dir).map_err(failed)?;
    // Beside its place first, so that it is there whole or not at all.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let partial = path.with_file_name(format!("{name}.partial"));
    let _ = fs::remove_file(&partial);
    store.fetch(&output.sha256, &partial)?;
    if output.bytes <= SMALL {
        // Small files are the user's own.
        let bytes = fs::read(&partial).map_err(failed)?;
        fs::remove_file(&partial).and_then(|()| fs::write(&partial, bytes)).map_err(failed)?;
        #[cfg(unix)]
        if name.ends_with(".sh") {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&partial, fs::Permissions::from_mode(0o755)).map_err(failed)?;
        }
    }
    fs::rename(&partial, path).map_err(failed)?;
    // Renaming a link onto another link of the same file leaves both.
    match fs::remove_file(&partial) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed(e)),
        _ => Ok(()),
    }
}

/// Whether a file is there already. A link to the store's needs no reading.
fn is_there(store: &Store, output: &Output, path: &Path) -> Result<bool> {
    let Ok(meta) = fs::metadata(path) else { return Ok(false) };
    if !meta.is_file() || meta.len() != output.bytes {
        return Ok(false);
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let blob = store.root().and_then(|r| fs::metadata(r.join(super::store::blob_name(&output.sha256))).ok());
        if blob.is_some_and(|b| (b.dev(), b.ino()) == (meta.dev(), meta.ino())) {
            return Ok(true);
        }
    }
    let _ = store;
    Ok(sha256_file(path)?.0 == output.sha256)
}
