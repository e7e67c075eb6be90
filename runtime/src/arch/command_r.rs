//! Command-R and Aya (Cohere): layer norms without biases, attention and feed-forward block side by side behind one norm, heads
//! whose neighbouring dimensions are rotated together, scaled logits.

use super::config::Config;
use super::{Architecture, QkNorm, family, to_config, to_gguf};
use crate::role::Part;
use crate::spec::{Activation, ModelSpec};
use bitsmith_formats::{Error, gguf};
use serde_json::json;

/// The table entry.
pub static COMMAND_R: Architecture = Architecture {
    name: "command-r",
    model_types: &["cohere"],
    gguf: "command-r",
    hf_class: "CohereForCausalLM",
    qk_norm: QkNorm::EachHead,
    from_config: |arch, config| {
        let c = Config(config);
        family::refuse_switches(arch, c, &[("attention_bias", false), ("layer_norm_bias", false)])?;
        let mut spec = family::llama_like(arch, c)?;
        family::set_tied(&mut spec, c.opt_bool("tie_word_embeddings")?.unwrap_or(true));
        // The first model names an eighth of its context under the usual key.
        spec.context_length = c.opt_usize("model_max_length")?.unwrap_or(spec.context_length);
        spec.scales.logits = c.opt_f64("logit_scale")?.unwrap_or(0.0625) as f32;
        if c.opt_bool("use_qk_norm")?.unwrap_or(false) {
            spec.add(family::QK_NORMS);
        }
        common(&mut spec);
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        to_config::refuse_biases(&COMMAND_R, spec, &[])?;
        let mut config = to_config::base(&COMMAND_R, spec)?;
        to_config::layer_norm(&mut config, spec);
        for (key, value) in [
            ("attention_bias", json!(false)),
            ("logit_scale", json!(to_config::decimal(f64::from(spec.scales.logits)))),
            ("use_qk_norm", json!(spec.has(Part::AttnQNorm))),
        ] {
            config.insert(key.into(), value);
        }
        Ok(config)
    },
    from_gguf: |spec, _| {
        common(spec);
        Ok(())
    },
    gguf_keys: |spec| {
        to_gguf::refuse_untied(spec)?;
        if spec.has(Part::AttnQNorm) != (spec.n_layers >= NORMED_LAYERS) {
            return Err(Error::unsupported(format!(
                "llama.cpp expects norms of queries and keys in `command-r` of {NORMED_LAYERS} layers and more, and in no other"
            ))
            .hint("an MLX or Hugging Face target keeps the model as it is"));
        }
        Ok(vec![("logit_scale", gguf::Value::F32(spec.scales.logits))])
    },
    ..Architecture::DECODER
};

/// Layers of Command-R+.
const NORMED_LAYERS: usize = 64;

fn common(spec: &mut ModelSpec) {
    spec.remove(&[Part::FfnNorm]);
    spec.parallel = true;
    spec.rope.interleaved = true;
    spec.activation = Activation::Silu;
}
