//! Formats whose blocks have one scale and no finer structure: ggml's Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_0, TQ1_0, TQ2_0 and MLX's
//! affine groups.
//! The value of a code is `scale · (code − zero)` or `scale · code + bias`.

use super::fit::{self, Line, Problem};
use super::float::{limits, neighbours, saturate};
use super::gram::{Pair, dot};
use crate::codec::{BlockScales, Codec, CodecId, Float, Gram, Grid};
use crate::simd::{Kernel, Lanes, MAX_LANES, Portable, dispatch};

/// The longest block.
pub(super) const MAX_LEN: usize = 256;

/// Density of the search in [`Grid::fit`], and how many of its results are taken to storage precision.
const STRIDE: f32 = 0.4;
const LINES: usize = 6;
/// The same for [`Grid::fit_near`].
const LINES_NEAR: usize = 3;

/// The codes and scales of a block format.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Largest code.
    pub max: u8,
    /// The code whose value is zero; `None` where a stored bias decides.
    pub zero: Option<u8>,
    /// Storage type of scale and bias.
    pub float: Float,
}

/// What one format adds: sizes, bytes, reference encoder. `stored` is `[scale, bias]`; the bias is 0 where the format has none.
pub(super) trait Layout: Send + Sync + 'static {
    fn id(&self) -> CodecId;
    fn shape(&self) -> Shape;
    /// Weights per block.
    fn len(&self) -> usize;
    /// Bytes per block.
    fn bytes(&self) -> usize;
    /// Packs one block; rounds `stored` to storage precision. Must be `#[inline(always)]`, as what encoders call.
    fn write<F: Lanes>(&self, stored: [f32; 2], codes: &[u8], out: &mut [u8]);
    /// The inverse of [`Layout::write`].
    fn read(&self, bytes: &[u8], codes: &mut [u8]) -> [f32; 2];
    /// The reference encoder without importance, in three steps that must be `#[inline(always)]`. First, of one block whose weights
    /// are in lanes: extremes of the weights, by lane (they do not depend on the order). What is not needed may be anything.
    fn extremes<F: Lanes>(&self, x: &[f32]) -> (F, F);
    /// Then, of as many blocks as there are lanes, each with its extremes: scale, bias, and what [`Layout::codes`] wants.
    fn lines<F: Lanes>(&self, blocks: &[f32], low: F, high: F) -> Lines<F>;
    /// Last, of one block whose weights are in lanes: its codes, from origin and factor.
    fn codes<F: Lanes>(&self, x: &[f32], line: [f32; 2], codes: &mut [u8]);
    /// The reference encoder with importance, for rows as in [`Codec::encode_rows`]. Most ignore importance.
    fn encode_weighted(&self, rows: &[f32], row_len: usize, importance: &[f32], out: &mut [u8])
    where
        Self: Sized,
    {
        let _ = (row_len, importance);
        encode(self, rows, out);
    }
}

/// What the reference encoder makes of blocks' extremes, a block per lane.
#[derive(Clone, Copy)]
pub(super) struct Lines<F> {
    /// To be stored, once limited to the storage type.
    pub scale: F,
    pub bias: F,
    /// What the codes are computed with, as each format means it.
    pub origin: F,
    pub factor: F,
}

/// The codec of layout `L`.
pub(super) struct Flat<L>(pub L);

impl<L: Layout> Codec for Flat<L> {
    fn id(&self) -> CodecId {
        self.0.id()
    }
    fn block_len(&self) -> usize {
        self.0.len()
    }
    fn block_bytes(&self) -> usize {
        self.0.bytes()
    }
    fn encode(&self, row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
        self.encode_rows(row, row.len(), importance, out);
    }
    fn encode_rows(&self, rows: &[f32], row_len: usize, importance: Option<&[f32]>, out: &mut [u8]) {
        assert_eq!(rows.len() / self.0.len() * self.0.bytes(), out.len(), "output length");
        match importance {
            Some(importance) => self.0.encode_weighted(rows, row_len, importance, out),
            None => encode(&self.0, rows, out),
        }
    }
    fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len() / self.0.bytes() * self.0.len(), out.len(), "output length");
        decode(&self.0, bytes, out);
    }
    fn grid(&self) -> Option<&dyn Grid> {
        Some(self)
    }
}

/// The reference encoder without importance, for whole blocks.
fn encode<L: Layout>(layout: &L, x: &[f32], out: &mut [u8]) {
    dispatch(Encode { layout, x, out });
}

pub(super) struct Encode<'a, L> {
    pub layout: &'a L,
    pub x: &'a [f32],
    pub out: &'a mut [u8],
}

