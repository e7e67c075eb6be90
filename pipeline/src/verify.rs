//! Whether an artifact is sound: it opens, its files are what the manifest and checksums say, every value is finite, and its tensors
//! are close to the source's. Tensors are read in chunks of rows, so memory stays small whatever the model.

mod checksums;
mod compare;
mod reordered;

use crate::problem::Problem;
use bitsmith_formats::store::open_store;
use bitsmith_formats::{Encoding, Error, ErrorKind, Result, TensorInfo, TensorStore};
use bitsmith_runtime::{Checkpoint, Role};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Weights that one thread decodes at a time.
const CHUNK: usize = 1 << 20;

/// What was verified, and what is wrong.
#[derive(Debug, Clone, Serialize)]
pub struct Verified {
    /// The file or folder.
    pub artifact: PathBuf,
    /// `gguf`, `mlx`, ….
    pub container: Option<&'static str>,
    /// The dense model that it was held against.
    pub source: Option<String>,
    /// What hashes were compared with: `manifest`, `SHA256SUMS`.
    pub checksums: Vec<&'static str>,
    /// The tensors, the largest error first; without a source in file order.
    pub tensors: Vec<VerifiedTensor>,
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
    /// Whether nothing is.
    pub ok: bool,
}

/// One tensor.
#[derive(Debug, Clone, Serialize)]
pub struct VerifiedTensor {
    /// Name in the container.
    pub name: String,
    /// What it is for; absent for an unknown architecture.
    pub role: Option<String>,
    /// Block format.
    pub codec: String,
    /// Whether its values were decoded and looked at; types that are only carried cannot be.
    pub decoded: bool,
    /// Root mean square of the error over that of the source's weights.
    pub rel_rmse: Option<f64>,
    /// The error that it may have.
    pub limit: Option<f64>,
}

/// Verifies an artifact. With a source, the error of every tensor must stay below `max_error`, or below what its format makes likely.
/// An error means that there is nothing to verify; what is wrong with an artifact is in the result.
pub fn verify(artifact: &Path, source: Option<(&Checkpoint, &str)>, max_error: Option<f64>) -> Result<Verified> {
    std::fs::metadata(artifact).map_err(|e| Error::read(artifact, e))?;
    let mut verified = Verified {
        artifact: artifact.to_path_buf(),
        container: bitsmith_formats::Container::detect(artifact).ok().map(|c| c.name()),
        source: source.map(|(_, name)| name.to_string()),
        checksums: Vec::new(),
        tensors: Vec::new(),
        problems: Vec::new(),
        ok: false,
    };
    checksums::verify(artifact, &mut verified)?;
    match Checkpoint::open(artifact) {
        Ok(checkpoint) => {
            let roles: BTreeMap<&str, Role> = checkpoint.map().by_name();
            values(checkpoint.store(), &roles, &mut verified);
            if let Some((source, _)) = source {
                compare::verify(&checkpoint, source, max_error, &mut verified)?;
            }
        }
        // Of an architecture that we do not know, the bytes can be verified all the same.
        Err(e) if e.kind == ErrorKind::Unsupported => match open_store(artifact) {
            Ok(store) => {
                values(store.as_ref(), &BTreeMap::new(), &mut verified);
                if source.is_some() {
                    verified.problems.push(e.into());
                }
            }
            Err(e) => verified.problems.push(e.into()),
        },
        Err(e) => verified.problems.push(e.into()),
    }
    verified.ok = verified.problems.is_empty();
    Ok(verified)
}

/// Decodes every tensor and looks for values that are not finite, and for data of the wrong length.
fn values(store: &dyn TensorStore, roles: &BTreeMap<&str, Role>, verified: &mut Verified) {
    verified.problems.extend(values_of(store));
    let one = |t: &TensorInfo| VerifiedTensor {
        name: t.name.clone(),
        role: roles.get(t.name.as_str()).map(Role::to_string),
        codec: t.encoding.to_string(),
        decoded: is_decoded(t),
        rel_rmse: None,
        limit: None,
    };
    verified.tensors = store.tensors().iter().map(one).collect();
}

/// What is wrong with the values of a store's tensors, at most one problem each.
pub(crate) fn values_of(store: &dyn TensorStore) -> Vec<Problem> {
    let tensors = store.tensors();
    let chunks: Vec<(usize, std::ops::Range<usize>)> =
        tensors.iter().enumerate().flat_map(|(i, t)| chunks(t).into_iter().map(move |rows| (i, rows))).collect();
    // In the order of the chunks, whatever threads do.
    let failed: Vec<(usize, Error)> = chunks
        .into_par_iter()
        .filter(|(i, _)| is_decoded(&tensors[*i]))
        .filter_map(|(i, rows)| {
            let t = &tensors[i];
            let weights = rows.len() * t.row_len();
            match store.read_rows(&t.name, rows) {
                Ok(values) if values.len() == weights => None,
                Ok(values) => Some(Error::corrupt(format!("{} values, expected {weights}", values.len()))),
                Err(e) => Some(e),
            }
            .map(|e| (i, e.file(store.file_of(&t.name)).tensor(&t.name)))
        })
        .collect();
    let (mut last, mut problems) = (None, Vec::new());
    for (i, e) in failed {
        // The first finding in a tensor is enough.
        if last.replace(i) != Some(i) {
            problems.push(e.into());
        }
    }
    problems
}

fn is_decoded(t: &TensorInfo) -> bool {
    !matches!(t.encoding, Encoding::Opaque(_))
}

/// Ranges of rows of at most [`CHUNK`] weights, or one row.
fn chunks(t: &TensorInfo) -> Vec<std::ops::Range<usize>> {
    row_chunks(t.n_rows(), t.row_len())
}

fn row_chunks(n_rows: usize, row_len: usize) -> Vec<std::ops::Range<usize>> {
    let step = (CHUNK / row_len.max(1)).max(1);
    (0..n_rows).step_by(step).map(|start| start..(start + step).min(n_rows)).collect()
}
