//! Coordinate descent from the format's own encoding: codes, integer scales and whole blocks move until no move helps (see `polish`).

use super::gptq::{self, Effort};
use super::{Problem, Solution, Solver};
use bitsmith_formats::Result;

/// No feedback, and rounds until one gains next to nothing.
const EFFORT: Effort = Effort { passes: 0, rounds: 60, gain: 1e-6 };

/// See the module's documentation.
pub struct Descent;

impl Solver for Descent {
    fn name(&self) -> &'static str {
        "descent"
    }
    fn about(&self) -> &'static str {
        "coordinate descent from the format's own encoding, on codes, scales and blocks, until no move helps"
    }
    fn needs_hessian(&self) -> bool {
        true
    }
    fn solve(&self, problem: &Problem<'_>) -> Result<Solution> {
        gptq::solve(problem, &EFFORT)
    }
}
