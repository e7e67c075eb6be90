//! From a Hugging Face `tokenizer.json` to GGUF's terms, by structure.

use super::files::HfFiles;
use super::pre::{self, flatten};
use super::rebuild::SPACE;
use super::spm;
use super::vocab::{GgufVocab, TokenType, VocabModel};
use super::wordpiece;
use bitsmith_formats::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use tokenizers::Model;
use tokenizers::models::bpe::BPE;

pub(super) const AS_IT_IS: &str = "choose an MLX target, which carries tokenizer.json as it is";

impl GgufVocab {
    /// Reads the tokenizer of a Hugging Face folder for a model whose embedding has `vocab_size` rows; ids without a token become
    /// unused `[PAD…]` tokens.
    pub fn from_hf_folder(folder: impl AsRef<Path>, vocab_size: usize) -> Result<Self> {
        let files = HfFiles::read(folder.as_ref())?;
        Self::from_files(&files, vocab_size).map_err(|e| e.file(&files.tokenizer_path))
    }

    fn from_files(files: &HfFiles, vocab_size: usize) -> Result<Self> {
        let model = &files.tokenizer["model"];
        // Old files have no type.
        let kind = model["type"].as_str().unwrap_or(if model.get("merges").is_some() { "BPE" } else { "?" });
        if kind == "WordPiece" {
            return wordpiece::from_files(files, vocab_size);
        }
        if kind != "BPE" {
            return Err(Error::unsupported(format!("a tokenizer of type {kind} cannot be written to GGUF yet")).hint(AS_IT_IS));
        }
        for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
            if model[key].as_str().is_some_and(|s| !s.is_empty()) {
                return Err(Error::unsupported(format!("the BPE model has a {key}, which GGUF cannot express")).hint(AS_IT_IS));
            }
        }
        let (tokens, types) = vocabulary(files, vocab_size)?;
        let merges = merges(model)?;
        let (bos, eos) = (files.special_id("bos"), files.eos_ids());
        let (before, after) = files.surroundings()?;
        let exactly = |list: &[u32], id: Option<u32>, what: &str| match list {
            [] => Ok(false),
            [one] if Some(*one) == id => Ok(true),
            _ => Err(Error::unsupported(format!(
                "the post-processor adds tokens {list:?} {what} every text, which GGUF cannot express"
            ))
            .hint(AS_IT_IS)),
        };
        let mut vocab = GgufVocab {
            model: VocabModel::Bpe,
            pre: String::new(),
            tokens,
            types,
            scores: Vec::new(),
            merges,
            bos,
            eos: eos.first().copied(),
            more_eos: eos.iter().skip(1).copied().collect(),
            unk: files.special_id("unk"),
            pad: files.special_id("pad"),
            add_bos: exactly(&before, bos, "before")?,
            add_eos: exactly(&after, eos.first().copied(), "after")?,
            add_space_prefix: false,
            remove_extra_whitespaces: false,
            lowercase: false,
            strip_accents: false,
            templates: files.templates()?,
            notes: Vec::new(),
        };
        let in_range = |id: &u32| (*id as usize) < vocab.tokens.len();
        for (name, id) in
            [("BOS", &mut vocab.bos), ("EOS", &mut vocab.eos), ("unknown", &mut vocab.unk), ("padding", &mut vocab.pad)]
        {
            if let Some(n) = id.filter(|n| !in_range(n)) {
                vocab.notes.push(format!("the id {n} of the {name} token is outside the vocabulary and was left out"));
                *id = None;
            }
        }
        vocab.more_eos.retain(in_range);
        if vocab.more_eos.len() > 2 {
            vocab.notes.push("GGUF has room for three end tokens; the others were left out".into());
            vocab.more_eos.truncate(2);
        }
        if model["byte_fallback"].as_bool() == Some(true) {
            vocab.finish_sentencepiece(files)?;
        } else {
            vocab.finish_byte_level(files)?;
        }
        Ok(vocab)
    }

    fn finish_byte_level(&mut self, files: &HfFiles) -> Result<()> {
        let mut normalizers = Vec::new();
        flatten(&files.tokenizer["normalizer"], &mut normalizers);
        for n in normalizers {
            match n["type"].as_str() {
                Some("NFC") => self.notes.push("the tokenizer normalizes text to NFC; GGUF readers do not".into()),
                other => {
                    return Err(Error::unsupported(format!("the normalizer {} cannot be written to GGUF", other.unwrap_or("?")))
                        .hint(AS_IT_IS));
                }
            }
        }
        let ignore_merges = files.tokenizer["model"]["ignore_merges"].as_bool().unwrap_or(false);
        let matters = self.has_unreachable_tokens(files)?;
        self.pre = pre::recognise(&files.tokenizer["pre_tokenizer"], matters.then_some(ignore_merges))?.names[0].to_string();
        Ok(())
    }

    /// Whether some token is not what the merges make of its own text, so that it matters whether merges are ignored for it.
    fn has_unreachable_tokens(&self, files: &HfFiles) -> Result<bool> {
        let mut model = files.tokenizer["model"].clone();
        model["ignore_merges"] = false.into();
        let corrupt = |e: &dyn std::fmt::Display| Error::corrupt(format!("not a usable tokenizer: {e}"));
        // Its deserializer wants borrowed strings: text, not a value.
        let bpe: BPE = serde_json::from_str(&model.to_string()).map_err(|e| corrupt(&e))?;
        for (id, token) in self.tokens.iter().enumerate().filter(|(id, _)| self.types[*id] == TokenType::Normal) {
            let made = bpe.tokenize(token).map_err(|e| corrupt(&e))?;
            if !matches!(made.as_slice(), [one] if one.id as usize == id) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn finish_sentencepiece(&mut self, files: &HfFiles) -> Result<()> {
        self.model = VocabModel::Spm;
        self.pre = "default".into();
        let merges = std::mem::take(&mut self.merges);
        let rules = space_rules(files, &merges)?;
        self.add_space_prefix = rules.prefix;
        self.remove_extra_whitespaces = rules.remove_extra;
        if rules.remove_extra {
            self.notes.push("the tokenizer removes extra spaces; llama.cpp does not do so for this kind of vocabulary".into());
        }
        if rules.metaspace {
            self.notes.push("the tokenizer does not double a leading space, as GGUF readers do".into());
        }
        let mut bytes = 0;
        for (token, ty) in self.tokens.iter().zip(&mut self.types) {
            if *ty == TokenType::Normal && is_byte(token) {
                *ty = TokenType::Byte;
                bytes += 1;
            }
        }
        if bytes != 256 {
            return Err(Error::unsupported(format!(
                "{bytes} of the 256 byte tokens (<0x00> to <0xFF>) are in the vocabulary; GGUF readers need all"
            ))
            .hint(AS_IT_IS));
        }
        if let Some(unk) = files.tokenizer["model"]["unk_token"].as_str().and_then(|t| files.id_of(t)) {
            self.unk = Some(unk);
            self.types[unk as usize] = TokenType::Unknown;
        }
        self.scores = spm::scores_from_merges(&self.tokens, &merges);
        Ok(())
    }
}

/// Tokens and types by id, padded to the model's vocabulary.
pub(super) fn vocabulary(files: &HfFiles, vocab_size: usize) -> Result<(Vec<String>, Vec<TokenType>)> {
    let vocab = files.tokenizer["model"]["vocab"].as_object().ok_or_else(|| Error::corrupt("the model has no vocabulary"))?;
    let mut by_id: BTreeMap<usize, (&str, TokenType)> = BTreeMap::new();
    let id_of = |v: &Value, token: &str| {
        v.as_u64()
            .and_then(|id| usize::try_from(id).ok())
            .ok_or_else(|| Error::corrupt(format!("token `{token}` has no valid id")))
    };
    for (token, id) in vocab {
        let id = id_of(id, token)?;
        if let Some((other, _)) = by_id.insert(id, (token, TokenType::Normal)) {
            return Err(Error::corrupt(format!("tokens `{other}` and `{token}` have the same id {id}")));
        }
    }
    for added in files.added_tokens() {
        let content = added["content"].as_str().ok_or_else(|| Error::corrupt("an added token has no content"))?;
        let id = id_of(&added["id"], content)?;
        let special = added["special"].as_bool().unwrap_or(false) || looks_special(content);
        by_id.insert(id, (content, if special { TokenType::Control } else { TokenType::UserDefined }));
    }
    if let Some((&id, (token, _))) = by_id.last_key_value()
        && id >= vocab_size
    {
        return Err(Error::corrupt(format!("token `{token}` has id {id}, but the model's embedding has {vocab_size} rows only"))
            .hint("tokenizer.json and the weights do not belong together"));
    }
    let mut seen = std::collections::HashMap::with_capacity(vocab_size);
    let (mut tokens, mut types) = (Vec::with_capacity(vocab_size), Vec::with_capacity(vocab_size));
    for id in 0..vocab_size {
        let (token, ty) = match by_id.get(&id) {
            Some((token, ty)) => (token.to_string(), *ty),
            None => (format!("[PAD{id}]"), TokenType::Unused),
        };
        if let Some(first) = seen.insert(token.clone(), id) {
            return Err(Error::corrupt(format!("token `{token}` has two ids, {first} and {id}")));
        }
        tokens.push(token);
        types.push(ty);
    }
    Ok((tokens, types))
}

/// Tokens that are special whatever their flag says: readers of GGUF treat them so by their spelling.
fn looks_special(token: &str) -> bool {
    let between =
        |start: &str, end: &str| token.starts_with(start) && token.ends_with(end) && token.len() > start.len() + end.len();
    between("<|", "|>")
        || between("<｜", "｜>")
        || between("<unused", ">")
        || matches!(token, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
}

fn is_byte(token: &str) -> bool {
    let hex = token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
    hex.is_some_and(|h| h.len() == 2 && h.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b)))
}

