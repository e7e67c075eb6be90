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
    /// ggml: 256 weights, 2 bits, 16 sub-blocks with 4-bit scales and minima.
    Q2K,
    /// ggml: 256 weights, 3 bits, 16 sub-blocks with 6-bit scales.
    Q3K,
    /// ggml: 32 weights, 4-bit codes into a table of 16 uneven values, f16 scale.
    IQ4NL,
    /// ggml: 256 weights, the same table, 8 sub-blocks with 6-bit scales.
    IQ4XS,
    /// ggml: 256 weights, codebook of 512 points of 4 weights, signs apart.
    IQ3S,
    /// ggml: 256 weights, codebook of 256 points of 4 weights, signs apart.
    IQ3XXS,
    /// ggml: 256 weights, codebook of 1024 points of 8 weights, signs apart.
    IQ2S,
    /// ggml: 256 weights, codebook of 512 points of 8 weights, signs of even parity apart.
    IQ2XS,
    /// ggml: 256 weights, codebook of 256 points of 8 weights, signs of even parity apart.
    IQ2XXS,
    /// ggml: 256 weights, codebook of 2048 ternary points of 8 weights, shifted per 32.
    IQ1S,
    /// ggml: 256 weights, codebook of 2048 ternary points of 8 weights, shifted per 8.
    IQ1M,
    /// ggml: 256 ternary weights, five to a byte, f16 scale.
    TQ1_0,
    /// ggml: 256 ternary weights, four to a byte, f16 scale.
    TQ2_0,
    /// ggml: 32 weights, e2m1 codes, e8m0 scale.
    MXFP4,
    /// ggml: 64 weights, e2m1 codes, four e4m3 scales; a scale per tensor may stand beside it.
    NVFP4,
    /// ggml: 128 weights of one bit, f16 scale.
    Q1_0,
    /// ggml: 64 weights of two bits, f16 scale.
    Q2_0,
    /// MLX affine: `group` weights of `bits` bits with a scale and a bias of type `scale`.
    /// As a byte stream here: per group the codes (little-endian bit stream), then scale, then bias; the MLX container
    /// separates the three planes.
    MlxAffine {
        /// Bits per code: 2, 3, 4, 5, 6 or 8.
        bits: u8,
        /// Weights per group: 32, 64 or 128.
        group: u16,
        /// Storage type of scales and biases.
        scale: Float,
    },
    /// Small floats with a one-byte scale per group, codes first as a little-endian stream, then the scale: MLX's fp modes,
    /// compressed-tensors', ModelOpt's and gpt-oss's FP4.
    Micro(Micro),
    /// Integers with a zero point, as GPTQ, AWQ and compressed-tensors have them: value `scale · (code − zero)`. As a byte
    /// stream here: per group of a row the codes (little-endian bit stream), the scale, then the zero point as one byte.
    IntGroup {
        /// Bits per code: 2, 3, 4 or 8.
        bits: u8,
        /// Consecutive weights of a row that share a scale; for scales per row, the row's length.
        group: u32,
        /// Storage type of the scales.
        scale: Float,
        /// Whether encoders keep to zero points in the middle, 2^(bits − 1). Bytes are read alike.
        symmetric: bool,
    },
    /// e4m3 bytes with a scale per group of a row: the bytes, then the scale. FP8 checkpoints.
    Fp8Group {
        /// Consecutive weights of a row that share a scale.
        group: u32,
        /// Storage type of the scales.
        scale: Float,
    },
    /// bitsandbytes' NF4: 4-bit codes into a table of 16 normal quantiles (first weight in the high half of a byte), then the
    /// group's f32 scale.
    Nf4 {
        /// Weights that share a scale.
        group: u32,
    },
}

/// The formats of [`CodecId::Micro`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Micro {
    /// 32 e2m1 codes with an e8m0 scale.
    Mxfp4,
    /// 32 e4m3 codes with an e8m0 scale.
    Mxfp8,
    /// 16 e2m1 codes with an e4m3 scale; a scale per tensor may stand beside it.
    Nvfp4,
}

