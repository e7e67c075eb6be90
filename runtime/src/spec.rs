//! A model's hyperparameters, read from any container through the architecture table.

use crate::arch::Architecture;
use crate::role::{Part, Role};
use bitsmith_formats::{Error, Result};

/// Everything that the graph needs to know about a model besides its weights.
#[derive(Debug, Clone)]
pub struct ModelSpec {
    /// The architecture's table entry.
    pub arch: &'static Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Decoder layers.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Width of one head (explicit in some configs, `hidden_size / n_heads` otherwise).
    pub head_dim: usize,
    /// Width of the feed-forward block.
    pub ffn_size: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest context the model was trained for, in tokens.
    pub context_length: usize,
    /// Epsilon of the RMS norms.
    pub rms_eps: f64,
    /// Rotary embedding.
    pub rope: Rope,
    /// Whether the output matrix is the embedding.
    pub tied: bool,
    /// Biases on q, k, v.
    pub qkv_bias: bool,
    /// Bias on the attention output projection.
    pub attn_output_bias: bool,
    /// Biases on gate, up, down.
    pub mlp_bias: bool,
    /// Tokens a query may look back, itself included, if limited.
    pub sliding_window: Option<usize>,
    /// Beginning-of-sequence token.
    pub bos: Option<u32>,
    /// End-of-sequence tokens, the principal one first.
    pub eos: Vec<u32>,
}

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base frequency.
    pub theta: f64,
    /// Change of the frequencies for long contexts.
    pub scaling: RopeScaling,
}

/// Rope frequency scaling.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3's: long wavelengths divided by `factor`, short ones kept, a smooth ramp between.
    Llama3 {
        /// The divisor of long wavelengths.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Context length before scaling, in tokens.
        original_context: usize,
    },
    /// One divisor per frequency, as GGUF's `rope_freqs.weight` gives them, `head_dim / 2` values.
    Factors(Vec<f32>),
}

impl ModelSpec {
    /// The tensors this model must have, in GGUF's customary order.
    pub fn roles(&self) -> Vec<Role> {
        Role::all(self.n_layers).filter(|r| self.has(r.part)).collect()
    }
    /// Whether the model has this part.
    pub fn has(&self, part: Part) -> bool {
        match part {
            Part::Output => !self.tied,
            Part::AttnQBias | Part::AttnKBias | Part::AttnVBias => self.qkv_bias,
            Part::AttnOutputBias => self.attn_output_bias,
            Part::AttnQNorm | Part::AttnKNorm => self.arch.qk_norm,
            Part::FfnGateBias | Part::FfnUpBias | Part::FfnDownBias => self.mlp_bias,
            _ => true,
        }
    }
    /// The shape of a part's tensor: `(out, in)` for matrices.
    pub fn shape(&self, part: Part) -> Vec<usize> {
        let (h, f, q, kv) = (self.hidden_size, self.ffn_size, self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim);
        match part {
            Part::TokenEmbd | Part::Output => vec![self.vocab_size, h],
            Part::OutputNorm | Part::AttnNorm | Part::FfnNorm | Part::AttnOutputBias | Part::FfnDownBias => vec![h],
            Part::AttnQ => vec![q, h],
            Part::AttnK | Part::AttnV => vec![kv, h],
            Part::AttnOutput => vec![h, q],
            Part::AttnQBias => vec![q],
            Part::AttnKBias | Part::AttnVBias => vec![kv],
            Part::AttnQNorm | Part::AttnKNorm => vec![self.head_dim],
            Part::FfnGate | Part::FfnUp => vec![f, h],
            Part::FfnDown => vec![h, f],
            Part::FfnGateBias | Part::FfnUpBias => vec![f],
        }
    }
    /// The part whose matrix makes the logits: the output matrix, or the tied embedding.
    pub fn head_part(&self) -> Part {
        if self.tied { Part::TokenEmbd } else { Part::Output }
    }
    /// Number of weights.
    pub fn n_weights(&self) -> usize {
        self.roles().iter().map(|r| self.shape(r.part).iter().product::<usize>()).sum()
    }
    /// Checks that the numbers fit together and are small enough that no shape overflows. Every reader of a container calls it.
    pub fn validate(&self) -> Result<()> {
        let bounded = [
            ("hidden_size", self.hidden_size, 1 << 20),
            ("number of layers", self.n_layers, 1 << 14),
            ("number of attention heads", self.n_heads, 1 << 14),
            ("number of key and value heads", self.n_kv_heads, 1 << 14),
            ("head_dim", self.head_dim, 1 << 14),
            ("feed-forward size", self.ffn_size, 1 << 22),
            ("vocabulary size", self.vocab_size, 1 << 26),
            ("context length", self.context_length, 1 << 30),
            ("sliding window", self.sliding_window.unwrap_or(1), usize::MAX),
        ];
        for (name, value, limit) in bounded {
            if value == 0 || value > limit {
                return Err(Error::corrupt(format!("{name} is {value}, outside 1 to {limit}")));
            }
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let (q, kv) = (self.n_heads, self.n_kv_heads);
            return Err(Error::corrupt(format!("{q} attention heads cannot share {kv} key and value heads evenly")));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(Error::corrupt(format!("head_dim {} is odd: rotary embedding needs pairs", self.head_dim)));
        }
        let positive = |name: &str, v: f64| {
            let ok = v.is_finite() && v > 0.0;
            if ok { Ok(()) } else { Err(Error::corrupt(format!("{name} is {v}, not a positive number"))) }
        };
        if !(self.rms_eps.is_finite() && self.rms_eps >= 0.0) {
            return Err(Error::corrupt(format!("epsilon of the norms is {}", self.rms_eps)));
        }
        positive("rope base frequency", self.rope.theta)?;
        match &self.rope.scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => positive("rope scaling factor", *factor)?,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                positive("rope scaling factor", *factor)?;
                positive("low_freq_factor", *low_freq_factor)?;
                positive("original context of the rope scaling", *original_context as f64)?;
                if high_freq_factor.is_nan() || high_freq_factor <= low_freq_factor {
                    return Err(Error::corrupt(format!(
                        "high_freq_factor {high_freq_factor} is not above low_freq_factor {low_freq_factor}"
                    )));
                }
            }
            RopeScaling::Factors(divisors) => {
                if divisors.len() != self.head_dim / 2 {
                    let (got, want) = (divisors.len(), self.head_dim / 2);
                    return Err(Error::corrupt(format!("{got} values, expected {want}")).tensor("rope_freqs.weight"));
                }
                for d in divisors {
                    positive("rope divisor", f64::from(*d)).map_err(|e| e.tensor("rope_freqs.weight"))?;
                }
            }
        }
        Ok(())
    }
}
