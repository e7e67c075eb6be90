//! Codebooks of points of four levels each, as IQ3_XXS and IQ3_S have them: which point is at a cell of the lattice of levels,
//! and which points are near one that has none. Levels are 0 to 7; level l stands for the odd number 2·l + 1.

use super::iq3_points;
use crate::simd::{Lanes, MAX_LANES, MaskLanes};
use std::sync::LazyLock;

/// Weights per point.
pub(super) const WIDTH: usize = 4;
/// Bits per level.
const BITS: usize = 3;
/// Largest level.
pub(super) const MAX_LEVEL: i32 = (1 << BITS) - 1;
/// Cells of the lattice.
const CELLS: usize = 1 << (BITS * WIDTH);
/// Stands for no point.
const NONE: u16 = u16::MAX;

/// The codebook of IQ3_XXS. Neighbours are the points at the two smallest distances.
pub(super) static IQ3_XXS: LazyLock<Codebook> = LazyLock::new(|| Codebook::new(&iq3_points::IQ3_XXS, 2));
/// The codebook of IQ3_S. Neighbours are the points at the three smallest distances.
pub(super) static IQ3_S: LazyLock<Codebook> = LazyLock::new(|| Codebook::new(&iq3_points::IQ3_S, 3));

/// A codebook with the maps that searches need.
pub(super) struct Codebook {
    /// The points' levels, packed as cells are.
    points: &'static [u16],
    /// The point at each cell, or [`NONE`].
    at: Vec<u16>,
    /// Where each cell's neighbours begin in `neighbours`, and where the last one's end.
    starts: Vec<u32>,
    /// The cells of points near cells without one, by distance, then by the points' index: the order decides between equals.
    neighbours: Vec<u16>,
    /// The odd numbers of the neighbours: of each cell's, all first weights', then all second weights', ...
    odds: Vec<f32>,
}

/// Four weights for which a point is sought.
pub(super) struct Query {
    /// The weights.
    pub x: [f32; WIDTH],
    /// By what squared differences are multiplied.
    weights: [f32; WIDTH],
    /// Twice the products of both.
    twice: [f32; WIDTH],
    /// Scores that differ by more than this differ as distances do.
    margin: f32,
}

/// The cell of four levels.
pub(super) fn cell(levels: [u8; WIDTH]) -> usize {
    levels.iter().rev().fold(0, |cell, &l| cell << BITS | l as usize)
}

/// The levels of a cell.
pub(super) fn levels(cell: usize) -> [u8; WIDTH] {
    std::array::from_fn(|i| (cell >> (BITS * i)) as u8 & MAX_LEVEL as u8)
}

/// The odd number that a level stands for.
pub(super) const fn odd(level: u8) -> f32 {
    (2 * level + 1) as f32
}

impl Codebook {
    fn new(points: &'static [u16], distances: usize) -> Self {
        let mut at = vec![NONE; CELLS];
        for (i, &point) in points.iter().enumerate() {
            at[point as usize] = i as u16;
        }
        let (mut starts, mut neighbours) = (vec![0], Vec::new());
        let mut rings = vec![Vec::new(); WIDTH * (MAX_LEVEL * MAX_LEVEL) as usize + 1];
        for (centre, &point) in at.iter().enumerate() {
            if point == NONE {
                for &point in points {
                    let far = |(a, b): (u8, u8)| a.abs_diff(b) as usize * a.abs_diff(b) as usize;
                    let distance = levels(centre).into_iter().zip(levels(point as usize)).map(far).sum::<usize>();
                    rings[distance].push(point);
                }
                for ring in rings.iter().filter(|r| !r.is_empty()).take(distances) {
                    neighbours.extend_from_slice(ring);
                }
                rings.iter_mut().for_each(Vec::clear);
            }
            starts.push(neighbours.len() as u32);
        }
        let mut odds = Vec::with_capacity(WIDTH * neighbours.len() + MAX_LANES);
        for ends in starts.windows(2) {
            let near = &neighbours[ends[0] as usize..ends[1] as usize];
            for i in 0..WIDTH {
                odds.extend(near.iter().map(|&near| odd(levels(near as usize)[i])));
            }
        }
        // Lanes beyond the last neighbour read on.
        odds.extend([0.0; MAX_LANES]);
        Codebook { points, at, starts, neighbours, odds }
    }

