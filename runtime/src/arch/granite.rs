//! Granite 3 (dense): Llama with factors on embeddings, attention scores, the blocks' outputs and logits.

use super::config::Config;
use super::from_gguf::GgufKeys;
use super::{Architecture, family, names, to_config};
use crate::role::Part;
use crate::spec::ModelSpec;
use bitsmith_formats::gguf;
use bitsmith_formats::{Error, Result};
use serde_json::{Value, json};

/// The table entry.
pub static GRANITE: Architecture = Architecture {
    name: "granite",
    model_types: &["granite"],
    gguf: "granite",
    hf_class: "GraniteForCausalLM",
    order: names::interleaved_qk,
    from_config: |arch, config| {
        let c = Config(config);
        let mut spec = family::llama_like(arch, c)?;
        family::set_attention_biases(&mut spec, c)?;
        if c.opt_bool("mlp_bias")?.unwrap_or(false) {
            spec.add(family::GATED_BIASES);
        }
        set_factors(&mut spec, c)?;
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        let mut config = to_config::base(&GRANITE, spec)?;
        config.insert("attention_bias".into(), to_config::attention_bias(spec)?);
        config.insert("mlp_bias".into(), spec.has(Part::FfnGateBias).into());
        config.extend(factor_keys(spec));
        Ok(config)
    },
    from_gguf: |spec, keys| read_factors(spec, keys),
    gguf_keys: |spec| Ok(gguf_factors(spec)),
    ..Architecture::DECODER
};

/// Reads the factors.
pub(super) fn set_factors(spec: &mut ModelSpec, c: Config<'_>) -> Result<()> {
    let read = |key: &str| match c.opt_f64(key)?.unwrap_or(1.0) {
        factor if factor > 0.0 => Ok(factor as f32),
        factor => Err(Error::corrupt(format!("key `{key}` is {factor}, not a positive number"))),
    };
    spec.scales.embedding = read("embedding_multiplier")?;
    spec.scales.residual = read("residual_multiplier")?;
    spec.scales.attention = Some(read("attention_multiplier")?);
    spec.scales.logits = read("logits_scaling")?.recip();
    Ok(())
}

/// The keys that [`set_factors`] reads.
pub(super) fn factor_keys(spec: &ModelSpec) -> [(String, Value); 4] {
    let number = |x: f32| json!(to_config::decimal(f64::from(x)));
    [
        ("attention_multiplier".into(), number(spec.attention_scale())),
        ("embedding_multiplier".into(), number(spec.scales.embedding)),
        ("logits_scaling".into(), number(spec.scales.logits.recip())),
        ("residual_multiplier".into(), number(spec.scales.residual)),
    ]
}

/// Completes the factors that a GGUF has: logits are divided by its `logit_scale`.
pub(super) fn read_factors(spec: &mut ModelSpec, keys: GgufKeys<'_>) -> Result<()> {
    if let Some(scale) = keys.opt_f64("logit_scale")?.filter(|s| *s != 0.0) {
        spec.scales.logits = (scale as f32).recip();
    }
    // Zero counts as absent.
    for scale in [&mut spec.scales.embedding, &mut spec.scales.residual] {
        if *scale == 0.0 {
            *scale = 1.0;
        }
    }
    Ok(())
}

/// The keys that [`read_factors`] and every reader read.
pub(super) fn gguf_factors(spec: &ModelSpec) -> Vec<(&'static str, gguf::Value)> {
    vec![
        ("attention.scale", gguf::Value::F32(spec.attention_scale())),
        ("embedding_scale", gguf::Value::F32(spec.scales.embedding)),
        ("residual_scale", gguf::Value::F32(spec.scales.residual)),
        ("logit_scale", gguf::Value::F32(spec.scales.logits.recip())),
    ]
}
