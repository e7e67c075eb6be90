//! GPT-NeoX and Pythia: layer norms, attention and feed-forward block side by side, partly rotated heads, a joint projection of
//! queries, keys and values, all with biases. Hugging Face and MLX have that projection head by head.

use super::config::Config;
use super::names::ContainerKind;
use super::{Architecture, Order, family, to_config, to_gguf};
use crate::role::Part;
use crate::spec::{Activation, ModelSpec};
use serde_json::{Map, Value, json};

/// The table entry.
pub static GPT_NEOX: Architecture = Architecture {
    name: "gpt_neox",
    model_types: &["gpt_neox"],
    gguf: "gptneox",
    hf_class: "GPTNeoXForCausalLM",
    hf_names: NAMES,
    mlx_names: MLX_NAMES,
    superfluous: &[".attention.bias", ".attention.masked_bias"],
    order: head_by_head,
    from_config: |arch, config| {
        let c = Config(config);
        family::refuse_switches(arch, c, &[("attention_bias", true)])?;
        // The names that two keys have elsewhere.
        let mut renamed: Map<String, Value> = config.as_object().cloned().unwrap_or_default();
        for (old, new) in [("rotary_pct", "partial_rotary_factor"), ("rotary_emb_base", "rope_theta")] {
            if let Some(value) = c.get(old) {
                renamed.insert(new.into(), value.clone());
            }
        }
        if !["rotary_pct", "partial_rotary_factor", "rope_parameters"].iter().any(|key| c.get(key).is_some()) {
            // Transformers' default, where the key is absent.
            renamed.insert("partial_rotary_factor".into(), 0.25.into());
        }
        // Keys and values are never shared.
        renamed.remove("num_key_value_heads");
        let mut spec = family::base(arch, Config(&Value::Object(renamed)))?;
        family::set_activation(&mut spec, c, &[Activation::Gelu, Activation::GeluTanh])?;
        spec.remove(&[Part::AttnQ, Part::AttnK, Part::AttnV, Part::FfnGate]);
        spec.add(&[Part::AttnQkv]);
        let biased: Vec<Part> = spec.parts.iter().filter(|p| **p != Part::Output).filter_map(|p| p.bias()).collect();
        spec.add(&biased);
        spec.parallel = c.opt_bool("use_parallel_residual")?.unwrap_or(true);
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        let mut config = to_config::base(&GPT_NEOX, spec)?;
        to_config::layer_norm(&mut config, spec);
        config.retain(|key, _| key != "head_dim" && key != "num_key_value_heads");
        for (key, value) in [
            ("attention_bias", json!(true)),
            ("rotary_emb_base", to_config::whole(to_config::decimal(spec.rope.theta))),
            ("rotary_pct", json!(to_config::partial_rotary_factor(spec))),
            ("use_parallel_residual", json!(spec.parallel)),
        ] {
            config.insert(key.into(), value);
        }
        Ok(config)
    },
    from_gguf: |spec, keys| {
        spec.parallel = keys.opt_bool("use_parallel_residual")?.unwrap_or(true);
        // llama.cpp always computes the approximation, whatever the model was trained with.
        spec.activation = match keys.opt_str(ACTIVATION)?.as_deref() {
            Some("gelu_pytorch_tanh") => Activation::GeluTanh,
            _ => Activation::Gelu,
        };
        Ok(())
    },
    gguf_keys: |spec| {
        to_gguf::refuse_tied(spec)?;
        Ok(vec![("use_parallel_residual", spec.parallel.into()), (ACTIVATION, to_config::activation(spec.activation).into())])
    },
    ..Architecture::DECODER
};

/// GGUF's key for the activation.
const ACTIVATION: &str = "hidden_activation";

/// Query, key and value of each head stand together, where we have all queries, then all keys, then all values.
fn head_by_head(spec: &ModelSpec, kind: ContainerKind, part: Part) -> Order {
    if kind == ContainerKind::Gguf || !matches!(part, Part::AttnQkv | Part::AttnQkvBias) {
        return Order::Same;
    }
    let (heads, width) = (spec.n_heads, spec.head_dim);
    let of_head = |head: usize| (0..3).flat_map(move |which| (0..width).map(move |i| (which * heads + head) * width + i));
    Order::Rows((0..heads).flat_map(of_head).collect())
}

const NAMES: &[(Part, &str)] = &[
    (Part::TokenEmbd, "gpt_neox.embed_in.weight"),
    (Part::OutputNorm, "gpt_neox.final_layer_norm.weight"),
    (Part::OutputNormBias, "gpt_neox.final_layer_norm.bias"),
    (Part::Output, "embed_out.weight"),
    (Part::AttnNorm, "gpt_neox.layers.{}.input_layernorm.weight"),
    (Part::AttnNormBias, "gpt_neox.layers.{}.input_layernorm.bias"),
    (Part::AttnQkv, "gpt_neox.layers.{}.attention.query_key_value.weight"),
    (Part::AttnQkvBias, "gpt_neox.layers.{}.attention.query_key_value.bias"),
    (Part::AttnOutput, "gpt_neox.layers.{}.attention.dense.weight"),
    (Part::AttnOutputBias, "gpt_neox.layers.{}.attention.dense.bias"),
    (Part::FfnNorm, "gpt_neox.layers.{}.post_attention_layernorm.weight"),
    (Part::FfnNormBias, "gpt_neox.layers.{}.post_attention_layernorm.bias"),
    (Part::FfnUp, "gpt_neox.layers.{}.mlp.dense_h_to_4h.weight"),
    (Part::FfnUpBias, "gpt_neox.layers.{}.mlp.dense_h_to_4h.bias"),
    (Part::FfnDown, "gpt_neox.layers.{}.mlp.dense_4h_to_h.weight"),
    (Part::FfnDownBias, "gpt_neox.layers.{}.mlp.dense_4h_to_h.bias"),
];

const MLX_NAMES: &[(Part, &str)] = &[
    (Part::TokenEmbd, "model.embed_in.weight"),
    (Part::OutputNorm, "model.final_layer_norm.weight"),
    (Part::OutputNormBias, "model.final_layer_norm.bias"),
    (Part::Output, "model.embed_out.weight"),
    (Part::AttnNorm, "model.h.{}.input_layernorm.weight"),
    (Part::AttnNormBias, "model.h.{}.input_layernorm.bias"),
    (Part::AttnQkv, "model.h.{}.attention.query_key_value.weight"),
    (Part::AttnQkvBias, "model.h.{}.attention.query_key_value.bias"),
    (Part::AttnOutput, "model.h.{}.attention.dense.weight"),
    (Part::AttnOutputBias, "model.h.{}.attention.dense.bias"),
    (Part::FfnNorm, "model.h.{}.post_attention_layernorm.weight"),
    (Part::FfnNormBias, "model.h.{}.post_attention_layernorm.bias"),
    (Part::FfnUp, "model.h.{}.mlp.dense_h_to_4h.weight"),
    (Part::FfnUpBias, "model.h.{}.mlp.dense_h_to_4h.bias"),
    (Part::FfnDown, "model.h.{}.mlp.dense_4h_to_h.weight"),
    (Part::FfnDownBias, "model.h.{}.mlp.dense_4h_to_h.bias"),
];
