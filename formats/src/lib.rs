//! Bytes: tensor containers (safetensors, GGUF, MLX folders, PyTorch files) and block codecs. This crate knows no model.

pub mod atomic;
pub mod codec;
pub mod codecs;
pub mod container;
pub mod error;
pub mod gguf;
pub mod hash;
mod kernels;
pub mod links;
pub mod mlx;
mod mmap;
pub mod packed;
pub mod regrid;
pub mod safetensors;
mod shards;
#[doc(hidden)]
pub mod simd;
mod slots;
pub mod store;
pub mod torch;

pub use codec::{
    BlockScales, Codec, CodecId, EncodedTensor, Float, Gram, Grid, Micro, decode_all, encode_all, encode_rows, encode_rows_scaled,
};
pub use container::{Encoding, TensorInfo, TensorStore};
pub use error::{Error, ErrorKind, Result};
pub use hash::{sha256_bytes, sha256_file};
pub use kernels::instructions;
#[cfg(feature = "twins")]
#[doc(hidden)]
pub use kernels::set_scalar;
#[doc(hidden)]
pub use kernels::{Vectors, limit_vectors, vectors};
pub use mmap::{in_large_pages, on_lost_pages, shrunk};
pub use store::{Container, open_store};
