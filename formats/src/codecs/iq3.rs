//! What IQ3_XXS and IQ3_S share: super-blocks of 256 weights in eight sub-blocks; four weights' magnitudes are one point of a
//! codebook, signs stand apart.

use super::codebook::{self, Codebook, MAX_LEVEL, Query, WIDTH, odd};
use super::codebook_nearest::Nearest;
use super::float::saturate;
use super::search::nearest_one;
use super::tabled::{self, Scales};
use crate::codec::{CodecId, Float};
use crate::simd::{IntLanes, Kernel, Lanes, dispatch, nearest};
use std::marker::PhantomData;

/// Weights per super-block.
pub(super) const LEN: usize = 256;
/// Weights per sub-block.
pub(super) const SUB: usize = 32;
/// Sub-blocks per super-block.
pub(super) const SUBS: usize = LEN / SUB;
/// Points per sub-block.
const GROUPS: usize = SUB / WIDTH;

/// A super-block taken apart.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Block {
    /// Super-block scale, exact in f16.
    pub d: f32,
    /// Integer scales of the sub-blocks, 0 to 15.
    pub ints: [u8; SUBS],
    /// The points of the codebook.
    pub points: [u16; LEN / WIDTH],
    /// Signs, a bit per weight.
    pub signs: [u8; LEN / 8],
}

impl Block {
    const ZERO: Block = Block { d: 0.0, ints: [0; SUBS], points: [0; LEN / WIDTH], signs: [0; LEN / 8] };
}

/// What one of the formats adds.
pub(super) trait Layout: Send + Sync + 'static {
    const ID: CodecId;
    /// Bytes per super-block.
    const BYTES: usize;
    /// The values of the eight levels.
    const VALUES: [f32; 8];
    /// Whether each eight weights have an even number of minus signs.
    const EVEN: bool;
    /// ggml tries this many scales on either side of the one that puts the largest weight on the largest level.
    const TRIES: i32;
    /// Sub-blocks without a larger magnitude count as zero.
    const ALL_ZERO: f32;
    /// Whether points that the best trial found without a search are kept.
    const KEEP: bool;
    /// What ggml multiplies the super-block scale by before storing it.
    const FUDGE: f32;
    /// Whether ggml's encoder lets a sub-block of zeros take up no room, so that the points and signs of those after it come one
    /// place too early (the ninth bits of points do not), and leaves points and signs in a super-block whose scales all vanish.
    const SLIPS: bool;

    fn book() -> &'static Codebook;
    /// The codebook prepared for finding nearest points.
    fn nearest() -> &'static Nearest;
    /// What the super-block scale is multiplied by for this integer.
    fn factor(int: u8) -> f32;
    /// Packs a super-block.
    fn write(block: &Block, out: &mut [u8]);
    /// The inverse of [`Layout::write`].
    fn read(bytes: &[u8]) -> Block;
}

/// A sub-block as the search sees it.
struct Sub {
    /// Weights with their signs taken off.
    x: [f32; SUB],
    /// Weights of the squared errors, and their roots, by which neighbours are compared.
    w: [f32; SUB],
    root: [f32; SUB],
    signs: [u8; SUB / 8],
}

impl Sub {
    #[inline(always)]
    fn new<L: Layout>(x: &[f32], sigma2: f32, importance: Option<&[f32]>) -> Self {
        let w: [f32; SUB] = match importance {
            Some(q) => std::array::from_fn(|i| q[i] * (sigma2 + x[i] * x[i]).sqrt()),
            None => std::array::from_fn(|i| x[i] * x[i]),
        };
        let mut sub = Sub { x: [0.0; SUB], w, root: w.map(f32::sqrt), signs: [0; SUB / 8] };
        for (i, &x) in x.iter().enumerate() {
            let negative = x < 0.0 || x.is_nan();
            sub.x[i] = if negative { -x } else { x };
            sub.signs[i / 8] |= (negative as u8) << (i % 8);
        }
        if L::EVEN {
            for (k, signs) in sub.signs.iter_mut().enumerate().filter(|(_, s)| s.count_ones() % 2 == 1) {
                // The sign that matters least is wrong.
                let cost = |i: usize| w[8 * k + i] * x[8 * k + i] * x[8 * k + i];
                let (mut least, mut at) = (cost(0), 0);
                for i in 1..8 {
                    if cost(i) < least {
                        (least, at) = (cost(i), i);
                    }
                }
                sub.x[8 * k + at] = -sub.x[8 * k + at];
                *signs ^= 1 << at;
            }
        }
        sub
    }

