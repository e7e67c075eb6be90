//! Weighted least squares with rounding: the tools behind [`Grid::fit`](crate::Grid::fit).
//!
//! A grid `step · c + bias` with integer codes `c` in a range is fitted to weights by alternating two exact steps, as Lloyd
//! (1957) does for quantizers in general: with the line fixed, the nearest codes; with the codes fixed, the weighted
//! least-squares line. Each lowers the error Σ w (x − step·c − bias)², so the alternation ends in a local minimum; many starts
//! find a good one. Symmetric grids have bias 0 and codes from `−zero`; affine grids have codes from 0.

use crate::kernels::{self, nearest_code};

/// Larger weights are fitted as if they were this large, so that no sum of squares overflows.
pub(super) const LIMIT: f32 = 1e15;

/// A line that codes are laid on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Line {
    pub step: f32,
    pub bias: f32,
}

/// Weighted sums over a block whose codes `c` were rounded to a line, with `r` what the line leaves over.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moments {
    /// Σ w r², the error.
    pub error: f32,
    /// Σ w r.
    pub r: f64,
    /// Σ w r c.
    pub rc: f64,
    /// Σ w c.
    pub c: f64,
    /// Σ w c².
    pub cc: f64,
}

impl Moments {
    /// The error after moving from `line` to another with codes unchanged.
    fn error_after(&self, line: Line, other: Line, weight: f64) -> f32 {
        let (s, b) = (other.step as f64 - line.step as f64, other.bias as f64 - line.bias as f64);
        let change = s * s * self.cc + 2.0 * s * b * self.c + b * b * weight - 2.0 * (s * self.rc + b * self.r);
        (self.error as f64 + change) as f32
    }
}

/// Weights to be fitted, `len` a multiple of 8.
#[derive(Clone, Copy)]
pub(super) struct Problem<'a> {
    pub x: &'a [f32],
    /// Importance of each weight, finite and ≥ 0.
    pub w: &'a [f32],
    /// Smallest and largest code.
    pub low: f32,
    pub high: f32,
}

impl Problem<'_> {
    /// The error of a line under its nearest codes.
    pub fn error(&self, line: Line) -> f32 {
        kernels::error(self.x, self.w, line.step, line.bias, self.low, self.high)
    }

    /// [`Problem::error`] of several lines of step and bias.
    pub fn errors(&self, lines: &[(f32, f32)], errors: &mut [f32]) {
        kernels::errors(self.x, self.w, lines, self.low, self.high, errors);
    }

    /// The sums that [`Problem::refit`] and the super-block's refit need.
    pub fn moments(&self, line: Line) -> Moments {
        let [error, r, rc, c, cc] = kernels::moments(self.x, self.w, line.step, line.bias, self.low, self.high);
        Moments { error, r: r as f64, rc: rc as f64, c: c as f64, cc: cc as f64 }
    }

    /// Σ w.
    pub fn weight(&self) -> f64 {
        self.w.iter().map(|&w| w as f64).sum()
    }

    /// The least-squares line for the codes of `m`, which belong to `line`. `bias` limits the bias, to `(0, 0)` for symmetric
    /// grids.
    pub fn refit(&self, line: Line, m: &Moments, weight: f64, bias: (f32, f32)) -> Line {
        let det = weight * m.cc - m.c * m.c;
        let (mut step, mut offset) = (line.step, line.bias);
        if bias.0 < bias.1 && det > 1e-6 * weight * m.cc {
            step = (line.step as f64 + (weight * m.rc - m.c * m.r) / det) as f32;
            offset = (line.bias as f64 + (m.cc * m.r - m.c * m.rc) / det) as f32;
        }
        let limited = offset.clamp(bias.0, bias.1);
        if limited != offset || bias.0 == bias.1 {
            offset = limited;
            if m.cc > 0.0 {
                // Σ w c (x − offset) / Σ w c²
                step = (line.step as f64 + (m.rc + (line.bias as f64 - offset as f64) * m.c) / m.cc) as f32;
            }
        }
        if step.is_finite() && offset.is_finite() { Line { step, bias: offset } } else { line }
    }

    /// Alternates refit and rounding from `line` at most `rounds` times; returns the best line met and its error.
    pub fn descend(&self, line: Line, weight: f64, bias: (f32, f32), rounds: usize) -> (Line, f32) {
        let mut m = self.moments(line);
        let mut best = (line, m.error);
        let mut line = line;
        for _ in 0..rounds {
            line = self.refit(line, &m, weight, bias);
            m = self.moments(line);
            if m.error < best.1 {
                let small = m.error > 0.9999 * best.1;
                best = (line, m.error);
                if small {
                    break;
                }
            } else {
                break;
            }
        }
        best
    }

    /// Local minima found from many starts, best first, at most `keep`, no two nearly alike. Neighbouring starts differ by
    /// `stride` of a step over the whole range.
    pub fn search(&self, bias: (f32, f32), stride: f32, keep: usize) -> Vec<(Line, f32)> {
        let mut search = Search::new(self, bias, keep);
        let (min, max) = self.x.iter().fold((f32::MAX, f32::MIN), |(lo, hi), &x| (lo.min(x), hi.max(x)));
        if bias.0 == bias.1 {
            let extreme = if max >= -min { max } else { min };
            if extreme == 0.0 {
                return vec![(Line { step: 0.0, bias: 0.0 }, 0.0)];
            }
            for shrink in shrinks(self.high - self.low, stride) {
                // The extreme on the lowest code, which reaches one further, or on the highest.
                search.start(Line { step: extreme / self.low * shrink, bias: 0.0 });
                search.start(Line { step: extreme / self.high * shrink, bias: 0.0 });
            }
        } else {
            let (low, high) = (min.clamp(bias.0, bias.1), max.max(bias.0));
            if high <= low {
                let line = Line { step: 0.0, bias: low };
                return vec![(line, self.error(line))];
            }
            for shrink in shrinks(self.high, stride) {
                let range = (high - low) * shrink;
                // Cut the range at the top, at both ends, at the bottom.
                for part in [0.0, 0.5, 1.0] {
                    let low = (low + part * (high - low - range)).clamp(bias.0, bias.1);
                    search.start(Line { step: range / self.high, bias: low });
                }
            }
        }
        search.finish()
    }

    /// As [`Problem::search`], but from `line` and others near it: for weights that moved a little since `line` was found.
    pub fn search_near(&self, line: Line, bias: (f32, f32), keep: usize) -> Vec<(Line, f32)> {
        let mut search = Search::new(self, bias, keep);
        search.start(line);
        for factor in [0.91, 0.94, 0.97, 1.03, 1.06, 1.09] {
            let step = line.step * factor;
            // Of an affine grid, the lowest value stays where it is, or the middle, or the highest.
            let parts: &[f32] = if bias.0 == bias.1 { &[0.0] } else { &[0.0, 0.5, 1.0] };
            for part in parts {
                search.start(Line { step, bias: (line.bias + part * self.high * (line.step - step)).clamp(bias.0, bias.1) });
            }
        }
        search.finish()
    }
}

