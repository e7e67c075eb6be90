//! Transforms, solvers and plans: which format each tensor gets, and which codes go into it. This crate knows no file.

pub mod allocate;
pub mod asymmetric;
mod factor;
pub mod hessian;
mod kernels;
pub mod method;
pub mod plan;
pub mod preset;
pub mod recipe;
pub mod solver;
pub mod transform;

pub use hessian::Hessian;
pub use method::Method;
pub use plan::{Plan, PlanEntry};
pub use solver::{Problem, Solution, Solver};
