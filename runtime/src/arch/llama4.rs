//! Llama 4, its text model: attention in chunks, with every fourth layer unrotated and unbounded; queries and keys of unit size; in all
//! or every other layer, experts whose inputs the router weighs, beside a shared one.

use super::config::Config;
use super::{Architecture, Client, ContainerKind, Joint, family, to_config};
use crate::role::Part;
use crate::spec::{Experts, ModelSpec, RopeUse, Scoring, Temperature};
use bitsmith_formats::{Error, Result, gguf};
use serde_json::{Value, json};

/// The table entry.
pub static LLAMA4: Architecture = Architecture {
    name: "llama4_text",
    model_types: &["llama4_text"],
    gguf: "llama4",
    hf_class: "Llama4ForCausalLM",
    proof: &[Client::Transformers, Client::LlamaCpp],
    hf_names: NAMES,
    mlx_names: MLX_NAMES,
    joint,
    from_config: |arch, config| {
        let c = Config(config);
        let mut spec = family::llama_like(arch, c)?;
        if c.opt_bool("attention_bias")?.unwrap_or(false) {
            return Err(Error::unsupported("biases of attention (`attention_bias`) are not supported in `llama4_text`"));
        }
        let ffn_size = spec.ffn_size;
        spec.ffn_size = c.usize("intermediate_size_mlp")?;
        spec.rope.interleaved = true;
        spec.qk_unit_norm = c.opt_bool("use_qk_norm")?.unwrap_or(true);
        let every = c.opt_usize("no_rope_layer_interval")?.unwrap_or(NOPE_EVERY).max(1);
        let rotated = numbers(c, "no_rope_layers")?;
        for (i, layer) in spec.layers.iter_mut().enumerate() {
            let turned = match rotated.as_deref() {
                None | Some([]) => (i + 1) % every != 0,
                Some(list) => list.get(i).is_some_and(|n| *n != 0),
            };
            layer.rope = if turned { RopeUse::Global } else { RopeUse::None };
        }
        set_chunks(&mut spec, c)?;
        let tuned = c.get("attn_temperature_tuning").is_none_or(|v| v.as_bool().unwrap_or(v.as_f64() != Some(0.0)));
        spec.temperature = tuned.then_some(Temperature {
            step: c.opt_f64("floor_scale")?.unwrap_or(TEMPERATURE.step),
            scale: c.opt_f64("attn_scale")?.unwrap_or(TEMPERATURE.scale),
        });
        let step = c.opt_usize("interleave_moe_layer_step")?.unwrap_or(1);
        let listed = numbers(c, "moe_layers")?;
        let mixture = |layer: usize| match &listed {
            Some(list) => list.contains(&layer),
            None => step > 0 && (layer + 1).is_multiple_of(step),
        };
        let experts =
            Experts { shared_ffn_size: ffn_size, scoring: Scoring::Sigmoid, weigh_input: true, ..family::experts(c, ffn_size)? };
        family::set_mixtures(&mut spec, experts, mixture);
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        let Some(e) = &spec.experts else { return Err(to_config::inexpressible(&LLAMA4, "a model without experts")) };
        to_config::refuse_biases(&LLAMA4, spec, &[])?;
        let mut config = to_config::base(&LLAMA4, spec)?;
        let kind = |chunk| if chunk { "chunked_attention" } else { "full_attention" };
        let mixtures: Vec<usize> = (0..spec.n_layers).filter(|l| spec.layers[*l].mixture).collect();
        let temperature = spec.temperature.unwrap_or(TEMPERATURE);
        for (key, value) in [
            ("attention_bias", json!(false)),
            ("attention_chunk_size", json!(spec.sliding_window)),
            ("attn_scale", json!(temperature.scale)),
            ("attn_temperature_tuning", json!(spec.temperature.is_some())),
            ("floor_scale", to_config::whole(temperature.step)),
            ("interleave_moe_layer_step", json!(mixture_step(spec).unwrap_or(1))),
            ("intermediate_size", json!(e.ffn_size)),
            ("intermediate_size_mlp", json!(spec.ffn_size)),
            ("layer_types", spec.layers.iter().map(|l| kind(l.window)).collect()),
            ("moe_layers", json!(mixtures)),
            ("no_rope_layers", spec.layers.iter().map(|l| u8::from(l.rope != RopeUse::None)).collect()),
            ("num_experts_per_tok", json!(e.used)),
            ("num_local_experts", json!(e.count)),
            ("use_qk_norm", json!(spec.qk_unit_norm)),
        ] {
            config.insert(key.into(), value);
        }
        Ok(config)
    },
    from_gguf: |spec, keys| {
        let bounded = keys.opt_usize("attention.sliding_window")? != Some(0);
        spec.rope.interleaved = true;
        spec.sliding_window = bounded.then_some(CHUNK);
        spec.chunked = bounded;
        spec.temperature = bounded.then_some(TEMPERATURE);
        for (i, layer) in spec.layers.iter_mut().enumerate() {
            layer.window = bounded && in_chunks(i);
            layer.rope = if layer.window || !bounded { RopeUse::Global } else { RopeUse::None };
        }
        if let Some(e) = &mut spec.experts {
            spec.qk_unit_norm = has_unit_norm(e.count);
            (e.scoring, e.shared_ffn_size, e.weigh_input) = (Scoring::Sigmoid, e.ffn_size, true);
        }
        Ok(())
    },
    gguf_keys,
    ..Architecture::DECODER
};

