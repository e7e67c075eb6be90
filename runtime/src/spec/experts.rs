//! Mixtures of experts.

/// A mixture of experts.
#[derive(Debug, Clone, PartialEq)]
pub struct Experts {
    /// Experts per layer.
    pub count: usize,
    /// Experts that each token goes to.
    pub used: usize,
    /// Width of an expert's feed-forward block.
    pub ffn_size: usize,
    /// Width of the shared expert's; 0 without one.
    pub shared_ffn_size: usize,
    /// How scores become weights.
    pub scoring: Scoring,
    /// Whether the weights of the chosen experts are made to sum to 1.
    pub normalize: bool,
    /// What the weights are multiplied by.
    pub scale: f32,
    /// Experts are chosen within the best of groups, if that is more than one.
    pub groups: Option<Groups>,
    /// Whether a token's weight multiplies the expert's input and not its output.
    pub weigh_input: bool,
}

impl Experts {
    /// Experts without a shared one, whose weights are a softmax over all of them.
    pub fn new(count: usize, used: usize, ffn_size: usize) -> Self {
        Experts {
            count,
            used,
            ffn_size,
            shared_ffn_size: 0,
            scoring: Scoring::Softmax,
            normalize: false,
            scale: 1.0,
            groups: None,
            weigh_input: false,
        }
    }
}

/// How a router's scores become weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    /// Softmax over all experts.
    Softmax,
    /// Softmax over the chosen experts.
    SoftmaxChosen,
    /// Sigmoid of each.
    Sigmoid,
}

/// Routing by groups of experts (DeepSeek).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Groups {
    /// Groups of equal size.
    pub count: usize,
    /// Groups that a token may use.
    pub used: usize,
    /// How many of a group's best scores are added up to rank it.
    pub ranked_by: usize,
}
