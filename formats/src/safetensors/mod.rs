//! Safetensors files and sharded checkpoints.
//!
//! A file is an 8-byte little-endian header length, a JSON header (`name → dtype, shape, data_offsets`, and string pairs under
//! `__metadata__`), then the data without gaps. A sharded checkpoint is several such files with an index
//! (`model.safetensors.index.json`) that says which file holds which tensor.

mod header;
mod layout;
mod store;
mod writer;

#[cfg(test)]
mod tests;

pub use layout::{ShardPlan, TensorPlan, plan_file, plan_shards};
pub use store::SafetensorsStore;
pub use writer::{SafetensorsWriter, ShardedWriter};

/// The name of a checkpoint's only file.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The name of a sharded checkpoint's index.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
