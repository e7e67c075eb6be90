//! Hyperparameters as the `config.json` of a Hugging Face checkpoint.

use super::Architecture;
use crate::role::Part;
use crate::spec::{Activation, Experts, ModelSpec, Rope, RopeScaling};
use bitsmith_formats::{Error, Result};
use serde_json::{Map, Value, json};
use std::f64::consts::PI;

impl ModelSpec {
    /// The model as `config.json`: every key that transformers, mlx-lm and [`ModelSpec::from_config`] read, but for the type of the
    /// tensors. An error says what the architecture's configuration has no key for.
    ///
    /// Where several architectures share a GGUF name, this is the plainest that computes the same: a GGUF of a Mistral without a
    /// window becomes a Llama.
    pub fn to_config(&self) -> Result<Map<String, Value>> {
        (self.arch.to_config)(self)
    }
}

/// The keys that all members of the Llama family have, as `arch` calls itself.
pub(super) fn base(arch: &Architecture, spec: &ModelSpec) -> Result<Map<String, Value>> {
    let eos = match spec.eos.as_slice() {
        [] => Value::Null,
        [one] => json!(one),
        several => json!(several),
    };
    let config = json!({
        "architectures": [arch.hf_class],
        "bos_token_id": spec.bos,
        "eos_token_id": eos,
        "head_dim": spec.head_dim,
        "hidden_act": activation(spec.activation),
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.ffn_size,
        "max_position_embeddings": spec.context_length,
        "model_type": arch.model_types[0],
        "num_attention_heads": spec.n_heads,
        "num_hidden_layers": spec.n_layers,
        "num_key_value_heads": spec.n_kv_heads,
        "rms_norm_eps": decimal(spec.norm.eps),
        "rope_scaling": scaling(&spec.rope, spec.context_length)?,
        "rope_theta": decimal(spec.rope.theta),
        "tie_word_embeddings": spec.tied,
        "use_cache": true,
        "vocab_size": spec.vocab_size,
    });
    match config {
        Value::Object(map) => Ok(map),
        other => Err(Error::failed(format!("a configuration is an object, not {other}"))),
    }
}

/// The error for what an architecture's configuration cannot say.
pub(super) fn inexpressible(arch: &Architecture, what: &str) -> Error {
    Error::unsupported(format!("{} has no configuration for {what}", arch.hf_class))
        .hint("a GGUF target keeps the model as it is")
}

/// Refuses biases of linear layers besides these.
pub(super) fn refuse_biases(arch: &Architecture, spec: &ModelSpec, known: &[Part]) -> Result<()> {
    let linear = |p: &Part| p.is_linear() && p.bias().is_some_and(|b| spec.has(b) && !known.contains(&b));
    match spec.parts.iter().find(|p| linear(p)) {
        Some(part) => Err(inexpressible(arch, &format!("the bias of {part}"))),
        None => Ok(()),
    }
}

/// `layer_types`.
pub(super) fn layer_types(spec: &ModelSpec) -> Value {
    let kind = |window| if window { "sliding_attention" } else { "full_attention" };
    spec.layers.iter().map(|l| kind(l.window)).collect()
}

/// Says the epsilon of the norms as models with layer norms do.
pub(super) fn layer_norm(config: &mut Map<String, Value>, spec: &ModelSpec) {
    config.remove("rms_norm_eps");
    config.insert("layer_norm_eps".into(), json!(decimal(spec.norm.eps)));
}

/// `partial_rotary_factor`: what the width of a head is multiplied by and rounded down to give the rotated dimensions.
pub(super) fn partial_rotary_factor(spec: &ModelSpec) -> f64 {
    let factor = spec.rope.dims as f64 / spec.head_dim as f64;
    if (spec.head_dim as f64 * factor) as usize == spec.rope.dims { factor } else { factor.next_up() }
}

/// The experts of a model whose layers all are mixtures of experts as wide as `intermediate_size` says, none of them shared.
pub(super) fn uniform_mixture<'a>(arch: &Architecture, spec: &'a ModelSpec) -> Result<&'a Experts> {
    let Some(experts) = &spec.experts else { return Err(inexpressible(arch, "a model without experts")) };
    let plain = experts.shared_ffn_size == 0 && experts.scale == 1.0 && experts.groups.is_none();
    if experts.ffn_size != spec.ffn_size || !plain || spec.layers.iter().any(|l| !l.mixture) {
        return Err(inexpressible(arch, "dense layers, shared experts, or experts chosen or weighed in another way"));
    }
    Ok(experts)
}

