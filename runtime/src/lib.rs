//! Architecture table, model graph, tokenizer and generation.
//!
//! A [`Checkpoint`] opens any container and gives weights by [`Role`]; a [`Sweep`] pushes token windows through the model layer
//! by layer with one layer of weights resident; [`Model`] holds all layers and generates text.

pub mod arch;
pub mod attention;
pub mod block;
mod cache;
pub mod checkpoint;
pub mod device;
pub mod embedding;
mod ffn;
pub mod generate;
pub mod gradient;
pub mod head;
pub mod kernels;
pub mod layer;
pub mod likelihood;
pub mod memory;
pub mod ops;
pub mod product;
pub mod role;
pub mod rope;
mod rows;
pub mod sampler;
pub mod spec;
pub mod sweep;
pub mod template;
#[cfg(test)]
mod testing;
pub mod tokenizer;

mod tower;

pub use arch::{ARCHITECTURES, Architecture, Client, ContainerKind};
pub use block::Observer;
pub use cache::CacheType;
pub use checkpoint::{Checkpoint, HostTensor, WeightSource};
pub use device::Device;
pub use embedding::{Embedding, OutputNorm};
pub use generate::Model;
pub use head::Head;
pub use layer::Layer;
pub use memory::MemoryWeights;
pub use product::{Blocks, ComputeMode, Weight};
pub use role::{Input, Part, Role, Site};
pub use spec::{ModelSpec, NormKind, Rope, RopeScaling};
pub use sweep::{Hidden, Pieces, Sweep};
pub use tokenizer::{ChatMessage, GgufVocab, Tokenizer};
