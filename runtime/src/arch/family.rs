//! What the Llama family shares: tensor names and most of `config.json`.

use super::Architecture;
use super::config::Config;
use crate::role::Part;
use crate::spec::{Activation, Experts, LayerSpec, LongRope, ModelSpec, Norm, Pooling, Rope, RopeScaling, Scales, Yarn};
use bitsmith_formats::{Error, Result};

/// Hugging Face's tensor names.
pub(super) const NAMES: &[(Part, &str)] = &[
    (Part::TokenEmbd, "model.embed_tokens.weight"),
    (Part::OutputNorm, "model.norm.weight"),
    (Part::Output, "lm_head.weight"),
    (Part::AttnNorm, "model.layers.{}.input_layernorm.weight"),
    (Part::AttnQ, "model.layers.{}.self_attn.q_proj.weight"),
    (Part::AttnK, "model.layers.{}.self_attn.k_proj.weight"),
    (Part::AttnV, "model.layers.{}.self_attn.v_proj.weight"),
    (Part::AttnOutput, "model.layers.{}.self_attn.o_proj.weight"),
    (Part::AttnQBias, "model.layers.{}.self_attn.q_proj.bias"),
    (Part::AttnKBias, "model.layers.{}.self_attn.k_proj.bias"),
    (Part::AttnVBias, "model.layers.{}.self_attn.v_proj.bias"),
    (Part::AttnOutputBias, "model.layers.{}.self_attn.o_proj.bias"),
    (Part::AttnQNorm, "model.layers.{}.self_attn.q_norm.weight"),
    (Part::AttnKNorm, "model.layers.{}.self_attn.k_norm.weight"),
    (Part::FfnNorm, "model.layers.{}.post_attention_layernorm.weight"),
    (Part::FfnGate, "model.layers.{}.mlp.gate_proj.weight"),
    (Part::FfnUp, "model.layers.{}.mlp.up_proj.weight"),
    (Part::FfnDown, "model.layers.{}.mlp.down_proj.weight"),
    (Part::FfnGateBias, "model.layers.{}.mlp.gate_proj.bias"),
    (Part::FfnUpBias, "model.layers.{}.mlp.up_proj.bias"),
    (Part::FfnDownBias, "model.layers.{}.mlp.down_proj.bias"),
];

/// The tensors that every member has, beside those of the feed-forward block.
const BASE: &[Part] =
    &[Part::TokenEmbd, Part::OutputNorm, Part::AttnNorm, Part::AttnQ, Part::AttnK, Part::AttnV, Part::AttnOutput, Part::FfnNorm];
/// A gated feed-forward block.
pub(super) const GATED: &[Part] = &[Part::FfnGate, Part::FfnUp, Part::FfnDown];
/// Biases of q, k and v.
pub(super) const QKV_BIASES: &[Part] = &[Part::AttnQBias, Part::AttnKBias, Part::AttnVBias];
/// Biases of a gated feed-forward block.
pub(super) const GATED_BIASES: &[Part] = &[Part::FfnGateBias, Part::FfnUpBias, Part::FfnDownBias];
/// Norms of queries and keys.
pub(super) const QK_NORMS: &[Part] = &[Part::AttnQNorm, Part::AttnKNorm];

/// A member without peculiarities: SiLU, heads rotated as a whole, one window for all layers or none.
pub(super) fn llama_like(arch: &'static Architecture, c: Config<'_>) -> Result<ModelSpec> {
    let mut spec = base(arch, c)?;
    set_activation(&mut spec, c, &[Activation::Silu])?;
    if spec.rope.dims != spec.head_dim {
        let what = format!("partial rotary embedding ({} of {} dimensions)", spec.rope.dims, spec.head_dim);
        return Err(Error::unsupported(format!("{what} is not supported in architecture `{}`", arch.name)));
    }
    Ok(spec)
}

/// The keys that most decoders have, as a gated block with RMS norms; without biases and windows.
pub(super) fn base(arch: &'static Architecture, c: Config<'_>) -> Result<ModelSpec> {
    base_of(arch, c, None)
}

