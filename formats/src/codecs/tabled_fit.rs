//! Importance-weighted fit, and refit under a quadratic loss, of the steps of a [`Tabled`](super::tabled::Tabled) block.
//!
//! 1. Every sub-block by itself: from many steps, alternate nearest codes and the least-squares step for them.
//! 2. Candidates for d: those that land the best steps closest to what integers give, weighed by how much the error curves.
//! 3. For each candidate, every sub-block chooses its integer by true error, downhill from the nearest; least squares for d with
//!    integers and codes fixed; again while the error falls.

use super::fit::prepare;
use super::float::neighbours;
use super::gram::dot;
use super::tabled::{Layout, MAX_LEN, MAX_SUBS, SUB, Scales, subs};
use crate::codec::{Float, Gram};
use crate::kernels;
use std::marker::PhantomData;

/// Quotients are limited to this, so that no square overflows.
const LIMIT: f32 = 1e15;
/// Starts taken to their local minimum.
const KEEP: usize = 3;
/// Candidates for d that step 3 tries.
const CANDIDATES: usize = 3;
/// The most rounds of any alternation.
const ROUNDS: usize = 6;

/// Rounds weights, [`Layout::STEP`] of them, to codes. `quotients` receives the weights as multiples of the step.
pub(super) fn nearest<L: Layout + ?Sized>(step: f32, x: &[f32], codes: &mut [u8], quotients: &mut [f32]) {
    for (t, &x) in quotients.iter_mut().zip(x) {
        *t = if step == 0.0 { 0.0 } else { x / step };
        *t = if t.is_nan() { 0.0 } else { t.clamp(-LIMIT, LIMIT) };
    }
    L::nearest(quotients, codes);
}

/// Rounds weights, [`Layout::STEP`] of them, to codes, and gives their values.
pub(super) fn round<L: Layout>(step: f32, x: &[f32], codes: &mut [u8], values: &mut [f32]) {
    nearest::<L>(step, x, codes, values);
    for (value, &code) in values.iter_mut().zip(codes.iter()) {
        *value = step * L::VALUES[code as usize];
    }
}

/// Sums over a sub-block whose codes were rounded at a step, with t their values before scaling and r what is left over.
#[derive(Clone, Copy, Default)]
struct Moments {
    /// Σ w r², the error.
    error: f64,
    /// Σ w r t.
    rt: f64,
    /// Σ w t².
    tt: f64,
}

/// A block's weights and their importance.
pub(super) struct Problem<L> {
    x: [f32; MAX_LEN],
    w: [f32; MAX_LEN],
    layout: PhantomData<L>,
}

impl<L: Layout> Problem<L> {
    pub fn new(x: &[f32], importance: &[f32]) -> Self {
        let mut problem = Problem { x: [0.0; MAX_LEN], w: [0.0; MAX_LEN], layout: PhantomData };
        prepare(x, importance, &mut problem.x, &mut problem.w);
        problem
    }

    fn moments(&self, s: usize, step: f32) -> Moments {
        let (x, w) = (&self.x[s * SUB..][..SUB], &self.w[s * SUB..][..SUB]);
        let mut entries = [0f32; SUB];
        L::entries(step, x, &mut entries);
        let [error, rt, tt] = kernels::entry_moments(x, w, step, &entries);
        Moments { error, rt, tt }
    }
    fn error(&self, scales: &Scales) -> f64 {
        (0..subs::<L>()).map(|s| self.moments(s, scales.step::<L>(s)).error).sum()
    }

    /// Alternates rounding and least squares from `step`; returns the best step met with its moments.
    fn descend(&self, s: usize, step: f32) -> (f32, Moments) {
        let mut best = (step, self.moments(s, step));
        for _ in 0..ROUNDS {
            let (step, m) = best;
            if m.tt <= 0.0 {
                break;
            }
            let step = (step as f64 + m.rt / m.tt) as f32;
            let next = self.moments(s, step);
            if next.error < best.1.error {
                best = (step, next);
            } else {
                break;
            }
        }
        best
    }

    /// The best step of sub-block `s` that the starts lead to.
    fn search(&self, s: usize, starts: impl Iterator<Item = f32>) -> (f32, Moments) {
        let mut found: Vec<(f32, f64)> = starts
            .map(|start| {
                let m = self.moments(s, start);
                let gain = if m.tt > 0.0 { m.rt / m.tt } else { 0.0 };
                ((start as f64 + gain) as f32, m.error - gain * m.rt)
            })
            .collect();
        found.sort_by(|a, b| a.1.total_cmp(&b.1));
        let minima = found.iter().take(KEEP).map(|f| self.descend(s, f.0));
        minima.min_by(|a, b| a.1.error.total_cmp(&b.1.error)).unwrap_or_default()
    }

