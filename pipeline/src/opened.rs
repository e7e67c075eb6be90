//! A model on this machine, opened: weights, tokenizer, and what is known about it.

use crate::context::Context;
use crate::model::{Located, resolve};
use bitsmith_convert::names::model_name;
use bitsmith_convert::{FolderFiles, ModelAbout, TowerFiles};
use bitsmith_formats::Result;
use bitsmith_runtime::{CacheType, Checkpoint, ComputeMode, GgufVocab, Tokenizer, WeightSource};
use std::sync::OnceLock;

/// An opened model.
pub struct Opened {
    /// What the user wrote, with the commit if it came from the hub.
    pub name: String,
    /// Licence, parents and the like, and the name that artifacts take.
    pub about: ModelAbout,
    /// The weights.
    pub checkpoint: Checkpoint,
    /// Made once, as large vocabularies take seconds.
    folder_files: OnceLock<FolderFiles>,
}

impl Opened {
    /// Finds the model (downloading it if need be) and opens it.
    pub fn find(model: &str, context: &Context) -> Result<Opened> {
        Self::open(resolve(model, context)?)
    }

    /// Opens a model that is here.
    pub fn open(located: Located) -> Result<Opened> {
        let checkpoint = Checkpoint::open(&located.path)?;
        let repo = located.pulled.as_ref().map(|p| p.model.as_str());
        let mut about = match checkpoint.gguf() {
            Some(store) => ModelAbout::from_gguf(store.metadata(), &located.path)?,
            None => ModelAbout::from_source(checkpoint.folder(), repo)?,
        };
        if repo.is_none() {
            about.name = model_name(&located.path, None);
        }
        about.revision = located.pulled.map(|p| p.commit);
        Ok(Opened { name: located.name, about, checkpoint, folder_files: OnceLock::new() })
    }

    /// The same model, to be run in this mode.
    pub fn with_compute(self, mode: ComputeMode) -> Opened {
        Opened { checkpoint: self.checkpoint.with_compute(mode), ..self }
    }

    /// The same model, with keys and values of whole windows rounded as this type of cache stores them.
    pub fn with_cache(self, cache: CacheType) -> Result<Opened> {
        Ok(Opened { checkpoint: self.checkpoint.with_cache(cache)?, ..self })
    }

    /// Bytes of its tensors as they are stored, and bits per weight.
    pub fn size(&self) -> (u64, f64) {
        let bytes: usize = self.checkpoint.store().tensors().iter().map(|t| t.n_bytes).sum();
        (bytes as u64, bytes as f64 * 8.0 / self.checkpoint.spec().n_weights() as f64)
    }

    /// The model's tokenizer: `tokenizer.json` of a folder, or rebuilt from a GGUF's metadata.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match self.checkpoint.gguf() {
            Some(store) => Tokenizer::from_gguf(store.metadata(), self.checkpoint.path()),
            None => Tokenizer::from_hf_folder(self.checkpoint.folder()),
        }
    }

    /// The tokenizer for calibration and evaluation text, in which the names of special tokens are plain text, as llama-perplexity
    /// and the papers' scripts read it.
    pub fn text_tokenizer(&self) -> Result<Tokenizer> {
        let mut tokenizer = self.tokenizer()?;
        tokenizer.set_parse_special(false);
        Ok(tokenizer)
    }

    /// Configuration, tokenizer and other small files for a checkpoint folder: the source's own, or made from a GGUF's metadata.
    pub fn folder_files(&self) -> Result<FolderFiles> {
        if let Some(files) = self.folder_files.get() {
            return Ok(files.clone());
        }
        let files = match self.checkpoint.gguf() {
            Some(_) => FolderFiles::made(self.checkpoint.spec(), &self.vocab()?, self.checkpoint.path())?,
            None => FolderFiles::of_folder(self.checkpoint.folder())?.with_tower(TowerFiles::of(&self.checkpoint)?),
        };
        Ok(self.folder_files.get_or_init(|| files).clone())
    }

    /// The tokenizer in GGUF's terms.
    pub fn vocab(&self) -> Result<GgufVocab> {
        match self.checkpoint.gguf() {
            Some(store) => GgufVocab::from_metadata(store.metadata()).map_err(|e| e.file(self.checkpoint.path())),
            None => GgufVocab::from_hf_folder(self.checkpoint.folder(), self.checkpoint.spec().vocab_size),
        }
    }
}
