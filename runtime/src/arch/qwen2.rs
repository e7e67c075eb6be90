//! Qwen 2 and 2.5: Llama with biases on q, k and v.

use super::config::Config;
use super::{Architecture, family, write};
use crate::spec::ModelSpec;
use bitsmith_formats::{Error, Result};
use serde_json::{Value, json};

/// The table entry.
pub static QWEN2: Architecture = Architecture {
    name: "qwen2",
    model_types: &["qwen2"],
    gguf: "qwen2",
    hf_class: "Qwen2ForCausalLM",
    gguf_permutes_qk: false,
    qk_norm: false,
    hf_names: family::NAMES,
    from_config: |arch, config| {
        let c = Config(config);
        let mut spec = family::base(arch, c)?;
        spec.qkv_bias = true;
        spec.sliding_window = window(c, spec.n_layers)?;
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        if !spec.qkv_bias || spec.attn_output_bias || spec.mlp_bias {
            return Err(write::inexpressible(&QWEN2, "biases other than those of q, k and v"));
        }
        let mut config = write::base(&QWEN2, spec)?;
        config.extend(window_keys(spec));
        Ok(config)
    },
};

/// The keys that [`window`] reads.
pub(super) fn window_keys(spec: &ModelSpec) -> [(String, Value); 3] {
    let first = if spec.sliding_window.is_some() { 0 } else { spec.n_layers };
    [
        ("max_window_layers".into(), json!(first)),
        ("sliding_window".into(), json!(spec.sliding_window)),
        ("use_sliding_window".into(), json!(spec.sliding_window.is_some())),
    ]
}

/// Qwen's window: `sliding_window` counts only if `use_sliding_window` is set, and only from layer `max_window_layers` on.
pub(super) fn window(c: Config<'_>, n_layers: usize) -> Result<Option<usize>> {
    if !c.opt_bool("use_sliding_window")?.unwrap_or(false) {
        return family::sliding_window(c, None);
    }
    let window = c.opt_usize("sliding_window")?;
    let window = match c.opt_usize("max_window_layers")? {
        _ if window.is_none() => None,
        Some(first) if first >= n_layers => None,
        Some(0) => window,
        _ if c.get("layer_types").is_some() => window,
        _ => {
            return Err(Error::unsupported(
                "sliding-window attention in some layers only (`max_window_layers`) is not supported",
            ));
        }
    };
    family::sliding_window(c, window)
}
