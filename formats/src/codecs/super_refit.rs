//! Refit of a K-quant super-block's scales with codes fixed, under any quadratic loss.
//!
//! With codes fixed, the values are linear in two coefficients per sub-block, its step d·scale and its minimum dmin·min, so
//! the loss is a quadratic form in at most 16 numbers. It is computed once; least squares for (d, dmin) and the best integers
//! for each sub-block in turn then alternate at no cost to speak of, as long as the loss falls.

use super::float::saturate;
use super::gram::{Pair, dot};
use super::superblock::{INTS, LEN, Layout, Scales};
use crate::codec::{Float, Gram};

/// Rounds of both kinds of moves.
const ROUNDS: usize = 8;

/// Better scales, if there are any. `gradient` is half the loss's gradient at the values that `start` and the codes give.
pub(super) fn refit<L: Layout>(start: Scales<L>, codes: &[u8], gradient: &[f64], gram: Gram<'_>) -> Option<Scales<L>> {
    let mut form = Form::new::<L>(codes, gradient, gram);
    let mut scales = start;
    let mut any = false;
    for _ in 0..ROUNDS {
        let moved = move_super_scales(&mut scales, &mut form);
        if !move_integers(&mut scales, &mut form) && !moved {
            break;
        }
        any = true;
    }
    if !any {
        return None;
    }
    // The form knows nothing of f32's rounding.
    let (before, mut moves) = (values(&start, codes), values(&scales, codes));
    moves.iter_mut().zip(before).for_each(|(after, before)| *after -= before);
    let mut h_moves = [0.0; LEN];
    gram.apply(&moves, 0, &mut h_moves);
    let falls = 2.0 * dot(&moves, gradient) + dot(&moves, &h_moves) < 0.0;
    falls.then_some(scales)
}

/// The values of the codes, as f32 has them.
fn values<L: Layout>(scales: &Scales<L>, codes: &[u8]) -> [f64; LEN] {
    let mut out = [0.0; LEN];
    for (s, (out, codes)) in out.chunks_exact_mut(L::SUB).zip(codes.chunks_exact(L::SUB)).enumerate() {
        let (step, min) = (scales.step(s), scales.min(s));
        for (out, &code) in out.iter_mut().zip(codes) {
            *out = (step * (code as f32 - L::ZERO as f32) - min) as f64;
        }
    }
    out
}

/// A direction in coefficients: changes of all steps, then of all minima.
type Coefficients = [f64; INTS];

/// The loss as a quadratic form in the coefficients.
struct Form {
    curvature: [Coefficients; INTS],
    /// Half the gradient where the scales now stand.
    gradient: Coefficients,
}

impl Form {
    fn new<L: Layout>(codes: &[u8], gradient: &[f64], gram: Gram<'_>) -> Self {
        let mut form = Form { curvature: [[0.0; INTS]; INTS], gradient: [0.0; INTS] };
        // How a sub-block's step moves its values; its minimum moves them all by −1.
        let mut levels = [0f32; LEN];
        levels.iter_mut().zip(codes).for_each(|(level, &c)| *level = c as f32 - L::ZERO as f32);
        let ones = [1f32; LEN];
        let (mut h_levels, mut h_ones) = ([0f32; LEN], [0f32; LEN]);
        for s in 0..Scales::<L>::SUBS {
            let (at, m) = (s * L::SUB, Scales::<L>::SUBS + s);
            let (own, own_gradient) = (&levels[at..][..L::SUB], &gradient[at..][..L::SUB]);
            // The form is symmetric: each sub-block with itself and those after it.
            let h_levels = &mut h_levels[at..];
            gram.apply_levels(own, at, LEN, h_levels);
            form.gradient[s] = own.iter().zip(own_gradient).map(|(&l, g)| l as f64 * g).sum();
            for (k, (h, l)) in h_levels.chunks_exact(L::SUB).zip(levels[at..].chunks_exact(L::SUB)).enumerate() {
                form.set(s, s + k, sum(h, l));
                if Scales::<L>::MINS {
                    form.set(s, m + k, -sum(h, &ones[..L::SUB]));
                }
            }
            if Scales::<L>::MINS {
                let h_ones = &mut h_ones[at..];
                gram.apply_levels(&ones[..L::SUB], at, LEN, h_ones);
                form.gradient[m] = -own_gradient.iter().sum::<f64>();
                for (k, (h, l)) in h_ones.chunks_exact(L::SUB).zip(levels[at..].chunks_exact(L::SUB)).enumerate() {
                    form.set(m, s + k, -sum(h, l));
                    form.set(m, m + k, sum(h, &ones[..L::SUB]));
                }
            }
        }
        form
    }
    fn set(&mut self, k: usize, l: usize, value: f64) {
        self.curvature[k][l] = value;
        self.curvature[l][k] = value;
    }

