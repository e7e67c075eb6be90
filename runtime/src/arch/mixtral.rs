//! Mixtral: Mistral with mixtures of experts. GGUF calls it `llama`.

use super::config::Config;
use super::{Architecture, family, names, to_config};
use crate::role::Part;
use crate::spec::{Experts, ModelSpec, Scoring};
use serde_json::json;

/// The table entry.
pub static MIXTRAL: Architecture = Architecture {
    name: "mixtral",
    model_types: &["mixtral"],
    gguf: "llama",
    hf_class: "MixtralForCausalLM",
    hf_names: NAMES,
    mlx_names: MLX_NAMES,
    order: names::interleaved_qk,
    from_config: |arch, config| {
        let c = Config(config);
        let mut spec = family::llama_like(arch, c)?;
        let experts = Experts { normalize: true, ..family::experts(c, spec.ffn_size)? };
        family::set_mixtures(&mut spec, experts, |_| true);
        family::set_uniform_window(&mut spec, c, c.opt_usize("sliding_window")?)?;
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        to_config::refuse_biases(&MIXTRAL, spec, &[])?;
        let e = to_config::uniform_mixture(&MIXTRAL, spec)?;
        let mut config = to_config::base(&MIXTRAL, spec)?;
        for (key, value) in [
            ("num_experts_per_tok", json!(e.used)),
            ("num_local_experts", json!(e.count)),
            ("sliding_window", json!(spec.sliding_window)),
        ] {
            config.insert(key.into(), value);
        }
        Ok(config)
    },
    ..Architecture::DECODER
};

/// What a GGUF called `llama` is if it has experts: llama.cpp makes their weights sum to 1.
pub(super) fn of_llama(spec: &mut ModelSpec) {
    if let Some(experts) = &mut spec.experts {
        (experts.scoring, experts.normalize) = (Scoring::Softmax, true);
        spec.arch = &MIXTRAL;
    }
}

const NAMES: &[(Part, &str)] = &[
    (Part::FfnGateInp, "model.layers.{}.block_sparse_moe.gate.weight"),
    (Part::FfnGateExps, "model.layers.{}.block_sparse_moe.experts.{e}.w1.weight"),
    (Part::FfnUpExps, "model.layers.{}.block_sparse_moe.experts.{e}.w3.weight"),
    (Part::FfnDownExps, "model.layers.{}.block_sparse_moe.experts.{e}.w2.weight"),
];

const MLX_NAMES: &[(Part, &str)] = &[
    (Part::FfnGateExps, "model.layers.{}.block_sparse_moe.switch_mlp.gate_proj.weight"),
    (Part::FfnUpExps, "model.layers.{}.block_sparse_moe.switch_mlp.up_proj.weight"),
    (Part::FfnDownExps, "model.layers.{}.block_sparse_moe.switch_mlp.down_proj.weight"),
];
