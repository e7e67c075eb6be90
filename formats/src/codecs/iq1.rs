//! ggml's encoder of the ternary codebook formats, step by step as ggml does it (`ggml-quants.c`: `quantize_row_iq1_s_impl`,
//! `quantize_row_iq1_m_impl`). The weights of a sub-block are sorted; all ways to cut the row into a low, a middle and a high part
//! are tried under each way to shift the levels by ±1/8, and the one that correlates best with the weights wins. Groups of eight
//! whose levels are not in the book then move to a neighbour. Lanes are places of the second cut.

use super::book8::{Block, DOWN, LEN, Marks, SCALES, SHIFT, Shape};
use super::codebook8::{Codebook, Terms, WIDTH, fourfold, nearest_one, squares, weigh};
use crate::simd::{IntLanes, Kernel, Lanes, MAX_LANES, MaskLanes, Portable, dispatch};

/// Values of the levels shifted up.
const UP: [f32; 3] = [-1.0 + SHIFT, SHIFT, 1.0 + SHIFT];
/// Values of the levels shifted down.
const DOWN_VALUES: [f32; 3] = [-1.0 - SHIFT, -SHIFT, 1.0 - SHIFT];
/// The same as [`squares`] wants them.
const TERMS: [Terms; 2] = [fourfold_values(UP), fourfold_values(DOWN_VALUES)];

const fn fourfold_values(values: [f32; 3]) -> Terms {
    let mut terms = [0.0; 4 * WIDTH];
    let mut i = 0;
    while i < terms.len() {
        if i % 4 < 3 {
            terms[i] = values[i % 4];
        }
        i += 1;
    }
    terms
}

/// The most weights of a sub-block.
const MAX_SUB: usize = 32;
const MAX_PARTS: usize = MAX_SUB / WIDTH;
/// Places of a cut, filled up for any lanes.
const CUTS: usize = MAX_SUB + 1 + MAX_LANES;
/// The same for sub-blocks of two groups.
const CUTS_OF_TWO: usize = 2 * WIDTH + 1 + MAX_LANES;

/// The cuts and shifts of a sub-block.
struct Cut {
    /// Negative if the levels are to be turned round.
    scale: f32,
    /// How many sorted weights have level 0, and how many level 0 or 1.
    low: usize,
    high: usize,
    /// By group: 1 if shifted down, once the levels are turned round.
    down: [usize; MAX_PARTS],
}

/// What the two formats do differently, besides whether the groups of a sub-block share a shift.
pub(super) struct Rules {
    /// What the mean square counts for in the weights without importance; `None`: importance 1.
    pub plain: Option<f32>,
    /// Sub-blocks without a magnitude as large as this count as zero.
    pub least: f32,
    /// What the block's scale is multiplied by before it is stored.
    pub stretch: f32,
    /// Whether the block's scale is the best one for its points and integers.
    pub refit: bool,
}

/// Encodes consecutive super-blocks of a row.
pub(super) fn encode(shape: Shape, rules: &Rules, x: &[f32], importance: Option<&[f32]>, blocks: &mut [Block]) {
    dispatch(Encode { shape, rules, x, importance, blocks });
}

struct Encode<'a> {
    shape: Shape,
    rules: &'a Rules,
    x: &'a [f32],
    importance: Option<&'a [f32]>,
    blocks: &'a mut [Block],
}

impl Kernel for Encode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<F: Lanes>(self) {
        for (i, (x, block)) in self.x.chunks_exact(LEN).zip(self.blocks).enumerate() {
            *block = encode_block::<F>(&self.shape, self.rules, x, self.importance.map(|q| &q[i * LEN..][..LEN]));
        }
    }
}

