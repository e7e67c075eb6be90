//! What all checkpoint folders have in common: configuration, card, sidecar files, the last steps of writing.

use crate::about::{ModelAbout, yaml};
use crate::layout::Layout;
use crate::{Artifact, sidecars};
use bitsmith_formats::atomic::AtomicDir;
use bitsmith_formats::mlx::CONFIG_FILE;
use bitsmith_formats::{Error, Float, Result};
use serde::Serialize;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// A folder can only be made from a folder.
pub(crate) fn check_source(source: &Path, kind: &str) -> Result<()> {
    if source.is_dir() {
        return Ok(());
    }
    let message =
        format!("{kind} folder can be made from a checkpoint folder only: it carries on config.json and the tokenizer's files");
    Err(Error::unsupported(message).file(source).hint("name the Hugging Face checkpoint that this file was made from"))
}

/// A JSON object from a file.
pub(crate) fn read_json(path: &Path) -> Result<Map<String, Value>> {
    let bytes = std::fs::read(path).map_err(|e| Error::read(path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::corrupt(format!("not a JSON object: {e}")).file(path).with_source(e))
}

/// The name of a type in `config.json`.
pub(crate) fn dtype(float: Float) -> &'static str {
    match float {
        Float::F32 => "float32",
        Float::F16 => "float16",
        Float::BF16 => "bfloat16",
    }
}

/// JSON with four spaces of indentation, as Python's `json.dump(indent=4)` writes it.
fn pretty(value: &Value) -> Result<String> {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, serde_json::ser::PrettyFormatter::with_indent(b"    "));
    value.serialize(&mut serializer).map_err(|e| Error::failed(e.to_string()).with_source(e))?;
    String::from_utf8(out).map_err(|e| Error::failed(e.to_string()).with_source(e))
}

/// Writes a JSON file into a folder.
pub(crate) fn write_json(folder: &Path, name: &str, value: &Value) -> Result<()> {
    let path = folder.join(name);
    std::fs::write(&path, pretty(value)?).map_err(|e| Error::write(path, e))
}

/// What a card says of its kind of folder.
pub(crate) struct Kind<'a> {
    /// The hub's name of the library that loads it.
    pub library: &'a str,
    /// The tag by which it is found.
    pub tag: &'a str,
    /// The format's name in a sentence.
    pub format: &'a str,
    /// Commands that install and run it.
    pub commands: &'a str,
}

/// The `README.md` of a folder.
pub(crate) fn card(about: &ModelAbout, layout: &Layout, kind: &Kind<'_>) -> String {
    let mut lines = vec!["---".to_string(), format!("library_name: {}", kind.library)];
    lines.push(format!("pipeline_tag: {}", yaml(about.pipeline_tag.as_deref().unwrap_or("text-generation"))));
    lines.extend(about.card_lines(layout.tensors.iter().any(|t| t.codec.float().is_none())));
    lines.push("tags:".into());
    lines.push(format!("- {}", kind.tag));
    lines.extend(about.tags.iter().filter(|t| *t != kind.tag).map(|t| format!("- {}", yaml(t))));
    lines.push("---".into());
    let (bpw, _) = layout.bits_per_weight();
    let origin = match &about.repo {
        Some(repo) => format!("[{repo}](https://huggingface.co/{repo})"),
        None => about.name.clone(),
    };
    let version = env!("CARGO_PKG_VERSION");
    lines.push(format!("\n# {}\n", about.name));
    lines.push(format!("{origin} in {} format, {bpw:.2} bits per weight, made with bitsmith {version}.\n", kind.format));
    lines.push(format!("```sh\n{}\n```\n", kind.commands));
    lines.join("\n")
}

/// Completes a folder whose weights are written: sidecar files, card and configuration; `check` reads it back; then it gets its
/// final name.
pub(crate) fn finish(
    source: &Path,
    dir: AtomicDir,
    card: &str,
    config: &Value,
    check: impl FnOnce(&Path) -> Result<()>,
) -> Result<Artifact> {
    sidecars::copy(source, dir.path())?;
    let readme = dir.path().join("README.md");
    std::fs::write(&readme, card).map_err(|e| Error::write(readme, e))?;
    write_json(dir.path(), CONFIG_FILE, config)?;
    check(dir.path())?;
    let path = dir.target().to_path_buf();
    dir.commit()?;
    let mut files = Vec::new();
    sizes(&path, &mut files)?;
    files.sort();
    Ok(Artifact { path, files })
}

fn sizes(folder: &Path, out: &mut Vec<(PathBuf, u64)>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(|e| Error::read(folder, e))? {
        let path = entry.map_err(|e| Error::read(folder, e))?.path();
        let meta = std::fs::metadata(&path).map_err(|e| Error::read(&path, e))?;
        if meta.is_dir() {
            sizes(&path, out)?;
        } else {
            out.push((path, meta.len()));
        }
    }
    Ok(())
}
