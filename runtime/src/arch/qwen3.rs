//! Qwen 3 (dense): Llama with normed queries and keys and an explicit head width.

use super::config::Config;
use super::{Architecture, family, qwen2, to_config};
use crate::role::Part;
use crate::spec::ModelSpec;
use bitsmith_formats::Result;

/// The table entry.
pub static QWEN3: Architecture = Architecture {
    name: "qwen3",
    model_types: &["qwen3"],
    gguf: "qwen3",
    hf_class: "Qwen3ForCausalLM",
    from_config: |arch, config| {
        let spec = base(arch, Config(config))?;
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        if spec.has(Part::FfnGateBias) {
            return Err(to_config::inexpressible(&QWEN3, "biases of the feed-forward block"));
        }
        let mut config = to_config::base(&QWEN3, spec)?;
        config.insert("attention_bias".into(), to_config::attention_bias(spec)?);
        config.extend(qwen2::window_keys(spec));
        Ok(config)
    },
    ..Architecture::DECODER
};

/// What the dense models and the mixtures share.
pub(super) fn base(arch: &'static Architecture, c: Config<'_>) -> Result<ModelSpec> {
    let mut spec = family::llama_like(arch, c)?;
    // Transformers' default, where the key is absent.
    if c.get("head_dim").is_none() {
        (spec.head_dim, spec.v_head_dim, spec.rope.dims) = (128, 128, 128);
    }
    spec.add(family::QK_NORMS);
    family::set_attention_biases(&mut spec, c)?;
    qwen2::set_window(&mut spec, c)?;
    Ok(spec)
}
