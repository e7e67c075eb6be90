//! Granite's mixtures of experts: Llama's attention, and constant factors of embeddings, residuals, scores and logits.

use super::config::Config;
use super::{Architecture, ContainerKind, Joint, family, granite, names, to_config};
use crate::role::Part;
use crate::spec::{Experts, ModelSpec, Scoring};
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
        family::set_attention_biases(&mut spec, c)?;
        granite::set_factors(&mut spec, c)?;
        let experts = Experts { normalize: true, ..family::experts(c, spec.ffn_size)? };
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
        config.extend(granite::factor_keys(spec));
        config.insert("attention_bias".into(), to_config::attention_bias(spec)?);
        config.insert("num_experts_per_tok".into(), json!(e.used));
        config.insert("num_local_experts".into(), json!(e.count));
        Ok(config)
    },
    from_gguf: |spec, keys| {
        if let Some(e) = &mut spec.experts {
            (e.scoring, e.normalize) = (Scoring::Softmax, true);
        }
        granite::read_factors(spec, keys)
    },
    gguf_keys: |spec| Ok(granite::gguf_factors(spec)),
    ..Architecture::DECODER
};

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
