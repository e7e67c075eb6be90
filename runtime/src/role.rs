//! What a tensor is for, independent of what a container calls it.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The job of a tensor inside the model or inside one decoder layer. `Display`/`FromStr` use GGUF's short names
/// (`attn_q`, `ffn_down`, `token_embd`, …; biases end in `.bias`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Part {
    /// Token embedding, `(vocab, hidden)`.
    TokenEmbd,
    /// Norm before the output matrix, `(hidden)`.
    OutputNorm,
    /// Output matrix (language-model head), `(vocab, hidden)`; absent when tied to the embedding.
    Output,
    /// Norm before attention, `(hidden)`.
    AttnNorm,
    /// Query projection, `(heads × head_dim, hidden)`.
    AttnQ,
    /// Key projection, `(kv_heads × head_dim, hidden)`.
    AttnK,
    /// Value projection, `(kv_heads × head_dim, hidden)`.
    AttnV,
    /// Attention output projection, `(hidden, heads × head_dim)`.
    AttnOutput,
    /// Bias of the query projection.
    AttnQBias,
    /// Bias of the key projection.
    AttnKBias,
    /// Bias of the value projection.
    AttnVBias,
    /// Bias of the attention output projection.
    AttnOutputBias,
    /// Per-head norm of queries, `(head_dim)`.
    AttnQNorm,
    /// Per-head norm of keys, `(head_dim)`.
    AttnKNorm,
    /// Norm before the feed-forward block, `(hidden)`.
    FfnNorm,
    /// Gate projection, `(ffn, hidden)`.
    FfnGate,
    /// Up projection, `(ffn, hidden)`.
    FfnUp,
    /// Down projection, `(hidden, ffn)`.
    FfnDown,
    /// Bias of the gate projection.
    FfnGateBias,
    /// Bias of the up projection.
    FfnUpBias,
    /// Bias of the down projection.
    FfnDownBias,
}

impl Part {
    /// Every part.
    pub const ALL: [Part; 21] = [
        Part::TokenEmbd,
        Part::OutputNorm,
        Part::Output,
        Part::AttnNorm,
        Part::AttnQ,
        Part::AttnK,
        Part::AttnV,
        Part::AttnOutput,
        Part::AttnQBias,
        Part::AttnKBias,
        Part::AttnVBias,
        Part::AttnOutputBias,
        Part::AttnQNorm,
        Part::AttnKNorm,
        Part::FfnNorm,
        Part::FfnGate,
        Part::FfnUp,
        Part::FfnDown,
        Part::FfnGateBias,
        Part::FfnUpBias,
        Part::FfnDownBias,
    ];
    /// The linear layers of a decoder layer, in the order in which they run.
    pub const LINEARS: [Part; 7] =
        [Part::AttnQ, Part::AttnK, Part::AttnV, Part::AttnOutput, Part::FfnGate, Part::FfnUp, Part::FfnDown];

    /// GGUF's short name.
    pub fn name(self) -> &'static str {
        match self {
            Part::TokenEmbd => "token_embd",
            Part::OutputNorm => "output_norm",
            Part::Output => "output",
            Part::AttnNorm => "attn_norm",
            Part::AttnQ => "attn_q",
            Part::AttnK => "attn_k",
            Part::AttnV => "attn_v",
            Part::AttnOutput => "attn_output",
            Part::AttnQBias => "attn_q.bias",
            Part::AttnKBias => "attn_k.bias",
            Part::AttnVBias => "attn_v.bias",
            Part::AttnOutputBias => "attn_output.bias",
            Part::AttnQNorm => "attn_q_norm",
            Part::AttnKNorm => "attn_k_norm",
            Part::FfnNorm => "ffn_norm",
            Part::FfnGate => "ffn_gate",
            Part::FfnUp => "ffn_up",
            Part::FfnDown => "ffn_down",
            Part::FfnGateBias => "ffn_gate.bias",
            Part::FfnUpBias => "ffn_up.bias",
            Part::FfnDownBias => "ffn_down.bias",
        }
    }
    /// Whether the tensor exists once per decoder layer.
    pub fn per_layer(self) -> bool {
        !matches!(self, Part::TokenEmbd | Part::OutputNorm | Part::Output)
    }
    /// Whether this is a weight matrix that may be quantized.
    pub fn is_matrix(self) -> bool {
        Part::LINEARS.contains(&self) || matches!(self, Part::TokenEmbd | Part::Output)
    }
    /// The bias that belongs to a linear layer.
    pub fn bias(self) -> Option<Part> {
        Some(match self {
            Part::AttnQ => Part::AttnQBias,
            Part::AttnK => Part::AttnKBias,
            Part::AttnV => Part::AttnVBias,
            Part::AttnOutput => Part::AttnOutputBias,
            Part::FfnGate => Part::FfnGateBias,
            Part::FfnUp => Part::FfnUpBias,
            Part::FfnDown => Part::FfnDownBias,
            _ => return None,
        })
    }
    /// Where this linear layer takes its input from.
    pub fn input(self) -> Option<Input> {
        Some(match self {
            Part::AttnQ | Part::AttnK | Part::AttnV => Input::AttnIn,
            Part::AttnOutput => Input::AttnOut,
            Part::FfnGate | Part::FfnUp => Input::FfnIn,
            Part::FfnDown => Input::FfnOut,
            Part::Output => Input::Head,
            _ => return None,
        })
    }
}

