//! The architecture table: one file and one line in [`ARCHITECTURES`] per architecture.

mod config;
mod family;
mod gguf;
mod llama;
mod mistral;
mod names;
mod qwen2;
mod qwen3;

pub use names::{ContainerKind, TensorMap, gguf_row_order};

use crate::role::Part;
use crate::spec::ModelSpec;
use bitsmith_formats::{Error, Result};
use serde_json::Value;

/// Every architecture that bitsmith knows. Where several share a GGUF name, the first reads it.
pub static ARCHITECTURES: &[&Architecture] = &[&llama::LLAMA, &mistral::MISTRAL, &qwen2::QWEN2, &qwen3::QWEN3];

/// What distinguishes an architecture. Everything that converts, runs or quantizes reads this entry.
pub struct Architecture {
    /// Our name, also shown by `bitsmith inspect`.
    pub name: &'static str,
    /// `model_type` values in `config.json`.
    pub model_types: &'static [&'static str],
    /// GGUF's `general.architecture`.
    pub gguf: &'static str,
    /// Whether GGUF stores the rows of q and k interleaved for its own rope (pairs next to each other instead of halves).
    pub gguf_permutes_qk: bool,
    /// Whether queries and keys are normed per head.
    pub qk_norm: bool,
    /// Tensor names in Hugging Face and MLX checkpoints, `{}` standing for the layer.
    pub hf_names: &'static [(Part, &'static str)],
    /// Reads the hyperparameters from `config.json`.
    pub from_config: fn(&'static Architecture, &Value) -> Result<ModelSpec>,
}

impl std::fmt::Debug for Architecture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// The architecture of a `config.json`.
pub fn find_by_config(config: &Value) -> Result<&'static Architecture> {
    let model_type = config::Config(config).str("model_type")?;
    ARCHITECTURES
        .iter()
        .copied()
        .find(|a| a.model_types.contains(&model_type))
        .ok_or_else(|| unknown(model_type).hint(format!("supported `model_type`s: {}", list(|a| a.model_types.join(", ")))))
}

/// The architecture of a GGUF file, by its `general.architecture`.
pub fn find_by_gguf(name: &str) -> Result<&'static Architecture> {
    ARCHITECTURES
        .iter()
        .copied()
        .find(|a| a.gguf == name)
        .ok_or_else(|| unknown(name).hint(format!("supported GGUF architectures: {}", list(|a| a.gguf.to_string()))))
}

fn unknown(name: &str) -> Error {
    Error::unsupported(format!("architecture `{name}` is not supported"))
}

fn list(f: impl Fn(&Architecture) -> String) -> String {
    let mut names: Vec<String> = ARCHITECTURES.iter().map(|a| f(a)).collect();
    names.dedup();
    names.join(", ")
}

impl ModelSpec {
    /// Reads `config.json`. Errors name the key.
    pub fn from_config(config: &Value) -> Result<ModelSpec> {
        let arch = find_by_config(config)?;
        (arch.from_config)(arch, config)
    }
}

/// The beginning-of-sequence token and the end-of-sequence tokens of a `config.json` or `generation_config.json`.
pub(crate) fn special_tokens(config: &Value) -> Result<(Option<u32>, Vec<u32>)> {
    let c = config::Config(config);
    Ok((c.token_ids("bos_token_id")?.first().copied(), c.token_ids("eos_token_id")?))
}
