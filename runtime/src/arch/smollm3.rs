//! SmolLM 3: Llama with layers without positions.

use super::config::Config;
use super::{Architecture, family, names, qwen2, to_config};
use crate::spec::{ModelSpec, RopeUse};
use bitsmith_formats::{Error, Result};
use serde_json::json;

/// The table entry.
pub static SMOLLM3: Architecture = Architecture {
    name: "smollm3",
    model_types: &["smollm3"],
    gguf: "smollm3",
    hf_class: "SmolLM3ForCausalLM",
    order: names::interleaved_qk,
    from_config: |arch, config| {
        let c = Config(config);
        family::refuse_switches(arch, c, &[("attention_bias", false), ("mlp_bias", false)])?;
        let mut spec = family::llama_like(arch, c)?;
        family::set_tied(&mut spec, c.opt_bool("tie_word_embeddings")?.unwrap_or(true));
        qwen2::set_window(&mut spec, c)?;
        let rotated = rotated(c, spec.n_layers)?;
        set_rotated(&mut spec, |layer| rotated[layer]);
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        to_config::refuse_biases(&SMOLLM3, spec, &[])?;
        let mut config = to_config::base(&SMOLLM3, spec)?;
        let rotated: Vec<u8> = spec.layers.iter().map(|l| u8::from(l.rope != RopeUse::None)).collect();
        for (key, value) in [
            ("attention_bias", json!(false)),
            ("mlp_bias", json!(false)),
            ("no_rope_layer_interval", json!(INTERVAL)),
            ("no_rope_layers", json!(rotated)),
            // Transformers' default is a token of the one published vocabulary.
            ("pad_token_id", json!(null)),
        ] {
            config.insert(key.into(), value);
        }
        config.extend(qwen2::window_keys(spec));
        Ok(config)
    },
    from_gguf: |spec, _| {
        set_rotated(spec, usual);
        Ok(())
    },
    gguf_keys: |spec| {
        let as_usual = spec.layers.iter().enumerate().all(|(i, l)| (l.rope != RopeUse::None) == usual(i));
        if as_usual && spec.sliding_window.is_none() {
            return Ok(Vec::new());
        }
        let what =
            "llama.cpp leaves every fourth layer of `smollm3` without positions, and none has a window; this model differs";
        Err(Error::unsupported(format!("{what} (`no_rope_layers`, `sliding_window`)"))
            .hint("an MLX or Hugging Face target keeps the model as it is"))
    },
    ..Architecture::DECODER
};

/// One layer of so many has no positions, where the configuration does not say otherwise.
const INTERVAL: usize = 4;

fn usual(layer: usize) -> bool {
    !(layer + 1).is_multiple_of(INTERVAL)
}

/// `no_rope_layers`, which has 1 for layers that are rotated, or what the interval says.
fn rotated(c: Config<'_>, n_layers: usize) -> Result<Vec<bool>> {
    let n_layers = n_layers.min(1 << 14);
    match c.get("no_rope_layers") {
        Some(list) => {
            let list: Vec<u8> = serde_json::from_value(list.clone())
                .map_err(|e| Error::corrupt(format!("key `no_rope_layers` is not a list of 0 and 1: {e}")))?;
            if list.len() != n_layers {
                let (got, want) = (list.len(), n_layers);
                return Err(Error::corrupt(format!("key `no_rope_layers` has {got} values for {want} layers")));
            }
            Ok(list.iter().map(|v| *v != 0).collect())
        }
        None => {
            let interval = c.opt_usize("no_rope_layer_interval")?.unwrap_or(INTERVAL);
            Ok((0..n_layers).map(|l| interval == 0 || !(l + 1).is_multiple_of(interval)).collect())
        }
    }
}

fn set_rotated(spec: &mut ModelSpec, rotated: impl Fn(usize) -> bool) {
    for (i, layer) in spec.layers.iter_mut().enumerate() {
        layer.rope = if rotated(i) { RopeUse::Global } else { RopeUse::None };
    }
}
