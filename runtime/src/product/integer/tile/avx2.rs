//! The inner loop in AVX2: sums of byte products stay in 16 bits for a run, then widen as they are multiplied with its scale. Codes that
//! are too large for that are numbers of 16 bits, whose products are summed in 32.

use super::{Parts, Sums};
use crate::product::integer::{Form, Offset, PANEL_ROWS};
use std::arch::asm;
use std::arch::x86_64::*;

/// Rows of activations in a tile.
const WIDTH: usize = 4;

/// Adds the products of a part of panel `panel` to the sums.
pub(super) fn tile(form: &Form, p: &Parts<'_>, panel: usize, sums: &mut Sums) {
    let min = form.offset == Offset::Min;
    // Segments of a single run of columns are worth a loop of their own.
    let one = p.runs == 1;
    // SAFETY: the processor has AVX2 and FMA wherever it is said to be `Processor::Avx2`, and the bounds of `Parts` were checked.
    unsafe {
        match (form.steps(), form.words(), min, one) {
            (8, 1, false, true) => run::<8, 1, false, true>(p, panel, sums),
            (8, 1, false, false) => run::<8, 1, false, false>(p, panel, sums),
            (8, 1, true, true) => run::<8, 1, true, true>(p, panel, sums),
            (8, 1, true, false) => run::<8, 1, true, false>(p, panel, sums),
            (4, 1, false, true) => run::<4, 1, false, true>(p, panel, sums),
            (4, 1, false, false) => run::<4, 1, false, false>(p, panel, sums),
            (4, 1, true, _) => run::<4, 1, true, false>(p, panel, sums),
            (8, 2, false, true) => run::<8, 2, false, true>(p, panel, sums),
            (8, 2, true, true) => run::<8, 2, true, true>(p, panel, sums),
            (8, 2, true, false) => run::<8, 2, true, false>(p, panel, sums),
            (8, 2, false, false) => run::<8, 2, false, false>(p, panel, sums),
            (4, 2, false, _) => run::<4, 2, false, false>(p, panel, sums),
            (4, 2, true, _) => run::<4, 2, true, false>(p, panel, sums),
            (_, _, false, _) => run::<2, 1, false, false>(p, panel, sums),
            (_, _, true, _) => run::<2, 1, true, false>(p, panel, sums),
        }
    }
}

/// [`tile`] for runs of `STEPS` columns of four in so many words each, with minima or not, and perhaps one run per segment only.
///
/// # Safety
/// Needs AVX2 and FMA, and `Parts` whose lengths fit the form.
#[target_feature(enable = "avx2,fma")]
unsafe fn run<const STEPS: usize, const WORDS: usize, const MIN: bool, const ONE: bool>(
    p: &Parts<'_>,
    index: usize,
    out: &mut Sums,
) {
    let panel = &p.panels[index];
    let zero = _mm256_setzero_si256();
    let mut w = panel.codes.as_ptr().cast::<__m256i>();
    let mut run_scales = panel.scales.as_ptr().cast::<__m256i>();
    let mut offsets = panel.offsets.as_ptr().cast::<__m256i>();
    let mut x = p.codes.as_ptr().cast::<i32>();
    let mut x_sums = p.sums.as_ptr().cast::<i32>();
    let mut x_scales = p.scales.as_ptr();
    let runs = if ONE { 1 } else { p.runs };
    for segment in 0..p.segments {
        let mut whole = [[zero; 2]; WIDTH];
        for _ in 0..runs {
            let mut part = [[zero; 2]; WIDTH];
            if WORDS == 1 && !MIN {
                for (a, part) in part.iter_mut().enumerate() {
                    // SAFETY: a run begins with `WIDTH` words.
                    *part = [_mm256_set1_epi32(unsafe { x.add(a).read_unaligned() }); 2];
                }
            }
            for word in 0..STEPS * WORDS {
                // SAFETY: two registers of codes and `WIDTH` words of activations per word of a column of four, as many as checked.
                unsafe {
                    let x = x.add((word + 1) * WIDTH);
                    if WORDS == 1 {
                        multiply_bytes(w, x, &mut part)
                    } else {
                        multiply_wide(w, x, &mut whole)
                    }
                    w = w.add(2);
                }
            }
            if WORDS == 1 {
                // SAFETY: two registers of scales per run.
                let (s0, s1) = unsafe { (_mm256_loadu_si256(run_scales), _mm256_loadu_si256(run_scales.add(1))) };
                // SAFETY: as above.
                run_scales = unsafe { run_scales.add(2) };
                for (whole, part) in whole.iter_mut().zip(part) {
                    whole[0] = _mm256_add_epi32(whole[0], _mm256_madd_epi16(part[0], s0));
                    whole[1] = _mm256_add_epi32(whole[1], _mm256_madd_epi16(part[1], s1));
                }
            }
            // SAFETY: at most one past the last run.
            x = unsafe { x.add((STEPS * WORDS + 1) * WIDTH) };
        }
        let mut offset = [[zero; 2]; WIDTH];
        if MIN {
            for _ in 0..if ONE { 1 } else { p.pairs } {
                // SAFETY: two registers of offsets per pair, and a row of sums, `WIDTH` of which are read.
                unsafe {
                    let (o0, o1) = (_mm256_loadu_si256(offsets), _mm256_loadu_si256(offsets.add(1)));
                    offsets = offsets.add(2);
                    for (a, offset) in offset.iter_mut().enumerate() {
                        let x = _mm256_set1_epi32(x_sums.add(a).read_unaligned());
                        offset[0] = _mm256_add_epi32(offset[0], _mm256_madd_epi16(o0, x));
                        offset[1] = _mm256_add_epi32(offset[1], _mm256_madd_epi16(o1, x));
                    }
                    x_sums = x_sums.wrapping_add(p.stride);
                }
            }
        }
        let (steps, mins) = (&panel.steps[segment], &panel.mins[segment]);
        // SAFETY: both halves of columns of 16, `WIDTH` scales and sums.
        unsafe {
            let halves = |of: &[f32; 16]| [_mm256_loadu_ps(of.as_ptr()), _mm256_loadu_ps(of.as_ptr().add(8))];
            let (steps, mins) = (halves(steps), if MIN { halves(mins) } else { [_mm256_setzero_ps(); 2] });
            for a in 0..WIDTH {
                let scale = _mm256_broadcast_ss(&*x_scales.add(a));
                for half in 0..2 {
                    let to = out[a].as_mut_ptr().add(PANEL_ROWS * index + 8 * half);
                    let step = _mm256_mul_ps(steps[half], scale);
                    let mut sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[a][half]), step, _mm256_loadu_ps(to));
                    if MIN {
                        let min = _mm256_mul_ps(mins[half], scale);
                        sum = _mm256_fnmadd_ps(min, _mm256_cvtepi32_ps(offset[a][half]), sum);
                    }
                    _mm256_storeu_ps(to, sum);
                }
            }
        }
        x_scales = x_scales.wrapping_add(p.stride);
    }
}

