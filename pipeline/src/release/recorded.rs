//! What manifests and releases record of artifacts, to make them again.

use super::KEY;
use crate::manifest::{InputFile, Made, Manifest, hash_inputs};
use crate::opened::Opened;
use bitsmith_formats::{Error, Result};
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// One artifact as it was made.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Recorded {
    /// Its file or folder.
    pub file: String,
    /// `container:encoding`.
    pub target: String,
    /// Its hash, as manifests state it.
    pub sha256: String,
    /// By whom, of what model, with which flags.
    pub made: Made,
    /// Files of the source.
    pub inputs: Vec<InputFile>,
}

/// Reads the artifacts of a release's `bitsmith.json`, or the one of a manifest.
pub fn read(file: &Path) -> Result<Vec<Recorded>> {
    let bytes = std::fs::read(file).map_err(|e| Error::read(file, e))?;
    let bad = |e: serde_json::Error| {
        Error::corrupt(format!("no record of how artifacts were made: {e}")).file(file).hint("name a bitsmith.json")
    };
    let mut document: Value = serde_json::from_slice(&bytes).map_err(bad)?;
    let recorded = if document[KEY].is_null() {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let m: Manifest = serde_json::from_value(document).map_err(bad)?;
        // In a folder, that folder is the artifact.
        let folder = || file.canonicalize().ok().and_then(|f| Some(f.parent()?.file_name()?.to_string_lossy().into_owned()));
        let file = name.strip_suffix(".bitsmith.json").map(String::from).or_else(folder).unwrap_or_default();
        vec![Recorded { file, target: m.recipe.target, sha256: m.sha256, made: m.made, inputs: m.recipe.inputs }]
    } else {
        serde_json::from_value(document["artifacts"].take()).map_err(bad)?
    };
    match recorded.iter().find(|r| !r.made.command.is_object()) {
        Some(r) => Err(Error::missing(format!("how {} was made is not recorded", r.target)).file(file)),
        None => Ok(recorded),
    }
}

impl Recorded {
    /// What the artifact was called: its file or folder, or what the names of its files begin with.
    pub fn name(&self) -> String {
        let Some(stem) = self.file.strip_suffix(".gguf") else { return self.file.clone() };
        let digits = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
        let parts: Vec<&str> = stem.rsplitn(4, '-').collect();
        match parts[..] {
            [n, "of", i, name] if digits(n) && digits(i) => format!("{name}.gguf"),
            _ => self.file.clone(),
        }
    }

    /// Whether a model is the one that the artifact was made of, file by file.
    pub fn check_source(&self, model: &Opened) -> Result<()> {
        let path = model.checkpoint.path();
        let found = hash_inputs(path)?;
        let other = self.inputs.iter().find(|f| !found.contains(f)).or_else(|| found.iter().find(|f| !self.inputs.contains(f)));
        match other {
            Some(file) => {
                let message = format!("{} is not what {} was made of", file.name, self.target);
                Err(Error::corrupt(message).file(path))
            }
            None => Ok(()),
        }
    }
}
