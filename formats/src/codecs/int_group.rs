//! Integers with a zero point: groups of a row with codes of 2, 3, 4 or 8 bits, value `scale · (code − zero)`. GPTQ, AWQ and
//! compressed-tensors.
//!
//! A group's bytes here: the codes as a little-endian bit stream, the scale, the zero point as one byte. Values are computed as
//! `scale · code + (−zero · scale)` in f32, which is exact for F16 and BF16 scales short of overflow.

use super::bits;
use super::fit::{self, Line, Problem};
use super::float::{self, neighbours, saturate};
use super::gram::{Pair, dot};
use super::registry::Registry;
use crate::codec::{BlockScales, Codec, CodecId, Float, Gram, Grid};

/// The longest group.
const MAX_GROUP: u32 = 1 << 20;
/// Larger scales are not chosen, so that no value of a code overflows.
const MAX_SCALE: f32 = 1e36;
/// Density of the search in [`Grid::fit`], and how many of its results are taken to storage precision.
const STRIDE: f32 = 0.4;
const LINES: usize = 6;
/// The same for [`Grid::fit_near`].
const LINES_NEAR: usize = 3;
/// Fractions of the widest scale to start from where all weights of a group have one sign and the zero point is at its limit.
const SHRINKS: [f32; 8] = [1.0, 0.93, 0.86, 0.79, 0.72, 0.64, 0.56, 0.48];

/// One of the formats.
struct IntGroup {
    bits: u8,
    group: u32,
    scale: Float,
    symmetric: bool,
}

/// The format with these properties, if there is one: 2, 3, 4 or 8 bits, whole bytes of codes. Formats are made when they are first
/// asked for and stay, a few bytes each.
pub(super) fn find(bits: u8, group: u32, scale: Float, symmetric: bool) -> Option<&'static dyn Codec> {
    static ALL: Registry<(u8, u32, Float, bool), IntGroup> = Registry::new();
    // The kernels take eight weights at a time.
    if !matches!(bits, 2 | 3 | 4 | 8) || group == 0 || group > MAX_GROUP || !group.is_multiple_of(8) {
        return None;
    }
    Some(ALL.get((bits, group, scale, symmetric), || IntGroup { bits, group, scale, symmetric }))
}

impl IntGroup {
    fn len(&self) -> usize {
        self.group as usize
    }
    fn code_bytes(&self) -> usize {
        self.len() / 8 * usize::from(self.bits)
    }
    fn max(&self) -> u8 {
        ((1u16 << self.bits) - 1) as u8
    }
    /// The zero point of symmetric groups.
    fn middle(&self) -> f32 {
        f32::from(1u8 << (self.bits - 1))
    }

    /// `stored` is the scale and the zero point.
    fn write(&self, [scale, zero]: [f32; 2], codes: &[u8], out: &mut [u8]) {
        let (packed, rest) = out.split_at_mut(self.code_bytes());
        bits::pack_width(self.bits, codes, packed);
        float::write(self.scale, scale, rest);
        rest[self.scale.size()] = zero as u8;
    }
    fn read(&self, bytes: &[u8], codes: &mut [u8]) -> [f32; 2] {
        let (packed, rest) = bytes.split_at(self.code_bytes());
        bits::unpack_width(self.bits, packed, codes);
        [float::read(self.scale, rest), f32::from(rest[self.scale.size()])]
    }

    /// [`Grid::descend`] of groups whose zero point stays: along the levels alone.
    fn descend_scale(&self, scales: &mut BlockScales, codes: &[u8], gradient: &[f64], gram: Gram<'_>) -> bool {
        let [stored, zero] = scales.stored;
        let levels: Vec<f64> = codes.iter().map(|&c| f64::from(c) - f64::from(zero)).collect();
        let mut curved = vec![0f64; levels.len()];
        gram.apply(&levels, 0, &mut curved);
        let (slope, square) = (dot(&levels, gradient), dot(&levels, &curved));
        if square <= 0.0 {
            return false;
        }
        let scale = f64::from(stored);
        let ideal = self.storable((scale - slope / square) as f32);
        let [below, above] = neighbours(self.scale, ideal);
        let change = |s: f32| {
            let p = f64::from(s) - scale;
            2.0 * p * slope + p * p * square
        };
        let candidates = [ideal, below, above].map(|s| self.storable(s));
        let (best, least) =
            candidates.into_iter().map(|s| (s, change(s))).fold((stored, 0.0), |a, b| if b.1 < a.1 { b } else { a });
        // Values are rounded to f32, which counts where next to nothing changes.
        let p = f64::from(best) - scale;
        let clear = p.abs() > 1e-4 * scale.abs() && least < -1e-3 * p * p * square;
        let falls = least < 0.0
            && (clear || {
                let value = |scale: f32, code: u8| f64::from(scale * f32::from(code) - zero * scale);
                let moves: Vec<f64> = codes.iter().map(|&c| value(best, c) - value(stored, c)).collect();
                gram.apply(&moves, 0, &mut curved);
                2.0 * dot(&moves, gradient) + dot(&moves, &curved) < 0.0
            });
        if falls {
            *scales = self.scales([best, zero]);
        }
        falls
    }

