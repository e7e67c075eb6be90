//! Refit of the scales of a super-block with an eight-wide codebook, codes fixed, under any quadratic loss.
//!
//! With codes fixed the values are linear in the sub-blocks' steps, so that the loss is a quadratic form in at most 16 numbers. Least
//! squares for the super-block's scale and the best integer for each sub-block in turn alternate on it as long as the loss falls.

use super::book8::{LEN, SCALES, Scales};
use super::float::saturate;
use super::gram::dot;
use crate::codec::{Float, Gram};

/// Rounds of both kinds of moves.
const ROUNDS: usize = 8;

/// The loss as a quadratic form in the steps.
struct Form {
    curvature: [[f64; SCALES]; SCALES],
    /// Half the gradient where the steps now stand.
    gradient: [f64; SCALES],
}

impl Form {
    fn new(levels: &[f64; LEN], sub: usize, gradient: &[f64], gram: Gram<'_>) -> Self {
        let mut form = Form { curvature: [[0.0; SCALES]; SCALES], gradient: [0.0; SCALES] };
        let mut h_levels = [0.0; LEN];
        for s in 0..LEN / sub {
            let own = &levels[s * sub..][..sub];
            gram.apply(own, s * sub, &mut h_levels);
            form.gradient[s] = dot(own, &gradient[s * sub..][..sub]);
            for (entry, (h, l)) in form.curvature[s].iter_mut().zip(h_levels.chunks_exact(sub).zip(levels.chunks_exact(sub))) {
                *entry = dot(h, l);
            }
        }
        form
    }
    /// Takes the steps along `direction` if the loss falls.
    fn take(&mut self, direction: &[f64; SCALES]) -> bool {
        let (mut slope, mut curvature) = (0.0, 0.0);
        let mut moved = [0.0; SCALES];
        for (row, (moved, (g, d))) in self.curvature.iter().zip(moved.iter_mut().zip(self.gradient.iter().zip(direction))) {
            *moved = dot(row, direction);
            slope += g * d;
            curvature += *moved * d;
        }
        let falls = 2.0 * slope + curvature < 0.0;
        if falls {
            self.gradient.iter_mut().zip(moved).for_each(|(g, m)| *g += m);
        }
        falls
    }
    /// How far along `direction` the loss is least.
    fn least(&self, direction: &[f64; SCALES]) -> f64 {
        let curvature: f64 = self.curvature.iter().zip(direction).map(|(row, d)| dot(row, direction) * d).sum();
        if curvature > 0.0 { -dot(&self.gradient, direction) / curvature } else { 0.0 }
    }
}

/// Better scales, if there are any. `gradient` is half the loss's gradient at the values that `start` and the codes give.
pub(super) fn refit(start: Scales, codes: &[u8], gradient: &[f64], gram: Gram<'_>) -> Option<Scales> {
    let mut levels = [0.0; LEN];
    levels.iter_mut().zip(codes).for_each(|(level, &c)| *level = f64::from(start.shape.relative()[c as usize]));
    let mut form = Form::new(&levels, start.shape.sub, gradient, gram);
    let mut scales = start;
    let mut any = false;
    for _ in 0..ROUNDS {
        let moved = move_scale(&mut scales, &mut form);
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
    (2.0 * dot(&moves, gradient) + dot(&moves, &h_moves) < 0.0).then_some(scales)
}

/// The values of the codes, as f32 has them.
fn values(scales: &Scales, codes: &[u8]) -> [f64; LEN] {
    std::array::from_fn(|i| f64::from(scales.step(i / scales.shape.sub) * scales.shape.relative()[codes[i] as usize]))
}

/// Least squares for the super-block's scale.
fn move_scale(scales: &mut Scales, form: &mut Form) -> bool {
    let mut direction = [0.0; SCALES];
    for (d, &int) in direction.iter_mut().zip(&scales.ints).take(scales.shape.subs()) {
        *d = f64::from(scales.shape.step(1.0, int));
    }
    let d = saturate(Float::F16, (f64::from(scales.d) + form.least(&direction)) as f32);
    let by = f64::from(d) - f64::from(scales.d);
    let moves = by != 0.0 && form.take(&direction.map(|x| x * by));
    if moves {
        scales.d = d;
    }
    moves
}

/// The best integer for each sub-block in turn.
fn move_integers(scales: &mut Scales, form: &mut Form) -> bool {
    let unit = f64::from(scales.shape.step(scales.d, 0));
    let mut any = false;
    for s in 0..scales.shape.subs() {
        let mut direction = [0.0; SCALES];
        direction[s] = 1.0;
        let now = f64::from(scales.step(s));
        let best = ((now + form.least(&direction)) / unit - 1.0) * 0.5;
        let int = best.round().clamp(0.0, f64::from(scales.shape.max_scale())) as u8;
        direction[s] = f64::from(scales.shape.step(scales.d, int)) - now;
        if int != scales.ints[s] && form.take(&direction) {
            scales.ints[s] = int;
            any = true;
        }
    }
    any
}
