//! A weight matrix.

use super::processor::Processor;
use super::{ComputeMode, float, integer};
use crate::ops::{self, OrFail, composed};
use bitsmith_formats::{CodecId, EncodedTensor, Error, Result};
use candle_core::{DType, Device, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// A weight matrix `(out, in)`, or several of one shape, `(experts, out, in)`. Cloning is cheap.
#[derive(Debug, Clone)]
pub enum Weight {
    /// f32 values.
    Dense(Tensor),
    /// Blocks of a format, as they are stored.
    Blocks(Blocks),
}

/// Rows of blocks.
#[derive(Debug, Clone)]
pub struct Blocks {
    shape: Vec<usize>,
    codec: CodecId,
    bytes: Arc<Vec<u8>>,
    /// The part of the bytes that is this matrix.
    range: Range<usize>,
    /// Bytes of a row.
    row_bytes: usize,
    scale: f32,
}

impl Blocks {
    /// Rows of blocks, all in main memory.
    pub fn new(tensor: EncodedTensor) -> Result<Self> {
        let EncodedTensor { shape, codec, bytes, scale } = tensor;
        let row_bytes = codec.row_bytes(*shape.last().unwrap_or(&0))?;
        let rows: usize = shape.iter().rev().skip(1).product();
        if shape.len() < 2 || rows * row_bytes != bytes.len() || bytes.is_empty() {
            return Err(Error::corrupt(format!("{} bytes of {codec} for shape {shape:?}", bytes.len())));
        }
        Ok(Blocks { shape, codec, range: 0..bytes.len(), bytes: Arc::new(bytes), row_bytes, scale })
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.range.clone()]
    }
    fn columns(&self) -> usize {
        *self.shape.last().unwrap_or(&0)
    }
    fn rows(&self) -> usize {
        self.range.len() / self.row_bytes
    }

    /// Some rows decoded, all experts' rows counted through, one after the other.
    fn decode(&self, rows: impl ExactSizeIterator<Item = usize>) -> Vec<f32> {
        let columns = self.columns();
        let mut values = vec![0f32; rows.len() * columns];
        for (values, row) in values.chunks_exact_mut(columns).zip(rows) {
            self.codec.codec().decode(&self.bytes()[row * self.row_bytes..][..self.row_bytes], values);
            if self.scale != 1.0 {
                values.iter_mut().for_each(|v| *v *= self.scale);
            }
        }
        values
    }

    /// `x wᵀ` on the host.
    fn product(&self, x: &[f32], mode: ComputeMode) -> Vec<f32> {
        let (processor, columns) = (Processor::detect(), self.columns());
        let form = match mode {
            ComputeMode::F32 => None,
            ComputeMode::Int8 => integer::Form::of(self.codec, columns),
        };
        match form {
            Some(form) => integer::product(processor, &form, self.bytes(), self.row_bytes, self.scale, x, columns),
            None => float::product(processor, self.codec, self.bytes(), self.row_bytes, self.scale, x, columns),
        }
    }
}

impl Weight {
    /// Dimensions, outermost first.
    pub fn dims(&self) -> &[usize] {
        match self {
            Weight::Dense(t) => t.dims(),
            Weight::Blocks(b) => &b.shape,
        }
    }

    /// The f32 tensor, if it is one.
    pub fn dense(&self) -> Option<&Tensor> {
        match self {
            Weight::Dense(t) => Some(t),
            Weight::Blocks(_) => None,
        }
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> u64 {
        match self {
            Weight::Dense(t) => 4 * t.elem_count() as u64,
            Weight::Blocks(b) => b.range.len() as u64,
        }
    }

    /// All values, row-major, copied or decoded to the host.
    pub fn host(&self) -> Result<Vec<f32>> {
        match self {
            Weight::Dense(t) => t.flatten_all().and_then(|t| t.to_vec1()).or_fail(),
            Weight::Blocks(b) => Ok(b.decode(0..b.rows())),
        }
    }

    /// Matrix `index` of a weight `(experts, out, in)`, without copying.
    pub fn expert(&self, index: usize) -> Result<Weight> {
        let &[experts, out, columns] = self.dims() else {
            return Err(Error::failed(format!("weight of shape {:?} has no experts", self.dims())));
        };
        if index >= experts {
            return Err(Error::failed(format!("no expert {index} of {experts}")));
        }
        Ok(match self {
            Weight::Dense(t) => Weight::Dense(t.get(index).or_fail()?),
            Weight::Blocks(b) => {
                let (start, len) = (b.range.start + index * out * b.row_bytes, out * b.row_bytes);
                Weight::Blocks(Blocks { shape: vec![out, columns], range: start..start + len, ..b.clone() })
            }
        })
    }

    /// `x wᵀ` for activations `(rows, in)` and a weight `(out, in)`; gives `(rows, out)` with storage of its own.
    pub fn product(&self, x: &Tensor, mode: ComputeMode) -> Result<Tensor> {
        let blocks = match self {
            Weight::Dense(t) => return ops::linear(x, t),
            Weight::Blocks(_) if composed::takes(x) => return ops::linear(x, &self.to_tensor(x.device())?),
            Weight::Blocks(blocks) => blocks,
        };
        let (rows, columns) = x.dims2().or_fail()?;
        let &[out, width] = blocks.shape.as_slice() else {
            return Err(Error::failed(format!("product with a weight of shape {:?}", blocks.shape)));
        };
        if width != columns {
            return Err(Error::failed(format!("product of {columns} columns with a weight of {width}")));
        }
        let y = ops::with_f32(&x.contiguous().or_fail()?, |x| blocks.product(x, mode))?;
        ops::from_host(y, &[rows, out], x.device())
    }

    /// Rows of an embedding `(vocab, hidden)` for token ids, on `device`; gives `(ids.len(), hidden)`.
    pub fn embed(&self, ids: &[u32], device: &Device) -> Result<Tensor> {
        match self {
            Weight::Dense(t) => ops::embed(t, ids),
            Weight::Blocks(b) => {
                if let Some(bad) = ids.iter().find(|id| **id as usize >= b.rows()) {
                    return Err(Error::corrupt(format!("token {bad} is outside the embedding of {} rows", b.rows())));
                }
                ops::from_host(b.decode(ids.iter().map(|id| *id as usize)), &[ids.len(), b.columns()], device)
            }
        }
    }

    /// The same values as an f32 tensor.
    pub fn to_tensor(&self, device: &Device) -> Result<Tensor> {
        match self {
            Weight::Dense(t) => t.to_device(device).and_then(|t| t.to_dtype(DType::F32)).or_fail(),
            Weight::Blocks(b) => ops::from_host(self.host()?, &b.shape, device),
        }
    }
}

impl From<Tensor> for Weight {
    fn from(t: Tensor) -> Self {
        Weight::Dense(t)
    }
}
