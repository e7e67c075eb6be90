//! PyTorch checkpoints: what `torch.save` writes of a state dict (`pytorch_model.bin`, `.pt`, `.pth`), since PyTorch 1.6.
//!
//! A file is a zip archive without compression: `NAME/data.pkl`, a pickle that describes the tensors, and one entry per storage,
//! `NAME/data/KEY`, which stays memory-mapped. Pickles are programs for a small machine that may call any Python function; the
//! machine here (`pickle.rs`) can call none. It knows the few names that tensors are made with, and refuses all others.
//!
//! Layout: `torch/serialization.py` and `caffe2/serialize/inline_container.h` of PyTorch; opcodes: Python's `pickletools`.

mod pickle;
mod store;
mod zip;

#[cfg(test)]
mod tests;

pub use store::TorchStore;
pub(crate) use store::{is_weights, only_torch};

/// The name of a checkpoint's only file.
pub const SINGLE_FILE: &str = "pytorch_model.bin";
/// The name of a sharded checkpoint's index.
pub const INDEX_FILE: &str = "pytorch_model.bin.index.json";