    fn apply(&self, v: &Coefficients) -> Coefficients {
        self.curvature.map(|row| dot(&row, v))
    }
    /// The form along two directions.
    fn pair(&self, a: &Coefficients, b: &Coefficients) -> Pair {
        Pair::new(a, b, &self.apply(a), &self.apply(b), &self.gradient)
    }
    /// The form along coefficient `k`, scaled by `a`, and coefficient `l`, scaled by `b`.
    fn pair_of(&self, (k, a): (usize, f64), (l, b): (usize, f64)) -> Pair {
        let curvature = [a * a * self.curvature[k][k], a * b * self.curvature[k][l], b * b * self.curvature[l][l]];
        Pair { gradient: [a * self.gradient[k], b * self.gradient[l]], curvature }
    }
    /// Moves coefficients `k` and `l` by `p` and `q`.
    fn step_of(&mut self, (k, p): (usize, f64), (l, q): (usize, f64)) {
        let (along_k, along_l) = (&self.curvature[k], &self.curvature[l]);
        for (gradient, (a, b)) in self.gradient.iter_mut().zip(along_k.iter().zip(along_l)) {
            *gradient += p * a + q * b;
        }
    }
    /// Moves by `p` along `a` and by `q` along `b`.
    fn step(&mut self, (p, a): (f64, &Coefficients), (q, b): (f64, &Coefficients)) {
        let moved = std::array::from_fn(|k| p * a[k] + q * b[k]);
        let changes = self.apply(&moved);
        for (gradient, change) in self.gradient.iter_mut().zip(changes) {
            *gradient += change;
        }
    }
}

/// Σ a b over a sub-block.
fn sum(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| a as f64 * b as f64).sum()
}

/// Moves d and dmin to the best storable values while the integers stand. Returns whether that lowers the loss.
fn move_super_scales<L: Layout>(scales: &mut Scales<L>, form: &mut Form) -> bool {
    let (mut along_d, mut along_dmin) = ([0.0; INTS], [0.0; INTS]);
    for s in 0..Scales::<L>::SUBS {
        let (scale, min) = scales.get(s);
        along_d[s] = scale as f64;
        if Scales::<L>::MINS {
            along_dmin[Scales::<L>::SUBS + s] = min as f64;
        }
    }
    let pair = form.pair(&along_d, &along_dmin);
    let d = saturate(Float::F16, (scales.d as f64 + pair.best().0) as f32);
    let p = d as f64 - scales.d as f64;
    let dmin = saturate(Float::F16, (scales.dmin as f64 + pair.best_q(p)) as f32);
    let q = dmin as f64 - scales.dmin as f64;
    let lower = pair.change(p, q) < 0.0;
    if lower {
        (scales.d, scales.dmin) = (d, dmin);
        form.step((p, &along_d), (q, &along_dmin));
    }
    lower
}

/// Moves each sub-block's integers to their best values while all else stands. Returns whether any moved.
fn move_integers<L: Layout>(scales: &mut Scales<L>, form: &mut Form) -> bool {
    let mut moved = false;
    for s in 0..Scales::<L>::SUBS {
        // Without minima, the second direction is the first with factor 0: it does nothing.
        let (m, dmin) = if Scales::<L>::MINS { (Scales::<L>::SUBS + s, scales.dmin as f64) } else { (s, 0.0) };
        let d = scales.d as f64;
        let pair = form.pair_of((s, d), (m, dmin));

        // For each integer scale near the best, the best integer minimum.
        let (scale, min) = scales.get(s);
        let ideal = pair.best().0;
        let mut found = (0.0, 0.0, 0.0);
        for p in [0.0, ideal.floor(), ideal.ceil(), pair.best_p(0.0).round()] {
            let p = (scale as f64 + p).clamp(L::SCALES.0 as f64, L::SCALES.1 as f64) - scale as f64;
            let q = (min as f64 + pair.best_q(p).round()).clamp(0.0, L::MAX_MIN as f64) - min as f64;
            let change = pair.change(p, q);
            if change < found.0 {
                found = (change, p, q);
            }
        }
        let (change, p, q) = found;
        if change < 0.0 {
            scales.set(s, (scale + p as i16, min + q as i16));
            form.step_of((s, p * d), (m, q * dmin));
            moved = true;
        }
    }
    moved
}
