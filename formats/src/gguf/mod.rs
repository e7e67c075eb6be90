//! GGUF files, llama.cpp's container: typed metadata in order, then tensors at aligned offsets.
//!
//! Layout (all little-endian): magic `GGUF`, version, number of tensors, number of metadata pairs; the pairs (key, type,
//! value); the tensors' entries (name, dimensions *innermost first*, type, offset); padding; the data. Outside this module
//! shapes are outermost first, as everywhere in bitsmith.

mod metadata;
mod reader;
mod set;
mod types;
mod value;
mod wire;
mod writer;

#[cfg(test)]
mod tests;

pub use metadata::Metadata;
pub use reader::{GgufStore, Header, HeaderTensor, StoredTensor, parse_header, parse_header_of};
pub use set::{GgufSetWriter, SPLIT_KEYS, SetPlan, set_paths};
pub use types::GgmlType;
pub use value::{Array, Value};
pub use writer::{GgufWriter, TensorPlan, planned_bytes, write_gguf};

/// The first four bytes of every file.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// Alignment of tensor data in bytes where `general.alignment` says nothing.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// The metadata key that sets the alignment.
pub const ALIGNMENT_KEY: &str = "general.alignment";
/// Most dimensions that a tensor can have.
pub const MAX_DIMS: usize = 4;
/// Longest tensor name in bytes that llama.cpp loads.
pub const MAX_TENSOR_NAME: usize = 63;
