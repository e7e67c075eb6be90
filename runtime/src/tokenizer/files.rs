//! The files of a Hugging Face folder that describe its tokenizer.

use super::chat::ChatTemplates;
use super::pre::flatten;
use bitsmith_formats::{Error, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Parsed once, read by the tokenizer and by the GGUF writer.
pub(super) struct HfFiles {
    pub tokenizer_path: PathBuf,
    pub tokenizer_bytes: Vec<u8>,
    /// `tokenizer.json`.
    pub tokenizer: Value,
    config_path: PathBuf,
    /// `tokenizer_config.json`, null if absent.
    config: Value,
    generation: Value,
    model_config: Value,
    jinja: Option<String>,
    template_json: Value,
}

impl HfFiles {
    pub fn read(folder: &Path) -> Result<Self> {
        Self::read_by(folder, |name| match std::fs::read(folder.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::read(folder.join(name), e)),
        })
    }

    /// With the contents of files as `read` gives them by name.
    pub fn read_by(folder: &Path, read: impl Fn(&str) -> Result<Option<Vec<u8>>>) -> Result<Self> {
        let optional_json = |name: &str| match read(name)? {
            None => Ok(Value::Null),
            Some(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| Error::corrupt(format!("not JSON: {e}")).file(folder.join(name)).with_source(e)),
        };
        let tokenizer_path = folder.join("tokenizer.json");
        let tokenizer_bytes = read("tokenizer.json")?.ok_or_else(|| missing(folder, &tokenizer_path))?;
        let tokenizer = serde_json::from_slice(&tokenizer_bytes)
            .map_err(|e| Error::corrupt(format!("not JSON: {e}")).file(&tokenizer_path).with_source(e))?;
        const JINJA: &str = "chat_template.jinja";
        let text = |bytes| {
            String::from_utf8(bytes).map_err(|e| Error::corrupt("not text in UTF-8").file(folder.join(JINJA)).with_source(e))
        };
        Ok(HfFiles {
            tokenizer_path,
            tokenizer_bytes,
            tokenizer,
            config: optional_json("tokenizer_config.json")?,
            config_path: folder.join("tokenizer_config.json"),
            generation: optional_json("generation_config.json")?,
            model_config: optional_json("config.json")?,
            template_json: optional_json("chat_template.json")?,
            jinja: read(JINJA)?.map(text).transpose()?,
        })
    }

    /// The entries of `added_tokens`.
    pub fn added_tokens(&self) -> impl Iterator<Item = &Value> {
        self.tokenizer["added_tokens"].as_array().into_iter().flatten()
    }

    /// The id of a token by its exact spelling.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        let added = self.added_tokens().find(|t| t["content"] == token).map(|t| &t["id"]);
        added.or_else(|| self.tokenizer["model"]["vocab"].get(token)).and_then(Value::as_u64)?.try_into().ok()
    }

    /// The token of a kind (`bos`, `eos`, `unk`, `pad`): by its spelling in `tokenizer_config.json`, else by the id in
    /// `generation_config.json` or `config.json`. BOS may also show only in the post-processor, UNK in the model.
    pub fn special_id(&self, kind: &str) -> Option<u32> {
        let spelled = self.spelling(kind).and_then(|token| self.id_of(token));
        let by_id = || {
            let key = format!("{kind}_token_id");
            [&self.generation, &self.model_config].into_iter().find_map(|c| ids(&c[&key]).first().copied())
        };
        spelled.or_else(by_id).or_else(|| match kind {
            "bos" => self.template_ids().and_then(|(before, _)| before.first().copied()),
            "unk" => self.tokenizer["model"]["unk_token"].as_str().and_then(|t| self.id_of(t)),
            _ => None,
        })
    }

    /// The ids that end a text: the tokenizer's own first, then the generation config's (which overrule the model config's).
    pub fn eos_ids(&self) -> Vec<u32> {
        let mut out: Vec<u32> = self.spelling("eos").and_then(|token| self.id_of(token)).into_iter().collect();
        let configured =
            [&self.generation, &self.model_config].into_iter().map(|c| ids(&c["eos_token_id"])).find(|l| !l.is_empty());
        for id in configured.unwrap_or_default() {
            if !out.contains(&id) {
                out.push(id);
            }
        }
        out
    }

    fn spelling(&self, kind: &str) -> Option<&str> {
        let entry = &self.config[format!("{kind}_token")];
        entry.as_str().or_else(|| entry["content"].as_str())
    }

    /// Ids that belong before and after every text: those of the post-processor's template, as `add_bos_token` and
    /// `add_eos_token` of `tokenizer_config.json` change them.
    pub fn surroundings(&self) -> Result<(Vec<u32>, Vec<u32>)> {
        let (mut before, mut after) = self.template_ids().unwrap_or_default();
        for (kind, list) in [("bos", &mut before), ("eos", &mut after)] {
            let Some(add) = self.config[format!("add_{kind}_token")].as_bool() else { continue };
            let id = match kind {
                "bos" => self.special_id(kind),
                _ => self.eos_ids().first().copied(),
            };
            match (add, id) {
                (true, None) => {
                    return Err(
                        Error::corrupt(format!("add_{kind}_token is set, but there is no {kind} token")).file(&self.config_path)
                    );
                }
                (true, Some(id)) if !list.contains(&id) => *list = vec![id],
                (false, Some(id)) => list.retain(|&x| x != id),
                _ => {}
            }
        }
        Ok((before, after))
    }

    /// The special tokens of the post-processor's template for single texts, before and after the text.
    fn template_ids(&self) -> Option<(Vec<u32>, Vec<u32>)> {
        let mut processors = Vec::new();
        flatten(&self.tokenizer["post_processor"], &mut processors);
        let (mut before, mut after, mut found) = (Vec::new(), Vec::new(), false);
        for p in processors {
            match p["type"].as_str() {
                Some("TemplateProcessing") => {
                    found = true;
                    let mut seen_text = false;
                    for item in p["single"].as_array().into_iter().flatten() {
                        if let Some(name) = item["SpecialToken"]["id"].as_str() {
                            let list = if seen_text { &mut after } else { &mut before };
                            list.extend(ids(&p["special_tokens"][name]["ids"]));
                        } else {
                            seen_text = true;
                        }
                    }
                }
                Some("RobertaProcessing" | "BertProcessing") => {
                    found = true;
                    before.extend(ids(&p["cls"][1]));
                    after.extend(ids(&p["sep"][1]));
                }
                _ => {}
            }
        }
        found.then_some((before, after))
    }

    /// The chat templates: `chat_template.jinja` first, then `tokenizer_config.json` (a string, or a list of named ones), then
    /// `chat_template.json`.
    pub fn templates(&self) -> Result<ChatTemplates> {
        let mut templates = ChatTemplates::default();
        for source in [&self.template_json["chat_template"], &self.config["chat_template"]] {
            match source {
                Value::Null => {}
                Value::String(text) => templates.default = Some(text.clone()),
                Value::Array(list) => {
                    for entry in list {
                        let (Some(name), Some(text)) = (entry["name"].as_str(), entry["template"].as_str()) else {
                            return Err(
                                Error::corrupt("an entry of chat_template has no name or no template").file(&self.config_path)
                            );
                        };
                        if name == "default" {
                            templates.default = Some(text.to_string());
                        } else {
                            templates.named.push((name.to_string(), text.to_string()));
                        }
                    }
                }
                _ => return Err(Error::corrupt("chat_template is neither a string nor a list").file(&self.config_path)),
            }
        }
        if let Some(text) = &self.jinja {
            templates.default = Some(text.clone());
        }
        Ok(templates)
    }
}

/// A missing `tokenizer.json`, with what the folder has instead.
fn missing(folder: &Path, path: &Path) -> Error {
    let other = ["tokenizer.model", "vocab.json", "merges.txt", "tekken.json", "vocab.txt"]
        .into_iter()
        .find(|n| folder.join(n).is_file());
    Error::missing("the tokenizer is missing").file(path).hint(match other {
        Some(name) => format!("the folder has {name} only; save the tokenizer in the fast format (tokenizer.json) with transformers' save_pretrained"),
        None => "download the checkpoint's tokenizer.json (and tokenizer_config.json) into this folder".to_string(),
    })
}

/// A token id or a list of them.
fn ids(value: &Value) -> Vec<u32> {
    let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(list) => list.iter().filter_map(one).collect(),
        v => one(v).into_iter().collect(),
    }
}