    fn max(&self) -> f32 {
        let mut max = self.x[0];
        for &x in &self.x[1..] {
            max = if max > x { max } else { x };
        }
        max
    }

    /// The level of each weight of group `k` by itself.
    fn cell(&self, k: usize, inverse: f32) -> usize {
        let level = |i: usize| nearest_one(0.5 * (inverse * self.x[WIDTH * k + i] - 1.0)).clamp(0, MAX_LEVEL) as u8;
        codebook::cell(std::array::from_fn(level))
    }
    /// What neighbours of group `k` are compared for, at scales between these.
    #[inline(always)]
    fn query(&self, k: usize, scales: (f32, f32)) -> Query {
        Query::new(&self.x[WIDTH * k..][..WIDTH], &self.root[WIDTH * k..][..WIDTH], scales)
    }

    /// ggml's scale of the sub-block, and the cells of its points (`quantize_row_iq3_s_impl` and `quantize_row_iq3_xxs_impl`).
    #[inline(always)]
    fn search<F: Lanes, L: Layout>(&self, max: f32) -> (f32, [usize; GROUPS]) {
        let book = L::book();
        let trials = Trials::new::<L>(max);
        let own = self.cells::<F>(&trials);
        let found = self.settle::<F>(book, &trials, &own);
        let (qx, q2) = self.sums::<F>(&trials, &found);

        let (mut best, mut scale, mut chosen) = (0f32, max / TOP, None);
        for t in 0..trials.n {
            if q2[t] > 0.0 && qx[t] * qx[t] > best * q2[t] {
                scale = qx[t] / q2[t];
                best = scale * qx[t];
                chosen = Some(t);
            }
        }
        // Without a good trial, IQ3_XXS keeps the lowest point everywhere; IQ3_S seeks points at the scale it began with.
        let mut cells = std::array::from_fn(|k| chosen.map_or(0, |t| found[k][t] as usize));
        let kept: [bool; GROUPS] = std::array::from_fn(|k| chosen.map_or(L::KEEP, |t| found[k][t] == own[k][t]));
        if kept.contains(&false) && scale > 0.0 {
            let inverse = 1.0 / scale;
            for (k, cell) in cells.iter_mut().enumerate() {
                if !(L::KEEP && kept[k]) {
                    *cell = self.cell(k, inverse);
                    if book.at(*cell).is_none() {
                        let mut found = [0];
                        book.nearest_neighbours::<F>(*cell, &self.query(k, (scale, scale)), &[scale], &mut found);
                        *cell = found[0] as usize;
                    }
                }
            }
            let (mut qx, mut q2) = (0f32, 0f32);
            for (i, l) in cells.iter().flat_map(|&c| codebook::levels(c)).enumerate() {
                let q = odd(l);
                qx += self.w[i] * self.x[i] * q;
                q2 += self.w[i] * q * q;
            }
            if q2 > 0.0 {
                scale = qx / q2;
            }
        }
        (scale, cells)
    }

    /// Each group's own cell in each trial. Lanes are trials.
    #[inline(always)]
    fn cells<F: Lanes>(&self, trials: &Trials) -> [Row; GROUPS] {
        let mut cells = [[0i32; MAX_TRIALS]; GROUPS];
        for (cells, x) in cells.iter_mut().zip(self.x.as_chunks::<WIDTH>().0) {
            for t in (0..trials.n).step_by(F::N) {
                let inverse = F::load(&trials.inverses[t..]);
                let low = level(inverse, x[0]) | level(inverse, x[1]).shl::<3>();
                let high = level(inverse, x[2]).shl::<6>() | level(inverse, x[3]).shl::<9>();
                (low | high).store(&mut cells[t..]);
            }
        }
        cells
    }

