//! The searches for scales that ggml's reference encoders share, step by step as ggml does them: every sum is a plain f32 sum
//! in index order, because the bytes depend on it. (`ggml-quants.c`: `make_qx_quants`, `make_q3_quants`, `make_qkx2_quants`,
//! `make_qkx3_quants`, `make_qp_quants`, there in C.) They run on many blocks side by side, one per lane; all slices hold one
//! value per weight of a block. The searches of this project's own fits are in `fit.rs`; nothing ties those to an order.

use crate::simd::{IntLanes, Lanes, MaskLanes, Portable, nearest};

pub(super) use super::block::extreme;

/// Blocks whose largest magnitude is below this count as all zero.
pub(super) const ALL_ZERO: f32 = 1e-15;

/// The longest block that is searched.
const MAX_LEN: usize = 32;

/// [`nearest`] of a single number.
#[inline]
pub(super) fn nearest_one(x: f32) -> i32 {
    let mut int = [0];
    nearest(Portable::<1>::splat(x)).store(&mut int);
    int[0]
}

/// [`extreme`] of each lane.
#[inline(always)]
fn extremes<F: Lanes>(x: &[F]) -> F {
    let (mut found, mut most) = (F::zero(), F::zero());
    for &v in x {
        let larger = v.abs().gt(most);
        most = F::select(larger, v.abs(), most);
        found = F::select(larger, v, found);
    }
    found
}

/// The scales that a search found, and what its codes come from.
#[derive(Clone, Copy)]
pub(super) struct Found<F> {
    /// Step between codes; 0 for blocks that are all zero.
    pub scale: F,
    /// The value of code 0 of an affine grid, ≤ 0.
    pub min: F,
    /// The search's codes are those nearest to `inverse · (x − origin)`.
    pub inverse: F,
    pub origin: F,
}

/// Scale of a symmetric grid `scale · (code − zero)`, codes `0 .. 2·zero`: tries 19 scales around the one that puts the
/// extreme on code 0 and keeps the one whose codes correlate best with `x` under `weights`.
#[inline(always)]
pub(super) fn symmetric<F: Lanes>(x: &[F], weights: &[F], zero: f32) -> Found<F> {
    let max = extremes(x);
    let (low, high) = (F::splat(-zero), F::splat(zero - 1.0));
    let mut wx = [F::zero(); MAX_LEN];
    for ((wx, &x), &w) in wx.iter_mut().zip(x).zip(weights) {
        *wx = w * x;
    }

    let block = Block { x, weights, wx: &wx[..x.len()], low, high };
    let mut best = Best { inverse: F::zero(), scale: F::zero(), score: F::zero() };
    block.consider::<3, false>([0, -9, -8], zero, max, &mut best);
    block.consider::<3, false>([-7, -6, -5], zero, max, &mut best);
    block.consider::<3, false>([-4, -3, -2], zero, max, &mut best);
    block.consider::<3, false>([-1, 1, 2], zero, max, &mut best);
    block.consider::<2, false>([3, 4], zero, max, &mut best);
    block.consider::<3, true>([5, 6, 7], zero, max, &mut best);
    block.consider::<2, true>([8, 9], zero, max, &mut best);
    let Best { mut inverse, scale, .. } = best;
    let empty = max.abs().lt(F::splat(ALL_ZERO));
    // Of an empty block all codes are 0, which no quotient of finite weights gives but this.
    inverse = F::select(empty, F::splat(f32::NAN), inverse);
    Found { scale: F::select(empty, F::zero(), scale), min: F::zero(), inverse, origin: F::zero() }
}

/// The best scale of [`symmetric`] so far.
struct Best<F> {
    inverse: F,
    scale: F,
    score: F,
}

/// What [`symmetric`] searches; `wx` is weight · x.
struct Block<'a, F> {
    x: &'a [F],
    weights: &'a [F],
    wx: &'a [F],
    low: F,
    high: F,
}

