//! Granite's mixtures of experts: Llama's attention, and constant factors of embeddings, residuals, scores and logits.

use super::config::Config;
use super::{Architecture, ContainerKind, Joint, family, names, to_config};
use crate::role::Part;
use crate::spec::{Experts, ModelSpec, Scoring};
use bitsmith_formats::{Error, Result, gguf};
use serde_json::json;

/// The table entry.
pub static GRANITE_MOE: Architecture = Architecture {
    name: "granitemoe",
    model_types: &["granitemoe"],
    gguf: "granitemoe",
    hf_class: "GraniteMoeForCausalLM",
    hf_names: NAMES,
    mlx_names: MLX_NAMES,
    joint,
    order: names::interleaved_qk,
    from_config: |arch, config| {
        let c = Config(config);
        let mut spec = family::llama_like(arch, c)?;
        if c.opt_bool("attention_bias")?.unwrap_or(false) {
            spec.add(family::QKV_BIASES);
            spec.add(&[Part::AttnOutputBias]);
        }
        let factor = |key| Ok::<_, Error>(c.opt_f64(key)?.unwrap_or(1.0) as f32);
        spec.scales.embedding = factor("embedding_multiplier")?;
        spec.scales.residual = factor("residual_multiplier")?;
        spec.scales.attention = Some(factor("attention_multiplier")?);
        let divisor = factor("logits_scaling")?;
        if divisor == 0.0 {
            return Err(Error::corrupt("key `logits_scaling` is 0, by which logits are divided"));
        }
        spec.scales.logits = divisor.recip();
        let experts = Experts {
            count: c.usize_of(&["num_local_experts", "num_experts"])?,
            used: c.usize("num_experts_per_tok")?,
            ffn_size: spec.ffn_size,
            shared_ffn_size: 0,
            scoring: Scoring::Softmax,
            normalize: true,
            scale: 1.0,
            groups: None,
            weigh_input: false,
        };
        family::set_mixtures(&mut spec, experts, |_| true);
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        let e = to_config::uniform_mixture(&GRANITE_MOE, spec)?;
        if spec.head_dim * spec.n_heads != spec.hidden_size {
            return Err(to_config::inexpressible(&GRANITE_MOE, "heads of a width of their own"));
        }
        let mut config = to_config::base(&GRANITE_MOE, spec)?;
        let factor = |x: f32| json!(to_config::decimal(f64::from(x)));
        for (key, value) in [
            ("attention_bias", to_config::attention_bias(spec)?),
            ("attention_multiplier", factor(spec.attention_scale())),
            ("embedding_multiplier", factor(spec.scales.embedding)),
            ("logits_scaling", factor(spec.scales.logits.recip())),
            ("num_experts_per_tok", json!(e.used)),
            ("num_local_experts", json!(e.count)),
            ("residual_multiplier", factor(spec.scales.residual)),
        ] {
            config.insert(key.into(), value);
        }
        Ok(config)
    },
    from_gguf: |spec, keys| {
        // The key holds what logits are divided by.
        spec.scales.logits = keys.opt_f64("logit_scale")?.filter(|s| *s != 0.0).map_or(1.0, |s| s as f32).recip();
        if let Some(e) = &mut spec.experts {
            (e.scoring, e.normalize) = (Scoring::Softmax, true);
        }
        Ok(())
    },
    gguf_keys,
    ..Architecture::DECODER
};

fn gguf_keys(spec: &ModelSpec) -> Result<Vec<(&'static str, gguf::Value)>> {
    let scales = spec.scales;
    let keys = [
        ("attention.scale", spec.attention_scale()),
        ("embedding_scale", scales.embedding),
        ("residual_scale", scales.residual),
        ("logit_scale", scales.logits.recip()),
    ];
    Ok(keys.map(|(key, value)| (key, gguf::Value::F32(value))).to_vec())
}

fn joint(spec: &ModelSpec, kind: ContainerKind, part: Part) -> Vec<Joint> {
    let (Some(e), ContainerKind::Hf) = (&spec.experts, kind) else { return Vec::new() };
    let gate_up = |i| vec![Joint::gate_up("model.layers.{}.block_sparse_moe.input_linear.weight", i, e, spec.hidden_size, false)];
    match part {
        Part::FfnGateExps => gate_up(0),
        Part::FfnUpExps => gate_up(1),
        _ => Vec::new(),
    }
}

const NAMES: &[(Part, &str)] = &[
    (Part::FfnGateInp, "model.layers.{}.block_sparse_moe.router.layer.weight"),
    (Part::FfnDownExps, "model.layers.{}.block_sparse_moe.output_linear.weight"),
];

const MLX_NAMES: &[(Part, &str)] = &[
    (Part::FfnGateExps, "model.layers.{}.block_sparse_moe.switch_mlp.gate_proj.weight"),
    (Part::FfnUpExps, "model.layers.{}.block_sparse_moe.switch_mlp.up_proj.weight"),
    (Part::FfnDownExps, "model.layers.{}.block_sparse_moe.switch_mlp.down_proj.weight"),
];
