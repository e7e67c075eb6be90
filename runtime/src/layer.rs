//! The weights of one decoder layer, as tensors.

use crate::checkpoint::WeightSource;
use crate::ops::{self, OrFail};
use crate::role::{Part, Role};
use crate::spec::ModelSpec;
use bitsmith_formats::{Error, Result};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;

/// One decoder layer: f32 tensors by part, matrices as `(out, in)`.
#[derive(Debug, Clone)]
pub struct Layer {
    tensors: BTreeMap<Part, Tensor>,
}

impl Layer {
    /// Reads and decodes layer `layer`.
    pub fn load(source: &dyn WeightSource, layer: usize, device: &Device) -> Result<Self> {
        let spec = source.spec();
        let mut tensors = BTreeMap::new();
        for part in spec.layer_parts(layer) {
            let host = source.read(Role::layer(layer, part))?;
            tensors.insert(part, ops::from_host(host.data, &host.shape, device)?);
        }
        Self::from_tensors(spec, layer, tensors)
    }

    /// Layer `layer` of given tensors, which must be exactly those that the model has, in their shapes.
    pub fn from_tensors(spec: &ModelSpec, layer: usize, tensors: BTreeMap<Part, Tensor>) -> Result<Self> {
        for part in Part::ALL.iter().copied().filter(|p| p.per_layer()) {
            match (tensors.get(&part), spec.has_role(Role::layer(layer, part))) {
                (Some(t), true) if t.dims() == spec.shape(part) => {}
                (None, false) => {}
                (Some(t), true) => {
                    let want = spec.shape(part);
                    return Err(Error::corrupt(format!("shape {:?}, expected {want:?}", t.dims())).tensor(part.name()));
                }
                (None, true) => return Err(Error::missing("the layer lacks this tensor").tensor(part.name())),
                (Some(_), false) => return Err(Error::corrupt("the architecture has no such tensor").tensor(part.name())),
            }
        }
        Ok(Layer { tensors })
    }

    /// The tensor of a part.
    pub fn get(&self, part: Part) -> Result<&Tensor> {
        self.tensors.get(&part).ok_or_else(|| Error::missing("the layer lacks this tensor").tensor(part.name()))
    }

    /// The tensor of a part, if the layer has it.
    pub fn find(&self, part: Part) -> Option<&Tensor> {
        self.tensors.get(&part)
    }

    /// Puts another tensor of the same shape in a part's place, a dequantized one for example.
    pub fn replace(&mut self, part: Part, tensor: Tensor) -> Result<()> {
        let old = self.get(part)?;
        if old.dims() != tensor.dims() {
            return Err(Error::failed(format!("shape {:?}, expected {:?}", tensor.dims(), old.dims())).tensor(part.name()));
        }
        self.tensors.insert(part, tensor);
        Ok(())
    }

    /// As [`Layer::replace`], from row-major host values.
    pub fn replace_host(&mut self, part: Part, data: Vec<f32>) -> Result<()> {
        let old = self.get(part)?;
        let (shape, device) = (old.dims().to_vec(), old.device().clone());
        if shape.iter().product::<usize>() != data.len() {
            return Err(Error::failed(format!("{} values for shape {shape:?}", data.len())).tensor(part.name()));
        }
        self.replace(part, ops::from_host(data, &shape, &device)?)
    }

    /// The values of a part, row-major, copied to the host.
    pub fn host(&self, part: Part) -> Result<Vec<f32>> {
        self.get(part)?.flatten_all().and_then(|t| t.to_vec1::<f32>()).or_fail()
    }

    /// All tensors, in the order of [`Part`].
    pub fn tensors(&self) -> &BTreeMap<Part, Tensor> {
        &self.tensors
    }

    /// All tensors, given away.
    pub fn into_tensors(self) -> BTreeMap<Part, Tensor> {
        self.tensors
    }
}