/// A name of the activation that transformers knows.
pub(super) fn activation(activation: Activation) -> &'static str {
    match activation {
        Activation::Silu | Activation::SwigluOai => "silu",
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_pytorch_tanh",
    }
}

/// A number without decimals where it has none: some keys are read as whole numbers only.
pub(super) fn whole(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 9e15 { json!(x as i64) } else { json!(x) }
}

/// `attention_bias`: one switch for all four projections.
pub(super) fn attention_bias(spec: &ModelSpec) -> Result<Value> {
    let (qkv, output) = (spec.has(Part::AttnQBias), spec.has(Part::AttnOutputBias));
    if qkv != output {
        let which = if qkv { "on q, k and v, but not on the output" } else { "on the output, but not on q, k and v" };
        return Err(inexpressible(spec.arch, &format!("biases of the attention {which}")));
    }
    Ok(qkv.into())
}

/// A number that went through f32, as GGUF keeps it, in the decimals that it was written with: 1e-5 and not 9.999999747378752e-6.
pub(super) fn decimal(x: f64) -> f64 {
    let narrow = x as f32;
    if f64::from(narrow) == x { narrow.to_string().parse().unwrap_or(x) } else { x }
}

/// `rope_scaling`.
pub(super) fn scaling(rope: &Rope, context: usize) -> Result<Value> {
    let recovered;
    let known = match &rope.scaling {
        RopeScaling::Factors(divisors) => {
            recovered = recover(rope, divisors).ok_or_else(|| {
                Error::unsupported(
                    "config.json can name no rule for these divisors of the rope's frequencies: neither one divisor for all nor \
                     Llama 3's rule gives them",
                )
                .tensor("rope_freqs.weight")
                .hint("a GGUF target keeps them as they are")
            })?;
            &recovered
        }
        known => known,
    };
    Ok(match known {
        RopeScaling::None | RopeScaling::Factors(_) | RopeScaling::Sections(_) => Value::Null,
        RopeScaling::Dynamic { factor, original_context } => json!({
            "factor": decimal(*factor), "original_max_position_embeddings": original_context, "rope_type": "dynamic", "type": "dynamic",
        }),
        RopeScaling::Yarn(y) => json!({
            "attention_factor": decimal(y.attention_factor),
            "beta_fast": decimal(y.beta_fast),
            "beta_slow": decimal(y.beta_slow),
            "factor": decimal(y.factor),
            "mscale_all_dim": decimal(y.mscale_all_dim),
            "original_max_position_embeddings": y.original_context,
            "rope_type": "yarn",
            "truncate": y.truncate,
            "type": "yarn",
        }),
        RopeScaling::Long(l) => json!({
            "attention_factor": decimal(l.attention_factor),
            "factor": context as f64 / l.original_context as f64,
            "long_factor": l.long.iter().map(|f| decimal(f64::from(*f))).collect::<Vec<_>>(),
            "original_max_position_embeddings": l.original_context,
            "rope_type": "longrope",
            "short_factor": l.short.iter().map(|f| decimal(f64::from(*f))).collect::<Vec<_>>(),
            "type": "longrope",
        }),
        RopeScaling::Linear { factor } => json!({ "factor": decimal(*factor), "rope_type": "linear", "type": "linear" }),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => json!({
            "factor": factor,
            "high_freq_factor": high_freq_factor,
            "low_freq_factor": low_freq_factor,
            "original_max_position_embeddings": original_context,
            "rope_type": "llama3",
        }),
    })
}

/// Relative difference of divisors that counts as rounding: writers compute them in f32, by way of wavelengths.
const ROUNDING: f64 = 1e-5;