    fn scales(&self, stored: [f32; 2]) -> BlockScales {
        let [scale, zero] = stored;
        BlockScales { sub_len: self.len(), step: vec![scale], offset: vec![-(zero * scale)], stored, ints: Vec::new() }
    }

    fn storable(&self, scale: f32) -> f32 {
        saturate(self.scale, scale.clamp(-MAX_SCALE, MAX_SCALE))
    }

    /// Scale and zero point of the range of the weights and zero, scale not yet rounded: `find_params` of GPTQ's `Quantizer`, but
    /// for symmetric groups of positive weights only, half of whose range that one cuts off.
    fn reference(&self, x: &[f32]) -> [f32; 2] {
        let (mut min, mut max) = x.iter().fold((0f32, 0f32), |(lo, hi), &x| (lo.min(x), hi.max(x)));
        if self.symmetric {
            max = max.max(-min);
            min = -max;
        }
        if min == max {
            (min, max) = (-1.0, 1.0);
        }
        // Neither subnormal nor infinite.
        let scale = ((max - min) / f32::from(self.max())).clamp(f32::MIN_POSITIVE, MAX_SCALE);
        let zero =
            if self.symmetric { self.middle() } else { (-min / scale).round_ties_even().clamp(0.0, f32::from(self.max())) };
        [scale, zero]
    }

    /// Scale and zero point by compressed-tensors' `calculate_qparams`, in the arithmetic of the scales' type: the range of the weights
    /// and zero over all codes. A group of zeros has the type's epsilon for a scale.
    fn min_max(&self, x: &[f32]) -> [f32; 2] {
        let round = |x: f32| self.scale.round(x);
        let (min, max) = x.iter().fold((0f32, 0f32), |(lo, hi), &x| (lo.min(x), hi.max(x)));
        let codes = f32::from(self.max());
        let scale = match self.symmetric {
            true => round(max.max(-min) / (codes / 2.0)),
            false => round(round(max - min) / codes),
        };
        if scale == 0.0 {
            return [float::epsilon(self.scale), self.middle()];
        }
        let zero = if self.symmetric { 0.0 } else { round(-self.middle() - round(min / scale)) };
        let zero = zero.clamp(-self.middle(), self.middle() - 1.0).round_ties_even();
        [self.storable(scale), zero + self.middle()]
    }

    /// Whether rows are encoded as compressed-tensors has it. GPTQ and AWQ keep all scales in F16, compressed-tensors in the model's own
    /// type; for F16 models both round alike but for the last bit of the scale that divides.
    fn divides_by_stored(&self) -> bool {
        self.scale != Float::F16
    }
}

impl Codec for IntGroup {
    fn id(&self) -> CodecId {
        CodecId::IntGroup { bits: self.bits, group: self.group, scale: self.scale, symmetric: self.symmetric }
    }
    fn block_len(&self) -> usize {
        self.len()
    }
    fn block_bytes(&self) -> usize {
        self.code_bytes() + self.scale.size() + 1
    }
    /// Round to nearest between the extremes, without importance, as the tools do without calibration: GPTQ's choose codes with the
    /// unrounded scale, compressed-tensors with the stored one, adding the zero point before it rounds.
    fn encode(&self, row: &[f32], _importance: Option<&[f32]>, out: &mut [u8]) {
        assert_eq!(row.len() / self.len() * self.block_bytes(), out.len(), "output length");
        let mut codes = vec![0u8; self.len()];
        for (x, out) in row.chunks_exact(self.len()).zip(out.chunks_exact_mut(self.block_bytes())) {
            let max = f32::from(self.max());
            let [scale, zero] = if self.divides_by_stored() { self.min_max(x) } else { self.reference(x) };
            if self.divides_by_stored() {
                let middle = self.middle();
                for (code, &x) in codes.iter_mut().zip(x) {
                    *code = ((x / scale + (zero - middle)).round_ties_even() + middle).clamp(0.0, max) as u8;
                }
            } else {
                for (code, &x) in codes.iter_mut().zip(x) {
                    *code = ((x / scale).round_ties_even() + zero).clamp(0.0, max) as u8;
                }
            }
            self.write([self.storable(scale), zero], &codes, out);
        }
    }
    fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len() / self.block_bytes() * self.len(), out.len(), "output length");
        let mut codes = vec![0u8; self.len()];
        for (bytes, out) in bytes.chunks_exact(self.block_bytes()).zip(out.chunks_exact_mut(self.len())) {
            let [scale, zero] = self.read(bytes, &mut codes);
            let offset = -(zero * scale);
            for (value, &code) in out.iter_mut().zip(&codes) {
                *value = scale * f32::from(code) + offset;
            }
        }
    }
    fn grid(&self) -> Option<&dyn Grid> {
        Some(self)
    }
}

