//! The nearest point of a codebook, exactly: for each cell of the lattice, the points that are nearest to some place in it.

use super::codebook::{Codebook, MAX_LEVEL, WIDTH, cell, levels};

/// Points close to a cell's middle that others are measured against.
const CLOSE: usize = 6;

/// A codebook prepared for finding nearest points.
pub(super) struct Nearest {
    /// The values of the levels.
    values: [f32; 8],
    /// The points' levels and values, and the sums of their squares.
    points: Vec<([u8; WIDTH], [f32; WIDTH], f32)>,
    /// Where each cell's candidates begin in `candidates`, and where the last one's end.
    starts: Vec<u32>,
    candidates: Vec<u16>,
}

impl Nearest {
    pub fn new(book: &Codebook, values: [f32; 8]) -> Self {
        let points: Vec<_> = (0..book.len() as u16)
            .map(|p| {
                let v = book.levels(p).map(|l| values[l as usize]);
                (book.levels(p), v, v.iter().map(|v| v * v).sum())
            })
            .collect();
        let (mut starts, mut candidates) = (vec![0], Vec::new());
        for centre in 0..1usize << (3 * WIDTH) {
            let centre = levels(centre).map(|l| l as usize);
            // The cell is bounded by the middles between levels, and open beyond the last ones.
            let low = centre.map(|l| if l == 0 { f32::NEG_INFINITY } else { (values[l - 1] + values[l]) / 2.0 });
            let high = centre.map(|l| if l == MAX_LEVEL as usize { f32::INFINITY } else { (values[l] + values[l + 1]) / 2.0 });
            let mut by_distance: Vec<(f32, u16)> = points
                .iter()
                .enumerate()
                .map(|(i, p)| ((0..WIDTH).map(|k| (p.1[k] - values[centre[k]]).powi(2)).sum(), i as u16))
                .collect();
            let (close, _, _) = by_distance.select_nth_unstable_by(CLOSE, |a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            let close: Vec<u16> = close.iter().map(|c| c.1).collect();
            // |x − a|² − |x − b|² is linear in x, so that it is least in a corner.
            let beaten = |a: &[f32; WIDTH], b: &[f32; WIDTH]| {
                let part = |k: usize| {
                    let corner = if a[k] > b[k] { high[k] } else { low[k] };
                    if a[k] == b[k] { 0.0 } else { (a[k] - b[k]) * (a[k] + b[k] - 2.0 * corner) }
                };
                (0..WIDTH).map(part).sum::<f32>() >= 0.0
            };
            let nowhere = |i: usize| close.iter().any(|&c| c as usize != i && beaten(&points[i].1, &points[c as usize].1));
            candidates.extend((0..points.len()).filter(|&i| !nowhere(i)).map(|i| i as u16));
            starts.push(candidates.len() as u32);
        }
        Nearest { values, points, starts, candidates }
    }

    /// The levels of the point nearest to `x`, and its squared distance less |x|².
    pub fn find(&self, x: [f32; WIDTH]) -> ([u8; WIDTH], f32) {
        let unit = self.values[1] - self.values[0];
        let level = |x: f32| ((x - self.values[0]) / unit + 0.5) as u8;
        // Wherever the last level is, the others are a unit apart.
        let last = (self.values[6] + self.values[7]) / 2.0;
        let cell = cell(x.map(|x| if x >= last { MAX_LEVEL as u8 } else { level(x).min(MAX_LEVEL as u8 - 1) }));
        let mut best = ([0; WIDTH], f32::INFINITY);
        for &c in &self.candidates[self.starts[cell] as usize..self.starts[cell + 1] as usize] {
            let (levels, v, squares) = &self.points[c as usize];
            let score = squares - 2.0 * (x[0] * v[0] + x[1] * v[1] + x[2] * v[2] + x[3] * v[3]);
            if score < best.1 {
                best = (*levels, score);
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::super::codebook;
    use super::*;

    #[test]
    fn no_point_is_nearer() {
        for (book, values) in [
            (&*codebook::IQ3_S, [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0]),
            (&*codebook::IQ3_XXS, [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0]),
        ] {
            let nearest = Nearest::new(book, values);
            let mut random = 1u32;
            let mut next = |most: f32| {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (random >> 8) as f32 / 16_777_216.0 * most
            };
            for i in 0..4000 {
                let most = values[7] * [0.3, 1.0, 1.3, 4.0][i % 4];
                let x: [f32; 4] = std::array::from_fn(|_| next(1.2 * most) - 0.2 * most);
                let distance =
                    |l: [u8; 4]| -> f64 { l.iter().zip(x).map(|(&l, x)| (values[l as usize] as f64 - x as f64).powi(2)).sum() };
                let found = distance(nearest.find(x).0);
                let least = (0..book.len() as u16).map(|p| distance(book.levels(p))).fold(f64::INFINITY, f64::min);
                assert!(found <= least * (1.0 + 1e-5), "{x:?}: {found} {least}");
            }
        }
    }
}
