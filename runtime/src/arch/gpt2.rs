//! GPT-2: learned positions, layer norms, a joint projection of queries, keys and values, all with biases. Hugging Face has its
//! matrices transposed.

use super::config::Config;
use super::names::ContainerKind;
use super::{Architecture, Order, family, to_config};
use crate::role::Part;
use crate::spec::{Activation, ModelSpec, Norm, Rope, RopeUse};
use serde_json::{Map, Value, json};

/// The table entry.
pub static GPT2: Architecture = Architecture {
    name: "gpt2",
    model_types: &["gpt2"],
    gguf: "gpt2",
    hf_class: "GPT2LMHeadModel",
    hf_names: NAMES,
    mlx_names: MLX_NAMES,
    // Checkpoints of the bare model.
    aliases: &[("transformer.", "")],
    superfluous: &[".attn.bias", ".attn.masked_bias"],
    order: |_, kind, part| match (kind, part.is_linear()) {
        (ContainerKind::Hf, true) => Order::Transposed,
        _ => Order::Same,
    },
    from_config: |arch, config| {
        let c = Config(config);
        let usual = [("scale_attn_weights", true), ("scale_attn_by_inverse_layer_idx", false), ("add_cross_attention", false)];
        family::refuse_switches(arch, c, &usual)?;
        let hidden = c.usize("n_embd")?;
        let renamed = json!({
            "hidden_size": hidden,
            "num_attention_heads": c.usize("n_head")?,
            "num_hidden_layers": c.usize("n_layer")?,
            "intermediate_size": c.opt_usize("n_inner")?.unwrap_or(hidden.saturating_mul(4)),
            "max_position_embeddings": c.usize("n_positions")?,
            "vocab_size": c.usize("vocab_size")?,
            "layer_norm_epsilon": c.opt_f64("layer_norm_epsilon")?.unwrap_or(1e-5),
            "hidden_act": c.opt_str("activation_function")?.unwrap_or("gelu_new"),
            "tie_word_embeddings": c.opt_bool("tie_word_embeddings")?.unwrap_or(true),
            "bos_token_id": c.get("bos_token_id"),
            "eos_token_id": c.get("eos_token_id"),
        });
        let mut spec = family::base(arch, Config(&renamed))?;
        spec.remove(&[Part::AttnQ, Part::AttnK, Part::AttnV, Part::FfnGate]);
        spec.add(&[Part::PositionEmbd, Part::AttnQkv]);
        let biased: Vec<Part> = spec.parts.iter().filter(|p| **p != Part::Output).filter_map(|p| p.bias()).collect();
        spec.add(&biased);
        unrotated(&mut spec);
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        let base = to_config::base(&GPT2, spec)?;
        let kept =
            ["architectures", "bos_token_id", "eos_token_id", "model_type", "tie_word_embeddings", "use_cache", "vocab_size"];
        let mut config: Map<String, Value> = base.into_iter().filter(|(key, _)| kept.contains(&key.as_str())).collect();
        for (key, value) in [
            ("activation_function", json!("gelu_new")),
            ("layer_norm_epsilon", json!(to_config::decimal(spec.norm.eps))),
            ("n_ctx", json!(spec.context_length)),
            ("n_embd", json!(spec.hidden_size)),
            ("n_head", json!(spec.n_heads)),
            ("n_inner", json!(spec.ffn_size)),
            ("n_layer", json!(spec.n_layers)),
            ("n_positions", json!(spec.context_length)),
        ] {
            config.insert(key.into(), value);
        }
        Ok(config)
    },
    from_gguf: |spec, _| {
        spec.activation = Activation::GeluTanh;
        spec.norm = Norm::layer(spec.norm.eps);
        unrotated(spec);
        Ok(())
    },
    ..Architecture::DECODER
};

fn unrotated(spec: &mut ModelSpec) {
    spec.rope = Rope::NONE;
    spec.layers.iter_mut().for_each(|l| l.rope = RopeUse::None);
}

const NAMES: &[(Part, &str)] = &[
    (Part::TokenEmbd, "transformer.wte.weight"),
    (Part::PositionEmbd, "transformer.wpe.weight"),
    (Part::OutputNorm, "transformer.ln_f.weight"),
    (Part::OutputNormBias, "transformer.ln_f.bias"),
    (Part::AttnNorm, "transformer.h.{}.ln_1.weight"),
    (Part::AttnNormBias, "transformer.h.{}.ln_1.bias"),
    (Part::AttnQkv, "transformer.h.{}.attn.c_attn.weight"),
    (Part::AttnQkvBias, "transformer.h.{}.attn.c_attn.bias"),
    (Part::AttnOutput, "transformer.h.{}.attn.c_proj.weight"),
    (Part::AttnOutputBias, "transformer.h.{}.attn.c_proj.bias"),
    (Part::FfnNorm, "transformer.h.{}.ln_2.weight"),
    (Part::FfnNormBias, "transformer.h.{}.ln_2.bias"),
    (Part::FfnUp, "transformer.h.{}.mlp.c_fc.weight"),
    (Part::FfnUpBias, "transformer.h.{}.mlp.c_fc.bias"),
    (Part::FfnDown, "transformer.h.{}.mlp.c_proj.weight"),
    (Part::FfnDownBias, "transformer.h.{}.mlp.c_proj.bias"),
];

const MLX_NAMES: &[(Part, &str)] = &[
    (Part::TokenEmbd, "model.wte.weight"),
    (Part::PositionEmbd, "model.wpe.weight"),
    (Part::OutputNorm, "model.ln_f.weight"),
    (Part::OutputNormBias, "model.ln_f.bias"),
    (Part::AttnNorm, "model.h.{}.ln_1.weight"),
    (Part::AttnNormBias, "model.h.{}.ln_1.bias"),
    (Part::AttnQkv, "model.h.{}.attn.c_attn.weight"),
    (Part::AttnQkvBias, "model.h.{}.attn.c_attn.bias"),
    (Part::AttnOutput, "model.h.{}.attn.c_proj.weight"),
    (Part::AttnOutputBias, "model.h.{}.attn.c_proj.bias"),
    (Part::FfnNorm, "model.h.{}.ln_2.weight"),
    (Part::FfnNormBias, "model.h.{}.ln_2.bias"),
    (Part::FfnUp, "model.h.{}.mlp.c_fc.weight"),
    (Part::FfnUpBias, "model.h.{}.mlp.c_fc.bias"),
    (Part::FfnDown, "model.h.{}.mlp.c_proj.weight"),
    (Part::FfnDownBias, "model.h.{}.mlp.c_proj.bias"),
];
