//! Rotation of the residual stream and of values (QuaRot, Ashkboos et al. 2024; SpinQuant, Liu et al. 2024), as far as it can be done
//! to the weights alone: the result is a plain model of the same architecture.
//!
//! An RMS norm without weights commutes with an orthogonal matrix T. Norm weights are first multiplied into the matrices that
//! read the norm (`W' = W diag(γ) Tᵀ`), whatever writes to the residual stream is turned (`W' = T W`, with its bias), embeddings
//! too, and an output matrix that was the embedding becomes a matrix of its own. Likewise the values of every head are turned, and
//! turned back by the output projection.
//!
//! The inputs of down projections cannot be turned without help at run time. Their channels are levelled instead, as are those of
//! values before they are turned (cross-layer equalization, Nagel et al. 2019): columns of the reader get the same root mean
//! square, the rows that make the channel the inverse factor. Of all factors these make the rounding error of blocks that are
//! scaled to their largest weight smallest, whatever the inputs: with columns `w_j` and inputs `x_j` it is at least
//! `Σ (s_j w_j)² (x_j / s_j)²`, which equal columns attain.

mod rotation;

use super::Transform;
use bitsmith_formats::{CodecId, Encoding, Error, Result};
use bitsmith_runtime::spec::Activation;
use bitsmith_runtime::{CacheType, ComputeMode, HostTensor, Input, ModelSpec, NormKind, Part, Role, WeightSource};
use rotation::Rotation;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// See the module's documentation.
pub struct Rotate {
    name: &'static str,
    about: &'static str,
    rotation: fn(usize, u64) -> Rotation,
}

/// Hadamard matrices with random signs.
pub const HADAMARD: Rotate = Rotate {
    name: "rotate",
    about: "turns the residual stream and the values of every head by Hadamard matrices with random signs (--seed), norm weights \
            multiplied into their readers, columns of down projections levelled: outlier channels are spread over all others",
    rotation: Rotation::hadamard,
};

/// Random orthogonal matrices.
pub const RANDOM: Rotate = Rotate {
    name: "rotate-random",
    about: "the same with random orthogonal matrices (--seed) in place of Hadamard's",
    rotation: Rotation::random,
};

impl Transform for Rotate {
    fn name(&self) -> &'static str {
        self.name
    }
    fn about(&self) -> &'static str {
        self.about
    }
    fn parts(&self) -> &'static [Part] {
        use Part::*;
        &[
            TokenEmbd,
            OutputNorm,
            Output,
            AttnNorm,
            AttnQ,
            AttnK,
            AttnV,
            AttnQkv,
            AttnQA,
            AttnKvA,
            AttnVB,
            AttnOutput,
            FfnNorm,
            FfnGateInp,
            FfnGate,
            FfnUp,
            FfnDown,
            FfnGateExps,
            FfnUpExps,
            FfnDownExps,
            FfnGateInpShexp,
            FfnGateShexp,
            FfnUpShexp,
            FfnDownShexp,
        ]
    }
    fn rewrites(&self) -> bool {
        true
    }
    fn rewrite<'a>(&self, source: Box<dyn WeightSource + 'a>, seed: u64) -> Result<Box<dyn WeightSource + 'a>> {
        Ok(Box::new(Rotated::new(source, self, seed)?))
    }
}

/// The factor of each channel.
type Level = Arc<Vec<f32>>;

/// A rotated model. Tensors are turned one by one as they are read.
struct Rotated<'a> {
    source: Box<dyn WeightSource + 'a>,
    spec: ModelSpec,
    residual: Rotation,
    /// Of values, one per layer.
    heads: Vec<Rotation>,
    /// Factors of levelled channels, once they are known.
    levels: Mutex<BTreeMap<(usize, Channels), Level>>,
}

/// Channels between two linear layers, which nothing else reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Channels {
    /// Values.
    Heads,
    /// Those of a dense feed-forward block.
    Dense,
    /// Those of all experts, one after the other.
    Experts,
    /// Those of the shared expert.
    Shared,
}

impl Channels {
    /// The part that makes them, or its bias, and the part that reads them.
    fn of(part: Part) -> Option<Channels> {
        use Part::*;
        Some(match part {
            AttnV | AttnQkv | AttnVB | AttnVBias | AttnQkvBias | AttnOutput => Channels::Heads,
            FfnUp | FfnUpBias | FfnDown => Channels::Dense,
            FfnUpExps | FfnUpExpsBias | FfnDownExps => Channels::Experts,
            FfnUpShexp | FfnDownShexp => Channels::Shared,
            _ => return None,
        })
    }
    fn reader(self) -> Part {
        match self {
            Channels::Heads => Part::AttnOutput,
            Channels::Dense => Part::FfnDown,
            Channels::Experts => Part::FfnDownExps,
            Channels::Shared => Part::FfnDownShexp,
        }
    }
    /// Whether they are linear in the part that makes them.
    fn are_linear(self, spec: &ModelSpec) -> bool {
        let gated = |gate: bool| gate && spec.activation != Activation::SwigluOai;
        match self {
            Channels::Heads => true,
            Channels::Dense => gated(spec.has(Part::FfnGate) || spec.fused_gate),
            Channels::Experts => gated(spec.has(Part::FfnGateExps)),
            Channels::Shared => gated(spec.has(Part::FfnGateShexp)),
        }
    }
}