#[inline(always)]
fn encode_block<F: Lanes>(shape: &Shape, rules: &Rules, x: &[f32], importance: Option<&[f32]>) -> Block {
    let book: &Codebook = shape.book;
    let mut weights = [0f32; LEN];
    weigh::<F>(x, importance, 2.0, rules.plain, &mut weights);
    let (mut block, mut scales) = (Block::ZERO, [0f32; SCALES]);
    let mut marks = block.marks;
    let parts = shape.sub / WIDTH;
    for (s, (x, weights)) in x.chunks_exact(shape.sub).zip(weights.chunks_exact(shape.sub)).enumerate() {
        let Some(order) = sorted::<F>(x, rules.least) else { continue };
        let found = match shape.marks {
            Marks::SharedShift => one_shift::<F>(x, weights, &order),
            _ => two_shifts::<F>(x, weights, &order),
        };
        let Some(cut) = found else { continue };
        let (scale, points) = points::<F>(book, x, weights, &order, &cut);
        scales[s] = scale;
        block.points[parts * s..][..parts].copy_from_slice(&points[..parts]);
        for (marks, &down) in marks[parts * s..][..parts].iter_mut().zip(&cut.down) {
            *marks = DOWN * down as u8;
        }
    }
    let largest = scales.iter().fold(0f32, |m, &s| if m > s { m } else { s });
    if largest == 0.0 {
        return block;
    }
    let mut d = largest / 15.0;
    let inverse = 1.0 / d;
    for (stored, &scale) in block.scales.iter_mut().zip(&scales).take(shape.subs()) {
        *stored = nearest_one(0.5 * (inverse * scale - 1.0)).clamp(0, 7) as u8;
    }
    block.marks = marks;
    if rules.refit {
        let (mut qx, mut q2) = (0f32, 0f32);
        for (g, (x, weights)) in x.chunks_exact(WIDTH).zip(weights.chunks_exact(WIDTH)).enumerate() {
            let odd = f32::from(2 * block.scales[g / parts] + 1);
            let levels = book.levels(block.points[g]);
            for (i, (&x, &w)) in x.iter().zip(weights).enumerate() {
                let q = value(usize::from(marks[g] != 0), levels, i) * odd;
                qx += w * q * x;
                q2 += w * q * q;
            }
        }
        if q2 > 0.0 {
            d = qx / q2;
        }
    }
    block.d = d * rules.stretch;
    block
}

/// Σ weight · x · value and Σ weight · value² of the cuts of a sub-block.
trait Sums<const SHIFTS: usize> {
    /// For a first cut, and for second cuts from a place on: of each way to shift. Must be `#[inline(always)]`.
    fn at<F: Lanes>(&self, low: usize, high: usize) -> [(F, F); SHIFTS];
}

/// One shift for all groups.
struct OneShift {
    /// Sums of weight · x and weight up to each place.
    x: [f32; CUTS],
    w: [f32; CUTS],
    /// What the part above each place adds, by shift.
    high_x: [[f32; CUTS]; 2],
    high_w: [[f32; CUTS]; 2],
}

impl Sums<2> for OneShift {
    #[inline(always)]
    fn at<F: Lanes>(&self, low: usize, high: usize) -> [(F, F); 2] {
        // No more than they are: the compiler sees that loads are inside.
        let (low, high) = (low.min(MAX_SUB), high.min(MAX_SUB));
        // The middle's values are ±1/8: both shifts have the same square, and opposite sums, without rounding.
        let middle_x = (F::load(&self.x[high..]) - F::splat(self.x[low])) * F::splat(SHIFT);
        let middle_w = (F::load(&self.w[high..]) - F::splat(self.w[low])) * F::splat(SHIFT) * F::splat(SHIFT);
        let up_x = F::splat(self.x[low] * UP[0]) + middle_x + F::load(&self.high_x[0][high..]);
        let up_w = F::splat(self.w[low] * UP[0] * UP[0]) + middle_w + F::load(&self.high_w[0][high..]);
        let down_x = F::splat(self.x[low] * DOWN_VALUES[0]) - middle_x + F::load(&self.high_x[1][high..]);
        let down_w = F::splat(self.w[low] * DOWN_VALUES[0] * DOWN_VALUES[0]) + middle_w + F::load(&self.high_w[1][high..]);
        [(up_x, up_w), (down_x, down_w)]
    }
}

/// The best cut of a sub-block whose groups share one shift.
#[inline(always)]
fn one_shift<F: Lanes>(x: &[f32], weights: &[f32], order: &[u8; MAX_SUB]) -> Option<Cut> {
    let n = x.len();
    let mut sums = OneShift { x: [0.0; CUTS], w: [0.0; CUTS], high_x: [[0.0; CUTS]; 2], high_w: [[0.0; CUTS]; 2] };
    for (j, i) in order.iter().map(|&i| usize::from(i)).take(n).enumerate() {
        sums.x[j + 1] = sums.x[j] + weights[i] * x[i];
        sums.w[j + 1] = sums.w[j] + weights[i];
    }
    for (s, top) in [UP[2], DOWN_VALUES[2]].into_iter().enumerate() {
        let top = F::splat(top);
        for j in (0..=n).step_by(F::N) {
            let above_x = F::splat(sums.x[n]) - F::load(&sums.x[j..]);
            let above_w = F::splat(sums.w[n]) - F::load(&sums.w[j..]);
            (above_x * top).store(&mut sums.high_x[s][j..]);
            (above_w * top * top).store(&mut sums.high_w[s][j..]);
        }
    }
    let (mut cut, shift) = best_cut::<F, 2>(n, &sums, guess_cuts::<F>(x, weights))?;
    cut.down = [if cut.scale < 0.0 { 1 - shift } else { shift }; MAX_PARTS];
    Some(cut)
}

