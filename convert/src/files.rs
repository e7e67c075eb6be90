//! The files of a checkpoint folder besides its weights: those of another folder, or made from what a GGUF says.

use crate::folder::{pretty, read_json};
use crate::sidecars;
use bitsmith_formats::mlx::CONFIG_FILE;
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::ModelSpec;
use bitsmith_runtime::tokenizer::{GgufVocab, PROBES, Tokenizer, verify_roundtrip};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

const GENERATION_FILE: &str = "generation_config.json";

/// Configuration, tokenizer and other small files for a checkpoint folder. Every writer of folders takes them from here.
#[derive(Debug, Clone)]
pub struct FolderFiles {
    /// `config.json`, without what says how the source's weights are packed.
    config: Map<String, Value>,
    /// `generation_config.json`.
    generation: Option<Map<String, Value>>,
    others: Others,
}

#[derive(Debug, Clone)]
enum Others {
    /// Copied from this folder.
    Of(PathBuf),
    /// Written: names and contents.
    Made(Vec<(&'static str, Value)>),
}

impl FolderFiles {
    /// The files of a checkpoint folder.
    pub fn of_folder(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let mut config = read_json(&folder.join(CONFIG_FILE))?;
        for key in ["_name_or_path", "quantization", "quantization_config", "compression_config"] {
            config.remove(key);
        }
        let generation = folder.join(GENERATION_FILE);
        let generation = if generation.is_file() { Some(read_json(&generation)?) } else { None };
        Ok(FolderFiles { config, generation, others: Others::Of(folder.to_path_buf()) })
    }

    /// Files made from a GGUF's hyperparameters and vocabulary. An error says what they cannot express. The tokenizer is read back
    /// and must cut text as the vocabulary's does; `origin` is the GGUF, for messages.
    pub fn made(spec: &ModelSpec, vocab: &GgufVocab, origin: impl AsRef<Path>) -> Result<Self> {
        let origin = origin.as_ref();
        let (n, rows) = (vocab.tokens.len(), spec.vocab_size);
        if n > rows {
            let message = format!("the vocabulary has {n} tokens, the model's embedding {rows} rows");
            return Err(Error::corrupt(message).file(origin));
        }
        let mut config = spec.to_config().map_err(|e| e.file(origin))?;
        let mut generation = Map::new();
        let eos = match vocab.all_eos().as_slice() {
            [] => Value::Null,
            [one] => (*one).into(),
            several => several.into(),
        };
        for (key, id) in [("bos_token_id", vocab.bos.into()), ("eos_token_id", eos), ("pad_token_id", vocab.pad.into())] {
            if id != Value::Null {
                config.insert(key.into(), id.clone());
                generation.insert(key.into(), id);
            }
        }
        let mut others = vocab.to_hf_files(spec.context_length).map_err(|e| e.file(origin))?;
        others.push((GENERATION_FILE, generation.clone().into()));
        let files = FolderFiles { config, generation: Some(generation), others: Others::Made(others) };
        files.verify(vocab, origin)?;
        Ok(files)
    }

    /// Holds the written tokenizer against the vocabulary that it was made from.
    fn verify(&self, vocab: &GgufVocab, origin: &Path) -> Result<()> {
        let Others::Made(files) = &self.others else { return Ok(()) };
        let written = Tokenizer::from_hf_files(origin, |name| {
            let file = files.iter().find(|(n, _)| *n == name);
            file.map(|(_, json)| serde_json::to_vec(json).map_err(|e| Error::failed(e.to_string()).with_source(e))).transpose()
        })?;
        let source = Tokenizer::from_vocab(vocab, origin)?;
        let remedy = "the vocabulary has no exact form in tokenizer.json; choose a GGUF target, which carries it as it is";
        verify_roundtrip(&source, &written, PROBES).map_err(|e| e.hint(remedy))?;
        if (source.bos(), source.eos()) != (written.bos(), written.eos()) {
            let message = format!(
                "the tokenizer written would begin and end texts with {:?} and {:?} instead of {:?} and {:?}",
                written.bos(),
                written.eos(),
                source.bos(),
                source.eos()
            );
            return Err(Error::failed(message).file(origin).hint(remedy));
        }
        Ok(())
    }

    /// What `config.json` says about the model.
    pub(crate) fn config(&self) -> Map<String, Value> {
        self.config.clone()
    }

    /// What ends a text, where `generation_config.json` says so.
    pub(crate) fn generation_eos(&self) -> Option<&Value> {
        self.generation.as_ref()?.get("eos_token_id").filter(|v| !v.is_null())
    }

    /// Puts everything but `config.json` into a folder.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        match &self.others {
            Others::Of(source) => sidecars::copy(source, folder).map(|_| ()),
            Others::Made(files) => files.iter().try_for_each(|(name, json)| {
                let path = folder.join(name);
                // A vocabulary with a line per token is no pleasure to read, spread over even more of them.
                let text = if *name == "tokenizer.json" { json.to_string() } else { pretty(json)? };
                std::fs::write(&path, text).map_err(|e| Error::write(path, e))
            }),
        }
    }
}
