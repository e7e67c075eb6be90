//! mlx-lm's mixed recipes: which matrices of an MLX folder get more bits (`mlx_lm.convert --quant-predicate`).

use crate::preset::more_bits;
use bitsmith_runtime::role::{Part, Role};
use bitsmith_runtime::spec::ModelSpec;
use std::fmt;

/// A mix of two widths of affine groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MlxRecipe {
    low: u8,
    high: u8,
}

impl MlxRecipe {
    /// All recipes of mlx-lm.
    pub const ALL: [MlxRecipe; 4] = [
        MlxRecipe { low: 2, high: 6 },
        MlxRecipe { low: 3, high: 4 },
        MlxRecipe { low: 3, high: 6 },
        MlxRecipe { low: 4, high: 6 },
    ];
    /// Weights per group: recipes have one group size.
    pub const GROUP: u16 = 64;

    /// Bits of most matrices.
    pub fn base(self) -> u8 {
        self.low
    }
    /// Bits of one matrix: more for an output matrix of its own, and in the layers where llama-quantize's medium mixes give more,
    /// for values and down projections. A tied embedding gets no more than the rest.
    pub fn bits(self, spec: &ModelSpec, role: Role) -> u8 {
        let sensitive = match (role.part, role.layer) {
            (Part::Output, _) => true,
            (Part::AttnV | Part::FfnDown | Part::FfnDownExps | Part::FfnDownShexp, Some(i)) => more_bits(i, spec.n_layers),
            _ => false,
        };
        if sensitive { self.high } else { self.low }
    }
}

/// mlx-lm's name: `mixed_3_6`.
impl fmt::Display for MlxRecipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mixed_{}_{}", self.low, self.high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_mlx_lm() {
        assert_eq!(MlxRecipe::ALL.map(|r| r.to_string()), ["mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"]);
    }
}
