//! The seam between block formats and everything that uses them: [`Codec`] turns rows into bytes and back, [`Grid`] lets a
//! solver choose scales and codes itself and pack them.

use crate::codecs;
use crate::error::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A floating-point storage type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Float {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of an F32.
    BF16,
}

impl Float {
    /// Bytes per value.
    pub fn size(self) -> usize {
        match self {
            Float::F32 => 4,
            Float::F16 | Float::BF16 => 2,
        }
    }
    /// `x` rounded (nearest, ties to even) to this type, as f32.
    pub fn round(self, x: f32) -> f32 {
        match self {
            Float::F32 => x,
            Float::F16 => half::f16::from_f32(x).to_f32(),
            Float::BF16 => half::bf16::from_f32(x).to_f32(),
        }
    }
    /// The codec that stores plain values of this type.
    pub fn codec(self) -> CodecId {
        match self {
            Float::F32 => CodecId::F32,
            Float::F16 => CodecId::F16,
            Float::BF16 => CodecId::BF16,
        }
    }
}

/// Names a block format. `Display` and `FromStr` use the names of the command line: `q4_k`, `bf16`, `mlx-4bit-g64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CodecId {
    /// Plain f32.
    F32,
    /// Plain f16.
    F16,
    /// Plain bf16.
    BF16,
    /// ggml: 32 weights, 8 bits, f16 scale.
    Q8_0,
    /// ggml: 32 weights, 4 bits, f16 scale.
    Q4_0,
    /// ggml: 32 weights, 4 bits, f16 scale and minimum.
    Q4_1,
    /// ggml: 32 weights, 5 bits, f16 scale.
    Q5_0,
    /// ggml: 32 weights, 5 bits, f16 scale and minimum.
    Q5_1,
    /// ggml: 256 weights, 4 bits, 8 sub-blocks with 6-bit scales and minima.
    Q4K,
    /// ggml: 256 weights, 5 bits, 8 sub-blocks with 6-bit scales and minima.
    Q5K,
    /// ggml: 256 weights, 6 bits, 16 sub-blocks with 8-bit scales.
    Q6K,
    /// MLX affine: `group` weights of `bits` bits with a scale and a bias of type `scale`.
    /// As a byte stream here: per group the codes (little-endian bit stream), then scale, then bias; the MLX container
    /// separates the three planes.
    MlxAffine {
        /// Bits per code: 4 or 8.
        bits: u8,
        /// Weights per group: 32, 64 or 128.
        group: u16,
        /// Storage type of scales and biases.
        scale: Float,
    },
}

impl CodecId {
    /// The ggml block formats that have a grid, widest last.
    pub const GGML: [CodecId; 8] =
        [CodecId::Q4_0, CodecId::Q4K, CodecId::Q4_1, CodecId::Q5_0, CodecId::Q5K, CodecId::Q5_1, CodecId::Q6K, CodecId::Q8_0];

    /// The codec itself.
    pub fn codec(self) -> &'static dyn Codec {
        codecs::lookup(self)
    }
    /// Plain storage type, if this is one.
    pub fn float(self) -> Option<Float> {
        match self {
            CodecId::F32 => Some(Float::F32),
            CodecId::F16 => Some(Float::F16),
            CodecId::BF16 => Some(Float::BF16),
            _ => None,
        }
    }
    /// Bits per weight, scales included.
    pub fn bits_per_weight(self) -> f64 {
        let c = self.codec();
        c.block_bytes() as f64 * 8.0 / c.block_len() as f64
    }
    /// Bytes of a row of `row_len` weights, or an error if the row is not a whole number of blocks.
    pub fn row_bytes(self, row_len: usize) -> Result<usize> {
        let c = self.codec();
        if !row_len.is_multiple_of(c.block_len()) {
            return Err(Error::usage(format!("rows of {row_len} weights are not whole blocks of {} in {self}", c.block_len())));
        }
        Ok(row_len / c.block_len() * c.block_bytes())
    }
}

impl fmt::Display for CodecId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            CodecId::F32 => "f32",
            CodecId::F16 => "f16",
            CodecId::BF16 => "bf16",
            CodecId::Q8_0 => "q8_0",
            CodecId::Q4_0 => "q4_0",
            CodecId::Q4_1 => "q4_1",
            CodecId::Q5_0 => "q5_0",
            CodecId::Q5_1 => "q5_1",
            CodecId::Q4K => "q4_k",
            CodecId::Q5K => "q5_k",
            CodecId::Q6K => "q6_k",
            CodecId::MlxAffine { bits, group, scale } => {
                write!(f, "mlx-{bits}bit-g{group}")?;
                return match scale {
                    Float::BF16 => Ok(()),
                    other => write!(f, "-{}", other.codec()),
                };
            }
        };
        f.write_str(name)
    }
}

