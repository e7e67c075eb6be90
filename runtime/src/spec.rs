//! A model's hyperparameters, read from any container through the architecture table.

mod experts;
mod rope;

use crate::arch::{Architecture, QkNorm};
use crate::role::{Part, Role};
use bitsmith_formats::{Error, Result};
pub use experts::{Experts, Groups, Scoring};
pub use rope::{LongRope, Rope, RopeScaling, Yarn};
use std::collections::BTreeSet;

/// Everything that the graph needs to know about a model besides its weights.
#[derive(Debug, Clone)]
pub struct ModelSpec {
    /// The architecture's table entry.
    pub arch: &'static Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Decoder layers.
    pub n_layers: usize,
    /// Layers after the last, by which the model was trained to predict further tokens (MTP). They are carried and not run.
    pub mtp_layers: usize,
    /// Whether the decoder layers are left out: a file of [`ModelSpec::mtp_layers`] alone, with what stands outside the layers.
    pub mtp_only: bool,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Width of a query's and a key's head (explicit in some configs, `hidden_size / n_heads` otherwise).
    pub head_dim: usize,
    /// Width of a value's head; that of keys in all but latent attention.
    pub v_head_dim: usize,
    /// Width of the feed-forward block.
    pub ffn_size: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest context the model was trained for, in tokens.
    pub context_length: usize,
    /// All norms.
    pub norm: Norm,
    /// Of the feed-forward block.
    pub activation: Activation,
    /// Whether up holds the gate's rows and then its own, one matrix of `2 × ffn_size` rows.
    pub fused_gate: bool,
    /// Whether tokens see earlier tokens only; otherwise all of them (encoders).
    pub causal: bool,
    /// Whether attention and feed-forward block both read the layer's input, and their outputs are added together.
    pub parallel: bool,
    /// Rotary embedding of layers with [`RopeUse::Global`].
    pub rope: Rope,
    /// Rotary embedding of layers with [`RopeUse::Local`], where it differs.
    pub local_rope: Option<Rope>,
    /// Whether the output matrix is the embedding.
    pub tied: bool,
    /// The parts that the model has; those of the feed-forward block in the layers of their kind.
    pub parts: BTreeSet<Part>,
    /// Tokens that a query may look back, itself included, in layers with a window.
    pub sliding_window: Option<usize>,
    /// Whether windows are chunks: a query sees the keys since the last multiple of [`ModelSpec::sliding_window`].
    pub chunked: bool,
    /// Whether queries and keys of rotated layers are normed once more after that, without weights, by their root mean square.
    pub qk_unit_norm: bool,
    /// What makes queries of layers without rotation larger the further they are in a text.
    pub temperature: Option<Temperature>,
    /// What differs between layers, one entry each; those of [`ModelSpec::mtp_layers`] last.
    pub layers: Vec<LayerSpec>,
    /// Constant factors.
    pub scales: Scales,
    /// Attention scores become `c tanh(score / c)`.
    pub attention_softcap: Option<f32>,
    /// Logits become `c tanh(logit / c)`.
    pub logit_softcap: Option<f32>,
    /// The mixture of experts, if the model has one.
    pub experts: Option<Experts>,
    /// Latent attention, if the model has it.
    pub latent: Option<Latent>,
    /// How an encoder makes one embedding of a text.
    pub pooling: Pooling,
    /// Beginning-of-sequence token.
    pub bos: Option<u32>,
    /// End-of-sequence tokens, the principal one first.
    pub eos: Vec<u32>,
}

/// The norms of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// What is normed away.
    pub kind: NormKind,
    /// Added to the variance or mean square.
    pub eps: f64,
    /// Added to every weight (Gemma's weights are stored less one).
    pub offset: f32,
}

impl Norm {
    /// An RMS norm as most models have it.
    pub const fn rms(eps: f64) -> Norm {
        Norm { kind: NormKind::Rms, eps, offset: 0.0 }
    }
    /// A layer norm.
    pub const fn layer(eps: f64) -> Norm {
        Norm { kind: NormKind::Layer, eps, offset: 0.0 }
    }
}

/// Kinds of norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// Divides by the root of the mean square.
    Rms,
    /// Subtracts the mean and divides by the standard deviation.
    Layer,
}

/// What the feed-forward block does to its gate, or to up where there is no gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · Φ(x)`, exact.
    Gelu,
    /// `x · Φ(x)` by its approximation with tanh.
    GeluTanh,
    /// gpt-oss: gate at most 7, up within ±7, `gate · sigmoid(1.702 gate) · (up + 1)`.
    SwigluOai,
}

