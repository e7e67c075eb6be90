//! Inner loops over slices. Sums run over a fixed number of lanes, so results depend on the input alone, never on threads or on
//! how the compiler vectorises.

/// Defines functions for AVX-512, for AVX2 and for the target's baseline, from one body. Rust never contracts `a * b + c` into a fused
/// product, so all give the same bits; only the registers are wider.
macro_rules! dispatched {
    ($($(#[$doc:meta])* pub fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$doc])*
        pub fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn wide($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx512f")]
                fn widest($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                if is_x86_feature_detected!("avx512f") {
                    // SAFETY: the processor has AVX-512 F, as just detected, and the function needs nothing else.
                    return unsafe { widest($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has AVX2, as just detected, and the function needs nothing else.
                    return unsafe { wide($($arg),*) };
                }
            }
            body($($arg),*)
        }
    )*};
}

const LANES: usize = 16;

/// Folds the lanes of a partial sum pairwise.
#[inline(always)]
fn fold(mut acc: [f32; LANES]) -> f32 {
    let mut n = LANES;
    while n > 1 {
        n /= 2;
        for i in 0..n {
            acc[i] += acc[i + n];
        }
    }
    acc[0]
}

/// Sum of `f(x)` over a slice.
#[inline(always)]
fn sum_by(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut acc = [0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for c in chunks {
        for i in 0..LANES {
            acc[i] += f(c[i]);
        }
    }
    for (a, v) in acc.iter_mut().zip(rest) {
        *a += f(*v);
    }
    fold(acc)
}

/// Largest value, NaN ignored; negative infinity for an empty slice.
#[inline(always)]
fn max(x: &[f32]) -> f32 {
    let mut acc = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for c in chunks {
        for i in 0..LANES {
            acc[i] = if c[i] > acc[i] { c[i] } else { acc[i] };
        }
    }
    rest.iter().chain(&acc).fold(f32::NEG_INFINITY, |m, v| if *v > m { *v } else { m })
}

/// `exp(x)` to about one unit in the last place, in a form that compilers vectorise. Below −87.3 it stays at the smallest
/// normal number instead of reaching 0; NaN stays NaN.
///
/// Cody–Waite reduction to `|r| ≤ ln 2 / 2` and the degree-5 minimax polynomial of Cephes' `expf`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2²³ rounds to an integer and leaves it in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.336_54, 88.376_26);
    let t = x * std::f32::consts::LOG2_E + ROUND;
    let n = t - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let p = p * (r * r) + r + 1.0;
    let exponent = t.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    p * f32::from_bits(exponent)
}

dispatched! {
    /// One row of an RMS norm: `x / rms(x) · weight`.
    pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let inv = 1.0 / (sum_by(x, |v| v * v) / x.len() as f32 + eps).sqrt();
        for ((o, v), w) in out.iter_mut().zip(x).zip(weight) {
            *o = v * inv * w;
        }
    }

    /// One row of a layer norm: `(x − mean) / deviation · weight`.
    pub fn layer_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let mean = sum_by(x, |v| v) / x.len() as f32;
        let inv = 1.0 / (sum_by(x, |v| (v - mean) * (v - mean)) / x.len() as f32 + eps).sqrt();
        for ((o, v), w) in out.iter_mut().zip(x).zip(weight) {
            *o = (v - mean) * inv * w;
        }
    }

    /// `gate ← gelu(gate) · up`, by the approximation with tanh: `x · sigmoid(2 √(2/π) (x + 0.044715 x³))`.
    pub fn geglu(gate: &mut [f32], up: &[f32]) {
        for (g, u) in gate.iter_mut().zip(up) {
            let z = 1.595_769_2 * (*g + 0.044715 * *g * *g * *g);
            *g = *g / (1.0 + exp(-z)) * u;
        }
    }

    /// gpt-oss: `gate ← g · sigmoid(1.702 g) · (u + 1)` with the gate at most 7 and up within ±7.
    pub fn swiglu_oai(gate: &mut [f32], up: &[f32]) {
        for (g, u) in gate.iter_mut().zip(up) {
            let x = g.min(7.0);
            *g = x / (1.0 + exp(-1.702 * x)) * (u.clamp(-7.0, 7.0) + 1.0);
        }
    }

    /// `gate ← silu(gate) · up`.
    pub fn swiglu(gate: &mut [f32], up: &[f32]) {
        for (g, u) in gate.iter_mut().zip(up) {
            *g = *g / (1.0 + exp(-*g)) * u;
        }
    }

    /// Softmax of `scale · x` in place.
    pub fn softmax(x: &mut [f32], scale: f32) {
        let m = max(x);
        for v in x.iter_mut() {
            *v = exp((*v - m) * scale);
        }
        let inv = 1.0 / sum_by(x, |v| v);
        for v in x.iter_mut() {
            *v *= inv;
        }
    }

    /// Largest value, NaN ignored; negative infinity for an empty slice.
    pub fn largest(x: &[f32]) -> f32 {
        max(x)
    }

    /// `x ← exp(x − most)`; gives the sum.
    pub fn exponentials(x: &mut [f32], most: f32) -> f32 {
        for v in x.iter_mut() {
            *v = exp(*v - most);
        }
        sum_by(x, |v| v)
    }

    /// `x ← cap tanh(scale x / cap)`.
    pub fn softcap(x: &mut [f32], scale: f32, cap: f32) {
        let twice = 2.0 * scale / cap;
        for v in x.iter_mut() {
            *v = cap * (1.0 - 2.0 / (1.0 + exp(*v * twice)));
        }
    }

    /// `log Σ exp(x)` of a row of logits, summed in f64.
    pub fn log_sum_exp(x: &[f32]) -> f64 {
        let m = max(x);
        let mut total = 0f64;
        // Sums of 256 terms in f32, those in f64: full precision for any vocabulary at f32 speed.
        for c in x.chunks(256) {
            total += f64::from(sum_by(c, |v| exp(v - m)));
        }
        f64::from(m) + total.ln()
    }

    /// Rotates one head: pairs `(x[i], x[i + n/2])` by the angle whose cosine and sine are given (the half-split convention of
    /// Hugging Face).
    pub fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32]) {
        let (a, b) = x.split_at_mut(cos.len());
        for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
            (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
        }
    }

    /// Rotates pairs of neighbours `(x[2i], x[2i + 1])`.
    pub fn rotate_pairs(x: &mut [f32], cos: &[f32], sin: &[f32]) {
        for ((pair, c), s) in x.chunks_exact_mut(2).zip(cos).zip(sin) {
            let (a, b) = (pair[0], pair[1]);
            (pair[0], pair[1]) = (a * c - b * s, b * c + a * s);
        }
    }

    /// Rounds a row to 8 bits in blocks, with a scale each, as llama.cpp rounds activations: blocks of 32 with the largest magnitude
    /// at 127 and the scale in f16 (its Q8_0), others with the value of largest magnitude at −127 and the scale in f32 (its Q8_K).
    pub fn round_to_bytes(x: &[f32], block: usize, codes: &mut [i8], scales: &mut [f32]) {
        // Adding 1.5 · 2²³ rounds to an integer and leaves it in the low mantissa bits.
        const ROUND: f32 = 12_582_912.0;
        for ((x, codes), scale) in x.chunks_exact(block).zip(codes.chunks_exact_mut(block)).zip(scales) {
            let (mut acc, mut bad) = ([0f32; LANES], [0f32; LANES]);
            for c in x.as_chunks::<LANES>().0 {
                for i in 0..LANES {
                    acc[i] = if c[i].abs() > acc[i] { c[i].abs() } else { acc[i] };
                    bad[i] += c[i] * 0.0;
                }
            }
            let most = acc.iter().fold(0f32, |m, v| if *v > m { *v } else { m });
            let inverse = if most == 0.0 {
                *scale = 0.0;
                0.0
            } else if block == 32 {
                *scale = half::f16::from_f32(most / 127.0).to_f32();
                127.0 / most
            } else {
                // The first of the largest magnitude decides the sign.
                let first = x.iter().find(|v| v.abs() == most).copied().unwrap_or(most);
                let inverse = -127.0 / first;
                *scale = 1.0 / inverse;
                inverse
            };
            // 0, but NaN if there is a value without a code.
            *scale += fold(bad);
            for (c, v) in codes.iter_mut().zip(x) {
                *c = (v * inverse + ROUND).to_bits() as i8;
            }
        }
    }

    /// Whether every value is finite.
    pub fn all_finite(x: &[f32]) -> bool {
        // 0 · v is 0 for finite v and NaN otherwise.
        sum_by(x, |v| v * 0.0) == 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        let mut worst = 0f64;
        for i in -8_700_000..8_800_000 {
            let x = i as f32 * 1e-5;
            let want = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - want).abs() / want);
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst}");
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(-1e9) < 2e-38 && exp(f32::NEG_INFINITY) < 2e-38);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn softmax_sums_to_one_and_keeps_nan() {
        let mut x: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin() * 20.0).collect();
        let want: Vec<f64> = {
            let e: Vec<f64> = x.iter().map(|v| f64::from(*v * 0.5).exp()).collect();
            let s: f64 = e.iter().sum();
            e.iter().map(|v| v / s).collect()
        };
        softmax(&mut x, 0.5);
        for (a, b) in x.iter().zip(&want) {
            assert!((f64::from(*a) - b).abs() < 1e-7);
        }
        let mut bad = vec![1.0, f32::NAN, 2.0];
        softmax(&mut bad, 1.0);
        assert!(bad.iter().all(|v| v.is_nan()));
        let mut inf = vec![1.0, f32::INFINITY];
        softmax(&mut inf, 1.0);
        assert!(inf.iter().any(|v| v.is_nan()));
    }

    #[test]
    fn exponentials_and_their_sum_keep_nan() {
        let x: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin() * 20.0).collect();
        let (most, mut got) = (largest(&x), x.clone());
        let sum = exponentials(&mut got, most);
        let want: Vec<f64> = x.iter().map(|v| f64::from(v - most).exp()).collect();
        assert!(got.iter().zip(&want).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6 * b + 1e-30));
        assert!((f64::from(sum) - want.iter().sum::<f64>()).abs() < 1e-5);
        let mut bad = vec![1.0, f32::NAN, 2.0];
        assert_eq!(largest(&bad), 2.0);
        assert!(exponentials(&mut bad, 2.0).is_nan());
    }

    #[test]
    fn log_sum_exp_of_large_vocabulary() {
        let x: Vec<f32> = (0..150_001).map(|i| ((i * 7919) % 1000) as f32 * 0.01).collect();
        let want = x.iter().map(|v| f64::from(*v).exp()).sum::<f64>().ln();
        assert!((log_sum_exp(&x) - want).abs() < 1e-6);
    }

    #[test]
    fn finite_check() {
        assert!(all_finite(&[0.0, -1.0, f32::MAX]));
        assert!(!all_finite(&[0.0; 40].iter().copied().chain([f32::NAN]).collect::<Vec<_>>()));
        assert!(!all_finite(&[f32::INFINITY]));
    }
}
