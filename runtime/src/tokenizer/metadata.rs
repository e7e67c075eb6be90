//! `tokenizer.*` keys.

use super::chat::ChatTemplates;
use super::pre;
use super::vocab::{GgufVocab, TokenType, VocabModel};
use bitsmith_formats::gguf::{Array, Metadata, Value};
use bitsmith_formats::{Error, Result};

impl GgufVocab {
    /// Reads the keys of a file. What is not given has llama.cpp's default.
    pub fn from_metadata(m: &Metadata) -> Result<Self> {
        let model = match m.optional("tokenizer.ggml.model", Metadata::str)? {
            Some("gpt2") => VocabModel::Bpe,
            Some("llama") => VocabModel::Spm,
            Some("bert") => VocabModel::WordPiece,
            None | Some("none" | "no_vocab") => {
                return Err(
                    Error::missing("the file has no tokenizer").hint("name a tokenizer folder, or convert the model again")
                );
            }
            Some(other) => {
                return Err(Error::unsupported(format!("tokenizer model `{other}`"))
                    .hint("supported: gpt2 (byte-level BPE), llama (SentencePiece), bert (WordPiece)"));
            }
        };
        let tokens = m.strings("tokenizer.ggml.tokens")?.to_vec();
        let n = tokens.len();
        let numbers = |key: &str| match m.get(key) {
            None => Ok(None),
            Some(v) => {
                let list = v
                    .as_array()
                    .and_then(Array::to_f64s)
                    .ok_or_else(|| Error::corrupt(format!("metadata `{key}` must be an array of numbers")))?;
                if list.len() < n {
                    return Err(Error::corrupt(format!("metadata `{key}` has {} entries for {n} tokens", list.len())));
                }
                Ok(Some(list))
            }
        };
        let types = match numbers("tokenizer.ggml.token_type")? {
            Some(list) => list[..n].iter().map(|&t| TokenType::from_id(t as i64)).collect(),
            None => vec![TokenType::Normal; n],
        };
        let id = |key: &str| -> Result<Option<u32>> {
            let id = m.optional(&format!("tokenizer.ggml.{key}_token_id"), Metadata::usize)?;
            Ok(id.filter(|&id| id < n).and_then(|id| u32::try_from(id).ok()))
        };
        let flag = |key: &str, default: bool| -> Result<bool> {
            Ok(m.optional(&format!("tokenizer.ggml.{key}"), Metadata::bool)?.unwrap_or(default))
        };
        let spm = model == VocabModel::Spm;
        let words = model == VocabModel::WordPiece;
        let default_id = |id: Option<u32>, spm_id: u32, wordpiece_id: u32| {
            let default = if words { wordpiece_id } else { spm_id };
            id.or(((spm || words) && (default as usize) < n).then_some(default))
        };
        let pre_name = m.optional("tokenizer.ggml.pre", Metadata::str)?.unwrap_or("default").to_string();
        let (mut scores, mut merges) = (Vec::new(), Vec::new());
        let adds_bos = match model {
            VocabModel::Spm => {
                let list = numbers("tokenizer.ggml.scores")?
                    .ok_or_else(|| Error::missing("the metadata lack `tokenizer.ggml.scores`"))?;
                scores = list[..n].iter().map(|&s| s as f32).collect();
                true
            }
            VocabModel::Bpe => {
                merges = m.strings("tokenizer.ggml.merges")?.iter().map(|s| parse_merge(s)).collect::<Result<_>>()?;
                pre::by_name(&pre_name)?.adds_bos
            }
            VocabModel::WordPiece => true,
        };
        let mut more_eos = Vec::new();
        for key in ["eot", "eom"] {
            more_eos.extend(id(key)?);
        }
        let mut templates =
            ChatTemplates { default: m.optional("tokenizer.chat_template", Metadata::str)?.map(String::from), named: Vec::new() };
        for name in m.optional("tokenizer.chat_templates", Metadata::strings)?.unwrap_or_default() {
            let text = m.str(&format!("tokenizer.chat_template.{name}"))?;
            templates.named.push((name.clone(), text.to_string()));
        }
        Ok(GgufVocab {
            model,
            pre: pre_name,
            bos: default_id(id("bos")?, 1, 101),
            // The name is spelled so.
            eos: default_id(if words { id("seperator")? } else { id("eos")? }, 2, 102),
            more_eos,
            unk: default_id(id("unknown")?, 0, 100),
            pad: id("padding")?,
            add_bos: flag("add_bos_token", adds_bos)?,
            add_eos: if words { flag("add_sep_token", true)? } else { flag("add_eos_token", false)? },
            add_space_prefix: flag("add_space_prefix", spm)?,
            remove_extra_whitespaces: flag("remove_extra_whitespaces", false)?,
            lowercase: words && flag("normalizer.lowercase", true)?,
            strip_accents: words && flag("normalizer.strip_accents", flag("normalizer.lowercase", true)?)?,
            tokens,
            types,
            scores,
            merges,
            templates,
            notes: Vec::new(),
        })
    }

