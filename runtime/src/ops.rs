//! Operations on candle tensors that candle lacks or does slowly: CPU kernels behind candle's custom-op interface. On another
//! device they fail with candle's own "no implementation" error.

use crate::kernels;
use bitsmith_formats::{Error, Result};
use candle_core::{CpuStorage, CustomOp2, DType, Device, InplaceOp1, InplaceOp2, Layout, Shape, Storage, Tensor};
use rayon::prelude::*;

/// Values that one task handles: large enough to hide the cost of a task, small enough to share work out.
const TASK: usize = 16 * 1024;

/// Rows per task for rows of `width` values.
fn task_rows(width: usize) -> usize {
    (TASK / width.max(1)).max(1)
}

/// Turns candle's errors into ours.
pub(crate) trait OrFail<T> {
    /// The value, or [`bitsmith_formats::ErrorKind::Failed`] with candle's message.
    fn or_fail(self) -> Result<T>;
}

impl<T> OrFail<T> for candle_core::Result<T> {
    fn or_fail(self) -> Result<T> {
        self.map_err(|e| Error::failed(format!("tensor operation failed: {e}")).with_source(e))
    }
}

fn values<'a>(storage: &'a CpuStorage, layout: &Layout, op: &'static str) -> candle_core::Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(v), Some((start, end))) => Ok(&v[start..end]),
        _ => candle_core::bail!("{op} needs contiguous f32 values"),
    }
}

fn values_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout, op: &'static str) -> candle_core::Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(v), Some((start, end))) => Ok(&mut v[start..end]),
        _ => candle_core::bail!("{op} needs contiguous f32 values"),
    }
}

/// Calls `f` with the values of a contiguous f32 tensor, without copying if it lies in main memory.
pub fn with_f32<T>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> T) -> Result<T> {
    if !tensor.device().is_cpu() {
        let host = tensor.to_device(&Device::Cpu).or_fail()?;
        return with_f32(&host, f);
    }
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(s) => Ok(f(values(s, layout, "reading").or_fail()?)),
        _ => Err(Error::failed("tensor is not in main memory")),
    }
}

/// A tensor from host values.
pub fn from_host(data: Vec<f32>, shape: &[usize], device: &Device) -> Result<Tensor> {
    Tensor::from_vec(data, shape, device).or_fail()
}

/// `x wᵀ` for activations `(rows, in)` and weights `(out, in)`; gives `(rows, out)`.
pub fn linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let (rows, _) = x.dims2().or_fail()?;
    let out = w.dim(0).or_fail()?;
    // The matrix product of a single row runs on one thread only: give every task a block of outputs.
    const BLOCK: usize = 256;
    if rows == 1 && out >= 2 * BLOCK && x.device().is_cpu() {
        let parts: Vec<Tensor> = (0..out.div_ceil(BLOCK))
            .into_par_iter()
            .map(|i| {
                let start = i * BLOCK;
                x.matmul(&w.narrow(0, start, BLOCK.min(out - start))?.t()?)
            })
            .collect::<candle_core::Result<_>>()
            .or_fail()?;
        return Tensor::cat(&parts, 1).or_fail();
    }
    x.matmul(&w.t().or_fail()?).or_fail()
}

struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }
    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, w) = (values(x, xl, self.name())?, values(w, wl, self.name())?);
        let width = w.len().max(1);
        if x.len() % width != 0 {
            candle_core::bail!("rms-norm of {} values in rows of {width}", x.len());
        }
        let mut out = vec![0f32; x.len()];
        let task = task_rows(width) * width;
        out.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(out, x)| {
            for (o, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                kernels::rms_norm(x, w, self.eps, o);
            }
        });
        Ok((CpuStorage::F32(out), xl.shape().clone()))
    }
}

/// RMS norm over the last dimension, or over groups of `weight.len()` values within it (a norm per head).
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    x.apply_op2_no_bwd(weight, &RmsNorm { eps: eps as f32 }).or_fail()
}

/// What a two-tensor in-place operation does to a row of the first.
struct InPlace<F> {
    name: &'static str,
    /// Whether the second tensor is one row, shared by all rows of the first.
    shared_row: bool,
    f: F,
}

