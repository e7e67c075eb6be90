//! Formats whose codes name uneven levels that one scale per group multiplies: groups of e4m3 bytes, NF4.
//!
//! A group's bytes: the codes, then the scale. Groups may be as long as a row.

use super::fit;
use super::float::{self, neighbours, saturate};
use super::gram::dot;
use crate::codec::{BlockScales, Codec, CodecId, Float, Gram, Grid};

/// Alternations of refit and rounding in [`Grid::fit`].
const ROUNDS: usize = 3;
/// Scales tried around the old one in [`Grid::fit_near`].
const NEAR: [f32; 3] = [0.96, 1.0, 1.04];

/// What one format adds. Codes are in the order of their levels.
pub(super) trait Levels: Send + Sync + 'static {
    /// The name of the format.
    fn id(&self) -> CodecId;
    /// Weights per group.
    fn len(&self) -> usize;
    /// Bytes of a group's codes.
    fn code_bytes(&self) -> usize;
    /// Storage type of the scale.
    fn float(&self) -> Float;
    /// The last code with a finite level.
    fn max_code(&self) -> u8;
    /// The level of a code.
    fn level(&self, code: u8) -> f32;
    /// The code whose level is nearest, as the format's reference breaks ties.
    fn nearest(&self, x: f32) -> u8;
    /// The code of weight `i` of a group.
    fn code(&self, bytes: &[u8], i: usize) -> u8;
    /// Packs a group's codes.
    fn pack(&self, codes: &[u8], out: &mut [u8]);
    /// The reference encoder's scale, in storage precision, and its rounding of a group.
    fn reference(&self, x: &[f32], codes: &mut [u8]) -> f32;
    /// Multiples of the reference encoder's scale that a search tries.
    fn multiples(&self) -> &'static [f32];
}

/// The codec of the levels `L`.
pub(super) struct Leveled<L>(pub L);

impl<L: Levels> Codec for Leveled<L> {
    fn id(&self) -> CodecId {
        self.0.id()
    }
    fn block_len(&self) -> usize {
        self.0.len()
    }
    fn block_bytes(&self) -> usize {
        self.0.code_bytes() + self.0.float().size()
    }
    fn encode(&self, row: &[f32], _importance: Option<&[f32]>, out: &mut [u8]) {
        assert_eq!(row.len() / self.0.len() * self.block_bytes(), out.len(), "output length");
        let mut codes = vec![0u8; self.0.len()];
        for (x, out) in row.chunks_exact(self.0.len()).zip(out.chunks_exact_mut(self.block_bytes())) {
            let scale = self.0.reference(x, &mut codes);
            self.write(scale, &codes, out);
        }
    }
    fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len() / self.block_bytes() * self.0.len(), out.len(), "output length");
        for (bytes, out) in bytes.chunks_exact(self.block_bytes()).zip(out.chunks_exact_mut(self.0.len())) {
            let (codes, scale) = bytes.split_at(self.0.code_bytes());
            let scale = float::read(self.0.float(), scale);
            for (i, value) in out.iter_mut().enumerate() {
                *value = self.0.level(self.0.code(codes, i)) * scale;
            }
        }
    }
    fn grid(&self) -> Option<&dyn Grid> {
        Some(self)
    }
}

impl<L: Levels> Leveled<L> {
    fn write(&self, scale: f32, codes: &[u8], out: &mut [u8]) {
        let (packed, stored) = out.split_at_mut(self.0.code_bytes());
        self.0.pack(codes, packed);
        float::write(self.0.float(), scale, stored);
    }

    fn scales(&self, scale: f32) -> BlockScales {
        BlockScales { sub_len: self.0.len(), step: vec![scale], offset: vec![0.0], stored: [scale, 0.0], ints: Vec::new() }
    }

    fn nearest(&self, scale: f32, x: f32) -> u8 {
        self.0.nearest(if scale > 0.0 { x / scale } else { 0.0 })
    }

    /// The error of a scale under its nearest codes, and the least-squares scale for those codes.
    fn error_and_refit(&self, scale: f32, x: &[f32], w: &[f32]) -> (f64, f32) {
        let (mut error, mut along, mut square) = (0f64, 0f64, 0f64);
        for (&x, &w) in x.iter().zip(w) {
            let level = self.0.level(self.nearest(scale, x));
            let (rest, w) = (x as f64 - (level * scale) as f64, w as f64);
            error += w * rest * rest;
            along += w * x as f64 * level as f64;
            square += w * level as f64 * level as f64;
        }
        (error, if square > 0.0 { (along / square) as f32 } else { scale })
    }

