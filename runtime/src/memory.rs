//! Weights in memory: a transformed or made-up model behind the same interface as a checkpoint.

use crate::checkpoint::{HostTensor, WeightSource, check_shape};
use crate::role::{Part, Role};
use crate::sampler::Rng;
use crate::spec::ModelSpec;
use bitsmith_formats::{CodecId, Encoding, Error, Result};
use std::collections::BTreeMap;

/// A whole model's weights as f32 in memory.
#[derive(Debug, Clone)]
pub struct MemoryWeights {
    spec: ModelSpec,
    tensors: BTreeMap<Role, HostTensor>,
}

impl MemoryWeights {
    /// Reads every tensor of `source`.
    pub fn copy(source: &dyn WeightSource) -> Result<Self> {
        let spec = source.spec().clone();
        let tensors = spec.roles().into_iter().map(|r| Ok((r, source.read(r)?))).collect::<Result<_>>()?;
        Ok(MemoryWeights { spec, tensors })
    }

    /// A made-up model for tests: bell-shaped weights that keep activations near unit size, norms near 1, small biases.
    pub fn random(spec: ModelSpec, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut tensors = BTreeMap::new();
        for role in spec.roles() {
            let shape = spec.shape(role.part);
            let (mean, spread) = match role.part {
                Part::TokenEmbd => (0.0, 1.0),
                Part::PositionEmbd | Part::TokenTypes => (0.0, 0.5),
                p if p.is_matrix() => (0.0, (shape[shape.len() - 1] as f64).sqrt().recip()),
                Part::FfnGateInp | Part::FfnGateInpShexp => (0.0, (spec.hidden_size as f64).sqrt().recip()),
                p if p.name().ends_with(".bias") => (0.0, 0.1),
                Part::AttnSinks => (0.0, 1.0),
                _ => (1.0 - f64::from(spec.norm.offset), 0.1),
            };
            let data = (0..shape.iter().product()).map(|_| (mean + spread * rng.normal()) as f32).collect();
            tensors.insert(role, HostTensor { shape, data });
        }
        MemoryWeights { spec, tensors }
    }

    /// Replaces a tensor.
    pub fn set(&mut self, role: Role, data: Vec<f32>) -> Result<()> {
        let shape = self.spec.shape(role.part);
        if !self.tensors.contains_key(&role) || shape.iter().product::<usize>() != data.len() {
            return Err(Error::failed(format!("{} values do not fit", data.len())).tensor(role.to_string()));
        }
        self.tensors.insert(role, HostTensor { shape, data });
        Ok(())
    }
}

impl WeightSource for MemoryWeights {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }
    fn codec(&self, role: Role) -> Result<Encoding> {
        match self.tensors.get(&role) {
            Some(_) => Ok(Encoding::Codec(CodecId::F32)),
            None => Err(Error::missing("no such tensor").tensor(role.to_string())),
        }
    }
    fn read(&self, role: Role) -> Result<HostTensor> {
        let t = self.tensors.get(&role).ok_or_else(|| Error::missing("no such tensor").tensor(role.to_string()))?;
        check_shape(&self.spec, role, &t.shape).map_err(|e| e.tensor(role.to_string()))?;
        Ok(t.clone())
    }
}
