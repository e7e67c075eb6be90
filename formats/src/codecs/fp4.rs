//! What ggml's formats of e2m1 codes have in common, MXFP4 and NVFP4: 4-bit floats times a scale per sub-block, which is a float
//! of one byte. Values are counted in halves, as ggml does: a code's value is a small integer times half the scale.

use super::block::{largest, largest_of_each};
use super::fit;
use super::gram::dot;
use super::minifloat::to_e2m1_fourfold;
use crate::codec::{BlockScales, Codec, CodecId, Gram, Grid};
use crate::simd::{Kernel, Lanes, MAX_LANES, STEP, dispatch};
use std::marker::PhantomData;

/// Twice the values of the codes; code 8 is −0, which ggml takes for 0.
pub(super) const VALUES: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];
/// Where rounding goes from one magnitude to the next; ties go to the lower.
const BETWEEN: [f32; 7] = [0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0];
/// The largest of [`VALUES`].
const TOP: f32 = 12.0;
/// The longest block.
const MAX_LEN: usize = 64;
/// Sub-blocks of the longest block.
const MAX_SUBS: usize = 4;
/// Magnitudes are at most this many half scales wherever the encoder compares them with [`BETWEEN`]; f32 differences to all
/// values differ there.
const FAR: f32 = 1e6;
/// Half scales from here on have reciprocals, twice as large.
const NEAR: f32 = 1e-30;

/// What one format adds. Half scales grow with their bytes, up to [`Layout::TOP_SCALE`].
pub(super) trait Layout: Send + Sync + 'static {
    const ID: CodecId;
    /// Weights per block.
    const LEN: usize;
    /// Weights per scale.
    const SUB: usize;
    /// The scale's byte for the largest one whose values are all finite.
    const TOP_SCALE: u8;
    /// Half the scale that a byte stands for; any byte has one.
    fn half_scale(byte: u8) -> f32;
    /// Whether half scales are powers of two.
    const POWERS: bool;
    /// The byte that ggml chooses for this largest magnitude.
    fn reference(largest: f32) -> u8;
}

/// The codec of layout `L`: the sub-blocks' scales, then per sub-block of n weights n/2 bytes, byte j with code j (low half) and
/// code j + n/2 (high half).
pub(super) struct Fp4<L>(PhantomData<L>);

impl<L: Layout> Fp4<L> {
    const SUBS: usize = L::LEN / L::SUB;
    const BYTES: usize = Self::SUBS + L::LEN / 2;

    pub(super) const fn new() -> Self {
        Fp4(PhantomData)
    }
}

impl<L: Layout> Codec for Fp4<L> {
    fn id(&self) -> CodecId {
        L::ID
    }
    fn block_len(&self) -> usize {
        L::LEN
    }
    fn block_bytes(&self) -> usize {
        Self::BYTES
    }
    fn encode(&self, row: &[f32], _importance: Option<&[f32]>, out: &mut [u8]) {
        assert_eq!(row.len() / L::LEN * Self::BYTES, out.len(), "output length");
        dispatch(Encode::<L> { x: row, out, layout: PhantomData });
    }
    fn encode_rows(&self, rows: &[f32], _row_len: usize, _importance: Option<&[f32]>, out: &mut [u8]) {
        self.encode(rows, None, out);
    }
    fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len() / Self::BYTES * L::LEN, out.len(), "output length");
        decode::<L>(bytes, out);
    }
    fn grid(&self) -> Option<&dyn Grid> {
        Some(self)
    }
}

/// ggml's encoder, of whole blocks.
struct Encode<'a, L> {
    x: &'a [f32],
    out: &'a mut [u8],
    layout: PhantomData<L>,
}

impl<L: Layout> Kernel for Encode<'_, L> {
    type Output = ();

    #[inline(always)]
    fn run<F: Lanes>(self) {
        let Encode { x, out, .. } = self;
        let blocks = MAX_LANES / Fp4::<L>::SUBS;
        for (g, out) in out.chunks_mut(blocks * Fp4::<L>::BYTES).enumerate() {
            let (x, after) = x[g * blocks * L::LEN..].split_at(out.len() / Fp4::<L>::BYTES * L::LEN);
            F::prefetch(&after[..after.len().min(x.len())]);
            let largest = largest_of_each::<F>(x, L::SUB);
            for (b, (x, out)) in x.chunks_exact(L::LEN).zip(out.chunks_exact_mut(Fp4::<L>::BYTES)).enumerate() {
                encode_block::<F, L>(x, &largest[b * Fp4::<L>::SUBS..][..Fp4::<L>::SUBS], out);
            }
        }
    }
}