/// The best of many starts, then the local minima they lead to.
struct Search<'p, 'a> {
    problem: &'p Problem<'a>,
    weight: f64,
    bias: (f32, f32),
    keep: usize,
    /// Twice as many as will be kept, best first; of equals, those that came first.
    found: Vec<(Line, f32)>,
}

impl<'p, 'a> Search<'p, 'a> {
    fn new(problem: &'p Problem<'a>, bias: (f32, f32), keep: usize) -> Self {
        Search { problem, weight: problem.weight(), bias, keep, found: Vec::with_capacity(2 * keep) }
    }

    /// Refits a line once and notes the result.
    fn start(&mut self, line: Line) {
        let m = self.problem.moments(line);
        let better = self.problem.refit(line, &m, self.weight, self.bias);
        let error = m.error_after(line, better, self.weight);
        let at = self.found.iter().rposition(|f| f.1.total_cmp(&error).is_le()).map_or(0, |i| i + 1);
        if at < 2 * self.keep {
            self.found.truncate(2 * self.keep - 1);
            self.found.insert(at, (better, error));
        }
    }

    fn finish(self) -> Vec<(Line, f32)> {
        let Search { problem, weight, bias, keep, found } = self;
        let mut best: Vec<(Line, f32)> = Vec::with_capacity(2 * keep);
        for (line, _) in found {
            let (line, error) = problem.descend(line, weight, bias, 6);
            let alike = |o: &(Line, f32)| {
                (o.0.step - line.step).abs() < 1e-3 * line.step.abs() / problem.high
                    && (o.0.bias - line.bias).abs() < 1e-2 * line.step.abs()
            };
            if !best.iter().any(alike) {
                best.push((line, error));
            }
        }
        best.sort_by(|a, b| a.1.total_cmp(&b.1));
        best.truncate(keep);
        best
    }
}

/// Factors on the range of a block to start from: fine around 1, where codes change one by one, and coarse below, for blocks
/// whose largest weights matter little.
fn shrinks(levels: f32, stride: f32) -> impl Iterator<Item = f32> {
    // From 4 steps fewer than there are to 26 more.
    let range = (-4.0 / stride) as i32..=(26.0 / stride) as i32;
    let fine = range.map(move |i| levels / (levels + stride * i as f32)).filter(|f| (0.75..1.4).contains(f));
    let coarse = [0.72, 0.66, 0.6, 0.54, 0.48, 0.42, 0.36, 0.3];
    fine.chain(coarse)
}

