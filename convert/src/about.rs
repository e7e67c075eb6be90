//! What a source's README and path tell about a model: licence, origin, languages.

use crate::names;
use bitsmith_formats::gguf::Metadata;
use bitsmith_formats::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// What is known about a model besides its hyperparameters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelAbout {
    /// The model's name.
    pub name: String,
    /// The source's hub id (`org/name`), if it came from the hub.
    pub repo: Option<String>,
    /// The source's revision on the hub.
    pub revision: Option<String>,
    /// Licence identifier (`apache-2.0`, `other`, …).
    pub license: Option<String>,
    /// Name of a licence that has no identifier.
    pub license_name: Option<String>,
    /// Where such a licence stands.
    pub license_link: Option<String>,
    /// The models that the source was made from, hub ids.
    pub base_models: Vec<String>,
    /// Languages, as codes.
    pub languages: Vec<String>,
    /// Free tags.
    pub tags: Vec<String>,
    /// The hub's task (`text-generation`).
    pub pipeline_tag: Option<String>,
}

impl ModelAbout {
    /// Reads the front matter of a checkpoint folder's `README.md`, if there is one.
    pub fn from_source(source: &Path, repo: Option<&str>) -> Result<Self> {
        let mut about = ModelAbout { name: names::model_name(source, repo), repo: repo.map(String::from), ..Default::default() };
        let readme = source.join("README.md");
        let text = match std::fs::read_to_string(&readme) {
            Ok(text) => text,
            Err(e)
                if matches!(
                    e.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory | std::io::ErrorKind::InvalidData
                ) =>
            {
                return Ok(about);
            }
            Err(e) => return Err(Error::read(readme, e)),
        };
        let mut keys = front_matter(&text);
        let mut list = |key: &str| keys.remove(key).unwrap_or_default();
        about.license = list("license").into_iter().next();
        about.license_name = list("license_name").into_iter().next();
        about.license_link = list("license_link").into_iter().next();
        about.pipeline_tag = list("pipeline_tag").into_iter().next();
        about.base_models = list("base_model");
        about.languages = list("language");
        about.tags = list("tags");
        Ok(about)
    }

    /// What the metadata of a GGUF file say.
    pub fn from_gguf(metadata: &Metadata, file: &Path) -> Result<Self> {
        let text = |key: &str| -> Result<Option<String>> {
            Ok(metadata.optional(&format!("general.{key}"), Metadata::str).map_err(|e| e.file(file))?.map(String::from))
        };
        let list = |key: &str| -> Result<Vec<String>> {
            Ok(metadata
                .optional(&format!("general.{key}"), Metadata::strings)
                .map_err(|e| e.file(file))?
                .unwrap_or_default()
                .to_vec())
        };
        let mut base_models = Vec::new();
        while let Some(url) = text(&format!("base_model.{}.repo_url", base_models.len()))? {
            base_models.push(url.trim_start_matches("https://huggingface.co/").to_string());
        }
        Ok(ModelAbout {
            name: text("name")?.unwrap_or_else(|| names::model_name(file, None)),
            repo: text("source.huggingface.repository")?,
            revision: text("source.huggingface.revision")?,
            license: text("license")?,
            license_name: text("license.name")?,
            license_link: text("license.link")?,
            base_models,
            languages: list("languages")?,
            tags: list("tags")?,
            pipeline_tag: None,
        })
    }

    /// The model that an artifact made from this source is based on: the source itself if it has a hub id, else what it names.
    pub fn parents(&self) -> Vec<String> {
        self.repo.clone().map_or_else(|| self.base_models.clone(), |r| vec![r])
    }

