//! gpt-oss: sinks in attention, a window in every other layer, biases everywhere, clamped gates in all experts. Its checkpoints have the
//! experts in MXFP4, gate and up row by row in turn.

use super::config::Config;
use super::{Architecture, ContainerKind, Joint, family, to_config};
use crate::role::Part;
use crate::spec::{Activation, Experts, ModelSpec, RopeScaling, Scoring};
use bitsmith_formats::Error;
use serde_json::{Value, json};

/// The table entry.
pub static GPT_OSS: Architecture = Architecture {
    name: "gpt_oss",
    model_types: &["gpt_oss"],
    gguf: "gpt-oss",
    hf_class: "GptOssForCausalLM",
    hf_names: NAMES,
    mlx_names: MLX_NAMES,
    gguf_names: &[(Part::FfnNorm, "post_attention_norm")],
    joint,
    from_config: |arch, config| {
        let c = Config(config);
        let mut spec = family::llama_like(arch, c)?;
        if c.opt_bool("attention_bias")? == Some(false) {
            return Err(Error::unsupported("attention without biases (`attention_bias` false) is not supported in `gpt_oss`"));
        }
        for (key, usual) in [("swiglu_alpha", 1.702), ("swiglu_limit", 7.0)] {
            if let Some(other) = c.opt_f64(key)?.filter(|v| *v != usual) {
                return Err(Error::unsupported(format!(
                    "`{key}` {other} is not supported in `gpt_oss`: all known models have {usual}"
                )));
            }
        }
        spec.activation = Activation::SwigluOai;
        spec.add(family::QKV_BIASES);
        spec.add(&[Part::AttnOutputBias, Part::AttnSinks]);
        let experts = Experts { scoring: Scoring::SoftmaxChosen, ..family::experts(c, spec.ffn_size)? };
        family::set_mixtures(&mut spec, experts, |_| true);
        spec.add(&[Part::FfnGateInpBias, Part::FfnGateExpsBias, Part::FfnUpExpsBias, Part::FfnDownExpsBias]);
        family::set_windows(&mut spec, c, c.opt_usize("sliding_window")?, in_window)?;
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        let e = to_config::uniform_mixture(&GPT_OSS, spec)?;
        let mut config = to_config::base(&GPT_OSS, spec)?;
        let kind = |window| if window { "sliding_attention" } else { "full_attention" };
        // Where neither is there, transformers takes the scaling of the known models.
        let mut rope = match config.get("rope_scaling") {
            Some(Value::Object(scaling)) => scaling.clone(),
            _ => [("rope_type".to_string(), json!("default"))].into_iter().collect(),
        };
        rope.insert("rope_theta".into(), json!(to_config::decimal(spec.rope.theta)));
        for (key, value) in [
            ("attention_bias", json!(true)),
            ("layer_types", spec.layers.iter().map(|l| kind(l.window)).collect()),
            ("num_experts_per_tok", json!(e.used)),
            ("num_local_experts", json!(e.count)),
            ("rope_parameters", Value::Object(rope)),
            ("sliding_window", json!(spec.sliding_window)),
            ("swiglu_limit", json!(7.0)),
        ] {
            config.insert(key.into(), value);
        }
        Ok(config)
    },
    from_gguf: |spec, keys| {
        spec.activation = Activation::SwigluOai;
        // The norm before the experts has the name that elsewhere is that of one after attention.
        spec.remove(&[Part::AttnPostNorm]);
        spec.add(&[Part::FfnNorm]);
        if let Some(e) = &mut spec.experts {
            e.scoring = Scoring::SoftmaxChosen;
        }
        if let RopeScaling::Yarn(y) = &mut spec.rope.scaling {
            y.truncate = false;
        }
        let pattern = keys.opt_bools("attention.sliding_window_pattern")?;
        let window = |l: usize| pattern.as_ref().map_or(in_window(l), |p| p.get(l).copied().unwrap_or(false));
        spec.layers.iter_mut().enumerate().for_each(|(i, l)| l.window = window(i));
        Ok(())
    },
    gguf_keys: |spec| {
        if spec.sliding_window.is_none() {
            return Err(Error::unsupported("GGUF has no way to say that no layer of a `gpt-oss` has a window")
                .hint("an MLX or Hugging Face target keeps the model as it is"));
        }
        let pattern: Vec<bool> = spec.layers.iter().map(|l| l.window).collect();
        let usual = pattern.iter().enumerate().all(|(i, w)| *w == in_window(i));
        Ok(if usual { Vec::new() } else { vec![("attention.sliding_window_pattern", pattern.into())] })
    },
    ..Architecture::DECODER
};

fn in_window(layer: usize) -> bool {
    layer.is_multiple_of(2)
}

fn joint(spec: &ModelSpec, kind: ContainerKind, part: Part) -> Vec<Joint> {
    let (Some(e), ContainerKind::Hf) = (&spec.experts, kind) else { return Vec::new() };
    let hidden = spec.hidden_size;
    let gate_up = |i| {
        let dense = Joint::gate_up_transposed("model.layers.{}.mlp.experts.gate_up_proj", i, e, hidden, true);
        vec![dense, Joint::gate_up("model.layers.{}.mlp.experts.gate_up_proj_blocks", i, e, hidden, true)]
    };
    let bias = |i| {
        let (name, shape) = ("model.layers.{}.mlp.experts.gate_up_proj_bias", vec![e.count, 2 * e.ffn_size]);
        vec![Joint { name, shape, each: 1, first: 0, start: i, stride: 2, transposed: false }]
    };
    match part {
        Part::FfnGateExps => gate_up(0),
        Part::FfnUpExps => gate_up(1),
        Part::FfnDownExps => vec![
            Joint::down_transposed("model.layers.{}.mlp.experts.down_proj", e, hidden),
            Joint::down("model.layers.{}.mlp.experts.down_proj_blocks", e, hidden),
        ],
        Part::FfnGateExpsBias => bias(0),
        Part::FfnUpExpsBias => bias(1),
        _ => Vec::new(),
    }
}

const NAMES: &[(Part, &str)] = &[
    (Part::AttnSinks, "model.layers.{}.self_attn.sinks"),
    (Part::FfnGateInp, "model.layers.{}.mlp.router.weight"),
    (Part::FfnGateInpBias, "model.layers.{}.mlp.router.bias"),
    (Part::FfnDownExpsBias, "model.layers.{}.mlp.experts.down_proj_bias"),
];

const MLX_NAMES: &[(Part, &str)] = &[
    (Part::FfnGateExps, "model.layers.{}.mlp.experts.gate_proj.weight"),
    (Part::FfnUpExps, "model.layers.{}.mlp.experts.up_proj.weight"),
    (Part::FfnDownExps, "model.layers.{}.mlp.experts.down_proj.weight"),
    (Part::FfnGateExpsBias, "model.layers.{}.mlp.experts.gate_proj.bias"),
    (Part::FfnUpExpsBias, "model.layers.{}.mlp.experts.up_proj.bias"),
    (Part::FfnDownExpsBias, "model.layers.{}.mlp.experts.down_proj.bias"),
];