    /// The cells of the points: the own cell where there is a point, that of the nearest neighbour otherwise. Levels only rise from
    /// trial to trial, so that trials with the same cell follow one another and are settled together.
    #[inline(always)]
    fn settle<F: Lanes>(&self, book: &Codebook, trials: &Trials, own: &[Row; GROUPS]) -> [Row; GROUPS] {
        let mut found = *own;
        for (k, (own, found)) in own.iter().zip(&mut found).enumerate() {
            let query = self.query(k, (trials.scales[trials.n - 1], trials.scales[0]));
            let mut start = 0;
            while start < trials.n {
                let cell = own[start];
                let mut end = start + 1;
                while end < trials.n && own[end] == cell {
                    end += 1;
                }
                if book.at(cell as usize).is_none() {
                    book.nearest_neighbours::<F>(cell as usize, &query, &trials.scales[start..end], &mut found[start..end]);
                }
                start = end;
            }
        }
        found
    }

    /// Σ w x q and Σ w q² of each trial. Lanes are trials.
    #[inline(always)]
    fn sums<F: Lanes>(&self, trials: &Trials, cells: &[Row; GROUPS]) -> ([f32; MAX_TRIALS], [f32; MAX_TRIALS]) {
        let (mut sums_qx, mut sums_q2) = ([0f32; MAX_TRIALS], [0f32; MAX_TRIALS]);
        for t in (0..trials.n).step_by(F::N) {
            let (mut qx, mut q2) = (F::zero(), F::zero());
            for (k, cells) in cells.iter().enumerate() {
                let cell = F::Int::load(&cells[t..]);
                let levels = [cell, cell.shr::<3>(), cell.shr::<6>(), cell.shr::<9>()];
                for (i, level) in levels.into_iter().enumerate() {
                    let level = F::from_int(level & F::Int::splat(MAX_LEVEL));
                    let q = level + level + F::splat(1.0);
                    let (w, x) = (self.w[WIDTH * k + i], self.x[WIDTH * k + i]);
                    qx = qx + F::splat(w * x) * q;
                    q2 = q2 + F::splat(w) * q * q;
                }
            }
            qx.store(&mut sums_qx[t..]);
            q2.store(&mut sums_q2[t..]);
        }
        (sums_qx, sums_q2)
    }
}

/// The level nearest to a weight at each scale.
#[inline(always)]
fn level<F: Lanes>(inverse: F, x: f32) -> F::Int {
    let level = nearest(F::splat(0.5) * (inverse * F::splat(x) - F::splat(1.0)));
    level.max(F::Int::splat(0)).min(F::Int::splat(MAX_LEVEL))
}

/// The odd number of the largest level.
const TOP: f32 = odd(MAX_LEVEL as u8);
/// Room for all trials, in whole registers of any width.
const MAX_TRIALS: usize = 32;
/// A number per trial.
type Row = [i32; MAX_TRIALS];

/// The scales that are tried for a sub-block, falling.
struct Trials {
    n: usize,
    scales: [f32; MAX_TRIALS],
    /// Of the scales; the first trial's beyond the last.
    inverses: [f32; MAX_TRIALS],
}

impl Trials {
    #[inline(always)]
    fn new<L: Layout>(max: f32) -> Self {
        let n = 2 * L::TRIES as usize + 1;
        let mut trials = Trials { n, scales: [0.0; MAX_TRIALS], inverses: [0.0; MAX_TRIALS] };
        for (t, (scale, inverse)) in trials.scales.iter_mut().zip(&mut trials.inverses).enumerate() {
            let step = if t < n { t as i32 - L::TRIES } else { -L::TRIES };
            *inverse = (TOP + step as f32 * 0.2) / max;
            *scale = 1.0 / *inverse;
        }
        trials
    }
}

/// Twice the mean squares of super-blocks. Several at a time, as each sum is a chain of additions.
#[inline(always)]
fn sigma2(x: &[f32], out: &mut [f32; TOGETHER]) {
    let mut sums = [0f32; TOGETHER];
    for i in 0..LEN {
        for (b, sum) in sums.iter_mut().enumerate() {
            let x = x[(b * LEN + i).min(x.len() - 1)];
            *sum += x * x;
        }
    }
    *out = sums.map(|sum| 2.0 * sum / LEN as f32);
}

