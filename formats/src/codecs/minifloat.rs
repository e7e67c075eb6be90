//! The small floats of the OCP microscaling formats: e2m1 (4 bits), e4m3 (8 bits, no infinities), e8m0 (a power of two).

use crate::simd::{IntLanes, Lanes, STEP, bytes_of};

/// Largest e2m1 value.
pub(super) const E2M1_MAX: f32 = 6.0;
/// Largest e4m3 value.
pub(super) const E4M3_MAX: f32 = 448.0;
/// The e4m3 code of the largest value; the next one is NaN.
pub(super) const E4M3_MAX_CODE: u8 = 0x7e;

/// What the 16 e2m1 codes mean; bit 3 is the sign.
pub(super) const E2M1: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// What the 256 e4m3 codes mean; bit 7 is the sign.
pub(super) const E4M3: [f32; 256] = {
    let mut values = [f32::NAN; 256];
    let mut code = 0;
    while code < 256 {
        let (exponent, mantissa) = (code as u32 >> 3 & 15, code as u32 & 7);
        if (code & 127) as u8 <= E4M3_MAX_CODE {
            // In steps of 2⁻⁹ below 2⁻⁶; the exponent's bias is 7.
            let small = mantissa as f32 / 512.0;
            let size = if exponent == 0 { small } else { f32::from_bits((exponent + 120) << 23 | mantissa << 20) };
            values[code] = if code >= 128 { -size } else { size };
        }
        code += 1;
    }
    values
};

/// The power of two that an e8m0 byte means; 255 is NaN.
#[inline(always)]
pub(super) fn e8m0(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        exponent => f32::from_bits((exponent as u32) << 23),
    }
}

/// The e2m1 code nearest to `y`; of two equally near the one of smaller magnitude. Without branches, for vector registers. Code 8,
/// the negative zero, is never chosen.
#[inline(always)]
pub(super) fn to_e2m1(y: f32) -> u32 {
    let a = y.abs();
    let mut code = 0;
    // Between the values, halfway.
    for limit in [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0] {
        code += (a > limit) as u32;
    }
    code | ((y < -0.25) as u32) << 3
}

/// The codes of [`to_e2m1`] for the numbers of which `fourfold(at, x)` makes four times as large ones of the same sign; lanes are numbers.
#[inline(always)]
pub(super) fn to_e2m1_fourfold<F: Lanes>(x: &[f32; STEP], codes: &mut [u8; STEP], fourfold: impl Fn(usize, F) -> F) {
    let mut minus = [0u8; STEP];
    bytes_of::<F>(x, codes, |at, x| {
        // The number just below, rounded towards zero, is k or more where y is more than k. Of 0 it is NaN, which becomes 0.
        let a = fourfold(at, x).abs().min(F::splat(64.0)).to_bits();
        F::from_bits(a - F::Int::splat(1)).truncate()
    });
    bytes_of::<F>(x, &mut minus, |_, x| x.to_bits().shr::<28>());
    for (code, minus) in codes.iter_mut().zip(minus) {
        // Between the values, halfway.
        let mut size = 0;
        for limit in [1, 3, 5, 7, 10, 14, 20] {
            size += (*code >= limit) as u8;
        }
        *code = size | if size > 0 { minus & 8 } else { 0 };
    }
}

/// [`to_e4m3`] in each lane; of NaN, the largest finite value.
#[inline(always)]
pub(super) fn to_e4m3_lanes<F: Lanes>(y: F) -> F::Int {
    let magnitude = y.abs().min(F::splat(E4M3_MAX));
    let a = magnitude.to_bits();
    let odd = a.shr::<20>() & F::Int::splat(1);
    // The exponent's bias, 120 too many, goes with what rounds.
    let large = (a + odd + F::Int::splat(0x7_ffff - (120 << 23))).shr::<20>();
    let steps = F::splat(STEPS);
    let small = (magnitude + steps).to_bits() - steps.to_bits();
    let code = F::Int::select(magnitude.lt(F::splat(NORMAL)), small, large);
    code | y.to_bits().shr::<24>() & F::Int::splat(0x80)
}

/// 2⁻⁶, from where on steps of e4m3 grow with the exponent, and 2¹⁴, whose last place is 2⁻⁹, the step below.
const NORMAL: f32 = 0.015_625;
const STEPS: f32 = 16_384.0;

/// The e4m3 code nearest to `y`, ties to even, at most the largest finite value; the sign of zero is kept. Without branches.
#[inline(always)]
pub(super) fn to_e4m3(y: f32) -> u32 {
    let bits = y.to_bits();
    let (sign, a) = (bits >> 24 & 0x80, bits & 0x7fff_ffff);
    let large = (a.wrapping_add(0x7_ffff + (a >> 20 & 1)) >> 20).wrapping_sub(120 << 3);
    let small = (f32::from_bits(a) + STEPS).to_bits().wrapping_sub(STEPS.to_bits());
    let code = if f32::from_bits(a) < NORMAL { small } else { large };
    let code = if a >= 0x43e0_0000 { E4M3_MAX_CODE as u32 } else { code };
    code | sign
}