    /// How many points there are.
    pub fn len(&self) -> usize {
        self.points.len()
    }
    /// The levels of a point.
    pub fn levels(&self, point: u16) -> [u8; WIDTH] {
        levels(self.points[point as usize] as usize)
    }
    /// The point at a cell, if there is one.
    pub fn at(&self, cell: usize) -> Option<u16> {
        Some(self.at[cell]).filter(|&p| p != NONE)
    }
    /// The cells of the points near a cell that has none.
    pub fn neighbours(&self, cell: usize) -> &[u16] {
        &self.neighbours[self.starts[cell] as usize..self.starts[cell + 1] as usize]
    }

    /// The neighbour of `cell` that is nearest to the query at this scale; the first of equals. Every sum is in ggml's order
    /// (`iq3_find_best_neighbour`), because the bytes depend on it.
    #[inline(never)]
    fn nearest_in_order(&self, cell: usize, query: &Query, scale: f32) -> i32 {
        let near = self.neighbours(cell);
        let (mut best, mut least) = (near[0], f32::MAX);
        for &near in near {
            let mut distance = 0f32;
            for ((&x, &w), l) in query.x.iter().zip(&query.weights).zip(levels(near as usize)) {
                let diff = scale * odd(l) - x;
                distance += w * diff * diff;
            }
            if distance < least {
                (best, least) = (near, distance);
            }
        }
        i32::from(best)
    }

    /// [`Codebook::nearest_in_order`] for several scales.
    #[inline(always)]
    pub fn nearest_neighbours<F: Lanes>(&self, cell: usize, query: &Query, scales: &[f32], nearest: &mut [i32]) {
        let n = self.neighbours(cell).len();
        if n <= F::N {
            self.compare::<F, 1>(cell, query, scales, nearest);
        } else if n <= 2 * F::N {
            self.compare::<F, 2>(cell, query, scales, nearest);
        } else if n <= 5 * F::N {
            self.compare::<F, 5>(cell, query, scales, nearest);
        } else {
            for (nearest, &scale) in nearest.iter_mut().zip(scales) {
                *nearest = self.nearest_in_order(cell, query, scale);
            }
        }
    }

    /// The same with a neighbour per lane, of at most `V` times as many lanes. Less |x|² and divided by the scale, a distance is
    /// linear in the scale: two coefficients per neighbour do for all scales. Where one neighbour wins by more than rounding can
    /// hide, it is the one; otherwise distances are summed in order.
    #[inline(always)]
    fn compare<F: Lanes, const V: usize>(&self, cell: usize, query: &Query, scales: &[f32], nearest: &mut [i32]) {
        let near = self.neighbours(cell);
        let n = near.len();
        let odds = &self.odds[WIDTH * self.starts[cell] as usize..];
        let (mut slope, mut constant) = ([F::zero(); V], [F::splat(f32::NEG_INFINITY); V]);
        for v in 0..V {
            let at = v * F::N;
            if at >= n {
                break;
            }
            let mut sum = F::zero();
            for k in 0..WIDTH {
                let q = F::load(&odds[k * n + at..]);
                slope[v] = slope[v] + F::splat(query.weights[k]) * q * q;
                sum = sum + F::splat(query.twice[k]) * q;
            }
            // Lanes beyond the last neighbour never win.
            constant[v] = F::select(F::load(&COUNT).lt(F::splat((n - at) as f32)), sum, constant[v]);
        }
        for (nearest, &scale) in nearest.iter_mut().zip(scales) {
            let mut scores = [F::zero(); V];
            let mut best = slope[0] * F::splat(scale) - constant[0];
            scores[0] = best;
            for v in 1..V {
                scores[v] = slope[v] * F::splat(scale) - constant[v];
                best = best.min(scores[v]);
            }
            let bound = least(best) + query.margin;
            let mut close = 0u128;
            for (v, score) in scores.into_iter().enumerate() {
                close |= u128::from(score.le(F::splat(bound)).bits()) << (v * F::N);
            }
            *nearest = if bound < f32::INFINITY && close.is_power_of_two() {
                i32::from(near[close.trailing_zeros() as usize])
            } else {
                self.nearest_in_order(cell, query, scale)
            };
        }
    }
}

/// The numbers of the lanes.
const COUNT: [f32; MAX_LANES] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// The least of the lanes.
#[inline(always)]
fn least<F: Lanes>(x: F) -> f32 {
    let mut lanes = [0f32; MAX_LANES];
    x.store(&mut lanes);
    let mut width = F::N;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            lanes[i] = if lanes[i + width] < lanes[i] { lanes[i + width] } else { lanes[i] };
        }
    }
    lanes[0]
}

