//! Function-preserving rewrites of the dense model, before a solver runs. One file each.

mod awq;
pub mod bias;
mod fold;
mod qep;
pub mod reorder;
mod rotate;
mod smooth;

use crate::solver::Solver;
use bitsmith_calibrate::SiteStats;
use bitsmith_formats::{CodecId, Float, Result};
use bitsmith_runtime::WeightSource;
use bitsmith_runtime::role::{Input, Part};
use bitsmith_runtime::spec::ModelSpec;
use ndarray::Array2;
use std::collections::BTreeMap;

/// The dense tensors that a transform may change together: one decoder layer, or the output norm and output matrix.
/// Vectors are `(1, n)`.
pub type DenseLayer = BTreeMap<Part, Array2<f32>>;

/// What a transform knows besides the weights.
pub struct Context<'a> {
    /// The model.
    pub spec: &'a ModelSpec,
    /// The format each matrix will have.
    pub codec: &'a (dyn Fn(Part) -> CodecId + Sync),
    /// The type in which norms and biases will be stored: a fold divides by what survives rounding to it.
    pub vector_type: Float,
    /// The solver that will follow.
    pub solver: &'a dyn Solver,
}

impl Context<'_> {
    /// Whether the solver weighs errors by E(x²) or H, or treats all weights alike.
    pub fn weighted_solver(&self) -> bool {
        self.solver.name() != "rtn"
    }
}

/// A function-preserving rewrite.
pub trait Transform: Send + Sync {
    /// Its name in `--method`.
    fn name(&self) -> &'static str;
    /// What it does, in a line, for `bitsmith methods`.
    fn about(&self) -> &'static str;
    /// Whether the layer loop is to fit each matrix to what the dense model gives, from what the quantized one gives it to read.
    fn asymmetric(&self) -> bool {
        false
    }
    /// The tensors that it may change, for `bitsmith methods`; with a matrix also its bias.
    fn parts(&self) -> &'static [Part];
    /// Whether it rewrites the model as a whole, before any layer is read. It then needs no statistics, and those of the model as it
    /// was do not describe the new one.
    fn rewrites(&self) -> bool {
        false
    }
    /// The rewritten model; `seed` decides all that is random. An error says why the architecture does not allow it.
    fn rewrite<'a>(&self, source: Box<dyn WeightSource + 'a>, seed: u64) -> Result<Box<dyn WeightSource + 'a>> {
        let _ = seed;
        Ok(source)
    }
    /// Whether channels change places, so that tensors are those of the source in another order.
    fn reorders(&self) -> bool {
        false
    }
    /// Whether biases take up the mean of their matrices' rounding errors ([`bias::correct`]) once those are solved.
    fn corrects_biases(&self) -> bool {
        false
    }
    /// Rewrites `layer`, and `stats` along with it: afterwards they describe the inputs of the rewritten matrices.
    /// Returns what the user should know.
    fn apply(
        &self,
        layer: &mut DenseLayer,
        stats: &mut BTreeMap<Input, SiteStats>,
        context: &Context<'_>,
    ) -> Result<Vec<String>> {
        let _ = (layer, stats, context);
        Ok(Vec::new())
    }
}

/// All transforms.
pub const TRANSFORMS: &[&dyn Transform] =
    &[&rotate::HADAMARD, &rotate::RANDOM, &reorder::Reorder, &smooth::Smooth, &awq::Awq, &qep::Qep, &bias::Bias];

/// The transform called `name`.
pub fn find(name: &str) -> Option<&'static dyn Transform> {
    TRANSFORMS.iter().copied().find(|t| t.name() == name)
}
