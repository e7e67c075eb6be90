//! Qwen 3 (dense): Llama with normed queries and keys and an explicit head width.

use super::config::Config;
use super::{Architecture, family, qwen2, write};

/// The table entry.
pub static QWEN3: Architecture = Architecture {
    name: "qwen3",
    model_types: &["qwen3"],
    gguf: "qwen3",
    hf_class: "Qwen3ForCausalLM",
    gguf_permutes_qk: false,
    qk_norm: true,
    hf_names: family::NAMES,
    from_config: |arch, config| {
        let c = Config(config);
        let mut spec = family::base(arch, c)?;
        // Transformers' default, where the key is absent.
        if c.get("head_dim").is_none() {
            spec.head_dim = 128;
        }
        let bias = c.opt_bool("attention_bias")?.unwrap_or(false);
        (spec.qkv_bias, spec.attn_output_bias) = (bias, bias);
        spec.sliding_window = qwen2::window(c, spec.n_layers)?;
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        if spec.mlp_bias {
            return Err(write::inexpressible(&QWEN3, "biases of the feed-forward block"));
        }
        let mut config = write::base(&QWEN3, spec)?;
        config.insert("attention_bias".into(), write::attention_bias(spec)?);
        config.extend(qwen2::window_keys(spec));
        Ok(config)
    },
};
