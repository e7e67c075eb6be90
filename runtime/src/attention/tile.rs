//! `C += A B` for a few rows of A and a block of B that stays in the cache: the inner loop of both products of attention.

use crate::product::Processor;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Columns come in groups of this many.
pub(super) const COLUMNS: usize = 16;

/// The factors: `a` is `(rows, depth)` and `b` is `(depth, columns)`, both with strides between their rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Factors<'a> {
    pub a: &'a [f32],
    pub a_stride: usize,
    pub b: &'a [f32],
    pub b_stride: usize,
    pub rows: usize,
    pub depth: usize,
    /// A multiple of [`COLUMNS`].
    pub columns: usize,
}

/// Adds the product to `c`, `(rows, columns)`.
pub(super) fn add_product(processor: Processor, f: Factors<'_>, c: &mut [f32], c_stride: usize) {
    if f.rows == 0 || f.depth == 0 || f.columns == 0 {
        return;
    }
    let fits = |len: usize, stride: usize, rows: usize, columns: usize| len >= (rows - 1) * stride + columns;
    assert!(f.columns.is_multiple_of(COLUMNS), "whole groups of columns");
    assert!(fits(f.a.len(), f.a_stride, f.rows, f.depth) && fits(f.b.len(), f.b_stride, f.depth, f.columns), "factors");
    assert!(fits(c.len(), c_stride, f.rows, f.columns), "product");
    match processor {
        // SAFETY: the processor has these instructions wherever it is said to be `Processor::Avx512`; sizes were checked.
        #[cfg(target_arch = "x86_64")]
        Processor::Avx512 => unsafe { avx512::product(f, c, c_stride) },
        // SAFETY: likewise.
        #[cfg(target_arch = "x86_64")]
        Processor::Avx2 => unsafe { avx2::product(f, c, c_stride) },
        _ => scalar(f, c, c_stride),
    }
}

/// The twin of the others, which differ in fusing multiplications and additions.
fn scalar(f: Factors<'_>, c: &mut [f32], c_stride: usize) {
    for row in 0..f.rows {
        for first in (0..f.columns).step_by(COLUMNS) {
            let mut acc = [0f32; COLUMNS];
            for (depth, a) in f.a[row * f.a_stride..][..f.depth].iter().enumerate() {
                for (acc, b) in acc.iter_mut().zip(&f.b[depth * f.b_stride + first..][..COLUMNS]) {
                    *acc += a * b;
                }
            }
            c[row * c_stride + first..][..COLUMNS].iter_mut().zip(acc).for_each(|(c, acc)| *c += acc);
        }
    }
}

