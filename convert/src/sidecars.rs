//! The small files of a checkpoint folder that go along unchanged.

use bitsmith_formats::{Error, Result};
use std::path::{Path, PathBuf};

/// Copies tokenizer, template, generation and preprocessor files and licences from one folder to another. Weights, code, READMEs
/// and `config.json` are not among them. Returns the names, sorted.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(from).map_err(|e| Error::read(from, e))? {
        let entry = entry.map_err(|e| Error::read(from, e))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = entry.path();
        // Files of the hub's cache are links: `is_file` follows them.
        if path.is_file() && is_sidecar(&name) {
            names.push(PathBuf::from(name));
        } else if path.is_dir() && name == "additional_chat_templates" {
            for file in std::fs::read_dir(&path).map_err(|e| Error::read(&path, e))? {
                let file = file.map_err(|e| Error::read(&path, e))?;
                if file.path().is_file() && file.path().extension().is_some_and(|e| e == "jinja") {
                    names.push(Path::new(&name).join(file.file_name()));
                }
            }
        } else if name.ends_with("_Pooling") && path.join("config.json").is_file() {
            // How sentence-transformers makes one embedding of a text.
            names.push(Path::new(&name).join("config.json"));
        }
    }
    names.sort();
    for name in &names {
        let (source, target) = (from.join(name), to.join(name));
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(|e| Error::write(parent, e))?;
        }
        let bytes = std::fs::read(&source).map_err(|e| Error::read(&source, e))?;
        std::fs::write(&target, bytes).map_err(|e| Error::write(&target, e))?;
    }
    Ok(names)
}

/// Names of the licence files in a folder, sorted; none if there is no such folder.
pub fn licenses(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let names = entries.flatten().filter(|e| e.path().is_file()).filter_map(|e| e.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|n| is_license(n)).collect();
    names.sort();
    names
}

fn is_license(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"].iter().any(|start| upper.starts_with(start))
}

fn is_sidecar(name: &str) -> bool {
    const EXACT: &[&str] = &[
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "tekken.json",
        "generation_config.json",
        "chat_template.json",
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "preprocessor_config.json",
        "processor_config.json",
        "video_preprocessor_config.json",
        "image_processor_config.json",
    ];
    EXACT.contains(&name)
        || name.starts_with("tokenizer") && name.ends_with(".json")
        || [".jinja", ".model", ".tiktoken"].iter().any(|end| name.ends_with(end))
        || is_license(name)
}
