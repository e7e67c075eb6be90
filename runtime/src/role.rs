//! What a tensor is for, independent of what a container calls it.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What kind of tensor a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartKind {
    /// A table whose rows are looked up, quantized like a matrix.
    Table,
    /// The matrix of a linear layer, `(out, in)`.
    Matrix,
    /// Several matrices, `(matrices, out, in)`: of all experts, or of all heads.
    Stacked,
    /// Weights that are always kept in floating point: norms, biases, routers, positions.
    Plain,
}

/// Where a part stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Once per model, before the decoder layers.
    Model,
    /// Once per decoder layer.
    Layer,
    /// In layers whose feed-forward block is dense.
    Dense,
    /// In layers whose feed-forward block is a mixture of experts.
    Mixture,
    /// In layers after the last, which predict further tokens.
    Extra,
}

macro_rules! parts {
    ($($part:ident $name:literal $scope:ident $kind:ident $doc:literal)*) => {
        /// The job of a tensor inside the model or inside one decoder layer. `Display`/`FromStr` use GGUF's short names
        /// (`attn_q`, `ffn_down`, `token_embd`, …; biases end in `.bias`). The order is that of tensors in files.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub enum Part {
            $(#[doc = $doc] $part,)*
        }

        impl Part {
            /// Every part.
            pub const ALL: &[Part] = &[$(Part::$part),*];

            /// GGUF's short name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Part::$part => $name,)*
                }
            }
            /// What kind of tensor it is.
            pub const fn kind(self) -> PartKind {
                match self {
                    $(Part::$part => PartKind::$kind,)*
                }
            }
            const fn scope(self) -> Scope {
                match self {
                    $(Part::$part => Scope::$scope,)*
                }
            }
        }
    };
}

