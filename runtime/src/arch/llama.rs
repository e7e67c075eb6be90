//! Llama 1 to 3, and the many models of the same architecture (SmolLM, TinyLlama, Yi, …).

use super::config::Config;
use super::{Architecture, family};

/// The table entry.
pub static LLAMA: Architecture = Architecture {
    name: "llama",
    model_types: &["llama"],
    gguf: "llama",
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
};
