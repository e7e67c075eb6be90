//! Matrix products with weights as they are stored: 4-bit weights stay 4-bit weights in memory, and are taken apart a panel at a time in
//! the cache.
//!
//! Two modes, named by [`ComputeMode`], differ in what they do to activations. [`Weight`] is a matrix that either mode can multiply with.
//! Results do not depend on the number of threads: tasks are cut by shapes alone, and no sum crosses a task.

mod float;
mod integer;
mod output;
mod processor;
#[cfg(test)]
mod tests;
mod weight;

pub use float::{Packed, RowPair, add_product, quadratic_forms};
pub(crate) use output::Output;
pub(crate) use processor::Processor;
pub use weight::{Blocks, Weight};

/// What a product does to activations. Products of one mode agree to the last bits of f32 whatever the processor; the modes differ by the
/// rounding of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ComputeMode {
    /// f32 activations times decoded weights: what the weights say. For quality numbers.
    #[default]
    F32,
    /// Activations rounded to 8 bits in blocks of 32 or 256, as llama.cpp rounds them for the weight's type, and products in integers: fast,
    /// and what llama.cpp answers. Weights of formats without an integer form (plain floats, FP8, NF4, MXFP8, groups that 32 does not
    /// divide) are multiplied as [`ComputeMode::F32`] does.
    Int8,
}