impl<L: Layout> Kernel for Encode<'_, L> {
    type Output = ();

    #[inline(always)]
    fn run<F: Lanes>(self) {
        let Encode { layout, x, out } = self;
        let (len, bytes) = (layout.len(), layout.bytes());
        let whole = x.len() / (F::N * len) * F::N;
        let (x, x_rest) = x.split_at(whole * len);
        let (out, out_rest) = out.split_at_mut(whole * bytes);
        for (g, out) in out.chunks_exact_mut(F::N * bytes).enumerate() {
            let (x, after) = x[g * F::N * len..].split_at(F::N * len);
            encode_group::<F, L>(layout, x, after, out);
        }
        for (x, out) in x_rest.chunks_exact(len).zip(out_rest.chunks_exact_mut(bytes)) {
            encode_group::<Portable<1>, L>(layout, x, &[], out);
        }
    }
}

/// As many blocks as there are lanes. What concerns a block as a whole is done for all of them at once. Memory brings what comes
/// `after` while the codes are made.
#[inline(always)]
fn encode_group<F: Lanes, L: Layout>(layout: &L, x: &[f32], after: &[f32], out: &mut [u8]) {
    let (len, float) = (layout.len(), layout.shape().float);
    let (mut lows, mut highs) = ([F::zero(); MAX_LANES], [F::zero(); MAX_LANES]);
    for ((low, high), x) in lows.iter_mut().zip(&mut highs).zip(x.chunks_exact(len)) {
        let extremes = layout.extremes::<F>(x);
        *low = extremes.0;
        *high = F::zero() - extremes.1;
    }
    // Of a largest zero the sign is gone: it is plus.
    let high = F::zero() - F::least_of_each(&highs);
    let lines = layout.lines(x, F::least_of_each(&lows), high);
    let mut values = [[0f32; MAX_LANES]; 4];
    let Lines { scale, bias, origin, factor } = lines;
    for (values, lanes) in values.iter_mut().zip([limits(float, scale), limits(float, bias), origin, factor]) {
        lanes.store(values);
    }
    let [scale, bias, origin, factor] = &values;
    let mut codes = [0u8; MAX_LEN];
    let codes = &mut codes[..len];
    for (i, (x, out)) in x.chunks_exact(len).zip(out.chunks_exact_mut(layout.bytes())).enumerate() {
        F::prefetch(after.get(i * len..(i + 1) * len).unwrap_or(&[]));
        layout.codes::<F>(x, [origin[i], factor[i]], codes);
        layout.write::<F>([scale[i], bias[i]], codes, out);
    }
}

crate::dispatched! {
    /// The values of whole blocks.
    fn decode<L: Layout>(layout: &L, bytes: &[u8], out: &mut [f32]) {
        let (len, zero) = (layout.len(), layout.shape().zero);
        let mut codes = [0u8; MAX_LEN];
        let codes = &mut codes[..len];
        for (bytes, out) in bytes.chunks_exact(layout.bytes()).zip(out.chunks_exact_mut(len)) {
            let [scale, bias] = layout.read(bytes, codes);
            match zero {
                Some(zero) => {
                    for (value, &code) in out.iter_mut().zip(codes.iter()) {
                        *value = (code as i32 - zero as i32) as f32 * scale;
                    }
                }
                None => {
                    for (value, &code) in out.iter_mut().zip(codes.iter()) {
                        *value = code as f32 * scale + bias;
                    }
                }
            }
        }
    }
}

impl<L: Layout> Flat<L> {
    /// The range of codes as `fit` counts them: from `-zero` for symmetric formats.
    fn range(&self) -> (f32, f32) {
        let Shape { max, zero, .. } = self.0.shape();
        let zero = zero.unwrap_or(0) as f32;
        (-zero, max as f32 - zero)
    }

    fn scales(&self, stored: [f32; 2]) -> BlockScales {
        let [scale, bias] = stored;
        let offset = match self.0.shape().zero {
            Some(zero) => -(zero as f32) * scale,
            None => bias,
        };
        BlockScales { sub_len: self.0.len(), step: vec![scale], offset: vec![offset], stored, ints: Vec::new() }
    }

    /// `line` in storage precision: the scale first, then the best bias for that scale.
    fn store(&self, problem: &Problem, weight: f64, line: Line) -> [f32; 2] {
        let Shape { zero, float, .. } = self.0.shape();
        let step = saturate(float, line.step);
        if zero.is_some() {
            return [step, 0.0];
        }
        let shift = if weight > 0.0 { problem.moments(Line { step, bias: line.bias }).r / weight } else { 0.0 };
        [step, saturate(float, line.bias + shift as f32)]
    }

