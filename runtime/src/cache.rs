//! Keys and values of tokens already read, encoded as a [`CacheType`] says.
//!
//! A layer has pages of [`PAGE`] tokens. Within a page every head has its keys, one after the other, and then its values, so that
//! attention reads a block of one head's keys as one piece. Caches of texts that begin alike share pages until one of them writes:
//!
//! ```text
//! page 0                                        page 1
//! [ head 0: 64 keys, 64 values | head 1: … ]    [ head 0: … ] …
//! ```

mod on_device;

use crate::kernels;
use crate::ops::{OrFail, composed, with_f32};
use crate::spec::ModelSpec;
use bitsmith_formats::{CodecId, Error, Float, Result};
use candle_core::Tensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

pub(crate) use on_device::Planes;

/// Tokens of a page.
pub(crate) const PAGE: usize = 64;

/// How keys and values are stored, along the width of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheType {
    /// Exact.
    #[default]
    F32,
    /// Half precision.
    F16,
    /// ggml's Q8_0: blocks of 32 values, 8 bits, f16 scale.
    Q8_0,
    /// ggml's Q4_0: blocks of 32 values, 4 bits, f16 scale.
    Q4_0,
    /// e4m3 bytes with a bf16 scale per head and token.
    Fp8,
}

impl CacheType {
    /// Whether keys and values stay as they are.
    pub fn is_exact(&self) -> bool {
        *self == CacheType::F32
    }

    /// All types, widest first.
    pub const ALL: [CacheType; 5] = [CacheType::F32, CacheType::F16, CacheType::Q8_0, CacheType::Fp8, CacheType::Q4_0];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            CacheType::F32 => "f32",
            CacheType::F16 => "f16",
            CacheType::Q8_0 => "q8_0",
            CacheType::Q4_0 => "q4_0",
            CacheType::Fp8 => "fp8",
        }
    }

    /// The format of a head of `width` values.
    pub(crate) fn codec(self, width: usize) -> CodecId {
        match self {
            CacheType::F32 => CodecId::F32,
            CacheType::F16 => CodecId::F16,
            CacheType::Q8_0 => CodecId::Q8_0,
            CacheType::Q4_0 => CodecId::Q4_0,
            CacheType::Fp8 => CodecId::Fp8Group { group: width as u32, scale: Float::BF16 },
        }
    }

    /// Bytes of a head of `width` values; an error where it is not whole blocks.
    fn head_bytes(self, width: usize) -> Result<usize> {
        self.codec(width).row_bytes(width).map_err(|_| {
            Error::usage(format!("a cache of type {self} has blocks of 32 values, and this model's heads have {width}"))
                .hint("use f32, f16 or fp8")
        })
    }

    /// Bytes that one token takes in the caches of all layers; an error if the model's heads cannot be stored so.
    pub fn bytes_per_token(self, spec: &ModelSpec) -> Result<u64> {
        let heads = KvHeads::of(spec);
        let head = self.head_bytes(heads.k_dim)? + self.head_bytes(heads.v_dim)?;
        Ok((spec.n_layers * heads.n * head) as u64)
    }
}

impl fmt::Display for CacheType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The key and value heads of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KvHeads {
    /// How many.
    pub n: usize,
    /// Width of a key.
    pub k_dim: usize,
    /// Width of a value.
    pub v_dim: usize,
}

impl KvHeads {
    /// Those of a model: as many as query heads in latent attention, whose keys and values are cached unfolded.
    pub fn of(spec: &ModelSpec) -> Self {
        let n = if spec.latent.is_some() { spec.n_heads } else { spec.n_kv_heads };
        KvHeads { n, k_dim: spec.head_dim, v_dim: spec.v_head_dim }
    }
}

/// Keys and values of one layer.
#[derive(Debug)]
pub(crate) struct LayerCache {
    kind: CacheType,
    heads: KvHeads,
    /// Bytes of one key and of one value.
    row: [usize; 2],
    pages: Vec<Arc<Vec<u8>>>,
    /// What stands for the pages where attention is composed.
    planes: Option<Planes>,
    len: usize,
}

impl LayerCache {
    /// An empty cache.
    pub fn new(kind: CacheType, heads: KvHeads) -> Result<Self> {
        let row = [kind.head_bytes(heads.k_dim)?, kind.head_bytes(heads.v_dim)?];
        Ok(LayerCache { kind, heads, row, pages: Vec::new(), planes: None, len: 0 })
    }