/// Two groups, each with a shift of its own.
struct TwoShifts {
    /// By group, sums of weight · x up to each place.
    x: [[f32; CUTS_OF_TWO]; 2],
    /// By group and shift: the sum of weight · x if all levels were high; weight · value² if there were no middle, and what the
    /// middle adds to it.
    all_x: [[f32; 2]; 2],
    low_w: [[[f32; CUTS_OF_TWO]; 2]; 2],
    high_w: [[[f32; CUTS_OF_TWO]; 2]; 2],
}

impl TwoShifts {
    #[inline(always)]
    fn group<F: Lanes>(&self, g: usize, low: usize, high: usize) -> [(F, F); 2] {
        let taken = F::splat(self.x[g][low]) + F::load(&self.x[g][high..]);
        let up = F::splat(self.low_w[g][0][low]) + F::load(&self.high_w[g][0][high..]);
        let down = F::splat(self.low_w[g][1][low]) + F::load(&self.high_w[g][1][high..]);
        [(F::splat(self.all_x[g][0]) - taken, up), (F::splat(self.all_x[g][1]) - taken, down)]
    }
}

impl Sums<4> for TwoShifts {
    #[inline(always)]
    fn at<F: Lanes>(&self, low: usize, high: usize) -> [(F, F); 4] {
        // No more than they are: the compiler sees that loads are inside.
        let (low, high) = (low.min(2 * WIDTH), high.min(2 * WIDTH));
        let [(ux, uw), (dx, dw)] = self.group::<F>(0, low, high);
        let [(vx, vw), (ex, ew)] = self.group::<F>(1, low, high);
        [(ux + vx, uw + vw), (ux + ex, uw + ew), (dx + vx, dw + vw), (dx + ex, dw + ew)]
    }
}

/// The best cut of a sub-block of two groups, each with a shift of its own.
#[inline(always)]
fn two_shifts<F: Lanes>(x: &[f32], weights: &[f32], order: &[u8; MAX_SUB]) -> Option<Cut> {
    let n = x.len();
    let mut w = [[0f32; CUTS_OF_TWO]; 2];
    let mut sums = TwoShifts { x: w, all_x: [[0.0; 2]; 2], low_w: [w; 2], high_w: [w; 2] };
    let (mut sum_x, mut sum_w) = ([0f32; 2], [0f32; 2]);
    for (j, i) in order.iter().map(|&i| usize::from(i)).take(n).enumerate() {
        sum_x[i / WIDTH] += weights[i] * x[i];
        sum_w[i / WIDTH] += weights[i];
        for g in 0..2 {
            (sums.x[g][j + 1], w[g][j + 1]) = (sum_x[g], sum_w[g]);
        }
    }
    for (g, w) in w.iter().enumerate() {
        for (s, v) in [UP, DOWN_VALUES].into_iter().enumerate() {
            sums.all_x[g][s] = sums.x[g][n] * v[2];
            let all = F::splat(w[n] * v[2] * v[2]);
            let (low, high) = (F::splat(v[0] * v[0] - v[1] * v[1]), F::splat(v[1] * v[1] - v[2] * v[2]));
            for j in (0..=n).step_by(F::N) {
                let w = F::load(&w[j..]);
                (all + w * low).store(&mut sums.low_w[g][s][j..]);
                (w * high).store(&mut sums.high_w[g][s][j..]);
            }
        }
    }
    let (mut cut, shift) = best_cut::<F, 4>(n, &sums, guess_cuts::<F>(x, weights))?;
    let shift = if cut.scale < 0.0 { 3 - shift } else { shift };
    cut.down = [shift / 2, shift % 2, 0, 0];
    Some(cut)
}

