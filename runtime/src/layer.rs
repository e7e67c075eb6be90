//! The weights of one decoder layer.

use crate::cache::CacheType;
use crate::checkpoint::WeightSource;
use crate::ops;
use crate::product::{ComputeMode, Weight};
use crate::role::{Part, Role};
use crate::spec::ModelSpec;
use bitsmith_formats::{Error, Result};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;

/// One decoder layer: weights by part, matrices as `(out, in)` in f32 or in the blocks they are stored in.
#[derive(Debug, Clone)]
pub struct Layer {
    weights: BTreeMap<Part, Weight>,
    mode: ComputeMode,
    cache: CacheType,
}

impl Layer {
    /// Reads layer `layer`, to be run in the source's mode and with keys and values rounded as the source says.
    pub fn load(source: &dyn WeightSource, layer: usize, device: &Device) -> Result<Self> {
        let spec = source.spec();
        let mut weights = BTreeMap::new();
        for part in spec.layer_parts(layer) {
            weights.insert(part, source.weight(Role::layer(layer, part), device)?);
        }
        Ok(Self::from_weights(spec, layer, weights)?.with_mode(source.compute()).with_cache(source.cache()))
    }

    /// Layer `layer` of given weights, to be run in f32, which must be exactly those that the model has, in their shapes.
    pub fn from_weights(spec: &ModelSpec, layer: usize, weights: BTreeMap<Part, Weight>) -> Result<Self> {
        for part in Part::ALL.iter().copied().filter(|p| p.per_layer()) {
            match (weights.get(&part), spec.has_role(Role::layer(layer, part))) {
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
        Ok(Layer { weights, mode: ComputeMode::F32, cache: CacheType::F32 })
    }

    /// The same layer with its products in this mode.
    pub fn with_mode(self, mode: ComputeMode) -> Self {
        Layer { mode, ..self }
    }

    /// How the layer's products are computed.
    pub fn mode(&self) -> ComputeMode {
        self.mode
    }

    /// The same layer with keys and values of whole windows rounded as this type of cache stores them.
    pub fn with_cache(self, cache: CacheType) -> Self {
        Layer { cache, ..self }
    }

    /// How keys and values of whole windows are rounded.
    pub fn cache(&self) -> CacheType {
        self.cache
    }

    /// Whether the layer has this part.
    pub fn has(&self, part: Part) -> bool {
        self.weights.contains_key(&part)
    }

    /// The weight of a part.
    pub fn weight(&self, part: Part) -> Result<&Weight> {
        self.weights.get(&part).ok_or_else(|| Error::missing("the layer lacks this tensor").tensor(part.name()))
    }

    /// The tensor of a part that is no matrix: those are f32 always.
    pub fn get(&self, part: Part) -> Result<&Tensor> {
        let blocks = || Error::failed("the tensor is kept in blocks").tensor(part.name());
        self.weight(part)?.dense().ok_or_else(blocks)
    }

    /// The tensor of a part that is no matrix, if the layer has it.
    pub fn find(&self, part: Part) -> Option<&Tensor> {
        self.weights.get(&part).and_then(Weight::dense)
    }

    /// Puts another tensor of the same shape in a part's place, a dequantized one for example.
    pub fn replace(&mut self, part: Part, weight: impl Into<Weight>) -> Result<()> {
        let (old, weight) = (self.weight(part)?, weight.into());
        if old.dims() != weight.dims() {
            return Err(Error::failed(format!("shape {:?}, expected {:?}", weight.dims(), old.dims())).tensor(part.name()));
        }
        self.weights.insert(part, weight);
        Ok(())
    }

    /// As [`Layer::replace`], from row-major host values.
    pub fn replace_host(&mut self, part: Part, data: Vec<f32>) -> Result<()> {
        let old = self.weight(part)?;
        let device = old.dense().map_or(Device::Cpu, |t| t.device().clone());
        let shape = old.dims().to_vec();
        if shape.iter().product::<usize>() != data.len() {
            return Err(Error::failed(format!("{} values for shape {shape:?}", data.len())).tensor(part.name()));
        }
        self.replace(part, ops::from_host(data, &shape, &device)?)
    }

    /// The values of a part, row-major, copied or decoded to the host.
    pub fn host(&self, part: Part) -> Result<Vec<f32>> {
        self.weight(part)?.host()
    }

    /// All weights, in the order of [`Part`].
    pub fn weights(&self) -> &BTreeMap<Part, Weight> {
        &self.weights
    }
}
