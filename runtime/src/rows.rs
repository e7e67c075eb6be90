//! Parts of a checkpoint's tensors, for work in bounded memory.

use crate::arch::{ContainerKind, gguf_row_order};
use crate::checkpoint::{Checkpoint, WeightSource};
use crate::role::{Part, Role};
use bitsmith_formats::{EncodedTensor, Encoding, Error, Result};
use std::ops::Range;

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