impl<F: Lanes> Block<'_, F> {
    /// Tries `K` scales, in order; step 0 is the first of all. Their sums are chains of additions, so that several are made at a
    /// time. `LOW`: quotients may round to less than the lowest level; up to step 4 they are above −`zero` − 1/2.
    #[inline(always)]
    fn consider<const K: usize, const LOW: bool>(&self, steps: [i32; K], zero: f32, max: F, best: &mut Best<F>) {
        let mut trials = [F::zero(); K];
        for (trial, step) in trials.iter_mut().zip(steps) {
            *trial = F::splat(-(zero + 0.1 * step as f32)) / max;
        }
        let (lx, l2) = self.sums::<K, LOW>(trials);
        for k in 0..K {
            if steps[k] == 0 {
                let scale = F::select(l2[k].eq(F::zero()), F::zero(), lx[k] / l2[k]);
                *best = Best { inverse: trials[k], scale, score: scale * lx[k] };
                continue;
            }
            let better = l2[k].gt(F::zero()) & (lx[k] * lx[k]).gt(best.score * l2[k]);
            if better.any() {
                best.inverse = F::select(better, trials[k], best.inverse);
                best.scale = F::select(better, lx[k] / l2[k], best.scale);
                best.score = F::select(better, best.scale * lx[k], best.score);
            }
        }
    }

    /// Σ w x l and Σ w l² for the levels l that each scale gives. A function and not a closure: closures are not compiled for the
    /// registers of the kernel that they are in.
    #[inline(always)]
    fn sums<const K: usize, const LOW: bool>(&self, inverses: [F; K]) -> ([F; K], [F; K]) {
        let (mut lx, mut l2) = ([F::zero(); K], [F::zero(); K]);
        for ((&v, &w), &wx) in self.x.iter().zip(self.weights).zip(self.wx) {
            for k in 0..K {
                // No quotient is larger than `zero` + 0.9.
                let l = (inverses[k] * v).round();
                let l = (if LOW { l.max(self.low) } else { l }).min(self.high);
                lx[k] = lx[k] + wx * l;
                l2[k] = l2[k] + w * l * l;
            }
        }
        (lx, l2)
    }
}

/// The codes that [`symmetric`] chose.
#[inline(always)]
pub(super) fn symmetric_codes<F: Lanes>(found: &Found<F>, x: F, zero: i32) -> F::Int {
    let code = nearest(found.inverse * x).max(F::Int::splat(-zero)).min(F::Int::splat(zero - 1)) + F::Int::splat(zero);
    F::Int::select(found.inverse.eq(found.inverse), code, F::Int::splat(0))
}

/// Sets the codes of one block to those of [`symmetric`], given the inverse that it found.
pub(super) fn keep_symmetric_codes<'a>(inverse: f32, x: &[f32], zero: i32, codes: impl Iterator<Item = &'a mut u8>) {
    type One = Portable<1>;
    let found = Found { scale: One::zero(), min: One::zero(), inverse: One::splat(inverse), origin: One::zero() };
    for (code, &x) in codes.zip(x) {
        let mut lane = [0];
        symmetric_codes(&found, One::splat(x), zero).store(&mut lane);
        *code = lane[0] as u8;
    }
}

/// Scale of the same grid for weights x²: the codes nearest to the largest scale, then up to five rounds of moving single codes
/// where that raises the correlation. Writes the codes, minus `zero`; those of an empty block are `−zero`.
#[inline(always)]
pub(super) fn symmetric_moves<F: Lanes>(x: &[F], zero: f32, levels: &mut [F]) -> F {
    let max = extremes(x);
    let (low, high) = (F::splat(-zero), F::splat(zero - 1.0));
    let inverse = low / max;
    let (mut lx, mut l2) = (F::zero(), F::zero());
    let (mut ws, mut wxs) = ([F::zero(); MAX_LEN], [F::zero(); MAX_LEN]);
    for (((level, &x), w), wx) in levels.iter_mut().zip(x).zip(&mut ws).zip(&mut wxs) {
        let l = (inverse * x).round().max(low).min(high);
        *level = l;
        *w = x * x;
        *wx = *w * x;
        lx = lx + *wx * l;
        l2 = l2 + *w * l * l;
    }
    for _ in 0..5 {
        let mut changed = false;
        for (((level, &x), &w), &wx) in levels.iter_mut().zip(x).zip(&ws).zip(&wxs) {
            let l = *level;
            let other_lx = lx - wx * l;
            let other_l2 = l2 - w * l * l;
            let new = nearest(x * other_l2 / other_lx).max(F::Int::splat(-(zero as i32))).min(F::Int::splat(zero as i32 - 1));
            let new = F::from_int(new);
            let moves = other_lx.gt(F::zero()) & !new.eq(l);
            if moves.any() {
                let other_lx = other_lx + wx * new;
                let other_l2 = other_l2 + w * new * new;
                let better = moves & other_l2.gt(F::zero()) & (other_lx * other_lx * l2).gt(lx * lx * other_l2);
                if better.any() {
                    *level = F::select(better, new, l);
                    lx = F::select(better, other_lx, lx);
                    l2 = F::select(better, other_l2, l2);
                    changed = true;
                }
            }
        }
        if !changed {
            break;
        }
    }
    let empty = max.abs().lt(F::splat(ALL_ZERO));
    // Compilers make masked stores of a selection, and those are slow on some processors.
    if empty.any() {
        for level in levels {
            *level = F::select(empty, low, *level);
        }
    }
    F::select(l2.gt(F::zero()) & !empty, lx / l2, F::zero())
}