impl CodecId {
    /// The ggml block formats, narrowest first.
    pub const GGML: [CodecId; 25] = [
        CodecId::Q1_0,
        CodecId::IQ1S,
        CodecId::TQ1_0,
        CodecId::IQ1M,
        CodecId::TQ2_0,
        CodecId::IQ2XXS,
        CodecId::Q2_0,
        CodecId::IQ2XS,
        CodecId::IQ2S,
        CodecId::Q2K,
        CodecId::IQ3XXS,
        CodecId::Q3K,
        CodecId::IQ3S,
        CodecId::IQ4XS,
        CodecId::MXFP4,
        CodecId::IQ4NL,
        CodecId::Q4_0,
        CodecId::Q4K,
        CodecId::NVFP4,
        CodecId::Q4_1,
        CodecId::Q5_0,
        CodecId::Q5K,
        CodecId::Q5_1,
        CodecId::Q6K,
        CodecId::Q8_0,
    ];

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
    /// The scale of a whole tensor whose largest magnitude is this, for formats whose groups have small numbers as scales and may lean
    /// on one (NVFP4); 1 for others.
    pub fn tensor_scale(self, largest: f32) -> f32 {
        match self {
            CodecId::Micro(Micro::Nvfp4) => codecs::nvfp4_scaled::tensor_scale(largest),
            _ => 1.0,
        }
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
            CodecId::Q2K => "q2_k",
            CodecId::Q3K => "q3_k",
            CodecId::IQ4NL => "iq4_nl",
            CodecId::IQ4XS => "iq4_xs",
            CodecId::IQ3S => "iq3_s",
            CodecId::IQ3XXS => "iq3_xxs",
            CodecId::IQ2S => "iq2_s",
            CodecId::IQ2XS => "iq2_xs",
            CodecId::IQ2XXS => "iq2_xxs",
            CodecId::IQ1S => "iq1_s",
            CodecId::IQ1M => "iq1_m",
            CodecId::TQ1_0 => "tq1_0",
            CodecId::TQ2_0 => "tq2_0",
            CodecId::MXFP4 => "mxfp4",
            CodecId::NVFP4 => "nvfp4",
            CodecId::Q1_0 => "q1_0",
            CodecId::Q2_0 => "q2_0",
            CodecId::Micro(Micro::Mxfp4) => "mlx-mxfp4",
            CodecId::Micro(Micro::Mxfp8) => "mlx-mxfp8",
            CodecId::Micro(Micro::Nvfp4) => "mlx-nvfp4",
            CodecId::IntGroup { bits, group, scale, symmetric } => {
                return write!(f, "int{bits}-g{group}-{}{}", scale.codec(), if *symmetric { "-sym" } else { "" });
            }
            CodecId::Fp8Group { group, scale } => return write!(f, "fp8-g{group}-{}", scale.codec()),
            CodecId::Nf4 { group } => return write!(f, "nf4-g{group}"),
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
        let named = [CodecId::F32, CodecId::F16, CodecId::BF16]
            .into_iter()
            .chain(CodecId::GGML)
            .chain([Micro::Mxfp4, Micro::Mxfp8, Micro::Nvfp4].map(CodecId::Micro));
        if let Some(id) = named.into_iter().find(|id| id.to_string() == lower) {
            return Ok(id);
        }
        let id = parse_grouped(&lower).ok_or_else(unknown)?;
        codecs::find(id).map(|_| id).ok_or_else(unknown)
    }
}