    /// Adds the keys to a file's metadata, in the order in which llama.cpp's converter writes them.
    pub fn write(&self, m: &mut Metadata) {
        m.set(
            "tokenizer.ggml.model",
            match self.model {
                VocabModel::Bpe => "gpt2",
                VocabModel::Spm => "llama",
                VocabModel::WordPiece => "bert",
            },
        );
        m.set("tokenizer.ggml.pre", self.pre.as_str());
        m.set("tokenizer.ggml.tokens", self.tokens.clone());
        if self.model == VocabModel::Spm {
            m.set("tokenizer.ggml.scores", self.scores.clone());
        }
        m.set("tokenizer.ggml.token_type", Value::Array(Array::I32(self.types.iter().map(|&t| t as i32).collect())));
        if self.model == VocabModel::Bpe {
            m.set("tokenizer.ggml.merges", self.merges.iter().map(write_merge).collect::<Vec<String>>());
        }
        let words = self.model == VocabModel::WordPiece;
        let last = if words { "seperator" } else { "eos" };
        let ids = [("bos", self.bos), (last, self.eos), ("unknown", self.unk), ("padding", self.pad)];
        for (key, id) in ids {
            if let Some(id) = id {
                m.set(format!("tokenizer.ggml.{key}_token_id"), id);
            }
        }
        for (key, id) in ["eot", "eom"].into_iter().zip(&self.more_eos) {
            m.set(format!("tokenizer.ggml.{key}_token_id"), *id);
        }
        m.set("tokenizer.ggml.add_bos_token", self.add_bos);
        m.set(if words { "tokenizer.ggml.add_sep_token" } else { "tokenizer.ggml.add_eos_token" }, self.add_eos);
        if words {
            if let Some(cls) = self.bos {
                m.set("tokenizer.ggml.cls_token_id", cls);
            }
            m.set("tokenizer.ggml.token_type_count", 2u32);
            // llama.cpp's defaults are those of the uncased models.
            m.set("tokenizer.ggml.normalizer.lowercase", self.lowercase);
            m.set("tokenizer.ggml.normalizer.strip_accents", self.strip_accents);
        }
        if self.model == VocabModel::Spm {
            m.set("tokenizer.ggml.add_space_prefix", self.add_space_prefix);
            if self.remove_extra_whitespaces {
                m.set("tokenizer.ggml.remove_extra_whitespaces", true);
            }
        }
        if !self.templates.named.is_empty() {
            m.set("tokenizer.chat_templates", self.templates.named.iter().map(|(name, _)| name.clone()).collect::<Vec<String>>());
        }
        for (name, text) in &self.templates.named {
            m.set(format!("tokenizer.chat_template.{name}"), text.as_str());
        }
        if let Some(text) = &self.templates.default {
            m.set("tokenizer.chat_template", text.as_str());
        }
    }
}

/// `left right`: the first space after the first character separates.
fn parse_merge(text: &str) -> Result<(String, String)> {
    let start = text.chars().next().map_or(0, char::len_utf8);
    match text[start..].find(' ') {
        Some(at) => Ok((text[..start + at].to_string(), text[start + at + 1..].to_string())),
        None => Err(Error::corrupt(format!("merge `{text}` has no two parts"))),
    }
}

/// Spaces inside the parts are spelled as the byte-level alphabet does.
fn write_merge((left, right): &(String, String)) -> String {
    format!("{} {}", left.replace(' ', "Ġ"), right.replace(' ', "Ġ"))
}
