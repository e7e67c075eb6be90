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

/// Better scales, if there are any.
pub(super) fn refit<L: Layout>(start: Scales<L>, codes: &[u8], target: &[f32], gram: Gram<'_>) -> Option<Scales<L>> {
    let error = errors(&start, codes, target);
    let h_error = gram.apply(&error, 0, LEN);
    let mut form = Form::new::<L>(codes, &h_error, gram);
    let mut scales = start;
    for _ in 0..ROUNDS {
        let moved = move_super_scales(&mut scales, &mut form);
        if !move_integers(&mut scales, &mut form) && !moved {
            break;
        }
    }
    // The form knows nothing of f32's rounding.
    let after = errors(&scales, codes, target);
    let falls = dot(&after, &gram.apply(&after, 0, LEN)) < dot(&error, &h_error);
    falls.then_some(scales)
}

fn errors<L: Layout>(scales: &Scales<L>, codes: &[u8], target: &[f32]) -> Vec<f64> {
    let mut out = Vec::with_capacity(LEN);
    for s in 0..Scales::<L>::SUBS {
        let (step, min) = (scales.step(s), scales.min(s));
        for (&code, &t) in codes[s * L::SUB..][..L::SUB].iter().zip(&target[s * L::SUB..]) {
            out.push((step * (code as f32 - L::ZERO as f32) - min) as f64 - t as f64);
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
    fn new<L: Layout>(codes: &[u8], h_error: &[f64], gram: Gram<'_>) -> Self {
        let mut form = Form { curvature: [[0.0; INTS]; INTS], gradient: [0.0; INTS] };
        let levels: Vec<f64> = codes.iter().map(|&c| c as f64 - L::ZERO as f64).collect();
        let ones = [-1.0; LEN];
        let count = if Scales::<L>::MINS { 2 * Scales::<L>::SUBS } else { Scales::<L>::SUBS };
        // How coefficient k moves the values: only those of its sub-block.
        let along = |k: usize| {
            let at = k % Scales::<L>::SUBS * L::SUB;
            (at, if k < Scales::<L>::SUBS { &levels[at..][..L::SUB] } else { &ones[..L::SUB] })
        };
        for k in 0..count {
            let (at, values) = along(k);
            let h = gram.apply(values, at, LEN);
            form.gradient[k] = dot(values, &h_error[at..][..L::SUB]);
            for l in 0..count {
                let (at, values) = along(l);
                form.curvature[k][l] = dot(values, &h[at..][..L::SUB]);
            }
        }
        form
    }

    fn apply(&self, v: &Coefficients) -> Coefficients {
        self.curvature.map(|row| dot(&row, v))
    }
    /// The form along two directions.
    fn pair(&self, a: &Coefficients, b: &Coefficients) -> Pair {
        Pair::new(a, b, &self.apply(a), &self.apply(b), &self.gradient)
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
        let (mut along_scale, mut along_min) = ([0.0; INTS], [0.0; INTS]);
        along_scale[s] = scales.d as f64;
        if Scales::<L>::MINS {
            along_min[Scales::<L>::SUBS + s] = scales.dmin as f64;
        }
        let pair = form.pair(&along_scale, &along_min);

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
            form.step((p, &along_scale), (q, &along_min));
            moved = true;
        }
    }
    moved
}
