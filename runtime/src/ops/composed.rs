//! The graph's operations put together from candle's own, for tensors that are not in main memory and for those whose gradients are
//! wanted: a twin for each of the CPU kernels in [`super`] with, to rounding, the same results.

use super::OrFail;
use crate::spec::{Activation, Norm, NormKind};
use bitsmith_formats::{Error, Result};
use candle_core::{D, Tensor};

/// Whether operations on this tensor are composed. The CPU's kernels are faster than what they are twins of, but have no derivative.
pub(crate) fn takes(x: &Tensor) -> bool {
    !x.device().is_cpu() || x.track_op() || forced()
}

#[cfg(not(test))]
const fn forced() -> bool {
    false
}

#[cfg(test)]
use testing::forced;

/// [`super::norm`].
pub fn norm(x: &Tensor, weight: &Tensor, norm: Norm) -> Result<Tensor> {
    let (width, each) = (weight.dims().last().copied().unwrap_or(0), weight.elem_count());
    if each == 0 || !x.elem_count().is_multiple_of(each) {
        return Err(Error::failed(format!("norm of {} values with {each} weights", x.elem_count())));
    }
    let compute = || {
        let rows = x.reshape((x.elem_count() / each, each / width, width))?;
        let rows = match norm.kind {
            NormKind::Rms => rows,
            NormKind::Layer => rows.broadcast_sub(&rows.mean_keepdim(D::Minus1)?)?,
        };
        let deviation = (rows.sqr()?.mean_keepdim(D::Minus1)? + norm.eps)?.sqrt()?;
        let weight = (weight.reshape((1, each / width, width))? + f64::from(norm.offset))?;
        rows.broadcast_div(&deviation)?.broadcast_mul(&weight)?.reshape(x.shape())
    };
    compute().or_fail()
}

/// [`super::add`].
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    b.reshape(a.shape()).and_then(|b| a + b).or_fail()
}

/// [`super::add_bias`].
pub fn add_bias(a: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let rows = || a.reshape(((), bias.elem_count()))?.broadcast_add(&bias.flatten_all()?)?.reshape(a.shape());
    rows().or_fail()
}

/// [`super::activate`].
pub fn activate(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let value = || {
        let up = up.reshape(gate.shape())?;
        match activation {
            Activation::Silu => gate.silu()? * up,
            Activation::Gelu => gate.gelu_erf()? * up,
            Activation::GeluTanh => gate.gelu()? * up,
            Activation::SwigluOai => {
                let gate = gate.minimum(7f32)?;
                gate.mul(&sigmoid_of(&(&gate * 1.702)?)?)? * (up.clamp(-7f32, 7f32)? + 1.0)?
            }
        }
    };
    value().or_fail()
}

/// [`super::activate_alone`].
pub fn activate_alone(activation: Activation, x: &Tensor) -> Result<Tensor> {
    activate(activation, x, &x.ones_like().or_fail()?)
}

/// [`super::scale`].
pub fn scale(x: &Tensor, factor: f32) -> Result<Tensor> {
    (x * f64::from(factor)).or_fail()
}

/// [`super::softcap`].
pub fn softcap(x: &Tensor, cap: f32) -> candle_core::Result<Tensor> {
    (x / f64::from(cap))?.tanh()? * f64::from(cap)
}

/// [`super::scale_rows`].
pub fn scale_rows(x: &Tensor, factors: &Tensor) -> Result<Tensor> {
    factors.reshape(((), 1)).and_then(|f| x.broadcast_mul(&f)).or_fail()
}

/// [`super::add_rows`].
pub fn add_rows(sum: &Tensor, rows: &[(usize, f32)], x: &Tensor) -> Result<Tensor> {
    let value = || {
        let (index, weights): (Vec<u32>, Vec<f32>) = rows.iter().map(|(row, weight)| (*row as u32, *weight)).unzip();
        let index = Tensor::new(index, x.device())?;
        let weights = Tensor::from_vec(weights, (rows.len(), 1), x.device())?;
        sum.index_add(&index, &x.broadcast_mul(&weights)?, 0)
    };
    value().or_fail()
}

/// [`super::sigmoid`].
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    sigmoid_of(x).or_fail()
}

fn sigmoid_of(x: &Tensor) -> candle_core::Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}

/// [`super::all_finite`]: `0 x` is 0 where it is, and not a number elsewhere.
pub fn all_finite(x: &Tensor) -> Result<bool> {
    let sum = (x * 0.0).and_then(|zeros| zeros.sum_all()?.to_scalar::<f32>()).or_fail()?;
    Ok(sum == 0.0)
}

/// What a rotation turns by and where: cosines and sines, `(positions, half)` each, for rows that take the positions in turn.
pub struct Turn<'a> {
    pub cos: &'a [f32],
    pub sin: &'a [f32],
    /// Pairs of a head.
    pub half: usize,
    /// Width of a head.
    pub head: usize,
    /// Its first rotated dimension.
    pub from: usize,
    /// Whether the two of a pair are neighbours.
    pub interleaved: bool,
}

/// A part of every head of `x`, `(rows, heads × head)`, rotated.
pub fn rotate(x: &Tensor, turn: &Turn<'_>) -> Result<Tensor> {
    let Turn { half, head, from, .. } = *turn;
    let value = || {
        let (len, shape) = (turn.cos.len() / half, x.shape());
        let x = x.reshape(((), len, x.dim(1)? / head, head))?;
        let angles = |of: &[f32]| Tensor::from_slice(of, (1, len, 1, half), x.device());
        let (cos, sin) = (angles(turn.cos)?, angles(turn.sin)?);
        let rotated = x.narrow(3, from, 2 * half)?.contiguous()?;
        let (a, b) = if turn.interleaved {
            let (windows, len, heads, _) = rotated.dims4()?;
            let pairs = rotated.reshape((windows, len, heads, half, 2))?;
            (pairs.narrow(4, 0, 1)?.squeeze(4)?.contiguous()?, pairs.narrow(4, 1, 1)?.squeeze(4)?.contiguous()?)
        } else {
            (rotated.narrow(3, 0, half)?.contiguous()?, rotated.narrow(3, half, half)?.contiguous()?)
        };
        let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        let rotated = match turn.interleaved {
            true => Tensor::stack(&[first, second], 4)?.reshape(rotated.shape())?,
            false => Tensor::cat(&[first, second], 3)?,
        };
        // Devices refuse empty tensors.
        let rest = |from: usize, n: usize| (n > 0).then(|| x.narrow(3, from, n)).transpose();
        let end = from + 2 * half;
        let parts: Vec<Tensor> = [rest(0, from)?, Some(rotated), rest(end, head - end)?].into_iter().flatten().collect();
        Tensor::cat(&parts, 3)?.reshape(shape)
    };
    value().or_fail()
}

/// Composing on the CPU, to hold the composed operations against the kernels.
#[cfg(test)]
pub mod testing {
    use std::cell::Cell;

    thread_local! {
        static FORCED: Cell<bool> = const { Cell::new(false) };
    }

    /// Whether this thread composes operations on the CPU too.
    pub fn forced() -> bool {
        FORCED.get()
    }

    /// Runs `f` with operations composed that this thread starts.
    pub fn composed<T>(f: impl FnOnce() -> T) -> T {
        struct Reset(bool);
        impl Drop for Reset {
            fn drop(&mut self) {
                FORCED.set(self.0);
            }
        }
        let _reset = Reset(FORCED.replace(true));
        f()
    }
}

#[cfg(test)]
mod tests;