/// The search for one group's scale and zero point. With the zero point fixed, the grid is symmetric about it and its scale a
/// matter of least squares.
struct Search<'a> {
    format: &'a IntGroup,
    x: &'a [f32],
    w: &'a [f32],
    weight: f64,
    best: [f32; 2],
    least: f32,
}

impl<'a> Search<'a> {
    /// Begins with what is known.
    fn new(format: &'a IntGroup, x: &'a [f32], w: &'a [f32], known: [f32; 2]) -> Self {
        let weight = w.iter().map(|&w| f64::from(w)).sum();
        let mut search = Search { format, x, w, weight, best: known, least: f32::INFINITY };
        let error = search.around(known[1]).error(Line { step: known[0], bias: 0.0 });
        match error.is_finite() {
            true => search.least = error,
            false => search.best[0] = 0.0,
        }
        search
    }

    /// The problem with codes counted from the zero point.
    fn around(&self, zero: f32) -> Problem<'a> {
        Problem { x: self.x, w: self.w, low: -zero, high: f32::from(self.format.max()) - zero }
    }

    /// The problem with codes counted from 0, on lines with any bias.
    fn affine(&self) -> Problem<'a> {
        self.around(0.0)
    }

    /// Takes a scale to storage precision, walks to its neighbours while the error falls, and keeps the result if it is the best.
    fn consider(&mut self, scale: f32, zero: f32) {
        let problem = self.around(zero);
        let error = |scale: f32| problem.error(Line { step: scale, bias: 0.0 });
        let mut scale = self.format.storable(scale);
        let mut least = error(scale);
        if self.format.scale != Float::F32 {
            for _ in 0..8 {
                let near = neighbours(self.format.scale, scale).map(|s| (error(s), s));
                let Some(&better) = near.iter().filter(|n| n.0 < least).min_by(|a, b| a.0.total_cmp(&b.0)) else { break };
                (least, scale) = better;
            }
        }
        if least < self.least {
            (self.least, self.best) = (least, [scale, zero]);
        }
    }

    /// Refits and considers lines through zero at this zero point.
    fn refine(&mut self, zero: f32, steps: impl IntoIterator<Item = f32>) {
        let problem = self.around(zero);
        for step in steps {
            let (line, _) = problem.descend(Line { step, bias: 0.0 }, self.weight, (0.0, 0.0), 6);
            self.consider(line.step, zero);
        }
    }

    /// Turns lines with any bias into scales and zero points.
    fn consider_lines(&mut self, lines: &[(Line, f32)], widest: f32) {
        let max = f32::from(self.format.max());
        for (Line { step, bias }, _) in lines {
            if *step == 0.0 {
                // A constant: any code will do, and one of them meets it best in storage precision.
                let zero = if *bias > 0.0 { 0.0 } else { max };
                (1..=self.format.max()).for_each(|k| self.consider(bias.abs() / f32::from(k), zero));
                continue;
            }
            let ideal = -bias / step;
            if (0.0..=max).contains(&ideal) {
                for zero in [ideal.floor(), ideal.ceil()] {
                    self.refine(zero, [*step]);
                }
            } else {
                self.refine(ideal.clamp(0.0, max), SHRINKS.map(|s| s * widest));
            }
        }
    }
}

impl Grid for IntGroup {
    fn block_len(&self) -> usize {
        self.len()
    }
    fn max_code(&self) -> u8 {
        self.max()
    }

