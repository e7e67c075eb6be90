//! The searches for scales that ggml's reference encoders share, step by step as ggml does them: every sum is a plain f32 sum
//! in index order, because the bytes depend on it. (`ggml-quants.c`: `make_qx_quants`, `make_qkx2_quants`, `make_qkx3_quants`,
//! `make_qp_quants`, there in C.) The searches of this project's own fits are in `fit.rs`; nothing ties those to an order.

pub(super) use super::block::extreme;

/// Blocks whose largest magnitude is below this count as all zero.
pub(super) const ALL_ZERO: f32 = 1e-15;

/// 1.5 · 2²³: adding it leaves the rounded integer in the low bits of the mantissa.
const MAGIC: f32 = 12_582_912.0;

/// The nearest integer, ties to even, for |x| < 2²². Beyond that the result is an arbitrary integer, the same as ggml's.
pub(super) fn nearest(x: f32) -> i32 {
    ((x + MAGIC).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// Scale of a symmetric grid `scale · (code − zero)`, codes `0 .. 2·zero`: tries 19 scales around the one that puts the
/// extreme on code 0 and keeps the one whose codes correlate best with `x` under `weights`.
pub(super) fn symmetric(x: &[f32], weights: &[f32], zero: i32, codes: &mut [u8]) -> f32 {
    let max = extreme(x);
    if max.abs() < ALL_ZERO {
        codes.fill(0);
        return 0.0;
    }
    let level = |inverse: f32, v: f32| nearest(inverse * v).clamp(-zero, zero - 1);
    let assign = |inverse: f32, codes: &mut [u8]| {
        for (code, &v) in codes.iter_mut().zip(x) {
            *code = (level(inverse, v) + zero) as u8;
        }
    };
    let sums = |inverse: f32| {
        let (mut lx, mut l2) = (0f32, 0f32);
        for (&v, &w) in x.iter().zip(weights) {
            let l = level(inverse, v) as f32;
            lx += w * v * l;
            l2 += w * l * l;
        }
        (lx, l2)
    };

    let inverse = -zero as f32 / max;
    assign(inverse, codes);
    let (lx, l2) = sums(inverse);
    let mut scale = if l2 != 0.0 { lx / l2 } else { 0.0 };
    let mut best = scale * lx;
    for step in (-9..=9).filter(|&s| s != 0) {
        let inverse = -(zero as f32 + 0.1 * step as f32) / max;
        let (lx, l2) = sums(inverse);
        if l2 > 0.0 && lx * lx > best * l2 {
            assign(inverse, codes);
            scale = lx / l2;
            best = scale * lx;
        }
    }
    scale
}

/// The shrunken ranges that [`affine`] tries: `steps + 1` of them, with `levels + first + i·stride` steps across the range.
#[derive(Clone, Copy)]
pub(super) struct Ranges {
    pub first: f32,
    pub stride: f32,
    pub steps: i32,
    /// Whether quotients are limited to the codes' range before rounding (`make_qkx3_quants`) or after (`make_qkx2_quants`):
    /// it matters where the quotient is too large for [`nearest`].
    pub limit_first: bool,
}

/// Ranges of the encoders with importance.
pub(super) const WEIGHTED: Ranges = Ranges { first: -0.9, stride: 0.05, steps: 36, limit_first: true };

/// Scale and minimum of a grid `scale · code − minimum`, codes `0 ..= levels`, minimum ≥ 0: for each range, codes, then the
/// weighted least-squares line through them; keeps the one of least weighted error. Returns (scale, minimum).
pub(super) fn affine(x: &[f32], weights: &[f32], levels: i32, ranges: Ranges, codes: &mut [u8]) -> (f32, f32) {
    let (mut min, mut max) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x = sum_w * x[0];
    for (&v, &w) in x.iter().zip(weights).skip(1) {
        if v < min {
            min = v;
        }
        if v > max {
            max = v;
        }
        sum_w += w;
        sum_x += w * v;
    }
    if min > 0.0 {
        min = 0.0;
    }
    if max <= min {
        codes.fill(0);
        return (0.0, -min);
    }

    let error = |codes: &[u8], scale: f32, min: f32| {
        let mut error = 0f32;
        for ((&v, &w), &l) in x.iter().zip(weights).zip(codes) {
            let diff = scale * l as f32 + min - v;
            error += w * (diff * diff);
        }
        error
    };
    let inverse = levels as f32 / (max - min);
    let mut scale = 1.0 / inverse;
    for (code, &v) in codes.iter_mut().zip(x) {
        *code = nearest(inverse * (v - min)).clamp(0, levels) as u8;
    }
    let mut best = error(codes, scale, min);

    let mut trial = [0u8; 32];
    let trial = &mut trial[..x.len()];
    for step in 0..=ranges.steps {
        // `min` is that of the best fit so far, not of the block: so does ggml.
        let inverse = (ranges.first + ranges.stride * step as f32 + levels as f32) / (max - min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0f32, 0f32, 0f32);
        for ((code, &v), &w) in trial.iter_mut().zip(x).zip(weights) {
            let t = inverse * (v - min);
            let l = if !ranges.limit_first {
                nearest(t).clamp(0, levels)
            } else if t > 0.0 {
                nearest(if t < levels as f32 { t } else { levels as f32 })
            } else {
                0
            };
            *code = l as u8;
            let l = l as f32;
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * v;
        }
        let det = sum_w * sum_l2 - sum_l * sum_l;
        if det > 0.0 {
            let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / det;
            let mut this_min = (sum_l2 * sum_x - sum_l * sum_xl) / det;
            if this_min > 0.0 {
                this_min = 0.0;
                this_scale = sum_xl / sum_l2;
            }
            let this_error = error(trial, this_scale, this_min);
            if this_error < best {
                codes.copy_from_slice(trial);
                best = this_error;
                scale = this_scale;
                min = this_min;
            }
        }
    }
    (scale, -min)
}

/// Scale of a grid `scale · code`, codes `0 ..= levels`, for non-negative `x` (the scales or minima of a super-block's
/// sub-blocks): nine scales, then up to five rounds of moving single codes where that raises the correlation.
pub(super) fn positive(x: &[f32], weights: &[f32], levels: i32, codes: &mut [u8]) -> f32 {
    let mut max = 0f32;
    for &v in x {
        if v > max {
            max = v;
        }
    }
    if max < ALL_ZERO {
        codes.fill(0);
        return 0.0;
    }
    let error = |inverse: f32, limit: i32| {
        let scale = 1.0 / inverse;
        let mut error = 0f32;
        for (&v, &w) in x.iter().zip(weights) {
            let diff = v - scale * nearest(inverse * v).min(limit) as f32;
            error += w * diff * diff;
        }
        error
    };
    let mut inverse = levels as f32 / max;
    let mut best = error(inverse, i32::MAX);
    for step in (-4..=4).filter(|&s| s != 0) {
        let this_inverse = (0.1 * step as f32 + levels as f32) / max;
        let this_error = error(this_inverse, levels);
        if this_error < best {
            best = this_error;
            inverse = this_inverse;
        }
    }

    let (mut lx, mut l2) = (0f32, 0f32);
    for ((code, &v), &w) in codes.iter_mut().zip(x).zip(weights) {
        let l = nearest(inverse * v).min(levels);
        *code = l as u8;
        lx += w * v * l as f32;
        l2 += w * l as f32 * l as f32;
    }
    for _ in 0..5 {
        let mut changed = false;
        for ((code, &v), &w) in codes.iter_mut().zip(x).zip(weights) {
            let l = *code as f32;
            let mut other_lx = lx - w * v * l;
            let mut other_l2 = l2 - w * l * l;
            if other_lx > 0.0 && other_l2 > 0.0 {
                let new = nearest(v * other_l2 / other_lx).min(levels);
                if new != *code as i32 {
                    other_lx += w * v * new as f32;
                    other_l2 += w * new as f32 * new as f32;
                    if other_lx * other_lx * l2 > lx * lx * other_l2 {
                        *code = new as u8;
                        (lx, l2) = (other_lx, other_l2);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    if l2 > 0.0 { lx / l2 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_rounds_ties_to_even() {
        for (x, want) in
            [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (-2.5, -2), (2.4999, 2), (-7.51, -8), (4_000_000.4, 4_000_000)]
        {
            assert_eq!(nearest(x), want, "{x}");
        }
    }

    #[test]
    fn degenerate_blocks_give_scale_zero() {
        let mut codes = [7u8; 32];
        assert_eq!(symmetric(&[0.0; 32], &[1.0; 32], 8, &mut codes), 0.0);
        assert_eq!(affine(&[-0.5; 32], &[1.0; 32], 15, WEIGHTED, &mut codes), (0.0, 0.5));
        assert_eq!(positive(&[0.0; 8], &[1.0; 8], 63, &mut codes[..8]), 0.0);
        assert_eq!(codes, [0u8; 32]);
    }
}
