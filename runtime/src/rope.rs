//! Rotary position embedding (Su et al., 2021) and its variants for long contexts.

use crate::block::Rows;
use crate::kernels;
use crate::ops::composed::{self, Turn};
use crate::ops::{OrFail, RowsInPlace};
use crate::spec::{Rope, RopeScaling, Yarn};
use bitsmith_formats::Result;
use candle_core::Tensor;
use std::borrow::Cow;
use std::f64::consts::PI;

impl Rope {
    /// Angle per token of each of the `dims / 2` pairs, in radians, after scaling, in a text of at most `length` tokens.
    pub fn frequencies(&self, length: usize) -> Vec<f64> {
        let half = self.dims / 2;
        let theta = match &self.scaling {
            RopeScaling::Dynamic { factor, original_context } if length > *original_context => {
                let grown = factor * length as f64 / *original_context as f64 - (factor - 1.0);
                self.theta * grown.powf(self.dims as f64 / (self.dims as f64 - 2.0))
            }
            _ => self.theta,
        };
        let base = |i: usize| theta.powf(-(i as f64) / half as f64);
        (0..half)
            .map(|i| {
                let f = base(i);
                match &self.scaling {
                    RopeScaling::None | RopeScaling::Dynamic { .. } | RopeScaling::Sections(_) => f,
                    RopeScaling::Linear { factor } => f / factor,
                    RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                        f / llama3_divisor(f, *factor, *low_freq_factor, *high_freq_factor, *original_context as f64)
                    }
                    RopeScaling::Yarn(yarn) => f * yarn.multiplier(i, self.theta, self.dims),
                    RopeScaling::Long(l) => f / f64::from(if length > l.original_context { l.long[i] } else { l.short[i] }),
                    RopeScaling::Factors(divisors) => f / f64::from(divisors[i]),
                }
            })
            .collect()
    }

    /// The divisor of each frequency, `dims / 2` values, if scaling gives each its own whatever the text: the content of GGUF's
    /// `rope_freqs.weight`.
    pub fn factors(&self) -> Option<Vec<f32>> {
        match &self.scaling {
            RopeScaling::Factors(divisors) => Some(divisors.clone()),
            RopeScaling::Llama3 { .. } => {
                let plain = Rope { scaling: RopeScaling::None, ..self.clone() }.frequencies(0);
                Some(plain.iter().zip(self.frequencies(0)).map(|(p, s)| (p / s) as f32).collect())
            }
            _ => None,
        }
    }

    /// What cosines and sines are multiplied by.
    fn magnitude(&self) -> f64 {
        match &self.scaling {
            RopeScaling::Yarn(y) => y.attention_factor,
            RopeScaling::Long(l) => l.attention_factor,
            _ => 1.0,
        }
    }

    /// The longest text that the same frequencies serve as one of `length` tokens.
    pub(crate) fn serves(&self, length: usize) -> usize {
        match &self.scaling {
            RopeScaling::Long(l) if length <= l.original_context => l.original_context,
            RopeScaling::Dynamic { original_context, .. } if length <= *original_context => *original_context,
            RopeScaling::Dynamic { .. } => length,
            _ => usize::MAX,
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

impl Yarn {
    /// What frequency `i` is multiplied by: 1 for fast ones, `1 / factor` for slow ones, linear in the dimension between.
    fn multiplier(&self, i: usize, theta: f64, dims: usize) -> f64 {
        let turns_at = |turns: f64| dims as f64 * (self.original_context as f64 / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (turns_at(self.beta_fast), turns_at(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dims as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        let slow = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        slow / self.factor + (1.0 - slow)
    }
}

/// Cosines and sines for the positions from 0, `(positions, dims / 2)` each.
#[derive(Debug, Clone)]
pub struct RopeTable {
    rope: Rope,
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
    /// The longest text that these serve.
    length: usize,
}

/// The part of each head that is rotated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rotated {
    /// Width of a head.
    pub head: usize,
    /// Its first rotated dimension.
    pub from: usize,
}

impl RopeTable {
    /// The table for texts of `positions` tokens.
    pub fn new(rope: &Rope, positions: usize) -> Self {
        // Rounded to f32 as the reference implementations keep them; the angle itself is exact.
        let frequencies: Vec<f64> = rope.frequencies(positions).iter().map(|f| f64::from(*f as f32)).collect();
        let (half, magnitude) = (frequencies.len(), rope.magnitude());
        let (mut cosines, mut sines) = (Vec::with_capacity(positions * half), Vec::with_capacity(positions * half));
        for p in 0..positions {
            for f in &frequencies {
                let (sin, cos) = (p as f64 * f).sin_cos();
                cosines.push((cos * magnitude) as f32);
                sines.push((sin * magnitude) as f32);
            }
        }
        RopeTable { rope: rope.clone(), cos: cosines, sin: sines, half, length: positions }
    }

    /// Whether the table serves a text of this many tokens.
    pub fn covers(&self, length: usize) -> bool {
        self.half == 0 || (length <= self.length && self.rope.serves(length) >= self.length)
    }

    /// A part of every head of `x`, `(rows, heads × head)`, rotated in the storage of `x`. Its rows are those of the spans, one after the
    /// other.
    pub(crate) fn apply(&self, x: Tensor, spans: &[Rows], part: Rotated) -> Result<Tensor> {
        if self.half == 0 {
            return Ok(x);
        }
        if let [whole] = spans {
            return self.apply_to(x, whole.len, whole.start, part);
        }
        let (mut first, mut parts) = (0, Vec::new());
        for rows in spans {
            let n = rows.windows * rows.len;
            parts.push(self.apply_to(x.narrow(0, first, n).or_fail()?, rows.len, rows.start, part)?);
            first += n;
        }
        match composed::takes(&x) {
            true => Tensor::cat(&parts, 0).or_fail(),
            // The parts lie where they were.
            false => Ok(x),
        }
    }

    /// The same for `(windows × len, heads × head)`; row `r` is at position `start + r % len`.
    fn apply_to(&self, x: Tensor, len: usize, start: usize, part: Rotated) -> Result<Tensor> {
        let table = match self.covers(start + len) {
            true => Cow::Borrowed(self),
            false => Cow::Owned(RopeTable::new(&self.rope, start + len)),
        };
        let (_, width) = x.dims2().or_fail()?;
        let half = self.half;
        if composed::takes(&x) {
            let (Rotated { head, from }, at) = (part, start * half..(start + len) * half);
            let interleaved = self.rope.interleaved;
            let turn = Turn { cos: &table.cos[at.clone()], sin: &table.sin[at], half, head, from, interleaved };
            return composed::rotate(&x, &turn);
        }
        let f = |first: usize, rows: &mut [f32]| {
            for (i, row) in rows.chunks_exact_mut(width).enumerate() {
                let at = (start + (first + i) % len) * half;
                let (cos, sin) = (&table.cos[at..at + half], &table.sin[at..at + half]);
                for head in row.chunks_exact_mut(part.head) {
                    let turned = &mut head[part.from..part.from + 2 * half];
                    if self.rope.interleaved {
                        kernels::rotate_pairs(turned, cos, sin)
                    } else {
                        kernels::rotate(turned, cos, sin)
                    }
                }
            }
        };
        x.inplace_op1(&RowsInPlace { name: "rope", width, f }).or_fail()?;
        Ok(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::LongRope;

    fn plain(theta: f64, dims: usize) -> Rope {
        Rope { theta, dims, interleaved: false, scaling: RopeScaling::None }
    }

    #[test]
    fn long_texts_get_their_own_frequencies() {
        let long = LongRope { short: vec![1.0; 4], long: vec![4.0; 4], original_context: 16, attention_factor: 1.5 };
        let rope = Rope { scaling: RopeScaling::Long(long), ..plain(100.0, 8) };
        assert_eq!((rope.frequencies(16)[0], rope.frequencies(17)[0]), (1.0, 0.25));
        let (short, long) = (RopeTable::new(&rope, 16), RopeTable::new(&rope, 32));
        assert!(short.covers(9) && !short.covers(17) && long.covers(20) && !long.covers(16));
        assert_eq!(short.cos[0], 1.5);
        let dynamic = Rope { scaling: RopeScaling::Dynamic { factor: 2.0, original_context: 16 }, ..plain(100.0, 8) };
        assert_eq!(dynamic.frequencies(16), plain(100.0, 8).frequencies(1));
        let grown = 100f64 * 3f64.powf(8.0 / 6.0);
        assert!((dynamic.frequencies(32)[1] - grown.powf(-0.25)).abs() < 1e-12);
        let table = RopeTable::new(&dynamic, 32);
        assert!(table.covers(32) && !table.covers(31) && !table.covers(16));
    }

    #[test]
    fn yarn_keeps_fast_and_divides_slow_frequencies() {
        let yarn = Yarn {
            factor: 4.0,
            original_context: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.0,
            truncate: true,
            mscale_all_dim: 0.0,
        };
        let rope = Rope { scaling: RopeScaling::Yarn(yarn), ..plain(10000.0, 128) };
        let (scaled, plain) = (rope.frequencies(1), plain(10000.0, 128).frequencies(1));
        // 4096 tokens are 32 turns at dimension 20.94 and one turn at 45.03.
        assert_eq!(scaled[20], plain[20]);
        assert!(scaled[21] < plain[21] && scaled[45] > plain[45] / 4.0);
        assert!((scaled[46] - plain[46] / 4.0).abs() < 1e-15);
    }

    #[test]
    fn plain_and_linear() {
        let rope = plain(10000.0, 8);
        let f = rope.frequencies(1);
        for (a, b) in f.iter().zip([1.0, 0.1, 0.01, 0.001]) {
            assert!((a - b).abs() < 1e-12);
        }
        let half = Rope { scaling: RopeScaling::Linear { factor: 2.0 }, ..rope };
        assert!((half.frequencies(1)[1] - 0.05).abs() < 1e-12);
        assert_eq!(half.factors(), None);
    }

    /// Llama 3.1: theta 500000, factor 8, low 1, high 4, original context 8192, head_dim 128. Wavelengths below 2048 are kept,
    /// above 8192 divided by 8.
    #[test]
    fn llama3_by_hand() {
        let scaling = RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
        let rope = Rope { scaling, ..plain(500000.0, 128) };
        let factors = rope.factors().unwrap();
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
        let through = Rope { scaling: RopeScaling::Factors(factors), ..rope.clone() };
        for (a, b) in rope.frequencies(1).iter().zip(through.frequencies(1)) {
            assert!((a - b).abs() < 1e-7 * a);
        }
    }

    #[test]
    fn rotation_keeps_norm_and_relative_angle() {
        let table = RopeTable::new(&plain(100.0, 4), 8);
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