    fn fit(&self, weights: &[f32], importance: &[f32]) -> BlockScales {
        let (mut x, mut w) = (vec![0f32; self.len()], vec![0f32; self.len()]);
        let (x, w) = fit::prepare(weights, importance, &mut x, &mut w);
        let [widest, zero] = self.reference(x);
        // The reference encoder's scale is the first candidate, so that the result is never worse.
        let mut search = Search::new(self, x, w, [self.storable(widest), zero]);
        if self.symmetric {
            for (line, _) in search.around(zero).search((0.0, 0.0), STRIDE, LINES) {
                search.consider(line.step, zero);
            }
        } else {
            search.refine(zero, [widest]);
            let lines = search.affine().search((f32::MIN, f32::MAX), STRIDE, LINES);
            search.consider_lines(&lines, widest);
        }
        self.scales(search.best)
    }

    fn fit_near(&self, start: &BlockScales, weights: &[f32], importance: &[f32]) -> BlockScales {
        let (mut x, mut w) = (vec![0f32; self.len()], vec![0f32; self.len()]);
        let (x, w) = fit::prepare(weights, importance, &mut x, &mut w);
        let [scale, zero] = start.stored;
        let mut search = Search::new(self, x, w, start.stored);
        for (line, _) in search.around(zero).search_near(Line { step: scale, bias: 0.0 }, (0.0, 0.0), LINES_NEAR) {
            search.consider(line.step, zero);
        }
        if !self.symmetric {
            let line = Line { step: scale, bias: start.offset[0] };
            let lines = search.affine().search_near(line, (f32::MIN, f32::MAX), LINES_NEAR);
            search.consider_lines(&lines, self.reference(x)[0]);
        }
        self.scales(search.best)
    }

    fn round(&self, scales: &BlockScales, _at: usize, x: &[f32], code: &mut [u8], value: &mut [f32]) {
        fit::round(scales.step[0], scales.offset[0], self.max(), x, code, value);
    }

    fn descend(&self, scales: &mut BlockScales, codes: &[u8], gradient: &[f64], gram: Gram<'_>) -> bool {
        if self.symmetric {
            return self.descend_scale(scales, codes, gradient, gram);
        }
        let n = self.len();
        let mut buffers = vec![0f64; 4 * n];
        let (values, curved) = buffers.split_at_mut(2 * n);
        let ((levels, ones), (h_levels, h_ones)) = (values.split_at_mut(n), curved.split_at_mut(n));
        levels.iter_mut().zip(codes).for_each(|(l, &c)| *l = f64::from(c));
        ones.fill(1.0);
        gram.apply(levels, 0, h_levels);
        gram.apply(ones, 0, h_ones);
        let pair = Pair::new(levels, ones, h_levels, h_ones, gradient);
        let stored = scales.stored;
        let [scale, zero] = stored.map(f64::from);
        let offset = |[scale, zero]: [f32; 2]| -(zero * scale);

        // The zero points on both sides of the ideal one, each with the scale that is best for it.
        let mut zeros = [zero; 3];
        let (p, q) = pair.best();
        let ideal = ((zero * scale - q) / (scale + p)).clamp(0.0, f64::from(self.max()));
        if ideal.is_finite() {
            zeros = [zero, ideal.floor(), ideal.ceil()];
        }
        let mut found = (0.0, stored);
        for z in zeros {
            let Some(p) = best_scale(&pair, scale * (zero - z), z) else { continue };
            let ideal = self.storable((scale + p) as f32);
            let [below, above] = neighbours(self.scale, ideal);
            for s in [ideal, below, above] {
                let candidate = [self.storable(s), z as f32];
                let change =
                    pair.change(f64::from(candidate[0]) - scale, f64::from(offset(candidate)) - f64::from(offset(stored)));
                if change < found.0 {
                    found = (change, candidate);
                }
            }
        }
        if found.0 >= 0.0 {
            return false;
        }
        // The pair knows nothing of f32's rounding.
        let value = |stored: [f32; 2], code: u8| f64::from(stored[0] * f32::from(code) + offset(stored));
        let (moves, h_moves) = (levels, h_levels);
        moves.iter_mut().zip(codes).for_each(|(m, &c)| *m = value(found.1, c) - value(stored, c));
        gram.apply(moves, 0, h_moves);
        let falls = 2.0 * dot(moves, gradient) + dot(moves, h_moves) < 0.0;
        if falls {
            *scales = self.scales(found.1);
        }
        falls
    }

