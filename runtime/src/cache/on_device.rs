//! Keys and values on a device: f32 rows, rounded as the cache's type says, beside the activations that attention reads them with.

use super::{CacheType, LayerCache, PAGE, not_finite};
use crate::ops::{self, OrFail, with_f32};
use bitsmith_formats::{Error, Result};
use candle_core::{DType, Tensor};

/// Keys `(capacity, heads × k_dim)` and values `(capacity, heads × v_dim)`.
#[derive(Debug)]
pub(crate) struct Planes {
    keys: Tensor,
    values: Tensor,
}

impl Planes {
    /// The same rows in storage of their own.
    pub fn copy(&self) -> Result<Self> {
        Ok(Planes { keys: self.keys.force_contiguous().or_fail()?, values: self.values.force_contiguous().or_fail()? })
    }
}

impl LayerCache {
    /// Keys `(tokens, heads × k_dim)` and values `(tokens, heads × v_dim)`, if the cache lies on a device.
    pub fn planes(&self) -> Result<[Tensor; 2]> {
        let planes = self.planes.as_ref().ok_or_else(|| Error::failed("these keys and values are not on the device"))?;
        let held = |plane: &Tensor| plane.narrow(0, 0, self.len).or_fail();
        Ok([held(&planes.keys)?, held(&planes.values)?])
    }

    /// [`LayerCache::append`] on a device; the sizes were checked.
    pub(super) fn put_planes(&mut self, k: &Tensor, v: &Tensor, start: usize) -> Result<()> {
        let rounded = |x: &Tensor, width: usize| match ops::all_finite(x)? {
            true => rounded(self.kind, width, x),
            false => Err(not_finite()),
        };
        let (k, v) = (rounded(k, self.heads.k_dim)?, rounded(v, self.heads.v_dim)?);
        let old = self.planes.take().map(|p| (p.keys, p.values)).unzip();
        self.planes = Some(Planes { keys: put(old.0, &k, start).or_fail()?, values: put(old.1, &v, start).or_fail()? });
        self.len = start + k.dim(0).or_fail()?;
        Ok(())
    }
}

/// Puts rows after the first `start` of a plane, which is made anew if it is too small.
fn put(plane: Option<Tensor>, rows: &Tensor, start: usize) -> candle_core::Result<Tensor> {
    let (n, width) = rows.dims2()?;
    if start == 0 && plane.is_none() {
        // Whole windows come in one piece, and gradients go through it.
        return rows.contiguous();
    }
    let end = start + n;
    let plane = match plane {
        Some(plane) if plane.dim(0)? >= end => plane,
        old => {
            let capacity = (end + end / 2).next_multiple_of(PAGE);
            let new = Tensor::zeros((capacity, width), DType::F32, rows.device())?;
            if let (Some(old), true) = (old, start > 0) {
                new.slice_set(&old.narrow(0, 0, start)?, 0, 0)?;
            }
            new
        }
    };
    plane.slice_set(&rows.contiguous()?, 0, start)?;
    Ok(plane)
}

/// Rows of heads of `width` values as they come back from a cache of this type.
fn rounded(kind: CacheType, width: usize, x: &Tensor) -> Result<Tensor> {
    if kind == CacheType::F32 {
        return Ok(x.clone());
    }
    let codec = kind.codec(width);
    let values = with_f32(x, |x| {
        let mut bytes = vec![0u8; x.len() / width * codec.row_bytes(width)?];
        codec.codec().encode_rows(x, width, None, &mut bytes);
        let mut values = vec![0f32; x.len()];
        let row = bytes.len() / (x.len() / width).max(1);
        for (bytes, values) in bytes.chunks_exact(row.max(1)).zip(values.chunks_exact_mut(width)) {
            codec.codec().decode(bytes, values);
        }
        Ok(values)
    })?;
    ops::from_host(values?, x.dims(), x.device())
}
