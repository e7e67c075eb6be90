//! What IQ4_NL and IQ4_XS share: the table of uneven values and ggml's search for a sub-block's scale.

use super::search::{ALL_ZERO, extreme};

/// Weights per scale.
pub(super) const SUB: usize = 32;

/// The values of the codes.
pub(super) const VALUES: [f32; 16] =
    [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];

/// Scales are tried that put the extreme up to this far from the lowest value.
const TRIES: i32 = 7;

/// The code of the value nearest to `x`, the upper of two equally near. Differences near the middle between two values are
/// exact in f32, so that comparing with the middle decides as ggml's comparison of distances does; NaN gets the last code.
pub(super) fn nearest(x: f32) -> u8 {
    15 - VALUES.windows(2).filter(|v| x < (v[0] + v[1]) / 2.0).count() as u8
}

/// Weights of a sub-block's squared errors: importance · √(σ² + x²), or x² without importance.
fn weights(x: &[f32], sigma2: f32, importance: Option<&[f32]>) -> [f32; SUB] {
    match importance {
        Some(q) => std::array::from_fn(|i| q[i] * (sigma2 + x[i] * x[i]).sqrt()),
        None => std::array::from_fn(|i| x[i] * x[i]),
    }
}

/// ggml's scale of a sub-block.
pub(super) fn scale(x: &[f32], sigma2: f32, importance: Option<&[f32]>) -> f32 {
    let weights = weights(x, sigma2, importance);
    let max = extreme(x);
    if max.abs() < ALL_ZERO {
        return 0.0;
    }
    let sums = |inverse: f32| {
        let (mut qx, mut q2) = (0f32, 0f32);
        for (&x, &w) in x.iter().zip(&weights) {
            let q = VALUES[nearest(inverse * x) as usize];
            qx += w * q * x;
            q2 += w * q * q;
        }
        (qx, q2)
    };
    let (qx, q2) = sums(1.0 / (-max / VALUES[0]));
    let mut scale = if q2 > 0.0 { qx / q2 } else { 0.0 };
    let mut best = scale * qx;
    for step in -TRIES..=TRIES {
        let (qx, q2) = sums((step as f32 + VALUES[0]) / max);
        if q2 > 0.0 && qx * qx > best * q2 {
            scale = qx / q2;
            best = scale * qx;
        }
    }
    scale
}

/// The codes of weights at a scale; 0 gives all the code nearest to zero.
pub(super) fn codes(x: &[f32], scale: f32, codes: &mut [u8]) {
    let inverse = if scale != 0.0 { 1.0 / scale } else { 0.0 };
    for (code, &x) in codes.iter_mut().zip(x) {
        *code = nearest(inverse * x);
    }
}

/// Twice the mean square.
pub(super) fn sigma2(x: &[f32]) -> f32 {
    x.iter().fold(0f32, |sum, &x| sum + x * x) * (2.0 / x.len() as f32)
}
