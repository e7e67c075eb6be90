//! StableLM: Llama with layer norms, partly rotated heads, and in its largest member parallel blocks and a norm for every head.

use super::config::Config;
use super::{Architecture, QkNorm, family, to_config, to_gguf};
use crate::role::Part;
use crate::spec::{Activation, ModelSpec};
use serde_json::json;

/// The table entry.
pub static STABLELM: Architecture = Architecture {
    name: "stablelm",
    model_types: &["stablelm"],
    gguf: "stablelm",
    hf_class: "StableLmForCausalLM",
    qk_norm: QkNorm::EachHead,
    hf_names: NAMES,
    from_config: |arch, config| {
        let c = Config(config);
        let mut spec = family::base(arch, c)?;
        family::set_activation(&mut spec, c, &[Activation::Silu])?;
        if c.get("partial_rotary_factor").is_none() && c.get("rope_parameters").is_none() {
            // Transformers' default, where the key is absent.
            spec.rope.dims = spec.head_dim / 4;
        }
        set_parallel(&mut spec, c.opt_bool("use_parallel_residual")?.unwrap_or(false));
        if c.opt_bool("use_qkv_bias")?.unwrap_or(false) {
            spec.add(family::QKV_BIASES);
        }
        if c.opt_bool("qk_layernorm")?.unwrap_or(false) {
            spec.add(family::QK_NORMS);
        }
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        to_config::refuse_biases(&STABLELM, spec, family::QKV_BIASES)?;
        let mut config = to_config::base(&STABLELM, spec)?;
        to_config::layer_norm(&mut config, spec);
        for (key, value) in [
            ("partial_rotary_factor", json!(to_config::partial_rotary_factor(spec))),
            ("qk_layernorm", json!(spec.has(Part::AttnQNorm))),
            ("use_parallel_residual", json!(spec.parallel)),
            ("use_qkv_bias", json!(spec.has(Part::AttnQBias))),
        ] {
            config.insert(key.into(), value);
        }
        Ok(config)
    },
    from_gguf: |spec, _| {
        let parallel = !spec.has(Part::FfnNorm);
        set_parallel(spec, parallel);
        Ok(())
    },
    gguf_keys: |spec| {
        to_gguf::refuse_tied(spec)?;
        Ok(vec![("use_parallel_residual", spec.parallel.into())])
    },
    ..Architecture::DECODER
};

/// Sets the norms: parallel blocks share one.
fn set_parallel(spec: &mut ModelSpec, parallel: bool) {
    spec.parallel = parallel;
    spec.add(&[Part::AttnNormBias, Part::OutputNormBias]);
    let second = [Part::FfnNorm, Part::FfnNormBias];
    if parallel { spec.remove(&second) } else { spec.add(&second) }
}

const NAMES: &[(Part, &str)] = &[
    (Part::OutputNormBias, "model.norm.bias"),
    (Part::AttnNormBias, "model.layers.{}.input_layernorm.bias"),
    (Part::AttnQNorm, "model.layers.{}.self_attn.q_layernorm.norms.{e}.weight"),
    (Part::AttnKNorm, "model.layers.{}.self_attn.k_layernorm.norms.{e}.weight"),
    (Part::FfnNormBias, "model.layers.{}.post_attention_layernorm.bias"),
];