/// The places of the weights in ascending order, equal ones in the order they have (as glibc's `qsort`, a merge sort). `None` if
/// no magnitude reaches `least`. Lanes are weights, which count those before them.
#[inline(always)]
fn sorted<F: Lanes>(x: &[f32], least: f32) -> Option<[u8; MAX_SUB]> {
    if x.iter().fold(x[0].abs(), |m, x| if m > x.abs() { m } else { x.abs() }) < least {
        return None;
    }
    const PLACES: [i32; MAX_SUB] = {
        let mut places = [0; MAX_SUB];
        let mut i = 0;
        while i < MAX_SUB {
            places[i] = i as i32;
            i += 1;
        }
        places
    };
    let mut order = [0u8; MAX_SUB];
    let mut ranks = [0i32; MAX_LANES];
    for at in (0..x.len()).step_by(F::N) {
        let (own, place) = (F::load(&x[at..]), F::Int::load(&PLACES[at..]));
        let mut rank = F::Int::splat(0);
        for (j, &other) in x.iter().enumerate() {
            let other = F::splat(other);
            let before = other.lt(own) | (other.eq(own) & place.gt(F::Int::splat(j as i32)));
            rank = F::Int::select(before, rank + F::Int::splat(1), rank);
        }
        rank.store(&mut ranks);
        for (i, &rank) in ranks.iter().enumerate().take(F::N) {
            order[rank as usize] = (at + i) as u8;
        }
    }
    Some(order)
}

/// The first of the best cuts of `n` sorted weights, in order of first cut, second cut and shift, and its shift; `None` if none
/// has a scale. `guess` is a cut that is likely to be good.
///
/// A cut wins if its score beats the best so far, both rounded to f32, so that among almost equal ones the order decides. Cuts
/// whose score is well below the guess's have no say in that: they are passed over, and if after all no winner stood out from the
/// guess, the search is made again from nothing.
#[inline(always)]
fn best_cut<F: Lanes, const SHIFTS: usize>(n: usize, cuts: &impl Sums<SHIFTS>, guess: (usize, usize)) -> Option<(Cut, usize)> {
    let mut bar = 0f32;
    let mut least_q2 = f32::INFINITY;
    for (qx, q2) in cuts.at::<Portable<1>>(guess.0, guess.1) {
        let (qx, q2) = (qx.least(), q2.least());
        bar = bar.max(qx / q2 * qx);
        least_q2 = least_q2.min(q2);
    }
    // Where squares leave the range of normal numbers, roundings know no bounds.
    if bar * least_q2 * 1e-3 > 1e-30
        && bar.max(1.0) * bar * least_q2.max(1.0) < 1e30
        && let (found, true) = cuts_above::<F, SHIFTS>(n, cuts, bar * (1.0 - 1e-5))
    {
        return found;
    }
    cuts_above::<F, SHIFTS>(n, cuts, -f32::MAX).0
}

/// The search of [`best_cut`] among the cuts that beat `best`; and whether one of them did so by more than roundings can.
#[inline(always)]
fn cuts_above<F: Lanes, const SHIFTS: usize>(n: usize, cuts: &impl Sums<SHIFTS>, mut best: f32) -> (Option<(Cut, usize)>, bool) {
    let mut found = None;
    let (mut peak, mut sure) = (best, false);
    for low in 0..=n {
        for high in (low..=n).step_by(F::N) {
            let sums = cuts.at::<F>(low, high);
            let inside = if n + 1 - high >= F::N { u32::MAX } else { (1 << (n + 1 - high)) - 1 };
            let bar = F::splat(best);
            let mut any = (bar * sums[0].1).lt(sums[0].0 * sums[0].0);
            for (qx, q2) in &sums[1..] {
                any = any | (bar * *q2).lt(*qx * *qx);
            }
            if any.bits() & inside == 0 {
                continue;
            }
            let mut open = [inside; SHIFTS];
            loop {
                let bar = F::splat(best);
                let mut better = [0u32; SHIFTS];
                let mut any = 0;
                for k in 0..SHIFTS {
                    let (qx, q2) = sums[k];
                    better[k] = (F::zero().lt(q2) & (bar * q2).lt(qx * qx)).bits() & open[k];
                    any |= better[k];
                }
                if any == 0 {
                    break;
                }
                // The first lane, and its first shift; then only what comes after may still win, against a new bar.
                let lane = any.trailing_zeros() as usize;
                let shift = (0..SHIFTS).find(|&k| better[k] >> lane & 1 == 1).unwrap_or(0);
                let (mut qx, mut q2) = ([0f32; MAX_LANES], [0f32; MAX_LANES]);
                sums[shift].0.store(&mut qx);
                sums[shift].1.store(&mut q2);
                sure |= qx[lane] * qx[lane] > peak * (1.0 + 2e-6) * q2[lane];
                let scale = qx[lane] / q2[lane];
                best = scale * qx[lane];
                peak = peak.max(best);
                found = Some((Cut { scale, low, high: high + lane, down: [0; MAX_PARTS] }, shift));
                for (k, open) in open.iter_mut().enumerate() {
                    let passed = if k <= shift { 2u32 << lane } else { 1 << lane };
                    *open &= !(passed - 1);
                }
            }
        }
    }
    (found, sure)
}