parts! {
    TokenEmbd "token_embd" Model Table "Token embedding, `(vocab, hidden)`."
    PositionEmbd "position_embd" Model Plain "Learned positions, `(context, hidden)`."
    TokenTypes "token_types" Model Plain "Embedding of segment types, `(types, hidden)`."
    EmbdNorm "token_embd_norm" Model Plain "Norm after the embeddings, `(hidden)`."
    EmbdNormBias "token_embd_norm.bias" Model Plain "Bias of the norm after the embeddings."
    OutputNorm "output_norm" Model Plain "Norm before the output matrix, `(hidden)`."
    OutputNormBias "output_norm.bias" Model Plain "Bias of the output norm."
    Output "output" Model Table "Output matrix (language-model head), `(vocab, hidden)`; absent when tied to the embedding."
    OutputBias "output.bias" Model Plain "Bias of the output matrix, `(vocab)`."
    AttnNorm "attn_norm" Layer Plain "Norm before attention, `(hidden)`."
    AttnNormBias "attn_norm.bias" Layer Plain "Bias of the norm before attention."
    AttnQ "attn_q" Layer Matrix "Query projection, `(heads × head_dim, hidden)`."
    AttnK "attn_k" Layer Matrix "Key projection, `(kv_heads × head_dim, hidden)`."
    AttnV "attn_v" Layer Matrix "Value projection, `(kv_heads × head_dim, hidden)`."
    AttnQkv "attn_qkv" Layer Matrix "Query, key and value projections, one after the other."
    AttnQA "attn_q_a" Layer Matrix "Latent attention: hidden to the queries' latent, `(q_rank, hidden)`."
    AttnQB "attn_q_b" Layer Matrix "Latent attention: latent to queries, `(heads × head_dim, q_rank)`."
    AttnKvA "attn_kv_a_mqa" Layer Matrix "Latent attention: hidden to the keys' and values' latent and the shared rotated key, `(kv_rank + rope_dim, hidden)`."
    AttnKB "attn_k_b" Layer Stacked "Latent attention: each head's unrotated query to the latent, and so, transposed, latent to key: `(heads, kv_rank, nope_dim)`."
    AttnVB "attn_v_b" Layer Stacked "Latent attention: latent to each head's value, `(heads, v_dim, kv_rank)`."
    AttnOutput "attn_output" Layer Matrix "Attention output projection, `(hidden, heads × head_dim)`."
    AttnQBias "attn_q.bias" Layer Plain "Bias of the query projection."
    AttnKBias "attn_k.bias" Layer Plain "Bias of the key projection."
    AttnVBias "attn_v.bias" Layer Plain "Bias of the value projection."
    AttnQkvBias "attn_qkv.bias" Layer Plain "Bias of the joint projection."
    AttnOutputBias "attn_output.bias" Layer Plain "Bias of the attention output projection."
    AttnQNorm "attn_q_norm" Layer Plain "Norm of queries, `(head_dim)`, or `(heads, head_dim)`, or all heads' widths."
    AttnQNormBias "attn_q_norm.bias" Layer Plain "Bias of the norm of queries."
    AttnKNorm "attn_k_norm" Layer Plain "Norm of keys, `(head_dim)`, or `(heads, head_dim)`, or all heads' widths."
    AttnKNormBias "attn_k_norm.bias" Layer Plain "Bias of the norm of keys."
    AttnQANorm "attn_q_a_norm" Layer Plain "Norm of the queries' latent, `(q_rank)`."
    AttnKvANorm "attn_kv_a_norm" Layer Plain "Norm of the keys' and values' latent, `(kv_rank)`."
    AttnSinks "attn_sinks" Layer Plain "A logit per head that takes a share of the attention, `(heads)`."
    AttnPostNorm "post_attention_norm" Layer Plain "Norm of the attention block's output, `(hidden)`."
    AttnResidualNorm "attn_output_norm" Layer Plain "Norm after attention has been added, `(hidden)`."
    AttnResidualNormBias "attn_output_norm.bias" Layer Plain "Its bias."
    FfnNorm "ffn_norm" Layer Plain "Norm before the feed-forward block, `(hidden)`."
    FfnNormBias "ffn_norm.bias" Layer Plain "Bias of the norm before the feed-forward block."
    FfnGateInp "ffn_gate_inp" Mixture Plain "Router, `(experts, hidden)`."
    FfnGateInpBias "ffn_gate_inp.bias" Mixture Plain "Bias of the router."
    ExpProbsBias "exp_probs_b.bias" Mixture Plain "What is added to the router's scores when experts are chosen, `(experts)`."
    FfnGate "ffn_gate" Dense Matrix "Gate projection, `(ffn, hidden)`."
    FfnUp "ffn_up" Dense Matrix "Up projection, `(ffn, hidden)`; where gate and up are one matrix, the gate's rows come first."
    FfnDown "ffn_down" Dense Matrix "Down projection, `(hidden, ffn)`."
    FfnGateBias "ffn_gate.bias" Dense Plain "Bias of the gate projection."
    FfnUpBias "ffn_up.bias" Dense Plain "Bias of the up projection."
    FfnDownBias "ffn_down.bias" Dense Plain "Bias of the down projection."
    FfnGateExps "ffn_gate_exps" Mixture Stacked "The experts' gate projections, `(experts, ffn, hidden)`."
    FfnUpExps "ffn_up_exps" Mixture Stacked "The experts' up projections, `(experts, ffn, hidden)`."
    FfnDownExps "ffn_down_exps" Mixture Stacked "The experts' down projections, `(experts, hidden, ffn)`."
    FfnGateExpsBias "ffn_gate_exps.bias" Mixture Plain "Biases of the experts' gate projections, `(experts, ffn)`."
    FfnUpExpsBias "ffn_up_exps.bias" Mixture Plain "Biases of the experts' up projections, `(experts, ffn)`."
    FfnDownExpsBias "ffn_down_exps.bias" Mixture Plain "Biases of the experts' down projections, `(experts, hidden)`."
    FfnGateInpShexp "ffn_gate_inp_shexp" Mixture Plain "How much the shared expert counts, `(1, hidden)`."
    FfnGateShexp "ffn_gate_shexp" Mixture Matrix "The shared expert's gate projection."
    FfnUpShexp "ffn_up_shexp" Mixture Matrix "The shared expert's up projection."
    FfnDownShexp "ffn_down_shexp" Mixture Matrix "The shared expert's down projection."
    FfnPostNorm "post_ffw_norm" Layer Plain "Norm of the feed-forward block's output, `(hidden)`."
    LayerOutputNorm "layer_output_norm" Layer Plain "Norm after the feed-forward block has been added, `(hidden)`."
    LayerOutputNormBias "layer_output_norm.bias" Layer Plain "Its bias."
    NextnProj "nextn.eh_proj" Extra Matrix "Prediction of further tokens: a token's embedding and the hidden state before it to one hidden state, `(hidden, 2 × hidden)`."
    NextnEmbdNorm "nextn.enorm" Extra Plain "Norm of that embedding, `(hidden)`."
    NextnHiddenNorm "nextn.hnorm" Extra Plain "Norm of that hidden state, `(hidden)`."
    NextnEmbd "nextn.embed_tokens" Extra Table "Its own token embedding, mostly a copy."
    NextnOutput "nextn.shared_head_head" Extra Table "Its own output matrix, mostly a copy."
    NextnOutputNorm "nextn.shared_head_norm" Extra Plain "Norm before the output matrix, `(hidden)`."
}