/// What llama.cpp takes for granted.
const CHUNK: usize = 8192;
const TEMPERATURE: Temperature = Temperature { step: 8192.0, scale: 0.1 };
const NOPE_EVERY: usize = 4;

fn in_chunks(layer: usize) -> bool {
    !(layer + 1).is_multiple_of(NOPE_EVERY)
}

fn has_unit_norm(experts: usize) -> bool {
    experts != 128
}

fn numbers(c: Config<'_>, key: &str) -> Result<Option<Vec<usize>>> {
    let Some(list) = c.get(key) else { return Ok(None) };
    let list = serde_json::from_value(list.clone());
    list.map(Some).map_err(|e| Error::corrupt(format!("key `{key}` is not a list of whole numbers: {e}")))
}

/// Chunks in the layers that `layer_types` names, or else in all that are rotated.
fn set_chunks(spec: &mut ModelSpec, c: Config<'_>) -> Result<()> {
    let types = c.get("layer_types").and_then(Value::as_array);
    for (i, layer) in spec.layers.iter_mut().enumerate() {
        layer.window = match types.map(|t| t.get(i).and_then(Value::as_str)) {
            None => layer.rope != RopeUse::None,
            Some(Some("chunked_attention")) => true,
            Some(Some("full_attention")) => false,
            Some(other) => {
                let other = other.unwrap_or_default();
                return Err(Error::unsupported(format!("attention of kind `{other}` (key `layer_types`) is not supported")));
            }
        };
    }
    spec.chunked = true;
    spec.sliding_window = c.opt_usize("attention_chunk_size")?.filter(|_| spec.layers.iter().any(|l| l.window));
    Ok(())
}

/// Every how many layers there is a mixture, if that is a rule.
fn mixture_step(spec: &ModelSpec) -> Option<usize> {
    let step = spec.layers.iter().position(|l| l.mixture)? + 1;
    let regular = spec.layers.iter().enumerate().all(|(i, l)| l.mixture == (i + 1).is_multiple_of(step));
    regular.then_some(step)
}

fn gguf_keys(spec: &ModelSpec) -> Result<Vec<(&'static str, gguf::Value)>> {
    let experts = spec.experts.as_ref().map_or(0, |e| e.count);
    let unbounded = spec.sliding_window.is_none() && spec.layers.iter().all(|l| l.rope == RopeUse::Global);
    let usual = |(i, l): (usize, &crate::spec::LayerSpec)| l.window == in_chunks(i) && (l.rope != RopeUse::None) == in_chunks(i);
    let chunks = spec.sliding_window == Some(CHUNK) && spec.layers.iter().enumerate().all(usual);
    let what = if !unbounded && !chunks {
        format!("attention but in chunks of {CHUNK} tokens, with every fourth layer unbounded and unrotated")
    } else if !unbounded && spec.temperature != Some(TEMPERATURE) {
        "another temperature of attention than the known models'".to_string()
    } else if spec.qk_unit_norm != has_unit_norm(experts) {
        format!("`use_qk_norm` {} with {experts} experts", spec.qk_unit_norm)
    } else {
        let step = mixture_step(spec).ok_or_else(|| unknown("mixtures in layers that follow no rule"))?;
        let mut keys = vec![("interleave_moe_layer_step", gguf::Value::U32(step as u32))];
        if unbounded {
            keys.push(("attention.sliding_window", gguf::Value::U32(0)));
        }
        return Ok(keys);
    };
    Err(unknown(&what))
}

