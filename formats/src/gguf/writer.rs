//! Writing GGUF version 3: header first, then tensors at fixed offsets, in any order and from any thread.

use super::metadata::Metadata;
use super::types::GgmlType;
use super::value::Value;
use super::wire::{self, put_string, put_u32, put_u64};
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS, MAX_TENSOR_NAME};
use crate::codec::{CodecId, EncodedTensor};
use crate::error::{Error, Result};
use crate::slots::{Slot, SlotFile};
use std::collections::HashMap;
use std::path::Path;

const VERSION: u32 = 3;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorPlan {
    /// Name in the file, at most 63 bytes.
    pub name: String,
    /// Dimensions, outermost first: `(out, in)` for a linear layer.
    pub shape: Vec<usize>,
    /// Storage type.
    pub ty: GgmlType,
    n_bytes: usize,
}

impl TensorPlan {
    /// A tensor in one of our codecs.
    pub fn new(name: impl Into<String>, codec: CodecId, shape: &[usize]) -> Result<Self> {
        let name = name.into();
        match GgmlType::from_codec(codec) {
            Some(ty) => Self::of_type(name, ty, shape),
            None => Err(Error::unsupported(format!("GGUF has no type for {codec}")).tensor(name)),
        }
    }

    /// A tensor of any type whose size is known, to copy tensors that we cannot decode.
    pub fn of_type(name: impl Into<String>, ty: GgmlType, shape: &[usize]) -> Result<Self> {
        let name = name.into();
        let failed = |message: String| Error::failed(message).tensor(&name);
        if name.is_empty() || name.len() > MAX_TENSOR_NAME {
            return Err(failed(format!("a name of {} bytes, GGUF allows 1 to {MAX_TENSOR_NAME}", name.len())));
        }
        if shape.is_empty() || shape.len() > MAX_DIMS {
            return Err(failed(format!("{} dimensions, GGUF allows 1 to {MAX_DIMS}", shape.len())));
        }
        let size = ty.n_bytes(shape).map_err(|e| failed(e.message))?;
        let n_bytes = size.ok_or_else(|| Error::unsupported(format!("the size of {ty} is not known")).tensor(&name))?;
        Ok(TensorPlan { name, shape: shape.to_vec(), ty, n_bytes })
    }

    /// Bytes of data, without padding.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }
}

struct FilePlan {
    header: Vec<u8>,
    slots: Vec<Slot>,
    file_len: u64,
}

fn plan(metadata: &Metadata, tensors: &[TensorPlan]) -> Result<FilePlan> {
    let alignment = match metadata.get(ALIGNMENT_KEY) {
        None => DEFAULT_ALIGNMENT,
        Some(Value::U32(a)) if a.is_power_of_two() => u64::from(*a),
        Some(_) => return Err(Error::failed(format!("`{ALIGNMENT_KEY}` must be a power of two as UINT32"))),
    };
    let mut header = MAGIC.to_vec();
    put_u32(&mut header, VERSION);
    put_u64(&mut header, tensors.len() as u64);
    put_u64(&mut header, metadata.len() as u64);
    for (key, value) in metadata.iter() {
        if key.is_empty() || key.len() > wire::MAX_KEY {
            return Err(Error::failed(format!("a metadata key of {} bytes", key.len())));
        }
        if wire::depth(value) > wire::MAX_DEPTH {
            return Err(Error::failed(format!("metadata `{key}` nests arrays more than {} deep", wire::MAX_DEPTH)));
        }
        put_string(&mut header, key);
        wire::write_value(value, &mut header);
    }
    let mut slots = Vec::with_capacity(tensors.len());
    let mut names = std::collections::HashSet::new();
    let mut at = 0u64;
    let too_large = |t: &TensorPlan| Error::failed("the file would be too large").tensor(&t.name);
    for t in tensors {
        if !names.insert(t.name.as_str()) {
            return Err(Error::failed("this name is taken").tensor(&t.name));
        }
        put_string(&mut header, &t.name);
        put_u32(&mut header, t.shape.len() as u32);
        t.shape.iter().rev().for_each(|&n| put_u64(&mut header, n as u64));
        put_u32(&mut header, t.ty.0);
        put_u64(&mut header, at);
        slots.push(Slot { name: t.name.clone(), offset: at, len: t.n_bytes as u64 });
        at = at
            .checked_add(t.n_bytes as u64)
            .and_then(|end| end.checked_next_multiple_of(alignment))
            .ok_or_else(|| too_large(t))?;
    }
    if !tensors.is_empty() {
        header.resize(header.len().next_multiple_of(alignment as usize), 0);
    }
    let data_start = header.len() as u64;
    for slot in &mut slots {
        slot.offset += data_start;
    }
    Ok(FilePlan { header, slots, file_len: data_start + at })
}

