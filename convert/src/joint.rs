//! Tensors that hold several parts of a model, or their matrices turned around: they are put together in memory, one after the other,
//! and written when they are whole.

use crate::layout::{Layout, n_rows};
use bitsmith_formats::{EncodedTensor, Error, Result};
use bitsmith_runtime::Role;
use bitsmith_runtime::arch::{Order, Place};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// The tensors that are being put together, by their index in the layout.
#[derive(Debug, Default)]
pub(crate) struct Joints(Mutex<HashMap<usize, Open>>);

#[derive(Debug)]
struct Open {
    bytes: Vec<u8>,
    filled: usize,
}

impl Joints {
    /// Adds rows of a role, beginning at its row `first_row`. Gives the tensor when it is whole: its index and its bytes.
    pub fn add(&self, layout: &Layout, role: Role, first_row: usize, rows: &EncodedTensor) -> Result<Option<(usize, Vec<u8>)>> {
        let (index, places) =
            layout.joint(role).ok_or_else(|| Error::failed("is no part of a joint tensor").tensor(role.to_string()))?;
        let planned = &layout.tensors[index];
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let open = all.entry(index).or_insert_with(|| Open { bytes: vec![0; planned.bytes], filled: 0 });
        let row_bytes = rows.bytes.len() / n_rows(&rows.shape).max(1);
        let value = row_bytes / rows.shape.last().copied().unwrap_or(1).max(1);
        let width = planned.shape.last().copied().unwrap_or(1);
        let mut first = 0;
        for place in places {
            let end = first + place.n_rows();
            for row in first_row.max(first)..(first_row + n_rows(&rows.shape)).min(end) {
                let from = &rows.bytes[(row - first_row) * row_bytes..][..row_bytes];
                scatter(place, row - first, from, value, width, &mut open.bytes)
                    .ok_or_else(|| Error::failed("does not fit into the tensor that holds it").tensor(&planned.name))?;
                open.filled += row_bytes;
            }
            first = end;
        }
        if open.filled < planned.bytes {
            return Ok(None);
        }
        Ok(all.remove(&index).map(|open| (index, open.bytes)))
    }
}

/// Copies row `row` of a place, values of `value` bytes each, to where it belongs in a tensor of rows of `width` values.
fn scatter(place: &Place, row: usize, from: &[u8], value: usize, width: usize, to: &mut [u8]) -> Option<()> {
    let within = place.within.as_ref()?;
    // Position of value `i` of the row.
    let at = |i: usize| match (&place.order, place.shape.len()) {
        (Order::Transposed, _) => (within.first + i) * width + within.start + row * within.stride,
        (_, 1) => within.first * width + within.start + i * within.stride,
        _ => (within.first + row * within.stride) * width + i,
    };
    for (i, bytes) in from.chunks_exact(value).enumerate() {
        to.get_mut(at(i) * value..(at(i) + 1) * value)?.copy_from_slice(bytes);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_formats::{CodecId, Float};
    use bitsmith_runtime::arch::Within;
    use bitsmith_runtime::{ContainerKind, ModelSpec, Part};
    use serde_json::json;

    #[test]
    fn rows_columns_and_elements_find_their_places() {
        let place = |shape: &[usize], order, first, start, stride| {
            let within = Some(Within { shape: vec![2, 4], first, start, stride });
            Place { name: "t".into(), shape: shape.to_vec(), order, within }
        };
        let put = |place: &Place, row, from: &[u8]| {
            let mut to = vec![0u8; 8];
            scatter(place, row, from, 1, 4, &mut to).unwrap();
            to
        };
        assert_eq!(put(&place(&[1, 4], Order::Same, 1, 0, 1), 0, &[1, 2, 3, 4]), [0, 0, 0, 0, 1, 2, 3, 4]);
        assert_eq!(put(&place(&[2, 2], Order::Transposed, 0, 1, 2), 1, &[5, 6]), [0, 0, 0, 5, 0, 0, 0, 6]);
        assert_eq!(put(&place(&[2], Order::Same, 1, 1, 2), 0, &[7, 8]), [0, 0, 0, 0, 0, 7, 0, 8]);
        assert!(scatter(&place(&[2], Order::Same, 1, 1, 4), 0, &[7, 8], 1, 4, &mut [0; 8]).is_none());
    }

    /// Every value of the parts is in the joint tensors once, whatever the order in which rows come.
    #[test]
    fn a_joint_tensor_is_whole_when_all_parts_have_come() {
        let config = json!({
            "model_type": "granitemoe", "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1,
            "intermediate_size": 32, "vocab_size": 64, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "num_local_experts": 3,
            "num_experts_per_tok": 2,
        });
        let spec = ModelSpec::from_config(&config).unwrap();
        let codecs: Vec<_> = spec.roles().into_iter().filter(|r| r.part.is_matrix()).map(|r| (r, CodecId::F32)).collect();
        let layout = Layout::new(&spec, ContainerKind::Hf, &codecs, Float::F32).unwrap();
        let joints = Joints::default();
        let rows = |first: usize, n: usize| {
            let values: Vec<f32> = (0..n * 32).map(|i| (first * 32 + i) as f32).collect();
            EncodedTensor::encode(CodecId::F32, &[n, 32], &values, None).unwrap()
        };
        let (gate, up) = (Role::layer(0, Part::FfnGateExps), Role::layer(0, Part::FfnUpExps));
        assert!(joints.add(&layout, up, 0, &rows(1000, 96)).unwrap().is_none());
        assert!(joints.add(&layout, gate, 40, &rows(40, 56)).unwrap().is_none());
        let (index, bytes) = joints.add(&layout, gate, 0, &rows(0, 40)).unwrap().unwrap();
        assert_eq!(layout.tensors[index].shape, [3, 64, 32]);
        let first = |row: usize| f32::from_le_bytes(bytes[row * 128..][..4].try_into().unwrap()) / 32.0;
        assert_eq!([0, 31, 32, 63, 64, 96].map(first), [0.0, 31.0, 1000.0, 1031.0, 32.0, 1032.0]);
    }
}
