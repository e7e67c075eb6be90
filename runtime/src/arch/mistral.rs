//! Mistral: Llama with an optional sliding window. GGUF calls it `llama`.

use super::config::Config;
use super::{Architecture, family};

/// The table entry.
pub static MISTRAL: Architecture = Architecture {
    name: "mistral",
    model_types: &["mistral"],
    gguf: "llama",
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
};
