//! Rounding to an eight-wide codebook, and the search for a super-block's scales under that rounding.
//!
//! Rounding looks at all points of the book, not only at ggml's neighbours. The scales start from those of ggml's encoder; other
//! super-block scales around them get the integers that keep the steps, then integers and least squares for the super-block's scale
//! alternate as long as the error falls. Errors are those of the rounding that a solver will do.

use super::book8::{DOWN, LEN, LEVELS, Marks, SCALES, Scales, Shape};
use super::codebook8::{Terms, WIDTH};
use super::float::saturate;
use crate::codec::Float;
use crate::simd::{Kernel, Lanes};

/// Super-block scales that a fit tries, as multiples of the reference's.
const FACTORS: [f32; 6] = [0.9, 0.94, 0.97, 1.03, 1.06, 1.1];
/// Rounds of refinement.
const ROUNDS: usize = 4;

/// Rounds the eight weights of one group: levels and marks.
pub(super) struct Round<'a> {
    pub shape: Shape,
    pub x: &'a [f32],
    pub step: f32,
    /// The shift, if the sub-block says.
    pub down: bool,
}

impl Kernel for Round<'_> {
    type Output = (u16, u8);

    #[inline(always)]
    fn run<F: Lanes>(self) -> (u16, u8) {
        round::<F>(&self.shape, self.x, self.step, self.down)
    }
}

/// The allowed point that is nearest to `x`.
#[inline(always)]
fn round<F: Lanes>(shape: &Shape, x: &[f32], step: f32, down: bool) -> (u16, u8) {
    match shape.marks {
        Marks::Signs => round_signed::<F>(shape, x, step, false),
        Marks::EvenSigns => round_signed::<F>(shape, x, step, true),
        Marks::SharedShift => {
            let (_, levels) = round_shifted::<F>(shape, x, step, down);
            (levels, if down { DOWN } else { 0 })
        }
        Marks::Shift => {
            let (up, down) = (round_shifted::<F>(shape, x, step, false), round_shifted::<F>(shape, x, step, true));
            if down.0 < up.0 { (down.1, DOWN) } else { (up.1, 0) }
        }
    }
}

/// The levels of least cost, each by itself.
#[inline(always)]
fn cheapest(costs: &Terms) -> u16 {
    costs.chunks_exact(4).rev().fold(0, |levels, c| {
        let first = if c[1] < c[0] { 1 } else { 0 };
        levels << 2 | if c[2] < c[first] { 2 } else { first as u16 }
    })
}

#[inline(always)]
fn round_shifted<F: Lanes>(shape: &Shape, x: &[f32], step: f32, down: bool) -> (f32, u16) {
    let values = shape.relative().map(|v| step * v);
    let mut costs = [0f32; 4 * WIDTH];
    for (costs, x) in costs.chunks_exact_mut(4).zip(x) {
        for (cost, v) in costs.iter_mut().zip(&values[if down { LEVELS as usize } else { 0 }..][..LEVELS as usize]) {
            *cost = (v - x) * (v - x);
        }
    }
    let levels = cheapest(&costs);
    match shape.book.index(levels) {
        Some(_) => (costs.chunks_exact(4).enumerate().map(|(i, c)| c[(levels >> (2 * i) & 3) as usize]).sum(), levels),
        None => shape.book.closest::<F>(&costs, None),
    }
}

#[inline(always)]
fn round_signed<F: Lanes>(shape: &Shape, x: &[f32], step: f32, even: bool) -> (u16, u8) {
    let values = shape.relative().map(|v| step * v);
    // What each level costs with the better sign, and what the other sign costs more.
    let (mut costs, mut more) = ([0f32; 4 * WIDTH], [0f32; 4 * WIDTH]);
    let mut signs = 0u8;
    for (i, x) in x.iter().enumerate() {
        let negative = (*x < 0.0) != (step < 0.0) && *x != 0.0;
        signs |= u8::from(negative) << i;
        for l in 0..LEVELS as usize {
            let (plus, minus) = ((values[l] - x) * (values[l] - x), (values[l] + x) * (values[l] + x));
            let (better, other) = if negative { (minus, plus) } else { (plus, minus) };
            costs[4 * i + l] = better;
            more[4 * i + l] = (other - better).max(0.0);
        }
    }
    let odd = even && signs.count_ones() % 2 == 1;
    let levels = match shape.book.index(cheapest(&costs)) {
        Some(_) if !odd => cheapest(&costs),
        _ => shape.book.closest::<F>(&costs, odd.then_some(&more)).1,
    };
    if odd {
        let other = |i: usize| more[4 * i + (levels >> (2 * i) & 3) as usize];
        let flip = (1..WIDTH).fold(0, |at, i| if other(i) < other(at) { i } else { at });
        signs ^= 1 << flip;
    }
    (levels, signs)
}

/// Where a fit starts.
pub(super) enum Start {
    /// From the reference's scales, to look all around.
    Around(Scales),
    /// From scales that are about right.
    Near(Scales),
}

/// Fits the scales of a super-block.
pub(super) struct Fit<'a> {
    pub x: &'a [f32],
    pub importance: &'a [f32],
    pub start: Start,
}