/// One block, given the largest magnitudes of its sub-blocks. Lanes are weights.
#[inline(always)]
fn encode_block<F: Lanes, L: Layout>(x: &[f32], largest: &[f32], out: &mut [u8]) {
    let (scales, out) = out.split_at_mut(Fp4::<L>::SUBS);
    let (mut factors, mut plain) = ([0f32; MAX_SUBS], true);
    for ((byte, &largest), factor) in scales.iter_mut().zip(largest).zip(&mut factors) {
        *byte = L::reference(largest);
        let half = L::half_scale(*byte);
        // Quotients by half a half scale are exact, or, by four bits, rounded to nothing that is halfway.
        *factor = if L::POWERS { 2.0 / half } else { 0.5 * half };
        plain &= largest <= FAR * half && half >= NEAR;
    }
    let mut codes = [0u8; MAX_LEN];
    let codes = &mut codes[..L::LEN];
    if plain {
        for (c, (codes, x)) in codes.as_chunks_mut::<STEP>().0.iter_mut().zip(x.as_chunks().0).enumerate() {
            to_e2m1_fourfold(x, codes, |at, x: F| {
                let factor = F::splat(factors[(c * STEP + at) / L::SUB]);
                if L::POWERS { x * factor } else { x / factor }
            });
        }
    } else {
        far_codes::<L>(x, largest, scales, codes);
    }
    for (codes, out) in codes.chunks_exact(L::SUB).zip(out.chunks_exact_mut(L::SUB / 2)) {
        pack(codes, out);
    }
}

/// The codes of a block some of whose scales are far from its weights, or tiny.
#[cold]
#[inline(never)]
fn far_codes<L: Layout>(x: &[f32], largest: &[f32], scales: &[u8], codes: &mut [u8]) {
    for (((x, codes), byte), largest) in x.chunks_exact(L::SUB).zip(codes.chunks_exact_mut(L::SUB)).zip(scales).zip(largest) {
        let half = L::half_scale(*byte);
        if *largest <= FAR * half {
            round(half, x, codes);
        } else if half > 0.0 {
            codes.iter_mut().zip(x).for_each(|(code, &x)| *code = first_nearest(half, x));
        }
    }
}

crate::dispatched! {
    /// Values of whole blocks.
    fn decode<L: Layout>(bytes: &[u8], out: &mut [f32]) {
        for (bytes, out) in bytes.chunks_exact(Fp4::<L>::BYTES).zip(out.chunks_exact_mut(L::LEN)) {
            let (scales, bytes) = bytes.split_at(Fp4::<L>::SUBS);
            for ((out, bytes), byte) in out.chunks_exact_mut(L::SUB).zip(bytes.chunks_exact(L::SUB / 2)).zip(scales) {
                let half = L::half_scale(*byte);
                let (low, high) = out.split_at_mut(L::SUB / 2);
                for ((low, high), b) in low.iter_mut().zip(high).zip(bytes) {
                    *low = value(b & 15) * half;
                    *high = value(b >> 4) * half;
                }
            }
        }
    }
}

/// [`VALUES`] computed, for vector registers.
#[inline(always)]
fn value(code: u8) -> f32 {
    let i = code & 7;
    let magnitude = i + i.saturating_sub(4) + if i == 7 { 2 } else { 0 };
    (if code & 8 != 0 { magnitude.wrapping_neg() } else { magnitude }) as i8 as f32
}

/// Codes nearest to `x` in half scales of `half` > 0. Ties go to the smaller magnitude, and what becomes 0 becomes code 0.
#[inline(always)]
fn round(half: f32, x: &[f32], codes: &mut [u8]) {
    let between = BETWEEN.map(|b| b * half);
    for (code, &x) in codes.iter_mut().zip(x) {
        let a = x.abs();
        let magnitude = between.iter().fold(0i32, |n, &b| n + (a > b) as i32);
        let sign = if x < -between[0] { 8 } else { 0 };
        *code = (magnitude | sign) as u8;
    }
}

/// The first of the codes whose values' f32 differences to `x` are least: far beyond the largest value they are all the same.
fn first_nearest(half: f32, x: f32) -> u8 {
    let error = |code: usize| (VALUES[code] * half - x).abs();
    (1..16).fold(0, |best, code| if error(code) < error(best) { code } else { best }) as u8
}

