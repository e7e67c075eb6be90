//! Rotary position embedding (Su et al., 2021), in Hugging Face's convention: dimension `i` of a head is paired with `i + head_dim / 2`.

use crate::kernels;
use crate::ops::{OrFail, RowsInPlace};
use crate::spec::{Rope, RopeScaling};
use bitsmith_formats::Result;
use candle_core::Tensor;
use std::f64::consts::PI;

impl Rope {
    /// Angle per token of each of the `head_dim / 2` pairs, in radians, after scaling.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        let half = head_dim / 2;
        let base = |i: usize| self.theta.powf(-(i as f64) / half as f64);
        (0..half)
            .map(|i| {
                let f = base(i);
                match &self.scaling {
                    RopeScaling::None => f,
                    RopeScaling::Linear { factor } => f / factor,
                    RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                        f / llama3_divisor(f, *factor, *low_freq_factor, *high_freq_factor, *original_context as f64)
                    }
                    RopeScaling::Factors(divisors) => f / f64::from(divisors[i]),
                }
            })
            .collect()
    }

    /// The divisor of each frequency, `head_dim / 2` values, if scaling gives each its own: the content of GGUF's
    /// `rope_freqs.weight`.
    pub fn factors(&self, head_dim: usize) -> Option<Vec<f32>> {
        match &self.scaling {
            RopeScaling::None | RopeScaling::Linear { .. } => None,
            RopeScaling::Factors(divisors) => Some(divisors.clone()),
            RopeScaling::Llama3 { .. } => {
                let plain = Rope { theta: self.theta, scaling: RopeScaling::None }.frequencies(head_dim);
                Some(plain.iter().zip(self.frequencies(head_dim)).map(|(p, s)| (p / s) as f32).collect())
            }
        }
    }
}

/// Llama 3's scaling: 1 for short wavelengths, `factor` for long ones, and between them the frequency is interpolated linearly
/// in `original / wavelength`.
fn llama3_divisor(frequency: f64, factor: f64, low: f64, high: f64, original: f64) -> f64 {
    let turns = original * frequency / (2.0 * PI);
    if turns < low {
        factor
    } else if turns > high {
        1.0
    } else {
        let smooth = (turns - low) / (high - low);
        1.0 / ((1.0 - smooth) / factor + smooth)
    }
}

/// Cosines and sines for the positions from 0, `(positions, head_dim / 2)` each.
#[derive(Debug, Clone)]
pub struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl RopeTable {
    /// The table for `positions` positions.
    pub fn new(rope: &Rope, head_dim: usize, positions: usize) -> Self {
        // Rounded to f32 as the reference implementations keep them; the angle itself is exact.
        let frequencies: Vec<f64> = rope.frequencies(head_dim).iter().map(|f| f64::from(*f as f32)).collect();
        let half = frequencies.len();
        let mut table = RopeTable { cos: Vec::with_capacity(positions * half), sin: Vec::with_capacity(positions * half), half };
        for p in 0..positions {
            for f in &frequencies {
                let (sin, cos) = (p as f64 * f).sin_cos();
                table.cos.push(cos as f32);
                table.sin.push(sin as f32);
            }
        }
        table
    }

    /// Positions in the table.
    pub fn positions(&self) -> usize {
        self.cos.len().checked_div(self.half).unwrap_or(0)
    }

    /// Rotates `x`, `(windows × len, heads × head_dim)`, in place; row `r` is at position `start + r % len`.
    pub(crate) fn apply(&self, x: &Tensor, len: usize, start: usize) -> Result<()> {
        let (_, width) = x.dims2().or_fail()?;
        let half = self.half;
        let f = |first: usize, rows: &mut [f32]| {
            for (i, row) in rows.chunks_exact_mut(width).enumerate() {
                let at = (start + (first + i) % len) * half;
                let (cos, sin) = (&self.cos[at..at + half], &self.sin[at..at + half]);
                row.chunks_exact_mut(2 * half).for_each(|head| kernels::rotate(head, cos, sin));
            }
        };
        x.inplace_op1(&RowsInPlace { name: "rope", width, f }).or_fail()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_linear() {
        let rope = Rope { theta: 10000.0, scaling: RopeScaling::None };
        let f = rope.frequencies(8);
        for (a, b) in f.iter().zip([1.0, 0.1, 0.01, 0.001]) {
            assert!((a - b).abs() < 1e-12);
        }
        let half = Rope { scaling: RopeScaling::Linear { factor: 2.0 }, ..rope };
        assert!((half.frequencies(8)[1] - 0.05).abs() < 1e-12);
        assert_eq!(half.factors(8), None);
    }

    /// Llama 3.1: theta 500000, factor 8, low 1, high 4, original context 8192, head_dim 128. Wavelengths below 2048 are kept,
    /// above 8192 divided by 8.
    #[test]
    fn llama3_by_hand() {
        let scaling = RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
        let rope = Rope { theta: 500000.0, scaling };
        let factors = rope.factors(128).unwrap();
        // theta^(28/64) = 311.3, wavelength 1956 < 2048; theta^(29/64) = 382.1, wavelength 2401: in the ramp, with
        // 8192/2402 = 3.411 turns, smooth = 0.8035, divisor = 1 / (0.1965/8 + 0.8035) = 1.208.
        assert_eq!(factors[28], 1.0);
        assert!((factors[29] - 1.208).abs() < 1e-3, "{}", factors[29]);
        // theta^(34/64) = 1065.6, wavelength 6695, 1.2236 turns, smooth = 0.0745, divisor = 1 / (0.9255/8 + 0.0745) = 5.257.
        assert!((factors[34] - 5.257).abs() < 0.02, "{}", factors[34]);
        // theta^(35/64) = 1308, wavelength 8218 > 8192.
        assert_eq!(factors[35], 8.0);
        assert_eq!(factors[63], 8.0);
        // The same frequencies through the factors, as a GGUF gives them.
        let through = Rope { theta: rope.theta, scaling: RopeScaling::Factors(factors) };
        for (a, b) in rope.frequencies(128).iter().zip(through.frequencies(128)) {
            assert!((a - b).abs() < 1e-7 * a);
        }
    }

    #[test]
    fn rotation_keeps_norm_and_relative_angle() {
        let rope = Rope { theta: 100.0, scaling: RopeScaling::None };
        let table = RopeTable::new(&rope, 4, 8);
        let dot = |p: usize, q: usize| {
            let mut a = [0.3f32, -0.2, 0.9, 0.4];
            let mut b = [-0.7f32, 0.1, 0.5, 0.6];
            kernels::rotate(&mut a, &table.cos[p * 2..p * 2 + 2], &table.sin[p * 2..p * 2 + 2]);
            kernels::rotate(&mut b, &table.cos[q * 2..q * 2 + 2], &table.sin[q * 2..q * 2 + 2]);
            a.iter().zip(&b).map(|(x, y)| x * y).sum::<f32>()
        };
        assert!((dot(5, 3) - dot(2, 0)).abs() < 1e-6);
        assert!((dot(5, 3) - dot(3, 3)).abs() > 1e-3);
    }
}
