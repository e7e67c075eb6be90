//! The inner loop in AVX-512 with VNNI: products of bytes are summed in 32 bits at once.

use super::{Parts, Sums};
use crate::product::integer::{Form, Offset};
use std::arch::x86_64::*;

/// Rows of activations in a tile.
const WIDTH: usize = 8;

/// Adds the products of a part to the sums.
pub(super) fn tile(form: &Form, p: &Parts<'_>, sums: &mut Sums) {
    let min = form.offset == Offset::Min;
    // SAFETY: the processor has these instructions wherever it is said to be `Processor::Avx512`, and the bounds of `Parts` were
    // checked.
    unsafe {
        match (form.steps(), min) {
            (8, false) => run::<8, false>(p, form.planes(), sums),
            (8, true) => run::<8, true>(p, form.planes(), sums),
            (4, false) => run::<4, false>(p, form.planes(), sums),
            (4, true) => run::<4, true>(p, form.planes(), sums),
            (_, false) => run::<2, false>(p, form.planes(), sums),
            (_, true) => run::<2, true>(p, form.planes(), sums),
        }
    }
}

/// [`tile`] for runs of `STEPS` columns of four.
///
/// # Safety
/// Needs the instructions named, and `Parts` whose lengths fit the form.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn run<const STEPS: usize, const MIN: bool>(p: &Parts<'_>, planes: usize, out: &mut Sums) {
    let zero = _mm512_setzero_si512();
    let mut w = p.panel.codes.as_ptr().cast::<__m512i>();
    let mut x = p.codes.as_ptr().cast::<i32>();
    let mut x_sums = p.sums.as_ptr().cast::<i32>();
    for segment in 0..p.segments {
        let mut whole = [zero; WIDTH];
        for run in 0..p.runs {
            let mut part = [zero; WIDTH];
            if !MIN && run % planes == 0 {
                for (a, part) in part.iter_mut().enumerate() {
                    // SAFETY: a run begins with `WIDTH` words.
                    *part = _mm512_set1_epi32(unsafe { x.add(a).read_unaligned() });
                }
            }
            for step in 0..STEPS {
                // SAFETY: a register of codes per step, `WIDTH` words of activations per column of four, as many as checked.
                unsafe {
                    let codes = _mm512_loadu_si512(w);
                    w = w.add(1);
                    for (a, part) in part.iter_mut().enumerate() {
                        *part =
                            _mm512_dpbusd_epi32(*part, codes, _mm512_set1_epi32(x.add((step + 1) * WIDTH + a).read_unaligned()));
                    }
                }
            }
            if (run + 1) % planes == 0 {
                // SAFETY: the planes of a run share its columns.
                x = unsafe { x.add((STEPS + 1) * WIDTH) };
            }
            let scales = p.panel.scales[segment * p.runs + run].as_ptr().cast();
            // SAFETY: sixteen words. Both halves of a word are the scale.
            let scale = _mm512_srai_epi32::<16>(unsafe { _mm512_loadu_si512(scales) });
            for (whole, part) in whole.iter_mut().zip(part) {
                *whole = _mm512_add_epi32(*whole, _mm512_mullo_epi32(part, scale));
            }
        }
        let mut offset = [zero; WIDTH];
        for pair in 0..p.pairs {
            let offsets = p.panel.offsets[segment * p.pairs + pair].as_ptr().cast();
            // SAFETY: sixteen words of offsets, and a row of sums, `WIDTH` of which are read.
            unsafe {
                let offsets = _mm512_loadu_si512(offsets);
                for (a, offset) in offset.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32(x_sums.add(a).read_unaligned());
                    *offset = _mm512_add_epi32(*offset, _mm512_madd_epi16(offsets, x));
                }
            }
            x_sums = x_sums.wrapping_add(p.stride);
        }
        // SAFETY: sixteen numbers each.
        let (step, min) =
            unsafe { (_mm512_loadu_ps(p.panel.steps[segment].as_ptr()), _mm512_loadu_ps(p.panel.mins[segment].as_ptr())) };
        for a in 0..WIDTH {
            let scale = _mm512_set1_ps(p.scales[segment * p.stride + a]);
            // SAFETY: sixteen sums.
            let mut sum = unsafe { _mm512_loadu_ps(out[a].as_ptr()) };
            sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[a]), _mm512_mul_ps(step, scale), sum);
            if MIN {
                sum = _mm512_fnmadd_ps(_mm512_mul_ps(min, scale), _mm512_cvtepi32_ps(offset[a]), sum);
            }
            // SAFETY: sixteen sums.
            unsafe { _mm512_storeu_ps(out[a].as_mut_ptr(), sum) };
        }
    }
}