impl FromStr for CodecId {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        let unknown = || Error::unsupported(format!("unknown encoding `{s}`")).hint("`bitsmith targets` lists the encodings");
        let lower = s.to_ascii_lowercase();
        for id in [CodecId::F32, CodecId::F16, CodecId::BF16].into_iter().chain(CodecId::GGML) {
            if id.to_string() == lower {
                return Ok(id);
            }
        }
        let rest = lower.strip_prefix("mlx-").ok_or_else(unknown)?;
        let mut parts = rest.split('-');
        let bits = parts.next().and_then(|p| p.strip_suffix("bit")).and_then(|p| p.parse().ok());
        let group = match parts.next() {
            None => Some(64),
            Some(p) => p.strip_prefix('g').and_then(|p| p.parse().ok()),
        };
        let scale = match parts.next() {
            None | Some("bf16") => Float::BF16,
            Some("f16") => Float::F16,
            Some("f32") => Float::F32,
            Some(_) => return Err(unknown()),
        };
        match (bits, group) {
            (Some(bits @ (4 | 8)), Some(group @ (32 | 64 | 128))) => Ok(CodecId::MlxAffine { bits, group, scale }),
            _ => Err(unknown()),
        }
    }
}

impl Serialize for CodecId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CodecId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A block format: how [`Codec::block_len`] consecutive weights of a row become [`Codec::block_bytes`] bytes.
pub trait Codec: Send + Sync {
    /// Which format this is.
    fn id(&self) -> CodecId;
    /// Weights per block.
    fn block_len(&self) -> usize;
    /// Bytes per block.
    fn block_bytes(&self) -> usize;
    /// Encodes one whole row exactly as the format's reference encoder does (ggml on x86-64 without FMA contraction,
    /// `mx.quantize` on CPU). `importance`, one value per column, weighs the squared error of each weight; formats whose
    /// reference ignores importance ignore it. `row.len()` must be a multiple of `block_len` and `out` must have the row's bytes.
    fn encode(&self, row: &[f32], importance: Option<&[f32]>, out: &mut [u8]);
    /// Decodes whole blocks; `out.len()` must be `bytes.len() / block_bytes * block_len`.
    fn decode(&self, bytes: &[u8], out: &mut [f32]);
    /// The codec as a grid that a solver can walk; `None` for plain floating-point storage.
    fn grid(&self) -> Option<&dyn Grid>;
}

/// The scales of one block, fitted but not yet packed. The dequantized value of code `q` at position `i` of the block is
/// `step[s] * q + offset[s]` with `s = i / sub_len`, computed in f32 from the scales *as the format stores them* (rounded
/// to f16, to 6-bit integers, …), so that a solver sees exactly what a runtime will.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockScales {
    /// Weights per sub-block.
    pub sub_len: usize,
    /// Effective step of each sub-block.
    pub step: Vec<f32>,
    /// Effective value of code 0 of each sub-block.
    pub offset: Vec<f32>,
    /// The block's own stored numbers, in the format's terms: super-block scale and minimum (`d`, `dmin`), or the group's scale and bias.
    pub stored: [f32; 2],
    /// Integer scales of the sub-blocks, then integer minima, where the format has them.
    pub ints: Vec<i16>,
}

