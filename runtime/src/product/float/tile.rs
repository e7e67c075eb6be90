//! The inner loop over a pair of panels and a tile of activations.

use super::{PANEL_ROWS, PANELS, Panels, TileRows};
use crate::product::processor::Processor;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// The most rows of activations in a tile.
pub(super) const MAX_WIDTH: usize = 12;
#[cfg(target_arch = "x86_64")]
const AVX2_WIDTH: usize = 6;
#[cfg(target_arch = "x86_64")]
const AVX512_WIDTH: usize = 12;
const SCALAR_WIDTH: usize = 4;

/// Rows of activations in a tile.
pub(super) fn width(processor: Processor) -> usize {
    match processor {
        #[cfg(target_arch = "x86_64")]
        Processor::Avx512 => AVX512_WIDTH,
        #[cfg(target_arch = "x86_64")]
        Processor::Avx2 => AVX2_WIDTH,
        _ => SCALAR_WIDTH,
    }
}

/// Adds the products of a part of the columns to the sums. `x` is `(column, row of the tile)`, at most as many columns as the panels have.
pub(super) fn tile(processor: Processor, panels: &Panels, x: &[f32], sums: &mut TileRows<'_>) {
    assert!(panels.iter().all(|p| p.len() >= x.len() / width(processor)), "columns of a panel");
    match processor {
        // SAFETY: the processor has these instructions wherever it is said to be `Processor::Avx512`; columns were checked.
        #[cfg(target_arch = "x86_64")]
        Processor::Avx512 => unsafe { avx512(panels, x, sums) },
        // SAFETY: likewise.
        #[cfg(target_arch = "x86_64")]
        Processor::Avx2 => unsafe { avx2(panels, x, sums) },
        _ => scalar(panels, x, sums),
    }
}

/// The twin of the others, which differ in fusing multiplications and additions.
fn scalar(panels: &Panels, x: &[f32], sums: &mut TileRows<'_>) {
    for (p, panel) in panels.iter().enumerate() {
        for (a, sums) in sums.iter_mut().enumerate().take(SCALAR_WIDTH) {
            let mut acc = [0f32; PANEL_ROWS];
            for (w, x) in panel.iter().zip(x.as_chunks::<SCALAR_WIDTH>().0) {
                for row in 0..PANEL_ROWS {
                    acc[row] += w[row] * x[a];
                }
            }
            sums[PANEL_ROWS * p..][..PANEL_ROWS].iter_mut().zip(acc).for_each(|(sum, part)| *sum += part);
        }
    }
}

/// # Safety
/// Needs AVX2 and FMA, and panels of at least as many columns as `x`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(panels: &Panels, x: &[f32], sums: &mut TileRows<'_>) {
    for (p, panel) in panels.iter().enumerate() {
        let mut acc = [[_mm256_setzero_ps(); 2]; AVX2_WIDTH];
        let mut w = panel.as_ptr().cast::<f32>();
        for x in x.as_chunks::<AVX2_WIDTH>().0 {
            // SAFETY: two registers per column, and the panel has as many columns as there are.
            let (w0, w1) = unsafe { (_mm256_loadu_ps(w), _mm256_loadu_ps(w.add(8))) };
            // SAFETY: at most one past the panel's end.
            w = unsafe { w.add(PANEL_ROWS) };
            for (acc, x) in acc.iter_mut().zip(x) {
                let x = _mm256_set1_ps(*x);
                acc[0] = _mm256_fmadd_ps(w0, x, acc[0]);
                acc[1] = _mm256_fmadd_ps(w1, x, acc[1]);
            }
        }
        for (acc, sums) in acc.iter().zip(sums.iter_mut()) {
            let to = sums[PANEL_ROWS * p..][..PANEL_ROWS].as_mut_ptr();
            for (half, acc) in acc.iter().enumerate() {
                // SAFETY: both halves of sixteen sums.
                unsafe { _mm256_storeu_ps(to.add(8 * half), _mm256_add_ps(_mm256_loadu_ps(to.add(8 * half)), *acc)) };
            }
        }
    }
}

/// # Safety
/// Needs AVX-512 F, and panels of at least as many columns as `x`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512(panels: &Panels, x: &[f32], sums: &mut TileRows<'_>) {
    let mut acc = [[_mm512_setzero_ps(); PANELS]; AVX512_WIDTH];
    let mut w = [panels[0].as_ptr().cast::<f32>(), panels[1].as_ptr().cast::<f32>()];
    for x in x.as_chunks::<AVX512_WIDTH>().0 {
        // SAFETY: a register per column of each panel, and the panels have as many columns as there are.
        let (w0, w1) = unsafe { (_mm512_loadu_ps(w[0]), _mm512_loadu_ps(w[1])) };
        // SAFETY: at most one past the panels' ends.
        w = unsafe { [w[0].add(PANEL_ROWS), w[1].add(PANEL_ROWS)] };
        for (acc, x) in acc.iter_mut().zip(x) {
            let x = _mm512_set1_ps(*x);
            acc[0] = _mm512_fmadd_ps(w0, x, acc[0]);
            acc[1] = _mm512_fmadd_ps(w1, x, acc[1]);
        }
    }
    for (acc, sums) in acc.iter().zip(sums.iter_mut()) {
        for (acc, sums) in acc.iter().zip(sums.as_chunks_mut::<PANEL_ROWS>().0) {
            // SAFETY: sixteen sums.
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), _mm512_add_ps(_mm512_loadu_ps(sums.as_ptr()), *acc)) };
        }
    }
}
