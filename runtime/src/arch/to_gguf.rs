//! Hyperparameters as GGUF metadata.

use crate::spec::{ModelSpec, NormKind, RopeScaling, Scoring};
use bitsmith_formats::gguf::Value;
use bitsmith_formats::{Error, Result};

/// Architectures of which llama.cpp reads the divisors of frequencies, and those of texts beyond the original context.
const WITH_DIVISORS: &[&str] = &["llama", "llama4", "granite", "granitemoe"];
const WITH_LONG_DIVISORS: &[&str] = &["llama", "phi3", "granite", "granitemoe"];

/// The error for what llama.cpp does not do, or a GGUF cannot say.
fn inexpressible(spec: &ModelSpec, what: &str) -> Error {
    Error::unsupported(format!("llama.cpp knows no {what} in architecture `{}`", spec.arch.gguf))
        .hint("an MLX or Hugging Face target keeps the model as it is")
}

/// Refuses models whose output matrix is the embedding: llama.cpp wants one of its own.
pub(super) fn refuse_tied(spec: &ModelSpec) -> Result<()> {
    if spec.tied { Err(inexpressible(spec, "output matrix that is the embedding")) } else { Ok(()) }
}

/// Refuses models with an output matrix: llama.cpp always takes the embedding.
pub(super) fn refuse_untied(spec: &ModelSpec) -> Result<()> {
    if spec.tied { Ok(()) } else { Err(inexpressible(spec, "output matrix beside the embedding")) }
}

fn refuse_scaling(spec: &ModelSpec) -> Result<()> {
    let (kind, readers) = match &spec.rope.scaling {
        // There are keys for the ramp's ends, but llama.cpp reads them in other architectures only.
        RopeScaling::Yarn(y) if (y.beta_fast, y.beta_slow) != (32.0, 1.0) => {
            return Err(inexpressible(spec, "YaRN with `beta_fast` other than 32 or `beta_slow` other than 1"));
        }
        RopeScaling::Long(_) => ("longrope", WITH_LONG_DIVISORS),
        RopeScaling::Llama3 { .. } | RopeScaling::Factors(_) => ("divisors of the rope's frequencies (`llama3`)", WITH_DIVISORS),
        _ => return Ok(()),
    };
    if readers.contains(&spec.arch.gguf) { Ok(()) } else { Err(inexpressible(spec, kind)) }
}

impl ModelSpec {
    /// The model's hyperparameters as GGUF's keys. An error says what there is no key for.
    pub fn gguf_metadata(&self) -> Result<Vec<(String, Value)>> {
        refuse_scaling(self)?;
        let mut keys: Vec<(&'static str, Value)> = Vec::new();
        let mut number = |name, value: usize| keys.push((name, Value::U32(value.min(u32::MAX as usize) as u32)));
        number("block_count", self.n_layers + self.mtp_layers);
        if self.mtp_layers > 0 {
            number("nextn_predict_layers", self.mtp_layers);
        }
        number("context_length", self.context_length);
        number("embedding_length", self.hidden_size);
        number("feed_forward_length", self.ffn_size);
        number("attention.head_count", self.n_heads);
        number("attention.head_count_kv", self.n_kv_heads);
        number("attention.key_length", self.head_dim);
        number("attention.value_length", self.v_head_dim);
        if self.rope.dims > 0 {
            number("rope.dimension_count", self.rope.dims);
        }
        number("vocab_size", self.vocab_size);
        if let Some(window) = self.sliding_window {
            number("attention.sliding_window", window);
        }
        if let Some(e) = &self.experts {
            number("expert_count", e.count);
            number("expert_used_count", e.used);
            number("expert_feed_forward_length", e.ffn_size);
            if e.shared_ffn_size > 0 {
                number("expert_shared_feed_forward_length", e.shared_ffn_size);
            }
            let gating = match e.scoring {
                Scoring::Softmax => None,
                Scoring::Sigmoid => Some(2),
                Scoring::SoftmaxChosen => Some(3),
            };
            gating.into_iter().for_each(|kind| number("expert_gating_func", kind));
        }
        if self.rope.dims > 0 {
            keys.push(("rope.freq_base", Value::F32(self.rope.theta as f32)));
        }
        let eps = match self.norm.kind {
            NormKind::Rms => "attention.layer_norm_rms_epsilon",
            NormKind::Layer => "attention.layer_norm_epsilon",
        };
        keys.push((eps, Value::F32(self.norm.eps as f32)));
        keys.extend(scaling(&self.rope.scaling));
        let caps = [("attn_logit_softcapping", self.attention_softcap), ("final_logit_softcapping", self.logit_softcap)];
        keys.extend(caps.into_iter().filter_map(|(name, cap)| Some((name, Value::F32(cap?)))));
        for (name, value) in (self.arch.gguf_keys)(self)? {
            match keys.iter_mut().find(|(n, _)| *n == name) {
                Some(entry) => entry.1 = value,
                None => keys.push((name, value)),
            }
        }
        Ok(keys.into_iter().map(|(name, value)| (format!("{}.{name}", self.arch.gguf), value)).collect())
    }

    /// Tensors of rope divisors that a GGUF of this model has: names and values.
    pub fn gguf_rope_tensors(&self) -> Vec<(&'static str, Vec<f32>)> {
        match &self.rope.scaling {
            RopeScaling::Long(l) => {
                vec![("rope_factors_long.weight", l.long.clone()), ("rope_factors_short.weight", l.short.clone())]
            }
            _ => self.rope.factors().into_iter().map(|f| ("rope_freqs.weight", f)).collect(),
        }
    }
}

fn scaling(scaling: &RopeScaling) -> Vec<(&'static str, Value)> {
    let kind = |name: &str| ("rope.scaling.type", Value::from(name));
    let float = |name, value: f64| (name, Value::F32(value as f32));
    let original = |n: usize| ("rope.scaling.original_context_length", Value::U32(n as u32));
    match scaling {
        // llama.cpp has no dynamic base: within the original context, which is what a GGUF names, there is no difference.
        RopeScaling::None | RopeScaling::Dynamic { .. } | RopeScaling::Llama3 { .. } | RopeScaling::Factors(_) => Vec::new(),
        // A key of the architecture that has them.
        RopeScaling::Sections(_) => Vec::new(),
        RopeScaling::Linear { factor } => vec![kind("linear"), float("rope.scaling.factor", *factor)],
        RopeScaling::Yarn(y) => {
            let mut keys = vec![kind("yarn"), float("rope.scaling.factor", y.factor), original(y.original_context)];
            // llama.cpp multiplies by 1 + 0.1 ln factor of its own accord.
            let own = y.attention_factor / (1.0 + 0.1 * y.factor.ln());
            if (own - 1.0).abs() > 1e-6 {
                keys.push(float("rope.scaling.attn_factor", own));
            }
            keys.push(float("rope.scaling.yarn_beta_fast", y.beta_fast));
            keys.push(float("rope.scaling.yarn_beta_slow", y.beta_slow));
            keys
        }
        RopeScaling::Long(l) => {
            vec![kind("longrope"), original(l.original_context), float("rope.scaling.attn_factor", l.attention_factor)]
        }
    }
}