/// As [`base`], with the rotary embedding of this kind of layer.
pub(super) fn base_of(arch: &'static Architecture, c: Config<'_>, layers: Option<&str>) -> Result<ModelSpec> {
    let hidden_size = c.usize("hidden_size")?;
    let n_heads = c.usize("num_attention_heads")?;
    let head_dim = match c.opt_usize("head_dim")? {
        Some(d) => d,
        None if n_heads != 0 && hidden_size.is_multiple_of(n_heads) => hidden_size / n_heads,
        None => {
            return Err(Error::corrupt(format!(
                "`hidden_size` {hidden_size} is not a multiple of `num_attention_heads` {n_heads}, and `head_dim` is missing"
            )));
        }
    };
    let n_layers = c.usize("num_hidden_layers")?;
    let tied = c.opt_bool("tie_word_embeddings")?.unwrap_or(false);
    let norm = match c.opt_f64("rms_norm_eps")? {
        Some(eps) => Norm::rms(eps),
        None => match ["layer_norm_eps", "layer_norm_epsilon"].iter().find_map(|key| c.opt_f64(key).transpose()) {
            Some(eps) => Norm::layer(eps?),
            None => Norm::rms(c.f64("rms_norm_eps")?),
        },
    };
    let mut spec = ModelSpec {
        arch,
        hidden_size,
        n_layers,
        mtp_layers: 0,
        mtp_only: false,
        n_heads,
        n_kv_heads: c.opt_usize("num_key_value_heads")?.unwrap_or(n_heads),
        head_dim,
        v_head_dim: head_dim,
        ffn_size: c.usize("intermediate_size")?,
        vocab_size: c.usize("vocab_size")?,
        context_length: c.usize("max_position_embeddings")?,
        norm,
        activation: activation(c)?,
        fused_gate: false,
        causal: true,
        parallel: false,
        rope: rope(c, head_dim, layers)?,
        local_rope: None,
        tied: false,
        parts: BASE.iter().chain(GATED).copied().collect(),
        sliding_window: None,
        layers: vec![LayerSpec::PLAIN; n_layers.min(1 << 14)],
        scales: Scales::default(),
        chunked: false,
        qk_unit_norm: false,
        temperature: None,
        attention_softcap: None,
        logit_softcap: None,
        experts: None,
        latent: None,
        pooling: Pooling::None,
        bos: c.token_ids("bos_token_id")?.first().copied(),
        eos: c.token_ids("eos_token_id")?,
    };
    set_tied(&mut spec, tied);
    Ok(spec)
}

/// Refuses switches that are not as they usually are, which is how the architecture has them where the key is absent.
pub(super) fn refuse_switches(arch: &Architecture, c: Config<'_>, usual: &[(&str, bool)]) -> Result<()> {
    for (key, usual) in usual {
        if c.opt_bool(key)?.is_some_and(|v| v != *usual) {
            let what = format!("`{key}` {} is not supported in architecture `{}`", !usual, arch.name);
            return Err(Error::unsupported(what));
        }
    }
    Ok(())
}

/// Refuses activations that the architecture does not have; the first of `known` is meant where none is named.
pub(super) fn set_activation(spec: &mut ModelSpec, c: Config<'_>, known: &[Activation]) -> Result<()> {
    let Some(key) = ["hidden_activation", "hidden_act"].into_iter().find(|key| c.get(key).is_some()) else {
        spec.activation = known[0];
        return Ok(());
    };
    if known.contains(&spec.activation) {
        return Ok(());
    }
    let name = c.opt_str(key)?.unwrap_or_default();
    let supported: Vec<&str> = known.iter().map(|a| super::to_config::activation(*a)).collect();
    let what = format!("activation `{name}` (key `{key}`) is not supported in architecture `{}`", spec.arch.name);
    Err(Error::unsupported(what).hint(format!("supported: {}", supported.join(", "))))
}

/// Sets whether the output matrix is the embedding.
pub(super) fn set_tied(spec: &mut ModelSpec, tied: bool) {
    spec.tied = tied;
    if tied { spec.remove(&[Part::Output]) } else { spec.add(&[Part::Output]) }
}

/// The activation of the feed-forward block; SiLU where none is named.
fn activation(c: Config<'_>) -> Result<Activation> {
    let (key, name) = match (c.opt_str("hidden_activation")?, c.opt_str("hidden_act")?) {
        (Some(name), _) => ("hidden_activation", name),
        (None, name) => ("hidden_act", name.unwrap_or("silu")),
    };
    Ok(match name {
        "silu" | "swish" => Activation::Silu,
        "gelu" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
        other => {
            return Err(Error::unsupported(format!("activation `{other}` (key `{key}`) is not supported"))
                .hint("supported: silu, gelu, gelu_new, gelu_pytorch_tanh"));
        }
    })
}

