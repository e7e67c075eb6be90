//! From GGUF's terms to the tokenizer files of a Hugging Face folder.

use super::vocab::{GgufVocab, TokenType, VocabModel};
use bitsmith_formats::{Error, Result};
use serde_json::{Map, Value, json};

impl GgufVocab {
    /// `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`, as transformers' `PreTrainedTokenizerFast` reads
    /// them. `context_length` is the most tokens of a text.
    pub fn to_hf_files(&self, context_length: usize) -> Result<Vec<(&'static str, Value)>> {
        let special = self.special_tokens();
        let mut config = Map::new();
        // What is put around a text stands in tokenizer.json; a second switch here could contradict it.
        config.insert("clean_up_tokenization_spaces".into(), false.into());
        config.insert("model_max_length".into(), context_length.into());
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        config.extend(special.clone());
        if let Some(template) = self.chat_template() {
            config.insert("chat_template".into(), template);
        }
        let mut tokenizer = self.to_tokenizer_json()?;
        if let Some(vocab) = tokenizer.pointer_mut("/model/vocab").and_then(Value::as_object_mut) {
            // Converters fill up the vocabulary to the rows of the embedding; checkpoints leave such ids without a token.
            let is_filler = |token: &str, id: &Value| {
                let id = id.as_u64().unwrap_or(0) as usize;
                self.types.get(id) == Some(&TokenType::Unused) && token == format!("[PAD{id}]")
            };
            vocab.retain(|token, id| !is_filler(token, id));
        }
        Ok(vec![
            ("tokenizer.json", tokenizer),
            ("tokenizer_config.json", config.into()),
            ("special_tokens_map.json", special.into()),
        ])
    }

    /// `bos_token` and so on, by their spelling.
    fn special_tokens(&self) -> Map<String, Value> {
        let [first, last] = match self.model {
            VocabModel::WordPiece => ["cls_token", "sep_token"],
            VocabModel::Bpe | VocabModel::Spm => ["bos_token", "eos_token"],
        };
        [(first, self.bos), (last, self.eos), ("pad_token", self.pad), ("unk_token", self.unk)]
            .into_iter()
            .filter_map(|(key, id)| Some((key.to_string(), self.tokens.get(id? as usize)?.as_str().into())))
            .collect()
    }

    /// One template as a string, several as a list by name.
    fn chat_template(&self) -> Option<Value> {
        let default = self.templates.default.as_ref();
        if self.templates.named.is_empty() {
            return default.map(|text| text.as_str().into());
        }
        let entry = |name: &str, template: &str| json!({ "name": name, "template": template });
        let named = self.templates.named.iter().map(|(name, text)| entry(name, text));
        Some(default.map(|text| entry("default", text)).into_iter().chain(named).collect())
    }

    /// Ids that are put before and after every text.
    pub(super) fn surroundings(&self) -> Result<(Vec<u32>, Vec<u32>)> {
        let around = |add: bool, id: Option<u32>, what: &str| match (add, id) {
            (false, _) => Ok(Vec::new()),
            (true, Some(id)) => Ok(vec![id]),
            (true, None) => Err(Error::corrupt(format!("the tokenizer adds {what}, but its id is not given"))),
        };
        Ok((around(self.add_bos, self.bos, "BOS")?, around(self.add_eos, self.eos, "EOS")?))
    }

    /// `tokenizer.json`'s `post_processor`, which puts them there.
    pub(super) fn post_processor(&self) -> Result<Value> {
        let (before, after) = self.surroundings()?;
        if before.is_empty() && after.is_empty() {
            return Ok(Value::Null);
        }
        let spelling = |id: &u32| {
            let token = self.tokens.get(*id as usize);
            token.ok_or_else(|| Error::corrupt(format!("a special token has the id {id}, outside the vocabulary")))
        };
        let mut special = Map::new();
        for id in before.iter().chain(&after) {
            let token = spelling(id)?;
            special.insert(token.clone(), json!({ "id": token, "ids": [id], "tokens": [token] }));
        }
        let text = |name: &str, type_id: u8| -> Result<Vec<Value>> {
            let one = |id: &u32| Ok(json!({ "SpecialToken": { "id": spelling(id)?, "type_id": type_id } }));
            let mut items = before.iter().map(one).collect::<Result<Vec<_>>>()?;
            items.push(json!({ "Sequence": { "id": name, "type_id": type_id } }));
            items.extend(after.iter().map(one).collect::<Result<Vec<_>>>()?);
            Ok(items)
        };
        let pair = [text("A", 0)?, text("B", 1)?].concat();
        Ok(json!({
            "type": "TemplateProcessing",
            "single": text("A", 0)?,
            "pair": pair,
            "special_tokens": special,
        }))
    }
}