fn unknown(what: &str) -> Error {
    Error::unsupported(format!("GGUF has no key for {what} in `llama4`"))
        .hint("an MLX or Hugging Face target keeps the model as it is")
}

fn joint(spec: &ModelSpec, kind: ContainerKind, part: Part) -> Vec<Joint> {
    let (Some(e), ContainerKind::Hf) = (&spec.experts, kind) else { return Vec::new() };
    let gate_up = |i| {
        let name = "model.layers.{}.feed_forward.experts.gate_up_proj";
        vec![Joint::gate_up_transposed(name, i, e, spec.hidden_size, false)]
    };
    match part {
        Part::FfnGateExps => gate_up(0),
        Part::FfnUpExps => gate_up(1),
        Part::FfnDownExps => {
            vec![Joint::down_transposed("model.layers.{}.feed_forward.experts.down_proj", e, spec.hidden_size)]
        }
        _ => Vec::new(),
    }
}

const NAMES: &[(Part, &str)] = &[
    (Part::FfnGate, "model.layers.{}.feed_forward.gate_proj.weight"),
    (Part::FfnUp, "model.layers.{}.feed_forward.up_proj.weight"),
    (Part::FfnDown, "model.layers.{}.feed_forward.down_proj.weight"),
    (Part::FfnGateInp, "model.layers.{}.feed_forward.router.weight"),
    (Part::FfnGateShexp, "model.layers.{}.feed_forward.shared_expert.gate_proj.weight"),
    (Part::FfnUpShexp, "model.layers.{}.feed_forward.shared_expert.up_proj.weight"),
    (Part::FfnDownShexp, "model.layers.{}.feed_forward.shared_expert.down_proj.weight"),
];

const MLX_NAMES: &[(Part, &str)] = &[
    (Part::FfnGateExps, "model.layers.{}.feed_forward.experts.gate_proj.weight"),
    (Part::FfnUpExps, "model.layers.{}.feed_forward.experts.up_proj.weight"),
    (Part::FfnDownExps, "model.layers.{}.feed_forward.experts.down_proj.weight"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::spec;
    use bitsmith_formats::ErrorKind;

    fn tiny(changes: Value) -> ModelSpec {
        let mut all =
            json!({"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 64, "num_hidden_layers": 4});
        all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        spec("llama4_text", all)
    }

    #[test]
    fn layers_without_rotation_are_unbounded() {
        let spec = tiny(json!({"interleave_moe_layer_step": 2, "attention_chunk_size": 8192}));
        let layers: Vec<_> = spec.layers.iter().map(|l| (l.window, l.rope != RopeUse::None, l.mixture)).collect();
        assert_eq!(layers, [(true, true, false), (true, true, true), (true, true, false), (false, false, true)]);
        assert!(spec.gguf_metadata().is_ok());
        let temperature = spec.temperature.unwrap();
        assert_eq!((temperature.factor(0), temperature.factor(8190)), (1.0, 1.0));
        assert!((temperature.factor(8191) - 1.0 - 0.1 * 2f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn what_gguf_cannot_say_is_refused() {
        for changes in [
            json!({"attention_chunk_size": 16}),
            json!({"attention_chunk_size": 8192, "attn_temperature_tuning": false}),
            json!({"attention_chunk_size": 8192, "use_qk_norm": false}),
            json!({"attention_chunk_size": 8192, "moe_layers": [0, 1]}),
        ] {
            let e = tiny(changes).gguf_metadata().unwrap_err();
            assert!(e.kind == ErrorKind::Unsupported && e.hint.is_some(), "{e}");
        }
    }
}
