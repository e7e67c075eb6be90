//! ggml's encoder of the ternary codebook formats, step by step as ggml does it (`ggml-quants.c`: `quantize_row_iq1_s_impl`,
//! `quantize_row_iq1_m_impl`). The weights of a sub-block are sorted; all ways to cut the row into a low, a middle and a high part
//! are tried under each way to shift the levels by ±1/8, and the one that correlates best with the weights wins. Groups of eight
//! whose levels are not in the book then move to a neighbour. Lanes are places of the second cut.

use super::book8::{Block, LEN, SCALES, SHIFT};
use super::codebook8::{Codebook, Terms, WIDTH, fourfold, nearest_one, squares};
use crate::simd::{IntLanes, Lanes, MAX_LANES, MaskLanes};
use std::array::from_fn;

/// Values of the levels shifted up.
const UP: [f32; 3] = [-1.0 + SHIFT, SHIFT, 1.0 + SHIFT];
/// Values of the levels shifted down.
const DOWN: [f32; 3] = [-1.0 - SHIFT, -SHIFT, 1.0 - SHIFT];
/// The same as [`squares`] wants them.
const TERMS: [Terms; 2] = [fourfold_values(UP), fourfold_values(DOWN)];

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
/// Places of a cut, filled up for any lanes.
const CUTS: usize = MAX_SUB + 1 + MAX_LANES;

/// The cuts and shifts of a sub-block.
struct Cut {
    scale: f32,
    /// How many sorted weights have level 0, and how many level 0 or 1.
    low: usize,
    high: usize,
    /// Which of the shifts.
    shift: usize,
}

/// What becomes of a sub-block.
pub(super) struct Found {
    pub scale: f32,
    /// The points' indices.
    pub points: [u16; MAX_SUB / WIDTH],
    /// By group: 1 if shifted down.
    pub down: [usize; MAX_SUB / WIDTH],
}

/// weight = importance · √(2 · mean square + x²); without importance `plain`.
#[inline(always)]
pub(super) fn weigh<F: Lanes>(x: &[f32], importance: Option<&[f32]>, plain: impl Fn(F, F) -> F, out: &mut [f32; LEN]) {
    let sum = x.iter().fold(0f32, |sum, &x| sum + x * x);
    let sigma2 = F::splat(2.0 * sum / LEN as f32);
    for at in (0..LEN).step_by(F::N) {
        let x = F::load(&x[at..]);
        let weight = match importance {
            Some(q) => F::load(&q[at..]) * (sigma2 + x * x).sqrt(),
            None => plain(sigma2, x),
        };
        weight.store(&mut out[at..]);
    }
}

/// The best scale, points and shift of a sub-block whose groups share one shift; `None` if it counts as zero.
#[inline(always)]
pub(super) fn one_shift<F: Lanes>(book: &Codebook, x: &[f32], weights: &[f32], least: f32) -> Option<Found> {
    let order = sorted::<F>(x, least)?;
    let n = x.len();
    // Sums up to each place, and what the high part then adds.
    let (mut sx, mut sw) = ([0f32; CUTS], [0f32; CUTS]);
    for (j, i) in order.iter().map(|&i| i as usize).take(n).enumerate() {
        sx[j + 1] = sx[j] + weights[i] * x[i];
        sw[j + 1] = sw[j] + weights[i];
    }
    let high = |sums: &[f32; CUTS], factor: &dyn Fn(f32) -> f32| -> [f32; CUTS] { from_fn(|j| factor(sums[n] - sums[j])) };
    let high_x = [UP, DOWN].map(|v| high(&sx, &|s| s * v[2]));
    let high_w = [UP, DOWN].map(|v| high(&sw, &|s| s * v[2] * v[2]));
    let cut = best_cut::<F, 2>(n, |low, at| {
        // The middle's values are ±1/8: both shifts have the same square, and opposite sums, without rounding.
        let middle_x = (F::load(&sx[at..]) - F::splat(sx[low])) * F::splat(UP[1]);
        let middle_w = (F::load(&sw[at..]) - F::splat(sw[low])) * F::splat(UP[1]) * F::splat(UP[1]);
        let qx = |s: usize, v: [f32; 3], middle: F| F::splat(sx[low] * v[0]) + middle + F::load(&high_x[s][at..]);
        let q2 = |s: usize, v: [f32; 3]| F::splat(sw[low] * v[0] * v[0]) + middle_w + F::load(&high_w[s][at..]);
        [(qx(0, UP, middle_x), q2(0, UP)), (qx(1, DOWN, F::zero() - middle_x), q2(1, DOWN))]
    })?;
    let down = if cut.scale < 0.0 { 1 - cut.shift } else { cut.shift };
    Some(points::<F>(book, x, weights, &order, &cut, [down; MAX_SUB / WIDTH]))
}

