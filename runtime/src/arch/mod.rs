//! The architecture table: one file and one line in [`ARCHITECTURES`] per architecture.

mod bert;
mod command_r;
mod config;
mod deepseek;
mod family;
mod from_gguf;
mod gemma;
mod gemma2;
mod gemma3;
mod gpt2;
mod gpt_neox;
mod gpt_oss;
mod granite;
mod granite_moe;
mod llama;
mod llama4;
mod mistral;
mod mixtral;
mod names;
mod olmo2;
mod phi2;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen2_vl;
mod qwen3;
mod qwen3_moe;
mod smollm3;
mod stablelm;
mod to_config;
mod to_gguf;
pub mod vision;
#[cfg(test)]
mod worked_example;

pub use from_gguf::GgufKeys;

pub use names::{ContainerKind, Joint, Order, Place, TensorMap, Within};

use crate::role::Part;
use crate::spec::ModelSpec;
use bitsmith_formats::gguf;
use bitsmith_formats::{Error, Result};
use serde_json::{Map, Value};

/// Every architecture that bitsmith knows. Where several share a GGUF name, the first reads it.
pub static ARCHITECTURES: &[&Architecture] = &[
    &llama::LLAMA,
    &mistral::MISTRAL,
    &mixtral::MIXTRAL,
    &qwen2::QWEN2,
    &qwen2_moe::QWEN2_MOE,
    &qwen2_vl::QWEN2_VL,
    &qwen3::QWEN3,
    &qwen3_moe::QWEN3_MOE,
    &gemma::GEMMA,
    &gemma2::GEMMA2,
    &gemma3::GEMMA3,
    &phi2::PHI2,
    &phi3::PHI3,
    &gpt2::GPT2,
    &gpt_neox::GPT_NEOX,
    &stablelm::STABLELM,
    &olmo2::OLMO2,
    &granite::GRANITE,
    &granite_moe::GRANITE_MOE,
    &command_r::COMMAND_R,
    &smollm3::SMOLLM3,
    &deepseek::DEEPSEEK_V2,
    &deepseek::DEEPSEEK_V3,
    &gpt_oss::GPT_OSS,
    &llama4::LLAMA4,
    &bert::BERT,
];

/// What the norm of a query or key extends over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// One head, with the same weights for all heads: `(head_dim)`.
    Head,
    /// One head, each with its own weights: `(heads, head_dim)`.
    EachHead,
    /// All heads together: `(heads × head_dim)`.
    Wide,
}

/// Implementations of models that ours are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// Hugging Face's transformers, on the checkpoint and on what is made of it.
    Transformers,
    /// llama.cpp, on the GGUF.
    LlamaCpp,
    /// mlx-lm, on the MLX folder.
    MlxLm,
}

impl Client {
    /// Its customary name.
    pub const fn name(self) -> &'static str {
        match self {
            Client::Transformers => "transformers",
            Client::LlamaCpp => "llama.cpp",
            Client::MlxLm => "mlx-lm",
        }
    }
}

