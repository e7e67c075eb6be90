//! Solvers choose the codes and scales of one linear layer, minimising `tr((Ŵ − W) H (Ŵ − W)ᵀ)`. One file each.

mod blocks;
mod descent;
pub mod gptq;
mod groups;
mod lanes;
mod polish;
mod products;
mod reference;
mod rows;
pub mod tuned;

use crate::hessian::Hessian;
use bitsmith_formats::{CodecId, EncodedTensor, Result};
use bitsmith_runtime::Device;
use ndarray::ArrayView2;

/// One matrix to encode.
#[derive(Clone, Copy)]
pub struct Problem<'a> {
    /// W, `(out, in)`.
    pub weights: ArrayView2<'a, f32>,
    /// The block format to encode into.
    pub codec: CodecId,
    /// The scale that the encoded matrix is to have as a whole: 1 but for formats with a scale per tensor.
    pub scale: f32,
    /// E(x²) per column, if the input was observed.
    pub importance: Option<&'a [f32]>,
    /// The curvature, if it was gathered.
    pub hessian: Option<&'a Hessian>,
    /// Where large matrices are multiplied.
    pub device: &'a Device,
}

/// An encoded matrix and what it lost.
#[derive(Debug, Clone)]
pub struct Solution {
    /// The blocks.
    pub tensor: EncodedTensor,
    /// What the user should know: fallbacks, dead channels, stronger damping.
    pub notes: Vec<String>,
}

/// A way to choose codes and scales.
pub trait Solver: Send + Sync {
    /// Its name in `--method`.
    fn name(&self) -> &'static str;
    /// What it does, in a line, for `bitsmith methods`.
    fn about(&self) -> &'static str;
    /// Whether it needs H (and so calibration data).
    fn needs_hessian(&self) -> bool;
    /// Whether the matrices of the whole model are then tuned together (see [`tuned`]).
    fn tunes(&self) -> bool {
        false
    }
    /// Encodes the matrix.
    fn solve(&self, problem: &Problem<'_>) -> Result<Solution>;
}

/// All solvers.
pub const SOLVERS: &[&dyn Solver] = &[&reference::Rtn, &reference::Reference, &descent::Descent, &gptq::Gptq, &tuned::Tuned];

/// The solver called `name`.
pub fn find(name: &str) -> Option<&'static dyn Solver> {
    SOLVERS.iter().copied().find(|s| s.name() == name)
}
