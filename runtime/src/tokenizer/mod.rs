//! Text to token ids and back, from a Hugging Face folder or from GGUF metadata alone.
//!
//! [`Tokenizer`] wraps the `tokenizers` crate. [`GgufVocab`] is the same tokenizer in GGUF's terms: built from a folder when a
//! GGUF is written, read from metadata when one is opened, and turned into a [`Tokenizer`] in both cases.
//! [`verify_roundtrip`] holds the two against each other.

mod analyse;
mod chat;
mod export;
mod files;
mod metadata;
mod piece;
pub mod pre;
pub(crate) mod python;
mod rebuild;
mod spm;
mod stream;
mod verify;
mod vocab;
mod wordpiece;

pub use chat::{ChatMessage, ChatTemplates};
pub use stream::StreamDecoder;
pub use verify::{PROBES, verify_roundtrip};
pub use vocab::{GgufVocab, TokenType, VocabModel};

use bitsmith_formats::gguf::Metadata;
use bitsmith_formats::{Error, Result};
use files::HfFiles;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// A model's tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    origin: PathBuf,
    /// Ids put before and after a text when special tokens are asked for.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    bos: Option<u32>,
    eos: Vec<u32>,
    unk: Option<u32>,
    pad: Option<u32>,
    vocab_size: usize,
    templates: ChatTemplates,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and what `tokenizer_config.json`, `generation_config.json`, `config.json` and
    /// `chat_template.jinja` add to it if they are there.
    pub fn from_hf_folder(folder: impl AsRef<Path>) -> Result<Self> {
        Self::from_files(HfFiles::read(folder.as_ref())?)
    }

    /// The same from files that need not be on disk yet: `read` gives the contents of a file by its name, or nothing if there is no
    /// such file. `folder` is named in messages.
    pub fn from_hf_files(folder: impl AsRef<Path>, read: impl Fn(&str) -> Result<Option<Vec<u8>>>) -> Result<Self> {
        Self::from_files(HfFiles::read_by(folder.as_ref(), read)?)
    }

    fn from_files(files: HfFiles) -> Result<Self> {
        let inner = parse(&files.tokenizer_bytes).map_err(|e| e.file(&files.tokenizer_path))?;
        let (prefix, suffix) = files.surroundings()?;
        let (bos, eos, unk, pad) = (files.special_id("bos"), files.eos_ids(), files.special_id("unk"), files.special_id("pad"));
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        let templates = files.templates()?;
        Ok(Tokenizer { inner, origin: files.tokenizer_path, prefix, suffix, bos, eos, unk, pad, vocab_size, templates })
    }

    /// Rebuilds the tokenizer from a GGUF file's metadata. It cuts text as llama.cpp does for this file.
    pub fn from_gguf(metadata: &Metadata, file: impl AsRef<Path>) -> Result<Self> {
        let file = file.as_ref();
        GgufVocab::from_metadata(metadata).and_then(|vocab| Self::from_vocab(&vocab, file)).map_err(|e| e.file(file))
    }

    /// Builds the tokenizer that readers of a GGUF file with this vocabulary have. `origin` is named in messages.
    pub fn from_vocab(vocab: &GgufVocab, origin: impl AsRef<Path>) -> Result<Self> {
        let json = serde_json::to_vec(&vocab.to_tokenizer_json()?).map_err(|e| Error::failed(e.to_string()).with_source(e))?;
        let inner = parse(&json)?;
        let (prefix, suffix) = vocab.surroundings()?;
        Ok(Tokenizer {
            inner,
            origin: origin.as_ref().to_path_buf(),
            prefix,
            suffix,
            bos: vocab.bos,
            eos: vocab.all_eos(),
            unk: vocab.unk,
            pad: vocab.pad,
            vocab_size: vocab.tokens.len(),
            templates: vocab.templates.clone(),
        })
    }

    /// The token ids of `text`. With `special`, the tokens that the model expects around every text (BOS for most) are added.
    /// Special tokens spelled out in the text become their ids either way, unless [`Tokenizer::set_parse_special`] says otherwise.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let refuse = |e: &dyn std::fmt::Display| Error::corrupt(format!("cannot tokenize: {e}")).file(&self.origin);
        let encoding =
            guarded(|| self.inner.encode_fast(text, false)).map_err(|panic| refuse(&panic))?.map_err(|e| refuse(&e))?;
        if !special || self.prefix.is_empty() && self.suffix.is_empty() {
            return Ok(encoding.get_ids().to_vec());
        }
        Ok([self.prefix.as_slice(), encoding.get_ids(), self.suffix.as_slice()].concat())
    }

    /// The text of token ids, with or without the special tokens among them. Ids outside the vocabulary give nothing.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let refuse = |e: &dyn std::fmt::Display| Error::corrupt(format!("cannot decode tokens: {e}")).file(&self.origin);
        guarded(|| self.inner.decode(ids, skip_special)).map_err(|panic| refuse(&panic))?.map_err(|e| refuse(&e))
    }

    /// Starts decoding token by token, after a `context` that is not part of the output (the prompt).
    pub fn stream(&self, context: &[u32]) -> StreamDecoder<'_> {
        StreamDecoder::new(self, context)
    }

    /// Whether special tokens spelled out in a text become their ids (the default) or are cut like any text, as llama.cpp's
    /// tools do with plain text.
    pub fn set_parse_special(&mut self, parse: bool) {
        self.inner.set_encode_special_tokens(!parse);
    }

    /// Whether `encode` with `special` puts BOS in front.
    pub fn adds_bos(&self) -> bool {
        self.bos.is_some() && self.prefix.first() == self.bos.as_ref()
    }

    /// Whether `encode` with `special` puts EOS at the end.
    pub fn adds_eos(&self) -> bool {
        self.suffix.last().is_some_and(|id| self.eos.contains(id))
    }

    /// Beginning of sequence.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The ids that end generation, the principal one first.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// The unknown token.
    pub fn unk(&self) -> Option<u32> {
        self.unk
    }

    /// The padding token.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// Largest id plus one. The model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// A token's text as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token by its spelling.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The file that the tokenizer came from.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// The chat templates.
    pub fn templates(&self) -> &ChatTemplates {
        &self.templates
    }

    /// The default chat template's source.
    pub fn chat_template(&self) -> Option<&str> {
        self.templates.default.as_deref()
    }

    /// Renders a conversation with the chat template; with `add_generation_prompt`, the start of the assistant's turn follows.
    /// Encode the result without `special`: templates write BOS themselves.
    pub fn apply_chat(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        self.apply_chat_with_tools(messages, None, add_generation_prompt)
    }

    /// As [`Tokenizer::apply_chat`], telling the model what functions it may call: a list of descriptions in OpenAI's form.
    pub fn apply_chat_with_tools(
        &self,
        messages: &[ChatMessage],
        tools: Option<&serde_json::Value>,
        add_generation_prompt: bool,
    ) -> Result<String> {
        self.templates.render(messages, tools, add_generation_prompt, self.named_tokens()).map_err(|e| e.file(&self.origin))
    }

    /// As [`Tokenizer::apply_chat`], but the same on every day: the template gets no clock.
    pub fn render_timeless(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        self.templates.render_timeless(messages, add_generation_prompt, self.named_tokens()).map_err(|e| e.file(&self.origin))
    }

    /// The tokens that templates know by name, as the vocabulary spells them.
    fn named_tokens(&self) -> impl Iterator<Item = (&'static str, String)> {
        let special =
            [("bos_token", self.bos), ("eos_token", self.eos.first().copied()), ("unk_token", self.unk), ("pad_token", self.pad)];
        special.into_iter().filter_map(|(name, id)| Some((name, self.token(id?)?)))
    }
}

/// The library trusts its files: what it was not made for may make it panic. That is damage in the file, told like any other.
fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|s| s.to_string()).or_else(|| panic.downcast_ref::<String>().cloned());
        text.unwrap_or_else(|| "it makes no sense".into())
    })
}

/// Parses `tokenizer.json`'s contents, with truncation and padding off.
fn parse(json: &[u8]) -> Result<tokenizers::Tokenizer> {
    let refuse = |e: &dyn std::fmt::Display| {
        Error::corrupt(format!("not a usable tokenizer: {e}")).hint("download it again, or save it anew with transformers")
    };
    let mut inner =
        guarded(|| tokenizers::Tokenizer::from_bytes(json)).map_err(|panic| refuse(&panic))?.map_err(|e| refuse(&e))?;
    inner.with_truncation(None).map_err(|e| refuse(&e))?;
    inner.with_padding(None);
    Ok(inner)
}

#[cfg(test)]
mod tests;
