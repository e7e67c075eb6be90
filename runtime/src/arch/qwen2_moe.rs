//! Qwen 1.5's and 2's mixtures of experts: beside the experts that the router chooses, one that all tokens go to.

use super::config::Config;
use super::{Architecture, family, qwen2, qwen3_moe, to_config};
use crate::role::Part;
use crate::spec::{Experts, ModelSpec};
use bitsmith_formats::{Error, Result, gguf};
use serde_json::json;

/// The table entry.
pub static QWEN2_MOE: Architecture = Architecture {
    name: "qwen2_moe",
    model_types: &["qwen2_moe"],
    gguf: "qwen2moe",
    hf_class: "Qwen2MoeForCausalLM",
    hf_names: NAMES,
    mlx_names: qwen3_moe::MLX_NAMES,
    joint: qwen3_moe::joint_experts,
    from_config: |arch, config| {
        let c = Config(config);
        let mut spec = family::llama_like(arch, c)?;
        if c.opt_bool("use_sliding_window")?.unwrap_or(false) {
            return Err(Error::unsupported("sliding-window attention (`use_sliding_window`) is not supported in `qwen2_moe`"));
        }
        if c.opt_bool("qkv_bias")?.unwrap_or(true) {
            spec.add(family::QKV_BIASES);
        }
        let experts = Experts { shared_ffn_size: c.usize("shared_expert_intermediate_size")?, ..qwen3_moe::qwen_experts(c)? };
        family::set_mixtures(&mut spec, experts, family::sparse_layers(c)?);
        spec.add(&[Part::FfnGateInpShexp]);
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        let Some(e) = &spec.experts else { return Err(to_config::inexpressible(&QWEN2_MOE, "a model without experts")) };
        to_config::refuse_biases(&QWEN2_MOE, spec, family::QKV_BIASES)?;
        let mut config = to_config::base(&QWEN2_MOE, spec)?;
        config.extend(qwen2::window_keys(spec));
        config.extend(qwen3_moe::mixture_keys(spec, e));
        config.insert("qkv_bias".into(), spec.has(Part::AttnQBias).into());
        config.insert("shared_expert_intermediate_size".into(), json!(e.shared_ffn_size));
        Ok(config)
    },
    from_gguf: |spec, keys| {
        // llama.cpp never normalizes. Where the width of the shared expert is not named, it is that of dense layers.
        if let Some(e) = &mut spec.experts {
            e.normalize = false;
            e.shared_ffn_size = keys.opt_usize("expert_shared_feed_forward_length")?.unwrap_or(spec.ffn_size);
        }
        Ok(())
    },
    gguf_keys,
    ..Architecture::DECODER
};

fn gguf_keys(spec: &ModelSpec) -> Result<Vec<(&'static str, gguf::Value)>> {
    let refused = if spec.experts.as_ref().is_some_and(|e| e.normalize) {
        "experts whose weights are normalized (`norm_topk_prob` true)"
    } else if spec.layers.iter().any(|l| !l.mixture) {
        "layers without experts (`mlp_only_layers`, `decoder_sparse_step`)"
    } else {
        return Ok(Vec::new());
    };
    Err(Error::unsupported(format!("GGUF has no key for {refused} in `qwen2moe`"))
        .hint("an MLX or Hugging Face target keeps the model as it is"))
}

const NAMES: &[(Part, &str)] = &[
    (Part::FfnGateInp, "model.layers.{}.mlp.gate.weight"),
    (Part::FfnGateExps, "model.layers.{}.mlp.experts.{e}.gate_proj.weight"),
    (Part::FfnUpExps, "model.layers.{}.mlp.experts.{e}.up_proj.weight"),
    (Part::FfnDownExps, "model.layers.{}.mlp.experts.{e}.down_proj.weight"),
    (Part::FfnGateInpShexp, "model.layers.{}.mlp.shared_expert_gate.weight"),
    (Part::FfnGateShexp, "model.layers.{}.mlp.shared_expert.gate_proj.weight"),
    (Part::FfnUpShexp, "model.layers.{}.mlp.shared_expert.up_proj.weight"),
    (Part::FfnDownShexp, "model.layers.{}.mlp.shared_expert.down_proj.weight"),
];