/// What differs between layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerSpec {
    /// Whether attention looks back [`ModelSpec::sliding_window`] tokens only.
    pub window: bool,
    /// Which rotary embedding.
    pub rope: RopeUse,
    /// Whether the feed-forward block is a mixture of experts.
    pub mixture: bool,
}

impl LayerSpec {
    /// Full attention, rotated, dense.
    pub const PLAIN: LayerSpec = LayerSpec { window: false, rope: RopeUse::Global, mixture: false };
}

/// How an encoder's hidden states become the embedding of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// They do not.
    None,
    /// Their mean.
    Mean,
    /// The first token's.
    Cls,
}

impl Pooling {
    /// `none`, `mean` or `cls`.
    pub const fn name(self) -> &'static str {
        match self {
            Pooling::None => "none",
            Pooling::Mean => "mean",
            Pooling::Cls => "cls",
        }
    }
}

/// Which rotary embedding a layer uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeUse {
    /// None.
    None,
    /// [`ModelSpec::rope`].
    Global,
    /// [`ModelSpec::local_rope`].
    Local,
}

/// Constant factors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scales {
    /// Of embeddings.
    pub embedding: f32,
    /// Of what attention and feed-forward block add to the residual stream.
    pub residual: f32,
    /// Of attention scores; `1 / √head_dim` if absent.
    pub attention: Option<f32>,
    /// Of logits.
    pub logits: f32,
}

impl Default for Scales {
    fn default() -> Self {
        Scales { embedding: 1.0, residual: 1.0, attention: None, logits: 1.0 }
    }
}

/// Growth of queries with their position `p`, from 0: by `1 + scale · ln(1 + ⌊(p + 1) / step⌋)` (Llama 4).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Temperature {
    /// Tokens between changes.
    pub step: f64,
    /// How fast.
    pub scale: f64,
}

impl Temperature {
    /// The factor at a position.
    pub fn factor(self, position: usize) -> f32 {
        (1.0 + self.scale * (((position + 1) as f64 / self.step).floor() + 1.0).ln()) as f32
    }
}

/// Multi-head latent attention (DeepSeek): keys and values are made from a narrow latent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latent {
    /// Width of the queries' latent; `None`: queries are projected directly.
    pub q_rank: Option<usize>,
    /// Width of the keys' and values' latent.
    pub kv_rank: usize,
    /// Width of the part of a head that is rotated, which all heads' keys share.
    pub rope_dim: usize,
}

