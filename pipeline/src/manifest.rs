//! What stands beside every artifact: where it came from, how it was made, and what it measures.

use crate::release::provenance;
use bitsmith_formats::atomic::write_file;
use bitsmith_formats::gguf::set_paths;
use bitsmith_formats::hash::{sha256_bytes, sha256_file};
use bitsmith_formats::links;
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

impl InputFile {
    /// A file, which is read once to hash it.
    pub fn of(path: &Path) -> Result<InputFile> {
        let (sha256, bytes) = sha256_file(path)?;
        Ok(InputFile { name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(), bytes, sha256 })
    }
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
    /// Seed of what is random in the method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
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
        links::is_inside(&self.file) && path.is_file() && sha256_file(&path).is_ok_and(|(sha256, _)| sha256 == self.sha256)
    }
}

/// By whom and from what an artifact was made: nothing here changes its bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Made {
    /// What the user called the model, with the commit if it came from the hub.
    pub model: String,
    /// The model's hub id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repo: Option<String>,
    /// Its commit there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The flags that were given, as a recipe file has them.
    pub command: Value,
    /// The tool's version.
    pub version: String,
    /// The commit that the tool was built from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The widest vector instructions in use.
    pub instructions: String,
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
    /// The artifact's files, of which `sha256` is made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<InputFile>,
    /// By whom it was made.
    #[serde(default)]
    pub made: Made,
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
/// The manifest in a folder.
pub const IN_FOLDER: &str = "bitsmith.json";
/// The card in a folder.
pub const CARD: &str = "README.md";
/// The script in an MLX folder that serves it.
pub const LAUNCHER: &str = "mlx-openai-server.sh";
/// Checksums of a folder's files, as `sha256sum` writes them.
pub const SUMS_FILE: &str = "SHA256SUMS";

