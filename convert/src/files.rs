//! The files of a checkpoint folder besides its weights: those of another folder, or made from what a GGUF says.

use crate::folder::{pretty, read_json};
use crate::sidecars;
use crate::tower::TowerFiles;
use bitsmith_formats::links;
use bitsmith_formats::mlx::CONFIG_FILE;
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::ModelSpec;
use bitsmith_runtime::arch::vision::Wrapper;
use bitsmith_runtime::tokenizer::{GgufVocab, PROBES, Tokenizer, verify_roundtrip};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const TOKENIZER_FILE: &str = "tokenizer.json";
const GENERATION_FILE: &str = "generation_config.json";

/// Configuration, tokenizer and other small files for a checkpoint folder. Every writer of folders takes them from here.
#[derive(Debug, Clone)]
pub struct FolderFiles {
    /// `config.json`, without what says how the source's weights are packed.
    config: Map<String, Value>,
    /// `generation_config.json`.
    generation: Option<Map<String, Value>>,
    others: Others,
    /// Vision tower and projector, which go along.
    tower: Option<TowerFiles>,
}

#[derive(Debug, Clone)]
enum Others {
    /// Copied from this folder.
    Of(PathBuf),
    /// Written: names and contents. Vocabularies are large, and every plan of a job has these files.
    Made(Arc<Vec<(&'static str, String)>>),
}

impl FolderFiles {
    /// The files of a checkpoint folder.
    pub fn of_folder(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        // What is copied must not come from elsewhere.
        links::check(folder)?;
        let mut config = read_json(&folder.join(CONFIG_FILE))?;
        for key in ["_name_or_path", "quantization", "quantization_config", "compression_config"] {
            config.remove(key);
        }
        let generation = folder.join(GENERATION_FILE);
        let generation = if generation.is_file() { Some(read_json(&generation)?) } else { None };
        Ok(FolderFiles { config, generation, others: Others::Of(folder.to_path_buf()), tower: None })
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
        config.sort_keys();
        let mut others = Vec::new();
        let tokenizer = vocab.to_hf_files(spec.context_length).map_err(|e| e.file(origin))?;
        for (name, json) in tokenizer.into_iter().chain([(GENERATION_FILE, generation.clone().into())]) {
            // A line for every token and every part of a merge helps no reader.
            others.push((name, if name == TOKENIZER_FILE { json.to_string() } else { pretty(&json)? }));
        }
        verify(&others, vocab, origin)?;
        Ok(FolderFiles { config, generation: Some(generation), others: Others::Made(others.into()), tower: None })
    }

    /// With the vision tower and projector of the source.
    pub fn with_tower(self, tower: Option<TowerFiles>) -> Self {
        FolderFiles { tower, ..self }
    }

    /// Vision tower and projector, if there are any.
    pub(crate) fn tower(&self) -> Option<&TowerFiles> {
        self.tower.as_ref()
    }

    /// The kind of model around the text model, if there is one.
    pub(crate) fn wrapper(&self) -> Option<&'static Wrapper> {
        Wrapper::of(&Value::Object(self.config.clone()))
    }

    /// What `config.json` says about the model.
    pub(crate) fn config(&self) -> Map<String, Value> {
        self.config.clone()
    }

    /// What `generation_config.json` says.
    pub fn generation(&self) -> Option<&Map<String, Value>> {
        self.generation.as_ref()
    }

    /// What ends a text, where `generation_config.json` says so.
    pub(crate) fn generation_eos(&self) -> Option<&Value> {
        self.generation.as_ref()?.get("eos_token_id").filter(|v| !v.is_null())
    }

    /// Puts everything but `config.json` into a folder.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        match &self.others {
            Others::Of(source) => sidecars::copy(source, folder).map(|_| ()),
            Others::Made(files) => files.iter().try_for_each(|(name, text)| {
                let path = folder.join(name);
                std::fs::write(&path, text).map_err(|e| Error::write(path, e))
            }),
        }
    }
}

/// Holds tokenizer files against the vocabulary that they were made from.
fn verify(files: &[(&'static str, String)], vocab: &GgufVocab, origin: &Path) -> Result<()> {
    let content = |name: &str| files.iter().find(|(n, _)| *n == name).map(|(_, text)| text.clone().into_bytes());
    let written = Tokenizer::from_hf_files(origin, |name| Ok(content(name)))?;
    let source = Tokenizer::from_vocab(vocab, origin)?;
    let remedy = "the vocabulary has no exact form in tokenizer.json; choose a GGUF target, which carries it as it is";
    verify_roundtrip(&source, &written, PROBES).map_err(|e| e.hint(remedy))?;
    let ends = |t: &Tokenizer| (t.bos(), t.eos().to_vec());
    if ends(&source) != ends(&written) {
        let message = format!(
            "the tokenizer written would have {:?} as BOS and EOS, the vocabulary has {:?}",
            ends(&written),
            ends(&source)
        );
        return Err(Error::failed(message).file(origin).hint(remedy));
    }
    Ok(())
}