/// Where the cuts of a row of weights about lie: at half the scale on both sides of zero, the scale being what the weights beyond
/// it have on average.
#[inline(always)]
fn guess_cuts<F: Lanes>(x: &[f32], weights: &[f32]) -> (usize, usize) {
    let mut half = 0.0;
    let (mut low, mut high) = (0, x.len());
    // At first all weights count.
    for bar in [Some(-1.0), None, None] {
        let bar = F::splat(bar.unwrap_or(half));
        let (mut sum_x, mut sum_w) = (F::zero(), F::zero());
        (low, high) = (0, x.len());
        for (x, w) in x.chunks_exact(F::N).zip(weights.chunks_exact(F::N)) {
            let x = F::load(x);
            let size = x.abs();
            let beyond = bar.lt(size);
            let w = F::select(beyond, F::load(w), F::zero());
            sum_x = sum_x + w * size;
            sum_w = sum_w + w;
            let (beyond, below) = (beyond.bits(), x.lt(F::zero()).bits());
            low += (beyond & below).count_ones() as usize;
            high -= (beyond & !below).count_ones() as usize;
        }
        half = 0.5 * total(sum_x) / total(sum_w);
    }
    (low.min(high), high)
}

/// The sum of all lanes.
#[inline(always)]
fn total<F: Lanes>(x: F) -> f32 {
    let mut lanes = [0f32; MAX_LANES];
    x.store(&mut lanes);
    lanes[..F::N].iter().sum()
}

/// The points and scale for a cut: levels, turned round if the scale is negative; neighbours where the levels are not in the
/// book, and then a new scale.
#[inline(always)]
fn points<F: Lanes>(book: &Codebook, x: &[f32], weights: &[f32], order: &[u8; MAX_SUB], cut: &Cut) -> (f32, [u16; MAX_PARTS]) {
    let mut levels = [0u16; MAX_PARTS];
    for (j, i) in order.iter().map(|&i| usize::from(i)).take(x.len()).enumerate() {
        let level = u16::from(j >= cut.low) + u16::from(j >= cut.high);
        let level = if cut.scale < 0.0 { 2 - level } else { level };
        levels[i / WIDTH] |= level << (2 * (i % WIDTH));
    }
    let mut scale = cut.scale.abs();
    let mut points = [0u16; MAX_PARTS];
    let mut moved = false;
    for (g, (x, weights)) in x.chunks_exact(WIDTH).zip(weights.chunks_exact(WIDTH)).enumerate() {
        if book.index(levels[g]).is_none() {
            moved = true;
            let (mut x4, mut w4) = ([0f32; 4 * WIDTH], [0f32; 4 * WIDTH]);
            fourfold(x, &mut x4);
            fourfold(weights, &mut w4);
            levels[g] = book.neighbour::<F>(levels[g], &squares::<F>(&TERMS[cut.down[g]], scale, &x4, &w4));
        }
        points[g] = book.index(levels[g]).unwrap_or(0);
    }
    if moved {
        let (mut qx, mut q2) = (0f32, 0f32);
        for (i, (&x, &w)) in x.iter().zip(weights).enumerate() {
            let q = value(cut.down[i / WIDTH], levels[i / WIDTH], i % WIDTH);
            qx += w * q * x;
            q2 += w * q * q;
        }
        if qx > 0.0 && q2 > 0.0 {
            scale = qx / q2;
        }
    }
    (scale, points)
}

/// The value of coordinate `i` of a point.
#[inline(always)]
fn value(down: usize, levels: u16, i: usize) -> f32 {
    [UP, DOWN_VALUES][down][(levels >> (2 * i) & 3) as usize]
}
