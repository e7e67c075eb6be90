//! Means, errors and percentiles. All sums are in f64 and in the order of the values.

/// Mean of values; NaN if there are none.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Mean of values and its standard error, `s / √n` with the sample standard deviation `s`, taking the values as independent.
/// The error is 0 for fewer than two values.
pub fn mean_and_stderr(values: &[f64]) -> (f64, f64) {
    let m = mean(values);
    if values.len() < 2 {
        return (m, 0.0);
    }
    let square = values.iter().map(|v| (v - m) * (v - m)).sum::<f64>();
    let n = values.len() as f64;
    (m, (square / (n * (n - 1.0))).sqrt())
}

/// Standard error of the mean over all values of several groups, taking the groups as independent and the values within one as
/// not: with group sums `sᵢ` of `nᵢ` values, `N` values and mean `m`, `√(k/(k−1) Σ (sᵢ − nᵢ m)²) / N`. `None` for fewer than two
/// groups.
pub fn grouped_stderr(groups: &[(f64, usize)]) -> Option<f64> {
    if groups.len() < 2 {
        return None;
    }
    let total: usize = groups.iter().map(|(_, n)| n).sum();
    let m = groups.iter().map(|(s, _)| s).sum::<f64>() / total as f64;
    let square: f64 = groups.iter().map(|(s, n)| (s - *n as f64 * m).powi(2)).sum();
    let k = groups.len() as f64;
    Some((k / (k - 1.0) * square).sqrt() / total as f64)
}

/// The value below which a `fraction` of sorted values lie, interpolated linearly between neighbours as llama.cpp does; NaN if
/// there are none.
pub fn percentile(sorted: &[f64], fraction: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = fraction.clamp(0.0, 1.0) * last as f64;
    let below = at.floor() as usize;
    let above = (below + 1).min(last);
    let part = at - below as f64;
    sorted[below] * (1.0 - part) + sorted[above] * part
}

/// Spearman's rank correlation of two lists of equal length, ties at their mean rank; NaN if either list has one rank only.
pub fn spearman(a: &[f64], b: &[f64]) -> f64 {
    let (a, b) = (ranks(a), ranks(b));
    let (ma, mb) = (mean(&a), mean(&b));
    let sum = |x: &[f64], mx: f64, y: &[f64], my: f64| x.iter().zip(y).map(|(x, y)| (x - mx) * (y - my)).sum::<f64>();
    sum(&a, ma, &b, mb) / (sum(&a, ma, &a, ma) * sum(&b, mb, &b, mb)).sqrt()
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|i, j| values[*i].total_cmp(&values[*j]));
    let mut ranks = vec![0.0; values.len()];
    for tied in order.chunk_by(|i, j| values[*i] == values[*j]) {
        let first = order.iter().position(|i| *i == tied[0]).unwrap_or(0);
        tied.iter().for_each(|i| ranks[*i] = first as f64 + (tied.len() - 1) as f64 / 2.0);
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_error_by_hand() {
        // Deviations −2, −1, 0, 3: squares 14; s² = 14/3; s²/4.
        let (m, e) = mean_and_stderr(&[1.0, 2.0, 3.0, 6.0]);
        assert_eq!(m, 3.0);
        assert!((e - (14.0f64 / 12.0).sqrt()).abs() < 1e-15);
        assert_eq!(mean_and_stderr(&[5.0]), (5.0, 0.0));
    }

    #[test]
    fn grouped_error_of_single_values_is_the_plain_one() {
        let values = [1.0, 2.0, 3.0, 6.0];
        let groups: Vec<_> = values.iter().map(|v| (*v, 1)).collect();
        assert!((grouped_stderr(&groups).unwrap() - mean_and_stderr(&values).1).abs() < 1e-15);
        // Two groups of two equal values each: the error is that of two values, not of four.
        let e = grouped_stderr(&[(2.0, 2), (6.0, 2)]).unwrap();
        assert!((e - mean_and_stderr(&[1.0, 3.0]).1).abs() < 1e-15);
        assert_eq!(grouped_stderr(&[(1.0, 1)]), None);
    }

    #[test]
    fn percentiles_interpolate() {
        let v = [0.0, 10.0, 20.0, 30.0];
        assert_eq!(percentile(&v, 0.5), 15.0);
        assert!((percentile(&v, 0.9) - 27.0).abs() < 1e-12);
        assert_eq!(percentile(&v, 1.0), 30.0);
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn ranks_correlate() {
        assert!((spearman(&[1.0, 2.0, 3.0], &[10.0, 100.0, 1e6]) - 1.0).abs() < 1e-15);
        assert!((spearman(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]) + 1.0).abs() < 1e-15);
        // Ranks 0, 1.5, 1.5, 3 and 0, 2, 1, 3: 4.5 / √(4.5 · 5).
        assert!((spearman(&[1.0, 2.0, 2.0, 3.0], &[1.0, 3.0, 2.0, 4.0]) - 0.9f64.sqrt()).abs() < 1e-12);
    }
}
