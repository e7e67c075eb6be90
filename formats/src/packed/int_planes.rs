//! What GPTQ and AWQ have in common: their planes as rows of [`CodecId::IntGroup`] blocks, and back.
//!
//! `qweight` holds the codes, `qzeros` the zero points and `scales` the scales, the latter two as matrices (groups, out).

use super::dtype;
use crate::codec::{CodecId, Float};
use crate::container::TensorInfo;
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::ops::Range;

/// Rows that a thread packs or unpacks at a time: their words share cache lines of `qweight`.
pub(super) const TILE: usize = 32;

/// The numbers that a module's planes were checked against.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    pub bits: u8,
    /// Columns that share a scale.
    pub group: usize,
    pub out: usize,
    pub columns: usize,
    pub scale: Float,
}

impl Geometry {
    /// Groups of a row; the last may be short.
    pub fn groups(&self) -> usize {
        self.columns.div_ceil(self.group)
    }
    /// Bytes of a row's codes as a bit stream.
    pub fn stream(&self) -> usize {
        self.columns / 8 * usize::from(self.bits)
    }
    /// The codec of the rows, if they are whole blocks of one.
    pub fn codec(&self) -> Option<CodecId> {
        let id =
            CodecId::IntGroup { bits: self.bits, group: u32::try_from(self.group).ok()?, scale: self.scale, symmetric: false };
        (self.columns.is_multiple_of(self.group) && crate::codecs::find(id).is_some()).then_some(id)
    }
    /// Bytes of a group's codes.
    fn code_bytes(&self) -> usize {
        self.group / 8 * usize::from(self.bits)
    }
}

/// Checks dtype and shape of a plane.
pub(super) fn check(plane: &TensorInfo, dtypes: &[&str], shape: &[usize], context: &str) -> Result<()> {
    let found = dtype(plane);
    if dtypes.contains(&found.as_str()) && plane.shape == shape {
        return Ok(());
    }
    let message = format!("is {found} of {:?}, expected {} of {shape:?} for {context}", plane.shape, dtypes.join(" or "));
    Err(Error::corrupt(message)
        .tensor(&plane.name)
        .hint("`quantization_config` in config.json is wrong for this tensor, or the file is damaged"))
}

/// The storage type of a `scales` plane.
pub(super) fn scale_type(scales: &TensorInfo) -> Result<Float> {
    let float = |d: &str| [Float::F16, Float::BF16, Float::F32].into_iter().find(|f| f.codec().to_string() == d);
    let found = dtype(scales);
    float(&found).ok_or_else(|| Error::corrupt(format!("scales are {found}, expected f16, bf16 or f32")).tensor(&scales.name))
}

/// Blocks of some rows, from their codes (a bit stream per row), their zero points (`zeros[g · n + r]` of n rows) and the whole
/// plane of scales.
pub(super) fn blocks(g: &Geometry, rows: Range<usize>, codes: &[u8], zeros: &[u8], scales: &[u8]) -> Vec<u8> {
    let (n, code, size) = (rows.len(), g.code_bytes(), g.scale.size());
    let block = code + size + 1;
    let mut out = vec![0u8; n * g.groups() * block];
    out.par_chunks_mut(g.groups() * block).zip(codes.par_chunks(g.stream())).enumerate().for_each(|(r, (out, codes))| {
        for (k, (out, codes)) in out.chunks_exact_mut(block).zip(codes.chunks_exact(code)).enumerate() {
            out[..code].copy_from_slice(codes);
            out[code..code + size].copy_from_slice(&scales[(k * g.out + rows.start + r) * size..][..size]);
            out[code + size] = zeros[k * n + r];
        }
    });
    out
}

/// The planes of whole tensor's blocks: codes (a bit stream per row), scales as bytes and zero points, both (groups, out).
pub(super) struct Planes {
    pub codes: Vec<u8>,
    pub scales: Vec<u8>,
    pub zeros: Vec<u8>,
}

impl Planes {
    /// The inverse of [`blocks`] for all rows.
    pub fn of_blocks(g: &Geometry, blocks: &[u8]) -> Result<Planes> {
        let (code, size, groups) = (g.code_bytes(), g.scale.size(), g.groups());
        let block = code + size + 1;
        if blocks.len() != g.out * groups * block {
            return Err(Error::failed(format!("{} bytes are not {} rows of {groups} blocks of {block}", blocks.len(), g.out)));
        }
        let mut planes =
            Planes { codes: vec![0; g.out * g.stream()], scales: vec![0; groups * g.out * size], zeros: vec![0; groups * g.out] };
        for (i, block) in blocks.chunks_exact(block).enumerate() {
            let (r, k) = (i / groups, i % groups);
            planes.codes[i * code..][..code].copy_from_slice(&block[..code]);
            planes.scales[(k * g.out + r) * size..][..size].copy_from_slice(&block[code..code + size]);
            planes.zeros[k * g.out + r] = block[code + size];
        }
        Ok(planes)
    }
}

/// Scales of one column's rows as f32.
pub(super) fn scale_at(g: &Geometry, scales: &[u8], group: usize, row: usize) -> f32 {
    crate::codecs::read_float(g.scale, &scales[(group * g.out + row) * g.scale.size()..])
}