/// The value of an e2m1 code, as [`E2M1`] has it. Without branches or tables.
#[inline(always)]
pub(super) fn from_e2m1(code: u32) -> f32 {
    let m = code & 7;
    let small = 0.5 * m as f32;
    let size = if m < 2 { small.to_bits() } else { (m << 22) + (126 << 23) };
    f32::from_bits(size | (code & 8) << 28)
}

/// The value of an e4m3 code, as [`E4M3`] has it. Without branches or tables.
#[inline(always)]
pub(super) fn from_e4m3(code: u32) -> f32 {
    let m = code & 127;
    let small = m as f32 * (1.0 / 512.0);
    let size = if m < 8 { small.to_bits() } else { (m << 20) + (120 << 23) };
    let size = if m == 127 { f32::NAN.to_bits() } else { size };
    f32::from_bits(size | (code & 128) << 24)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, Portable, dispatch};

    /// The nearest finite value by trying all; of ties the one that `prefer` likes.
    fn nearest(values: &[f32], y: f32, prefer: impl Fn(usize) -> bool) -> f32 {
        let distance = |v: f32| (v as f64 - y as f64).abs();
        let least = values.iter().filter(|v| v.is_finite()).map(|&v| distance(v)).fold(f64::MAX, f64::min);
        let mut ties = (0..values.len()).filter(|&c| distance(values[c]) == least);
        let first = ties.next().expect("a nearest value");
        values[std::iter::once(first).chain(ties).find(|&c| prefer(c)).unwrap_or(first)]
    }

    /// Values of all magnitudes, and every midpoint with its neighbours.
    fn samples() -> Vec<f32> {
        let mut y: Vec<f32> = (0..4000).map(|i| (i as f32 * 0.37).sin() * 2f32.powi(i % 22 - 12)).collect();
        for values in [&E2M1[..8], &E4M3[..0x7f]] {
            for pair in values.windows(2) {
                let middle = (pair[0] + pair[1]) / 2.0;
                y.extend([middle, middle.next_up(), middle.next_down()].into_iter().flat_map(|m| [m, -m]));
            }
        }
        y.extend(E4M3.iter().filter(|v| v.is_finite()));
        y
    }

    #[test]
    fn codes_are_the_nearest() {
        for y in samples() {
            let code = to_e2m1(y);
            let first = nearest(&E2M1[..8], y.abs(), |_| true);
            assert_eq!(E2M1[code as usize].abs(), first, "{y}");
            assert!(code != 8 && (E2M1[code as usize] == 0.0 || (code >= 8) == (y < 0.0)), "{y}");
            assert_eq!(E4M3[to_e4m3(y) as usize].abs(), nearest(&E4M3[..0x7f], y.abs(), |c| c % 2 == 0), "{y}");
            assert_eq!(to_e4m3(y) >= 128, y.is_sign_negative());
        }
        assert_eq!([to_e4m3(1e30), to_e4m3(-f32::INFINITY), to_e2m1(1e30), to_e2m1(f32::NAN)], [0x7e, 0xfe, 7, 0]);
    }

    #[test]
    fn lanes_give_the_same_codes() {
        struct Codes<'a>(&'a [f32], &'a mut Vec<[u8; 2]>);
        impl Kernel for Codes<'_> {
            type Output = ();
            #[inline(always)]
            fn run<F: Lanes>(self) {
                for y in self.0.as_chunks::<STEP>().0 {
                    let (mut a, mut b) = ([0; STEP], [0; STEP]);
                    to_e2m1_fourfold(y, &mut a, |_, y: F| y * F::splat(4.0));
                    bytes_of(y, &mut b, |_, y: F| to_e4m3_lanes(y));
                    self.1.extend(a.iter().zip(b).map(|(&a, b)| [a, b]));
                }
            }
        }
        let mut y = samples();
        y.extend([0.0, -0.0, 1e-45, -1e-45, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, 449.0, -470.0]);
        y.resize(y.len().next_multiple_of(STEP), -0.25);
        let want: Vec<[u8; 2]> = y.iter().map(|&y| [to_e2m1(y) as u8, to_e4m3(y) as u8]).collect();
        let (mut wide, mut narrow) = (Vec::new(), Vec::new());
        dispatch(Codes(&y, &mut wide));
        Codes(&y, &mut narrow).run::<Portable<1>>();
        assert_eq!(wide, want);
        assert_eq!(narrow, want);
    }

    #[test]
    fn tables_mean_what_the_formats_say() {
        assert_eq!(&E4M3[..3], &[0.0, 1.0 / 512.0, 2.0 / 512.0]);
        assert_eq!((E4M3[8], E4M3[0x38], E4M3[0x7e], E4M3[0xfe]), (1.0 / 64.0, 1.0, E4M3_MAX, -E4M3_MAX));
        assert!(E4M3[0x7f].is_nan() && E4M3[0xff].is_nan());
        assert_eq!((E2M1[7], E2M1[15]), (E2M1_MAX, -E2M1_MAX));
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        assert!((0..16).all(|c| same(from_e2m1(c), E2M1[c as usize])) && (0..256).all(|c| same(from_e4m3(c), E4M3[c as usize])));
        assert_eq!((e8m0(127), e8m0(0), e8m0(254)), (1.0, 2f32.powi(-127), 2f32.powi(127)));
    }
}
