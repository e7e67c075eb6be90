//! Phi-1, Phi-1.5 and Phi-2: layer norms, attention and feed-forward block side by side behind one norm, partly rotated heads, biases
//! everywhere, the output matrix included.

use super::config::Config;
use super::{Architecture, family, to_config, to_gguf};
use crate::role::Part;
use crate::spec::Activation;
use serde_json::json;

/// The table entry.
pub static PHI2: Architecture = Architecture {
    name: "phi2",
    model_types: &["phi"],
    gguf: "phi2",
    hf_class: "PhiForCausalLM",
    hf_names: NAMES,
    from_config: |arch, config| {
        let c = Config(config);
        family::refuse_switches(arch, c, &[("qk_layernorm", false), ("tie_word_embeddings", false)])?;
        let mut spec = family::base(arch, c)?;
        family::set_activation(&mut spec, c, &[Activation::GeluTanh])?;
        if c.get("partial_rotary_factor").is_none() && c.get("rope_parameters").is_none() {
            // Transformers' default, where the key is absent.
            spec.rope.dims = spec.head_dim / 2;
        }
        spec.remove(&[Part::FfnGate, Part::FfnNorm]);
        let biased: Vec<Part> = spec.parts.iter().filter_map(|p| p.bias()).collect();
        spec.add(&biased);
        spec.parallel = true;
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        let mut config = to_config::base(&PHI2, spec)?;
        to_config::layer_norm(&mut config, spec);
        for (key, value) in [
            ("hidden_act", json!("gelu_new")),
            ("partial_rotary_factor", json!(to_config::partial_rotary_factor(spec))),
            ("qk_layernorm", json!(false)),
        ] {
            config.insert(key.into(), value);
        }
        Ok(config)
    },
    from_gguf: |spec, _| {
        spec.parallel = true;
        spec.activation = Activation::GeluTanh;
        Ok(())
    },
    gguf_keys: |spec| {
        to_gguf::refuse_tied(spec)?;
        Ok(Vec::new())
    },
    ..Architecture::DECODER
};

const NAMES: &[(Part, &str)] = &[
    (Part::OutputNorm, "model.final_layernorm.weight"),
    (Part::OutputNormBias, "model.final_layernorm.bias"),
    (Part::OutputBias, "lm_head.bias"),
    (Part::AttnNormBias, "model.layers.{}.input_layernorm.bias"),
    (Part::AttnOutput, "model.layers.{}.self_attn.dense.weight"),
    (Part::AttnOutputBias, "model.layers.{}.self_attn.dense.bias"),
    (Part::FfnUp, "model.layers.{}.mlp.fc1.weight"),
    (Part::FfnUpBias, "model.layers.{}.mlp.fc1.bias"),
    (Part::FfnDown, "model.layers.{}.mlp.fc2.weight"),
    (Part::FfnDownBias, "model.layers.{}.mlp.fc2.bias"),
];