    /// YAML lines of what a card passes on: licence, base model (and that the artifact is a quantization of it), languages.
    pub(crate) fn card_lines(&self, quantized: bool) -> Vec<String> {
        let mut lines = Vec::new();
        let scalars = [("license", &self.license), ("license_name", &self.license_name), ("license_link", &self.license_link)];
        for (key, value) in scalars {
            lines.extend(value.iter().map(|v| format!("{key}: {}", yaml(v))));
        }
        let parents = self.parents();
        for (key, list) in [("language", &self.languages), ("base_model", &parents)] {
            if !list.is_empty() {
                lines.push(format!("{key}:"));
                lines.extend(list.iter().map(|v| format!("- {}", yaml(v))));
            }
        }
        if quantized && !parents.is_empty() {
            lines.push("base_model_relation: quantized".into());
        }
        lines
    }
}

/// A YAML scalar, quoted where it must be.
pub fn yaml(text: &str) -> String {
    // Plain letters, except the words that YAML reads as something else (Norway's `no` for one).
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
    let word = matches!(text.to_ascii_lowercase().as_str(), "yes" | "no" | "on" | "off" | "true" | "false" | "null" | "y" | "n");
    if plain && !word { text.to_string() } else { serde_json::Value::from(text).to_string() }
}

/// The keys of a README's front matter that are scalars or flat lists, as lists. Anything nested is left out.
fn front_matter(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut keys: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut lines = text.strip_prefix('\u{feff}').unwrap_or(text).lines();
    if lines.next().map(str::trim_end) != Some("---") {
        return keys;
    }
    let mut current: Option<String> = None;
    for line in lines.take_while(|l| l.trim_end() != "---") {
        if let Some(item) = line.trim_start().strip_prefix("- ") {
            if let (Some(key), false) = (&current, item.contains(": ") || item.ends_with(':')) {
                keys.entry(key.clone()).or_default().push(unquote(item));
            }
            continue;
        }
        if line.starts_with([' ', '\t', '#']) {
            continue;
        }
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        current = Some(key.trim().to_string());
        let values: Vec<String> = match value.strip_prefix('[').and_then(|v| v.strip_suffix(']')) {
            Some(list) => list.split(',').map(unquote).filter(|v| !v.is_empty()).collect(),
            None if value.is_empty() || matches!(value, "|" | ">" | "|-" | ">-") => continue,
            None => vec![unquote(value)],
        };
        keys.insert(key.trim().to_string(), values);
    }
    keys
}

fn unquote(text: &str) -> String {
    let text = text.trim();
    let inner = ['"', '\''].into_iter().find_map(|q| text.strip_prefix(q)?.strip_suffix(q));
    match inner {
        Some(inner) => inner.to_string(),
        None => text.split(" #").next().unwrap_or(text).trim().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_front_matter() {
        let dir = tempfile::tempdir().unwrap();
        let text = "---\nlicense: other\nlicense_name: \"my licence\"\nlanguage:\n- en\n- 'no'\ntags: [a, b]\nbase_model: org/base # first\nmodel-index:\n- name: x\n  results: []\n---\n# Title\nlicense: no\n";
        std::fs::write(dir.path().join("README.md"), text).unwrap();
        let about = ModelAbout::from_source(dir.path(), Some("me/model-1B")).unwrap();
        assert_eq!(
            (about.name.as_str(), about.license.as_deref(), about.license_name.as_deref()),
            ("model-1B", Some("other"), Some("my licence"))
        );
        assert_eq!(
            (about.languages.clone(), about.tags.clone()),
            (vec!["en".to_string(), "no".into()], vec!["a".to_string(), "b".into()])
        );
        assert_eq!(about.base_models, ["org/base"]);
        assert_eq!(
            about.card_lines(true),
            [
                "license: other",
                "license_name: \"my licence\"",
                "language:",
                "- en",
                "- \"no\"",
                "base_model:",
                "- me/model-1B",
                "base_model_relation: quantized"
            ]
        );
    }

    #[test]
    fn a_source_without_readme_has_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let about = ModelAbout::from_source(&dir.path().join("tiny"), None).unwrap();
        assert_eq!(about, ModelAbout { name: "tiny".into(), ..Default::default() });
    }
}
