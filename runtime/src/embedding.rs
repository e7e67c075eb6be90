//! From token ids to the first hidden states: embedding, learned positions and segment types, their norm and scale.

use crate::checkpoint::WeightSource;
use crate::ops::{self, OrFail};
use crate::product::Weight;
use crate::role::{Part, Role};
use crate::spec::{ModelSpec, Norm};
use bitsmith_formats::{Error, Result};
use candle_core::{Device, Tensor};

/// What stands before the decoder layers.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// `(vocab, hidden)`.
    table: Weight,
    device: Device,
    /// Learned positions, `(context, hidden)`.
    positions: Option<Tensor>,
    /// The embedding of the first segment type, which all tokens have, `(hidden)`.
    segment: Option<Tensor>,
    /// Weight and bias of a norm.
    norm: Option<(Tensor, Option<Tensor>, Norm)>,
    scale: f32,
}

impl Embedding {
    /// Reads what the model has.
    pub fn load(source: &dyn WeightSource, device: &Device) -> Result<Self> {
        Self::with_table(source, source.weight(Role::global(Part::TokenEmbd), device)?, device)
    }

    /// As [`Embedding::load`], with other token embeddings, `(vocab, hidden)`.
    pub fn with_table(source: &dyn WeightSource, table: Weight, device: &Device) -> Result<Self> {
        let spec = source.spec();
        let want = spec.shape(Part::TokenEmbd);
        if table.dims() != want {
            return Err(Error::corrupt(format!("shape {:?}, expected {want:?}", table.dims())).tensor(Part::TokenEmbd.name()));
        }
        let read = |part: Part| global(source, part, device);
        let segment = read(Part::TokenTypes)?.map(|t| t.get(0).and_then(|t| t.contiguous()).or_fail()).transpose()?;
        let norm = match read(Part::EmbdNorm)? {
            Some(weight) => Some((weight, read(Part::EmbdNormBias)?, spec.norm)),
            None => None,
        };
        let positions = read(Part::PositionEmbd)?;
        Ok(Embedding { table, device: device.clone(), positions, segment, norm, scale: spec.scales.embedding })
    }

    /// The token embeddings alone, `(vocab, hidden)`.
    pub fn table(&self) -> &Weight {
        &self.table
    }

    /// Hidden states `(ids, hidden)`; token `i` stands at `position(i)` of its sequence.
    pub fn rows(&self, ids: &[u32], position: impl Fn(usize) -> usize) -> Result<Tensor> {
        let mut x = ops::scale(self.table.embed(ids, &self.device)?, self.scale)?;
        if let Some(positions) = &self.positions {
            let known = positions.dim(0).or_fail()?;
            let each: Vec<u32> = (0..ids.len()).map(|i| position(i) as u32).collect();
            if let Some(last) = each.iter().max().filter(|p| **p as usize >= known) {
                return Err(Error::usage(format!("position {last} exceeds the {known} that the model knows")));
            }
            x = ops::add(x, &ops::embed(positions, &each)?)?;
        }
        if let Some(segment) = &self.segment {
            x = ops::add_bias(x, segment)?;
        }
        match &self.norm {
            Some((weight, bias, norm)) => ops::norm(&x, weight, bias.as_ref(), *norm),
            None => Ok(x),
        }
    }
}

/// The norm before the output matrix; without weights, nothing happens.
#[derive(Debug, Clone)]
pub struct OutputNorm {
    weight: Option<Tensor>,
    bias: Option<Tensor>,
    norm: Norm,
}

impl OutputNorm {
    /// Of these weights, `(hidden)`.
    pub fn new(weight: Option<Tensor>, bias: Option<Tensor>, norm: Norm) -> Self {
        OutputNorm { weight, bias, norm }
    }

    /// Reads what the model has.
    pub fn load(source: &dyn WeightSource, device: &Device) -> Result<Self> {
        let (weight, bias) = (global(source, Part::OutputNorm, device)?, global(source, Part::OutputNormBias, device)?);
        Ok(OutputNorm { weight, bias, norm: source.spec().norm })
    }

    /// Normed states, `(rows, hidden)`.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Some(weight) => ops::norm(x, weight, self.bias.as_ref(), self.norm),
            None => Ok(x.clone()),
        }
    }
}

/// A tensor outside the layers, if the model has it.
pub(crate) fn global(source: &dyn WeightSource, part: Part, device: &Device) -> Result<Option<Tensor>> {
    if !source.spec().has(part) {
        return Ok(None);
    }
    let host = source.read(Role::global(part))?;
    ops::from_host(host.data, &host.shape, device).map(Some)
}

/// Checks that tokens are in the vocabulary.
pub(crate) fn check_tokens(spec: &ModelSpec, tokens: &[u32], place: impl FnOnce() -> String) -> Result<()> {
    match tokens.iter().find(|t| **t as usize >= spec.vocab_size) {
        None => Ok(()),
        Some(bad) => {
            let place = place();
            Err(Error::corrupt(format!("token {bad}{place} is outside the model's vocabulary of {}", spec.vocab_size))
                .hint("the tokenizer does not belong to this model"))
        }
    }
}
