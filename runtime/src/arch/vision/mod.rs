//! Models with a vision tower: a text model that we know, wrapped together with an image encoder and a projector into the text
//! model's space. The text model is read, run and quantized like any other. Tower and projector are carried from container to
//! container and never run.
//!
//! One file and one line in [`WRAPPERS`] per kind of wrapper.

mod defaults;
mod gemma3;
mod idefics3;
mod llava;
mod qwen2_5_vl;
mod tower;

pub use tower::{Piece, Sorted, Tower, TowerTensor};

use super::GgufEntries;
use super::config::Config;
use bitsmith_formats::gguf::Value as GgufValue;
use bitsmith_formats::{Error, Result};
use serde_json::{Map, Value};

/// Every kind of wrapper that bitsmith knows.
pub static WRAPPERS: &[&Wrapper] = &[&gemma3::GEMMA3, &llava::LLAVA, &qwen2_5_vl::QWEN2_5_VL, &idefics3::IDEFICS3];

/// What distinguishes a kind of wrapper.
pub struct Wrapper {
    /// Our name.
    pub name: &'static str,
    /// `model_type` values in `config.json`.
    pub model_types: &'static [&'static str],
    /// `model_type` of the text model where `text_config` does not say.
    pub text_type: &'static str,
    /// `model_type` values of the tower that GGUF's projector files have a form for.
    pub tower_types: &'static [&'static str],
    /// Beginnings of the text model's tensors, in place of those that it has by itself.
    pub text: &'static [Beginning],
    /// Beginnings of the names of tower and projector.
    pub tower: &'static [Beginning],
    /// The modules of tower and projector, by the beginning of their names in Hugging Face's folders.
    pub modules: &'static [(&'static str, &'static [Module])],
    /// Whether mlx-vlm looks for the text model's keys among the whole's.
    pub flat_in_mlx: bool,
    /// GGUF's `clip.projector_type`.
    pub projector: &'static str,
    /// Whether the projector reads what the norm after the tower's last layer gives. If not, the projector file must not have that norm:
    /// llama.cpp applies the one that it finds.
    pub final_norm: bool,
    /// How many of the tower's layers the projector's input depends on; the projector file has no others.
    pub layers: fn(&Vision<'_>) -> Result<usize>,
    /// Metadata of the projector file beside those that all have, with `clip.` in front.
    pub gguf_keys: fn(&Vision<'_>) -> Result<GgufEntries>,
}

/// The beginning of a group of names in each kind of folder.
#[derive(Debug)]
pub struct Beginning {
    /// As we have it: of the text model by itself, or of the tower in Hugging Face's folders.
    pub own: &'static str,
    /// In Hugging Face's folders, as they are on the hub and as all versions of transformers read them.
    pub hf: &'static str,
    /// In MLX folders, as mlx-vlm has it.
    pub mlx: &'static str,
    /// In the model that transformers makes of them; lists of modules in `quantization_config` have it.
    pub module: &'static str,
    /// Others that are read.
    pub others: &'static [&'static str],
}

/// A module of a tower, with a `.weight` and perhaps a `.bias`, or a single tensor.
#[derive(Debug)]
pub struct Module {
    /// Name after the beginning of its group, `{}` standing for the layer.
    pub name: &'static str,
    /// What GGUF's projector file has for it; nothing for what llama.cpp does without.
    pub gguf: &'static [(&'static str, Piece)],
    /// What it is.
    pub kind: ModuleKind,
    /// Whether the names are a tensor's, with nothing to follow.
    pub single: bool,
}

/// Kinds of module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModuleKind {
    /// A linear layer, which tools that quantize would take for theirs.
    Linear,
    /// A convolution over patches, `(out, in, …)`; MLX has the inputs last.
    Patches,
    /// Norms, embeddings, parameters.
    Other,
}