/// Defines a function that multiplies two registers of codes with the same word of each of `WIDTH` rows of activations and adds to sums.
///
/// In assembly, because compilers see that sums of integers may be taken in any order, and then want more registers than there are.
macro_rules! multiply {
    ($(#[$doc:meta])* $name:ident, $multiply:literal, $add:literal) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// Needs AVX2, two registers of codes at `w` and `WIDTH` words at `x`.
        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn $name(w: *const __m256i, x: *const i32, sums: &mut [[__m256i; 2]; WIDTH]) {
            let [[a0, a1], [b0, b1], [c0, c1], [d0, d1]] = sums;
            // SAFETY: reads what the caller says is there, and writes registers only.
            unsafe {
                asm!(
                    "vmovdqu {w0}, [{w}]",
                    "vmovdqu {w1}, [{w} + 32]",
                    "vpbroadcastd {x0}, [{x}]",
                    concat!($multiply, " {t0}, {w0}, {x0}"),
                    concat!($multiply, " {t1}, {w1}, {x0}"),
                    concat!($add, " {a0}, {a0}, {t0}"),
                    concat!($add, " {a1}, {a1}, {t1}"),
                    "vpbroadcastd {x0}, [{x} + 4]",
                    concat!($multiply, " {t0}, {w0}, {x0}"),
                    concat!($multiply, " {t1}, {w1}, {x0}"),
                    concat!($add, " {b0}, {b0}, {t0}"),
                    concat!($add, " {b1}, {b1}, {t1}"),
                    "vpbroadcastd {x0}, [{x} + 8]",
                    concat!($multiply, " {t0}, {w0}, {x0}"),
                    concat!($multiply, " {t1}, {w1}, {x0}"),
                    concat!($add, " {c0}, {c0}, {t0}"),
                    concat!($add, " {c1}, {c1}, {t1}"),
                    "vpbroadcastd {x0}, [{x} + 12]",
                    concat!($multiply, " {t0}, {w0}, {x0}"),
                    concat!($multiply, " {t1}, {w1}, {x0}"),
                    concat!($add, " {d0}, {d0}, {t0}"),
                    concat!($add, " {d1}, {d1}, {t1}"),
                    w = in(reg) w,
                    x = in(reg) x,
                    w0 = out(ymm_reg) _,
                    w1 = out(ymm_reg) _,
                    x0 = out(ymm_reg) _,
                    t0 = out(ymm_reg) _,
                    t1 = out(ymm_reg) _,
                    a0 = inout(ymm_reg) *a0,
                    a1 = inout(ymm_reg) *a1,
                    b0 = inout(ymm_reg) *b0,
                    b1 = inout(ymm_reg) *b1,
                    c0 = inout(ymm_reg) *c0,
                    c1 = inout(ymm_reg) *c1,
                    d0 = inout(ymm_reg) *d0,
                    d1 = inout(ymm_reg) *d1,
                    options(pure, readonly, nostack, preserves_flags),
                );
            }
        }
    };
}

multiply! {
    /// 32 pairs of unsigned bytes with each row's pairs of bytes, in sums of 16 bits.
    multiply_bytes, "vpmaddubsw", "vpaddw"
}
multiply! {
    /// 16 pairs of 16-bit numbers with each row's pair, in sums of 32 bits.
    multiply_wide, "vpmaddwd", "vpaddd"
}
