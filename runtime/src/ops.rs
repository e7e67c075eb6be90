//! Operations on candle tensors that candle lacks or does slowly: CPU kernels behind candle's custom-op interface. On another
//! device, and where gradients are wanted, they are `composed` of what candle has.
//!
//! What takes a tensor by value gives its result in the tensor's storage, where it can: no other tensor in use may share that.

pub(crate) mod composed;

use crate::kernels;
use crate::spec::{Activation, Norm, NormKind};
use bitsmith_formats::{Error, Result};
use candle_core::{CpuStorage, CustomOp2, DType, Device, InplaceOp1, InplaceOp2, Layout, Shape, Storage, Tensor};
use rayon::prelude::*;
use std::borrow::Cow;

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

struct NormOp(Norm);

impl CustomOp2 for NormOp {
    fn name(&self) -> &'static str {
        "norm"
    }
    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, w) = (values(x, xl, self.name())?, values(w, wl, self.name())?);
        let width = wl.dims().last().copied().unwrap_or(1).max(1);
        if w.is_empty() || x.len() % w.len() != 0 {
            candle_core::bail!("norm of {} values with {} weights", x.len(), w.len());
        }
        let w: Cow<'_, [f32]> = match self.0.offset {
            0.0 => w.into(),
            offset => w.iter().map(|w| w + offset).collect(),
        };
        let row = match self.0.kind {
            NormKind::Rms => kernels::rms_norm,
            NormKind::Layer => kernels::layer_norm,
        };
        let mut out = vec![0f32; x.len()];
        let task = task_rows(w.len()) * w.len();
        out.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(out, x)| {
            let groups = out.chunks_exact_mut(width).zip(x.chunks_exact(width));
            for ((o, x), w) in groups.zip(w.chunks_exact(width).cycle()) {
                row(x, w, self.0.eps as f32, o);
            }
        });
        Ok((CpuStorage::F32(out), xl.shape().clone()))
    }
}