    fn place(&self, step: f32, offset: f32) -> Option<BlockScales> {
        let zero = match (self.symmetric, -offset / step) {
            (false, zero) if zero.is_finite() => zero.round().clamp(0.0, f32::from(self.max())),
            _ => self.middle(),
        };
        Some(self.scales([self.storable(step), zero]))
    }
    fn pack(&self, scales: &BlockScales, codes: &[u8], out: &mut [u8]) {
        self.write(scales.stored, codes, out);
    }
    fn unpack(&self, bytes: &[u8], codes: &mut [u8]) -> BlockScales {
        let stored = self.read(bytes, codes);
        self.scales(stored)
    }
}

/// The best change p of the scale when the zero point moves to `zero`: the offset then changes by `shift − p · zero`. `None` if the
/// scale does nothing.
fn best_scale(pair: &Pair, shift: f64, zero: f64) -> Option<f64> {
    let ([g, g1], [pp, pq, qq]) = (pair.gradient, pair.curvature);
    let curvature = pp - 2.0 * zero * pq + zero * zero * qq;
    (curvature > 0.0).then(|| -(g - zero * g1 + shift * (pq - zero * qq)) / curvature)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(format: &dyn Codec, x: &[f32]) -> Vec<u8> {
        let mut out = vec![0; format.block_bytes()];
        format.encode(x, None, &mut out);
        out
    }

    #[test]
    fn only_sensible_groups_exist() {
        for (bits, group) in [(4, 0), (4, 12), (5, 32), (1, 32), (4, (1 << 20) + 8)] {
            assert!(find(bits, group, Float::F16, false).is_none(), "{bits} bits, {group}");
        }
        let first = find(3, 11_008, Float::BF16, true).unwrap();
        assert!(std::ptr::eq(first, find(3, 11_008, Float::BF16, true).unwrap()));
        assert_eq!((first.block_len(), first.block_bytes()), (11_008, 11_008 * 3 / 8 + 3));
    }

    #[test]
    fn the_reference_rounds_between_the_extremes() {
        let x = [-0.5, 1.0, 0.0, 0.25, -0.25, 0.75, 0.5, 0.1];
        // Scale 0.1 and zero 5; symmetric: scale 2/15 and zero 8.
        let scale = |bytes: &[u8]| (float::read(Float::F16, &bytes[4..]), bytes[6]);
        let bytes = block(find(4, 8, Float::F16, false).unwrap(), &x);
        assert_eq!(bytes[..4], [0xf0, 0x75, 0xd3, 0x6a]);
        assert_eq!(scale(&bytes), (Float::F16.round(0.1), 5));
        let bytes = block(find(4, 8, Float::F16, true).unwrap(), &x);
        assert_eq!(scale(&bytes), (Float::F16.round(2.0 / 15.0), 8));
    }

    #[test]
    fn compressed_tensors_divides_by_the_stored_scale() {
        // 1 / 7.5 in BF16 is 0.13379: 0.4675 is less than 3.5 of these, but more than 3.5 of the 0.13333 that GPTQ divides by.
        let x = [-0.5, 1.0, 0.0, 0.4675, -0.25, 0.75, 0.5, 0.1];
        let codes = |float, symmetric| {
            let bytes = block(find(4, 8, float, symmetric).unwrap(), &x);
            let mut codes = [0; 8];
            bits::unpack_width(4, &bytes[..4], &mut codes);
            (codes[3], bytes[6])
        };
        assert_eq!((codes(Float::F16, true), codes(Float::BF16, true)), ((12, 8), (11, 8)));
        assert_eq!(codes(Float::BF16, false).1, 5);
        // Nothing to scale: epsilon, so that no loader divides by 0.
        let zeros = block(find(8, 8, Float::BF16, false).unwrap(), &[0.0; 8]);
        assert_eq!((&zeros[..8], &zeros[8..]), (&[128u8; 8][..], &[0x00, 0x3c, 128][..]));
    }

    #[test]
    fn one_sided_groups_use_the_whole_range() {
        for sign in [1.0, -1.0] {
            let x: Vec<f32> = (0..32).map(|i| sign * (1.0 + i as f32 / 16.0)).collect();
            for symmetric in [false, true] {
                let format = find(4, 32, Float::F16, symmetric).unwrap();
                let grid = format.grid().unwrap();
                let scales = grid.fit(&x, &[1.0; 32]);
                let (mut codes, mut values) = (vec![0; 32], vec![0.0; 32]);
                grid.round(&scales, 0, &x, &mut codes, &mut values);
                let worst = x.iter().zip(&values).fold(0f32, |m, (x, v)| m.max((x - v).abs()));
                assert!(worst < if symmetric { 0.3 } else { 0.15 }, "{symmetric} {worst} {scales:?}");
            }
        }
    }
}
