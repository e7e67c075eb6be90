//! What stands beside every artifact: where it came from, how it was made, and what it measures.

use bitsmith_formats::atomic::write_file;
use bitsmith_formats::gguf::set_paths;
use bitsmith_formats::hash::{sha256_bytes, sha256_file};
use bitsmith_formats::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// One file of the source model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InputFile {
    /// Path relative to the model.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// sha256, lower-case hex.
    pub sha256: String,
}

/// What decides an artifact's bytes. Its hash is the artifact's key: the same key means the same bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// The tool and its version.
    pub tool: String,
    /// Files of the source model.
    pub inputs: Vec<InputFile>,
    /// `container:encoding`.
    pub target: String,
    /// Transforms and solver.
    pub method: String,
    /// The format of every tensor.
    pub plan: Value,
    /// Calibration: data, its sha256, samples, ctx, mode; or the statistics or imatrix file's sha256.
    pub calibration: Option<Value>,
    /// Largest file of a set in bytes, where the container is written in several files and a size was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard_size: Option<u64>,
    /// `split` where layers for multi-token prediction have a file of their own; the plan tells the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtp: Option<String>,
    /// The kind of device that calibration ran on, if not the CPU: others round differently.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

impl Recipe {
    /// sha256 of the recipe's canonical JSON.
    pub fn key(&self) -> Result<String> {
        Ok(sha256_bytes(&serde_json::to_vec(self).map_err(|e| Error::failed(e.to_string()))?))
    }
}

/// A file that lies beside an artifact and belongs to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Companion {
    /// What it is for: `mmproj`.
    pub kind: String,
    /// Its name.
    pub file: String,
    /// Size in bytes.
    pub bytes: u64,
    /// sha256, lower-case hex.
    pub sha256: String,
}

impl Companion {
    /// A finished file, which is read once to hash it.
    pub fn of(kind: &str, path: &Path) -> Result<Companion> {
        let (sha256, bytes) = sha256_file(path)?;
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Companion { kind: kind.into(), file, bytes, sha256 })
    }

    /// Whether it lies unchanged beside its artifact.
    pub fn is_beside(&self, artifact: &Path) -> bool {
        let path = artifact.with_file_name(&self.file);
        path.is_file() && sha256_file(&path).is_ok_and(|(sha256, _)| sha256 == self.sha256)
    }
}

/// The manifest of one artifact.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this layout.
    pub schema: u32,
    /// Key of the recipe.
    pub key: String,
    /// How the artifact was made.
    pub recipe: Recipe,
    /// Size in bytes, all files together.
    pub bytes: u64,
    /// sha256 of the file; for a folder or a split set, of its `sha256  name` lines sorted by name.
    pub sha256: String,
    /// Bits per weight, scales included.
    pub bpw: f64,
    /// Wall time of making it, in seconds.
    pub seconds: f64,
    /// What transforms, solvers and fallbacks reported.
    pub notes: Vec<String>,
    /// Files that belong to the artifact without being part of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub companions: Vec<Companion>,
    /// Tensors of the source that the artifact does not have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<String>,
    /// Measured quality, once evaluated.
    pub quality: Option<Value>,
}

const SCHEMA: u32 = 1;
const IN_FOLDER: &str = "bitsmith.json";
/// Checksums of a folder's files, as `sha256sum` writes them.
pub const SUMS_FILE: &str = "SHA256SUMS";

impl Manifest {
    /// A manifest for a finished artifact, which is read once to hash it.
    pub fn new(artifact: &Path, recipe: Recipe, bpw: f64, seconds: f64, notes: Vec<String>) -> Result<Manifest> {
        let (sha256, bytes) = hash_artifact(artifact)?;
        let (companions, dropped) = (Vec::new(), Vec::new());
        let key = recipe.key()?;
        Ok(Manifest { schema: SCHEMA, key, recipe, bytes, sha256, bpw, seconds, notes, companions, dropped, quality: None })
    }

    /// Where an artifact's manifest lies: inside a folder, beside a file.
    pub fn path(artifact: &Path) -> PathBuf {
        if artifact.is_dir() {
            return artifact.join(IN_FOLDER);
        }
        let mut name = artifact.file_name().unwrap_or_default().to_os_string();
        name.push(".bitsmith.json");
        artifact.with_file_name(name)
    }

    /// Writes the manifest beside its artifact.
    pub fn save(&self, artifact: &Path) -> Result<()> {
        let mut json = serde_json::to_vec_pretty(self).map_err(|e| Error::failed(e.to_string()))?;
        json.push(b'\n');
        write_file(Self::path(artifact), &json)
    }

    /// The manifest beside an artifact, if both are there and can be read.
    pub fn load(artifact: &Path) -> Option<Manifest> {
        let json = std::fs::read(Self::path(artifact)).ok()?;
        serde_json::from_slice(&json).ok().filter(|m: &Manifest| m.schema == SCHEMA)
    }

    /// Whether the artifact and all that belongs to it are the finished result of `recipe`, unchanged since.
    pub fn proves(&self, artifact: &Path, recipe: &Recipe) -> bool {
        recipe.key().is_ok_and(|k| k == self.key)
            && hash_artifact(artifact).is_ok_and(|(sha, _)| sha == self.sha256)
            && self.companions.iter().all(|c| c.is_beside(artifact))
    }
}

/// sha256 and size of a file, of a split set that is named by its first file, or of a folder's files without manifest and
/// checksums.
pub fn hash_artifact(path: &Path) -> Result<(String, u64)> {
    let files = match path.is_dir() {
        true => list_files(path)?.into_iter().filter(|f| f != IN_FOLDER && f != SUMS_FILE).map(|f| path.join(f)).collect(),
        false => set_paths(path),
    };
    if !path.is_dir() && files.len() == 1 {
        return sha256_file(path);
    }
    let (mut lines, mut total) = (String::new(), 0);
    for file in files {
        let (sha, bytes) = sha256_file(&file)?;
        lines.push_str(&format!("{sha}  {}\n", file.file_name().unwrap_or_default().to_string_lossy()));
        total += bytes;
    }
    Ok((sha256_bytes(lines.as_bytes()), total))
}

/// The source model's files that decide an artifact: weights, configuration and tokenizer.
pub fn hash_inputs(model: &Path) -> Result<Vec<InputFile>> {
    let relevant = |name: &str| {
        let ends = [".safetensors", ".bin", ".pt", ".pth", ".json", ".model", ".txt", ".jinja"];
        ends.iter().any(|e| name.ends_with(e)) && name != IN_FOLDER
    };
    let files: Vec<(String, PathBuf)> = if model.is_dir() {
        list_files(model)?.into_iter().filter(|f| relevant(f)).map(|f| (f.clone(), model.join(f))).collect()
    } else {
        set_paths(model).into_iter().map(|p| (p.file_name().unwrap_or_default().to_string_lossy().into_owned(), p)).collect()
    };
    files.into_iter().map(|(name, path)| sha256_file(&path).map(|(sha256, bytes)| InputFile { name, bytes, sha256 })).collect()
}

/// Names of the plain files directly in a folder, sorted.
fn list_files(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::read(dir, e))? {
        let entry = entry.map_err(|e| Error::read(dir, e))?;
        // Hub caches hold links to files.
        if entry.path().is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}