/// Merges in both notations: `"a b"` and `["a", "b"]`.
fn merges(model: &Value) -> Result<Vec<(String, String)>> {
    let list = model["merges"].as_array().ok_or_else(|| Error::corrupt("the model has no merges"))?;
    list.iter()
        .map(|entry| match entry {
            Value::String(text) => text.split_once(' ').map(|(l, r)| (l.to_string(), r.to_string())),
            Value::Array(pair) => match pair.as_slice() {
                [Value::String(l), Value::String(r)] => Some((l.clone(), r.clone())),
                _ => None,
            },
            _ => None,
        })
        .enumerate()
        .map(|(i, merge)| merge.ok_or_else(|| Error::corrupt(format!("merge {i} is not a pair"))))
        .collect()
}

/// What a SentencePiece-style tokenizer does with spaces.
struct SpaceRules {
    prefix: bool,
    remove_extra: bool,
    metaspace: bool,
}

fn space_rules(files: &HfFiles, merges: &[(String, String)]) -> Result<SpaceRules> {
    let unsupported = |what: String| {
        Error::unsupported(format!("a SentencePiece-style tokenizer with {what} cannot be written to GGUF")).hint(AS_IT_IS)
    };
    let mut rules = SpaceRules { prefix: false, remove_extra: false, metaspace: false };
    let (mut strips, mut collapses, mut replaces) = (false, false, false);
    let mut steps = Vec::new();
    flatten(&files.tokenizer["normalizer"], &mut steps);
    for step in steps {
        match step["type"].as_str().unwrap_or("?") {
            "Prepend" if step["prepend"] == SPACE => rules.prefix = true,
            "Replace" if step["pattern"]["String"] == " " && step["content"] == SPACE => replaces = true,
            "Replace" if step["pattern"]["Regex"] == " {2,}" && step["content"] == " " => collapses = true,
            "Strip" if step["strip_left"] == true && step["strip_right"] == true => strips = true,
            other => return Err(unsupported(format!("the normalizer {other} ({step})"))),
        }
    }
    if strips != collapses {
        return Err(unsupported("only one of the two rules about extra spaces".into()));
    }
    rules.remove_extra = strips;
    let mut steps = Vec::new();
    flatten(&files.tokenizer["pre_tokenizer"], &mut steps);
    for step in steps {
        match step["type"].as_str().unwrap_or("?") {
            "Metaspace" if step["replacement"] == SPACE => {
                let scheme = step["prepend_scheme"].as_str();
                rules.prefix |= match scheme {
                    Some(s) => s != "never",
                    None => step["add_prefix_space"].as_bool().unwrap_or(true),
                };
                rules.metaspace = rules.prefix;
                replaces = true;
                // Cutting before every space changes nothing as long as no token has one inside.
                let crosses = |t: &str| t.chars().skip(1).any(|c| SPACE.starts_with(c));
                if step["split"].as_bool().unwrap_or(true) && merges.iter().any(|(l, r)| crosses(&format!("{l}{r}"))) {
                    return Err(unsupported("words cut at spaces, and tokens that hold several".into()));
                }
            }
            // After spaces are replaced there are none left to split at.
            "Split" if step["pattern"]["String"] == " " && replaces => {}
            other => return Err(unsupported(format!("the pre-tokenizer {other}"))),
        }
    }
    if !replaces {
        return Err(unsupported(format!("no `{SPACE}` for spaces")));
    }
    Ok(rules)
}