/// The size in bytes of the file that [`GgufWriter`] would write.
pub fn planned_bytes(metadata: &Metadata, tensors: &[TensorPlan]) -> Result<u64> {
    Ok(plan(metadata, tensors)?.file_len)
}

/// Writes one GGUF file. It appears under its name on [`GgufWriter::finish`].
#[derive(Debug)]
pub struct GgufWriter {
    file: SlotFile,
    plans: HashMap<String, TensorPlan>,
}

impl GgufWriter {
    /// Lays the file out (metadata and tensors in the order given), claims its disk space and writes the header. The alignment
    /// is that of `general.alignment` in the metadata, else 32 bytes.
    pub fn create(path: impl AsRef<Path>, metadata: &Metadata, tensors: Vec<TensorPlan>) -> Result<Self> {
        let path = path.as_ref();
        let p = plan(metadata, &tensors).map_err(|e| e.file(path))?;
        let file = SlotFile::create(path, &p.header, p.slots, p.file_len)?;
        Ok(GgufWriter { file, plans: tensors.into_iter().map(|t| (t.name.clone(), t)).collect() })
    }

    /// Writes one planned tensor's blocks, exactly once.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.file.write(name, bytes)
    }

    /// Writes consecutive rows of one planned tensor from row `first_row` on (all dimensions but the last make rows), in any order
    /// and from any thread, each row exactly once.
    pub fn write_rows(&self, name: &str, first_row: usize, bytes: &[u8]) -> Result<()> {
        let row_bytes =
            self.plans.get(name).map_or(1, |p| p.n_bytes / p.shape[..p.shape.len() - 1].iter().product::<usize>().max(1));
        if row_bytes == 0 || !bytes.len().is_multiple_of(row_bytes) {
            return Err(Error::failed(format!("{} bytes are not whole rows of {row_bytes}", bytes.len())).tensor(name));
        }
        self.file.write_at(name, (first_row as u64).saturating_mul(row_bytes as u64), bytes)
    }

    /// Writes some of one planned tensor's bytes, `offset` bytes into it; every byte exactly once.
    pub fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_at(name, offset, bytes)
    }

    /// Checks that all tensors were written.
    pub(super) fn check_complete(&self) -> Result<()> {
        self.file.check_complete()
    }

    /// Writes one planned tensor, whose shape and codec must be the planned ones.
    pub fn write_tensor(&self, name: &str, tensor: &EncodedTensor) -> Result<()> {
        if let Some(p) = self.plans.get(name)
            && (p.shape != tensor.shape || p.ty.codec() != Some(tensor.codec))
        {
            let message = format!("is {} of {:?}, but the plan says {} of {:?}", tensor.codec, tensor.shape, p.ty, p.shape);
            return Err(Error::failed(message).tensor(name));
        }
        self.write(name, &tensor.bytes)
    }

    /// Checks that all tensors were written, flushes to disk and gives the file its name.
    pub fn finish(self) -> Result<()> {
        self.file.finish()
    }
}

/// Writes a small file in one go.
pub fn write_gguf(path: impl AsRef<Path>, metadata: &Metadata, tensors: &[(String, EncodedTensor)]) -> Result<()> {
    let plans = tensors.iter().map(|(name, t)| TensorPlan::new(name, t.codec, &t.shape)).collect::<Result<_>>()?;
    let writer = GgufWriter::create(path, metadata, plans)?;
    for (name, tensor) in tensors {
        writer.write_tensor(name, tensor)?;
    }
    writer.finish()
}