    /// Steps that put the extreme weight near either end of the values.
    fn starts(&self, s: usize) -> impl Iterator<Item = f32> {
        let extreme = self.x[s * SUB..][..SUB].iter().fold(0f32, |m, &x| if x.abs() > m.abs() { x } else { m });
        let (low, high) = L::VALUES.iter().fold((0f32, 0f32), |(low, high), &v| (low.min(v), high.max(v)));
        // Where the values are as many below zero as above, a step and its negative give the same.
        let ends = if low == -high { vec![extreme.abs() / high] } else { vec![extreme / low, extreme / high] };
        let fine = (0..20).map(|i| 0.8 + 0.025 * i as f32);
        // Beyond the fine ones: for blocks whose largest weights matter little, and for those that need few of the values.
        let coarse = [0.3, 0.36, 0.43, 0.5, 0.58, 0.65, 0.72, 1.5, 2.0, 3.0, 5.0, 15.0];
        let shrinks: Vec<f32> = fine.chain(coarse).collect();
        ends.into_iter().flat_map(move |end| shrinks.clone().into_iter().map(move |f| end * f))
    }

    /// The best scales found; never worse than `reference`.
    pub fn fit(&self, reference: Scales) -> Scales {
        let mut best = (Scales { d: 0.0, ints: [L::INTS.0.max(0); MAX_SUBS] }, f64::INFINITY);
        let error = self.error(&reference);
        if error.is_finite() {
            best = (reference, error);
        }
        let minima: Vec<(f32, Moments)> = (0..subs::<L>()).map(|s| self.search(s, self.starts(s))).collect();
        let starts = candidates::<L>(&minima).into_iter().chain([reference.d]);
        self.try_starts(&minima, starts, best)
    }

    /// The best scales found near `start`, which suited other weights much like these; never worse than it.
    pub fn fit_near(&self, start: Scales) -> Scales {
        let near = |s: usize| [0.94, 0.97, 1.0, 1.03, 1.06].into_iter().map(move |f| f * start.step::<L>(s));
        let minima: Vec<(f32, Moments)> = (0..subs::<L>()).map(|s| self.search(s, near(s))).collect();
        let starts = candidates::<L>(&minima).into_iter().take(1).chain([start.d]);
        self.try_starts(&minima, starts, (start, self.error(&start)))
    }

    fn try_starts(&self, minima: &[(f32, Moments)], starts: impl Iterator<Item = f32>, mut best: (Scales, f64)) -> Scales {
        for d in starts {
            let mut scales = Scales { d: 0.0, ints: [0; MAX_SUBS] };
            scales.set_d(d as f64);
            for (s, (step, _)) in minima.iter().enumerate() {
                scales.ints[s] = nearest_int::<L>(scales.d, *step);
            }
            let error = self.improve(&mut scales);
            if error < best.1 {
                best = (scales, error);
            }
        }
        best.0
    }

    /// Chooses integers and moves d in turn while the error falls. Returns the error.
    fn improve(&self, scales: &mut Scales) -> f64 {
        let mut least = f64::INFINITY;
        for _ in 0..ROUNDS {
            let mut next = *scales;
            let moments: Vec<Moments> = (0..subs::<L>()).map(|s| self.choose(s, &mut next)).collect();
            let error: f64 = moments.iter().map(|m| m.error).sum();
            if error < least {
                (*scales, least) = (next, error);
            } else {
                break;
            }
            let (mut rd, mut dd) = (0.0, 0.0);
            for (m, &int) in moments.iter().zip(&next.ints) {
                let factor = L::factor(int) as f64;
                rd += factor * m.rt;
                dd += factor * factor * m.tt;
            }
            if dd <= 0.0 {
                break;
            }
            scales.set_d(next.d as f64 + rd / dd);
            if scales.d == next.d {
                break;
            }
            let moved = self.error(scales);
            if moved < least {
                least = moved;
            } else {
                *scales = next;
                break;
            }
        }
        if subs::<L>() == 1 {
            // The least-squares scale is not the best one that can be stored: codes change with it.
            for _ in 0..ROUNDS {
                let here = scales.d;
                for d in neighbours(Float::F16, here) {
                    let moved = Scales { d, ..*scales };
                    let error = self.error(&moved);
                    if error < least {
                        (*scales, least) = (moved, error);
                    }
                }
                if scales.d == here {
                    break;
                }
            }
        }
        least
    }

    /// Moves the integer of sub-block `s` downhill; returns the moments there.
    fn choose(&self, s: usize, scales: &mut Scales) -> Moments {
        let at = |int: i16| self.moments(s, scales.d * L::factor(int));
        let mut best = (scales.ints[s], at(scales.ints[s]));
        for way in [1, -1] {
            let from = best.0;
            while (L::INTS.0..=L::INTS.1).contains(&(best.0 + way)) {
                let m = at(best.0 + way);
                if m.error < best.1.error {
                    best = (best.0 + way, m);
                } else {
                    break;
                }
            }
            if best.0 != from {
                break;
            }
        }
        scales.ints[s] = best.0;
        best.1
    }
}

/// The integer whose step is nearest to `step`.
fn nearest_int<L: Layout>(d: f32, step: f32) -> i16 {
    let unit = L::factor(L::INTS.1) - L::factor(L::INTS.1 - 1);
    let int = (step / d - L::factor(0)) / unit;
    if d == 0.0 || !int.is_finite() { 0.clamp(L::INTS.0, L::INTS.1) } else { (int.round() as i16).clamp(L::INTS.0, L::INTS.1) }
}