/// Names with parameters: `mlx-4bit-g64-f16`, `int4-g128-f16-sym`, `fp8-g128-f32`, `nf4-g64`.
fn parse_grouped(name: &str) -> Option<CodecId> {
    let float = |p: &str| [Float::F32, Float::F16, Float::BF16].into_iter().find(|f| f.codec().to_string() == p);
    if let Some(rest) = name.strip_prefix("mlx-") {
        let mut parts = rest.split('-');
        let bits = parts.next()?.strip_suffix("bit")?.parse().ok()?;
        let group = parts.next().map_or(Some(64), |p| p.strip_prefix('g')?.parse().ok())?;
        let scale = parts.next().map_or(Some(Float::BF16), float)?;
        return Some(CodecId::MlxAffine { bits, group, scale });
    }
    let mut parts = name.split('-');
    let kind = parts.next()?;
    let group = parts.next()?.strip_prefix('g')?.parse().ok()?;
    let (scale, kept) = (parts.next(), parts.next());
    match (kind, scale, kept) {
        ("nf4", None, None) => Some(CodecId::Nf4 { group }),
        ("fp8", Some(scale), None) => Some(CodecId::Fp8Group { group, scale: float(scale)? }),
        (int, Some(scale), None | Some("sym")) => {
            let bits = int.strip_prefix("int")?.parse().ok()?;
            Some(CodecId::IntGroup { bits, group, scale: float(scale)?, symmetric: kept.is_some() })
        }
        _ => None,
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
    /// Encodes consecutive rows of `row_len` weights, to the same bytes as [`Codec::encode`] row by row. Encoders that work on
    /// many blocks side by side fill their lanes across rows.
    fn encode_rows(&self, rows: &[f32], row_len: usize, importance: Option<&[f32]>, out: &mut [u8]) {
        let row_bytes = row_len / self.block_len() * self.block_bytes();
        for (row, out) in rows.chunks_exact(row_len.max(1)).zip(out.chunks_exact_mut(row_bytes.max(1))) {
            self.encode(row, importance, out);
        }
    }
    /// Decodes whole blocks; `out.len()` must be `bytes.len() / block_bytes * block_len`.
    fn decode(&self, bytes: &[u8], out: &mut [f32]);
    /// The codec as a grid that a solver can walk; `None` for plain floating-point storage.
    fn grid(&self) -> Option<&dyn Grid>;
}

/// The scales of one block, fitted but not yet packed. On a linear grid ([`Grid::is_linear`]) the dequantized value of code `q`
/// at position `i` of the block is `step[s] * q + offset[s]` with `s = i / sub_len`, computed in f32 from the scales *as the
/// format stores them* (rounded to f16, to 6-bit integers, …), so that a solver sees exactly what a runtime will. Other grids
/// say what `step` and `offset` mean; [`Grid::value`] knows.
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
    /// Whether values are `step · code + offset` of their sub-block, and every code is allowed everywhere.
    fn is_linear(&self) -> bool {
        true
    }
    /// The value of `code` at position `at` of the block.
    fn value(&self, scales: &BlockScales, at: usize, code: u8) -> f32 {
        let s = at / scales.sub_len;
        scales.step[s] * code as f32 + scales.offset[s]
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
            let value = |(i, &c): (usize, &u8)| self.value(scales, i, c);
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
    /// The scales under which codes give the points `step · code + offset`, up to a whole number of steps and as well as the format
    /// can store them; `None` for formats whose blocks have finer structure than one line.
    fn place(&self, step: f32, offset: f32) -> Option<BlockScales> {
        let _ = (step, offset);
        None
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
    /// What all decoded values are multiplied by: 1 but for formats with a scale per tensor (NVFP4).
    pub scale: f32,
}

impl EncodedTensor {
    /// A tensor of these blocks, without a scale of its own.
    pub fn new(shape: &[usize], codec: CodecId, bytes: Vec<u8>) -> Self {
        EncodedTensor { shape: shape.to_vec(), codec, bytes, scale: 1.0 }
    }
    /// Encodes `weights` (row-major, `shape`) with the reference encoder, rows in parallel.
    pub fn encode(codec: CodecId, shape: &[usize], weights: &[f32], importance: Option<&[f32]>) -> Result<Self> {
        Self::encode_scaled(codec, shape, weights, importance, 1.0)
    }
    /// The same for a tensor that is to have this scale of its own, finite and positive.
    pub fn encode_scaled(
        codec: CodecId,
        shape: &[usize],
        weights: &[f32],
        importance: Option<&[f32]>,
        scale: f32,
    ) -> Result<Self> {
        let row_len = *shape.last().unwrap_or(&1);
        let row_bytes = codec.row_bytes(row_len)?;
        let mut bytes = vec![0u8; weights.len() / row_len.max(1) * row_bytes];
        encode_in_parallel(codec, weights, row_len, importance, scale, &mut bytes);
        Ok(EncodedTensor { scale, ..EncodedTensor::new(shape, codec, bytes) })
    }
    /// The values that a runtime sees, row-major.
    pub fn decode(&self) -> Vec<f32> {
        let mut values = decode_all(self.codec, &self.bytes);
        if self.scale != 1.0 {
            values.iter_mut().for_each(|v| *v *= self.scale);
        }
        values
    }
}

/// Encodes rows with the reference encoder, on this thread. `out` has the rows' bytes.
pub fn encode_rows(codec: CodecId, weights: &[f32], row_len: usize, importance: Option<&[f32]>, out: &mut [u8]) {
    codec.codec().encode_rows(weights, row_len, importance, out);
}

/// Encodes rows of a tensor that has this scale of its own with the reference encoder, on this thread. `out` has the rows' bytes.
pub fn encode_rows_scaled(
    codec: CodecId,
    weights: &[f32],
    row_len: usize,
    importance: Option<&[f32]>,
    scale: f32,
    out: &mut [u8],
) {
    match codec {
        _ if scale == 1.0 => encode_rows(codec, weights, row_len, importance, out),
        CodecId::Micro(Micro::Nvfp4) => codecs::nvfp4_scaled::encode(weights, scale, out),
        _ => {
            let divided: Vec<f32> = weights.iter().map(|w| w / scale).collect();
            encode_rows(codec, &divided, row_len, importance, out);
        }
    }
}

/// Weights that a thread encodes at a time: enough for lanes to fill across rows, few enough for threads to share a matrix.
const ENCODE_CHUNK: usize = 1 << 16;

/// Encodes rows with the reference encoder, in parallel. `out` has the rows' bytes.
pub fn encode_all(codec: CodecId, weights: &[f32], row_len: usize, importance: Option<&[f32]>, out: &mut [u8]) {
    encode_in_parallel(codec, weights, row_len, importance, 1.0, out);
}

fn encode_in_parallel(codec: CodecId, weights: &[f32], row_len: usize, importance: Option<&[f32]>, scale: f32, out: &mut [u8]) {
    use rayon::prelude::*;
    let c = codec.codec();
    let row_len = row_len.max(1);
    let row_bytes = (row_len / c.block_len() * c.block_bytes()).max(1);
    let rows = (ENCODE_CHUNK / row_len).max(1);
    out.par_chunks_mut(rows * row_bytes)
        .zip(weights.par_chunks(rows * row_len))
        .for_each(|(out, rows)| encode_rows_scaled(codec, rows, row_len, importance, scale, out));
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