/// Super-blocks whose mean squares are summed together.
const TOGETHER: usize = 8;

/// Encodes rows.
struct Encoder<'a, L> {
    rows: &'a [f32],
    row_len: usize,
    importance: Option<&'a [f32]>,
    out: &'a mut [u8],
    layout: PhantomData<L>,
}

impl<L: Layout> Kernel for Encoder<'_, L> {
    type Output = ();

    #[inline(always)]
    fn run<F: Lanes>(self) {
        let chunks = self.rows.chunks(TOGETHER * LEN).zip(self.out.chunks_mut(TOGETHER * L::BYTES));
        for (c, (x, out)) in chunks.enumerate() {
            let mut squares = [0f32; TOGETHER];
            sigma2(x, &mut squares);
            for (b, (x, out)) in x.chunks_exact(LEN).zip(out.chunks_exact_mut(L::BYTES)).enumerate() {
                let column = (c * TOGETHER + b) * LEN % self.row_len;
                let importance = self.importance.map(|q| &q[column..][..LEN]);
                L::write(&reference::<F, L>(x, squares[b], importance), out);
            }
        }
    }
}

/// ggml's encoder.
#[inline(always)]
fn reference<F: Lanes, L: Layout>(x: &[f32], sigma2: f32, importance: Option<&[f32]>) -> Block {
    let book = L::book();
    let mut block = Block::ZERO;
    let mut scales = [0f32; SUBS];
    let mut place = 0;
    for (s, scale) in scales.iter_mut().enumerate() {
        let at = s * SUB..(s + 1) * SUB;
        let sub = Sub::new::<L>(&x[at.clone()], sigma2, importance.map(|q| &q[at]));
        let max = sub.max();
        if max < L::ALL_ZERO || max == 0.0 {
            place += !L::SLIPS as usize;
            continue;
        }
        let (found, cells) = sub.search::<F, L>(max);
        // A negative scale has its sign moved to the weights; it takes numbers at the ends of f32's range.
        let flip = if found < 0.0 { 0xff } else { 0 };
        *scale = found.abs();
        for (k, &cell) in cells.iter().enumerate() {
            let point = book.at(cell).unwrap_or_default();
            block.points[GROUPS * place + k] |= point & 0xff;
            block.points[GROUPS * s + k] |= point & 0xff00;
        }
        for (k, signs) in sub.signs.iter().enumerate() {
            block.signs[SUB / 8 * place + k] = signs ^ flip;
        }
        place += 1;
    }
    let max = scales.iter().fold(0f32, |max, &s| if max > s { max } else { s });
    if max == 0.0 {
        return if L::SLIPS { block } else { Block::ZERO };
    }
    let d = max / 31.0;
    block.d = saturate(Float::F16, d * L::FUDGE);
    let inverse = 1.0 / d;
    block.ints = scales.map(|s| nearest_one(0.5 * (inverse * s - 1.0)).clamp(0, 15) as u8);
    block
}

/// The format as one whose values come from a table.
pub(super) struct Tabled<L>(PhantomData<L>);

impl<L: Layout> tabled::Layout for Tabled<L> {
    const ID: CodecId = L::ID;
    const LEN: usize = LEN;
    const BYTES: usize = L::BYTES;
    const VALUES: [f32; 16] = signed(L::VALUES);
    const STEP: usize = if L::EVEN { 8 } else { WIDTH };
    const INTS: (i16, i16) = (0, 15);