impl Part {
    /// Whether the tensor exists in decoder layers.
    pub const fn per_layer(self) -> bool {
        !matches!(self.scope(), Scope::Model)
    }
    /// Whether layers whose feed-forward block is a mixture of experts (`true`) or dense (`false`) may have this part.
    pub const fn in_layer(self, mixture: bool) -> bool {
        match self.scope() {
            Scope::Model | Scope::Extra => false,
            Scope::Layer => true,
            Scope::Dense => !mixture,
            Scope::Mixture => mixture,
        }
    }
    /// Whether only layers after the last have this part, which predict further tokens (MTP).
    pub const fn in_extra_layer(self) -> bool {
        matches!(self.scope(), Scope::Extra)
    }
    /// Whether this is a weight matrix that may be quantized.
    pub const fn is_matrix(self) -> bool {
        !matches!(self.kind(), PartKind::Plain)
    }
    /// Whether this is a matrix of a decoder layer.
    pub const fn is_linear(self) -> bool {
        self.per_layer() && self.is_matrix()
    }
    /// Whether this is the matrix of a linear layer that decides on experts, which is never quantized.
    pub const fn is_router(self) -> bool {
        matches!(self, Part::FfnGateInp | Part::FfnGateInpShexp)
    }
    /// The bias that belongs to a linear layer or a norm.
    pub const fn bias(self) -> Option<Part> {
        Some(match self {
            Part::EmbdNorm => Part::EmbdNormBias,
            Part::OutputNorm => Part::OutputNormBias,
            Part::Output => Part::OutputBias,
            Part::AttnNorm => Part::AttnNormBias,
            Part::AttnQ => Part::AttnQBias,
            Part::AttnK => Part::AttnKBias,
            Part::AttnV => Part::AttnVBias,
            Part::AttnQkv => Part::AttnQkvBias,
            Part::AttnOutput => Part::AttnOutputBias,
            Part::AttnQNorm => Part::AttnQNormBias,
            Part::AttnKNorm => Part::AttnKNormBias,
            Part::AttnResidualNorm => Part::AttnResidualNormBias,
            Part::FfnNorm => Part::FfnNormBias,
            Part::FfnGateInp => Part::FfnGateInpBias,
            Part::FfnGate => Part::FfnGateBias,
            Part::FfnUp => Part::FfnUpBias,
            Part::FfnDown => Part::FfnDownBias,
            Part::FfnGateExps => Part::FfnGateExpsBias,
            Part::FfnUpExps => Part::FfnUpExpsBias,
            Part::FfnDownExps => Part::FfnDownExpsBias,
            Part::LayerOutputNorm => Part::LayerOutputNormBias,
            _ => return None,
        })
    }
    /// Where this linear layer takes its input from.
    pub fn input(self) -> Option<Input> {
        Input::ALL.iter().copied().find(|i| i.readers().contains(&self))
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
        let of = |per_layer: bool| Part::ALL.iter().copied().filter(move |p| p.per_layer() == per_layer);
        let layers = (0..n_layers).flat_map(move |l| of(true).map(move |p| Role::layer(l, p)));
        of(false).map(Role::global).chain(layers)
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

macro_rules! inputs {
    ($($input:ident $name:literal [$($reader:ident)*] $doc:literal)*) => {
        /// Where activations are observed: linear layers that share an input share a site.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Input {
            $(#[doc = $doc] $input,)*
        }

        impl Input {
            /// Every input, in the order in which they occur.
            pub const ALL: &[Input] = &[$(Input::$input),*];

            /// The name in files and messages.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Input::$input => $name,)*
                }
            }
            /// The linear layers that read this input.
            pub const fn readers(self) -> &'static [Part] {
                match self {
                    $(Input::$input => &[$(Part::$reader),*],)*
                }
            }
        }
    };
}

inputs! {
    AttnIn "attn_in" [AttnQ AttnK AttnV AttnQkv AttnQA AttnKvA] "After the attention norm: read by q, k, v."
    QueryLatent "query_latent" [AttnQB] "Latent attention: the normed latent of queries."
    QueryHeads "query_heads" [AttnKB] "Latent attention: the unrotated part of each head's query, which meets keys in the latent."
    KvLatent "kv_latent" [AttnVB] "Latent attention: the normed latent of keys and values."
    AttnOut "attn_out" [AttnOutput] "Concatenated head outputs: read by the attention output projection."
    FfnIn "ffn_in" [FfnGate FfnUp FfnGateExps FfnUpExps FfnGateShexp FfnUpShexp] "After the feed-forward norm: read by gate and up, whether dense, of experts or of the shared expert."
    FfnOut "ffn_out" [FfnDown] "`act(gate) · up`: read by down."
    ExpertOut "expert_out" [FfnDownExps] "`act(gate) · up` of the experts that each token is routed to: read by their down projections."
    SharedOut "shared_out" [FfnDownShexp] "`act(gate) · up` of the shared expert: read by its down projection."
    Head "head" [Output] "After the output norm: read by the output matrix."
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
        let name = self.input.name();
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
        Part::ALL.iter().copied().find(|p| p.name() == s).ok_or_else(|| {
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
