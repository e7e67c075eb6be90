//! DeepSeek V2 and V3: latent attention, dense first layers, mixtures with shared experts. V3 scores experts by themselves (sigmoid) and
//! balances them with a bias.
//!
//! Hugging Face's `kv_b_proj` makes each head's key and value of the latent. llama.cpp and mlx-lm let queries meet keys in the latent
//! instead, which takes its halves apart and transposes that of the keys: `attn_k_b` and `attn_v_b`. So do we.

use super::config::Config;
use super::{Architecture, ContainerKind, GgufKeys, Joint, family, qwen3_moe, to_config};
use crate::role::Part;
use crate::spec::{Experts, Groups, Latent, ModelSpec, RopeScaling, Scoring};
use bitsmith_formats::{Error, Result, gguf};
use serde_json::{Map, Value, json};

/// The second version's table entry.
pub static DEEPSEEK_V2: Architecture = Architecture {
    name: "deepseek_v2",
    model_types: &["deepseek_v2"],
    gguf: "deepseek2",
    hf_class: "DeepseekV2ForCausalLM",
    hf_names: NAMES,
    mlx_names: qwen3_moe::MLX_NAMES,
    joint,
    extra_layers: true,
    from_config: |arch, config| {
        let c = Config(config);
        if c.opt_bool("norm_topk_prob")?.unwrap_or(false) {
            return Err(Error::unsupported(
                "experts whose weights are normalized (`norm_topk_prob`) are not supported in `deepseek_v2`",
            ));
        }
        let groups = match c.opt_str("topk_method")?.unwrap_or("greedy") {
            "greedy" => None,
            "group_limited_greedy" => groups(c, 1)?,
            other => return Err(Error::unsupported(format!("routing `{other}` (key `topk_method`) is not supported"))),
        };
        base(arch, c, Routing { scoring: Scoring::Softmax, normalize: false, scale: 1.0, groups })
    },
    to_config: |spec| {
        let e = to_config(&DEEPSEEK_V2, spec, Scoring::Softmax)?;
        let (mut config, experts) = e;
        if experts.normalize {
            return Err(to_config::inexpressible(&DEEPSEEK_V2, "experts whose weights are normalized"));
        }
        let method = if experts.groups.is_some() { "group_limited_greedy" } else { "greedy" };
        config.insert("scoring_func".into(), json!("softmax"));
        config.insert("topk_method".into(), json!(method));
        Ok(config)
    },
    from_gguf,
    gguf_keys,
    ..Architecture::DECODER
};

/// The third version's table entry.
pub static DEEPSEEK_V3: Architecture = Architecture {
    name: "deepseek_v3",
    model_types: &["deepseek_v3"],
    hf_class: "DeepseekV3ForCausalLM",
    mlx_names: V3_MLX_NAMES,
    from_config: |arch, config| {
        let c = Config(config);
        if c.opt_bool("rope_interleave")? == Some(false) {
            return Err(Error::unsupported("rotated halves (`rope_interleave` false) are not supported in `deepseek_v3`"));
        }
        for (key, usual) in [("topk_method", "noaux_tc"), ("scoring_func", "sigmoid")] {
            if let Some(other) = c.opt_str(key)?.filter(|v| *v != usual) {
                return Err(Error::unsupported(format!("routing `{other}` (key `{key}`) is not supported in `deepseek_v3`")));
            }
        }
        let normalize = c.opt_bool("norm_topk_prob")?.unwrap_or(true);
        let mut spec = base(arch, c, Routing { scoring: Scoring::Sigmoid, normalize, scale: 2.5, groups: groups(c, 2)? })?;
        spec.add(&[Part::ExpProbsBias]);
        Ok(spec)
    },
    to_config: |spec| {
        if !spec.has(Part::ExpProbsBias) {
            return Err(to_config::inexpressible(&DEEPSEEK_V3, "experts that are chosen without a bias"));
        }
        let (mut config, experts) = to_config(&DEEPSEEK_V3, spec, Scoring::Sigmoid)?;
        config.insert("norm_topk_prob".into(), json!(experts.normalize));
        config.insert("num_nextn_predict_layers".into(), json!(spec.mtp_layers));
        config.insert("scoring_func".into(), json!("sigmoid"));
        config.insert("topk_method".into(), json!("noaux_tc"));
        let groups = experts.groups.unwrap_or(Groups { count: 1, used: 1, ranked_by: 2 });
        config.insert("n_group".into(), json!(groups.count));
        config.insert("topk_group".into(), json!(groups.used));
        Ok(config)
    },
    ..DEEPSEEK_V2
};

