//! `--method`: a `+`-joined list of transforms and one solver.

use crate::solver::{self, Solver};
use crate::transform::{self, Transform};
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::WeightSource;
use std::fmt;
use std::str::FromStr;

/// Transforms and the solver that follows them.
#[derive(Clone)]
pub struct Method {
    /// Applied to the dense layer, in this order.
    pub transforms: Vec<&'static dyn Transform>,
    /// Chooses the codes.
    pub solver: &'static dyn Solver,
}

impl Method {
    /// What measures best for most targets: see BENCHMARKS.md.
    pub const BEST: &'static str = "reorder+awq+qep+gptq";

    /// Whether matrices are fitted to what the dense model gives, from what the quantized one gives them to read.
    pub fn asymmetric(&self) -> bool {
        self.transforms.iter().any(|t| t.asymmetric())
    }
    /// Whether calibration data is needed.
    pub fn needs_calibration(&self) -> bool {
        self.solver.needs_hessian() || self.transforms.iter().any(|t| !t.rewrites())
    }
    /// Whether the full H is needed, and not only its diagonal.
    pub fn needs_hessian(&self) -> bool {
        self.needs_calibration()
    }
    /// Whether biases take up the mean of their matrices' rounding errors.
    pub fn corrects_biases(&self) -> bool {
        self.transforms.iter().any(|t| t.corrects_biases())
    }
    /// Whether a transform rewrites the model as a whole.
    pub fn rewrites(&self) -> bool {
        self.transforms.iter().any(|t| t.rewrites())
    }
    /// The model as transforms that rewrite it as a whole leave it; `None` if there are none.
    pub fn rewrite<'a>(&self, source: &'a dyn WeightSource, seed: u64) -> Result<Option<Box<dyn WeightSource + 'a>>> {
        if !self.rewrites() {
            return Ok(None);
        }
        let start: Box<dyn WeightSource + 'a> = Box::new(source);
        self.transforms.iter().try_fold(start, |source, t| t.rewrite(source, seed)).map(Some)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for t in &self.transforms {
            write!(f, "{}+", t.name())?;
        }
        f.write_str(self.solver.name())
    }
}

impl fmt::Debug for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Method {
    type Err = Error;

    /// `best`, a solver, transforms joined to a solver, or transforms alone: those end in `rtn`, as AWQ was published.
    fn from_str(s: &str) -> Result<Self> {
        let s = if s == "best" { Self::BEST } else { s };
        let mut transforms = Vec::new();
        let mut chosen: Option<&'static dyn Solver> = None;
        for name in s.split('+') {
            if let Some(found) = solver::find(name) {
                if let Some(first) = chosen.replace(found) {
                    return Err(Error::usage(format!("method `{s}` names two solvers, {} and {name}", first.name())));
                }
            } else if let Some(found) = transform::find(name) {
                if chosen.is_some() {
                    return Err(Error::usage(format!("in method `{s}` the transform {name} stands after the solver"))
                        .hint("write transforms first: awq+qep+gptq"));
                }
                if transforms.iter().any(|t: &&dyn Transform| t.name() == name) {
                    return Err(Error::usage(format!("method `{s}` names {name} twice")));
                }
                if found.rewrites() && transforms.iter().any(|t| !t.rewrites()) {
                    return Err(Error::usage(format!(
                        "in method `{s}` {name}, which rewrites the whole model, stands after others"
                    ))
                    .hint(format!("write it first: {name}+gptq")));
                }
                transforms.push(found);
            } else {
                return Err(
                    Error::usage(format!("unknown method `{name}`")).hint("`bitsmith methods` lists transforms and solvers")
                );
            }
        }
        Ok(Method { transforms, solver: chosen.unwrap_or_else(|| solver::find("rtn").expect("registered")) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for (text, canonical) in [
            ("rtn", "rtn"),
            ("awq", "awq+rtn"),
            ("awq+gptq", "awq+gptq"),
            ("best", Method::BEST),
            ("rotate+awq+gptq", "rotate+awq+gptq"),
        ] {
            assert_eq!(text.parse::<Method>().unwrap().to_string(), canonical);
        }
        for bad in ["", "gptq+awq", "rtn+gptq", "awq+awq+rtn", "awq+rotate+gptq", "magic"] {
            assert!(bad.parse::<Method>().is_err(), "{bad}");
        }
    }
}
