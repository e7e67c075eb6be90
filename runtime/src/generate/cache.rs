//! Keys and values of tokens already read.

use crate::ops::OrFail;
use bitsmith_formats::Result;
use candle_core::{DType, Tensor};

/// Cached positions are allocated in steps of this many tokens.
pub(super) const CACHE_STEP: usize = 256;

/// Storage type of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheType {
    /// Exact.
    #[default]
    F32,
    /// Half the memory.
    F16,
}

impl CacheType {
    /// Bytes of one value.
    pub fn bytes(self) -> usize {
        match self {
            CacheType::F32 => 4,
            CacheType::F16 => 2,
        }
    }
}

/// Keys and values of one layer.
#[derive(Debug)]
pub(crate) struct LayerCache {
    /// Keys and values, `(capacity, kv_heads × head_dim)` each.
    planes: Option<[Tensor; 2]>,
    dtype: DType,
}

impl LayerCache {
    pub(super) fn new(kind: CacheType) -> Self {
        let dtype = match kind {
            CacheType::F32 => DType::F32,
            CacheType::F16 => DType::F16,
        };
        LayerCache { planes: None, dtype }
    }

    /// Puts rows of keys and values after the first `start` ones, forgetting what was there, and gives all so far, as f32.
    pub(crate) fn append(&mut self, k: &Tensor, v: &Tensor, start: usize) -> Result<(Tensor, Tensor)> {
        self.append_inner(k, v, start).or_fail()
    }

    fn append_inner(&mut self, k: &Tensor, v: &Tensor, start: usize) -> candle_core::Result<(Tensor, Tensor)> {
        let (rows, width) = k.dims2()?;
        let len = start + rows;
        let capacity = match &self.planes {
            Some([k, _]) => k.dim(0)?,
            None => 0,
        };
        if len > capacity {
            let larger = len.max(capacity * 2).next_multiple_of(CACHE_STEP);
            let grow = |old: Option<&Tensor>| -> candle_core::Result<Tensor> {
                let new = Tensor::zeros((larger, width), self.dtype, k.device())?;
                if let (Some(old), 1..) = (old, start) {
                    new.slice_set(&old.narrow(0, 0, start)?.contiguous()?, 0, 0)?;
                }
                Ok(new)
            };
            let old = self.planes.as_ref();
            self.planes = Some([grow(old.map(|p| &p[0]))?, grow(old.map(|p| &p[1]))?]);
        }
        let Some([ck, cv]) = &self.planes else {
            candle_core::bail!("key-value cache without rows");
        };
        ck.slice_set(&k.to_dtype(self.dtype)?, 0, start)?;
        cv.slice_set(&v.to_dtype(self.dtype)?, 0, start)?;
        let all = |t: &Tensor| t.narrow(0, 0, len)?.to_dtype(DType::F32);
        Ok((all(ck)?, all(cv)?))
    }
}
