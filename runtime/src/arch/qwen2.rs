//! Qwen 2 and 2.5: Llama with biases on q, k and v.

use super::config::Config;
use super::{Architecture, family};
use bitsmith_formats::{Error, Result};

/// The table entry.
pub static QWEN2: Architecture = Architecture {
    name: "qwen2",
    model_types: &["qwen2"],
    gguf: "qwen2",
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
};

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