impl Module {
    const fn new(kind: ModuleKind, name: &'static str, gguf: &'static [(&'static str, Piece)]) -> Module {
        Module { name, gguf, kind, single: false }
    }
    const fn linear(name: &'static str, gguf: &'static [(&'static str, Piece)]) -> Module {
        Module::new(ModuleKind::Linear, name, gguf)
    }
    const fn other(name: &'static str, gguf: &'static [(&'static str, Piece)]) -> Module {
        Module::new(ModuleKind::Other, name, gguf)
    }
    const fn patches(name: &'static str, gguf: &'static [(&'static str, Piece)]) -> Module {
        Module::new(ModuleKind::Patches, name, gguf)
    }
    const fn single(self) -> Module {
        Module { single: true, ..self }
    }
}

/// What a projector file's metadata follow from.
pub struct Vision<'a> {
    /// `config.json`.
    pub(super) whole: Config<'a>,
    /// `vision_config`, with what transformers takes where a key is absent.
    pub(super) tower: Config<'a>,
    /// `preprocessor_config.json` and `processor_config.json` in one.
    pub(super) processor: Config<'a>,
}

impl std::fmt::Debug for Wrapper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Wrapper {
    /// The wrapper that a `config.json` describes, if it is one.
    pub fn of(config: &Value) -> Option<&'static Wrapper> {
        let model_type = config.get("model_type")?.as_str()?;
        WRAPPERS.iter().copied().find(|w| w.model_types.contains(&model_type))
    }

    /// The text model's configuration: `text_config`, or the keys of the whole where there is none, with what transformers takes where
    /// keys are absent. The whole decides whether the output matrix is the embedding.
    pub fn text_config(&self, config: &Value) -> Result<Value> {
        let whole = Config(config);
        let nested = whole.opt_object("text_config")?;
        let own = nested.map_or(config, |c| c.0);
        let kind = nested.and_then(|c| c.get("model_type")).and_then(Value::as_str).unwrap_or(self.text_type);
        let mut text = defaults::of(kind);
        overlay(&mut text, own);
        for key in ["bos_token_id", "eos_token_id"] {
            if let (None, Some(value)) = (Config(own).get(key), whole.get(key)) {
                text.insert(key.into(), value.clone());
            }
        }
        if let Some(tied) = whole.get("tie_word_embeddings") {
            text.insert("tie_word_embeddings".into(), tied.clone());
        }
        text.insert("model_type".into(), kind.into());
        Ok(text.into())
    }

    /// The metadata of the projector file, without the general ones. `processor` are the objects of `preprocessor_config.json` and
    /// `processor_config.json`, which say how images become patches; `hidden_size` is the text model's.
    pub fn projector_metadata(&self, config: &Value, processor: &Value, hidden_size: usize) -> Result<Vec<(String, GgufValue)>> {
        let tower = self.tower_config(config)?;
        let vision = Vision { whole: Config(config), tower: Config(&tower), processor: Config(processor) };
        let number = |n: usize| GgufValue::U32(n as u32);
        let c = vision.tower;
        let mut keys: GgufEntries = vec![
            ("projector_type", self.projector.into()),
            ("has_vision_encoder", true.into()),
            ("vision.projection_dim", number(hidden_size)),
            ("vision.image_size", number(c.usize("image_size")?)),
            ("vision.patch_size", number(c.usize("patch_size")?)),
            ("vision.embedding_length", number(c.usize("hidden_size")?)),
            ("vision.feed_forward_length", number(c.usize("intermediate_size")?)),
            ("vision.block_count", number((self.layers)(&vision)?)),
            ("vision.attention.head_count", number(c.usize_of(&["num_attention_heads", "num_heads"])?)),
        ];
        for (key, from) in [("vision.image_mean", "image_mean"), ("vision.image_std", "image_std")] {
            let values = vision.processor.f32s(from).map_err(|e| e.hint(PROCESSOR_HINT))?;
            if values.len() != 3 {
                return Err(Error::corrupt(format!("key `{from}` has {} values, not 3", values.len())).hint(PROCESSOR_HINT));
            }
            keys.push((key, values.into()));
        }
        keys.extend((self.gguf_keys)(&vision)?);
        Ok(keys.into_iter().map(|(key, value)| (format!("clip.{key}"), value)).collect())
    }

    /// How many of the tower's layers the projector's input depends on.
    pub fn projector_layers(&self, config: &Value) -> Result<usize> {
        let (tower, none) = (self.tower_config(config)?, Value::Null);
        (self.layers)(&Vision { whole: Config(config), tower: Config(&tower), processor: Config(&none) })
    }

    /// `vision_config`, with what transformers takes where keys are absent.
    fn tower_config(&self, config: &Value) -> Result<Value> {
        let own = Config(config).opt_object("vision_config")?.ok_or_else(|| Error::corrupt("key `vision_config` is missing"))?;
        let kind = own.opt_str("model_type")?.unwrap_or(self.tower_types[0]);
        if !self.tower_types.contains(&kind) {
            return Err(Error::unsupported(format!(
                "a projector file cannot be made of a tower of type `{kind}` in `{}`",
                self.name
            ))
            .hint(format!("supported: {}; folder targets carry the tower as it is", self.tower_types.join(", "))));
        }
        let mut tower = defaults::of(kind);
        overlay(&mut tower, own.0);
        Ok(tower.into())
    }
}

const PROCESSOR_HINT: &str = "preprocessor_config.json says how images are normalised; download it with the checkpoint";

/// Puts the keys of an object over others, where they have a value.
fn overlay(onto: &mut Map<String, Value>, with: &Value) {
    let given = with.as_object().into_iter().flatten().filter(|(_, v)| !v.is_null());
    onto.extend(given.map(|(k, v)| (k.clone(), v.clone())));
}

impl Vision<'_> {
    /// All layers that the tower has.
    fn all_layers(&self) -> Result<usize> {
        self.tower.usize_of(&["num_hidden_layers", "depth"])
    }
    /// The epsilon of the tower's norms.
    fn layer_norm_eps(&self) -> Result<GgufValue> {
        Ok(GgufValue::F32(self.tower.f64("layer_norm_eps")? as f32))
    }
}

#[cfg(test)]
mod tests;
