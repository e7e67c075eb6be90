//! Llama 1 to 3, and the many models of the same architecture (SmolLM, TinyLlama, Yi, …).

use super::config::Config;
use super::{Architecture, family, mistral, write};

/// The table entry.
pub static LLAMA: Architecture = Architecture {
    name: "llama",
    model_types: &["llama"],
    gguf: "llama",
    hf_class: "LlamaForCausalLM",
    gguf_permutes_qk: true,
    qk_norm: false,
    hf_names: family::NAMES,
    from_config: |arch, config| {
        let c = Config(config);
        let mut spec = family::base(arch, c)?;
        // One switch for all four projections.
        let bias = c.opt_bool("attention_bias")?.unwrap_or(false);
        (spec.qkv_bias, spec.attn_output_bias) = (bias, bias);
        spec.mlp_bias = c.opt_bool("mlp_bias")?.unwrap_or(false);
        spec.sliding_window = family::sliding_window(c, None)?;
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        // Transformers' Llama has no window; Mistral is the same with one.
        if spec.sliding_window.is_some() {
            return (mistral::MISTRAL.to_config)(spec);
        }
        let mut config = write::base(&LLAMA, spec)?;
        config.insert("attention_bias".into(), write::attention_bias(spec)?);
        config.insert("mlp_bias".into(), spec.mlp_bias.into());
        Ok(config)
    },
};