impl ModelSpec {
    /// The tensors this model must have, in GGUF's customary order.
    pub fn roles(&self) -> Vec<Role> {
        Role::all(self.n_layers + self.mtp_layers).filter(|r| self.has_role(*r)).collect()
    }
    /// The parts of one decoder layer.
    pub fn layer_parts(&self, layer: usize) -> impl Iterator<Item = Part> + '_ {
        let mixture = self.layers.get(layer).is_some_and(|l| l.mixture);
        self.parts.iter().copied().filter(move |p| p.in_layer(mixture))
    }
    /// Whether any layer, or the model as a whole, has this part.
    pub fn has(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }
    /// Whether the model has this tensor.
    pub fn has_role(&self, role: Role) -> bool {
        self.has(role.part)
            && match role.layer {
                Some(layer) if self.mtp_only && layer < self.n_layers => false,
                Some(layer) if role.part.in_extra_layer() => self.is_extra(layer),
                Some(layer) => self.layers.get(layer).is_some_and(|l| role.part.in_layer(l.mixture)),
                None => !role.part.per_layer(),
            }
    }
    /// Whether this is a layer after the last.
    pub fn is_extra(&self, layer: usize) -> bool {
        (self.n_layers..self.n_layers + self.mtp_layers).contains(&layer)
    }
    /// The same model with so many layers after the last, like the last but for these parts.
    pub fn with_mtp(&self, layers: usize, parts: &[Part]) -> ModelSpec {
        let mut spec = self.without_mtp();
        if let Some(last) = spec.layers.last().copied().filter(|_| layers > 0) {
            spec.layers.extend(std::iter::repeat_n(last, layers));
            spec.mtp_layers = layers;
            spec.add(parts);
        }
        spec
    }
    /// The same model without layers after the last.
    pub fn without_mtp(&self) -> ModelSpec {
        let mut spec = self.clone();
        spec.layers.truncate(self.n_layers);
        spec.mtp_layers = 0;
        spec.parts.retain(|p| !p.in_extra_layer());
        spec
    }
    /// Adds these parts.
    pub fn add(&mut self, parts: &[Part]) {
        self.parts.extend(parts);
    }
    /// Removes these parts.
    pub fn remove(&mut self, parts: &[Part]) {
        self.parts.retain(|p| !parts.contains(p));
    }
    /// The width of all queries together.
    pub fn q_width(&self) -> usize {
        self.n_heads * self.head_dim
    }
    /// The shape of a part's tensor: `(out, in)` for matrices, `(experts, out, in)` for those of experts.
    pub fn shape(&self, part: Part) -> Vec<usize> {
        use Part::*;
        let (h, f, q) = (self.hidden_size, self.ffn_size, self.q_width());
        let (k, v) = (self.n_kv_heads * self.head_dim, self.n_kv_heads * self.v_head_dim);
        let latent = self.latent.unwrap_or(Latent { q_rank: None, kv_rank: 0, rope_dim: 0 });
        let q_rank = latent.q_rank.unwrap_or(0);
        let (experts, ef, sf) = self.experts.as_ref().map_or((0, 0, 0), |e| (e.count, e.ffn_size, e.shared_ffn_size));
        match part {
            TokenEmbd | Output => vec![self.vocab_size, h],
            PositionEmbd => vec![self.context_length, h],
            TokenTypes => vec![2, h],
            OutputBias => vec![self.vocab_size],
            AttnQ => vec![q, h],
            AttnK => vec![k, h],
            AttnV => vec![v, h],
            AttnQkv => vec![q + k + v, h],
            AttnQA => vec![q_rank, h],
            AttnQB => vec![q, q_rank],
            AttnKvA => vec![latent.kv_rank + latent.rope_dim, h],
            AttnKB => vec![self.n_heads, latent.kv_rank, self.head_dim.saturating_sub(latent.rope_dim)],
            AttnVB => vec![self.n_heads, self.v_head_dim, latent.kv_rank],
            AttnOutput => vec![h, self.n_heads * self.v_head_dim],
            AttnQBias => vec![q],
            AttnKBias => vec![k],
            AttnVBias => vec![v],
            AttnQkvBias => vec![q + k + v],
            AttnQNorm | AttnQNormBias => self.qk_norm_shape(self.n_heads),
            AttnKNorm | AttnKNormBias => self.qk_norm_shape(self.n_kv_heads),
            AttnQANorm => vec![q_rank],
            AttnKvANorm => vec![latent.kv_rank],
            AttnSinks => vec![self.n_heads],
            FfnGate => vec![f, h],
            FfnUp if self.fused_gate => vec![2 * f, h],
            FfnUp => vec![f, h],
            FfnDown => vec![h, f],
            FfnGateBias => vec![f],
            FfnUpBias if self.fused_gate => vec![2 * f],
            FfnUpBias => vec![f],
            FfnGateInp => vec![experts, h],
            FfnGateInpShexp => vec![1, h],
            FfnGateInpBias | ExpProbsBias => vec![experts],
            FfnGateExps | FfnUpExps => vec![experts, ef, h],
            FfnDownExps => vec![experts, h, ef],
            FfnGateExpsBias | FfnUpExpsBias => vec![experts, ef],
            FfnDownExpsBias => vec![experts, h],
            NextnProj => vec![h, 2 * h],
            NextnEmbd | NextnOutput => vec![self.vocab_size, h],
            FfnGateShexp | FfnUpShexp => vec![sf, h],
            FfnDownShexp => vec![h, sf],
            EmbdNorm | EmbdNormBias | OutputNorm | OutputNormBias | AttnNorm | AttnNormBias | AttnOutputBias | AttnPostNorm
            | AttnResidualNorm | AttnResidualNormBias | FfnNorm | FfnNormBias | FfnDownBias | FfnPostNorm | LayerOutputNorm
            | LayerOutputNormBias | NextnEmbdNorm | NextnHiddenNorm | NextnOutputNorm => vec![h],
        }
    }
    fn qk_norm_shape(&self, heads: usize) -> Vec<usize> {
        match self.arch.qk_norm {
            QkNorm::Head => vec![self.head_dim],
            QkNorm::EachHead => vec![heads, self.head_dim],
            QkNorm::Wide => vec![heads * self.head_dim],
        }
    }
    /// The part whose matrix makes the logits: the output matrix, or the tied embedding.
    pub fn head_part(&self) -> Part {
        if self.tied { Part::TokenEmbd } else { Part::Output }
    }
    /// Refuses encoders, which have no next-token distribution: no logits, no perplexity, no text.
    pub fn require_head(&self) -> Result<()> {
        if self.causal {
            return Ok(());
        }
        let what = format!(
            "architecture `{}` is an encoder: it predicts no next token, so it has no logits or perplexity",
            self.arch.name
        );
        Err(Error::unsupported(what).hint("`bitsmith embed` prints its hidden states and embeddings"))
    }
    /// Weights of a tensor.
    pub fn numel(&self, part: Part) -> usize {
        self.shape(part).iter().product()
    }
    /// Number of weights.
    pub fn n_weights(&self) -> usize {
        self.roles().iter().map(|r| self.numel(r.part)).sum()
    }
    /// Weights of the largest decoder layer.
    pub fn largest_layer(&self) -> usize {
        (0..self.n_layers).map(|l| self.layer_parts(l).map(|p| self.numel(p)).sum()).max().unwrap_or(0)
    }
    /// What attention scores are multiplied by.
    pub fn attention_scale(&self) -> f32 {
        self.scales.attention.unwrap_or_else(|| (self.head_dim as f32).sqrt().recip())
    }
    /// Tokens that a query of this layer may look back, itself included.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|_| self.layers[layer].window)
    }
    /// Whether every layer has a window (`Some(true)`), none (`Some(false)`), or only some (`None`).
    pub fn windows_everywhere(&self) -> Option<bool> {
        let n = self.layers.iter().take(self.n_layers).filter(|l| l.window).count();
        if n == 0 || self.sliding_window.is_none() {
            Some(false)
        } else if n == self.n_layers {
            Some(true)
        } else {
            None
        }
    }
    /// Checks that the numbers fit together and are small enough that no shape overflows. Every reader of a container calls it.
    pub fn validate(&self) -> Result<()> {
        let experts = self.experts.as_ref();
        let bounded = [
            ("hidden_size", self.hidden_size, 1 << 20),
            ("number of layers", self.n_layers, 1 << 14),
            ("number of attention heads", self.n_heads, 1 << 14),
            ("number of key and value heads", self.n_kv_heads, 1 << 14),
            ("head_dim", self.head_dim, 1 << 14),
            ("width of a value's head", self.v_head_dim, 1 << 14),
            ("feed-forward size", self.ffn_size, 1 << 22),
            ("vocabulary size", self.vocab_size, 1 << 26),
            ("context length", self.context_length, 1 << 30),
            ("sliding window", self.sliding_window.unwrap_or(1), usize::MAX),
            ("number of experts", experts.map_or(1, |e| e.count), 1 << 12),
            ("number of experts per token", experts.map_or(1, |e| e.used), experts.map_or(1, |e| e.count)),
            ("feed-forward size of an expert", experts.map_or(1, |e| e.ffn_size), 1 << 22),
            ("feed-forward size of the shared expert", experts.map_or(1, |e| e.shared_ffn_size.max(1)), 1 << 22),
            ("rank of the keys' and values' latent", self.latent.map_or(1, |l| l.kv_rank), 1 << 20),
            ("rank of the queries' latent", self.latent.and_then(|l| l.q_rank).unwrap_or(1), 1 << 20),
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
        if self.layers.len() != self.n_layers + self.mtp_layers {
            let (n, all) = (self.layers.len(), self.n_layers + self.mtp_layers);
            return Err(Error::corrupt(format!("{n} layers are described, but the model has {all}")));
        }
        let rotated = self.latent.map_or(self.head_dim, |l| l.rope_dim);
        for rope in [Some(&self.rope), self.local_rope.as_ref()].into_iter().flatten() {
            if !rope.dims.is_multiple_of(2) || rope.dims > rotated {
                return Err(Error::corrupt(format!(
                    "{} of {rotated} dimensions of a head are rotated: rotary embedding needs pairs",
                    rope.dims
                )));
            }
        }
        if self.latent.is_some_and(|l| l.rope_dim >= self.head_dim) {
            let what = format!("heads of {} dimensions cannot have {rotated} that are rotated and others besides", self.head_dim);
            return Err(Error::corrupt(what));
        }
        if let Some(t) = self.temperature
            && !(t.step >= 1.0 && t.step.is_finite() && t.scale.is_finite())
        {
            return Err(Error::corrupt(format!("the temperature of attention changes every {} tokens by {}", t.step, t.scale)));
        }
        if let Some(g) = experts.and_then(|e| e.groups.map(|g| (e, g)))
            && (g.1.count == 0 || !g.0.count.is_multiple_of(g.1.count) || g.1.used == 0 || g.1.used > g.1.count)
        {
            return Err(Error::corrupt(format!(
                "{} experts cannot be chosen from {} of {} groups",
                g.0.count, g.1.used, g.1.count
            )));
        }
        if !(self.norm.eps.is_finite() && self.norm.eps >= 0.0) {
            return Err(Error::corrupt(format!("epsilon of the norms is {}", self.norm.eps)));
        }
        [Some(&self.rope), self.local_rope.as_ref()].into_iter().flatten().try_for_each(Rope::validate)
    }
}
