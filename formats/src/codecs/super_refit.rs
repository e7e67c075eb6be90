//! Refit of a K-quant super-block's scales with codes fixed, under any quadratic loss: alternates least squares for (d, dmin)
//! with moves of single integers, each the best for its sub-block, as long as the loss falls.

use super::float::saturate;
use super::gram::{Pair, dot};
use super::superblock::{LEN, Layout, Scales};
use crate::codec::{Float, Gram};

/// Rounds of both kinds of moves.
const ROUNDS: usize = 3;

/// Better scales, if there are any.
pub(super) fn refit<L: Layout>(start: Scales<L>, codes: &[u8], target: &[f32], gram: Gram<'_>) -> Option<Scales<L>> {
    let loss = |scales: &Scales<L>| {
        let error = errors(scales, codes, target);
        let he = gram.apply(&error, 0, LEN);
        (dot(&error, &he), he)
    };
    let (before, mut he) = loss(&start);
    let (mut best, mut least) = (start, before);
    for _ in 0..ROUNDS {
        let mut trial = best;
        move_super_scales(&mut trial, codes, &he, gram);
        let (after, after_he) = loss(&trial);
        if after < least {
            (best, least, he) = (trial, after, after_he);
        }
        let mut trial = best;
        if !move_integers(&mut trial, codes, he.clone(), gram) {
            break;
        }
        let (after, after_he) = loss(&trial);
        if after < least {
            (best, least, he) = (trial, after, after_he);
        } else {
            break;
        }
    }
    (least < before).then_some(best)
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

/// The best storable d and dmin for the gradient `he` of the current ones.
fn move_super_scales<L: Layout>(scales: &mut Scales<L>, codes: &[u8], he: &[f64], gram: Gram<'_>) {
    let (mut along_d, mut along_dmin) = (vec![0f64; LEN], vec![0f64; LEN]);
    for (i, &code) in codes.iter().enumerate() {
        let s = i / L::SUB;
        along_d[i] = scales.ints[s] as f64 * (code as f64 - L::ZERO as f64);
        if Scales::<L>::MINS {
            along_dmin[i] = -(scales.ints[Scales::<L>::SUBS + s] as f64);
        }
    }
    let h_d = gram.apply(&along_d, 0, LEN);
    let h_dmin = if Scales::<L>::MINS { gram.apply(&along_dmin, 0, LEN) } else { vec![0.0; LEN] };
    let pair = Pair::new(&along_d, &along_dmin, &h_d, &h_dmin, he);
    let d = saturate(Float::F16, (scales.d as f64 + pair.best().0) as f32);
    let moved = d as f64 - scales.d as f64;
    let dmin = saturate(Float::F16, (scales.dmin as f64 + pair.best_q(moved)) as f32);
    (scales.d, scales.dmin) = (d, dmin);
}

/// Moves each integer to its best value while all else stands; `he` follows. Returns whether any moved.
fn move_integers<L: Layout>(scales: &mut Scales<L>, codes: &[u8], mut he: Vec<f64>, gram: Gram<'_>) -> bool {
    let mut moved = false;
    for s in 0..Scales::<L>::SUBS {
        let at = s * L::SUB;
        let along_scale: Vec<f64> =
            codes[at..][..L::SUB].iter().map(|&c| scales.d as f64 * (c as f64 - L::ZERO as f64)).collect();
        let along_min = vec![-scales.dmin as f64; L::SUB];
        let axes = [(s, &along_scale, L::SCALES), (Scales::<L>::SUBS + s, &along_min, (0, L::MAX_MIN))];
        for (int, along, (low, high)) in axes.into_iter().take(if Scales::<L>::MINS { 2 } else { 1 }) {
            let h = gram.apply(along, at, LEN);
            let curvature = dot(along, &h[at..][..L::SUB]);
            let gradient = dot(along, &he[at..][..L::SUB]);
            if curvature <= 0.0 {
                continue;
            }
            let old = scales.ints[int];
            let new = (old as f64 - gradient / curvature).round().clamp(low as f64, high as f64) as i16;
            let by = (new - old) as f64;
            if by != 0.0 && 2.0 * by * gradient + by * by * curvature < 0.0 {
                scales.ints[int] = new;
                for (he, h) in he.iter_mut().zip(&h) {
                    *he += by * h;
                }
                moved = true;
            }
        }
    }
    moved
}
