//! Gemma: Llama with norms stored less one, scaled embeddings and a gate through GELU.

use super::config::Config;
use super::{Architecture, Client, family, gemma2, to_config, to_gguf};
use crate::spec::Activation;
use serde_json::json;

/// The table entry.
pub static GEMMA: Architecture = Architecture {
    name: "gemma",
    model_types: &["gemma"],
    gguf: "gemma",
    hf_class: "GemmaForCausalLM",
    proof: &[Client::Transformers, Client::LlamaCpp],
    order: gemma2::norms_plus_one,
    from_config: |arch, config| {
        let c = Config(config);
        family::refuse_switches(arch, c, &[("attention_bias", false), ("use_bidirectional_attention", false)])?;
        let mut spec = family::base(arch, c)?;
        // Early configurations say `gelu` and mean its approximation, with which the model was trained.
        family::set_activation(&mut spec, c, &[Activation::GeluTanh, Activation::Gelu])?;
        family::set_tied(&mut spec, c.opt_bool("tie_word_embeddings")?.unwrap_or(true));
        gemma2::common(&mut spec);
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        to_config::refuse_biases(&GEMMA, spec, &[])?;
        let mut config = to_config::base(&GEMMA, spec)?;
        config.insert("hidden_activation".into(), json!(to_config::activation(spec.activation)));
        Ok(config)
    },
    from_gguf: |spec, _| {
        gemma2::common(spec);
        Ok(())
    },
    gguf_keys: |spec| {
        to_gguf::refuse_untied(spec)?;
        Ok(Vec::new())
    },
    ..Architecture::DECODER
};