/// The rotary embedding of heads of this width: `rope_theta` and `rope_scaling`, or both together as `rope_parameters`
/// (transformers 5), which may be given per kind of layer (`full_attention`, `sliding_attention`).
pub(super) fn rope(c: Config<'_>, head_dim: usize, kind: Option<&str>) -> Result<Rope> {
    let mut parameters = c.opt_object("rope_parameters")?;
    if let (Some(kind), Some(p)) = (kind, parameters)
        && let Some(of_kind) = p.opt_object(kind)?
    {
        parameters = Some(of_kind);
    }
    let at = |e: Error| match parameters {
        Some(_) => Error { message: format!("in `rope_parameters`: {}", e.message), ..e },
        None => e,
    };
    let theta = match parameters.map(|p| p.opt_f64("rope_theta")).transpose().map_err(at)?.flatten() {
        Some(theta) => theta,
        None => c.opt_f64("rope_theta")?.unwrap_or(10_000.0),
    };
    let mut dims = head_dim;
    for partial in [parameters, Some(c)].into_iter().flatten() {
        if let Some(f) = partial.opt_f64("partial_rotary_factor")? {
            dims = (head_dim as f64 * f) as usize;
            break;
        }
    }
    let scaling = match parameters {
        Some(p) => scaling(p, c).map_err(at)?,
        None => match c.opt_object("rope_scaling")? {
            None => RopeScaling::None,
            Some(s) => scaling(s, c).map_err(|e| Error { message: format!("in `rope_scaling`: {}", e.message), ..e })?,
        },
    };
    Ok(Rope { theta, dims, interleaved: false, scaling })
}

/// The scaling that `s` describes in the model's configuration `c`.
fn scaling(s: Config<'_>, c: Config<'_>) -> Result<RopeScaling> {
    if s.0.as_object().is_some_and(|o| o.values().any(serde_json::Value::is_object)) {
        return Err(Error::unsupported("rotary embeddings that differ between layers are not supported"));
    }
    let kind = match s.opt_str("rope_type")? {
        Some(kind) => kind,
        None => s.opt_str("type")?.unwrap_or("default"),
    };
    const ORIGINAL: &str = "original_max_position_embeddings";
    let original = || match (s.opt_usize(ORIGINAL)?, c.opt_usize(ORIGINAL)?) {
        (Some(n), _) | (None, Some(n)) => Ok(n),
        (None, None) => c.usize("max_position_embeddings"),
    };
    match kind {
        "default" | "mrope" => Ok(super::qwen2_vl::sections(s)?.map_or(RopeScaling::None, RopeScaling::Sections)),
        "linear" => Ok(RopeScaling::Linear { factor: s.f64("factor")? }),
        "dynamic" => Ok(RopeScaling::Dynamic { factor: s.f64("factor")?, original_context: original()? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: s.f64("factor")?,
            low_freq_factor: s.f64("low_freq_factor")?,
            high_freq_factor: s.f64("high_freq_factor")?,
            original_context: s.usize(ORIGINAL)?,
        }),
        "yarn" => {
            let factor = s.f64("factor")?;
            let mscale = |m: f64| if factor > 1.0 { 1.0 + 0.1 * m * factor.ln() } else { 1.0 };
            // Zero counts as absent.
            let some = |key| Ok::<_, Error>(s.opt_f64(key)?.filter(|m| *m != 0.0));
            let attention_factor = match (s.opt_f64("attention_factor")?, some("mscale")?, some("mscale_all_dim")?) {
                (Some(factor), ..) => factor,
                (None, Some(m), Some(all)) => mscale(m) / mscale(all),
                _ => mscale(1.0),
            };
            Ok(RopeScaling::Yarn(Yarn {
                factor,
                original_context: original()?,
                beta_fast: some("beta_fast")?.unwrap_or(32.0),
                beta_slow: some("beta_slow")?.unwrap_or(1.0),
                attention_factor,
                truncate: s.opt_bool("truncate")?.unwrap_or(true),
                mscale_all_dim: s.opt_f64("mscale_all_dim")?.unwrap_or(0.0),
            }))
        }
        "longrope" | "su" => {
            let original_context = original()?;
            let factor = match s.opt_f64("factor")? {
                Some(factor) => factor,
                None => c.usize("max_position_embeddings")? as f64 / original_context.max(1) as f64,
            };
            let grown = || if factor > 1.0 { (1.0 + factor.ln() / (original_context as f64).ln()).sqrt() } else { 1.0 };
            Ok(RopeScaling::Long(LongRope {
                short: s.f32s("short_factor")?,
                long: s.f32s("long_factor")?,
                original_context,
                attention_factor: s.opt_f64("attention_factor")?.unwrap_or_else(grown),
            }))
        }
        other => Err(Error::unsupported(format!("rope scaling `{other}` is not supported"))
            .hint("supported: default, linear, dynamic, llama3, yarn, longrope")),
    }
}

