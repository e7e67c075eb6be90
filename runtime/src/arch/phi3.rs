//! Phi-3, Phi-3.5 and Phi-4: Llama with joint projections of queries, keys and values and of gate and up.

use super::config::Config;
use super::{Architecture, family, to_config};
use crate::role::Part;
use crate::spec::Activation;
use bitsmith_formats::gguf::Value;
use serde_json::json;

/// The table entry.
pub static PHI3: Architecture = Architecture {
    name: "phi3",
    model_types: &["phi3"],
    gguf: "phi3",
    hf_class: "Phi3ForCausalLM",
    hf_names: NAMES,
    from_config: |arch, config| {
        let c = Config(config);
        family::refuse_switches(arch, c, &[("attention_bias", false)])?;
        let mut spec = family::base(arch, c)?;
        family::set_activation(&mut spec, c, &[Activation::Silu])?;
        spec.remove(&[Part::AttnQ, Part::AttnK, Part::AttnV, Part::FfnGate]);
        spec.add(&[Part::AttnQkv]);
        spec.fused_gate = true;
        family::set_uniform_window(&mut spec, c, c.opt_usize("sliding_window")?)?;
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        to_config::refuse_biases(&PHI3, spec, &[])?;
        let mut config = to_config::base(&PHI3, spec)?;
        if let Some(original) = spec.rope.scaling.original_context() {
            config.insert("original_max_position_embeddings".into(), json!(original));
        }
        config.insert("partial_rotary_factor".into(), json!(to_config::partial_rotary_factor(spec)));
        config.insert("sliding_window".into(), json!(spec.sliding_window));
        Ok(config)
    },
    // llama.cpp takes the absence of this key for a window of another size.
    gguf_keys: |spec| Ok(vec![("attention.sliding_window", Value::U32(spec.sliding_window.unwrap_or(0) as u32))]),
    ..Architecture::DECODER
};

const NAMES: &[(Part, &str)] =
    &[(Part::AttnQkv, "model.layers.{}.self_attn.qkv_proj.weight"), (Part::FfnUp, "model.layers.{}.mlp.gate_up_proj.weight")];
