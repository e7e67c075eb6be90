//! Inner loops of the codecs, and [`dispatched!`](crate::dispatched), which builds such loops for wide vector registers too.
//!
//! Elements are independent or sums run over a fixed number of lanes, so results depend on the input alone, never on the
//! processor.

/// Defines functions from one body for AVX-512, for AVX2 and for the target's baseline, and chooses among them at run time.
/// Rust never contracts `a * b + c` into a fused product, so all give the same bits; only the registers differ. The baseline
/// versions are in a module `portable`, for tests to compare. A function may have one type parameter. Use it at most once in a
/// module.
#[doc(hidden)]
#[macro_export]
macro_rules! dispatched {
    ($($(#[$doc:meta])* $vis:vis fn $name:ident $(<$generic:ident: $bound:path>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {
        mod portable {
            #[allow(unused_imports)]
            use super::*;
            $(
                $(#[$doc])*
                #[inline(always)]
                #[allow(clippy::too_many_arguments)]
                pub(super) fn $name $(<$generic: $bound>)? ($($arg: $ty),*) $(-> $ret)? $body
            )*
        }
        $(
            $(#[$doc])*
            #[allow(clippy::too_many_arguments)]
            $vis fn $name $(<$generic: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
                #[cfg(target_arch = "x86_64")]
                {
                    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2")]
                    #[allow(clippy::too_many_arguments)]
                    fn wider $(<$generic: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
                        portable::$name $(::<$generic>)? ($($arg),*)
                    }
                    #[target_feature(enable = "avx2")]
                    #[allow(clippy::too_many_arguments)]
                    fn wide $(<$generic: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
                        portable::$name $(::<$generic>)? ($($arg),*)
                    }
                    match $crate::vectors() {
                        // SAFETY: `vectors` has found all the features that the function needs.
                        $crate::Vectors::Avx512 => return unsafe { wider $(::<$generic>)? ($($arg),*) },
                        // SAFETY: `vectors` has found AVX2, and the function needs nothing else.
                        $crate::Vectors::Avx2 => return unsafe { wide $(::<$generic>)? ($($arg),*) },
                        _ => {}
                    }
                }
                portable::$name $(::<$generic>)? ($($arg),*)
            }
        )*
    };
}

/// Vector registers that the processor has.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Vectors {
    /// Those of the build's target.
    Baseline,
    /// AVX2 and F16C.
    Avx2,
    /// AVX-512 F, VL, BW, DQ.
    Avx512,
    /// None: kernels run with one lane, as the scalar twins that vector code is compared with.
    #[cfg(feature = "twins")]
    Scalar,
}

/// Whether encoders run as their scalar twins.
#[cfg(feature = "twins")]
static SCALAR: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Makes all encoders run as their scalar twins, or again in vectors.
#[cfg(feature = "twins")]
#[doc(hidden)]
pub fn set_scalar(scalar: bool) {
    SCALAR.store(scalar, std::sync::atomic::Ordering::Relaxed);
}

/// The widest registers that are used, whatever there is: 0 for no limit, else one more than the variant's number.
static WIDEST: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Uses no wider registers than these from now on, in all threads: for tests that all give the same bits. `None` lifts the limit.
#[doc(hidden)]
pub fn limit_vectors(widest: Option<Vectors>) {
    WIDEST.store(widest.map_or(0, |v| v as u8 + 1), std::sync::atomic::Ordering::Relaxed);
}

/// The widest vector registers there are.
#[doc(hidden)]
#[inline]
pub fn vectors() -> Vectors {
    #[cfg(feature = "twins")]
    if SCALAR.load(std::sync::atomic::Ordering::Relaxed) {
        return Vectors::Scalar;
    }
    // Asked once for every block: six features take longer to look up than some blocks to compute.
    static FOUND: std::sync::OnceLock<Vectors> = std::sync::OnceLock::new();
    let found = *FOUND.get_or_init(detect);
    match WIDEST.load(std::sync::atomic::Ordering::Relaxed) {
        1 => Vectors::Baseline,
        2 => Vectors::Avx2.min(found),
        _ => found,
    }
}

/// The widest vector registers that the processor has.
fn detect() -> Vectors {
    #[cfg(target_arch = "x86_64")]
    {
        use std::is_x86_feature_detected as has;
        if has!("avx2") && has!("f16c") {
            let wider = has!("avx512f") && has!("avx512vl") && has!("avx512bw") && has!("avx512dq");
            return if wider { Vectors::Avx512 } else { Vectors::Avx2 };
        }
    }
    Vectors::Baseline
}

/// The widest vector instructions in use, by name: `avx512`, `avx2`, or `baseline` of the target. All give the same bytes.
pub fn instructions() -> &'static str {
    match vectors() {
        Vectors::Avx512 => "avx512",
        Vectors::Avx2 => "avx2",
        _ => "baseline",
    }
}

/// Lanes of the sums over a block. Vector registers divide it, and it divides every block length.
const LANES: usize = 8;
/// 1.5 · 2²³: adding and subtracting it rounds to the nearest integer, ties to even, for magnitudes below 2²².
pub(crate) const MAGIC: f32 = 12_582_912.0;
/// Columns that one pass over the rows of a matrix sums.
const COLUMNS: usize = 32;

/// Rounds a quotient to the nearest code in `low ..= high`.
#[inline(always)]
pub(crate) fn nearest_code(t: f32, low: f32, high: f32) -> f32 {
    let t = if t < low { low } else { t };
    let t = if t > high { high } else { t };
    (t + MAGIC) - MAGIC
}

/// 1/step, or 0 for a step too small to divide by: all codes are then the one nearest to 0.
#[inline(always)]
fn reciprocal(step: f32) -> f32 {
    let inverse = 1.0 / step;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// Sums the lanes, pairwise. They pass through memory: a compiler that saw the order of these last additions would arrange the
/// loop before them in registers of two lanes.
#[inline(always)]
fn fold<T: Copy + std::ops::AddAssign, const N: usize>(lanes: [T; N]) -> T {
    let mut sums = *std::hint::black_box(&lanes);
    let mut n = N;
    while n > 1 {
        n /= 2;
        (0..n).for_each(|i| {
            let upper = sums[i + n];
            sums[i] += upper;
        });
    }
    sums[0]
}

/// [`error`] with sums in so many lanes.
#[inline(always)]
fn error_in<const N: usize>(x: &[f32], w: &[f32], step: f32, bias: f32, low: f32, high: f32) -> f32 {
    let inverse = reciprocal(step);
    let mut sums = [0f32; N];
    for (x, w) in x.as_chunks::<N>().0.iter().zip(w.as_chunks::<N>().0) {
        for i in 0..N {
            let c = nearest_code((x[i] - bias) * inverse, low, high);
            let r = x[i] - (step * c + bias);
            sums[i] += w[i] * (r * r);
        }
    }
    fold(sums)
}

/// [`moments`] with sums in so many lanes.
#[inline(always)]
fn moments_in<const N: usize>(x: &[f32], w: &[f32], step: f32, bias: f32, low: f32, high: f32) -> [f32; 5] {
    let inverse = reciprocal(step);
    let [mut error, mut r1, mut rc, mut c1, mut cc] = [[0f32; N]; 5];
    for (x, w) in x.as_chunks::<N>().0.iter().zip(w.as_chunks::<N>().0) {
        for i in 0..N {
            let c = nearest_code((x[i] - bias) * inverse, low, high);
            let r = x[i] - (step * c + bias);
            let (wr, wc) = (w[i] * r, w[i] * c);
            error[i] += wr * r;
            r1[i] += wr;
            rc[i] += wr * c;
            c1[i] += wc;
            cc[i] += wc * c;
        }
    }
    [fold(error), fold(r1), fold(rc), fold(c1), fold(cc)]
}

/// Whether a block is long, and divides into twice as many lanes.
#[inline(always)]
fn is_long(x: &[f32]) -> bool {
    x.len() >= 8 * LANES && x.len().is_multiple_of(2 * LANES)
}

dispatched! {
    /// Σ w (x − v)², v being the value nearest to x of those that `step · c + bias` takes for integers c in `low ..= high`.
    pub(crate) fn error(x: &[f32], w: &[f32], step: f32, bias: f32, low: f32, high: f32) -> f32 {
        if is_long(x) {
            error_in::<{ 2 * LANES }>(x, w, step, bias, low, high)
        } else {
            error_in::<LANES>(x, w, step, bias, low, high)
        }
    }

    /// [`error`] for lines of step and bias.
    pub(crate) fn errors(x: &[f32], w: &[f32], lines: &[(f32, f32)], low: f32, high: f32, errors: &mut [f32]) {
        for (&(step, bias), error) in lines.iter().zip(errors) {
            *error = portable::error(x, w, step, bias, low, high);
        }
    }

    /// Σ w r², Σ w r, Σ w r c, Σ w c, Σ w c², with the codes c as in [`error`] and r = x − v.
    pub(crate) fn moments(x: &[f32], w: &[f32], step: f32, bias: f32, low: f32, high: f32) -> [f32; 5] {
        if is_long(x) {
            moments_in::<{ 2 * LANES }>(x, w, step, bias, low, high)
        } else {
            moments_in::<LANES>(x, w, step, bias, low, high)
        }
    }

    /// Σ w r², Σ w r t, Σ w t², with r = x − step · t and the products rounded to f32.
    pub(crate) fn entry_moments(x: &[f32], w: &[f32], step: f32, t: &[f32]) -> [f64; 3] {
        let [mut error, mut rt, mut tt] = [[0f64; LANES]; 3];
        for ((x, w), t) in x.as_chunks::<LANES>().0.iter().zip(w.as_chunks::<LANES>().0).zip(t.as_chunks::<LANES>().0) {
            for i in 0..LANES {
                let (w, r, t) = (f64::from(w[i]), f64::from(x[i]) - f64::from(step * t[i]), f64::from(t[i]));
                let (wr, wt) = (w * r, w * t);
                error[i] += wr * r;
                rt[i] += wr * t;
                tt[i] += wt * t;
            }
        }
        [fold(error), fold(rt), fold(tt)]
    }

    /// `out[i] = Σ_j v[j] h[j · stride + i]`: a combination of rows, in f64.
    pub(crate) fn combine_rows(h: &[f32], stride: usize, v: &[f64], out: &mut [f64]) {
        let (chunks, rest) = out.as_chunks_mut::<COLUMNS>();
        let whole = chunks.len() * COLUMNS;
        for (k, out) in chunks.iter_mut().enumerate() {
            let mut sums = [0f64; COLUMNS];
            for (h, &v) in h[k * COLUMNS..].chunks(stride).zip(v) {
                let h = &h.as_chunks::<COLUMNS>().0[0];
                for i in 0..COLUMNS {
                    sums[i] += v * h[i] as f64;
                }
            }
            *out = sums;
        }
        for (i, out) in rest.iter_mut().enumerate() {
            *out = v.iter().enumerate().map(|(j, v)| v * h[j * stride + whole + i] as f64).sum();
        }
    }

    /// [`combine_rows`] in f32.
    pub(crate) fn combine_rows_f32(h: &[f32], stride: usize, v: &[f32], out: &mut [f32]) {
        let (chunks, rest) = out.as_chunks_mut::<COLUMNS>();
        let whole = chunks.len() * COLUMNS;
        for (k, out) in chunks.iter_mut().enumerate() {
            let mut sums = [0f32; COLUMNS];
            for (h, &v) in h[k * COLUMNS..].chunks(stride).zip(v) {
                let h = &h.as_chunks::<COLUMNS>().0[0];
                for i in 0..COLUMNS {
                    sums[i] += v * h[i];
                }
            }
            *out = sums;
        }
        for (i, out) in rest.iter_mut().enumerate() {
            *out = v.iter().enumerate().map(|(j, v)| v * h[j * stride + whole + i]).sum();
        }
    }

    /// Σ h (v − s · round(v / s))² over pairs of value and curvature, with the integers limited to `low ..= high`.
    pub(crate) fn spacing_cost(values: &[(f64, f64)], spacing: f64, low: f64, high: f64) -> f64 {
        values.iter().map(|&(v, h)| {
            let r = v - spacing * (v / spacing).round_ties_even().clamp(low, high);
            h * (r * r)
        }).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers without a pattern, in −1 .. 1.
    fn noise(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729 + i * i % 8191) % 2003) as f32 / 1001.5 - 1.0).collect()
    }

    #[test]
    fn wide_registers_give_the_same_bits() {
        for (k, n) in [16, 32, 64, 128, 256].into_iter().enumerate() {
            let (x, w) = (noise(n, k), noise(n, k + 9).iter().map(|w| w.abs()).collect::<Vec<_>>());
            for (step, bias) in [(0.13, -0.9), (-0.01, 0.2), (0.0, 0.1), (1e-42, 0.0), (f32::NAN, 0.0)] {
                let bits = |m: [f32; 5]| m.map(f32::to_bits);
                let (a, b) = (error(&x, &w, step, bias, 0.0, 15.0), portable::error(&x, &w, step, bias, 0.0, 15.0));
                assert_eq!(a.to_bits(), b.to_bits());
                let (a, b) = (moments(&x, &w, step, bias, -8.0, 7.0), portable::moments(&x, &w, step, bias, -8.0, 7.0));
                assert_eq!(bits(a), bits(b));
            }
            // Some of the columns of some rows.
            let (h, rows, at) = (noise(n * n, k + 3), n / 2, n / 4);
            let v: Vec<f64> = x[..rows].iter().map(|&x| x as f64).collect();
            let (mut a, mut b) = (vec![0.0; n - at], vec![1.0; n - at]);
            combine_rows(&h[at..], n, &v, &mut a);
            portable::combine_rows(&h[at..], n, &v, &mut b);
            assert_eq!(a, b);
            let (mut a, mut b) = (vec![0.0; n - at], vec![1.0; n - at]);
            combine_rows_f32(&h[at..], n, &x[..rows], &mut a);
            portable::combine_rows_f32(&h[at..], n, &x[..rows], &mut b);
            assert_eq!(a, b);
            let want: f32 = (0..rows).map(|j| x[j] * h[j * n + at + 1]).sum();
            assert!((a[1] - want).abs() < 1e-3);
            let pairs: Vec<(f64, f64)> = x.iter().zip(&w).map(|(&x, &w)| (x as f64, w as f64)).collect();
            let (a, b) = (spacing_cost(&pairs, 0.013, 0.0, 63.0), portable::spacing_cost(&pairs, 0.013, 0.0, 63.0));
            assert_eq!(a.to_bits(), b.to_bits());
        }
    }
}