impl Manifest {
    /// A manifest for a finished artifact, which is read once to hash it.
    pub fn new(artifact: &Path, recipe: Recipe, bpw: f64, seconds: f64, notes: Vec<String>) -> Result<Manifest> {
        let files = hash_files(artifact)?;
        let (sha256, bytes) = together(artifact, &files);
        let key = recipe.key()?;
        Ok(Manifest {
            schema: SCHEMA,
            key,
            recipe,
            bytes,
            sha256,
            bpw,
            seconds,
            notes,
            files,
            made: Made::default(),
            companions: Vec::new(),
            dropped: Vec::new(),
            quality: None,
        })
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

    /// Writes the manifest beside its artifact: as an in-toto statement, with the manifest's own keys after the statement's.
    pub fn save(&self, artifact: &Path) -> Result<()> {
        let own = serde_json::to_value(self).map_err(|e| Error::failed(e.to_string()))?;
        let mut document = provenance::statement(self.subjects(), &[self]);
        if let (Value::Object(all), Value::Object(own)) = (&mut document, own) {
            all.extend(own);
        }
        write_json(&Self::path(artifact), &document)
    }

    /// The files that the manifest speaks for: the artifact's and its companions.
    pub fn subjects(&self) -> Vec<(String, String)> {
        let own = self.files.iter().map(|f| (f.name.clone(), f.sha256.clone()));
        own.chain(self.companions.iter().map(|c| (c.file.clone(), c.sha256.clone()))).collect()
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

/// Files of a folder that are written about it, and are no part of it.
const ABOUT: [&str; 4] = [IN_FOLDER, SUMS_FILE, CARD, LAUNCHER];

/// A JSON document for people and programs, ended by a line feed.
pub(crate) fn write_json(path: &Path, document: &Value) -> Result<()> {
    let mut json = serde_json::to_vec_pretty(document).map_err(|e| Error::failed(e.to_string()))?;
    json.push(b'\n');
    write_file(path, &json)
}

/// sha256 and size of a file, of a split set that is named by its first file, or of a folder's files without those that are written
/// about it.
pub fn hash_artifact(path: &Path) -> Result<(String, u64)> {
    Ok(together(path, &hash_files(path)?))
}

/// The files of an artifact.
fn hash_files(path: &Path) -> Result<Vec<InputFile>> {
    let files: Vec<PathBuf> = match path.is_dir() {
        true => list_files(path)?.into_iter().filter(|f| !ABOUT.contains(&f.as_str())).map(|f| path.join(f)).collect(),
        false => set_paths(path),
    };
    files.iter().map(|file| InputFile::of(file)).collect()
}

/// sha256 and size of an artifact from those of its files.
fn together(path: &Path, files: &[InputFile]) -> (String, u64) {
    match files {
        [file] if !path.is_dir() => (file.sha256.clone(), file.bytes),
        _ => {
            let lines: String = files.iter().map(|f| format!("{}  {}\n", f.sha256, f.name)).collect();
            (sha256_bytes(lines.as_bytes()), files.iter().map(|f| f.bytes).sum())
        }
    }
}

/// The source model's files that decide an artifact: weights, configuration and tokenizer.
pub fn hash_inputs(model: &Path) -> Result<Vec<InputFile>> {
    input_files(model)?.iter().map(|file| InputFile::of(file)).collect()
}

/// The paths of these files.
pub fn input_files(model: &Path) -> Result<Vec<PathBuf>> {
    let relevant = |name: &str| {
        let ends = [".safetensors", ".bin", ".pt", ".pth", ".json", ".model", ".txt", ".jinja"];
        ends.iter().any(|e| name.ends_with(e)) && name != IN_FOLDER
    };
    Ok(match model.is_dir() {
        true => list_files(model)?.into_iter().filter(|f| relevant(f)).map(|f| model.join(f)).collect(),
        false => set_paths(model),
    })
}

/// Names of the plain files directly in a folder, sorted.
pub(crate) fn list_files(dir: &Path) -> Result<Vec<String>> {
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    /// A manifest of an artifact that there is not.
    pub(crate) fn manifest(target: &str) -> Manifest {
        let file = |name: &str, sha256: &str| InputFile { name: name.into(), bytes: 7, sha256: sha256.into() };
        Manifest {
            schema: SCHEMA,
            key: "k".into(),
            recipe: Recipe {
                tool: "bitsmith".into(),
                inputs: vec![file("model.safetensors", "aa")],
                target: target.into(),
                method: "awq+gptq".into(),
                plan: Value::Null,
                calibration: Some(json!({"data": "builtin", "sha256": "cc", "samples": 4, "ctx": 64})),
                shard_size: None,
                mtp: None,
                device: None,
                seed: None,
            },
            bytes: 7,
            sha256: "bb".into(),
            bpw: 4.5,
            seconds: 1.0,
            notes: vec![],
            files: vec![file("m.gguf", "bb")],
            made: Made {
                model: "org/m@0123".into(),
                repo: Some("org/m".into()),
                revision: Some("0123".into()),
                ..Made::default()
            },
            companions: vec![Companion { kind: "mmproj".into(), file: "mmproj-m.gguf".into(), bytes: 3, sha256: "dd".into() }],
            dropped: vec![],
            quality: None,
        }
    }

    #[test]
    fn a_manifest_is_an_in_toto_statement() {
        let dir = tempfile::tempdir().unwrap();
        let (artifact, made) = (dir.path().join("m.gguf"), manifest("gguf:q4_k_m"));
        std::fs::write(&artifact, "weights").unwrap();
        made.save(&artifact).unwrap();
        assert_eq!(Manifest::load(&artifact).as_ref(), Some(&made));
        let document: Value = serde_json::from_slice(&std::fs::read(Manifest::path(&artifact)).unwrap()).unwrap();
        assert_eq!(document["_type"], "https://in-toto.io/Statement/v1");
        let subject = |name: &str, hash: &str| json!({"name": name, "digest": {"sha256": hash}});
        assert_eq!(document["subject"], json!([subject("m.gguf", "bb"), subject("mmproj-m.gguf", "dd")]));
        let from = &document["predicate"]["buildDefinition"]["resolvedDependencies"];
        let mut weights = subject("model.safetensors", "aa");
        weights["uri"] = "https://huggingface.co/org/m/resolve/0123/model.safetensors".into();
        assert_eq!(from, &json!([weights, subject("calibration: builtin", "cc")]));
        assert_eq!(document["predicate"]["runDetails"]["builder"]["id"], "urn:bitsmith");
    }
}