impl Query {
    /// `scales` are the least and the greatest that will occur.
    ///
    /// The margin: with u = 2⁻²⁴ and q the odd numbers, a distance Σ w (s·q − x)² computed in f32 is off by at most 10 u·S, where
    /// S = Σ w (s·q + |x|)², and s times a score of [`Codebook::compare`] by at most 8 u·S. Two neighbours whose scores differ by
    /// 36 u·S / s are therefore ordered as ggml orders them. Where S is so small or so large that products leave f32's normal range,
    /// nothing is certain.
    #[inline(always)]
    pub fn new(x: &[f32], weights: &[f32], scales: (f32, f32)) -> Self {
        let (x, weights): ([f32; WIDTH], [f32; WIDTH]) = (std::array::from_fn(|i| x[i]), std::array::from_fn(|i| weights[i]));
        let top = scales.1 * odd(MAX_LEVEL as u8);
        let mut s = 0f32;
        for i in 0..WIDTH {
            let reach = top + x[i].abs();
            s += weights[i] * reach * reach;
        }
        let margin = if s > 1e-25 && s < 1e30 && scales.0 > 0.0 { s / scales.0 * (40.0 / 16_777_216.0) } else { f32::INFINITY };
        let mut twice = [0f32; WIDTH];
        for i in 0..WIDTH {
            twice[i] = 2.0 * (weights[i] * x[i]);
        }
        Query { x, weights, twice, margin }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, Portable, dispatch};

    #[test]
    fn every_cell_has_a_point_or_neighbours() {
        for (book, size) in [(&*IQ3_XXS, 256), (&*IQ3_S, 512)] {
            assert_eq!(book.len(), size);
            let mut found = 0;
            for c in 0..CELLS {
                assert_eq!(cell(levels(c)), c);
                match book.at(c) {
                    Some(point) => {
                        assert_eq!(cell(book.levels(point)), c);
                        assert!(book.neighbours(c).is_empty());
                        found += 1;
                    }
                    None => assert!(!book.neighbours(c).is_empty()),
                }
            }
            assert_eq!(found, size);
        }
    }

    #[test]
    fn neighbours_are_the_nearest_in_order() {
        let distance = |a: [u8; 4], b: [u8; 4]| a.into_iter().zip(b).map(|(a, b)| (a as i32 - b as i32).pow(2)).sum::<i32>();
        for (book, distances) in [(&*IQ3_XXS, 2), (&*IQ3_S, 3)] {
            for c in (0..CELLS).step_by(7).filter(|&c| book.at(c).is_none()) {
                let mut all: Vec<(i32, u16)> = (0..book.len() as u16).map(|p| (distance(levels(c), book.levels(p)), p)).collect();
                all.sort();
                let mut kinds: Vec<i32> = all.iter().map(|a| a.0).collect();
                kinds.dedup();
                let near = all.iter().filter(|a| a.0 <= kinds[distances - 1]);
                let want: Vec<u16> = near.map(|a| cell(book.levels(a.1)) as u16).collect();
                assert_eq!(book.neighbours(c), want, "cell {c}");
            }
        }
    }

    /// All scales of a query, with the widest lanes.
    struct Wide<'a>(&'a Codebook, usize, &'a Query, &'a [f32]);

    impl Kernel for Wide<'_> {
        type Output = Vec<i32>;
        #[inline(always)]
        fn run<F: Lanes>(self) -> Vec<i32> {
            let mut nearest = vec![-1; self.3.len()];
            self.0.nearest_neighbours::<F>(self.1, self.2, self.3, &mut nearest);
            nearest
        }
    }

    #[test]
    fn lanes_find_what_the_order_finds() {
        let mut random = 7u32;
        let mut next = || {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 8) as f32 / 16_777_216.0
        };
        for book in [&*IQ3_XXS, &*IQ3_S] {
            for c in (0..CELLS).filter(|&c| book.at(c).is_none()) {
                // Of any size, from where products vanish to where they overflow; coarse numbers have neighbours at equal distances.
                let size = [1.0, 1e-3, 1e-9, 1e-20, 1e12, 1e19][c % 6];
                let coarse = c % 3 == 0;
                let x = levels(c).map(|l| size * (odd(l) + if coarse { 0.0 } else { 2.0 * next() - 1.0 }));
                let w: [f32; WIDTH] = std::array::from_fn(|_| if coarse { 1.0 } else { next() * size });
                let scales: Vec<f32> = (0..7).map(|i| size * (1.12 - 0.04 * i as f32)).collect();
                let query = Query::new(&x, &w, (scales[6], scales[0]));
                let want: Vec<i32> = scales.iter().map(|&s| book.nearest_in_order(c, &query, s)).collect();
                assert_eq!(dispatch(Wide(book, c, &query, &scales)), want, "cell {c}");
                assert_eq!(Wide(book, c, &query, &scales).run::<Portable<1>>(), want, "cell {c}");
            }
        }
    }
}
