//! WordPiece, BERT's kind of vocabulary. Hugging Face marks pieces that continue a word with `##`, GGUF those that begin one with `▁`.

use super::analyse::{AS_IT_IS, vocabulary};
use super::files::HfFiles;
use super::rebuild::{Parts, SPACE};
use super::vocab::{GgufVocab, TokenType, VocabModel};
use bitsmith_formats::{Error, Result};
use serde_json::{Map, Value, json};

/// Hugging Face's mark.
const CONTINUES: &str = "##";

/// Reads a `tokenizer.json` whose model is WordPiece.
pub(super) fn from_files(files: &HfFiles, vocab_size: usize) -> Result<GgufVocab> {
    let unsupported =
        |what: &str| Error::unsupported(format!("a WordPiece tokenizer with {what} cannot be written to GGUF")).hint(AS_IT_IS);
    let (model, normalizer) = (&files.tokenizer["model"], &files.tokenizer["normalizer"]);
    if model["continuing_subword_prefix"].as_str().unwrap_or(CONTINUES) != CONTINUES {
        return Err(unsupported("another mark than `##`"));
    }
    if normalizer["type"] != "BertNormalizer" || files.tokenizer["pre_tokenizer"]["type"] != "BertPreTokenizer" {
        return Err(unsupported("other rules than BERT's for normalization and words"));
    }
    let switch = |key: &str| normalizer[key].as_bool();
    if switch("clean_text") == Some(false) || switch("handle_chinese_chars") == Some(false) {
        return Err(unsupported("control characters or Chinese words kept as they are"));
    }
    let (before, after) = files.surroundings()?;
    let ([cls], [sep]) = (before.as_slice(), after.as_slice()) else {
        return Err(unsupported("other tokens around a text than one before and one after it"));
    };
    let (mut tokens, mut types) = vocabulary(files, vocab_size)?;
    let unk = model["unk_token"].as_str().and_then(|t| files.id_of(t));
    for id in [Some(*cls), Some(*sep), unk].into_iter().flatten() {
        let ty = types.get_mut(id as usize).ok_or_else(|| Error::corrupt(format!("token {id} is outside the vocabulary")))?;
        *ty = TokenType::Control;
    }
    for (token, _) in tokens.iter_mut().zip(&types).filter(|(_, ty)| **ty == TokenType::Normal) {
        *token = match token.strip_prefix(CONTINUES) {
            Some(rest) if !rest.is_empty() => rest.to_string(),
            _ => format!("{SPACE}{token}"),
        };
    }
    let lowercase = switch("lowercase").unwrap_or(true);
    Ok(GgufVocab {
        model: VocabModel::WordPiece,
        pre: "default".into(),
        tokens,
        types,
        scores: Vec::new(),
        merges: Vec::new(),
        bos: Some(*cls),
        eos: Some(*sep),
        more_eos: Vec::new(),
        unk,
        pad: files.special_id("pad"),
        add_bos: true,
        add_eos: true,
        add_space_prefix: false,
        remove_extra_whitespaces: false,
        lowercase,
        strip_accents: switch("strip_accents").unwrap_or(lowercase),
        templates: files.templates()?,
        notes: Vec::new(),
    })
}

impl GgufVocab {
    /// What a `tokenizer.json` of this vocabulary consists of.
    pub(super) fn wordpiece(&self) -> Result<Parts> {
        let mut vocab = Map::with_capacity(self.tokens.len());
        for (id, (token, ty)) in self.tokens.iter().zip(&self.types).enumerate() {
            let spelled = match (ty, token.strip_prefix(SPACE)) {
                (TokenType::Normal, Some(begins)) => begins.to_string(),
                (TokenType::Normal, None) => format!("{CONTINUES}{token}"),
                _ => token.clone(),
            };
            if let Some(first) = vocab.insert(spelled, id.into()) {
                return Err(Error::corrupt(format!("token `{token}` appears twice in the vocabulary, as {first} and {id}")));
            }
        }
        let unk = self.unk.and_then(|id| self.tokens.get(id as usize));
        let unk = unk.ok_or_else(|| Error::corrupt("a WordPiece vocabulary without an unknown token"))?;
        Ok(Parts {
            normalizer: json!({
                "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": self.strip_accents,
                "lowercase": self.lowercase,
            }),
            pre_tokenizer: json!({"type": "BertPreTokenizer"}),
            decoder: json!({"type": "WordPiece", "prefix": CONTINUES, "cleanup": true}),
            model: json!({
                "type": "WordPiece", "unk_token": unk, "continuing_subword_prefix": CONTINUES, "max_input_chars_per_word": 100,
                "vocab": Value::Object(vocab),
            }),
        })
    }
}