    fn factor(int: i16) -> f32 {
        L::factor(int as u8)
    }
    fn nearest(x: &[f32], codes: &mut [u8]) {
        let book = L::nearest();
        let mut magnitudes = [0f32; 8];
        for ((m, code), &x) in magnitudes.iter_mut().zip(codes.iter_mut()).zip(x) {
            *code = if x < 0.0 { MINUS } else { 0 };
            *m = x.abs();
        }
        let group = |m: &[f32; 8], g: usize| book.find(std::array::from_fn(|i| m[WIDTH * g + i]));
        let mut found = [group(&magnitudes, 0), if L::EVEN { group(&magnitudes, 1) } else { Default::default() }];
        if L::EVEN && codes.iter().filter(|&&c| c == MINUS).count() % 2 == 1 {
            // One sign must be wrong: the one that costs least.
            let mut best = (f32::INFINITY, 0, found[0]);
            for at in 0..8 {
                let mut m = magnitudes;
                m[at] = -m[at];
                let other = group(&m, at / WIDTH);
                let cost = other.1 - found[at / WIDTH].1;
                if cost < best.0 {
                    best = (cost, at, other);
                }
            }
            codes[best.1] ^= MINUS;
            found[best.1 / WIDTH] = best.2;
        }
        for (code, level) in codes.iter_mut().zip(found.iter().flat_map(|f| f.0)) {
            *code |= level;
        }
    }
    fn write(scales: &Scales, codes: &[u8], out: &mut [u8]) {
        let book = L::book();
        let mut block = Block { d: scales.d, ints: scales.ints.map(|i| i as u8), ..Block::ZERO };
        for (point, codes) in block.points.iter_mut().zip(codes.chunks_exact(WIDTH)) {
            let cell = codebook::cell(std::array::from_fn(|i| codes[i] & 7));
            // Codes that name no point are none of a grid's; the nearest one stands in.
            *point = book.at(cell).or_else(|| book.at(book.neighbours(cell)[0] as usize)).unwrap_or_default();
        }
        for (signs, codes) in block.signs.iter_mut().zip(codes.chunks_exact(8)) {
            *signs = codes.iter().rev().fold(0, |signs, code| signs << 1 | code >> 3 & 1);
        }
        L::write(&block, out);
    }
    fn read(bytes: &[u8], codes: &mut [u8]) -> Scales {
        let (book, block) = (L::book(), L::read(bytes));
        for (g, (codes, &point)) in codes.chunks_exact_mut(WIDTH).zip(&block.points).enumerate() {
            let signs = block.signs[g / 2] >> (WIDTH * (g % 2));
            for (i, (code, level)) in codes.iter_mut().zip(book.levels(point)).enumerate() {
                *code = level | (signs >> i & 1) << 3;
            }
        }
        Scales { d: block.d, ints: block.ints.map(i16::from) }
    }
    fn encode(rows: &[f32], row_len: usize, importance: Option<&[f32]>, out: &mut [u8]) {
        dispatch(Encoder::<L> { rows, row_len, importance, out, layout: PhantomData });
    }
}

/// The bit of a code that says minus.
const MINUS: u8 = 8;

/// The values of levels with plus, then with minus.
const fn signed(values: [f32; 8]) -> [f32; 16] {
    let mut signed = [0.0; 16];
    let mut i = 0;
    while i < 8 {
        signed[i] = values[i];
        signed[8 + i] = -values[i];
        i += 1;
    }
    signed
}

#[cfg(test)]
mod tests {
    use super::super::side_by_side::tests::varied_rows;
    use super::super::{iq3_s::IQ3S, iq3_xxs::IQ3XXS};
    use super::*;
    use crate::simd::Portable;

    fn lanes_agree<L: Layout>() {
        let mut rows = varied_rows(24, 2 * LEN, 5);
        rows.chunks_exact_mut(SUB).step_by(9).for_each(|sub| sub.fill(0.0));
        let importance: Vec<f32> = varied_rows(1, 2 * LEN, 6).iter().map(|w| w * w).collect();
        for importance in [None, Some(&importance[..])] {
            let encode = |one: bool| {
                let mut out = vec![0; rows.len() / LEN * L::BYTES];
                let encoder = Encoder::<L> { rows: &rows, row_len: 2 * LEN, importance, out: &mut out, layout: PhantomData };
                if one {
                    encoder.run::<Portable<1>>()
                } else {
                    dispatch(encoder)
                }
                out
            };
            assert!(encode(true) == encode(false));
        }
    }

    #[test]
    fn one_lane_gives_the_same_bytes() {
        lanes_agree::<IQ3S>();
        lanes_agree::<IQ3XXS>();
    }
}