/// Bytes of a sub-block's codes, eight at a time.
#[inline(always)]
fn pack(codes: &[u8], out: &mut [u8]) {
    let (low, high) = codes.split_at(codes.len() / 2);
    for ((out, low), high) in out.as_chunks_mut::<8>().0.iter_mut().zip(low.as_chunks().0).zip(high.as_chunks().0) {
        *out = (u64::from_le_bytes(*low) | u64::from_le_bytes(*high) << 4).to_le_bytes();
    }
}

impl<L: Layout> Fp4<L> {
    fn scales(bytes: &[u8]) -> BlockScales {
        let step: Vec<f32> = bytes.iter().map(|&b| L::half_scale(b)).collect();
        let ints = bytes.iter().map(|&b| b as i16).collect();
        BlockScales { sub_len: L::SUB, offset: vec![0.0; step.len()], step, stored: [0.0; 2], ints }
    }

    /// For each sub-block, the scale of least error among the start's and `candidates` (of its weights and its start).
    fn best<C: Iterator<Item = u8>>(
        start: &[u8],
        weights: &[f32],
        importance: &[f32],
        candidates: impl Fn(&[f32], u8) -> C,
    ) -> BlockScales {
        let (mut x, mut w) = ([0f32; MAX_LEN], [0f32; MAX_LEN]);
        let (x, w) = fit::prepare(weights, importance, &mut x[..L::LEN], &mut w[..L::LEN]);
        let mut bytes = [0u8; MAX_SUBS];
        let bytes = &mut bytes[..Self::SUBS];
        for (s, (byte, (x, w))) in bytes.iter_mut().zip(x.chunks_exact(L::SUB).zip(w.chunks_exact(L::SUB))).enumerate() {
            *byte = start[s];
            let mut least = error(L::half_scale(*byte), x, w);
            for candidate in candidates(x, start[s]) {
                let error = error(L::half_scale(candidate), x, w);
                if error < least {
                    (least, *byte) = (error, candidate);
                }
            }
        }
        Self::scales(bytes)
    }