/// The layers that `decoder_sparse_step` and `mlp_only_layers` make mixtures.
pub(super) fn sparse_layers(c: Config<'_>) -> Result<impl Fn(usize) -> bool> {
    let step = c.opt_usize("decoder_sparse_step")?.unwrap_or(1);
    let dense: Vec<usize> = match c.get("mlp_only_layers") {
        None => Vec::new(),
        Some(list) => serde_json::from_value(list.clone())
            .map_err(|e| Error::corrupt(format!("key `mlp_only_layers` is not a list of layers: {e}")))?,
    };
    Ok(move |layer: usize| step > 0 && (layer + 1).is_multiple_of(step) && !dense.contains(&layer))
}

/// Adds the biases of all four projections of attention, which have one switch.
pub(super) fn set_attention_biases(spec: &mut ModelSpec, c: Config<'_>) -> Result<()> {
    if c.opt_bool("attention_bias")?.unwrap_or(false) {
        spec.add(QKV_BIASES);
        spec.add(&[Part::AttnOutputBias]);
    }
    Ok(())
}

/// Experts of this width, as many as the configuration says.
pub(super) fn experts(c: Config<'_>, ffn_size: usize) -> Result<Experts> {
    let used = c.usize_of(&["num_experts_per_tok", "experts_per_token"])?;
    Ok(Experts::new(c.usize_of(&["num_local_experts", "num_experts"])?, used, ffn_size))
}

/// Makes these layers mixtures of gated experts.
pub(super) fn set_mixtures(spec: &mut ModelSpec, experts: Experts, mixture: impl Fn(usize) -> bool) {
    spec.layers.iter_mut().enumerate().for_each(|(i, layer)| layer.mixture = mixture(i));
    spec.add(&[Part::FfnGateInp, Part::FfnGateExps, Part::FfnUpExps, Part::FfnDownExps]);
    if experts.shared_ffn_size > 0 {
        spec.add(&[Part::FfnGateShexp, Part::FfnUpShexp, Part::FfnDownShexp]);
    }
    if spec.layers.iter().all(|l| l.mixture) {
        spec.remove(GATED);
    }
    spec.experts = Some(experts);
}

/// The kinds that `layer_types` gives layers, `true` for a sliding window.
pub(super) fn layer_types(c: Config<'_>) -> Result<Option<Vec<bool>>> {
    let Some(types) = c.get("layer_types") else { return Ok(None) };
    let list = types.as_array().ok_or_else(|| Error::corrupt("key `layer_types` is not a list"))?;
    let kind = |t: &serde_json::Value| match t.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        _ => Err(Error::unsupported(format!("layer type {t} (key `layer_types`) is not supported"))),
    };
    list.iter().map(kind).collect::<Result<_>>().map(Some)
}

/// Windows of `window` tokens in the layers for which `layer_types`, or in its absence `pattern`, says so.
pub(super) fn set_windows(
    spec: &mut ModelSpec,
    c: Config<'_>,
    window: Option<usize>,
    pattern: impl Fn(usize) -> bool,
) -> Result<()> {
    let types = layer_types(c)?;
    for (i, layer) in spec.layers.iter_mut().enumerate() {
        layer.window = window.is_some() && types.as_ref().map_or_else(|| pattern(i), |t| t.get(i).copied().unwrap_or(false));
    }
    spec.sliding_window = window.filter(|_| spec.layers.iter().any(|l| l.window));
    Ok(())
}

/// One window for all layers: checks that `layer_types` gives all of them full attention, or all of them a window.
pub(super) fn set_uniform_window(spec: &mut ModelSpec, c: Config<'_>, window: Option<usize>) -> Result<()> {
    let window = match layer_types(c)? {
        None => window,
        Some(types) => match types.iter().filter(|t| **t).count() {
            0 => None,
            n if n == types.len() => {
                Some(c.opt_usize("sliding_window")?.ok_or_else(|| Error::corrupt("key `sliding_window` is missing"))?)
            }
            n => {
                let what = format!("sliding-window attention in {n} of {} layers only", types.len());
                return Err(Error::unsupported(format!("{what} is not supported in architecture `{}`", spec.arch.name)));
            }
        },
    };
    spec.sliding_window = window;
    spec.layers.iter_mut().for_each(|l| l.window = window.is_some());
    Ok(())
}