    /// The best of `starts`, each refitted a few times. The first is the one to beat.
    fn search(&self, starts: impl Iterator<Item = f32>, x: &[f32], w: &[f32]) -> BlockScales {
        let mut best: Option<(f64, f32)> = None;
        for mut scale in starts {
            for _ in 0..=ROUNDS {
                let (error, refitted) = self.error_and_refit(scale, x, w);
                if best.is_some_and(|(least, _)| error >= least) {
                    break;
                }
                best = Some((error, scale));
                let next = saturate(self.0.float(), refitted);
                if next <= 0.0 || next == scale {
                    break;
                }
                scale = next;
            }
        }
        self.scales(best.map_or(0.0, |(_, scale)| scale))
    }
}

impl<L: Levels> Grid for Leveled<L> {
    fn block_len(&self) -> usize {
        self.0.len()
    }
    fn max_code(&self) -> u8 {
        self.0.max_code()
    }
    fn is_linear(&self) -> bool {
        false
    }
    fn value(&self, scales: &BlockScales, _at: usize, code: u8) -> f32 {
        self.0.level(code) * scales.step[0]
    }

    fn fit(&self, weights: &[f32], importance: &[f32]) -> BlockScales {
        let (mut x, mut w) = (vec![0f32; weights.len()], vec![0f32; weights.len()]);
        let (x, w) = fit::prepare(weights, importance, &mut x, &mut w);
        let start = self.0.reference(x, &mut vec![0; x.len()]);
        let multiples = self.0.multiples().iter().map(|m| saturate(self.0.float(), m * start)).filter(|&s| s > 0.0);
        self.search(std::iter::once(start).chain(multiples), x, w)
    }

    fn fit_near(&self, start: &BlockScales, weights: &[f32], importance: &[f32]) -> BlockScales {
        let (mut x, mut w) = (vec![0f32; weights.len()], vec![0f32; weights.len()]);
        let (x, w) = fit::prepare(weights, importance, &mut x, &mut w);
        let start = start.step[0];
        let near = NEAR.iter().map(|m| saturate(self.0.float(), m * start)).filter(|&s| s > 0.0);
        self.search(std::iter::once(start).chain(near), x, w)
    }

    fn round(&self, scales: &BlockScales, _at: usize, x: &[f32], code: &mut [u8], value: &mut [f32]) {
        let scale = scales.step[0];
        for ((&x, code), value) in x.iter().zip(code).zip(value) {
            *code = self.nearest(scale, x);
            *value = self.0.level(*code) * scale;
        }
    }

    fn descend(&self, scales: &mut BlockScales, codes: &[u8], gradient: &[f64], gram: Gram<'_>) -> bool {
        let scale = scales.step[0];
        let levels: Vec<f32> = codes.iter().map(|&c| self.0.level(c)).collect();
        let mut along: Vec<f64> = levels.iter().map(|&l| l as f64).collect();
        let mut h_along = vec![0f64; along.len()];
        gram.apply(&along, 0, &mut h_along);
        let curvature = dot(&along, &h_along);
        if curvature <= 0.0 {
            return false;
        }
        let ideal = saturate(self.0.float(), (scale as f64 - dot(&along, gradient) / curvature) as f32);
        let [below, above] = neighbours(self.0.float(), ideal);
        let change = |s: f32| {
            let by = s as f64 - scale as f64;
            2.0 * by * dot(&along, gradient) + by * by * curvature
        };
        let candidates = [ideal, below, above].into_iter().filter(|s| *s > 0.0);
        let Some(best) = candidates.min_by(|a, b| change(*a).total_cmp(&change(*b))) else { return false };
        // The estimate knows nothing of f32's rounding.
        for (a, l) in along.iter_mut().zip(&levels) {
            *a = (l * best) as f64 - (l * scale) as f64;
        }
        gram.apply(&along, 0, &mut h_along);
        let falls = 2.0 * dot(&along, gradient) + dot(&along, &h_along) < 0.0;
        if falls {
            *scales = self.scales(best);
        }
        falls
    }

    fn pack(&self, scales: &BlockScales, codes: &[u8], out: &mut [u8]) {
        self.write(scales.stored[0], codes, out);
    }
    fn unpack(&self, bytes: &[u8], codes: &mut [u8]) -> BlockScales {
        let (packed, scale) = bytes.split_at(self.0.code_bytes());
        codes.iter_mut().enumerate().for_each(|(i, c)| *c = self.0.code(packed, i));
        self.scales(float::read(self.0.float(), scale))
    }
}
