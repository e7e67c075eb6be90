//! Qwen 2 and 2.5: Llama with biases on q, k and v.

use super::config::Config;
use super::{Architecture, family, to_config};
use crate::role::Part;
use crate::spec::ModelSpec;
use bitsmith_formats::{Error, Result};
use serde_json::{Value, json};

/// The table entry.
pub static QWEN2: Architecture = Architecture {
    name: "qwen2",
    model_types: &["qwen2"],
    gguf: "qwen2",
    hf_class: "Qwen2ForCausalLM",
    from_config: |arch, config| {
        let c = Config(config);
        let mut spec = family::llama_like(arch, c)?;
        spec.add(family::QKV_BIASES);
        set_window(&mut spec, c)?;
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        to_config::refuse_biases(&QWEN2, spec, family::QKV_BIASES)?;
        if !spec.has(Part::AttnQBias) {
            return Err(to_config::inexpressible(&QWEN2, "q, k and v without biases"));
        }
        let mut config = to_config::base(&QWEN2, spec)?;
        config.extend(window_keys(spec));
        Ok(config)
    },
    ..Architecture::DECODER
};

/// The keys that [`set_window`] reads.
pub(super) fn window_keys(spec: &ModelSpec) -> [(String, Value); 3] {
    let first = if spec.sliding_window.is_some() { 0 } else { spec.n_layers };
    [
        ("max_window_layers".into(), json!(first)),
        ("sliding_window".into(), json!(spec.sliding_window)),
        ("use_sliding_window".into(), json!(spec.sliding_window.is_some())),
    ]
}

/// Qwen's window: `sliding_window` counts only if `use_sliding_window` is set, and only from layer `max_window_layers` on.
pub(super) fn set_window(spec: &mut ModelSpec, c: Config<'_>) -> Result<()> {
    if !c.opt_bool("use_sliding_window")?.unwrap_or(false) {
        return family::set_uniform_window(spec, c, None);
    }
    let window = c.opt_usize("sliding_window")?;
    let window = match c.opt_usize("max_window_layers")? {
        _ if window.is_none() => None,
        Some(first) if first >= spec.n_layers => None,
        Some(0) => window,
        _ if c.get("layer_types").is_some() => window,
        _ => {
            return Err(Error::unsupported(
                "sliding-window attention in some layers only (`max_window_layers`) is not supported",
            ));
        }
    };
    family::set_uniform_window(spec, c, window)
}