/// The same for two groups of eight, each with a shift of its own.
#[inline(always)]
pub(super) fn two_shifts<F: Lanes>(book: &Codebook, x: &[f32], weights: &[f32], least: f32) -> Option<Found> {
    let order = sorted::<F>(x, least)?;
    let n = x.len();
    // Sums of each group up to each place.
    let (mut sx, mut sw) = ([[0f32; CUTS]; 2], [[0f32; CUTS]; 2]);
    for (j, i) in order.iter().map(|&i| i as usize).take(n).enumerate() {
        let own = i / WIDTH;
        for h in 0..2 {
            (sx[h][j + 1], sw[h][j + 1]) = (sx[h][j], sw[h][j]);
        }
        sx[own][j + 1] += weights[i] * x[i];
        sw[own][j + 1] += weights[i];
    }
    // Moving a weight down a level takes 1 from its value, and this from its value's square.
    let below = [UP, DOWN].map(|v| [v[0] * v[0] - v[1] * v[1], v[1] * v[1] - v[2] * v[2]]);
    let [mut high_w, mut all_w] = [[[[0f32; CUTS]; 2]; 2], [[[0f32; CUTS]; 2]; 2]];
    let mut all_x = [[0f32; 2]; 2];
    for h in 0..2 {
        for (s, v) in [UP, DOWN].into_iter().enumerate() {
            all_x[h][s] = sx[h][n] * v[2];
            for j in 0..=n {
                all_w[h][s][j] = sw[h][n] * v[2] * v[2] + sw[h][j] * below[s][0];
                high_w[h][s][j] = sw[h][j] * below[s][1];
            }
        }
    }
    let cut = best_cut::<F, 4>(n, |low, at| {
        let part = |h: usize| {
            let taken = F::splat(sx[h][low]) + F::load(&sx[h][at..]);
            let qx: [F; 2] = from_fn(|s| F::splat(all_x[h][s]) - taken);
            let q2: [F; 2] = from_fn(|s| F::splat(all_w[h][s][low]) + F::load(&high_w[h][s][at..]));
            (qx, q2)
        };
        let ((x0, w0), (x1, w1)) = (part(0), part(1));
        from_fn(|k| (x0[k / 2] + x1[k % 2], w0[k / 2] + w1[k % 2]))
    })?;
    let shift = if cut.scale < 0.0 { 3 - cut.shift } else { cut.shift };
    Some(points::<F>(book, x, weights, &order, &cut, [shift / 2, shift % 2, 0, 0]))
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

/// The first of the best cuts of `n` sorted weights. `sums` gives Σ weight · x · value and Σ weight · value² of each shift, for a
/// first cut and the lanes' second cuts from a place on. In order of first cut, second cut, shift; `None` if none has a scale.
#[inline(always)]
fn best_cut<F: Lanes, const SHIFTS: usize>(n: usize, sums: impl Fn(usize, usize) -> [(F, F); SHIFTS]) -> Option<Cut> {
    let mut best = -f32::MAX;
    let mut found = None;
    for low in 0..=n {
        for at in (low..=n).step_by(F::N) {
            let sums = sums(low, at);
            let inside = if n + 1 - at >= F::N { u32::MAX } else { (1 << (n + 1 - at)) - 1 };
            let mut open = [inside; SHIFTS];
            loop {
                let bar = F::splat(best);
                let better: [u32; SHIFTS] = from_fn(|k| {
                    let (qx, q2) = sums[k];
                    (F::zero().lt(q2) & (bar * q2).lt(qx * qx)).bits() & open[k]
                });
                let any = better.iter().fold(0, |any, b| any | b);
                if any == 0 {
                    break;
                }
                // The first lane, and its first shift; then only what comes after may still win, against a new bar.
                let lane = any.trailing_zeros() as usize;
                let shift = (0..SHIFTS).find(|&k| better[k] >> lane & 1 == 1).unwrap_or(0);
                let (mut qx, mut q2) = ([0f32; MAX_LANES], [0f32; MAX_LANES]);
                sums[shift].0.store(&mut qx);
                sums[shift].1.store(&mut q2);
                let scale = qx[lane] / q2[lane];
                best = scale * qx[lane];
                found = Some(Cut { scale, low, high: at + lane, shift });
                for (k, open) in open.iter_mut().enumerate() {
                    let passed = if k <= shift { 2u32 << lane } else { 1 << lane };
                    *open &= !(passed.wrapping_sub(1));
                }
            }
        }
    }
    found
}

/// The points for a cut: levels, turned round if the scale is negative; neighbours where the levels are not in the book, and
/// then a new scale.
#[inline(always)]
fn points<F: Lanes>(
    book: &Codebook,
    x: &[f32],
    weights: &[f32],
    order: &[u8; MAX_SUB],
    cut: &Cut,
    down: [usize; MAX_SUB / WIDTH],
) -> Found {
    let mut levels = [0u16; MAX_SUB / WIDTH];
    for (j, i) in order.iter().map(|&i| i as usize).take(x.len()).enumerate() {
        let level = u16::from(j >= cut.low) + u16::from(j >= cut.high);
        let level = if cut.scale < 0.0 { 2 - level } else { level };
        levels[i / WIDTH] |= level << (2 * (i % WIDTH));
    }
    let mut found = Found { scale: cut.scale.abs(), points: [0; MAX_SUB / WIDTH], down };
    let mut moved = false;
    let groups = x.len() / WIDTH;
    for (g, levels) in levels.iter_mut().enumerate().take(groups) {
        found.points[g] = book.index(*levels).unwrap_or_else(|| {
            moved = true;
            let (mut x4, mut w4) = ([0f32; 4 * WIDTH], [0f32; 4 * WIDTH]);
            fourfold(&x[WIDTH * g..][..WIDTH], &mut x4);
            fourfold(&weights[WIDTH * g..][..WIDTH], &mut w4);
            *levels = book.neighbour::<F>(*levels, &squares::<F>(&TERMS[down[g]], found.scale, &x4, &w4));
            book.index(*levels).unwrap_or(0)
        });
    }
    if moved {
        let (mut qx, mut q2) = (0f32, 0f32);
        for (i, (&x, &w)) in x.iter().zip(weights).enumerate() {
            let q = value(down[i / WIDTH], levels[i / WIDTH], i % WIDTH);
            qx += w * q * x;
            q2 += w * q * q;
        }
        if qx > 0.0 && q2 > 0.0 {
            found.scale = qx / q2;
        }
    }
    found
}

/// The value of coordinate `i` of a point.
#[inline(always)]
pub(super) fn value(down: usize, levels: u16, i: usize) -> f32 {
    [UP, DOWN][down][(levels >> (2 * i) & 3) as usize]
}

/// The integers of the sub-blocks' scales and the block's scale they multiply, the largest at 15; `None` if all are zero.
pub(super) fn store_scales(scales: &[f32; SCALES], block: &mut Block) -> Option<f32> {
    let largest = scales.iter().fold(0f32, |m, &s| if m > s { m } else { s });
    if largest == 0.0 {
        return None;
    }
    let d = largest / 15.0;
    let inverse = 1.0 / d;
    for (stored, &scale) in block.scales.iter_mut().zip(scales) {
        *stored = nearest_one(0.5 * (inverse * scale - 1.0)).clamp(0, 7) as u8;
    }
    Some(d)
}