/// Makes `x` and `importance` safe to sum: finite weights of moderate size; importance ≥ 0, at most 1, and 1 throughout if none
/// is positive.
pub(super) fn prepare<'a>(x: &[f32], importance: &[f32], xs: &'a mut [f32], ws: &'a mut [f32]) -> (&'a [f32], &'a [f32]) {
    for (xs, &x) in xs.iter_mut().zip(x) {
        *xs = if x.is_nan() { 0.0 } else { x.clamp(-LIMIT, LIMIT) };
    }
    let usable = |w: f32| if w > 0.0 && w.is_finite() { w } else { 0.0 };
    let most = importance.iter().fold(0f32, |most, &w| most.max(usable(w)));
    for (ws, &w) in ws.iter_mut().zip(importance) {
        *ws = if most > 0.0 { usable(w) / most } else { 1.0 };
    }
    (xs, ws)
}

/// Rounds values to the grid of one sub-block, `step · code + offset` with codes from 0: codes and their values.
#[inline]
pub(super) fn round(step: f32, offset: f32, max: u8, x: &[f32], code: &mut [u8], value: &mut [f32]) {
    for ((&x, code), value) in x.iter().zip(code).zip(value) {
        let c = if step == 0.0 { 0.0 } else { nearest_code((x - offset) / step, 0.0, max as f32) };
        *code = c as u8;
        *value = step * c + offset;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem<'a>(x: &'a [f32], w: &'a [f32], low: f32, high: f32) -> Problem<'a> {
        Problem { x, w, low, high }
    }

    #[test]
    fn search_recovers_a_grid_exactly() {
        // Weights that lie on a grid, which need not use its ends.
        let x: Vec<f32> = (0..32).map(|i| 0.25 * ((i * 7) % 14) as f32 - 1.5).collect();
        let found = problem(&x, &[1.0; 32], 0.0, 15.0).search((f32::MIN, f32::MAX), 0.5, 3);
        assert!(found[0].1 < 1e-10, "{found:?}");
        let x: Vec<f32> = (0..32).map(|i| -0.125 * ((i * 5) % 16 - 8) as f32).collect();
        let found = problem(&x, &[1.0; 32], -8.0, 7.0).search((0.0, 0.0), 0.5, 3);
        assert!(found[0].1 < 1e-10 && (found[0].0.step + 0.125).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn importance_decides_what_is_cut_off() {
        // One outlier that matters, or not.
        let mut x: Vec<f32> = (0..32).map(|i| (i as f32 - 15.5) / 15.5).collect();
        x[3] = 30.0;
        for (importance, matters) in [(1.0, true), (1e-6, false)] {
            let mut w = [1.0; 32];
            w[3] = importance;
            let best = problem(&x, &w, 0.0, 15.0).search((f32::MIN, f32::MAX), 0.5, 1)[0].0;
            assert_eq!(best.step * 15.0 + best.bias > 25.0, matters, "{best:?}");
        }
    }

    #[test]
    fn limits_of_the_bias_hold() {
        let x: Vec<f32> = (0..32).map(|i| 1.0 + i as f32 * 0.1).collect();
        for (limits, low) in [((f32::MIN, 0.0), 0.0), ((0.0, f32::MAX), 0.0), ((0.0, 0.0), -8.0)] {
            for (line, error) in problem(&x, &[1.0; 32], low, low + 15.0).search(limits, 0.5, 4) {
                assert!((limits.0..=limits.1).contains(&line.bias) && error.is_finite(), "{line:?}");
            }
        }
    }

    #[test]
    fn moments_predict_the_refit() {
        let x: Vec<f32> = (0..32).map(|i| ((i * i) % 23) as f32 * 0.07 - 0.8).collect();
        let w: Vec<f32> = (0..32).map(|i| 0.1 + (i % 5) as f32).collect();
        let p = problem(&x, &w, 0.0, 15.0);
        let line = Line { step: 0.11, bias: -0.75 };
        let m = p.moments(line);
        let better = p.refit(line, &m, p.weight(), (f32::MIN, f32::MAX));
        assert!((m.error - p.error(line)).abs() < 1e-6);
        let after = m.error_after(line, better, p.weight());
        // Rounding anew can only gain.
        assert!(after < m.error && p.error(better) <= after + 1e-6);
    }

    #[test]
    fn unusable_numbers_are_mended() {
        let (mut x, mut w) = ([0.0; 4], [0.0; 4]);
        let (xs, ws) = prepare(&[f32::NAN, f32::INFINITY, -1.0, 2.0], &[f32::NAN, -1.0, f32::INFINITY, 0.0], &mut x, &mut w);
        assert_eq!((xs, ws), (&[0.0, LIMIT, -1.0, 2.0][..], &[1.0; 4][..]));
    }
}
