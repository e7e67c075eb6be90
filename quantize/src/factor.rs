//! The factor of an inverse that error feedback moves columns by, in f64 and in one square of memory.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::matmul::triangular::{BlockStructure, matmul};
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::prelude::{Reborrow, ReborrowMut};
use faer::{Accum, Mat, MatMut};
use ndarray::Array2;

/// Columns that [`invert`] takes together.
const BLOCK: usize = 256;

/// U of `(H + λI)⁻¹ = Uᵀ U` for the columns of `order`, in that order, or `None` if the matrix is not positive definite in f64.
///
/// With `J H J = L Lᵀ` (J reverses the order), `U = J L⁻¹ J`: one Cholesky factor and one triangular inverse.
pub(crate) fn factor(h: &Array2<f32>, order: &[usize], lambda: f64) -> Option<Array2<f32>> {
    let n = order.len();
    let par = faer::get_global_parallelism();
    let mut l = Mat::<f64>::zeros(n, n);
    for j in 0..n {
        // Only the lower triangle is read.
        let row = h.row(order[n - 1 - j]);
        for i in j..n {
            l[(i, j)] = f64::from(row[order[n - 1 - i]]) + if i == j { lambda } else { 0.0 };
        }
    }
    let mut memory = MemBuffer::new(cholesky_in_place_scratch::<f64>(n, par, Default::default()));
    let stack = MemStack::new(&mut memory);
    cholesky_in_place(l.as_mut(), Default::default(), par, stack, Default::default()).ok()?;
    invert(l.as_mut());
    let mut u = Array2::zeros((n, n));
    for (j, mut row) in u.rows_mut().into_iter().enumerate().map(|(i, row)| (n - 1 - i, row)) {
        for k in 0..=j {
            row[n - 1 - k] = l[(j, k)] as f32;
        }
    }
    u.iter().all(|v| v.is_finite()).then_some(u)
}

/// A lower triangular matrix becomes its inverse, a block of columns after the other, from the last on: below a diagonal block A, with B
/// under it and D⁻¹ there already, the inverse has `−D⁻¹ B A⁻¹`.
fn invert(mut l: MatMut<'_, f64>) {
    use BlockStructure::{Rectangular, TriangularLower};
    let n = l.nrows();
    let par = faer::get_global_parallelism();
    let mut inverse = Mat::<f64>::zeros(BLOCK.min(n), BLOCK.min(n));
    let mut product = Mat::<f64>::zeros(n, BLOCK.min(n));
    for lo in (0..n).step_by(BLOCK).rev() {
        let width = BLOCK.min(n - lo);
        let (_, _, columns, rest) = l.rb_mut().get_mut(lo.., lo..).split_at_mut(0, width);
        let (mut corner, mut below) = columns.split_at_row_mut(width);
        let rest = rest.get(width.., ..);
        let mut inverse = inverse.get_mut(..width, ..width);
        let mut product = product.get_mut(..below.nrows(), ..width);
        invert_lower_triangular(inverse.rb_mut(), corner.rb(), par);
        matmul(product.rb_mut(), Rectangular, Accum::Replace, rest, TriangularLower, below.rb(), Rectangular, 1.0, par);
        matmul(below.rb_mut(), Rectangular, Accum::Replace, product.rb(), Rectangular, inverse.rb(), TriangularLower, -1.0, par);
        corner.copy_from_triangular_lower(inverse.rb());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_times_itself_is_the_inverse() {
        // Several blocks, the last of them short.
        for n in [1, 5, BLOCK, 2 * BLOCK + 37] {
            let x = Array2::from_shape_fn((n + 9, n), |(t, c)| ((t * 7919 + c * 104_729 + t * c) % 1009) as f32 / 504.5 - 1.0);
            let h = x.t().dot(&x) / n as f32;
            let order: Vec<usize> = (0..n).map(|i| (i * 7 + 3) % n).collect();
            let distinct = order.iter().collect::<std::collections::HashSet<_>>().len() == n;
            let order = if distinct { order } else { (0..n).rev().collect() };
            let u = factor(&h, &order, 0.1).unwrap().mapv(f64::from);
            let ordered =
                Array2::from_shape_fn((n, n), |(i, j)| f64::from(h[[order[i], order[j]]]) + if i == j { 0.1 } else { 0.0 });
            let error = (u.t().dot(&u).dot(&ordered) - Array2::<f64>::eye(n)).fold(0f64, |m, v| m.max(v.abs()));
            assert!(error < 1e-4, "{n}: {error}");
            assert!(u.indexed_iter().all(|((i, j), v)| if i == j { *v > 0.0 } else { j > i || *v == 0.0 }));
        }
        assert!(factor(&-Array2::<f32>::eye(4), &[0, 1, 2, 3], 0.5).is_none());
    }
}