/// Cuts a product into tiles whose sums stay in registers: `$tile::<ROWS, GROUPS>(factors, row, column, c, c_stride)`.
#[cfg(target_arch = "x86_64")]
macro_rules! tiled {
    ($features:literal, $widest:literal) => {
        /// # Safety
        /// Needs the instructions, and factors and product of the sizes that they are said to have.
        #[target_feature(enable = $features)]
        pub unsafe fn product(f: Factors<'_>, c: &mut [f32], c_stride: usize) {
            let mut row = 0;
            while row < f.rows {
                // SAFETY: as many rows as there are left.
                row += unsafe {
                    match f.rows - row {
                        6.. => rows::<6>(f, row, c, c_stride),
                        4.. => rows::<4>(f, row, c, c_stride),
                        2.. => rows::<2>(f, row, c, c_stride),
                        _ => rows::<1>(f, row, c, c_stride),
                    }
                };
            }
        }

        #[target_feature(enable = $features)]
        unsafe fn rows<const ROWS: usize>(f: Factors<'_>, row: usize, c: &mut [f32], c_stride: usize) -> usize {
            let mut column = 0;
            while column < f.columns {
                // SAFETY: as many groups of columns as there are left.
                column += unsafe {
                    match ((f.columns - column) / COLUMNS).min($widest) {
                        4.. => tile::<ROWS, 4>(f, row, column, c, c_stride),
                        2.. => tile::<ROWS, 2>(f, row, column, c, c_stride),
                        _ => tile::<ROWS, 1>(f, row, column, c, c_stride),
                    }
                };
            }
            ROWS
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::*;

    tiled!("avx512f", 4);

    #[target_feature(enable = "avx512f")]
    unsafe fn tile<const ROWS: usize, const GROUPS: usize>(
        f: Factors<'_>,
        row: usize,
        column: usize,
        c: &mut [f32],
        c_stride: usize,
    ) -> usize {
        let mut acc = [[_mm512_setzero_ps(); GROUPS]; ROWS];
        let a = f.a[row * f.a_stride..].as_ptr();
        let b = f.b[column..].as_ptr();
        for depth in 0..f.depth {
            // SAFETY: rows of B have `GROUPS` registers from here on.
            let b: [__m512; GROUPS] =
                std::array::from_fn(|g| unsafe { _mm512_loadu_ps(b.add(depth * f.b_stride + g * COLUMNS)) });
            for (r, acc) in acc.iter_mut().enumerate() {
                // SAFETY: A has this many rows and columns.
                let a = _mm512_set1_ps(unsafe { *a.add(r * f.a_stride + depth) });
                for (acc, b) in acc.iter_mut().zip(b) {
                    *acc = _mm512_fmadd_ps(a, b, *acc);
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            for (acc, c) in acc.iter().zip(c[(row + r) * c_stride + column..].as_chunks_mut::<COLUMNS>().0) {
                // SAFETY: sixteen sums.
                unsafe { _mm512_storeu_ps(c.as_mut_ptr(), _mm512_add_ps(_mm512_loadu_ps(c.as_ptr()), *acc)) };
            }
        }
        GROUPS * COLUMNS
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::*;

    // More would not stay in registers.
    tiled!("avx2,fma", 1);

    #[target_feature(enable = "avx2,fma")]
    unsafe fn tile<const ROWS: usize, const GROUPS: usize>(
        f: Factors<'_>,
        row: usize,
        column: usize,
        c: &mut [f32],
        c_stride: usize,
    ) -> usize {
        let mut acc = [[[_mm256_setzero_ps(); 2]; GROUPS]; ROWS];
        let a = f.a[row * f.a_stride..].as_ptr();
        let b = f.b[column..].as_ptr();
        for depth in 0..f.depth {
            let half = |i: usize| depth * f.b_stride + 8 * i;
            // SAFETY: rows of B have `2 GROUPS` registers from here on.
            let b: [[__m256; 2]; GROUPS] = std::array::from_fn(|g| unsafe {
                [_mm256_loadu_ps(b.add(half(2 * g))), _mm256_loadu_ps(b.add(half(2 * g + 1)))]
            });
            for (r, acc) in acc.iter_mut().enumerate() {
                // SAFETY: A has this many rows and columns.
                let a = _mm256_set1_ps(unsafe { *a.add(r * f.a_stride + depth) });
                for (acc, b) in acc.iter_mut().flatten().zip(b.as_flattened()) {
                    *acc = _mm256_fmadd_ps(a, *b, *acc);
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            for (acc, c) in acc.as_flattened().iter().zip(c[(row + r) * c_stride + column..].as_chunks_mut::<8>().0) {
                // SAFETY: eight sums.
                unsafe { _mm256_storeu_ps(c.as_mut_ptr(), _mm256_add_ps(_mm256_loadu_ps(c.as_ptr()), *acc)) };
            }
        }
        GROUPS * COLUMNS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::tests::{processors, ramp};

    #[test]
    fn products_by_definition() {
        for (rows, depth, columns) in [(1, 7, 16), (2, 64, 48), (3, 5, 64), (6, 33, 80), (13, 64, 128), (5, 1, 112)] {
            let (a_stride, b_stride, c_stride) = (depth + 3, columns + 5, columns + 1);
            let (a, b, c) = (ramp(rows * a_stride, 1), ramp(depth * b_stride, 2), ramp(rows * c_stride, 3));
            for processor in processors() {
                let mut got = c.clone();
                add_product(processor, Factors { a: &a, a_stride, b: &b, b_stride, rows, depth, columns }, &mut got, c_stride);
                for (i, (got, before)) in got.iter().zip(&c).enumerate() {
                    let (row, column) = (i / c_stride, i % c_stride);
                    let term = |d: usize| f64::from(a[row * a_stride + d]) * f64::from(b[d * b_stride + column]);
                    let added: f64 = if column < columns { (0..depth).map(term).sum() } else { 0.0 };
                    assert!((f64::from(*got) - f64::from(*before) - added).abs() < 1e-4, "{processor:?} {row} {column}");
                }
            }
        }
    }
}