/// The rule that gives these divisors. Of Llama 3's parameters only ratios show in them, so that `low_freq_factor` is taken to be
/// 1; and where few frequencies lie between the kept and the divided ones, `high_freq_factor` is taken to be 4. So are those of all
/// models of that kind.
fn recover(rope: &Rope, divisors: &[f32]) -> Option<RopeScaling> {
    let with = |scaling| Rope { scaling, ..rope.clone() };
    let largest = f64::from(divisors.iter().copied().fold(0f32, f32::max));
    let alike = |a: f64, b: f64| (a - b).abs() <= ROUNDING * b.abs();
    if divisors.iter().all(|d| alike(f64::from(*d), largest)) {
        let factor = decimal(largest);
        return Some(if alike(factor, 1.0) { RopeScaling::None } else { RopeScaling::Linear { factor } });
    }
    let rounded = largest.round();
    let factor = if alike(largest, rounded) { rounded } else { decimal(largest) };
    let plain = with(RopeScaling::None).frequencies(0);
    // Between the kept and the divided frequencies, 1 / divisor rises linearly with the frequency, from 1 / factor to 1.
    let ramp: Vec<(f64, f64)> = plain
        .iter()
        .zip(divisors)
        .map(|(f, d)| (f / (2.0 * PI), (1.0 / f64::from(*d) - 1.0 / factor) / (1.0 - 1.0 / factor)))
        .filter(|(_, smooth)| (1e-3..1.0 - 1e-3).contains(smooth))
        .collect();
    let solved = match (ramp.first(), ramp.last()) {
        (Some(a), Some(b)) if a.0 > b.0 => {
            let slope = (a.1 - b.1) / (a.0 - b.0);
            let high = 1.0 + 1.0 / (slope * a.0 - a.1);
            Some((((high * 1e3).round() / 1e3), slope * (high - 1.0)))
        }
        _ => None,
    };
    let customary = ramp.iter().map(|(f, smooth)| (4.0, (1.0 + 3.0 * smooth) / f));
    let powers = (4..31).map(|bits| (4.0, f64::from(1u32 << bits)));
    customary.chain(powers).chain(solved).find_map(|(high_freq_factor, context)| {
        if !(1.0..1e15).contains(&context) {
            return None;
        }
        let original_context = context.round() as usize;
        let scaling = RopeScaling::Llama3 { factor, low_freq_factor: 1.0, high_freq_factor, original_context };
        let made = with(scaling.clone()).factors()?;
        let same = made.iter().zip(divisors).all(|(m, d)| alike(f64::from(*m), f64::from(*d)));
        (same && high_freq_factor > 1.0).then_some(scaling)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::spec;
    use bitsmith_formats::ErrorKind;

    fn rope(theta: f64, dims: usize) -> Rope {
        Rope { theta, dims, ..Rope::NONE }
    }

    /// What a spec says, the architecture's name aside.
    fn said(spec: &ModelSpec) -> String {
        format!("{:?}", ModelSpec { arch: &super::super::llama::LLAMA, ..spec.clone() })
    }

    #[test]
    fn what_is_written_reads_as_the_same_model() {
        for (model_type, changes) in [
            ("llama", json!({})),
            ("llama", json!({"attention_bias": true, "mlp_bias": true, "tie_word_embeddings": true, "head_dim": 12})),
            ("llama", json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.5}, "eos_token_id": [7, 3]})),
            (
                "llama",
                json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64}, "bos_token_id": null, "eos_token_id": null}),
            ),
            ("mistral", json!({"sliding_window": 128, "rms_norm_eps": 1e-6})),
            ("mistral", json!({"sliding_window": null})),
            ("qwen2", json!({"rope_theta": 1e6, "head_dim": 12})),
            ("qwen2", json!({"use_sliding_window": true, "sliding_window": 32, "max_window_layers": 0})),
            ("qwen3", json!({"head_dim": 16, "attention_bias": true})),
            ("qwen3", json!({"use_sliding_window": true, "sliding_window": 32, "max_window_layers": 0})),
        ] {
            let spec = spec(model_type, changes);
            let written = Value::Object(spec.to_config().unwrap());
            let read = ModelSpec::from_config(&written).unwrap();
            assert_eq!(said(&read), said(&spec), "{written}");
            assert_eq!(read.arch.name, model_type);
            let class = written["architectures"][0].as_str().unwrap();
            assert_eq!(class.to_lowercase(), format!("{model_type}forcausallm"));
        }
    }

    #[test]
    fn what_other_architectures_say_reads_as_the_same_model() {
        let layer = |changes: Value| {
            let mut all = json!({"rms_norm_eps": null, "layer_norm_eps": 1e-6, "head_dim": null});
            all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            all
        };
        let factors = json!({"attention_multiplier": 0.1, "embedding_multiplier": 12.0, "residual_multiplier": 0.22,
            "logits_scaling": 8.0, "attention_bias": true});
        let long = json!({"type": "longrope", "short_factor": [1, 1, 1], "long_factor": [2, 2.5, 3]});
        for (model_type, changes) in [
            ("gemma", json!({"hidden_act": "gelu", "tie_word_embeddings": true})),
            (
                "gemma3_text",
                json!({"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 168, "sliding_window": 16,
                "sliding_window_pattern": 2, "rope_theta": 1e6, "final_logit_softcapping": 30.0}),
            ),
            ("phi3", json!({"partial_rotary_factor": 0.75, "sliding_window": 64})),
            ("phi3", json!({"partial_rotary_factor": 0.75, "original_max_position_embeddings": 128, "rope_scaling": long})),
            ("phi", layer(json!({"hidden_act": "gelu_new", "partial_rotary_factor": 0.5}))),
            ("gpt_neox", layer(json!({"hidden_act": "gelu", "rotary_pct": 0.25, "use_parallel_residual": false}))),
            ("gpt_neox", layer(json!({"hidden_act": "gelu_fast", "rotary_emb_base": 2000}))),
            ("stablelm", layer(json!({"partial_rotary_factor": 0.25, "use_qkv_bias": true}))),
            ("stablelm", layer(json!({"use_parallel_residual": true, "qk_layernorm": true}))),
            ("olmo2", json!({})),
            ("granite", factors),
            ("cohere", layer(json!({"logit_scale": 0.3, "use_qk_norm": true, "tie_word_embeddings": true}))),
            ("smollm3", json!({"no_rope_layers": [0, 1], "tie_word_embeddings": true})),
            ("bert", layer(json!({"hidden_act": "gelu", "num_key_value_heads": null}))),
        ] {
            let spec = spec(model_type, changes);
            let written = Value::Object(spec.to_config().unwrap());
            let read = ModelSpec::from_config(&written).unwrap();
            assert_eq!(said(&read), said(&spec), "{written}");
            assert_eq!(read.arch.name, spec.arch.name);
        }
    }

    #[test]
    fn mixtures_read_as_they_were() {
        let local = json!({"num_local_experts": 4, "num_experts_per_tok": 2});
        let experts = json!({"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24});
        let latent = json!({"num_key_value_heads": 4, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10, "kv_lora_rank": 16,
            "q_lora_rank": 20, "n_routed_experts": 4, "n_shared_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
            "first_k_dense_replace": 1, "rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.7,
            "original_max_position_embeddings": 64}});
        for (model_type, common, changes) in [
            ("mixtral", &local, json!({"sliding_window": 64})),
            ("qwen2_moe", &experts, json!({"shared_expert_intermediate_size": 40, "mlp_only_layers": [0], "head_dim": 8})),
            ("qwen3_moe", &experts, json!({"norm_topk_prob": true, "head_dim": 16})),
            ("granitemoe", &local, json!({"attention_multiplier": 0.1, "logits_scaling": 3.0, "residual_multiplier": 0.2})),
            ("deepseek_v2", &latent, json!({"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1})),
            ("deepseek_v2", &latent, json!({"q_lora_rank": null, "rope_scaling": null, "n_shared_experts": null})),
            ("deepseek_v3", &latent, json!({"n_group": 2, "topk_group": 1, "norm_topk_prob": false})),
            ("gpt_oss", &local, json!({"sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"]})),
            (
                "llama4_text",
                &local,
                json!({"intermediate_size_mlp": 64, "moe_layers": [0], "attention_chunk_size": 16,
                "no_rope_layers": [1, 0], "use_qk_norm": false, "floor_scale": 4, "attn_scale": 0.3}),
            ),
        ] {
            let mut all = common.clone();
            all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let spec = spec(model_type, all);
            let written = Value::Object(spec.to_config().unwrap());
            let read = ModelSpec::from_config(&written).unwrap();
            assert_eq!(said(&read), said(&spec), "{written}");
            assert_eq!(written["model_type"], model_type);
        }
    }

    #[test]
    fn a_window_makes_a_llama_a_mistral() {
        let mut llama = spec("llama", json!({}));
        llama.sliding_window = Some(64);
        let written = Value::Object(llama.to_config().unwrap());
        assert_eq!((&written["model_type"], &written["sliding_window"]), (&json!("mistral"), &json!(64)));
        llama.add(&[Part::FfnUpBias]);
        assert_eq!(llama.to_config().unwrap_err().kind, ErrorKind::Unsupported);
    }

    #[test]
    fn what_a_configuration_cannot_say_is_refused() {
        let mut odd = spec("llama", json!({}));
        odd.add(super::super::family::QKV_BIASES);
        let e = odd.to_config().unwrap_err();
        assert!(e.kind == ErrorKind::Unsupported && e.message.contains("LlamaForCausalLM") && e.hint.is_some(), "{e}");
        let mut odd = spec("qwen2", json!({}));
        odd.remove(super::super::family::QKV_BIASES);
        assert!(odd.to_config().is_err());
        let mut odd = spec("qwen3", json!({}));
        odd.add(&[Part::FfnGateBias]);
        assert!(odd.to_config().is_err());
        let mut odd = spec("llama", json!({}));
        odd.rope.scaling = RopeScaling::Factors(vec![1.0, 3.0, 2.0, 8.0]);
        let e = odd.to_config().unwrap_err();
        assert_eq!((e.kind, e.tensor.as_deref()), (ErrorKind::Unsupported, Some("rope_freqs.weight")));
    }

    #[test]
    fn numbers_that_went_through_f32_are_written_as_they_were() {
        let mut through = spec("llama", json!({}));
        (through.norm.eps, through.rope.theta) = (f64::from(1e-5f32), f64::from(500_000f32));
        let written = through.to_config().unwrap();
        assert_eq!((&written["rms_norm_eps"], &written["rope_theta"]), (&json!(1e-5), &json!(500_000.0)));
        assert_eq!(decimal(0.1), 0.1);
    }

    /// Llama 3.1, 3.2 and others, through the divisors that a GGUF has.
    #[test]
    fn llama_3s_rule_is_found_in_its_divisors() {
        for (theta, head_dim, factor, low, high, context, expected) in [
            (5e5, 128, 8.0, 1.0, 4.0, 8192, (4.0, 8192)),
            (5e5, 64, 32.0, 1.0, 4.0, 8192, (4.0, 8192)),
            (1e4, 16, 8.0, 1.0, 4.0, 64, (4.0, 64)),
            (5e5, 128, 16.0, 2.0, 8.0, 8192, (4.0, 4096)),
            (1e6, 128, 4.0, 1.0, 3.0, 10_000, (3.0, 10_000)),
            (5e5, 64, 8.5, 1.0, 32.0, 4096, (32.0, 4096)),
        ] {
            let scaling = RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_context: context };
            let divisors = Rope { scaling, ..rope(theta, head_dim) }.factors().unwrap();
            let (high_freq_factor, original_context) = expected;
            let wanted = RopeScaling::Llama3 { factor, low_freq_factor: 1.0, high_freq_factor, original_context };
            assert_eq!(recover(&rope(theta, head_dim), &divisors), Some(wanted), "{theta} {head_dim} {factor}");
        }
        // Other writers round on the way.
        let scaling = RopeScaling::Llama3 { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
        let divisors = Rope { scaling: scaling.clone(), ..rope(5e5, 64) }.factors().unwrap();
        let noisy: Vec<f32> = divisors.iter().enumerate().map(|(i, d)| d * (1.0 + 1e-6 * (i % 3) as f32)).collect();
        assert_ne!(noisy, divisors);
        assert_eq!(recover(&rope(5e5, 64), &noisy), Some(scaling));
        // No frequency on the ramp: any rule that separates the two kinds will do.
        let divisors = [1.0, 1.0, 8.0, 8.0];
        let rope = rope(1e4, 8);
        let found = recover(&rope, &divisors).unwrap();
        assert_eq!(Rope { scaling: found, ..rope.clone() }.factors().unwrap(), divisors);
        assert_eq!(recover(&rope, &[1.0; 4]), Some(RopeScaling::None));
        assert_eq!(recover(&rope, &[2.5; 4]), Some(RopeScaling::Linear { factor: 2.5 }));
        assert_eq!(recover(&rope, &[1.0, 8.0, 1.0, 8.0]), None);
    }
}