    /// The smallest usable scale byte that satisfies `reached`, which holds from some scale on; the last if none does.
    fn first_scale(reached: impl Fn(f32) -> bool) -> u8 {
        let (mut low, mut high) = (0, L::TOP_SCALE);
        while low < high {
            let middle = low + (high - low) / 2;
            if reached(L::half_scale(middle)) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    }
}

/// Σ w (x − v)² with the nearest values v.
fn error(half: f32, x: &[f32], w: &[f32]) -> f32 {
    let (mut code, mut value) = ([0], [0.0]);
    x.iter().zip(w).fold(0.0, |sum, (&x, &w)| {
        nearest(half, &[x], &mut code, &mut value);
        sum + w * (x - value[0]) * (x - value[0])
    })
}

/// Nearest codes and their values, for a half scale that may also be 0.
fn nearest(half: f32, x: &[f32], code: &mut [u8], value: &mut [f32]) {
    if half > 0.0 {
        round(half, x, code);
    } else {
        code.fill(0);
    }
    value.iter_mut().zip(code.iter()).for_each(|(v, &c)| *v = VALUES[c as usize] * half);
}

impl<L: Layout> Grid for Fp4<L> {
    fn block_len(&self) -> usize {
        L::LEN
    }
    fn max_code(&self) -> u8 {
        15
    }
    fn is_linear(&self) -> bool {
        false
    }
    /// `step` is half the sub-block's scale, and `ints` are the scales' bytes.
    fn value(&self, scales: &BlockScales, at: usize, code: u8) -> f32 {
        VALUES[code as usize] * scales.step[at / L::SUB]
    }
    fn fit(&self, weights: &[f32], importance: &[f32]) -> BlockScales {
        let mut start = [0u8; MAX_SUBS];
        start.iter_mut().zip(weights.chunks_exact(L::SUB)).for_each(|(b, x)| *b = L::reference(largest(x)));
        // From scales that cut the largest magnitude to a third to those that leave three quarters of the range unused.
        Self::best(&start, weights, importance, |x, _| {
            let largest = largest(x);
            let first = Self::first_scale(|half| TOP * half >= largest / 3.0);
            first..=Self::first_scale(|half| TOP * half >= largest * 4.0)
        })
    }
    fn fit_near(&self, start: &BlockScales, weights: &[f32], importance: &[f32]) -> BlockScales {
        let bytes: Vec<u8> = start.ints.iter().map(|&b| b as u8).collect();
        Self::best(&bytes, weights, importance, |_, b| b.saturating_sub(2)..=b.saturating_add(2).min(L::TOP_SCALE))
    }
    fn round(&self, scales: &BlockScales, at: usize, x: &[f32], code: &mut [u8], value: &mut [f32]) {
        for (i, x) in x.iter().enumerate() {
            nearest(scales.step[(at + i) / L::SUB], &[*x], &mut code[i..=i], &mut value[i..=i]);
        }
    }
    fn descend(&self, scales: &mut BlockScales, codes: &[u8], gradient: &[f64], gram: Gram<'_>) -> bool {
        let mut bytes: Vec<u8> = scales.ints.iter().map(|&b| b as u8).collect();
        let mut gradient = gradient.to_vec();
        let mut curved = vec![0.0; L::LEN];
        let mut falls = false;
        for (s, byte) in bytes.iter_mut().enumerate() {
            let at = s * L::SUB;
            let along: Vec<f64> = codes[at..][..L::SUB].iter().map(|&c| VALUES[c as usize] as f64).collect();
            gram.apply(&along, at, &mut curved);
            let (slope, curvature) = (dot(&along, &gradient[at..][..L::SUB]), dot(&along, &curved[at..][..L::SUB]));
            // Codes that are all zero, or a form that is not positive.
            if curvature <= 0.0 || curvature.is_nan() {
                continue;
            }
            let old = L::half_scale(*byte) as f64;
            let ideal = old - slope / curvature;
            let above = Self::first_scale(|half| half as f64 >= ideal);
            let mut best = (0.0, *byte);
            for candidate in [above, above.saturating_sub(1)] {
                let by = L::half_scale(candidate) as f64 - old;
                let change = 2.0 * by * slope + by * by * curvature;
                if change < best.0 {
                    best = (change, candidate);
                }
            }
            if best.0 < 0.0 {
                *byte = best.1;
                falls = true;
                let by = L::half_scale(best.1) as f64 - old;
                gradient.iter_mut().zip(&curved).for_each(|(g, c)| *g += by * c);
            }
        }
        *scales = Self::scales(&bytes);
        falls
    }
    fn pack(&self, scales: &BlockScales, codes: &[u8], out: &mut [u8]) {
        let (bytes, out) = out.split_at_mut(Self::SUBS);
        bytes.iter_mut().zip(&scales.ints).for_each(|(b, &int)| *b = int as u8);
        for (codes, out) in codes.chunks_exact(L::SUB).zip(out.chunks_exact_mut(L::SUB / 2)) {
            pack(codes, out);
        }
    }
    fn unpack(&self, bytes: &[u8], codes: &mut [u8]) -> BlockScales {
        let (scales, bytes) = bytes.split_at(Self::SUBS);
        for (codes, bytes) in codes.chunks_exact_mut(L::SUB).zip(bytes.chunks_exact(L::SUB / 2)) {
            let (low, high) = codes.split_at_mut(L::SUB / 2);
            for ((low, high), b) in low.iter_mut().zip(high).zip(bytes) {
                (*low, *high) = (b & 15, b >> 4);
            }
        }
        Self::scales(scales)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Portable;

    #[test]
    fn values_without_a_table() {
        for (code, want) in VALUES.iter().enumerate() {
            assert_eq!(value(code as u8).to_bits(), want.to_bits());
        }
    }

    #[test]
    fn rounding_takes_the_first_nearest() {
        for i in -400..=400 {
            let x = i as f32 / 20.0;
            for half in [1.0, 0.375, 3e-39] {
                let mut code = [0];
                round(half, &[x * half], &mut code);
                assert_eq!(code[0], first_nearest(half, x * half), "{x}");
            }
        }
        // Beyond the precision of f32 all values are equally far.
        assert_eq!(first_nearest(224.0, 1e30), 0);
    }

    fn check<L: Layout>() {
        let x = crate::codecs::block::tests::weights(256 * L::LEN);
        let bytes = x.len() / L::LEN * Fp4::<L>::BYTES;
        let (mut wide, mut narrow) = (vec![0x11; bytes], vec![0x22; bytes]);
        Fp4::<L>::new().encode(&x, None, &mut wide);
        Encode::<L> { x: &x, out: &mut narrow, layout: PhantomData }.run::<Portable<1>>();
        assert_eq!(wide, narrow, "{}", L::ID);
        let (mut values, mut again) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
        decode::<L>(&wide, &mut values);
        portable::decode::<L>(&wide, &mut again);
        assert_eq!(values, again, "{}", L::ID);
    }

    #[test]
    fn wide_registers_give_the_same_bytes() {
        check::<super::super::mxfp4::Mxfp4>();
        check::<super::super::nvfp4::Nvfp4>();
    }
}
