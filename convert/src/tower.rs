//! Vision tower and projector in checkpoint folders: carried as they are, in a 16-bit type.

use bitsmith_formats::{CodecId, EncodedTensor, Error, Float, Result};
use bitsmith_runtime::arch::vision::{TowerTensor, Wrapper};
use bitsmith_runtime::{Checkpoint, ContainerKind, HostTensor};
use std::sync::Arc;

/// Tower and projector of a model whose folder is to be written: names and shapes.
#[derive(Debug, Clone)]
pub struct TowerFiles {
    /// The kind of model.
    pub(crate) wrapper: &'static Wrapper,
    /// Their 16-bit type, where the folder as a whole has none.
    float: Float,
    /// The tensors, with their shapes in Hugging Face's folders.
    tensors: Arc<Vec<(TowerTensor, Vec<usize>)>>,
}

impl TowerFiles {
    /// Those of a checkpoint, if it has any.
    pub fn of(source: &Checkpoint) -> Result<Option<Self>> {
        let Some(tower) = source.tower() else { return Ok(None) };
        let shaped = |t: &TowerTensor| Ok((t.clone(), source.tower_info(t)?.shape));
        let tensors = tower.tensors.iter().map(shaped).collect::<Result<Vec<_>>>()?;
        Ok(Some(TowerFiles { wrapper: tower.wrapper, float: source.tower_type()?, tensors: tensors.into() }))
    }

    /// The tensors of a folder of this kind. `dense` is the type of a folder of plain numbers, `None` for a quantized one.
    pub(crate) fn plan(&self, kind: ContainerKind, dense: Option<Float>) -> Vec<CarriedTensor> {
        let codec = dense.unwrap_or(self.float).codec();
        let each = |(tensor, shape): &(TowerTensor, Vec<usize>)| {
            let turned = kind == ContainerKind::Mlx && tensor.is_turned_in_mlx();
            let mut shape = shape.clone();
            if turned && shape.len() > 2 {
                let inputs = shape.remove(1);
                shape.push(inputs);
            }
            let (name, source) = (tensor.folder_name(kind), tensor.name.clone());
            CarriedTensor { name, source, shape, codec, turned, linear: tensor.is_linear() }
        };
        self.tensors.iter().map(each).collect()
    }
}

/// A tensor of tower or projector in a folder that is written.
#[derive(Debug, Clone)]
pub(crate) struct CarriedTensor {
    pub name: String,
    /// Its name in the source.
    source: String,
    pub shape: Vec<usize>,
    pub codec: CodecId,
    /// Whether its inputs go last.
    turned: bool,
    /// Whether it is the matrix of a linear layer.
    pub linear: bool,
}

impl CarriedTensor {
    pub fn is(&self, tensor: &TowerTensor) -> bool {
        self.source == tensor.name
    }

    /// The tensor as the folder has it, of its values in Hugging Face's order.
    pub fn encode(&self, tensor: &HostTensor) -> Result<EncodedTensor> {
        let turned;
        let values = match (self.turned, &tensor.shape[..]) {
            (true, [_, inputs, inner @ ..]) => {
                turned = inputs_last(&tensor.data, *inputs, inner.iter().product());
                &turned
            }
            _ => &tensor.data,
        };
        encode(self.codec, &self.shape, values).map_err(|e| e.tensor(&self.name))
    }
}

/// Encodes plain numbers and refuses those that do not fit.
pub(crate) fn encode(codec: CodecId, shape: &[usize], values: &[f32]) -> Result<EncodedTensor> {
    let most = values.iter().fold(0f32, |most, v| most.max(v.abs()));
    if codec.float().is_some_and(|float| !float.round(most).is_finite()) {
        return Err(Error::corrupt(format!("the weight {most} of the vision tower does not fit into {codec}"))
            .hint("choose a target of bf16 or f32"));
    }
    EncodedTensor::encode(codec, shape, values, None)
}

/// `(out, in, …)` as `(out, …, in)`.
fn inputs_last(data: &[f32], inputs: usize, inner: usize) -> Vec<f32> {
    let each =
        |out: &[f32]| (0..inner).flat_map(|at| (0..inputs).map(move |i| i * inner + at)).map(|i| out[i]).collect::<Vec<_>>();
    data.chunks_exact((inputs * inner).max(1)).flat_map(each).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_go_last() {
        let data: Vec<f32> = (0..12).map(|i| i as f32).collect();
        assert_eq!(inputs_last(&data, 3, 2), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0, 6.0, 8.0, 10.0, 7.0, 9.0, 11.0]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(encode(CodecId::F16, &[1], &[7e4]).is_err());
        assert!(encode(CodecId::BF16, &[1], &[7e4]).is_ok());
    }
}
