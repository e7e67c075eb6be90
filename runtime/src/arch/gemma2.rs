//! Gemma 2: norms before and after each block, capped scores and logits, a window in every other layer.

use super::config::Config;
use super::names::ContainerKind;
use super::{Architecture, Order, family, to_config};
use crate::role::Part;
use crate::spec::{Activation, ModelSpec};
use bitsmith_formats::{Error, Result};
use serde_json::{Value, json};

/// The table entry.
pub static GEMMA2: Architecture = Architecture {
    name: "gemma2",
    model_types: &["gemma2"],
    gguf: "gemma2",
    hf_class: "Gemma2ForCausalLM",
    hf_names: NAMES,
    order: norms_plus_one,
    from_config: |arch, config| {
        let c = Config(config);
        let mut spec = family::base(arch, c)?;
        spec.add(&[Part::AttnPostNorm, Part::FfnPostNorm]);
        family::set_tied(&mut spec, c.opt_bool("tie_word_embeddings")?.unwrap_or(true));
        common(&mut spec);
        spec.scales.attention = Some((c.f64("query_pre_attn_scalar")? as f32).sqrt().recip());
        spec.attention_softcap = c.opt_f64("attn_logit_softcapping")?.map(|c| c as f32);
        spec.logit_softcap = c.opt_f64("final_logit_softcapping")?.map(|c| c as f32);
        family::set_windows(&mut spec, c, c.opt_usize("sliding_window")?, |layer| layer.is_multiple_of(2))?;
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        to_config::refuse_biases(&GEMMA2, spec, &[])?;
        let mut config = to_config::base(&GEMMA2, spec)?;
        for (key, value) in [
            ("attn_logit_softcapping", json!(spec.attention_softcap)),
            ("final_logit_softcapping", json!(spec.logit_softcap)),
            ("hidden_activation", json!(to_config::activation(spec.activation))),
            ("layer_types", to_config::layer_types(spec)),
            ("query_pre_attn_scalar", query_pre_attn_scalar(spec)),
            ("sliding_window", json!(spec.sliding_window)),
        ] {
            config.insert(key.into(), value);
        }
        Ok(config)
    },
    from_gguf: |spec, keys| {
        common(spec);
        spec.scales.attention = Some(llama_cpp_scale(spec, LARGEST));
        let pattern = keys.opt_bools("attention.sliding_window_pattern")?;
        let window = |l: usize| pattern.as_ref().map_or(l.is_multiple_of(2), |p| p.get(l).copied().unwrap_or(false));
        spec.layers.iter_mut().enumerate().for_each(|(i, l)| l.window = window(i));
        Ok(())
    },
    gguf_keys: |spec| {
        refuse_other_scale(spec, LARGEST)?;
        let pattern: Vec<bool> = spec.layers.iter().map(|l| l.window).collect();
        let usual = pattern.iter().enumerate().all(|(i, w)| *w == i.is_multiple_of(2));
        Ok(if usual { Vec::new() } else { vec![("attention.sliding_window_pattern", pattern.into())] })
    },
    ..Architecture::DECODER
};

/// What all Gemmas have.
pub(super) fn common(spec: &mut ModelSpec) {
    spec.norm.offset = 1.0;
    spec.activation = Activation::GeluTanh;
    spec.scales.embedding = (spec.hidden_size as f32).sqrt();
}

/// The layers of the 27B model.
const LARGEST: usize = 46;

/// llama.cpp knows the one model whose scale is not that of its heads by its number of layers, `largest`.
pub(super) fn llama_cpp_scale(spec: &ModelSpec, largest: usize) -> f32 {
    let width = if spec.n_layers == largest { spec.hidden_size / spec.n_heads } else { spec.head_dim };
    (width as f32).sqrt().recip()
}

/// Refuses what [`llama_cpp_scale`] does not give.
pub(super) fn refuse_other_scale(spec: &ModelSpec, largest: usize) -> Result<()> {
    let own = spec.attention_scale();
    if (own / llama_cpp_scale(spec, largest) - 1.0).abs() <= 1e-5 {
        return Ok(());
    }
    let what = format!("GGUF has no key for attention scores that are multiplied by {own} (`query_pre_attn_scalar`)");
    Err(Error::unsupported(what).hint("an MLX or Hugging Face target keeps the model as it is"))
}

/// The key from which the scale of attention scores is made.
pub(super) fn query_pre_attn_scalar(spec: &ModelSpec) -> Value {
    let scale = f64::from(spec.attention_scale()).powi(-2);
    to_config::whole((scale * 1e4).round() / 1e4)
}

/// GGUF has all norms as they are multiplied; elsewhere they are stored less one.
pub(super) fn norms_plus_one(_: &ModelSpec, kind: ContainerKind, part: Part) -> Order {
    if kind == ContainerKind::Gguf && part.name().ends_with("norm") { Order::Plus(1.0) } else { Order::Same }
}

/// Those that differ from Llama's.
pub(super) const NAMES: &[(Part, &str)] = &[
    (Part::AttnPostNorm, "model.layers.{}.post_attention_layernorm.weight"),
    (Part::FfnNorm, "model.layers.{}.pre_feedforward_layernorm.weight"),
    (Part::FfnPostNorm, "model.layers.{}.post_feedforward_layernorm.weight"),
];
