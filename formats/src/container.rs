//! What every container offers: named tensors with a shape, a codec and bytes.

use crate::codec::CodecId;
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

/// How a tensor's bytes are to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encoding {
    /// One of our codecs.
    Codec(CodecId),
    /// A type that is carried but not decoded, by its name in the container (`I64`, `IQ2_XXS`, …).
    Opaque(String),
    /// Stored in a way that no codec describes (scales per column order, …), named here for people; [`TensorStore::row_bytes`] gives
    /// the decoded values as f32.
    Decoded(String),
}

impl std::fmt::Display for Encoding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Encoding::Codec(codec) => codec.fmt(f),
            Encoding::Opaque(name) | Encoding::Decoded(name) => f.write_str(name),
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
    /// What all decoded values are multiplied by: 1 but for formats with a scale per tensor (NVFP4).
    pub scale: f32,
}

impl TensorInfo {
    /// A tensor without a scale of its own.
    pub fn new(name: String, shape: Vec<usize>, encoding: Encoding, n_bytes: usize) -> Self {
        TensorInfo { name, shape, encoding, n_bytes, scale: 1.0 }
    }
    /// Weights per row: the last dimension.
    pub fn row_len(&self) -> usize {
        *self.shape.last().unwrap_or(&1)
    }
    /// Where some rows are in the tensor's `len` bytes.
    pub(crate) fn rows_within(&self, len: usize, rows: Range<usize>) -> Range<usize> {
        let row = len / self.n_rows().max(1);
        rows.start * row..rows.end * row
    }
    /// Rows: all dimensions but the last, multiplied.
    pub fn n_rows(&self) -> usize {
        self.n_weights() / self.row_len().max(1)
    }
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
    /// The blocks of some rows only, for work in bounded memory. Containers that rearrange bytes do so for these rows alone.
    fn row_bytes(&self, name: &str, rows: Range<usize>) -> Result<Cow<'_, [u8]>> {
        let info = self.find(name).ok_or_else(|| Error::missing("no such tensor").file(self.path()).tensor(name))?;
        Ok(match self.bytes(name)? {
            Cow::Borrowed(all) => Cow::Borrowed(&all[info.rows_within(all.len(), rows)]),
            Cow::Owned(all) => Cow::Owned(all[info.rows_within(all.len(), rows)].to_vec()),
        })
    }

    /// The tensor's entry.
    fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors().iter().find(|t| t.name == name)
    }
    /// The tensor decoded to f32, row-major. NaN or infinity is an error that names the row.
    fn read_f32(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let info = self.find(name).ok_or_else(|| Error::missing("no such tensor").file(self.path()).tensor(name))?;
        Ok((info.shape.clone(), self.read_rows(name, 0..info.n_rows())?))
    }
    /// Some rows decoded to f32. NaN or infinity is an error that names the row.
    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        self.read_rows_into(name, rows, &mut values)?;
        Ok(values)
    }
    /// [`TensorStore::read_rows`] into a buffer that is used again: its contents are replaced.
    fn read_rows_into(&self, name: &str, rows: Range<usize>, values: &mut Vec<f32>) -> Result<()> {
        let info = self.find(name).ok_or_else(|| Error::missing("no such tensor").file(self.path()).tensor(name))?;
        let codec = match &info.encoding {
            Encoding::Codec(codec) => *codec,
            Encoding::Decoded(_) => CodecId::F32,
            Encoding::Opaque(_) => {
                return Err(Error::unsupported(format!("cannot decode {}", info.encoding)).file(self.file_of(name)).tensor(name));
            }
        };
        let row_len = info.row_len().max(1);
        // Whatever is there is written over, and only what is new has to be filled.
        values.resize(rows.len() * row_len, 0.0);
        let per_chunk = (DECODE_CHUNK / row_len).max(1);
        values.par_chunks_mut(per_chunk * row_len).enumerate().try_for_each(|(i, values)| {
            let first = rows.start + i * per_chunk;
            codec.codec().decode(&self.row_bytes(name, first..first + values.len() / row_len)?, values);
            if info.scale != 1.0 {
                values.iter_mut().for_each(|v| *v *= info.scale);
            }
            match all_finite(values) {
                true => Ok(()),
                false => Err(not_finite(values, first, row_len).file(self.file_of(name)).tensor(name)),
            }
        })
    }
}

/// Weights that are decoded at a time: few enough to be in the cache still when they are checked.
const DECODE_CHUNK: usize = 1 << 16;

crate::dispatched! {
    /// Whether there is neither NaN nor infinity among the values.
    fn all_finite(values: &[f32]) -> bool {
        // Of the magnitudes' bit patterns, infinity's is the least that is not finite. A maximum, and not a search that may end
        // early, keeps the loop in vector registers.
        values.iter().fold(0, |most, v| u32::max(most, v.to_bits() & 0x7fff_ffff)) < f32::INFINITY.to_bits()
    }
}

fn not_finite(values: &[f32], first_row: usize, row_len: usize) -> Error {
    let i = values.iter().position(|v| !v.is_finite()).unwrap_or(0);
    Error::corrupt(format!("value {} in row {}, column {}", values[i], first_row + i / row_len, i % row_len))
        .hint("the checkpoint is damaged or was saved after training diverged; download it again or choose another revision")
}
