//! What every container offers: named tensors with a shape, a codec and bytes.

use crate::codec::{CodecId, decode_all};
use crate::error::{Error, Result};
use std::borrow::Cow;
use std::path::Path;

/// How a tensor's bytes are to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encoding {
    /// One of our codecs.
    Codec(CodecId),
    /// A type that is carried but not decoded, by its name in the container (`I64`, `IQ2_XXS`, …).
    Opaque(String),
}

impl std::fmt::Display for Encoding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Encoding::Codec(codec) => codec.fmt(f),
            Encoding::Opaque(name) => f.write_str(name),
        }
    }
}

/// A tensor's entry in a container's header.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// Name in the container. For MLX triples, the name of the packed weight.
    pub name: String,
    /// Logical dimensions, outermost first: `(out, in)` for a linear layer, whatever the container's own order or packing.
    pub shape: Vec<usize>,
    /// Block format.
    pub encoding: Encoding,
    /// Bytes in the file (for MLX triples: of the three planes together).
    pub n_bytes: usize,
}

impl TensorInfo {
    /// Number of weights.
    pub fn n_weights(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A checkpoint's tensors: a safetensors file or set, a GGUF file or set, an MLX folder.
pub trait TensorStore: Send + Sync {
    /// The file or folder that was opened.
    fn path(&self) -> &Path;
    /// The file that holds a tensor, for messages: the same as `path` unless there are several.
    fn file_of(&self, name: &str) -> &Path {
        let _ = name;
        self.path()
    }
    /// All tensors, in file order.
    fn tensors(&self) -> &[TensorInfo];
    /// The tensor's blocks as one row-major stream in its codec (MLX planes are interleaved into blocks).
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>>;

    /// The tensor's entry.
    fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors().iter().find(|t| t.name == name)
    }
    /// The tensor decoded to f32, row-major. NaN or infinity is an error that names the row.
    fn read_f32(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let info = self.find(name).ok_or_else(|| Error::missing("no such tensor").file(self.path()).tensor(name))?;
        let Encoding::Codec(codec) = &info.encoding else {
            return Err(Error::unsupported(format!("cannot decode {:?}", info.encoding)).file(self.file_of(name)).tensor(name));
        };
        let values = decode_all(*codec, &self.bytes(name)?);
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            let row_len = *info.shape.last().unwrap_or(&1);
            return Err(Error::corrupt(format!("value {} in row {}, column {}", values[i], i / row_len, i % row_len))
                .file(self.file_of(name))
                .tensor(name)
                .hint("the checkpoint is damaged or was saved after training diverged; download it again or choose another revision"));
        }
        Ok((info.shape.clone(), values))
    }
}