/// Why the residual stream of an architecture cannot be rotated.
fn obstacle(spec: &ModelSpec) -> Option<&'static str> {
    use Part::*;
    let has_any = |parts: &[Part]| parts.iter().any(|p| spec.has(*p));
    let untied = untied(spec);
    if !spec.causal {
        Some("encoders norm the residual stream itself")
    } else if spec.norm.kind == NormKind::Layer {
        Some("its norms subtract a mean, which no rotation keeps")
    } else if has_any(&[AttnPostNorm, FfnPostNorm]) {
        Some("norms with weights stand between its blocks' outputs and the residual stream")
    } else if has_any(&[EmbdNorm, AttnResidualNorm, LayerOutputNorm]) {
        Some("norms with weights stand in the residual stream itself")
    } else if has_any(&[AttnNormBias, FfnNormBias, OutputNormBias]) {
        Some("its norms have biases")
    } else if !spec.has(AttnNorm) || !spec.has(OutputNorm) || !spec.has(FfnNorm) && !spec.parallel {
        Some("its blocks read the residual stream without a norm")
    } else if spec.tied && spec.gguf_metadata().is_ok() && untied.gguf_metadata().is_err() {
        Some("its implementations take the embedding for the output matrix, which after a rotation is another")
    } else {
        None
    }
}

/// The same model with an output matrix of its own, and without layers after the last.
fn untied(spec: &ModelSpec) -> ModelSpec {
    let mut spec = spec.without_mtp();
    spec.tied = false;
    spec.add(&[Part::Output]);
    spec
}

impl<'a> Rotated<'a> {
    fn new(source: Box<dyn WeightSource + 'a>, rotate: &Rotate, seed: u64) -> Result<Self> {
        let spec = source.spec();
        if let Some(why) = obstacle(spec) {
            let what = format!("architecture `{}` cannot be rotated: {why}", spec.arch.name);
            return Err(Error::unsupported(what).hint("awq and smooth tame outlier channels of every architecture"));
        }
        // Seeds of their own, so that no two rotations are alike.
        let seed_of = |i: usize| seed.wrapping_mul(0x1_0000).wrapping_add(i as u64);
        let residual = (rotate.rotation)(spec.hidden_size, seed_of(0));
        let heads = (1..=spec.n_layers).map(|i| (rotate.rotation)(spec.v_head_dim, seed_of(i))).collect();
        Ok(Rotated { spec: untied(spec), residual, heads, source, levels: Mutex::default() })
    }

    /// Where the source has a tensor: an output matrix may be its embedding.
    fn stored(&self, role: Role) -> Role {
        let tied = role.part == Part::Output && self.source.spec().tied;
        if tied { Role::global(Part::TokenEmbd) } else { role }
    }

    /// The weights of the norm whose output a tensor reads.
    fn gains(&self, role: Role) -> Result<Option<Vec<f32>>> {
        let input = if role.part.is_router() { Some(Input::FfnIn) } else { role.part.input() };
        let norm = match input {
            Some(Input::AttnIn) => Part::AttnNorm,
            // In parallel blocks one norm may serve both.
            Some(Input::FfnIn) if !self.spec.has(Part::FfnNorm) => Part::AttnNorm,
            Some(Input::FfnIn) => Part::FfnNorm,
            Some(Input::Head) => Part::OutputNorm,
            _ => return Ok(None),
        };
        let layer = role.layer;
        let stored = self.source.read(Role { layer, part: norm })?.data;
        Ok(Some(stored.into_iter().map(|g| g + self.spec.norm.offset).collect()))
    }

    /// The factors of a reader's columns, one per channel; 1 for channels that no factor may change.
    fn level(&self, layer: usize, channels: Channels) -> Result<Arc<Vec<f32>>> {
        let lock = || self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(&(layer, channels)) {
            return Ok(known.clone());
        }
        let spec = &self.spec;
        let reader = self.source.read(Role::layer(layer, channels.reader()))?;
        let (rows, columns) = (reader.shape[reader.shape.len() - 2], reader.shape[reader.shape.len() - 1]);
        let matrices = reader.data.len() / (rows * columns).max(1);
        let mut squares = vec![0f64; matrices * columns];
        for (i, row) in reader.data.chunks_exact(columns).enumerate() {
            let of_matrix = &mut squares[i / rows * columns..][..columns];
            of_matrix.iter_mut().zip(row).for_each(|(sum, w)| *sum += f64::from(*w).powi(2));
        }
        if channels == Channels::Heads {
            // Query heads that share a value head share its channels.
            let (dim, group) = (spec.v_head_dim, spec.n_heads / self.value_heads());
            let sum = |c: usize| (0..group).map(|g| squares[(c / dim * group + g) * dim + c % dim]).sum();
            squares = (0..self.value_heads() * dim).map(sum).collect();
        }
        let factors = Arc::new(levelling(&squares));
        lock().insert((layer, channels), factors.clone());
        Ok(factors)
    }

