//! The inner loop in AVX-512 with VNNI: products of bytes are summed in 32 bits at once, for both panels.

use super::{Parts, Sums};
use crate::product::integer::{Form, Offset, PANEL_ROWS, PANELS};
use std::arch::x86_64::*;

/// Rows of activations in a tile: with two panels twelve sums, enough to hide the latency of a multiplication.
const WIDTH: usize = 6;

/// Adds the products of a part to the sums.
pub(super) fn tile(form: &Form, p: &Parts<'_>, sums: &mut Sums) {
    let min = form.offset == Offset::Min;
    // Segments of a single group have no integer scale.
    let one = form.segment == form.group;
    // SAFETY: the processor has these instructions wherever it is said to be `Processor::Avx512`, and the bounds of `Parts` were
    // checked.
    unsafe {
        match (form.steps(), min, one) {
            (8, false, true) => run::<8, false, true>(p, sums),
            (8, false, false) => run::<8, false, false>(p, sums),
            (8, true, true) => run::<8, true, true>(p, sums),
            (8, true, false) => run::<8, true, false>(p, sums),
            (_, false, true) => run::<4, false, true>(p, sums),
            (_, false, false) => run::<4, false, false>(p, sums),
            (_, true, true) => run::<4, true, true>(p, sums),
            (_, true, false) => run::<4, true, false>(p, sums),
        }
    }
}

/// Twelve registers, `(row of activations, panel)`.
type Registers = [[__m512i; PANELS]; WIDTH];

/// [`tile`] for runs of `STEPS` columns of four, with minima or not, and perhaps one run per segment and no integer scales.
///
/// # Safety
/// Needs the instructions named, and `Parts` whose lengths fit the form.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn run<const STEPS: usize, const MIN: bool, const ONE: bool>(p: &Parts<'_>, out: &mut Sums) {
    let zero: Registers = [[_mm512_setzero_si512(); PANELS]; WIDTH];
    let runs = if ONE { 1 } else { p.runs };
    let mut w = [0, 1].map(|i: usize| p.panels[i].codes.as_ptr().cast::<__m512i>());
    let mut x = p.codes.as_ptr().cast::<i32>();
    let mut x_sums = p.sums.as_ptr().cast::<i32>();
    let mut sums = [[_mm512_setzero_ps(); PANELS]; WIDTH];
    for (sums, out) in sums.iter_mut().zip(&*out) {
        for (sum, out) in sums.iter_mut().zip(out.as_chunks::<PANEL_ROWS>().0) {
            // SAFETY: sixteen sums.
            *sum = unsafe { _mm512_loadu_ps(out.as_ptr()) };
        }
    }
    for segment in 0..p.segments {
        let mut whole = zero;
        for run in 0..runs {
            let mut part = zero;
            if !MIN {
                for (a, part) in part.iter_mut().enumerate() {
                    // SAFETY: a run begins with `WIDTH` words.
                    *part = [_mm512_set1_epi32(unsafe { x.add(a).read_unaligned() }); PANELS];
                }
            }
            for step in 0..STEPS {
                // SAFETY: a register of codes per step and panel, `WIDTH` words of activations per column of four, as many as checked.
                unsafe {
                    let codes = [_mm512_loadu_si512(w[0].add(step)), _mm512_loadu_si512(w[1].add(step))];
                    for (a, part) in part.iter_mut().enumerate() {
                        let x = _mm512_set1_epi32(x.add((step + 1) * WIDTH + a).read_unaligned());
                        *part = [_mm512_dpbusd_epi32(part[0], codes[0], x), _mm512_dpbusd_epi32(part[1], codes[1], x)];
                    }
                }
            }
            // SAFETY: at most one past the end.
            unsafe {
                w = [w[0].add(STEPS), w[1].add(STEPS)];
                x = x.add((STEPS + 1) * WIDTH);
            }
            if ONE {
                whole = part;
            } else {
                scale(p, segment * runs + run, &part, &mut whole);
            }
        }
        let mut offset = zero;
        if MIN {
            for pair in 0..if ONE { 1 } else { p.pairs } {
                // SAFETY: sixteen words of offsets in each panel, and a row of sums, `WIDTH` of which are read.
                unsafe {
                    let at = segment * p.pairs + pair;
                    let offsets = [0, 1].map(|i: usize| _mm512_loadu_si512(p.panels[i].offsets[at].as_ptr().cast()));
                    for (a, offset) in offset.iter_mut().enumerate() {
                        let x = _mm512_set1_epi32(x_sums.add(a).read_unaligned());
                        *offset = [_mm512_dpwssd_epi32(offset[0], offsets[0], x), _mm512_dpwssd_epi32(offset[1], offsets[1], x)];
                    }
                }
                x_sums = x_sums.wrapping_add(p.stride);
            }
        }
        let scales = &p.scales[segment * p.stride..][..WIDTH];
        for panel in 0..PANELS {
            let (step, min) = (&p.panels[panel].steps[segment], &p.panels[panel].mins[segment]);
            // SAFETY: sixteen numbers each.
            let (step, min) = unsafe { (_mm512_loadu_ps(step.as_ptr()), _mm512_loadu_ps(min.as_ptr())) };
            for (((sums, whole), offset), scale) in sums.iter_mut().zip(&whole).zip(&offset).zip(scales) {
                let (sum, scale) = (&mut sums[panel], _mm512_set1_ps(*scale));
                *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[panel]), _mm512_mul_ps(step, scale), *sum);
                if MIN {
                    *sum = _mm512_fnmadd_ps(_mm512_mul_ps(min, scale), _mm512_cvtepi32_ps(offset[panel]), *sum);
                }
            }
        }
    }
    for (sums, out) in sums.iter().zip(out) {
        for (sum, out) in sums.iter().zip(out.as_chunks_mut::<PANEL_ROWS>().0) {
            // SAFETY: sixteen sums.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), *sum) };
        }
    }
}

/// Adds the sums of run `run`, times its integer scales.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn scale(p: &Parts<'_>, run: usize, part: &Registers, whole: &mut Registers) {
    for panel in 0..PANELS {
        // SAFETY: sixteen words.
        let scales = unsafe { _mm512_loadu_si512(p.panels[panel].scales[run].as_ptr().cast()) };
        // Both halves of a word are the scale.
        let scales = _mm512_srai_epi32::<16>(scales);
        for (whole, part) in whole.iter_mut().zip(part) {
            whole[panel] = _mm512_add_epi32(whole[panel], _mm512_mullo_epi32(part[panel], scales));
        }
    }
}