/// The shrunken ranges that [`affine`] tries: `steps + 1` of them, with `levels + first + i·stride` steps across the range.
#[derive(Clone, Copy)]
pub(super) struct Ranges {
    pub first: f32,
    pub stride: f32,
    pub steps: i32,
    /// Whether the error is Σ w |x − v| instead of Σ w (x − v)².
    pub absolute: bool,
}

/// Ranges of the encoders with importance.
pub(super) const WEIGHTED: Ranges = Ranges { first: -0.9, stride: 0.05, steps: 36, absolute: false };

/// Scale and minimum of a grid `scale · code + min`, codes `0 ..= levels`, min ≤ 0: for each range, codes, then the weighted
/// least-squares line through them; keeps the one of least weighted error.
#[inline(always)]
pub(super) fn affine<F: Lanes>(x: &[F], weights: &[F], levels: i32, ranges: Ranges) -> Found<F> {
    let (mut min, mut max) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x = sum_w * x[0];
    for (&v, &w) in x.iter().zip(weights).skip(1) {
        min = v.min(min);
        max = v.max(max);
        sum_w = sum_w + w;
        sum_x = sum_x + w * v;
    }
    let least = min;
    min = F::select(min.gt(F::zero()), F::zero(), min);
    let flat = max.le(min);

    let mut codes = [F::zero(); MAX_LEN];
    let codes = &mut codes[..x.len()];
    let mut inverse = F::splat(levels as f32) / (max - min);
    let mut scale = F::splat(1.0) / inverse;
    for (code, &v) in codes.iter_mut().zip(x) {
        *code = F::from_int(affine_code(inverse, min, v, levels));
    }
    let mut best = affine_error(x, weights, codes, scale, min, ranges.absolute);
    let mut origin = min;

    for step in 0..=ranges.steps {
        // `min` is that of the best fit so far, not of the block: so does ggml.
        let trial = F::splat(ranges.first + ranges.stride * step as f32 + levels as f32) / (max - min);
        // Quotients lie between those of the extremes. Where none is so large that `nearest` goes astray, floats do without the
        // detour through integers.
        let limit = F::splat(4e6);
        let tame = (trial * (least - min)).abs().lt(limit) & (trial * (max - min)).abs().lt(limit);
        let (sum_l, sum_l2, sum_xl) = match (tame | flat).all() {
            true => affine_sums::<F, true>(x, weights, trial, min, levels, codes),
            false => affine_sums::<F, false>(x, weights, trial, min, levels, codes),
        };
        let det = sum_w * sum_l2 - sum_l * sum_l;
        let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / det;
        let mut this_min = (sum_l2 * sum_x - sum_l * sum_xl) / det;
        let above = this_min.gt(F::zero());
        if above.any() {
            this_scale = F::select(above, sum_xl / sum_l2, this_scale);
            this_min = F::select(above, F::zero(), this_min);
        }
        let this_error = affine_error(x, weights, codes, this_scale, this_min, ranges.absolute);
        let better = det.gt(F::zero()) & this_error.lt(best);
        best = F::select(better, this_error, best);
        inverse = F::select(better, trial, inverse);
        origin = F::select(better, min, origin);
        scale = F::select(better, this_scale, scale);
        min = F::select(better, this_min, min);
    }
    Found { scale: F::select(flat, F::zero(), scale), min, inverse: F::select(flat, F::zero(), inverse), origin }
}

/// The codes of a trial, Σ w l, Σ w l² and Σ w l x. `TAME`: no quotient is as large as 2²².
#[inline(always)]
fn affine_sums<F: Lanes, const TAME: bool>(
    x: &[F],
    weights: &[F],
    inverse: F,
    origin: F,
    levels: i32,
    codes: &mut [F],
) -> (F, F, F) {
    let (mut sum_l, mut sum_l2, mut sum_xl) = (F::zero(), F::zero(), F::zero());
    for ((code, &v), &w) in codes.iter_mut().zip(x).zip(weights) {
        let l = match TAME {
            true => (inverse * (v - origin)).round().max(F::zero()).min(F::splat(levels as f32)),
            false => F::from_int(affine_code(inverse, origin, v, levels)),
        };
        *code = l;
        let wl = w * l;
        sum_l = sum_l + wl;
        sum_l2 = sum_l2 + wl * l;
        sum_xl = sum_xl + wl * v;
    }
    (sum_l, sum_l2, sum_xl)
}

/// The weighted error of codes on a line.
#[inline(always)]
fn affine_error<F: Lanes>(x: &[F], weights: &[F], codes: &[F], scale: F, min: F, absolute: bool) -> F {
    let mut error = F::zero();
    for ((&v, &w), &l) in x.iter().zip(weights).zip(codes) {
        let diff = scale * l + min - v;
        error = error + w * if absolute { diff.abs() } else { diff * diff };
    }
    error
}