    /// What biases there can be.
    fn limits(&self) -> (f32, f32) {
        if self.0.shape().zero.is_some() { (0.0, 0.0) } else { (f32::MIN, f32::MAX) }
    }

    /// The best of `start` and `lines`, taken to storage precision, and of the scales and error known to begin with.
    fn best_stored(&self, problem: &Problem, start: Line, lines: &[(Line, f32)], known: ([f32; 2], f32)) -> BlockScales {
        let (mut best, mut least) = known;
        let weight = problem.weight();
        let mut consider = |line: Line| {
            let mut stored = self.store(problem, weight, line);
            let error = self.polish(problem, weight, &mut stored);
            if error < least {
                (least, best) = (error, stored);
            }
        };
        consider(start);
        for &(line, _) in lines {
            consider(line);
            if self.0.shape().zero.is_none() {
                // The same line with its codes in reverse order: its bias is rounded at the other end.
                consider(Line { step: -line.step, bias: line.bias + problem.high * line.step });
            }
        }
        self.scales(best)
    }

    /// Walks to neighbouring storable scales and biases while the error falls. Returns the error.
    fn polish(&self, problem: &Problem, weight: f64, stored: &mut [f32; 2]) -> f32 {
        let Shape { zero, float, .. } = self.0.shape();
        let error = |stored: [f32; 2]| problem.error(Line { step: stored[0], bias: stored[1] });
        let mut best = error(*stored);
        if float == Float::F32 {
            return best;
        }
        for _ in 0..8 {
            let before = best;
            let [scale, bias] = *stored;
            let scales = neighbours(float, scale).map(|s| self.store(problem, weight, Line { step: s, bias }));
            let biases = neighbours(float, bias).map(|b| [scale, b]);
            for candidate in scales.into_iter().chain(biases.into_iter().filter(|_| zero.is_none())) {
                let e = error(candidate);
                if e < best {
                    (best, *stored) = (e, candidate);
                }
            }
            if best >= before {
                break;
            }
        }
        best
    }
}

impl<L: Layout> Grid for Flat<L> {
    fn block_len(&self) -> usize {
        self.0.len()
    }
    fn max_code(&self) -> u8 {
        self.0.shape().max
    }

    fn fit(&self, weights: &[f32], importance: &[f32]) -> BlockScales {
        let len = self.0.len();
        let (mut x, mut w) = ([0f32; MAX_LEN], [0f32; MAX_LEN]);
        let (x, w) = fit::prepare(weights, importance, &mut x[..len], &mut w[..len]);
        let (low, high) = self.range();
        let problem = Problem { x, w, low, high };

        // The reference encoder's scales are the first candidate, so that the result is never worse.
        let (mut bytes, mut codes) = ([0u8; 2 * MAX_LEN], [0u8; MAX_LEN]);
        let bytes = &mut bytes[..self.0.bytes()];
        self.encode(weights, Some(importance), bytes);
        let mut best = self.0.read(bytes, &mut codes[..len]);
        let start = Line { step: best[0], bias: best[1] };
        let mut least = problem.error(start);
        if !least.is_finite() {
            (best, least) = ([0.0; 2], f32::INFINITY);
        }
        let lines = problem.search(self.limits(), STRIDE, LINES);
        self.best_stored(&problem, start, &lines, (best, least))
    }

    fn fit_near(&self, start: &BlockScales, weights: &[f32], importance: &[f32]) -> BlockScales {
        let len = self.0.len();
        let (mut x, mut w) = ([0f32; MAX_LEN], [0f32; MAX_LEN]);
        let (x, w) = fit::prepare(weights, importance, &mut x[..len], &mut w[..len]);
        let (low, high) = self.range();
        let problem = Problem { x, w, low, high };
        let line = Line { step: start.stored[0], bias: start.stored[1] };
        let lines = problem.search_near(line, self.limits(), LINES_NEAR);
        self.best_stored(&problem, line, &lines, (start.stored, problem.error(line)))
    }

    fn round(&self, scales: &BlockScales, _at: usize, x: &[f32], code: &mut [u8], value: &mut [f32]) {
        fit::round(scales.step[0], scales.offset[0], self.0.shape().max, x, code, value);
    }

