//! What IQ4_NL and IQ4_XS share: the table of uneven values and ggml's search for a sub-block's scale, on many blocks side by
//! side. Every sum is in index order, because the bytes depend on it (`quantize_row_iq4_nl_impl` in `ggml-quants.c`).

use super::search::ALL_ZERO;
use super::side_by_side::Group;
use super::tabled::SUB;
use crate::simd::{IntLanes, Kernel, Lanes, MaskLanes, dispatch};

/// The values of the codes.
pub(super) const VALUES: [f32; 16] =
    [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];

/// Middles between neighbouring values. Above the last value there is none.
const MIDDLES: [f32; 16] = {
    let mut middles = [f32::INFINITY; 16];
    let mut i = 0;
    while i < 15 {
        middles[i] = (VALUES[i] + VALUES[i + 1]) / 2.0;
        i += 1;
    }
    middles
};

/// What lies between neighbouring values.
const GAPS: [f32; 15] = {
    let mut gaps = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        gaps[i] = VALUES[i + 1] - VALUES[i];
        i += 1;
    }
    gaps
};

/// [`VALUES`] from the second on; the last once more.
const NEXT: [f32; 16] = {
    let mut next = [VALUES[15]; 16];
    let mut i = 0;
    while i < 15 {
        next[i] = VALUES[i + 1];
        i += 1;
    }
    next
};

/// Scales are tried that put the extreme up to this far from the lowest value: this many on either side.
const TRIES: usize = 7;
const TRIALS: usize = 2 * TRIES + 1;
/// Trials that are summed together: as many as have room in registers.
const TOGETHER: usize = 5;

/// The code of the value nearest to `x`.
pub(super) fn nearest(x: f32) -> u8 {
    15 - MIDDLES[..15].iter().filter(|&&m| x < m).count() as u8
}

/// The values, before scaling, of the codes nearest to weights, whose number lanes divide.
pub(super) fn entries(step: f32, x: &[f32], entries: &mut [f32]) {
    if step == 0.0 || step.is_nan() {
        return entries.fill(VALUES[nearest(0.0) as usize]);
    }
    dispatch(Entries { step, x, entries });
}

struct Entries<'a> {
    step: f32,
    x: &'a [f32],
    entries: &'a mut [f32],
}

impl Kernel for Entries<'_> {
    type Output = ();

    #[inline(always)]
    fn run<F: Lanes>(self) {
        let step = F::splat(self.step);
        for (x, entries) in self.x.chunks_exact(F::N).zip(self.entries.chunks_exact_mut(F::N)) {
            let quotient = F::load(x) / step;
            // The gaps below it, which are whole numbers, add up exactly.
            let mut entry = F::splat(VALUES[0]);
            for (middle, gap) in MIDDLES.iter().zip(GAPS) {
                entry = entry + F::select(quotient.lt(F::splat(*middle)), F::zero(), F::splat(gap));
            }
            entry.store(entries);
        }
    }
}

/// The same in lanes. ggml compares the distances to two neighbouring values and takes the upper if they are equal. Near the middle
/// both differences are exact in f32, so that comparing with the middle decides alike; NaN gets the last code.
#[inline(always)]
fn nearest_lanes<F: Lanes>(x: F) -> F::Int {
    let [m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11, m12, m13, m14, _] = MIDDLES;
    let either = F::select;
    let pick = |mask: F::Mask, a: f32, b: f32| F::select(mask, F::splat(a), F::splat(b));
    // A binary search; each step chooses the middle to compare with by the outcomes so far.
    let a = x.lt(F::splat(m7));
    let b = x.lt(pick(a, m3, m11));
    let c = x.lt(either(a, pick(b, m1, m5), pick(b, m9, m13)));
    let low = either(b, pick(c, m0, m2), pick(c, m4, m6));
    let high = either(b, pick(c, m8, m10), pick(c, m12, m14));
    let d = x.lt(either(a, low, high));
    let bit = |mask: F::Mask, bit: i32| F::Int::select(mask, F::Int::splat(0), F::Int::splat(bit));
    (bit(a, 8) | bit(b, 4)) | (bit(c, 2) | bit(d, 1))
}

/// Twice the mean square of each lane's weights.
#[inline(always)]
pub(super) fn sigma2<F: Lanes>(x: &[F]) -> F {
    let mut sum = F::zero();
    for &x in x {
        sum = sum + x * x;
    }
    sum * F::splat(2.0 / x.len() as f32)
}

/// ggml's scales of the sub-blocks at `at` of a group's blocks, whose weights there are `x`.
#[inline(always)]
pub(super) fn scales<F: Lanes>(group: &Group<'_>, at: usize, x: &[F], sigma2: F) -> F {
    let mut w = [F::zero(); SUB];
    match &group.importance {
        Some(importance) => {
            Group::importance(importance, at, &mut w);
            for (w, &x) in w.iter_mut().zip(x) {
                *w = *w * (sigma2 + x * x).sqrt();
            }
        }
        None => w.iter_mut().zip(x).for_each(|(w, &x)| *w = x * x),
    }
    let (mut most, mut max) = (F::zero(), F::zero());
    for &x in x {
        let larger = x.abs().gt(most);
        most = F::select(larger, x.abs(), most);
        max = F::select(larger, x, max);
    }

    // The extreme on the lowest value, with the other sign.
    let inverse = F::splat(1.0) / ((F::zero() - max) / F::splat(VALUES[0]));
    let (mut qx, mut q2) = (F::zero(), F::zero());
    for (&x, &w) in x.iter().zip(&w) {
        let q = F::gather(&VALUES, nearest_lanes(inverse * x));
        qx = qx + w * q * x;
        q2 = q2 + w * q * q;
    }
    let mut scale = F::select(q2.gt(F::zero()), qx / q2, F::zero());
    let mut best = scale * qx;
    let (qx, q2) = trials(x, &w, max);
    for (&qx, &q2) in qx.iter().zip(&q2) {
        let better = q2.gt(F::zero()) & (qx * qx).gt(best * q2);
        if better.any() {
            scale = F::select(better, qx / q2, scale);
            best = F::select(better, scale * qx, best);
        }
    }
    F::select(most.lt(F::splat(ALL_ZERO)), F::zero(), scale)
}