    /// A cache of these keys and values alone, `(tokens, heads × k_dim)` and `(tokens, heads × v_dim)`.
    pub fn of(kind: CacheType, heads: KvHeads, k: &Tensor, v: &Tensor) -> Result<Self> {
        let mut cache = Self::new(kind, heads)?;
        cache.append(k, v, 0)?;
        Ok(cache)
    }

    /// A cache with the first `len` tokens of this one, which each then continues alone.
    pub fn fork(&self, len: usize) -> Result<Self> {
        let planes = self.planes.as_ref().map(Planes::copy).transpose()?;
        let pages = self.pages[..len.div_ceil(PAGE).min(self.pages.len())].to_vec();
        Ok(LayerCache { kind: self.kind, heads: self.heads, row: self.row, pages, planes, len: len.min(self.len) })
    }

    /// How values are stored.
    pub fn kind(&self) -> CacheType {
        self.kind
    }

    /// The heads.
    pub fn heads(&self) -> KvHeads {
        self.heads
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Puts keys `(tokens, heads × k_dim)` and values `(tokens, heads × v_dim)` after the first `start` tokens, forgetting what was
    /// there.
    pub fn append(&mut self, k: &Tensor, v: &Tensor, start: usize) -> Result<()> {
        let (rows, width) = k.dims2().or_fail()?;
        let (n, heads) = (self.heads.n, self.heads);
        if start > self.len || width != n * heads.k_dim || v.dims2().or_fail()? != (rows, n * heads.v_dim) {
            return Err(Error::failed(format!("{rows} keys after {start} do not fit a cache of {} for {heads:?}", self.len)));
        }
        if composed::takes(k) {
            return self.put_planes(k, v, start);
        }
        with_f32(k, |k| with_f32(v, |v| self.put(k, v, start, rows)))??
    }

    fn put(&mut self, k: &[f32], v: &[f32], start: usize, rows: usize) -> Result<()> {
        // Block formats would hide them.
        if ![k, v].into_iter().all(kernels::all_finite) {
            return Err(not_finite());
        }
        let heads = self.heads;
        let (end, page_bytes) = (start + rows, heads.n * self.head_bytes());
        self.len = end;
        while self.pages.len() < end.div_ceil(PAGE) {
            self.pages.push(Arc::new(vec![0; page_bytes]));
        }
        let first = start / PAGE;
        let pages = &mut self.pages[first..end.div_ceil(PAGE)];
        let (kind, row) = (self.kind, self.row);
        let fill = |(i, page): (usize, &mut Arc<Vec<u8>>)| {
            let page = Arc::make_mut(page);
            let from = start.max((first + i) * PAGE);
            let to = end.min((first + i + 1) * PAGE);
            for (plane, (values, width)) in [(k, heads.k_dim), (v, heads.v_dim)].into_iter().enumerate() {
                let values = &values[(from - start) * heads.n * width..(to - start) * heads.n * width];
                let mut encoded = vec![0u8; (to - from) * heads.n * row[plane]];
                kind.codec(width).codec().encode_rows(values, width, None, &mut encoded);
                for (at, token) in (from % PAGE..).zip(encoded.chunks_exact(heads.n * row[plane])) {
                    for (head, bytes) in token.chunks_exact(row[plane]).enumerate() {
                        let place = head * PAGE * (row[0] + row[1]) + plane * PAGE * row[0] + at * row[plane];
                        page[place..place + row[plane]].copy_from_slice(bytes);
                    }
                }
            }
        };
        match pages {
            [page] => fill((0, page)),
            pages => pages.par_iter_mut().enumerate().for_each(fill),
        }
        Ok(())
    }

    /// Bytes of one head in a page.
    fn head_bytes(&self) -> usize {
        PAGE * (self.row[0] + self.row[1])
    }

    /// The keys of a head at places `from..to` of a page.
    pub fn keys(&self, page: usize, head: usize, from: usize, to: usize) -> &[u8] {
        self.rows(page, head, 0, from, to)
    }

    /// The values of a head at places `from..to` of a page.
    pub fn values(&self, page: usize, head: usize, from: usize, to: usize) -> &[u8] {
        self.rows(page, head, PAGE * self.row[0], from, to)
    }

    fn rows(&self, page: usize, head: usize, plane: usize, from: usize, to: usize) -> &[u8] {
        let row = if plane == 0 { self.row[0] } else { self.row[1] };
        let first = head * self.head_bytes() + plane;
        &self.pages[page][first + from * row..first + to * row]
    }
}

fn not_finite() -> Error {
    Error::corrupt("keys or values are not finite")
        .hint("a weight of this layer or an earlier one is damaged, or the activations overflow")
}