/// GGUF's keys, without the architecture's name in front, and their values.
pub type GgufEntries = Vec<(&'static str, gguf::Value)>;

/// What distinguishes an architecture. Everything that converts, runs or quantizes reads this entry; `DECODER` has
/// what most share.
pub struct Architecture {
    /// Our name, also shown by `bitsmith inspect`.
    pub name: &'static str,
    /// `model_type` values in `config.json`.
    pub model_types: &'static [&'static str],
    /// GGUF's `general.architecture`.
    pub gguf: &'static str,
    /// The class that transformers runs it with: `architectures` in `config.json`.
    pub hf_class: &'static str,
    /// What the norms of queries and keys, where the model has them, extend over.
    pub qk_norm: QkNorm,
    /// The implementations that a model of this architecture is held against, weights and formats alike.
    pub proof: &'static [Client],
    /// Tensor names in Hugging Face and MLX checkpoints where they are not those of Llama, `{}` standing for the layer and `{e}` for the
    /// expert (or the head), where each has a tensor of its own.
    pub hf_names: &'static [(Part, &'static str)],
    /// Names that differ in MLX folders.
    pub mlx_names: &'static [(Part, &'static str)],
    /// Names that differ in GGUF, between `blk.N.` and `.weight`.
    pub gguf_names: &'static [(Part, &'static str)],
    /// Tensors that hold a part together with others. Where the part has no name of its own in the container, the first is what is
    /// written; all may be read.
    pub joint: fn(&ModelSpec, ContainerKind, Part) -> Vec<Joint>,
    /// Beginnings of names that some checkpoints have in another form: usual and other.
    pub aliases: &'static [(&'static str, &'static str)],
    /// Ends of the names of tensors that carry nothing the model needs.
    pub superfluous: &'static [&'static str],
    /// Whether checkpoints may have layers after the last one, by which several tokens are predicted at once.
    pub extra_layers: bool,
    /// What a container does to a part's rows.
    pub order: fn(&ModelSpec, ContainerKind, Part) -> Order,
    /// Reads the hyperparameters from `config.json`.
    pub from_config: fn(&'static Architecture, &Value) -> Result<ModelSpec>,
    /// Writes them as `config.json`; an error if it has no key for something.
    pub to_config: fn(&ModelSpec) -> Result<Map<String, Value>>,
    /// Completes what GGUF metadata and tensors do not say, or say under keys of this architecture's own.
    pub from_gguf: fn(&mut ModelSpec, GgufKeys<'_>) -> Result<()>,
    /// The keys of its own that this architecture has in GGUF, without its name in front; an error for what they cannot say.
    pub gguf_keys: fn(&ModelSpec) -> Result<GgufEntries>,
}

impl Architecture {
    /// A decoder without peculiarities, to be completed with names and the functions on configurations.
    const DECODER: Architecture = Architecture {
        name: "",
        model_types: &[],
        gguf: "",
        hf_class: "",
        qk_norm: QkNorm::Head,
        proof: &[Client::Transformers, Client::LlamaCpp, Client::MlxLm],
        hf_names: &[],
        mlx_names: &[],
        gguf_names: &[],
        joint: |_, _, _| Vec::new(),
        aliases: &[],
        superfluous: &[],
        extra_layers: false,
        order: |_, _, _| Order::Same,
        from_config: |arch, config| family::base(arch, config::Config(config)),
        to_config: |spec| to_config::base(spec.arch, spec),
        from_gguf: |_, _| Ok(()),
        gguf_keys: |_| Ok(Vec::new()),
    };
}

impl std::fmt::Debug for Architecture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// The architecture of a `config.json`.
pub fn find_by_config(config: &Value) -> Result<&'static Architecture> {
    let model_type = config::Config(config).str("model_type")?;
    ARCHITECTURES
        .iter()
        .copied()
        .find(|a| a.model_types.contains(&model_type))
        .ok_or_else(|| unknown(model_type).hint(format!("supported `model_type`s: {}", model_types())))
}

/// The architecture of a GGUF file, by its `general.architecture`.
pub fn find_by_gguf(name: &str) -> Result<&'static Architecture> {
    ARCHITECTURES
        .iter()
        .copied()
        .find(|a| a.gguf == name)
        .ok_or_else(|| unknown(name).hint(format!("supported GGUF architectures: {}", list(|a| a.gguf.to_string()))))
}

fn unknown(name: &str) -> Error {
    Error::unsupported(format!("architecture `{name}` is not supported"))
}

fn model_types() -> String {
    let wrapped: Vec<&str> = vision::WRAPPERS.iter().flat_map(|w| w.model_types).copied().collect();
    format!("{}, {}", list(|a| a.model_types.join(", ")), wrapped.join(", "))
}

fn list(f: impl Fn(&Architecture) -> String) -> String {
    let mut names: Vec<String> = ARCHITECTURES.iter().map(|a| f(a)).collect();
    names.dedup();
    names.join(", ")
}