/// How experts are chosen and weighed; `scale` where the configuration does not say.
struct Routing {
    scoring: Scoring,
    normalize: bool,
    scale: f32,
    groups: Option<Groups>,
}

fn groups(c: Config<'_>, ranked_by: usize) -> Result<Option<Groups>> {
    let (count, used) = (c.opt_usize("n_group")?.unwrap_or(1), c.opt_usize("topk_group")?.unwrap_or(1));
    Ok((count > 1).then_some(Groups { count, used, ranked_by }))
}

fn base(arch: &'static Architecture, c: Config<'_>, routing: Routing) -> Result<ModelSpec> {
    for (key, usual) in [("attention_bias", false), ("mlp_bias", false)] {
        if c.opt_bool(key)?.is_some_and(|v| v != usual) {
            return Err(Error::unsupported(format!("biases (`{key}`) are not supported in architecture `{}`", arch.name)));
        }
    }
    if let Some(step @ 2..) = c.opt_usize("moe_layer_freq")? {
        return Err(Error::unsupported(format!("mixtures in every layer {step} (`moe_layer_freq`) are not supported")));
    }
    let latent =
        Latent { q_rank: c.opt_usize("q_lora_rank")?, kv_rank: c.usize("kv_lora_rank")?, rope_dim: c.usize("qk_rope_head_dim")? };
    // Elsewhere the width of the rotated part is called that of a head.
    let mut config = c.0.clone();
    if let Value::Object(keys) = &mut config {
        keys.insert("head_dim".into(), json!(latent.rope_dim));
    }
    let mut spec = family::llama_like(arch, Config(&config))?;
    if spec.n_kv_heads != spec.n_heads {
        let (q, kv) = (spec.n_heads, spec.n_kv_heads);
        return Err(Error::unsupported(format!("{kv} key and value heads for {q} heads are not supported in latent attention")));
    }
    spec.head_dim = c.usize("qk_nope_head_dim")?.saturating_add(latent.rope_dim);
    spec.v_head_dim = c.usize("v_head_dim")?;
    set_latent(&mut spec, latent);
    spec.remove(&[Part::AttnK, Part::AttnV]);
    spec.add(&[Part::AttnKvA, Part::AttnKvANorm, Part::AttnKB, Part::AttnVB]);
    if latent.q_rank.is_some() {
        spec.remove(&[Part::AttnQ]);
        spec.add(&[Part::AttnQA, Part::AttnQANorm, Part::AttnQB]);
    }
    if let Some(count) = c.opt_usize("n_routed_experts")? {
        let ffn_size = c.usize("moe_intermediate_size")?;
        let experts = Experts {
            shared_ffn_size: c.opt_usize("n_shared_experts")?.unwrap_or(0).saturating_mul(ffn_size),
            scoring: routing.scoring,
            normalize: routing.normalize,
            scale: c.opt_f64("routed_scaling_factor")?.map_or(routing.scale, |s| s as f32),
            groups: routing.groups,
            ..Experts::new(count, c.usize("num_experts_per_tok")?, ffn_size)
        };
        let first = c.opt_usize("first_k_dense_replace")?.unwrap_or(0);
        family::set_mixtures(&mut spec, experts, |layer| layer >= first);
    } else {
        return Err(Error::unsupported(format!("a model without experts is not supported in architecture `{}`", arch.name)));
    }
    spec.validate()?;
    Ok(spec)
}

/// What follows from the latent: pairs are rotated, and YaRN sharpens the scores.
fn set_latent(spec: &mut ModelSpec, latent: Latent) {
    spec.latent = Some(latent);
    spec.rope.interleaved = true;
    spec.rope.dims = latent.rope_dim;
    let sharper = match &spec.rope.scaling {
        RopeScaling::Yarn(y) if y.factor > 1.0 => 1.0 + 0.1 * y.mscale_all_dim * y.factor.ln(),
        _ => 1.0,
    };
    spec.scales.attention = Some((sharper * sharper / (spec.head_dim as f64).sqrt()) as f32);
}