/// Σ w q x and Σ w q² of all trials. The trials' factors differ by less than neighbouring middles of one sign do (134/120 against
/// 115.5/93.5), so that in all of them a weight has one of two neighbouring codes: which, one comparison tells.
#[inline(always)]
fn trials<F: Lanes>(x: &[F], w: &[F; SUB], max: F) -> ([F; TRIALS], [F; TRIALS]) {
    let mut inverses = [F::zero(); TRIALS];
    for (t, inverse) in inverses.iter_mut().enumerate() {
        *inverse = F::splat(t as f32 - TRIES as f32 + VALUES[0]) / max;
    }
    let mut middle = [F::zero(); SUB];
    let (mut qx_below, mut qx_above) = ([F::zero(); SUB], [F::zero(); SUB]);
    let (mut q2_below, mut q2_above) = ([F::zero(); SUB], [F::zero(); SUB]);
    for (j, (&x, &w)) in x.iter().zip(w).enumerate() {
        let code = nearest_lanes(inverses[0] * x).min(nearest_lanes(inverses[TRIALS - 1] * x));
        middle[j] = F::gather(&MIDDLES, code);
        let (below, above) = (F::gather(&VALUES, code), F::gather(&NEXT, code));
        (qx_below[j], qx_above[j]) = (w * below * x, w * above * x);
        (q2_below[j], q2_above[j]) = (w * below * below, w * above * above);
    }
    let (mut qx, mut q2) = ([F::zero(); TRIALS], [F::zero(); TRIALS]);
    let sums = qx.as_chunks_mut::<TOGETHER>().0.iter_mut().zip(q2.as_chunks_mut::<TOGETHER>().0);
    for ((qx, q2), inverses) in sums.zip(inverses.as_chunks::<TOGETHER>().0) {
        let (mut sum_qx, mut sum_q2) = ([F::zero(); TOGETHER], [F::zero(); TOGETHER]);
        for j in 0..SUB {
            for t in 0..TOGETHER {
                let below = (inverses[t] * x[j]).lt(middle[j]);
                sum_qx[t] = sum_qx[t] + F::select(below, qx_below[j], qx_above[j]);
                sum_q2[t] = sum_q2[t] + F::select(below, q2_below[j], q2_above[j]);
            }
        }
        (*qx, *q2) = (sum_qx, sum_q2);
    }
    (qx, q2)
}

/// Writes the codes of a sub-block at a scale: byte j holds code j (low half) and code j + 16 (high half). At scale 0 all are that
/// of the value nearest to zero. Lanes are weights here.
#[inline(always)]
pub(super) fn write_codes<F: Lanes>(x: &[f32], scale: f32, out: &mut [u8]) {
    let inverse = F::splat(if scale != 0.0 { 1.0 / scale } else { 0.0 });
    let (low, high) = x.split_at(SUB / 2);
    let mut bytes = [0i32; SUB / 2];
    for ((low, high), bytes) in low.chunks_exact(F::N).zip(high.chunks_exact(F::N)).zip(bytes.chunks_exact_mut(F::N)) {
        let (low, high) = (nearest_lanes(inverse * F::load(low)), nearest_lanes(inverse * F::load(high)));
        (low | high.shl::<4>()).store(bytes);
    }
    for (out, byte) in out.iter_mut().zip(bytes) {
        *out = byte as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Portable;

    #[test]
    fn entries_are_the_values_of_nearest_codes() {
        let x: Vec<f32> = (0..SUB).map(|i| (i as f32 - 15.0) * 9.25).collect();
        for step in [1.0, -0.5, 3.0, 1e-45, 0.0, f32::NAN] {
            let mut found = [0f32; SUB];
            entries(step, &x, &mut found);
            for (x, found) in x.iter().zip(found) {
                let quotient = if step == 0.0 || step.is_nan() { 0.0 } else { x / step };
                assert_eq!(found, VALUES[nearest(if quotient.is_nan() { 0.0 } else { quotient }) as usize], "{x} / {step}");
            }
        }
    }

    #[test]
    fn nearest_agrees_with_distances() {
        let mut x = -130.0f32;
        while x < 120.0 {
            for x in [x.next_down(), x, x.next_up()] {
                // The upper of two equally near.
                let want = (0..16).rev().min_by(|&a, &b| (x - VALUES[a]).abs().total_cmp(&(x - VALUES[b]).abs())).unwrap();
                let mut lane = [0];
                nearest_lanes(Portable::<1>::splat(x)).store(&mut lane);
                assert_eq!((nearest(x) as usize, lane[0] as usize), (want, want), "{x}");
            }
            x += 0.25;
        }
        assert_eq!(nearest(f32::NAN), 15);
    }

    #[test]
    fn no_trial_needs_a_third_code() {
        let most = (VALUES[0] - TRIES as f32) / (VALUES[0] + TRIES as f32);
        for m in MIDDLES[..15].windows(2).filter(|m| m[0] * m[1] > 0.0) {
            let ratio = m[0] / m[1];
            assert!(ratio.max(1.0 / ratio) > most * 1.0001, "{m:?}");
        }
    }
}