/// The quadratic form a solver minimises over one block: `loss(δ) = δᵀ H δ` for `δ = ŵ − w`, with `H` the block's part of
/// E(x xᵀ) (row-major, n × n, symmetric).
#[derive(Debug, Clone, Copy)]
pub enum Gram<'a> {
    /// Only the diagonal: independent weights, one importance per position.
    Diagonal(&'a [f32]),
    /// The full block.
    Full(&'a [f32]),
}

/// A codec as a grid: scales first, then codes, so that a solver may change later weights in between.
///
/// Codes are unsigned and stored one per byte while solving: `0 ..= max_code`. All methods work on one block.
pub trait Grid: Send + Sync {
    /// Weights per block, as in [`Codec::block_len`].
    fn block_len(&self) -> usize;
    /// Largest code.
    fn max_code(&self) -> u8;
    /// Consecutive weights that [`Grid::round`] chooses together: 1 for scalar grids, 4 or 8 for codebook grids.
    fn step(&self) -> usize {
        1
    }
    /// The scales that minimise `Σ importance[i] (ŵ[i] − w[i])²` over one block: a thorough search, free to differ from the reference encoder.
    fn fit(&self, weights: &[f32], importance: &[f32]) -> BlockScales;
    /// The same for weights that have moved a little since `start` was fitted to them: a search near `start` only, several
    /// times faster, never worse than `start`.
    fn fit_near(&self, start: &BlockScales, weights: &[f32], importance: &[f32]) -> BlockScales;
    /// Rounds `x` (`step()` values at position `at` of the block) to the grid: writes codes and their values.
    fn round(&self, scales: &BlockScales, at: usize, x: &[f32], code: &mut [u8], value: &mut [f32]);
    /// With codes fixed, moves the scales so that a quadratic loss falls, within what the format can store. `gradient` is half
    /// the loss's gradient with respect to each value, `H (ŵ − target)`, at the values that scales and codes now give. Returns
    /// whether the loss went down; if it cannot, the scales stay as they are.
    fn descend(&self, scales: &mut BlockScales, codes: &[u8], gradient: &[f64], gram: Gram<'_>) -> bool;
    /// [`Grid::descend`] for the loss around `target`.
    fn refit(&self, scales: &mut BlockScales, codes: &[u8], target: &[f32], gram: Gram<'_>) -> bool {
        let loss = |scales: &BlockScales| {
            let value = |(i, &c): (usize, &u8)| scales.step[i / scales.sub_len] * c as f32 + scales.offset[i / scales.sub_len];
            let errors: Vec<f64> = codes.iter().enumerate().map(value).zip(target).map(|(v, &t)| v as f64 - t as f64).collect();
            let mut gradient = vec![0.0; errors.len()];
            gram.apply(&errors, 0, &mut gradient);
            (errors.iter().zip(&gradient).map(|(e, g)| e * g).sum::<f64>(), gradient)
        };
        let (before, gradient) = loss(scales);
        let mut better = scales.clone();
        let falls = self.descend(&mut better, codes, &gradient, gram) && loss(&better).0 < before;
        if falls {
            *scales = better;
        }
        falls
    }
    /// Writes the block's bytes.
    fn pack(&self, scales: &BlockScales, codes: &[u8], out: &mut [u8]);
    /// Reads scales and codes back from a packed block.
    fn unpack(&self, bytes: &[u8], codes: &mut [u8]) -> BlockScales;
}

/// A tensor in some codec, as it goes to a container: rows of whole blocks, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedTensor {
    /// Dimensions, outermost first: `(out, in)` for a linear layer.
    pub shape: Vec<usize>,
    /// The block format.
    pub codec: CodecId,
    /// The blocks, little-endian.
    pub bytes: Vec<u8>,
}

impl EncodedTensor {
    /// Encodes `weights` (row-major, `shape`) with the reference encoder, rows in parallel.
    pub fn encode(codec: CodecId, shape: &[usize], weights: &[f32], importance: Option<&[f32]>) -> Result<Self> {
        use rayon::prelude::*;
        let row_len = *shape.last().unwrap_or(&1);
        let row_bytes = codec.row_bytes(row_len)?;
        let mut bytes = vec![0u8; weights.len() / row_len.max(1) * row_bytes];
        let c = codec.codec();
        bytes
            .par_chunks_mut(row_bytes.max(1))
            .zip(weights.par_chunks(row_len.max(1)))
            .for_each(|(out, row)| c.encode(row, importance, out));
        Ok(EncodedTensor { shape: shape.to_vec(), codec, bytes })
    }
    /// The values that a runtime sees, row-major.
    pub fn decode(&self) -> Vec<f32> {
        decode_all(self.codec, &self.bytes)
    }
}

/// Decodes whole blocks, in parallel.
pub fn decode_all(codec: CodecId, bytes: &[u8]) -> Vec<f32> {
    use rayon::prelude::*;
    let c = codec.codec();
    let blocks = bytes.len() / c.block_bytes();
    let mut out = vec![0f32; blocks * c.block_len()];
    let per = (4096 / c.block_len()).max(1);
    out.par_chunks_mut(per * c.block_len()).zip(bytes.par_chunks(per * c.block_bytes())).for_each(|(o, b)| c.decode(b, o));
    out
}
