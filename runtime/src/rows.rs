//! Parts of a checkpoint's tensors, for work in bounded memory.

use crate::arch::{ContainerKind, gguf_row_order};
use crate::checkpoint::{Checkpoint, WeightSource, check_shape};
use crate::ops;
use crate::role::{Part, Role};
use bitsmith_formats::{CodecId, EncodedTensor, Encoding, Error, Result};
use candle_core::{Device, Tensor};
use std::ops::Range;

/// Weights that are decoded at a time to look for NaN.
const CHECKED: usize = 1 << 22;

impl Checkpoint {
    /// Rows of this tensor that the container may have rearranged among themselves: reading takes them together.
    pub fn row_align(&self, role: Role) -> usize {
        if self.heads(role).is_some() && role.part.is_matrix() { self.spec().head_dim } else { 1 }
    }

    /// Some rows of a tensor decoded to f32, in Hugging Face's order. Of a tensor with more than two dimensions, all but the last
    /// make rows; a vector is one row. Multiples of [`Checkpoint::row_align`] read nothing else.
    pub fn read_rows(&self, role: Role, rows: Range<usize>) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        self.read_rows_into(role, rows, &mut values)?;
        Ok(values)
    }

    /// [`Checkpoint::read_rows`] into a buffer that is used again: its contents are replaced.
    pub fn read_rows_into(&self, role: Role, rows: Range<usize>, values: &mut Vec<f32>) -> Result<()> {
        let name = self.tensor_name(role)?;
        let at = |e: Error| e.file(self.store().file_of(name)).tensor(name);
        let read = |rows| self.store().read_rows(name, rows).map_err(at);
        *values = match self.heads(role) {
            Some(heads) if !role.part.is_matrix() => in_order(&read(rows)?, &gguf_row_order(heads, self.spec().head_dim)),
            Some(_) => self.whole_heads(role, rows, read)?,
            None => return self.store().read_rows_into(name, rows, values).map_err(at),
        };
        Ok(())
    }

    /// Some rows of a matrix as blocks of its codec, in Hugging Face's order, as [`Checkpoint::read_rows`] has them.
    pub fn read_blocks(&self, role: Role, rows: Range<usize>) -> Result<EncodedTensor> {
        let name = self.tensor_name(role)?;
        let at = |e: Error| e.file(self.store().file_of(name)).tensor(name);
        let info = self.store().find(name).ok_or_else(|| at(Error::missing("no such tensor")))?;
        let Encoding::Codec(codec) = info.encoding else {
            return Err(at(Error::unsupported(format!("{} is not made of blocks", info.encoding))));
        };
        let shape = [rows.len(), info.row_len()];
        let read = |rows| Ok(self.store().row_bytes(name, rows).map_err(at)?.into_owned());
        Ok(EncodedTensor { shape: shape.to_vec(), codec, bytes: self.whole_heads(role, rows, read)?, scale: info.scale })
    }

    /// Whether a tensor is stored in blocks of a codec other than plain f32.
    pub(crate) fn in_blocks(&self, role: Role) -> Result<bool> {
        Ok(matches!(self.codec(role)?, Encoding::Codec(codec) if codec != CodecId::F32))
    }

    /// All rows as blocks, in the shape that the spec gives, after a look at every value: NaN or infinity is an error that names the row.
    pub(crate) fn read_checked_blocks(&self, role: Role) -> Result<EncodedTensor> {
        let name = self.tensor_name(role)?;
        let info = self.store().find(name).ok_or_else(|| Error::missing("no such tensor").file(self.path()).tensor(name))?;
        let at = |e: Error| e.file(self.store().file_of(name)).tensor(name);
        check_shape(self.spec(), role, &info.shape).map_err(at)?;
        let (rows, per_part) = (info.n_rows(), (CHECKED / info.row_len().max(1)).max(1));
        let mut values = Vec::new();
        for first in (0..rows).step_by(per_part) {
            self.store().read_rows_into(name, first..rows.min(first + per_part), &mut values).map_err(at)?;
        }
        let shape = info.shape.clone();
        Ok(EncodedTensor { shape, ..self.read_blocks(role, 0..rows)? })
    }

    /// Some rows of an embedding, read and decoded by themselves.
    pub(crate) fn embed_rows(&self, role: Role, ids: &[u32], device: &Device) -> Result<Tensor> {
        let name = self.tensor_name(role)?;
        let info = self.store().find(name).ok_or_else(|| Error::missing("no such tensor").file(self.path()).tensor(name))?;
        check_shape(self.spec(), role, &info.shape).map_err(|e| e.file(self.store().file_of(name)).tensor(name))?;
        let (rows, columns) = (info.n_rows(), info.row_len());
        if let Some(bad) = ids.iter().find(|id| **id as usize >= rows) {
            return Err(Error::corrupt(format!("token {bad} is outside the embedding of {rows} rows")).tensor(name));
        }
        let mut values = Vec::with_capacity(ids.len() * columns);
        let mut row = Vec::new();
        for id in ids {
            self.read_rows_into(role, *id as usize..*id as usize + 1, &mut row)?;
            values.extend_from_slice(&row);
        }
        ops::from_host(values, &[ids.len(), columns], device)
    }

    /// Rows of a matrix from a container that may have rearranged rows within heads.
    fn whole_heads<T: Copy + Default>(
        &self,
        role: Role,
        rows: Range<usize>,
        read: impl FnOnce(Range<usize>) -> Result<Vec<T>>,
    ) -> Result<Vec<T>> {
        let Some(heads) = self.heads(role) else { return read(rows) };
        let align = self.spec().head_dim;
        let order = gguf_row_order(heads, align);
        let whole = rows.start / align * align..rows.end.next_multiple_of(align);
        let local: Vec<usize> = order[whole.clone()].iter().map(|row| row - whole.start).collect();
        let values = in_order(&read(whole.clone())?, &local);
        let row_len = values.len() / local.len().max(1);
        Ok(values[(rows.start - whole.start) * row_len..(rows.end - whole.start) * row_len].to_vec())
    }

    /// The heads of a tensor whose rows GGUF interleaves.
    fn heads(&self, role: Role) -> Option<usize> {
        if self.kind() != ContainerKind::Gguf || !self.spec().arch.gguf_permutes_qk {
            return None;
        }
        match role.part {
            Part::AttnQ | Part::AttnQBias => Some(self.spec().n_heads),
            Part::AttnK | Part::AttnKBias => Some(self.spec().n_kv_heads),
            _ => None,
        }
    }
}

/// Puts row `i` of `data` at `order[i]`.
fn in_order<T: Copy + Default>(data: &[T], order: &[usize]) -> Vec<T> {
    let row_len = data.len() / order.len().max(1);
    let mut out = vec![T::default(); data.len()];
    for (row, at) in data.chunks_exact(row_len.max(1)).zip(order) {
        out[at * row_len..(at + 1) * row_len].copy_from_slice(row);
    }
    out
}
