//! Qwen 3's mixtures of experts.

use super::config::Config;
use super::{Architecture, ContainerKind, Joint, family, qwen2, qwen3, to_config};
use crate::role::Part;
use crate::spec::{Experts, ModelSpec};
use bitsmith_formats::{Error, Result};
use serde_json::{Value, json};

/// The table entry.
pub static QWEN3_MOE: Architecture = Architecture {
    name: "qwen3_moe",
    model_types: &["qwen3_moe"],
    gguf: "qwen3moe",
    hf_class: "Qwen3MoeForCausalLM",
    hf_names: NAMES,
    mlx_names: MLX_NAMES,
    joint: joint_experts,
    from_config: |arch, config| {
        let c = Config(config);
        let mut spec = qwen3::base(arch, c)?;
        let experts = qwen_experts(c)?;
        family::set_mixtures(&mut spec, experts, family::sparse_layers(c)?);
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        let Some(e) = &spec.experts else { return Err(to_config::inexpressible(&QWEN3_MOE, "a model without experts")) };
        let mut config = to_config::base(&QWEN3_MOE, spec)?;
        config.insert("attention_bias".into(), to_config::attention_bias(spec)?);
        config.extend(qwen2::window_keys(spec));
        config.extend(mixture_keys(spec, e));
        Ok(config)
    },
    from_gguf: |spec, _| {
        // llama.cpp always does.
        spec.experts.iter_mut().for_each(|e| e.normalize = true);
        Ok(())
    },
    gguf_keys: |spec| refuse_without(spec.experts.as_ref().is_some_and(|e| e.normalize)),
    ..Architecture::DECODER
};

fn refuse_without(normalized: bool) -> Result<super::GgufEntries> {
    if normalized {
        return Ok(Vec::new());
    }
    Err(Error::unsupported("GGUF has no key for experts whose weights are not normalized (`norm_topk_prob` false)")
        .hint("an MLX or Hugging Face target keeps the model as it is"))
}

/// The experts of Qwen's configurations.
pub(super) fn qwen_experts(c: Config<'_>) -> Result<Experts> {
    let normalize = c.opt_bool("norm_topk_prob")?.unwrap_or(false);
    Ok(Experts { normalize, ..family::experts(c, c.usize("moe_intermediate_size")?)? })
}

/// The keys that [`qwen_experts`] and [`family::sparse_layers`] read.
pub(super) fn mixture_keys(spec: &ModelSpec, experts: &Experts) -> [(String, Value); 6] {
    let dense: Vec<usize> = (0..spec.n_layers).filter(|l| !spec.layers[*l].mixture).collect();
    [
        ("decoder_sparse_step".into(), json!(1)),
        ("mlp_only_layers".into(), json!(dense)),
        ("moe_intermediate_size".into(), json!(experts.ffn_size)),
        ("norm_topk_prob".into(), json!(experts.normalize)),
        ("num_experts".into(), json!(experts.count)),
        ("num_experts_per_tok".into(), json!(experts.used)),
    ]
}

/// Those that differ from [`family::NAMES`] or are not there.
pub(super) const NAMES: &[(Part, &str)] = &[
    (Part::FfnGateInp, "model.layers.{}.mlp.gate.weight"),
    (Part::FfnGateExps, "model.layers.{}.mlp.experts.{e}.gate_proj.weight"),
    (Part::FfnUpExps, "model.layers.{}.mlp.experts.{e}.up_proj.weight"),
    (Part::FfnDownExps, "model.layers.{}.mlp.experts.{e}.down_proj.weight"),
];

/// How transformers 5 has experts where it keeps its own form.
pub(super) fn joint_experts(spec: &ModelSpec, kind: ContainerKind, part: Part) -> Vec<Joint> {
    let (Some(e), ContainerKind::Hf) = (&spec.experts, kind) else { return Vec::new() };
    let gate_up = |i| vec![Joint::gate_up("model.layers.{}.mlp.experts.gate_up_proj", i, e, spec.hidden_size, false)];
    match part {
        Part::FfnGateExps => gate_up(0),
        Part::FfnUpExps => gate_up(1),
        Part::FfnDownExps => vec![Joint::down("model.layers.{}.mlp.experts.down_proj", e, spec.hidden_size)],
        _ => Vec::new(),
    }
}

/// mlx-lm's names of experts.
pub(super) const MLX_NAMES: &[(Part, &str)] = &[
    (Part::FfnGateExps, "model.layers.{}.mlp.switch_mlp.gate_proj.weight"),
    (Part::FfnUpExps, "model.layers.{}.mlp.switch_mlp.up_proj.weight"),
    (Part::FfnDownExps, "model.layers.{}.mlp.switch_mlp.down_proj.weight"),
];
