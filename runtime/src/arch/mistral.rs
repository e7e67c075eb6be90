//! Mistral: Llama with an optional sliding window. GGUF calls it `llama`.

use super::config::Config;
use super::{Architecture, family, write};

/// The table entry.
pub static MISTRAL: Architecture = Architecture {
    name: "mistral",
    model_types: &["mistral"],
    gguf: "llama",
    hf_class: "MistralForCausalLM",
    gguf_permutes_qk: true,
    qk_norm: false,
    hf_names: family::NAMES,
    from_config: |arch, config| {
        let c = Config(config);
        let mut spec = family::base(arch, c)?;
        spec.sliding_window = family::sliding_window(c, c.opt_usize("sliding_window")?)?;
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        if spec.qkv_bias || spec.attn_output_bias || spec.mlp_bias {
            return Err(write::inexpressible(&MISTRAL, "biases"));
        }
        let mut config = write::base(&MISTRAL, spec)?;
        // Absent, it means 4096.
        config.insert("sliding_window".into(), spec.sliding_window.into());
        Ok(config)
    },
};
