//! Hyperparameters from GGUF metadata.

use super::config::Config;
use super::find_by_gguf;
use crate::role::{Part, Role};
use crate::spec::{
    Activation, Experts, LayerSpec, LongRope, ModelSpec, Norm, NormKind, Pooling, Rope, RopeScaling, Scales, Scoring, Yarn,
};
use bitsmith_formats::{Error, Result, TensorStore};
use serde_json::Value;
use std::collections::BTreeSet;

/// GGUF metadata with the architecture's name in front of keys, and the tensors beside them.
#[derive(Clone, Copy)]
pub struct GgufKeys<'a> {
    metadata: &'a Value,
    arch: &'static str,
    /// The file's tensors.
    pub store: &'a dyn TensorStore,
}

impl GgufKeys<'_> {
    /// The full name of a key.
    pub fn key(self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }
    /// A whole number that must be there.
    pub fn usize(self, name: &str) -> Result<usize> {
        Config(self.metadata).usize(&self.key(name))
    }
    /// A whole number.
    pub fn opt_usize(self, name: &str) -> Result<Option<usize>> {
        Config(self.metadata).opt_usize(&self.key(name))
    }
    /// A finite number that must be there.
    pub fn f64(self, name: &str) -> Result<f64> {
        Config(self.metadata).f64(&self.key(name))
    }
    /// A finite number.
    pub fn opt_f64(self, name: &str) -> Result<Option<f64>> {
        Config(self.metadata).opt_f64(&self.key(name))
    }
    /// A list of truth values.
    pub fn opt_bools(self, name: &str) -> Result<Option<Vec<bool>>> {
        let key = self.key(name);
        let Some(Value::Array(list)) = self.metadata.get(&key) else { return Ok(None) };
        let all: Option<Vec<bool>> = list.iter().map(Value::as_bool).collect();
        all.map(Some).ok_or_else(|| Error::corrupt(format!("key `{key}` is not a list of truth values")))
    }
    /// A list of whole numbers that must be there.
    pub fn usizes(self, name: &str) -> Result<Vec<usize>> {
        let key = self.key(name);
        let list = self.metadata.get(&key).and_then(|list| serde_json::from_value(list.clone()).ok());
        list.ok_or_else(|| Error::corrupt(format!("key `{key}` is missing or not a list of whole numbers")))
    }
    /// A string.
    pub fn opt_str(self, name: &str) -> Result<Option<String>> {
        Ok(Config(self.metadata).opt_str(&self.key(name))?.map(String::from))
    }
    /// A truth value.
    pub fn opt_bool(self, name: &str) -> Result<Option<bool>> {
        Config(self.metadata).opt_bool(&self.key(name))
    }
    /// The values of a tensor outside the layers, if the file has it.
    pub fn tensor(self, name: &str) -> Result<Option<Vec<f32>>> {
        self.store.find(name).map(|_| Ok(self.store.read_f32(name)?.1)).transpose()
    }
    /// The shape of a role's tensor, if the file has it.
    pub fn shape(self, role: Role) -> Option<Vec<usize>> {
        self.store.find(&role.to_string()).map(|t| t.shape.clone())
    }
}