    fn descend(&self, scales: &mut BlockScales, codes: &[u8], gradient: &[f64], gram: Gram<'_>) -> bool {
        let (len, Shape { zero, float, .. }) = (self.0.len(), self.0.shape());
        let [mut along_scale, mut along_bias, mut h_scale, mut h_bias] = [[0f64; MAX_LEN]; 4];
        let (along_scale, along_bias) = (&mut along_scale[..len], &mut along_bias[..len]);
        let (h_scale, h_bias) = (&mut h_scale[..len], &mut h_bias[..len]);
        along_scale.iter_mut().zip(codes).for_each(|(a, &c)| *a = c as f64 - zero.unwrap_or(0) as f64);
        gram.apply(along_scale, 0, h_scale);
        if zero.is_none() {
            along_bias.fill(1.0);
            gram.apply(along_bias, 0, h_bias);
        }
        let [scale, bias] = scales.stored;
        let pair = Pair::new(along_scale, along_bias, h_scale, h_bias, gradient);

        // Both rounded independently is not the best storable pair: for each scale near the best, the bias is solved anew.
        let ideal = saturate(float, (scale as f64 + pair.best().0) as f32);
        let [below, above] = neighbours(float, ideal);
        let mut found = (0.0, scales.stored);
        for s in [ideal, below, above, scale] {
            let p = s as f64 - scale as f64;
            let b = saturate(float, (bias as f64 + pair.best_q(p)) as f32);
            let change = pair.change(p, b as f64 - bias as f64);
            if change < found.0 {
                found = (change, [s, b]);
            }
        }
        if found.0 >= 0.0 {
            return false;
        }
        // The pair knows nothing of f32's rounding.
        let (moves, h_moves) = (along_scale, h_scale);
        let offset = |stored: [f32; 2]| zero.map_or(stored[1], |zero| -(zero as f32) * stored[0]);
        let (old, new) = (offset(scales.stored), offset(found.1));
        for (m, &c) in moves.iter_mut().zip(codes) {
            *m = (found.1[0] * c as f32 + new) as f64 - (scale * c as f32 + old) as f64;
        }
        gram.apply(moves, 0, h_moves);
        let falls = 2.0 * dot(moves, gradient) + dot(moves, h_moves) < 0.0;
        if falls {
            *scales = self.scales(found.1);
        }
        falls
    }

    fn place(&self, step: f32, offset: f32) -> Option<BlockScales> {
        let Shape { zero, float, .. } = self.0.shape();
        let bias = if zero.is_some() { 0.0 } else { offset };
        Some(self.scales([step, bias].map(|s| saturate(float, s))))
    }
    fn pack(&self, scales: &BlockScales, codes: &[u8], out: &mut [u8]) {
        self.0.write::<Portable<8>>(scales.stored, codes, out);
    }
    fn unpack(&self, bytes: &[u8], codes: &mut [u8]) -> BlockScales {
        self.scales(self.0.read(bytes, codes))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{legacy::Legacy, q2_0::Q2_0, q8_0::Q8_0, side_by_side, tq1_0::TQ1_0, tq2_0::TQ2_0};
    use super::*;
    use crate::codecs::block::tests::weights;

    fn check<L: Layout>(layout: &L) {
        let x = weights(64 * MAX_LEN);
        let n = x.len() / layout.len();
        let (mut wide, mut narrow) = (vec![0x11; n * layout.bytes()], vec![0x22; n * layout.bytes()]);
        encode(layout, &x, &mut wide);
        Encode { layout, x: &x, out: &mut narrow }.run::<Portable<1>>();
        assert_eq!(wide, narrow, "{}", layout.id());
        let (mut values, mut again) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
        decode(layout, &wide, &mut values);
        portable::decode(layout, &wide, &mut again);
        assert_eq!(values, again, "{}", layout.id());
    }

    fn check_weighted<const BITS: u32, const MIN: bool>() {
        // Rows of three blocks, so that groups of lanes end within rows, and the last group is not full.
        let (layout, row_len) = (Legacy::<BITS, MIN>, 96);
        let x = &weights(row_len * 37);
        let importance: Vec<f32> = x[..row_len].iter().map(|x| x.abs() + 1e-3).collect();
        let bytes = x.len() / Layout::len(&layout) * Layout::bytes(&layout);
        let (mut wide, mut narrow) = (vec![0x11; bytes], vec![0x22; bytes]);
        layout.encode_weighted(x, row_len, &importance, &mut wide);
        let rows = side_by_side::Rows { encoder: &layout, rows: x, row_len, importance: Some(&importance), out: &mut narrow };
        rows.run::<Portable<1>>();
        assert_eq!(wide, narrow, "{}", layout.id());
    }

    #[test]
    fn wide_registers_give_the_same_bytes() {
        check(&Legacy::<4, false>);
        check(&Legacy::<4, true>);
        check(&Legacy::<5, false>);
        check(&Legacy::<5, true>);
        check(&Q8_0);
        check(&Q2_0);
        check(&TQ1_0);
        check(&TQ2_0);
        check_weighted::<4, false>();
        check_weighted::<4, true>();
        check_weighted::<5, false>();
        check_weighted::<5, true>();
    }
}
