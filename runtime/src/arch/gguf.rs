//! Hyperparameters from GGUF metadata.

use super::config::Config;
use super::find_by_gguf;
use crate::role::{Part, Role};
use crate::spec::{ModelSpec, Rope, RopeScaling};
use bitsmith_formats::{Error, Result, TensorStore};
use serde_json::Value;

impl ModelSpec {
    /// Reads GGUF metadata, given as a JSON object of its scalar keys, and what only the tensors tell: the vocabulary's size, tied
    /// embeddings, biases, rope divisors (`rope_freqs.weight`).
    pub fn from_gguf(metadata: &Value, store: &dyn TensorStore) -> Result<ModelSpec> {
        let c = Config(metadata);
        let arch = find_by_gguf(c.str("general.architecture")?)?;
        let key = |name: &str| format!("{}.{name}", arch.gguf);
        let hidden_size = c.usize(&key("embedding_length"))?;
        let n_heads = c.usize(&key("attention.head_count"))?;
        let head_dim = match c.opt_usize(&key("attention.key_length"))? {
            Some(d) => d,
            None if n_heads != 0 && hidden_size.is_multiple_of(n_heads) => hidden_size / n_heads,
            None => {
                let (a, b) = (key("embedding_length"), key("attention.head_count"));
                return Err(Error::corrupt(format!("key `{a}` ({hidden_size}) is not a multiple of `{b}` ({n_heads})")));
            }
        };
        for name in ["attention.value_length", "rope.dimension_count"] {
            if let Some(d) = c.opt_usize(&key(name))?
                && d != head_dim
            {
                return Err(Error::unsupported(format!(
                    "key `{}` is {d}, not the head width {head_dim}: not supported",
                    key(name)
                )));
            }
        }
        if let Some(n @ 1..) = c.opt_usize(&key("expert_count"))? {
            return Err(Error::unsupported(format!(
                "{n} experts (key `{}`): mixtures of experts are not supported",
                key("expert_count")
            )));
        }
        let embedding = store.find(&Role::global(Part::TokenEmbd).to_string()).ok_or_else(|| {
            Error::missing("the checkpoint lacks this tensor").tensor(Role::global(Part::TokenEmbd).to_string())
        })?;
        let has = |part: Part| {
            let role = if part.per_layer() { Role::layer(0, part) } else { Role::global(part) };
            store.find(&role.to_string()).is_some()
        };
        let mut eos = c.token_ids("tokenizer.ggml.eos_token_id")?;
        for other in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
            eos.extend(c.token_ids(other)?.into_iter().filter(|id| !eos.contains(id)).collect::<Vec<_>>());
        }
        let spec = ModelSpec {
            arch,
            hidden_size,
            n_layers: c.usize(&key("block_count"))?,
            n_heads,
            n_kv_heads: c.opt_usize(&key("attention.head_count_kv"))?.unwrap_or(n_heads),
            head_dim,
            ffn_size: c.usize(&key("feed_forward_length"))?,
            vocab_size: embedding.shape.first().copied().unwrap_or(0),
            context_length: c.usize(&key("context_length"))?,
            rms_eps: c.f64(&key("attention.layer_norm_rms_epsilon"))?,
            rope: Rope { theta: c.opt_f64(&key("rope.freq_base"))?.unwrap_or(10_000.0), scaling: scaling(c, &key, store)? },
            tied: !has(Part::Output),
            qkv_bias: has(Part::AttnQBias),
            attn_output_bias: has(Part::AttnOutputBias),
            mlp_bias: has(Part::FfnGateBias),
            sliding_window: c.opt_usize(&key("attention.sliding_window"))?.filter(|w| *w != 0),
            bos: c.token_ids("tokenizer.ggml.bos_token_id")?.first().copied(),
            eos,
        };
        spec.validate()?;
        Ok(spec)
    }
}

fn scaling(c: Config<'_>, key: &dyn Fn(&str) -> String, store: &dyn TensorStore) -> Result<RopeScaling> {
    if store.find("rope_freqs.weight").is_some() {
        return Ok(RopeScaling::Factors(store.read_f32("rope_freqs.weight")?.1));
    }
    match c.opt_str(&key("rope.scaling.type"))? {
        None | Some("none") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: c.f64(&key("rope.scaling.factor"))? }),
        Some(other) => {
            Err(Error::unsupported(format!("rope scaling `{other}` (key `{}`) is not supported", key("rope.scaling.type")))
                .hint("supported: none, linear, and divisors in `rope_freqs.weight`"))
        }
    }
}