impl ModelSpec {
    /// Reads GGUF metadata, given as a JSON object of its scalar keys, and what only the tensors tell: which parts the model has, the
    /// vocabulary's size, rope divisors.
    pub fn from_gguf(metadata: &Value, store: &dyn TensorStore) -> Result<ModelSpec> {
        let c = Config(metadata);
        let arch = find_by_gguf(c.str("general.architecture")?)?;
        let keys = GgufKeys { metadata, arch: arch.gguf, store };
        let hidden_size = keys.usize("embedding_length")?;
        let n_heads = keys.usize("attention.head_count")?;
        let head_dim = match keys.opt_usize("attention.key_length")? {
            Some(d) => d,
            None if n_heads != 0 && hidden_size.is_multiple_of(n_heads) => hidden_size / n_heads,
            None => {
                let (a, b) = (keys.key("embedding_length"), keys.key("attention.head_count"));
                return Err(Error::corrupt(format!("key `{a}` ({hidden_size}) is not a multiple of `{b}` ({n_heads})")));
            }
        };
        // Layers after the last predict further tokens.
        let n_layers = keys.usize("block_count")?.saturating_sub(keys.opt_usize("nextn_predict_layers")?.unwrap_or(0));
        let parts = parts(store);
        let embedding = Role::global(Part::TokenEmbd);
        let vocab_size = keys
            .shape(embedding)
            .ok_or_else(|| Error::missing("the checkpoint lacks this tensor").tensor(embedding.to_string()))?
            .first()
            .copied()
            .unwrap_or(0);
        let ffn_size = keys.opt_usize("feed_forward_length")?;
        let experts = experts(keys)?;
        let mixture = |layer| keys.shape(Role::layer(layer, Part::FfnDownExps)).is_some();
        let layers: Vec<LayerSpec> =
            (0..n_layers.min(1 << 14)).map(|l| LayerSpec { mixture: mixture(l), ..LayerSpec::PLAIN }).collect();
        let mut eos = c.token_ids("tokenizer.ggml.eos_token_id")?;
        for other in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
            eos.extend(c.token_ids(other)?.into_iter().filter(|id| !eos.contains(id)).collect::<Vec<_>>());
        }
        let up = layers.iter().position(|l| !l.mixture).and_then(|l| keys.shape(Role::layer(l, Part::FfnUp)));
        let fused_gate =
            up.is_some_and(|s| ffn_size.is_some_and(|f| !parts.contains(&Part::FfnGate) && s[0] == f.saturating_mul(2)));
        let sliding_window = keys.opt_usize("attention.sliding_window")?.filter(|w| *w != 0);
        let dims = keys.opt_usize("rope.dimension_count")?.unwrap_or(head_dim);
        let theta = keys.opt_f64("rope.freq_base")?.unwrap_or(10_000.0);
        let mut spec = ModelSpec {
            arch,
            hidden_size,
            n_layers,
            mtp_layers: 0,
            mtp_only: false,
            n_heads,
            n_kv_heads: keys.opt_usize("attention.head_count_kv")?.unwrap_or(n_heads),
            head_dim,
            v_head_dim: keys.opt_usize("attention.value_length")?.unwrap_or(head_dim),
            ffn_size: match (ffn_size, &experts) {
                (Some(size), _) => size,
                (None, Some(experts)) => experts.ffn_size,
                (None, None) => keys.usize("feed_forward_length")?,
            },
            vocab_size,
            context_length: keys.usize("context_length")?,
            norm: norm(keys)?,
            activation: Activation::Silu,
            fused_gate,
            causal: true,
            parallel: false,
            rope: Rope { theta, dims, interleaved: false, scaling: scaling(keys)? },
            local_rope: None,
            tied: !parts.contains(&Part::Output),
            parts,
            sliding_window,
            layers: layers.into_iter().map(|l| LayerSpec { window: sliding_window.is_some(), ..l }).collect(),
            scales: Scales {
                embedding: keys.opt_f64("embedding_scale")?.unwrap_or(1.0) as f32,
                residual: keys.opt_f64("residual_scale")?.unwrap_or(1.0) as f32,
                attention: keys.opt_f64("attention.scale")?.filter(|s| *s != 0.0).map(|s| s as f32),
                logits: keys.opt_f64("logit_scale")?.unwrap_or(1.0) as f32,
            },
            chunked: false,
            qk_unit_norm: false,
            temperature: None,
            attention_softcap: keys.opt_f64("attn_logit_softcapping")?.map(|c| c as f32),
            logit_softcap: keys.opt_f64("final_logit_softcapping")?.map(|c| c as f32),
            experts,
            latent: None,
            pooling: Pooling::None,
            bos: c.token_ids("tokenizer.ggml.bos_token_id")?.first().copied(),
            eos,
        };
        (arch.from_gguf)(&mut spec, keys)?;
        spec.validate()?;
        Ok(spec)
    }
}

