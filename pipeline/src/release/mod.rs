//! Everything beside artifacts that makes a folder of them a release: a card, licences, checksums, provenance, and the files by which
//! Ollama, LM Studio and mlx-openai-server take it as it is.
//!
//! GGUF files of one model lie in one folder, a repository of the hub as it will be. Every other artifact is a folder, and a
//! repository, of its own. A release speaks for all artifacts of its folder that have the same source, also for those of earlier
//! jobs. What stands in these files depends on the artifacts' manifests alone: they are the same however often they are written.

pub mod card;
mod folder;
mod gguf;
pub mod provenance;
pub mod recorded;
mod results;

use crate::artifact::Output;
use crate::manifest::{CARD, IN_FOLDER, InputFile, SUMS_FILE};
use crate::quantize::{Artifact, Job};
use bitsmith_convert::licenses;
use bitsmith_formats::atomic::write_file;
use bitsmith_formats::{Error, ErrorKind, Result};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The version of a release's `bitsmith.json`, under this key.
const KEY: &str = "release";
const VERSION: u32 = 1;

/// Whether a folder is a release of GGUF files.
pub fn is_at(dir: &Path) -> bool {
    document(dir).is_some()
}

/// A release's `bitsmith.json`.
fn document(dir: &Path) -> Option<Value> {
    let json = fs::read(dir.join(IN_FOLDER)).ok()?;
    serde_json::from_slice(&json).ok().filter(|d: &Value| d[KEY] == VERSION)
}

/// Refuses, before the work, a folder with a card that is not ours.
pub fn check(job: &Job<'_>) -> Result<()> {
    if !job.options.targets.iter().any(|t| t.container() == "gguf") {
        return Ok(());
    }
    let dir = match &job.options.out {
        Output::Folder(folder) | Output::Each(folder, _) => folder.gguf_dir(&job.model.about.name),
        Output::Exact(path) => folder_of(path).to_path_buf(),
    };
    let card = dir.join(CARD);
    if card.exists() && !is_at(&dir) {
        let message = "the folder has a README.md that no release of ours wrote";
        return Err(Error::new(ErrorKind::CannotWrite, message).file(card).hint("choose another folder for the release"));
    }
    Ok(())
}

/// The folder that a file lies in.
fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes the releases of these artifacts. Returns their folders.
pub fn write(job: &Job<'_>, artifacts: &[Artifact]) -> Result<Vec<PathBuf>> {
    let mut done = BTreeSet::new();
    for artifact in artifacts {
        if artifact.path.is_dir() {
            folder::write(job, &artifact.path)?;
            done.insert(artifact.path.clone());
        } else {
            let dir = folder_of(&artifact.path).to_path_buf();
            if done.insert(dir.clone()) {
                gguf::write(job, &dir, &artifact.path)?;
            }
        }
    }
    Ok(done.into_iter().collect())
}

/// The files of a release, as they are written.
struct Files<'a> {
    dir: &'a Path,
    names: BTreeSet<String>,
}

impl<'a> Files<'a> {
    fn new(dir: &'a Path) -> Self {
        Files { dir, names: BTreeSet::new() }
    }

    /// Writes a file; its folder appears with it.
    fn put(&mut self, name: &str, text: &str) -> Result<()> {
        let path = self.dir.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|e| Error::write(parent, e))?;
        }
        write_file(&path, text.as_bytes())?;
        self.names.insert(name.to_string());
        Ok(())
    }

    /// Writes scores.
    fn put_results(&mut self, entries: &[card::Entry]) -> Result<()> {
        results::files(entries).iter().try_for_each(|(name, text)| self.put(&format!(".eval_results/{name}"), text))
    }

    /// Copies the source's licence files. Returns their texts.
    fn put_licenses(&mut self, job: &Job<'_>) -> Result<Vec<String>> {
        let source = job.model.checkpoint.path();
        if !source.is_dir() {
            return Ok(Vec::new());
        }
        let mut texts = Vec::new();
        for name in licenses(source) {
            let path = source.join(&name);
            let bytes = fs::read(&path).map_err(|e| Error::read(&path, e))?;
            write_file(self.dir.join(&name), &bytes)?;
            texts.push(String::from_utf8_lossy(&bytes).into_owned());
            self.names.insert(name);
        }
        Ok(texts)
    }

    /// `SHA256SUMS` of everything that was written and of `known` files, which are not read again.
    fn sums(self, known: Vec<(String, String)>) -> Result<()> {
        let mut sums = known;
        for name in self.names {
            let hash = InputFile::of(&self.dir.join(&name))?.sha256;
            sums.push((name, hash));
        }
        sums.sort();
        sums.dedup();
        let text: String = sums.iter().map(|(name, sha256)| format!("{sha256}  {name}\n")).collect();
        write_file(self.dir.join(SUMS_FILE), text.as_bytes())
    }
}