/// A norm over the last dimension, or over groups of values within it (a norm per head): as many as the rows of `weight` have, which
/// groups take in turn.
pub fn norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, norm: Norm) -> Result<Tensor> {
    let y = match composed::takes(x) {
        true => composed::norm(x, weight, norm)?,
        false => x.apply_op2_no_bwd(weight, &NormOp(norm)).or_fail()?,
    };
    match bias {
        Some(bias) => add_bias(y, bias),
        None => Ok(y),
    }
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

fn add_values(a: &mut [f32], b: &[f32]) {
    for (a, b) in a.iter_mut().zip(b) {
        *a += b;
    }
}

/// `a + b`, same shapes, in the storage of `a`.
pub(crate) fn add(a: Tensor, b: &Tensor) -> Result<Tensor> {
    if composed::takes(&a) || composed::takes(b) {
        return composed::add(&a, b);
    }
    a.inplace_op2(b, &InPlace { name: "add", shared_row: false, f: add_values }).or_fail()?;
    Ok(a)
}

/// `a` with a bias added to every row, in its storage.
pub(crate) fn add_bias(a: Tensor, bias: &Tensor) -> Result<Tensor> {
    if composed::takes(&a) {
        return composed::add_bias(&a, bias);
    }
    a.inplace_op2(bias, &InPlace { name: "add-bias", shared_row: true, f: add_values }).or_fail()?;
    Ok(a)
}

/// `act(gate) · up`, in the storage of `gate`.
pub(crate) fn activate(activation: Activation, gate: Tensor, up: &Tensor) -> Result<Tensor> {
    if composed::takes(&gate) {
        return composed::activate(activation, &gate, up);
    }
    gate.inplace_op2(up, &InPlace { name: "gate", shared_row: false, f: gating(activation) }).or_fail()?;
    Ok(gate)
}

/// `act(x)`, in its storage.
pub(crate) fn activate_alone(activation: Activation, x: Tensor) -> Result<Tensor> {
    if composed::takes(&x) {
        return composed::activate_alone(activation, &x);
    }
    static ONES: [f32; TASK] = [1.0; TASK];
    let f = |_, part: &mut [f32]| part.chunks_mut(TASK).for_each(|c| gating(activation)(c, &ONES));
    x.inplace_op1(&RowsInPlace { name: "activation", width: 1, f }).or_fail()?;
    Ok(x)
}

fn gating(activation: Activation) -> fn(&mut [f32], &[f32]) {
    match activation {
        Activation::Silu => kernels::swiglu,
        Activation::GeluTanh => kernels::geglu,
        Activation::SwigluOai => kernels::swiglu_oai,
        Activation::Gelu => |gate, up| {
            for (g, u) in gate.iter_mut().zip(up) {
                *g = 0.5 * *g * (1.0 + libm::erff(*g * std::f32::consts::FRAC_1_SQRT_2)) * u;
            }
        },
    }
}

/// `factor x`, in its storage.
pub(crate) fn scale(x: Tensor, factor: f32) -> Result<Tensor> {
    if factor == 1.0 {
        return Ok(x);
    }
    if composed::takes(&x) {
        return composed::scale(&x, factor);
    }
    let f = |_, part: &mut [f32]| part.iter_mut().for_each(|v| *v *= factor);
    x.inplace_op1(&RowsInPlace { name: "scale", width: 1, f }).or_fail()?;
    Ok(x)
}

/// `cap tanh(x / cap)`, in the storage of `x`.
pub(crate) fn softcap(x: Tensor, cap: f32) -> Result<Tensor> {
    if composed::takes(&x) {
        return composed::softcap(&x, cap).or_fail();
    }
    let f = |_, part: &mut [f32]| kernels::softcap(part, 1.0, cap);
    x.inplace_op1(&RowsInPlace { name: "softcap", width: 1, f }).or_fail()?;
    Ok(x)
}

/// Row `r` of `x` times `factors[r]`, `(rows, 1)`, in the storage of `x`.
pub(crate) fn scale_rows(x: Tensor, factors: &Tensor) -> Result<Tensor> {
    if composed::takes(&x) {
        return composed::scale_rows(&x, factors);
    }
    let (_, width) = x.dims2().or_fail()?;
    let factors: Vec<f32> = factors.flatten_all().and_then(|t| t.to_vec1()).or_fail()?;
    let f = |first: usize, rows: &mut [f32]| {
        for (row, factor) in rows.chunks_exact_mut(width).zip(&factors[first..]) {
            row.iter_mut().for_each(|v| *v *= factor);
        }
    };
    x.inplace_op1(&RowsInPlace { name: "scale-rows", width, f }).or_fail()?;
    Ok(x)
}

/// Adds rows, `(rows.len(), width)`, to some rows of `sum`, in its storage: row `i` times `rows[i].1` to row `rows[i].0`. Rows come
/// in ascending order, each once.
pub(crate) fn add_rows(sum: Tensor, rows: &[(usize, f32)], x: &Tensor) -> Result<Tensor> {
    if composed::takes(&sum) || composed::takes(x) {
        return composed::add_rows(&sum, rows, x);
    }
    let (_, width) = sum.dims2().or_fail()?;
    with_f32(x, |x| {
        let f = |first: usize, part: &mut [f32]| {
            let from = rows.partition_point(|(row, _)| *row < first);
            let to = rows.partition_point(|(row, _)| *row < first + part.len() / width);
            for ((row, weight), x) in rows[from..to].iter().zip(x[from * width..].chunks_exact(width)) {
                part[(row - first) * width..][..width].iter_mut().zip(x).for_each(|(sum, v)| *sum += weight * v);
            }
        };
        sum.inplace_op1(&RowsInPlace { name: "add-rows", width, f }).or_fail()
    })??;
    Ok(sum)
}

/// `1 / (1 + exp(−x))`.
pub(crate) fn sigmoid(x: &Tensor) -> Result<Tensor> {
    if composed::takes(x) {
        return composed::sigmoid(x);
    }
    let values: Vec<f32> = x.flatten_all().and_then(|t| t.to_vec1()).or_fail()?;
    from_host(values.iter().map(|v| 1.0 / (1.0 + (-v).exp())).collect(), x.dims(), x.device())
}

/// Columns `from..from + n` of a matrix, in a tensor of their own.
pub(crate) fn columns(x: &Tensor, from: usize, n: usize) -> Result<Tensor> {
    x.narrow(1, from, n).and_then(|t| t.force_contiguous()).or_fail()
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
    if composed::takes(x) {
        return composed::all_finite(x);
    }
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
    fn layer_norm_with_bias() {
        let x = from_host(ramp(2 * 12), &[2, 12], &Device::Cpu).unwrap();
        let (w, b) = (ramp(12), ramp(24)[12..].to_vec());
        let tensor = |v: &[f32]| from_host(v.to_vec(), &[12], &Device::Cpu).unwrap();
        let offset = Norm { offset: 1.0, ..Norm::layer(1e-5) };
        let y = norm(&x, &tensor(&w), Some(&tensor(&b)), offset).unwrap().to_vec2::<f32>().unwrap();
        for (row, x) in y.iter().zip(ramp(24).chunks(12)) {
            let mean = x.iter().sum::<f32>() / 12.0;
            let deviation = (x.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 12.0 + 1e-5).sqrt();
            for i in 0..12 {
                assert!((row[i] - ((x[i] - mean) / deviation * (w[i] + 1.0) + b[i])).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn activations_by_definition() {
        let phi = |x: f64| 0.5 * (1.0 + libm::erf(x / 2f64.sqrt()));
        let tanh = |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh());
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let oai = |x: f64, u: f64| x.min(7.0) * sigmoid(1.702 * x.min(7.0)) * (u.clamp(-7.0, 7.0) + 1.0);
        let gate: Vec<f32> = (-50..50).map(|i| i as f32 * 0.21).collect();
        let up: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin() * 9.0).collect();
        type Wanted<'a> = &'a dyn Fn(f64, f64) -> f64;
        let cases: [(Activation, Wanted<'_>); 4] = [
            (Activation::Silu, &|g, u| g * sigmoid(g) * u),
            (Activation::Gelu, &|g, u| g * phi(g) * u),
            (Activation::GeluTanh, &|g, u| tanh(g) * u),
            (Activation::SwigluOai, &oai),
        ];
        for (activation, wanted) in cases {
            let g = from_host(gate.clone(), &[4, 25], &Device::Cpu).unwrap();
            let g = activate(activation, g, &from_host(up.clone(), &[4, 25], &Device::Cpu).unwrap()).unwrap();
            with_f32(&g, |got| {
                for ((got, g), u) in got.iter().zip(&gate).zip(&up) {
                    let want = wanted(f64::from(*g), f64::from(*u));
                    assert!((f64::from(*got) - want).abs() < 1e-5 * (1.0 + want.abs()), "{activation:?} {g} {u}: {got} {want}");
                }
            })
            .unwrap();
        }
    }

    #[test]
    fn rms_norm_per_head() {
        let dev = Device::Cpu;
        let x = from_host(ramp(2 * 24), &[2, 24], &dev).unwrap();
        let w = from_host(ramp(8), &[8], &dev).unwrap();
        let y = norm(&x, &w, None, Norm::rms(1e-5)).unwrap().to_vec2::<f32>().unwrap();
        let (x, w) = (ramp(48), ramp(8));
        for (i, v) in y.concat().iter().enumerate() {
            let head = &x[i / 8 * 8..i / 8 * 8 + 8];
            let rms = (head.iter().map(|v| v * v).sum::<f32>() / 8.0 + 1e-5).sqrt();
            assert!((v - x[i] / rms * w[i % 8]).abs() < 1e-5);
        }
    }
}