impl<F: Fn(&mut [f32], &[f32]) + Sync> InplaceOp2 for InPlace<F> {
    fn name(&self) -> &'static str {
        self.name
    }
    fn cpu_fwd(&self, a: &mut CpuStorage, al: &Layout, b: &CpuStorage, bl: &Layout) -> candle_core::Result<()> {
        let (a, b) = (values_mut(a, al, self.name)?, values(b, bl, self.name)?);
        if self.shared_row {
            let width = b.len().max(1);
            a.par_chunks_mut(task_rows(width) * width).for_each(|rows| rows.chunks_mut(width).for_each(|row| (self.f)(row, b)));
        } else if a.len() == b.len() {
            a.par_chunks_mut(TASK).zip(b.par_chunks(TASK)).for_each(|(a, b)| (self.f)(a, b));
        } else {
            candle_core::bail!("{}: {} and {} values", self.name, a.len(), b.len());
        }
        Ok(())
    }
}

fn add(a: &mut [f32], b: &[f32]) {
    for (a, b) in a.iter_mut().zip(b) {
        *a += b;
    }
}

/// `a ← a + b`, same shapes. `a` must not share its storage with a tensor still in use.
pub(crate) fn add_in_place(a: &Tensor, b: &Tensor) -> Result<()> {
    a.inplace_op2(b, &InPlace { name: "add", shared_row: false, f: add }).or_fail()
}

/// Adds a bias to every row, in place.
pub(crate) fn add_bias_in_place(a: &Tensor, bias: &Tensor) -> Result<()> {
    a.inplace_op2(bias, &InPlace { name: "add-bias", shared_row: true, f: add }).or_fail()
}

/// `gate ← silu(gate) · up`.
pub(crate) fn swiglu_in_place(gate: &Tensor, up: &Tensor) -> Result<()> {
    gate.inplace_op2(up, &InPlace { name: "swiglu", shared_row: false, f: kernels::swiglu }).or_fail()
}

/// A one-tensor in-place operation on rows: gets the first row's number and some whole rows.
pub(crate) struct RowsInPlace<F> {
    pub name: &'static str,
    pub width: usize,
    pub f: F,
}

impl<F: Fn(usize, &mut [f32]) + Sync> InplaceOp1 for RowsInPlace<F> {
    fn name(&self) -> &'static str {
        self.name
    }
    fn cpu_fwd(&self, a: &mut CpuStorage, al: &Layout) -> candle_core::Result<()> {
        let a = values_mut(a, al, self.name)?;
        let rows = task_rows(self.width);
        a.par_chunks_mut(rows * self.width.max(1)).enumerate().for_each(|(i, part)| (self.f)(i * rows, part));
        Ok(())
    }
}

/// Whether every value of a contiguous f32 tensor is finite.
pub fn all_finite(x: &Tensor) -> Result<bool> {
    with_f32(x, |v| v.par_chunks(TASK).all(kernels::all_finite))
}

/// Rows of an embedding `(vocab, hidden)` for token ids; gives `(ids.len(), hidden)`.
pub fn embed(embedding: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let index = Tensor::from_slice(ids, ids.len(), embedding.device()).or_fail()?;
    embedding.index_select(&index, 0).and_then(|t| t.to_dtype(DType::F32)).or_fail()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37) % 101) as f32 * 0.03 - 1.5).collect()
    }

    #[test]
    fn single_row_product_equals_rows_of_many() {
        let dev = Device::Cpu;
        let w = from_host(ramp(700 * 96), &[700, 96], &dev).unwrap();
        let x = from_host(ramp(3 * 96), &[3, 96], &dev).unwrap();
        let all = linear(&x, &w).unwrap().to_vec2::<f32>().unwrap();
        let one = linear(&x.narrow(0, 1, 1).unwrap(), &w).unwrap().to_vec2::<f32>().unwrap();
        for (a, b) in all[1].iter().zip(&one[0]) {
            assert!((a - b).abs() < 1e-4);
        }
    }

    #[test]
    fn rms_norm_per_head() {
        let dev = Device::Cpu;
        let x = from_host(ramp(2 * 24), &[2, 24], &dev).unwrap();
        let w = from_host(ramp(8), &[8], &dev).unwrap();
        let y = rms_norm(&x, &w, 1e-5).unwrap().to_vec2::<f32>().unwrap();
        let (x, w) = (ramp(48), ramp(8));
        for (i, v) in y.concat().iter().enumerate() {
            let head = &x[i / 8 * 8..i / 8 * 8 + 8];
            let rms = (head.iter().map(|v| v * v).sum::<f32>() / 8.0 + 1e-5).sqrt();
            assert!((v - x[i] / rms * w[i % 8]).abs() < 1e-5);
        }
    }
}
