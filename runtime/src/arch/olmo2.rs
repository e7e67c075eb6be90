//! OLMo 2: norms after each block instead of before it, and one over all queries and one over all keys.

use super::config::Config;
use super::{Architecture, QkNorm, family, to_config, to_gguf};
use crate::role::Part;
use bitsmith_formats::Error;

/// The table entry.
pub static OLMO2: Architecture = Architecture {
    name: "olmo2",
    model_types: &["olmo2"],
    gguf: "olmo2",
    hf_class: "Olmo2ForCausalLM",
    qk_norm: QkNorm::Wide,
    hf_names: NAMES,
    from_config: |arch, config| {
        let c = Config(config);
        family::refuse_switches(arch, c, &[("attention_bias", false)])?;
        let mut spec = family::llama_like(arch, c)?;
        spec.remove(&[Part::AttnNorm, Part::FfnNorm]);
        spec.add(&[Part::AttnPostNorm, Part::FfnPostNorm]);
        spec.add(family::QK_NORMS);
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        to_config::refuse_biases(&OLMO2, spec, &[])?;
        to_config::base(&OLMO2, spec)
    },
    from_gguf: |spec, _| match spec.sliding_window {
        None => Ok(()),
        // OLMo 3 goes by the same name.
        Some(_) => Err(Error::unsupported("sliding windows (key `olmo2.attention.sliding_window`) are not supported in `olmo2`")),
    },
    gguf_keys: |spec| {
        to_gguf::refuse_tied(spec)?;
        Ok(Vec::new())
    },
    ..Architecture::DECODER
};

const NAMES: &[(Part, &str)] = &[
    (Part::AttnPostNorm, "model.layers.{}.post_attention_layernorm.weight"),
    (Part::FfnPostNorm, "model.layers.{}.post_feedforward_layernorm.weight"),
];