/// The parts whose tensors the file has.
fn parts(store: &dyn TensorStore) -> BTreeSet<Part> {
    let part = |name: &str| {
        let inner = name.strip_prefix("blk.").and_then(|rest| Some(rest.split_once('.')?.1)).unwrap_or(name);
        let part: Part = inner.strip_suffix(".weight").unwrap_or(inner).parse().ok()?;
        (part.per_layer() == (inner.len() != name.len())).then_some(part)
    };
    store.tensors().iter().filter_map(|t| part(&t.name)).collect()
}

fn norm(keys: GgufKeys<'_>) -> Result<Norm> {
    match keys.opt_f64("attention.layer_norm_epsilon")? {
        Some(eps) if keys.opt_f64("attention.layer_norm_rms_epsilon")?.is_none() => Ok(Norm::layer(eps)),
        _ => Ok(Norm { kind: NormKind::Rms, eps: keys.f64("attention.layer_norm_rms_epsilon")?, offset: 0.0 }),
    }
}

/// Keys that all mixtures share; what remains is the architecture's to say.
fn experts(keys: GgufKeys<'_>) -> Result<Option<Experts>> {
    let Some(count @ 1..) = keys.opt_usize("expert_count")? else { return Ok(None) };
    let ffn_size = match keys.opt_usize("expert_feed_forward_length")? {
        Some(size) => size,
        None => keys.usize("feed_forward_length")?,
    };
    let shared = match keys.opt_usize("expert_shared_feed_forward_length")? {
        Some(size) => size,
        None => keys.opt_usize("expert_shared_count")?.unwrap_or(0).saturating_mul(ffn_size),
    };
    let used = keys.usize("expert_used_count")?;
    Ok(Some(Experts {
        shared_ffn_size: shared,
        scoring: match keys.opt_usize("expert_gating_func")? {
            None | Some(0 | 1) => Scoring::Softmax,
            Some(2) => Scoring::Sigmoid,
            Some(3) => Scoring::SoftmaxChosen,
            Some(other) => {
                let key = keys.key("expert_gating_func");
                return Err(Error::unsupported(format!("routing of kind {other} (key `{key}`) is not supported")));
            }
        },
        normalize: keys.opt_bool("expert_weights_norm")?.unwrap_or(false),
        scale: keys.opt_f64("expert_weights_scale")?.filter(|s| *s != 0.0).unwrap_or(1.0) as f32,
        ..Experts::new(count, used, ffn_size)
    }))
}

fn scaling(keys: GgufKeys<'_>) -> Result<RopeScaling> {
    if let Some(divisors) = keys.tensor("rope_freqs.weight")? {
        return Ok(RopeScaling::Factors(divisors));
    }
    let original = || match keys.opt_usize("rope.scaling.original_context_length")? {
        Some(n) => Ok(n),
        None => keys.usize("context_length"),
    };
    let factor = || keys.f64("rope.scaling.factor");
    let attention_factor = keys.opt_f64("rope.scaling.attn_factor")?;
    if let (Some(short), Some(long)) = (keys.tensor("rope_factors_short.weight")?, keys.tensor("rope_factors_long.weight")?) {
        let attention_factor = attention_factor.unwrap_or(1.0);
        return Ok(RopeScaling::Long(LongRope { short, long, original_context: original()?, attention_factor }));
    }
    match keys.opt_str("rope.scaling.type")?.as_deref() {
        None | Some("none") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: factor()? }),
        Some("yarn") => {
            let factor = factor()?;
            Ok(RopeScaling::Yarn(Yarn {
                factor,
                original_context: original()?,
                beta_fast: keys.opt_f64("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: keys.opt_f64("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                attention_factor: attention_factor.unwrap_or(1.0) * (1.0 + 0.1 * factor.ln()),
                truncate: true,
                mscale_all_dim: 0.0,
            }))
        }
        Some(other) => {
            let key = keys.key("rope.scaling.type");
            Err(Error::unsupported(format!("rope scaling `{other}` (key `{key}`) is not supported"))
                .hint("supported: none, linear, yarn, longrope, and divisors in `rope_freqs.weight`"))
        }
    }
}