/// Values of d that suit the sub-blocks' best steps, best first.
fn candidates<L: Layout>(minima: &[(f32, Moments)]) -> Vec<f32> {
    let largest = minima.iter().fold(0f32, |most, m| if m.0.abs() > most.abs() { m.0 } else { most });
    if L::INTS.0 == L::INTS.1 || largest == 0.0 {
        return vec![largest / L::factor(L::INTS.0)];
    }
    let cost = |d: f32| -> f64 {
        let miss =
            |(step, m): &(f32, Moments)| m.tt * (*step as f64 - (d * L::factor(nearest_int::<L>(d, *step))) as f64).powi(2);
        minima.iter().map(miss).sum()
    };
    // The largest step on either end of the integers or somewhat inside.
    let mut ends = vec![L::factor(L::INTS.1)];
    if L::INTS.0 < 0 {
        ends.push(L::factor(L::INTS.0));
    }
    let inside = (0..64).map(|i| 1.02 - 0.01 * i as f32);
    let mut found: Vec<(f32, f64)> =
        ends.into_iter().flat_map(|end| inside.clone().map(move |f| largest / (end * f))).map(|d| (d, cost(d))).collect();
    found.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut apart: Vec<f32> = Vec::with_capacity(CANDIDATES);
    for (d, _) in found {
        if apart.len() < CANDIDATES && !apart.iter().any(|o| (o - d).abs() < 0.015 * d.abs()) {
            apart.push(d);
        }
    }
    apart
}

/// Better scales for these codes, if there are any. `gradient` is half the loss's gradient at the values they now give.
pub(super) fn refit<L: Layout>(start: Scales, codes: &[u8], gradient: &[f64], gram: Gram<'_>) -> Option<Scales> {
    let n = codes.len();
    let mut levels = [0f32; MAX_LEN];
    levels.iter_mut().zip(codes).for_each(|(t, &c)| *t = L::VALUES[c as usize & 15]);
    let levels = &levels[..n];

    // With codes fixed the values are linear in the steps: the loss is a form in at most eight numbers.
    let mut curvature = [[0f64; MAX_SUBS]; MAX_SUBS];
    let mut slope = [0f64; MAX_SUBS];
    let mut h = [0f32; MAX_LEN];
    for s in 0..subs::<L>() {
        let at = s * SUB;
        let h = &mut h[at..n];
        gram.apply_levels(&levels[at..at + SUB], at, n, h);
        slope[s] = levels[at..at + SUB].iter().zip(&gradient[at..]).map(|(&t, g)| t as f64 * g).sum();
        for (k, (h, t)) in h.chunks_exact(SUB).zip(levels[at..].chunks_exact(SUB)).enumerate() {
            let sum = h.iter().zip(t).map(|(&h, &t)| h as f64 * t as f64).sum();
            (curvature[s][s + k], curvature[s + k][s]) = (sum, sum);
        }
    }
    let mut scales = start;
    let mut any = false;
    for _ in 0..ROUNDS {
        let mut moved = false;
        let along: [f64; MAX_SUBS] = scales.ints.map(|int| L::factor(int) as f64);
        let h_along = curvature.map(|row| dot(&row, &along));
        let (g, c) = (dot(&along, &slope), dot(&along, &h_along));
        let mut next = scales;
        next.set_d(scales.d as f64 - if c > 0.0 { g / c } else { 0.0 });
        let p = next.d as f64 - scales.d as f64;
        if 2.0 * p * g + p * p * c < 0.0 {
            slope.iter_mut().zip(h_along).for_each(|(slope, h)| *slope += p * h);
            (scales, moved) = (next, true);
        }
        for s in 0..subs::<L>() {
            let step = scales.step::<L>(s);
            let (g, c) = (slope[s], curvature[s][s]);
            let int = nearest_int::<L>(scales.d, (step as f64 - if c > 0.0 { g / c } else { 0.0 }) as f32);
            let p = (scales.d * L::factor(int)) as f64 - step as f64;
            if 2.0 * p * g + p * p * c < 0.0 {
                scales.ints[s] = int;
                slope.iter_mut().zip(curvature[s]).for_each(|(slope, h)| *slope += p * h);
                moved = true;
            }
        }
        any |= moved;
        if !moved {
            break;
        }
    }
    if !any {
        return None;
    }
    // The form knows nothing of f32's rounding.
    let (mut moves, mut h_moves) = ([0f64; MAX_LEN], [0f64; MAX_LEN]);
    for (i, (m, &t)) in moves.iter_mut().zip(levels).enumerate() {
        *m = (scales.step::<L>(i / SUB) * t) as f64 - (start.step::<L>(i / SUB) * t) as f64;
    }
    gram.apply(&moves[..n], 0, &mut h_moves[..n]);
    let falls = 2.0 * dot(&moves[..n], gradient) + dot(&moves[..n], &h_moves[..n]) < 0.0;
    falls.then_some(scales)
}