impl Kernel for Fit<'_> {
    type Output = Scales;

    #[inline(always)]
    fn run<F: Lanes>(self) -> Scales {
        let ones = [1f32; LEN];
        let importance = if self.importance.iter().all(|&w| w == 0.0) { &ones } else { self.importance };
        let problem = Problem { x: self.x, importance };
        let (mut start, around) = match self.start {
            Start::Around(start) => (start, true),
            Start::Near(start) => (start, false),
        };
        if !start.d.is_finite() {
            // Squares overflow in the reference encoder; the largest magnitude on the largest value will do.
            let shape = start.shape;
            let largest = self.x.iter().fold(0f32, |m, x| m.max(x.abs()));
            let top = shape.relative().iter().fold(0f32, |m, v| m.max(*v)) * shape.step(1.0, shape.max_scale());
            start.d = saturate(Float::F16, largest / top);
            start.ints = [shape.max_scale(); SCALES];
        }
        let mut best = problem.trial::<F>(start);
        for factor in FACTORS.into_iter().filter(|_| around) {
            let d = saturate(Float::F16, start.d * factor);
            if d != start.d {
                best = best.min(problem.at_scale::<F>(&start, d));
            }
        }
        problem.refine::<F>(best, if around { ROUNDS } else { 1 }).scales
    }
}

/// What the rounded values of a sub-block give.
#[derive(Clone, Copy, Default)]
struct Sums {
    /// Σ importance · (value − x)².
    error: f64,
    /// Σ importance · value · x.
    vx: f64,
    /// Σ importance · value².
    vv: f64,
}

/// Scales, and what they give.
struct Trial {
    scales: Scales,
    sums: [Sums; SCALES],
}

impl Trial {
    fn error(&self) -> f64 {
        self.sums.iter().map(|s| s.error).sum()
    }
    /// The better one.
    fn min(self, other: Self) -> Self {
        if other.error() < self.error() { other } else { self }
    }
}

struct Problem<'a> {
    x: &'a [f32],
    importance: &'a [f32],
}

impl Problem<'_> {
    /// What sub-block `s` gives with this step and shift.
    #[inline(always)]
    fn sums<F: Lanes>(&self, shape: &Shape, s: usize, step: f32, down: bool) -> Sums {
        let values = shape.relative().map(|v| f64::from(step * v));
        let mut sums = Sums::default();
        let groups = self.x[s * shape.sub..][..shape.sub].chunks_exact(WIDTH);
        for (x, w) in groups.zip(self.importance[s * shape.sub..].chunks_exact(WIDTH)) {
            let (levels, marks) = round::<F>(shape, x, step, down);
            for (i, (&x, &w)) in x.iter().zip(w).enumerate() {
                let (x, w) = (f64::from(x), f64::from(w));
                let value = values[(levels >> (2 * i) & 3) as usize + (LEVELS * (marks >> i & 1)) as usize];
                sums.error += w * (value - x) * (value - x);
                sums.vx += w * value * x;
                sums.vv += w * value * value;
            }
        }
        sums
    }
    #[inline(always)]
    fn trial<F: Lanes>(&self, scales: Scales) -> Trial {
        let mut trial = Trial { scales, sums: Default::default() };
        for s in 0..scales.shape.subs() {
            trial.sums[s] = self.sums::<F>(&scales.shape, s, scales.step(s), scales.down[s]);
        }
        trial
    }
    /// Another super-block scale, with integers that about keep the steps.
    #[inline(always)]
    fn at_scale<F: Lanes>(&self, from: &Scales, d: f32) -> Trial {
        let shape = from.shape;
        let mut trial = Trial { scales: Scales { d, ..*from }, sums: Default::default() };
        for s in 0..shape.subs() {
            let kept = (from.step(s) / shape.step(d, 0) - 1.0) * 0.5;
            let below = kept.clamp(0.0, f32::from(shape.max_scale())) as u8;
            trial.sums[s].error = f64::INFINITY;
            for int in [below, (below + 1).min(shape.max_scale())] {
                self.try_int::<F>(&mut trial, s, int, from.down[s]);
            }
        }
        trial
    }
    /// Takes an integer and shift for sub-block `s` if they are better.
    #[inline(always)]
    fn try_int<F: Lanes>(&self, trial: &mut Trial, s: usize, int: u8, down: bool) -> bool {
        let sums = self.sums::<F>(&trial.scales.shape, s, trial.scales.shape.step(trial.scales.d, int), down);
        let better = sums.error < trial.sums[s].error;
        if better {
            trial.sums[s] = sums;
            (trial.scales.ints[s], trial.scales.down[s]) = (int, down);
        }
        better
    }
    /// Moves integers by one, turns shifts round, fits the super-block's scale, as long as the error falls.
    #[inline(always)]
    fn refine<F: Lanes>(&self, mut best: Trial, rounds: usize) -> Trial {
        let shape = best.scales.shape;
        for _ in 0..rounds {
            let mut falls = false;
            for s in 0..shape.subs() {
                let (int, down) = (best.scales.ints[s], best.scales.down[s]);
                for other in [int.wrapping_sub(1), int + 1].into_iter().filter(|&i| i <= shape.max_scale()) {
                    falls |= self.try_int::<F>(&mut best, s, other, down);
                }
                if shape.marks == Marks::SharedShift {
                    let int = best.scales.ints[s];
                    falls |= self.try_int::<F>(&mut best, s, int, !down);
                }
            }
            let (vx, vv) = best.sums.iter().fold((0.0, 0.0), |(vx, vv), s| (vx + s.vx, vv + s.vv));
            let d = saturate(Float::F16, (f64::from(best.scales.d) * vx / vv) as f32);
            if vv > 0.0 && d != best.scales.d {
                let other = self.trial::<F>(Scales { d, ..best.scales });
                falls |= other.error() < best.error();
                best = best.min(other);
            }
            if !falls {
                break;
            }
        }
        best
    }
}
