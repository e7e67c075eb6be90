//! Sums over activations that lie on a device, made by its own operations. A call's sums are f32; between calls they are added on the
//! host as those of the CPU are, except Gram matrices, which stay where they are until they are wanted.

use crate::stats::{MatrixStats, SiteStats};
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::ops;
use candle_core::Tensor;

/// Sums over the tokens of one call, one value per channel.
pub(crate) struct Channels {
    /// Σ x².
    sum_sq: Vec<f32>,
    /// Σ x.
    sum: Vec<f32>,
    /// Σ |x|.
    sum_abs: Vec<f32>,
    /// max |x|.
    max_abs: Vec<f32>,
}

impl Channels {
    /// Those of `x`, `(tokens, in)`, with at least one token.
    pub fn of(x: &Tensor) -> Result<Self> {
        let sums = || {
            let abs = x.abs()?;
            let of = |t: Tensor| t.to_vec1::<f32>();
            let (sum_sq, sum) = (of(x.sqr()?.sum(0)?)?, of(x.sum(0)?)?);
            Ok(Channels { sum_sq, sum, sum_abs: of(abs.sum(0)?)?, max_abs: of(abs.max(0)?)? })
        };
        failed(sums())
    }
}

/// Adds `xᵀ x`, `(in, in)`, to what was there.
pub(crate) fn add_gram(gram: Option<Tensor>, x: &Tensor) -> Result<Tensor> {
    let sum = || {
        let own = x.t()?.matmul(x)?;
        match &gram {
            Some(gram) => gram + own,
            None => Ok(own),
        }
    };
    failed(sum())
}

impl SiteStats {
    pub(crate) fn add_channels(&mut self, tokens: usize, channels: &Channels) {
        self.tokens += tokens as u64;
        self.sum_sq.iter_mut().zip(&channels.sum_sq).for_each(|(sum, v)| *sum += f64::from(*v));
        self.sum.iter_mut().zip(&channels.sum).for_each(|(sum, v)| *sum += f64::from(*v));
        self.sum_abs.iter_mut().zip(&channels.sum_abs).for_each(|(sum, v)| *sum += f64::from(*v));
        self.max_abs.iter_mut().zip(&channels.max_abs).for_each(|(max, v)| *max = max.max(*v));
    }

    pub(crate) fn add_matrix_channels(&mut self, index: usize, count: usize, tokens: usize, channels: &Channels) {
        self.matrices.resize(count.max(self.matrices.len()), MatrixStats::default());
        let matrix = &mut self.matrices[index];
        matrix.tokens += tokens as u64;
        matrix.sum_sq.resize(channels.sum_sq.len(), 0.0);
        matrix.sum_sq.iter_mut().zip(&channels.sum_sq).for_each(|(sum, v)| *sum += f64::from(*v));
        matrix.sum.resize(channels.sum.len(), 0.0);
        matrix.sum.iter_mut().zip(&channels.sum).for_each(|(sum, v)| *sum += f64::from(*v));
    }

    /// Adds a Gram matrix, `(in, in)`, that a device has summed.
    pub(crate) fn add_gram(&mut self, gram: &Tensor) -> Result<()> {
        let Some(sum) = self.gram.as_mut().and_then(|sum| sum.as_slice_mut()) else { return Ok(()) };
        ops::with_f32(gram, |gram| sum.iter_mut().zip(gram).for_each(|(sum, v)| *sum += v))
    }
}

fn failed<T>(result: candle_core::Result<T>) -> Result<T> {
    result.map_err(|e| Error::failed(format!("tensor operation failed: {e}")).with_source(e))
}
