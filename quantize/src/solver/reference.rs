//! The formats' own encoders as solvers: `rtn` without importance, `reference` with it, as llama-quantize does given an imatrix.

use super::{Problem, Solution, Solver};
use bitsmith_formats::{EncodedTensor, Result};

/// The reference encoder without importance (round to nearest for the simple formats).
pub struct Rtn;

/// The reference encoder, weighted by E(x²) where the input was observed.
pub struct Reference;

fn encode(problem: &Problem<'_>, importance: Option<&[f32]>) -> Result<Solution> {
    let w = problem.weights.as_standard_layout();
    let values = w.as_slice().expect("standard layout");
    let tensor = EncodedTensor::encode_scaled(problem.codec, &[w.nrows(), w.ncols()], values, importance, problem.scale)?;
    Ok(Solution { tensor, notes: Vec::new() })
}

impl Solver for Rtn {
    fn name(&self) -> &'static str {
        "rtn"
    }
    fn about(&self) -> &'static str {
        "the format's own encoder without calibration: round to nearest"
    }
    fn needs_hessian(&self) -> bool {
        false
    }
    fn solve(&self, problem: &Problem<'_>) -> Result<Solution> {
        encode(problem, None)
    }
}

impl Solver for Reference {
    fn name(&self) -> &'static str {
        "reference"
    }
    fn about(&self) -> &'static str {
        "the peer's own encoder, byte for byte; weighted by importance when calibration data is given"
    }
    fn needs_hessian(&self) -> bool {
        false
    }
    fn solve(&self, problem: &Problem<'_>) -> Result<Solution> {
        encode(problem, problem.importance)
    }
}
