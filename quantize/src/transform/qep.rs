//! Asymmetric calibration (QEP) as a piece of a method: it changes weights as transforms do, but not before a layer's earlier matrices are
//! encoded, so that the layer loop applies it (see [`crate::asymmetric`]).

use super::Transform;
use bitsmith_runtime::role::Part;

/// See the module's documentation.
pub struct Qep;

impl Transform for Qep {
    fn name(&self) -> &'static str {
        "qep"
    }
    fn about(&self) -> &'static str {
        "each matrix makes up for what those before it lost, as far as that helps on held-out text"
    }
    fn asymmetric(&self) -> bool {
        true
    }
    fn parts(&self) -> &'static [Part] {
        use Part::*;
        &[
            AttnQ,
            AttnK,
            AttnV,
            AttnQkv,
            AttnQA,
            AttnQB,
            AttnKvA,
            AttnOutput,
            FfnGate,
            FfnUp,
            FfnDown,
            FfnGateShexp,
            FfnUpShexp,
            FfnDownShexp,
            Output,
        ]
    }
}
