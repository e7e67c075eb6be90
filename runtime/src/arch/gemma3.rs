//! Gemma 3 (text): as Gemma 2 with normed queries and keys; layers with a window have a rotary embedding of their own.

use super::config::Config;
use super::from_gguf::GgufKeys;
use super::{Architecture, family, gemma2, to_config};
use crate::role::Part;
use crate::spec::{Activation, ModelSpec, Rope, RopeUse};
use bitsmith_formats::{Error, Result};
use serde_json::json;

/// The table entry.
pub static GEMMA3: Architecture = Architecture {
    name: "gemma3",
    model_types: &["gemma3_text"],
    gguf: "gemma3",
    hf_class: "Gemma3ForCausalLM",
    hf_names: gemma2::NAMES,
    order: gemma2::norms_plus_one,
    from_config: |arch, config| {
        let c = Config(config);
        family::refuse_switches(arch, c, &[("attention_bias", false), ("use_bidirectional_attention", false)])?;
        let mut spec = family::base_of(arch, c, Some("full_attention"))?;
        family::set_activation(&mut spec, c, &[Activation::GeluTanh])?;
        spec.add(&[Part::AttnPostNorm, Part::FfnPostNorm]);
        spec.add(family::QK_NORMS);
        family::set_tied(&mut spec, c.opt_bool("tie_word_embeddings")?.unwrap_or(true));
        gemma2::common(&mut spec);
        spec.scales.attention = Some((c.opt_f64("query_pre_attn_scalar")?.unwrap_or(256.0) as f32).sqrt().recip());
        spec.attention_softcap = c.opt_f64("attn_logit_softcapping")?.map(|c| c as f32);
        spec.logit_softcap = c.opt_f64("final_logit_softcapping")?.map(|c| c as f32);
        let period = match c.opt_usize("sliding_window_pattern")? {
            Some(period) => period,
            None => c.opt_usize("_sliding_window_pattern")?.unwrap_or(PERIOD),
        };
        family::set_windows(&mut spec, c, c.opt_usize("sliding_window")?, |layer| in_window(layer, period))?;
        let local = match c.opt_f64("rope_local_base_freq")? {
            Some(theta) => Rope { theta, dims: spec.head_dim, ..Rope::NONE },
            None if c.get("rope_parameters").is_some() => family::rope(c, spec.head_dim, Some("sliding_attention"))?,
            None => Rope { dims: spec.head_dim, ..Rope::NONE },
        };
        set_local(&mut spec, local);
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        to_config::refuse_biases(&GEMMA3, spec, &[])?;
        let mut config = to_config::base(&GEMMA3, spec)?;
        if let Some(local) = &spec.local_rope {
            if local.scaling != crate::spec::RopeScaling::None {
                return Err(to_config::inexpressible(&GEMMA3, "scaled rotary embeddings in layers with a window"));
            }
            config.insert("rope_local_base_freq".into(), json!(to_config::decimal(local.theta)));
        }
        for (key, value) in [
            ("attn_logit_softcapping", json!(spec.attention_softcap)),
            ("final_logit_softcapping", json!(spec.logit_softcap)),
            ("hidden_activation", json!(to_config::activation(spec.activation))),
            ("layer_types", to_config::layer_types(spec)),
            ("query_pre_attn_scalar", gemma2::query_pre_attn_scalar(spec)),
            ("sliding_window", json!(spec.sliding_window)),
            ("sliding_window_pattern", json!(period(spec))),
        ] {
            config.insert(key.into(), value);
        }
        Ok(config)
    },
    from_gguf: |spec, keys| {
        gemma2::common(spec);
        spec.scales.attention = Some(gemma2::llama_cpp_scale(spec, LARGEST));
        let window = pattern(keys)?;
        if spec.sliding_window.is_some() {
            spec.layers.iter_mut().enumerate().for_each(|(i, l)| l.window = window(i));
        }
        let theta = keys.opt_f64("rope.freq_base_swa")?.unwrap_or(10_000.0);
        let local = Rope { theta, dims: spec.rope.dims, ..Rope::NONE };
        set_local(spec, local);
        Ok(())
    },
    gguf_keys: |spec| {
        gemma2::refuse_other_scale(spec, LARGEST)?;
        if spec.attention_softcap.is_some() {
            return Err(Error::unsupported("llama.cpp knows no capped attention scores (`attn_logit_softcapping`) in `gemma3`"));
        }
        let mut keys = Vec::new();
        if let Some(local) = &spec.local_rope {
            keys.push(("rope.freq_base_swa", bitsmith_formats::gguf::Value::F32(local.theta as f32)));
        }
        let windows: Vec<bool> = spec.layers.iter().map(|l| l.window).collect();
        if spec.sliding_window.is_some() && windows.iter().enumerate().any(|(i, w)| *w != in_window(i, PERIOD)) {
            keys.push(("attention.sliding_window_pattern", windows.into()));
        }
        Ok(keys)
    },
    ..Architecture::DECODER
};

/// One layer of so many sees the whole context.
const PERIOD: usize = 6;
/// The layers of the 27B model.
const LARGEST: usize = 62;

fn in_window(layer: usize, period: usize) -> bool {
    period == 0 || !(layer + 1).is_multiple_of(period)
}

/// The period of the layers without a window; `None` if they have none.
fn period(spec: &ModelSpec) -> Option<usize> {
    let periods = [PERIOD].into_iter().chain(1..=spec.n_layers + 1);
    let fits = |p: &usize| spec.layers.iter().enumerate().all(|(i, l)| l.window == in_window(i, *p));
    periods.into_iter().find(fits)
}

/// Gives layers with a window this rotary embedding.
fn set_local(spec: &mut ModelSpec, local: Rope) {
    if spec.layers.iter().any(|l| l.window) {
        spec.local_rope = Some(local);
        spec.layers.iter_mut().filter(|l| l.window).for_each(|l| l.rope = RopeUse::Local);
    }
}

/// The layers with a window: a truth value for each, or the period of those without.
fn pattern(keys: GgufKeys<'_>) -> Result<impl Fn(usize) -> bool> {
    const KEY: &str = "attention.sliding_window_pattern";
    let each = keys.opt_bools(KEY)?;
    let period = if each.is_some() { PERIOD } else { keys.opt_usize(KEY)?.unwrap_or(PERIOD) };
    Ok(move |layer: usize| match &each {
        Some(each) => each.get(layer).copied().unwrap_or(false),
        None => in_window(layer, period),
    })
}