fn to_config<'a>(arch: &Architecture, spec: &'a ModelSpec, scoring: Scoring) -> Result<(Map<String, Value>, &'a Experts)> {
    let (Some(latent), Some(e)) = (spec.latent, &spec.experts) else {
        return Err(to_config::inexpressible(arch, "a model without latent attention or experts"));
    };
    if e.scoring != scoring || e.shared_ffn_size % e.ffn_size != 0 {
        return Err(to_config::inexpressible(arch, "experts of this kind"));
    }
    let mut config = to_config::base(arch, spec)?;
    config.remove("head_dim");
    if let (Some(Value::Object(scaling)), RopeScaling::Yarn(y)) = (config.get_mut("rope_scaling"), &spec.rope.scaling) {
        // mlx-lm divides by one and multiplies by the other.
        let grown = 0.1 * y.factor.ln();
        let mscale = (y.attention_factor * (1.0 + grown * y.mscale_all_dim) - 1.0) / grown;
        scaling.insert("mscale".into(), json!((mscale * 1e6).round() / 1e6));
    }
    for (key, value) in [
        ("attention_bias", json!(false)),
        ("first_k_dense_replace", json!(leading_dense(spec)?)),
        ("kv_lora_rank", json!(latent.kv_rank)),
        ("moe_intermediate_size", json!(e.ffn_size)),
        ("moe_layer_freq", json!(1)),
        ("n_group", json!(e.groups.map(|g| g.count))),
        ("n_routed_experts", json!(e.count)),
        ("n_shared_experts", json!(e.shared_ffn_size / e.ffn_size)),
        ("num_experts_per_tok", json!(e.used)),
        ("num_key_value_heads", json!(spec.n_heads)),
        ("q_lora_rank", json!(latent.q_rank)),
        ("qk_nope_head_dim", json!(spec.head_dim - latent.rope_dim)),
        ("qk_rope_head_dim", json!(latent.rope_dim)),
        ("routed_scaling_factor", json!(to_config::decimal(f64::from(e.scale)))),
        ("topk_group", json!(e.groups.map(|g| g.used))),
        ("v_head_dim", json!(spec.v_head_dim)),
    ] {
        config.insert(key.into(), value);
    }
    Ok((config, e))
}

/// The number of dense layers, all of which must come before the mixtures.
fn leading_dense(spec: &ModelSpec) -> Result<usize> {
    let first = spec.layers.iter().position(|l| l.mixture).unwrap_or(spec.n_layers);
    if spec.layers[first..].iter().all(|l| l.mixture) {
        return Ok(first);
    }
    Err(Error::unsupported(format!("dense layers after mixtures are not supported in architecture `{}`", spec.arch.name)))
}