/// A tensor's place in a model: its part and, for per-layer parts, the layer. `Display` gives GGUF's full tensor name
/// (`blk.3.attn_q.weight`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Role {
    /// Decoder layer, from 0; `None` outside the layers.
    pub layer: Option<usize>,
    /// The job.
    pub part: Part,
}

impl Role {
    /// A part outside the decoder layers.
    pub fn global(part: Part) -> Self {
        debug_assert!(!part.per_layer());
        Role { layer: None, part }
    }
    /// A part of decoder layer `layer`.
    pub fn layer(layer: usize, part: Part) -> Self {
        debug_assert!(part.per_layer());
        Role { layer: Some(layer), part }
    }
    /// Every role that a model of `n_layers` layers may have, in GGUF's customary order.
    pub fn all(n_layers: usize) -> impl Iterator<Item = Role> {
        let global = [Part::TokenEmbd, Part::OutputNorm, Part::Output].into_iter().map(Role::global);
        let layers = (0..n_layers).flat_map(|l| Part::ALL.into_iter().filter(|p| p.per_layer()).map(move |p| Role::layer(l, p)));
        global.chain(layers)
    }
    /// The activation site that feeds this linear layer.
    pub fn site(self) -> Option<Site> {
        self.part.input().map(|input| Site { layer: self.layer, input })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(layer) = self.layer {
            write!(f, "blk.{layer}.")?;
        }
        let name = self.part.name();
        f.write_str(name)?;
        if name.ends_with(".bias") { Ok(()) } else { f.write_str(".weight") }
    }
}

/// Where activations are observed: linear layers that share an input share a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// After the attention norm: read by q, k, v.
    AttnIn,
    /// Concatenated head outputs: read by the attention output projection.
    AttnOut,
    /// After the feed-forward norm: read by gate and up.
    FfnIn,
    /// `act(gate) · up`: read by down.
    FfnOut,
    /// After the output norm: read by the output matrix.
    Head,
}

impl Input {
    /// The linear layers that read this input.
    pub fn readers(self) -> &'static [Part] {
        match self {
            Input::AttnIn => &[Part::AttnQ, Part::AttnK, Part::AttnV],
            Input::AttnOut => &[Part::AttnOutput],
            Input::FfnIn => &[Part::FfnGate, Part::FfnUp],
            Input::FfnOut => &[Part::FfnDown],
            Input::Head => &[Part::Output],
        }
    }
}

/// One place in the model where a linear input is observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Site {
    /// Decoder layer; `None` for the output matrix's input.
    pub layer: Option<usize>,
    /// Which input.
    pub input: Input,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.input {
            Input::AttnIn => "attn_in",
            Input::AttnOut => "attn_out",
            Input::FfnIn => "ffn_in",
            Input::FfnOut => "ffn_out",
            Input::Head => "head",
        };
        match self.layer {
            Some(layer) => write!(f, "blk.{layer}.{name}"),
            None => f.write_str(name),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Part {
    type Err = bitsmith_formats::Error;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Part::ALL.into_iter().find(|p| p.name() == s).ok_or_else(|| {
            bitsmith_formats::Error::usage(format!("unknown tensor role `{s}`"))
                .hint("roles are: token_embd, output, attn_q, attn_k, attn_v, attn_output, ffn_gate, ffn_up, ffn_down")
        })
    }
}

impl From<Part> for String {
    fn from(p: Part) -> String {
        p.name().to_string()
    }
}

impl TryFrom<String> for Part {
    type Error = bitsmith_formats::Error;
    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}