impl ModelSpec {
    /// Reads `config.json`, of a wrapped model what it says of the text model. Errors name the key.
    pub fn from_config(config: &Value) -> Result<ModelSpec> {
        if let Some(wrapper) = vision::Wrapper::of(config) {
            let text = wrapper.text_config(config)?;
            let arch = find_by_config(&text)?;
            return (arch.from_config)(arch, &text)
                .map_err(|e| Error { message: format!("in the text model's configuration: {}", e.message), ..e });
        }
        let arch = find_by_config(config)?;
        (arch.from_config)(arch, config)
    }
}

/// The beginning-of-sequence token and the end-of-sequence tokens of a `config.json` or `generation_config.json`.
pub(crate) fn special_tokens(config: &Value) -> Result<(Option<u32>, Vec<u32>)> {
    let c = config::Config(config);
    Ok((c.token_ids("bos_token_id")?.first().copied(), c.token_ids("eos_token_id")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::role::Role;
    use crate::spec::RopeScaling;
    use crate::testing::{config, spec};
    use bitsmith_formats::ErrorKind;
    use serde_json::json;

    fn error(model_type: &str, changes: Value) -> Error {
        ModelSpec::from_config(&config(model_type, changes)).unwrap_err()
    }

    #[test]
    fn old_and_new_rope_keys_agree() {
        let old = spec("llama", json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}}));
        let new = json!({"rope_theta": null, "rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}});
        assert_eq!(old.rope, spec("llama", new).rope);
        assert_eq!(old.rope.scaling, RopeScaling::Linear { factor: 2.0 });
        let default = json!({"rope_theta": null, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}});
        assert_eq!(spec("qwen2", default).rope, crate::spec::Rope { theta: 1e6, dims: 8, ..crate::spec::Rope::NONE });
        assert_eq!(spec("llama", json!({"rope_theta": null})).rope.theta, 10_000.0);
        let llama3 = json!({"rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}});
        assert!(matches!(spec("llama", llama3).rope.scaling, RopeScaling::Llama3 { original_context: 8192, .. }));
    }

    #[test]
    fn flavours() {
        let llama = spec("llama", json!({"attention_bias": true}));
        assert!(llama.has(Part::AttnQBias) && llama.has(Part::AttnOutputBias) && !llama.has(Part::FfnUpBias));
        let qwen2 = spec("qwen2", json!({"use_sliding_window": false, "sliding_window": 4096, "max_window_layers": 1}));
        assert!(qwen2.has(Part::AttnQBias) && !qwen2.has(Part::AttnOutputBias) && qwen2.sliding_window.is_none());
        let qwen3 = spec("qwen3", json!({"head_dim": null}));
        assert!(qwen3.has(Part::AttnQNorm) && qwen3.head_dim == 128 && !qwen3.has(Part::AttnQBias));
        assert_eq!(spec("mistral", json!({"sliding_window": 4096})).sliding_window, Some(4096));
        assert_eq!(spec("mistral", json!({"sliding_window": null})).sliding_window, None);
        assert_eq!(spec("llama", json!({"eos_token_id": [7, 3], "bos_token_id": null})).eos, [7, 3]);
        assert_eq!(spec("llama", json!({"num_key_value_heads": null})).n_kv_heads, 4);
        let full = json!({"layer_types": ["full_attention", "full_attention"], "sliding_window": 9});
        assert_eq!(spec("llama", full).sliding_window, None);
        let all = json!({"layer_types": ["sliding_attention", "sliding_attention"], "sliding_window": 9});
        assert_eq!(spec("llama", all).sliding_window, Some(9));
    }

    #[test]
    fn unsupported_features_are_refused() {
        for (model_type, changes, word) in [
            ("telepathy", json!({}), "telepathy"),
            ("llama", json!({"rope_scaling": {"type": "telescope", "factor": 4.0}}), "telescope"),
            ("llama", json!({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}), "layers"),
            ("llama", json!({"hidden_act": "gelu"}), "gelu"),
            ("llama", json!({"partial_rotary_factor": 0.5}), "partial"),
            ("qwen2", json!({"use_sliding_window": true, "sliding_window": 9, "max_window_layers": 1}), "max_window_layers"),
            ("mistral", json!({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 9}), "1 of 2"),
            ("gemma", json!({"hidden_act": "silu"}), "`silu` (key `hidden_act`)"),
            ("gemma", json!({"hidden_act": "gelu", "use_bidirectional_attention": true}), "use_bidirectional_attention"),
            ("gpt_neox", json!({"hidden_act": "gelu", "attention_bias": false}), "`attention_bias` false"),
            ("phi", json!({"hidden_act": "gelu_new", "qk_layernorm": true}), "qk_layernorm"),
            ("cohere", json!({"attention_bias": true}), "attention_bias"),
            ("bert", json!({"hidden_act": "gelu", "position_embedding_type": "relative_key"}), "relative_key"),
            ("bert", json!({"hidden_act": "gelu", "type_vocab_size": 1}), "type_vocab_size"),
        ] {
            let e = error(model_type, changes);
            assert_eq!(e.kind, ErrorKind::Unsupported, "{e}");
            assert!(e.message.contains(word), "{e}");
        }
        assert!(error("mamba", json!({})).hint.unwrap().contains("qwen3"));
        assert!(find_by_gguf("mamba").unwrap_err().hint.unwrap().contains("llama, qwen2, qwen2moe"));
    }

    fn with_layer_norms(model_type: &str, changes: Value) -> ModelSpec {
        let mut all = json!({"rms_norm_eps": null, "layer_norm_eps": 1e-5, "head_dim": null});
        all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        spec(model_type, all)
    }

    #[test]
    fn what_a_gguf_cannot_say_is_refused() {
        let long = json!({"rope_scaling": {"type": "longrope", "short_factor": [1, 1, 1, 1], "long_factor": [2, 2, 2, 2],
            "original_max_position_embeddings": 64}});
        let llama3 = json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}});
        let fine = [spec("llama", long.clone()), spec("phi3", long.clone()), spec("granite", llama3.clone())];
        assert!(fine.iter().all(|s| s.gguf_metadata().is_ok()));
        let neox = json!({"hidden_act": "gelu", "tie_word_embeddings": true});
        let yarn = json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16, "original_max_position_embeddings": 64}});
        for (spec, word) in [
            (spec("qwen2", long), "longrope"),
            (spec("llama", yarn), "beta_fast"),
            (spec("phi3", llama3), "llama3"),
            (spec("olmo2", json!({"tie_word_embeddings": true})), "output matrix that is the embedding"),
            (with_layer_norms("gpt_neox", neox), "output matrix that is the embedding"),
            (with_layer_norms("cohere", json!({"tie_word_embeddings": false})), "beside the embedding"),
            (with_layer_norms("cohere", json!({"tie_word_embeddings": true, "use_qk_norm": true})), "64 layers"),
            (spec("smollm3", json!({"no_rope_layers": [1, 0]})), "no_rope_layers"),
            (spec("gemma3_text", json!({"hidden_act": "gelu_new", "query_pre_attn_scalar": 9})), "query_pre_attn_scalar"),
        ] {
            let e = spec.gguf_metadata().unwrap_err();
            assert!(e.kind == ErrorKind::Unsupported && e.message.contains(word), "{e}: {word}");
        }
    }

    #[test]
    fn layers_with_a_window_have_their_own_rope() {
        let old = json!({"hidden_act": "gelu_new", "query_pre_attn_scalar": 8, "sliding_window": 16, "rope_theta": 1e6,
            "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "num_hidden_layers": 7});
        let new = json!({"hidden_act": "gelu_new", "query_pre_attn_scalar": 8, "sliding_window": 16, "rope_theta": null,
            "num_hidden_layers": 7, "rope_parameters": {"full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}});
        let (old, new) = (spec("gemma3_text", old), spec("gemma3_text", new));
        assert_eq!((&old.rope, &old.local_rope), (&new.rope, &new.local_rope));
        assert_eq!((new.rope.theta, new.local_rope.as_ref().unwrap().theta), (1e6, 1e4));
        let windows: Vec<bool> = new.layers.iter().map(|l| l.window).collect();
        assert_eq!(windows, [true, true, true, true, true, false, true]);
        assert!(new.layers.iter().all(|l| l.window == (l.rope == crate::spec::RopeUse::Local)));
    }

    #[test]
    fn encoders_have_no_head() {
        let bert = with_layer_norms("bert", json!({"hidden_act": "gelu"}));
        assert!(!bert.causal && !bert.has(Part::Output) && bert.has(Part::AttnResidualNormBias));
        let e = bert.require_head().unwrap_err();
        assert!(e.kind == ErrorKind::Unsupported && e.message.contains("encoder"), "{e}");
        assert!(spec("llama", json!({})).require_head().is_ok());
    }

    #[test]
    fn damaged_configurations_name_the_key() {
        for (changes, word) in [
            (json!({"hidden_size": null}), "`hidden_size` is missing"),
            (json!({"hidden_size": "big"}), "`hidden_size` is \"big\""),
            (json!({"hidden_size": -4}), "`hidden_size`"),
            (json!({"num_hidden_layers": 0}), "layers is 0"),
            (json!({"num_attention_heads": 0}), "heads is 0"),
            (json!({"num_attention_heads": 0, "head_dim": null}), "num_attention_heads"),
            (json!({"num_attention_heads": 3, "head_dim": null}), "`hidden_size` 32 is not a multiple"),
            (json!({"num_key_value_heads": 3}), "evenly"),
            (json!({"num_key_value_heads": 0}), "heads is 0"),
            (json!({"head_dim": 7}), "7 of 7 dimensions"),
            (json!({"vocab_size": 1u64 << 60}), "vocabulary size"),
            (json!({"hidden_size": 1e300}), "`hidden_size`"),
            (json!({"rms_norm_eps": "x"}), "rms_norm_eps"),
            (json!({"rope_theta": 0.0}), "rope base"),
            (json!({"rope_scaling": {"type": "linear"}}), "in `rope_scaling`: key `factor`"),
            (json!({"rope_scaling": {"type": "linear", "factor": 0}}), "factor"),
            (json!({"eos_token_id": "</s>"}), "eos_token_id"),
            (json!({"model_type": null}), "`model_type`"),
        ] {
            let e = error("llama", changes);
            assert_eq!(e.kind, ErrorKind::Corrupt, "{e}");
            assert!(e.message.contains(word), "{e}: {word}");
        }
    }

    #[test]
    fn tensors_find_their_roles() {
        let spec = spec("llama", json!({"tie_word_embeddings": true}));
        let places = |r| spec.arch.places(&spec, ContainerKind::Hf, r).unwrap();
        let names: Vec<String> = spec.roles().into_iter().flat_map(places).map(|p| p.name).collect();
        let extra = ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"];
        let map = |names: &[String], extra: &[&str]| {
            let all = names.iter().map(String::as_str).chain(extra.iter().copied());
            spec.arch.map_tensors(&spec, ContainerKind::Hf, all)
        };
        let found = map(&names, &extra).unwrap();
        assert_eq!(found.roles[&Role::layer(1, Part::FfnDown)][0].name, "model.layers.1.mlp.down_proj.weight");
        assert_eq!((found.roles.len(), found.dropped.len()), (2 + 2 * 9, 2));
        let e = map(&names, &["model.layers.2.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias"]).unwrap_err();
        assert_eq!(e.kind, ErrorKind::Unsupported);
        assert!(e.message.contains("2 tensors") && e.message.contains("q_proj.bias"), "{e}");
        let e = map(&names[1..], &[]).unwrap_err();
        assert_eq!((e.kind, e.tensor.as_deref()), (ErrorKind::Missing, Some("model.embed_tokens.weight")));
    }
}