fn from_gguf(spec: &mut ModelSpec, keys: GgufKeys<'_>) -> Result<()> {
    if keys.store.find("blk.0.attn_kv_b.weight").is_some() {
        return Err(Error::unsupported("keys and values in one matrix, as older GGUFs of DeepSeek have them, are not supported")
            .tensor("blk.0.attn_kv_b.weight")
            .hint("take a newer GGUF, or start from the original checkpoint"));
    }
    spec.n_kv_heads = spec.n_heads;
    spec.head_dim = keys.usize("attention.key_length_mla")?;
    spec.v_head_dim = keys.usize("attention.value_length_mla")?;
    let all = keys.opt_f64("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0) * 10.0;
    if let RopeScaling::Yarn(y) = &mut spec.rope.scaling {
        // Written as a tenth of itself, in single precision.
        y.mscale_all_dim = (all * 1e6).round() / 1e6;
        y.attention_factor = 1.0;
    }
    let latent = Latent {
        q_rank: keys.opt_usize("attention.q_lora_rank")?.filter(|n| *n > 0),
        kv_rank: keys.usize("attention.kv_lora_rank")?,
        rope_dim: keys.usize("rope.dimension_count")?,
    };
    set_latent(spec, latent);
    let (count, used) = (keys.opt_usize("expert_group_count")?, keys.opt_usize("expert_group_used_count")?);
    if let Some(e) = &mut spec.experts {
        if e.scoring == Scoring::Sigmoid || spec.parts.contains(&Part::ExpProbsBias) {
            spec.arch = &DEEPSEEK_V3;
        }
        let ranked_by = if e.scoring == Scoring::Sigmoid { 2 } else { 1 };
        e.groups = count.zip(used).filter(|(n, _)| *n > 1).map(|(count, used)| Groups { count, used, ranked_by });
    }
    Ok(())
}

fn gguf_keys(spec: &ModelSpec) -> Result<Vec<(&'static str, gguf::Value)>> {
    let (Some(latent), Some(e)) = (spec.latent, &spec.experts) else {
        return Err(Error::failed(format!("architecture `{}` without latent attention or experts", spec.arch.name)));
    };
    let number = |n: usize| gguf::Value::U32(n as u32);
    if e.shared_ffn_size == 0 || e.shared_ffn_size % e.ffn_size != 0 {
        return Err(Error::unsupported("GGUF has no key for a mixture without shared experts in `deepseek2`")
            .hint("an MLX or Hugging Face target keeps the model as it is"));
    }
    let mut keys = vec![
        // As llama.cpp computes: all heads share the latent.
        ("attention.head_count_kv", number(1)),
        ("attention.key_length", number(latent.kv_rank + latent.rope_dim)),
        ("attention.value_length", number(latent.kv_rank)),
        ("attention.key_length_mla", number(spec.head_dim)),
        ("attention.value_length_mla", number(spec.v_head_dim)),
        ("attention.kv_lora_rank", number(latent.kv_rank)),
        // Without a latent of queries, llama.cpp wants the key all the same, but in models that it knows.
        ("attention.q_lora_rank", number(latent.q_rank.unwrap_or(0))),
        ("leading_dense_block_count", number(leading_dense(spec)?)),
        ("expert_shared_count", number(e.shared_ffn_size / e.ffn_size)),
        ("expert_weights_scale", gguf::Value::F32(e.scale)),
        ("expert_weights_norm", gguf::Value::Bool(e.normalize)),
    ];
    if let Some(groups) = e.groups {
        keys.extend([("expert_group_count", number(groups.count)), ("expert_group_used_count", number(groups.used))]);
    }
    if let RopeScaling::Yarn(y) = &spec.rope.scaling {
        if y.mscale_all_dim == 0.0 || (y.attention_factor - 1.0).abs() > 1e-6 {
            let what = "GGUF has no key for YaRN whose `mscale` and `mscale_all_dim` differ in `deepseek2`";
            return Err(Error::unsupported(what).hint("an MLX or Hugging Face target keeps the model as it is"));
        }
        keys.push(("rope.scaling.yarn_log_multiplier", gguf::Value::F32((0.1 * y.mscale_all_dim) as f32)));
        keys.push(("rope.scaling.attn_factor", gguf::Value::F32(1.0)));
    }
    Ok(keys)
}

/// `kv_b_proj`: for each head, the rows that make its key, then those that make its value.
fn joint(spec: &ModelSpec, kind: ContainerKind, part: Part) -> Vec<Joint> {
    let nope = spec.head_dim - spec.latent.map_or(0, |l| l.rope_dim);
    let (each, rank) = (nope + spec.v_head_dim, spec.latent.map_or(0, |l| l.kv_rank));
    let (first, transposed) = match part {
        Part::AttnKB => (0, true),
        Part::AttnVB => (nope, false),
        _ => return qwen3_moe::joint_experts(spec, kind, part),
    };
    let (name, shape) = ("model.layers.{}.self_attn.kv_b_proj.weight", vec![spec.n_heads * each, rank]);
    vec![Joint { name, shape, each, first, start: 0, stride: 1, transposed }]
}

const NAMES: &[(Part, &str)] = &[
    (Part::AttnQA, "model.layers.{}.self_attn.q_a_proj.weight"),
    (Part::AttnQB, "model.layers.{}.self_attn.q_b_proj.weight"),
    (Part::AttnKvA, "model.layers.{}.self_attn.kv_a_proj_with_mqa.weight"),
    (Part::AttnQANorm, "model.layers.{}.self_attn.q_a_layernorm.weight"),
    (Part::AttnKvANorm, "model.layers.{}.self_attn.kv_a_layernorm.weight"),
    (Part::FfnGateInp, "model.layers.{}.mlp.gate.weight"),
    (Part::ExpProbsBias, "model.layers.{}.mlp.gate.e_score_correction_bias"),
    (Part::FfnGateExps, "model.layers.{}.mlp.experts.{e}.gate_proj.weight"),
    (Part::FfnUpExps, "model.layers.{}.mlp.experts.{e}.up_proj.weight"),
    (Part::FfnDownExps, "model.layers.{}.mlp.experts.{e}.down_proj.weight"),
    (Part::FfnGateShexp, "model.layers.{}.mlp.shared_experts.gate_proj.weight"),
    (Part::FfnUpShexp, "model.layers.{}.mlp.shared_experts.up_proj.weight"),
    (Part::FfnDownShexp, "model.layers.{}.mlp.shared_experts.down_proj.weight"),
    (Part::NextnProj, "model.layers.{}.eh_proj.weight"),
    (Part::NextnEmbdNorm, "model.layers.{}.enorm.weight"),
    (Part::NextnHiddenNorm, "model.layers.{}.hnorm.weight"),
    (Part::NextnEmbd, "model.layers.{}.embed_tokens.weight"),
    (Part::NextnOutput, "model.layers.{}.shared_head.head.weight"),
    (Part::NextnOutputNorm, "model.layers.{}.shared_head.norm.weight"),
];

const V3_MLX_NAMES: &[(Part, &str)] = &[
    (Part::AttnKB, "model.layers.{}.self_attn.embed_q.weight"),
    (Part::AttnVB, "model.layers.{}.self_attn.unembed_out.weight"),
    (Part::FfnGateExps, "model.layers.{}.mlp.switch_mlp.gate_proj.weight"),
    (Part::FfnUpExps, "model.layers.{}.mlp.switch_mlp.up_proj.weight"),
    (Part::FfnDownExps, "model.layers.{}.mlp.switch_mlp.down_proj.weight"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{config, spec};
    use bitsmith_formats::ErrorKind;

    fn tiny(changes: Value) -> Value {
        let mut all = json!({"num_key_value_heads": 4, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10,
            "kv_lora_rank": 16, "q_lora_rank": 20, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
            "moe_intermediate_size": 24});
        all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        all
    }

    #[test]
    fn yarn_sharpens_scores() {
        let yarn = json!({"type": "yarn", "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 0.707,
            "original_max_position_embeddings": 64});
        let spec = spec("deepseek_v2", tiny(json!({"rope_scaling": yarn})));
        let sharper = 1.0 + 0.0707 * 40f64.ln();
        assert!((f64::from(spec.attention_scale()) - sharper * sharper / 20f64.sqrt()).abs() < 1e-6);
        assert!(spec.rope.interleaved && spec.rope.dims == 8 && spec.head_dim == 20);
        let config = spec.to_config().unwrap();
        assert_eq!(config["rope_scaling"]["mscale"], json!(0.707));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for (model_type, changes, word) in [
            ("deepseek_v2", json!({"norm_topk_prob": true}), "norm_topk_prob"),
            ("deepseek_v2", json!({"topk_method": "noaux_tc"}), "noaux_tc"),
            ("deepseek_v2", json!({"moe_layer_freq": 2}), "moe_layer_freq"),
            ("deepseek_v2", json!({"attention_bias": true}), "attention_bias"),
            ("deepseek_v2", json!({"num_key_value_heads": 2}), "latent attention"),
            ("deepseek_v3", json!({"scoring_func": "softmax"}), "softmax"),
            ("deepseek_v3", json!({"rope_interleave": false}), "rope_interleave"),
            ("deepseek_v3", json!({"n_routed_experts": null}), "without experts"),
        ] {
            let e = ModelSpec::from_config(&config(model_type, tiny(changes))).unwrap_err();
            assert!(e.kind == ErrorKind::Unsupported && e.message.contains(word), "{e}");
        }
        let yarn = json!({"type": "yarn", "factor": 40.0, "original_max_position_embeddings": 64});
        for changes in [json!({"rope_scaling": yarn}), json!({"n_shared_experts": null})] {
            let e = spec("deepseek_v2", tiny(changes)).gguf_metadata().unwrap_err();
            assert!(e.kind == ErrorKind::Unsupported && e.hint.is_some(), "{e}");
        }
    }

    /// Keys stand transposed in the rows of `kv_b_proj` before the values of the same head.
    #[test]
    fn keys_and_values_are_found_in_one_matrix() {
        let spec = spec("deepseek_v3", tiny(json!({})));
        let places = |part| DEEPSEEK_V3.places(&spec, ContainerKind::Hf, crate::role::Role::layer(0, part)).unwrap();
        let (keys, values) = (places(Part::AttnKB), places(Part::AttnVB));
        assert_eq!((keys.len(), &keys[1].shape[..], &values[1].shape[..]), (4, &[16, 12][..], &[10, 16][..]));
        assert_eq!(keys[1].tensor_shape(), [4 * 22, 16]);
        let first = |p: &super::super::Place| p.within.as_ref().unwrap().first;
        assert_eq!((first(&keys[1]), first(&values[1])), (22, 34));
        assert!(DEEPSEEK_V2.is_joint(&spec, ContainerKind::Mlx, Part::AttnKB));
        assert!(!DEEPSEEK_V3.is_joint(&spec, ContainerKind::Mlx, Part::AttnKB));
    }

    #[test]
    fn layers_after_the_last_are_dropped() {
        let spec = spec("deepseek_v3", tiny(json!({})));
        let names: Vec<String> = spec
            .roles()
            .into_iter()
            .flat_map(|r| DEEPSEEK_V3.places(&spec, ContainerKind::Hf, r).unwrap())
            .map(|p| p.name)
            .collect();
        let beyond = "model.layers.2.eh_proj.weight";
        let all = names.iter().map(String::as_str).chain([beyond]);
        assert_eq!(DEEPSEEK_V3.map_tensors(&spec, ContainerKind::Hf, all).unwrap().dropped, [beyond]);
    }
}