    /// Value heads: latent attention has one for each query head.
    fn value_heads(&self) -> usize {
        if self.spec.latent.is_some() { self.spec.n_heads } else { self.spec.n_kv_heads }
    }

    /// The values of a tensor that ends in the rows of values, `row_len` long: divided by their factors, then turned within each head.
    fn turn_values(&self, layer: usize, data: &mut [f32], row_len: usize) -> Result<()> {
        let factors = self.level(layer, Channels::Heads)?;
        let first = data.len() - factors.len() * row_len;
        divide_rows(&mut data[first..], &factors, row_len);
        data[first..].chunks_exact_mut(self.spec.v_head_dim * row_len).for_each(|head| self.heads[layer].turn_columns(head));
        Ok(())
    }

    /// A tensor of a layer with the channels that it makes or reads levelled, and values turned.
    fn between(&self, layer: usize, part: Part, t: &mut HostTensor) -> Result<()> {
        let Some(channels) = Channels::of(part).filter(|c| c.are_linear(&self.spec)) else { return Ok(()) };
        let row_len = if part.is_matrix() { *t.shape.last().unwrap_or(&1) } else { 1 };
        let makes = part != channels.reader();
        match channels {
            Channels::Heads if makes => self.turn_values(layer, &mut t.data, row_len)?,
            Channels::Heads => {
                let (dim, group) = (self.spec.v_head_dim, self.spec.n_heads / self.value_heads());
                let factors = self.level(layer, channels)?;
                let factor = |c: usize| factors[c / dim / group * dim + c % dim];
                let columns: Vec<f32> = (0..row_len).map(factor).collect();
                multiply_columns(&mut t.data, &columns);
                self.heads[layer].turn_rows(&mut t.data, None);
            }
            _ => {
                let factors = self.level(layer, channels)?;
                if makes {
                    // The gate's rows may stand before.
                    let first = t.data.len() - factors.len() * row_len;
                    divide_rows(&mut t.data[first..], &factors, row_len);
                } else {
                    let matrices = factors.len() / row_len;
                    let each = t.data.len() / matrices;
                    t.data.chunks_exact_mut(each).zip(factors.chunks_exact(row_len)).for_each(|(m, f)| multiply_columns(m, f));
                }
            }
        }
        Ok(())
    }
}

impl WeightSource for Rotated<'_> {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// What is turned is stored nowhere: plain numbers.
    fn codec(&self, _: Role) -> Result<Encoding> {
        Ok(Encoding::Codec(CodecId::F32))
    }

    fn read(&self, role: Role) -> Result<HostTensor> {
        use Part::*;
        let mut t = self.source.read(self.stored(role))?;
        match role.part {
            AttnNorm | FfnNorm | OutputNorm => t.data.fill(1.0 - self.spec.norm.offset),
            TokenEmbd | PositionEmbd | TokenTypes | AttnOutputBias | FfnDownBias | FfnDownExpsBias => {
                self.residual.turn_rows(&mut t.data, None);
            }
            _ => {
                if let Some(gains) = self.gains(role)? {
                    self.residual.turn_rows(&mut t.data, Some(&gains));
                }
                if let Some(layer) = role.layer {
                    self.between(layer, role.part, &mut t)?;
                }
            }
        }
        if matches!(role.part, AttnOutput | FfnDown | FfnDownExps | FfnDownShexp) {
            let [.., rows, columns] = t.shape[..] else { return Err(Error::failed("is no matrix").tensor(role.to_string())) };
            t.data.chunks_exact_mut(rows * columns).for_each(|matrix| self.residual.turn_columns(matrix));
        }
        Ok(t)
    }

    fn compute(&self) -> ComputeMode {
        self.source.compute()
    }

    fn cache(&self) -> CacheType {
        self.source.cache()
    }
}

/// Factors that give columns with these sums of squares the same root mean square, with a geometric mean of 1; 1 for empty columns.
fn levelling(squares: &[f64]) -> Vec<f32> {
    let logs: Vec<f64> = squares.iter().filter(|s| **s > 0.0).map(|s| s.ln()).collect();
    let mean = logs.iter().sum::<f64>() / logs.len().max(1) as f64;
    let factor = |s: &f64| if *s > 0.0 { ((mean - s.ln()) / 2.0).exp().clamp(1e-4, 1e4) as f32 } else { 1.0 };
    squares.iter().map(factor).collect()
}

fn divide_rows(rows: &mut [f32], factors: &[f32], row_len: usize) {
    rows.chunks_exact_mut(row_len).zip(factors).for_each(|(row, f)| row.iter_mut().for_each(|w| *w /= f));
}

fn multiply_columns(matrix: &mut [f32], factors: &[f32]) {
    matrix.chunks_exact_mut(factors.len()).for_each(|row| row.iter_mut().zip(factors).for_each(|(w, f)| *w *= f));
}

#[cfg(test)]
mod tests;
