//! Mistral: Llama with an optional sliding window. GGUF calls it `llama`.

use super::config::Config;
use super::{Architecture, family, names, to_config};

/// The table entry.
pub static MISTRAL: Architecture = Architecture {
    name: "mistral",
    model_types: &["mistral"],
    gguf: "llama",
    hf_class: "MistralForCausalLM",
    order: names::interleaved_qk,
    from_config: |arch, config| {
        let c = Config(config);
        let mut spec = family::llama_like(arch, c)?;
        family::set_uniform_window(&mut spec, c, c.opt_usize("sliding_window")?)?;
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        to_config::refuse_biases(&MISTRAL, spec, &[])?;
        let mut config = to_config::base(&MISTRAL, spec)?;
        // Absent, it means 4096.
        config.insert("sliding_window".into(), spec.sliding_window.into());
        Ok(config)
    },
    ..Architecture::DECODER
};
