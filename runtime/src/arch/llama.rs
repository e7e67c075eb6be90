//! Llama 1 to 3, and the many models of the same architecture (SmolLM, TinyLlama, Yi, …).

use super::config::Config;
use super::{Architecture, family, mistral, mixtral, names, to_config};
use crate::role::Part;

/// The table entry.
pub static LLAMA: Architecture = Architecture {
    name: "llama",
    model_types: &["llama"],
    gguf: "llama",
    hf_class: "LlamaForCausalLM",
    order: names::interleaved_qk,
    from_config: |arch, config| {
        let c = Config(config);
        let mut spec = family::llama_like(arch, c)?;
        family::set_attention_biases(&mut spec, c)?;
        if c.opt_bool("mlp_bias")?.unwrap_or(false) {
            spec.add(family::GATED_BIASES);
        }
        family::set_uniform_window(&mut spec, c, None)?;
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        // Transformers' Llama has no window; Mistral is the same with one.
        if spec.sliding_window.is_some() {
            return (mistral::MISTRAL.to_config)(spec);
        }
        let mut config = to_config::base(&LLAMA, spec)?;
        config.insert("attention_bias".into(), to_config::attention_bias(spec)?);
        config.insert("mlp_bias".into(), spec.has(Part::FfnGateBias).into());
        Ok(config)
    },
    from_gguf: |spec, _| {
        mixtral::of_llama(spec);
        Ok(())
    },
    ..Architecture::DECODER
};
