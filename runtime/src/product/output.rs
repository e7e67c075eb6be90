//! A result that several threads write, each its own columns.

use std::cell::UnsafeCell;

/// A matrix `(rows, columns)` being written.
pub(crate) struct Output {
    values: Vec<UnsafeCell<f32>>,
    columns: usize,
}

// SAFETY: the only way to reach the values through a shared reference is `write`, whose callers keep their places apart.
unsafe impl Sync for Output {}

impl Output {
    /// A matrix of zeros.
    pub fn new(rows: usize, columns: usize) -> Self {
        Output { values: (0..rows * columns).map(|_| UnsafeCell::new(0.0)).collect(), columns }
    }

    /// Writes consecutive values of a row.
    ///
    /// # Safety
    /// No two threads may write the same place.
    pub unsafe fn write(&self, row: usize, column: usize, values: &[f32]) {
        assert!(column + values.len() <= self.columns, "columns of the result");
        for (to, value) in self.values[row * self.columns + column..][..values.len()].iter().zip(values) {
            // SAFETY: as the caller says, nobody else is at this place.
            unsafe { *to.get() = *value };
        }
    }

    /// The matrix, row-major.
    pub fn into_vec(self) -> Vec<f32> {
        self.values.into_iter().map(UnsafeCell::into_inner).collect()
    }
}