/// The code of [`affine`] for one weight.
#[inline(always)]
pub(super) fn affine_code<F: Lanes>(inverse: F, origin: F, x: F, levels: i32) -> F::Int {
    nearest(inverse * (x - origin)).max(F::Int::splat(0)).min(F::Int::splat(levels))
}

/// Scale of a grid `scale · code`, codes `0 ..= levels`, for `x` that are seldom negative (the scales or minima of a super-block's
/// sub-blocks, magnitudes): nine scales, then up to five rounds of moving single codes where that raises the correlation.
/// ggml keeps codes in bytes, in which those of negative numbers wrap.
#[inline(always)]
pub(super) fn positive<F: Lanes>(x: &[F], weights: &[F], levels: i32, codes: &mut [F::Int]) -> F {
    let mut max = F::zero();
    for &v in x {
        max = max.max(v);
    }
    let limit = F::Int::splat(levels);
    let mut inverse = F::splat(levels as f32) / max;
    let byte = F::Int::splat(255);
    let mut best = positive_error(x, weights, inverse, |code| code & byte);
    for step in (-4..=4).filter(|&s| s != 0) {
        let trial = F::splat(0.1 * step as f32 + levels as f32) / max;
        let this_error = positive_error(x, weights, trial, |code| code.min(limit));
        let better = this_error.lt(best);
        best = F::select(better, this_error, best);
        inverse = F::select(better, trial, inverse);
    }

    let (mut lx, mut l2) = (F::zero(), F::zero());
    for ((code, &v), &w) in codes.iter_mut().zip(x).zip(weights) {
        let level = nearest(inverse * v).min(limit);
        *code = level & byte;
        let l = F::from_int(level);
        lx = lx + w * v * l;
        l2 = l2 + w * l * l;
    }
    for _ in 0..5 {
        let mut changed = false;
        for ((code, &v), &w) in codes.iter_mut().zip(x).zip(weights) {
            let l = F::from_int(*code);
            let other_lx = lx - w * v * l;
            let other_l2 = l2 - w * l * l;
            let new = nearest(v * other_l2 / other_lx).min(limit);
            let moves = other_lx.gt(F::zero()) & other_l2.gt(F::zero()) & !new.eq(*code);
            if !moves.any() {
                continue;
            }
            let n = F::from_int(new);
            let other_lx = other_lx + w * v * n;
            let other_l2 = other_l2 + w * n * n;
            let better = moves & (other_lx * other_lx * l2).gt(lx * lx * other_l2);
            if better.any() {
                *code = F::Int::select(better, new & byte, *code);
                lx = F::select(better, other_lx, lx);
                l2 = F::select(better, other_l2, l2);
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    let empty = max.lt(F::splat(ALL_ZERO));
    if empty.any() {
        for code in codes {
            *code = F::Int::select(empty, F::Int::splat(0), *code);
        }
    }
    F::select(l2.gt(F::zero()) & !empty, lx / l2, F::zero())
}

/// The weighted error of a scale of [`positive`], codes limited by `code`.
#[inline(always)]
fn positive_error<F: Lanes>(x: &[F], weights: &[F], inverse: F, code: impl Fn(F::Int) -> F::Int) -> F {
    let scale = F::splat(1.0) / inverse;
    let mut error = F::zero();
    for (&v, &w) in x.iter().zip(weights) {
        let diff = v - scale * F::from_int(code(nearest(inverse * v)));
        error = error + w * diff * diff;
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    type One = Portable<1>;

    fn value(x: One) -> f32 {
        let mut out = [0.0];
        x.store(&mut out);
        out[0]
    }

    #[test]
    fn degenerate_blocks_give_scale_zero() {
        let all = |x: f32| [One::splat(x); 32];
        let found = symmetric(&all(0.0), &all(1.0), 8.0);
        let mut code = [7];
        symmetric_codes(&found, One::splat(0.0), 8).store(&mut code);
        assert_eq!((value(found.scale), code), (0.0, [0]));
        let found = affine(&all(-0.5), &all(1.0), 15, WEIGHTED);
        assert_eq!((value(found.scale), value(found.min)), (0.0, -0.5));
        let mut codes = [<One as Lanes>::Int::splat(7); 32];
        assert_eq!(value(positive(&all(0.0), &all(1.0), 63, &mut codes)), 0.0);
        codes[31].store(&mut code);
        assert_eq!(code, [0]);
        let mut levels = all(3.0);
        assert_eq!(value(symmetric_moves(&all(0.0), 4.0, &mut levels)), 0.0);
        assert_eq!(value(levels[5]), -4.0);
    }
}
