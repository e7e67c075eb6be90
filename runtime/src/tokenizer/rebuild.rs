//! From GGUF's terms to a `tokenizer.json`.

use super::vocab::{GgufVocab, TokenType, VocabModel};
use super::{pre, spm};
use bitsmith_formats::{Error, Result};
use serde_json::{Map, Value, json};

/// SentencePiece's stand-in for a space.
pub(super) const SPACE: &str = "▁";

impl GgufVocab {
    /// The tokenizer as the contents of a `tokenizer.json`.
    pub fn to_tokenizer_json(&self) -> Result<Value> {
        let mut vocab = Map::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            if let Some(first) = vocab.insert(token.clone(), id.into()) {
                return Err(Error::corrupt(format!("token `{token}` appears twice in the vocabulary, as {first} and {id}")));
            }
        }
        let added: Vec<Value> = self
            .tokens
            .iter()
            .zip(&self.types)
            .enumerate()
            .filter(|(_, (token, ty))| {
                matches!(ty, TokenType::Control | TokenType::UserDefined | TokenType::Unknown) && !token.is_empty()
            })
            .map(|(id, (token, ty))| {
                json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                    "special": *ty != TokenType::UserDefined,
                })
            })
            .collect();
        let parts = match self.model {
            VocabModel::Bpe => self.byte_level(vocab)?,
            VocabModel::Spm => self.sentencepiece(vocab),
            VocabModel::WordPiece => self.wordpiece()?,
        };
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": parts.normalizer,
            "pre_tokenizer": parts.pre_tokenizer,
            "post_processor": self.post_processor()?,
            "decoder": parts.decoder,
            "model": parts.model,
        }))
    }

    fn byte_level(&self, vocab: Map<String, Value>) -> Result<Parts> {
        let pre = pre::by_name(&self.pre)?;
        Ok(Parts {
            normalizer: Value::Null,
            pre_tokenizer: pre::to_json(pre),
            decoder: json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}),
            model: json!({
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": false, "byte_fallback": false, "ignore_merges": pre.ignore_merges,
                "vocab": vocab, "merges": self.merges,
            }),
        })
    }

    fn sentencepiece(&self, vocab: Map<String, Value>) -> Parts {
        let mut normalizers = Vec::new();
        if self.remove_extra_whitespaces {
            normalizers.push(json!({"type": "Strip", "strip_left": true, "strip_right": true}));
            normalizers.push(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}));
        }
        if self.add_space_prefix {
            normalizers.push(json!({"type": "Prepend", "prepend": SPACE}));
        }
        normalizers.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE}));
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if self.add_space_prefix {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let unk = self.unk.and_then(|id| self.tokens.get(id as usize));
        let merges = spm::merges_from_scores(&self.tokens, &self.types, &self.scores);
        Parts {
            normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
            pre_tokenizer: Value::Null,
            decoder: json!({"type": "Sequence", "decoders": decoders}),
            model: json!({
                "type": "BPE", "dropout": null, "unk_token": unk, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "vocab": vocab, "merges": merges,
            }),
        }
    }
}

/// What differs between kinds of vocabulary.
pub(super) struct Parts {
    pub normalizer: Value,
    pub pre_tokenizer: Value,
    pub decoder: Value,
    pub model: Value,
}
