//! What the Llama family shares: tensor names and most of `config.json`.

use super::Architecture;
use super::config::Config;
use crate::role::Part;
use crate::spec::{ModelSpec, Rope, RopeScaling};
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

/// The keys that all members have, without biases and without a sliding window.
pub(super) fn base(arch: &'static Architecture, c: Config<'_>) -> Result<ModelSpec> {
    let activation = c.opt_str("hidden_act")?.unwrap_or("silu");
    if !matches!(activation, "silu" | "swish") {
        return Err(
            Error::unsupported(format!("activation `{activation}` (key `hidden_act`) is not supported")).hint("supported: silu")
        );
    }
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
    Ok(ModelSpec {
        arch,
        hidden_size,
        n_layers: c.usize("num_hidden_layers")?,
        n_heads,
        n_kv_heads: c.opt_usize("num_key_value_heads")?.unwrap_or(n_heads),
        head_dim,
        ffn_size: c.usize("intermediate_size")?,
        vocab_size: c.usize("vocab_size")?,
        context_length: c.usize("max_position_embeddings")?,
        rms_eps: c.f64("rms_norm_eps")?,
        rope: rope(c)?,
        tied: c.opt_bool("tie_word_embeddings")?.unwrap_or(false),
        qkv_bias: false,
        attn_output_bias: false,
        mlp_bias: false,
        sliding_window: None,
        bos: c.token_ids("bos_token_id")?.first().copied(),
        eos: c.token_ids("eos_token_id")?,
    })
}

/// The rotary embedding: `rope_theta` and `rope_scaling`, or both together as `rope_parameters` (transformers 5).
fn rope(c: Config<'_>) -> Result<Rope> {
    let parameters = c.opt_object("rope_parameters")?;
    let at = |e: Error| match parameters {
        Some(_) => Error { message: format!("in `rope_parameters`: {}", e.message), ..e },
        None => e,
    };
    let theta = match parameters.map(|p| p.opt_f64("rope_theta")).transpose().map_err(at)?.flatten() {
        Some(theta) => theta,
        None => c.opt_f64("rope_theta")?.unwrap_or(10_000.0),
    };
    let scaling = match parameters {
        Some(p) => scaling(p).map_err(at)?,
        None => match c.opt_object("rope_scaling")? {
            None => RopeScaling::None,
            Some(s) => scaling(s).map_err(|e| Error { message: format!("in `rope_scaling`: {}", e.message), ..e })?,
        },
    };
    for partial in [Some(c), parameters].into_iter().flatten() {
        if let Some(f) = partial.opt_f64("partial_rotary_factor")?
            && f != 1.0
        {
            return Err(Error::unsupported(format!("partial rotary embedding (`partial_rotary_factor` {f}) is not supported")));
        }
    }
    Ok(Rope { theta, scaling })
}

fn scaling(s: Config<'_>) -> Result<RopeScaling> {
    if s.0.as_object().is_some_and(|o| o.values().any(serde_json::Value::is_object)) {
        return Err(Error::unsupported("rotary embeddings that differ between layers are not supported"));
    }
    let kind = match s.opt_str("rope_type")? {
        Some(kind) => kind,
        None => s.opt_str("type")?.unwrap_or("default"),
    };
    match kind {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: s.f64("factor")? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: s.f64("factor")?,
            low_freq_factor: s.f64("low_freq_factor")?,
            high_freq_factor: s.f64("high_freq_factor")?,
            original_context: s.usize("original_max_position_embeddings")?,
        }),
        other => {
            Err(Error::unsupported(format!("rope scaling `{other}` is not supported")).hint("supported: default, linear, llama3"))
        }
    }
}

/// Checks that all layers use full attention, or all a window of `window` tokens, and gives the window in force.
pub(super) fn sliding_window(c: Config<'_>, window: Option<usize>) -> Result<Option<usize>> {
    let Some(types) = c.get("layer_types") else { return Ok(window) };
    let list = types.as_array().ok_or_else(|| Error::corrupt("key `layer_types` is not a list"))?;
    let mut sliding = 0;
    for t in list {
        match t.as_str() {
            Some("full_attention") => {}
            Some("sliding_attention") => sliding += 1,
            _ => return Err(Error::unsupported(format!("layer type {t} (key `layer_types`) is not supported"))),
        }
    }
    match sliding {
        0 => Ok(None),
        n if n == list.len() => {
            c.opt_usize("sliding_window")?.map(Some).ok_or_else(|| Error::corrupt("key `sliding_window` is missing"))
        }
        n => Err(Error::unsupported(format!("sliding-window attention in {n} of {} layers only is not supported", list.len()))),
    }
}
