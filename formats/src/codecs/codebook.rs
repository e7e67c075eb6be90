//! Codebooks of points of four levels each, as IQ3_XXS and IQ3_S have them: which point is at a cell of the lattice of levels,
//! and which points are near one that has none. Levels are 0 to 7; level l stands for the odd number 2·l + 1.

use super::iq3_points;
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
    /// Points near the cells without a point, by distance, then by index: the order decides between equals.
    neighbours: Vec<u16>,
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
pub(super) fn odd(level: u8) -> f32 {
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
                for (i, &point) in points.iter().enumerate() {
                    let far = |(a, b): (u8, u8)| a.abs_diff(b) as usize * a.abs_diff(b) as usize;
                    let distance = levels(centre).into_iter().zip(levels(point as usize)).map(far).sum::<usize>();
                    rings[distance].push(i as u16);
                }
                for ring in rings.iter().filter(|r| !r.is_empty()).take(distances) {
                    neighbours.extend_from_slice(ring);
                }
                rings.iter_mut().for_each(Vec::clear);
            }
            starts.push(neighbours.len() as u32);
        }
        Codebook { points, at, starts, neighbours }
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
    /// The points near a cell that has none.
    pub fn neighbours(&self, cell: usize) -> &[u16] {
        &self.neighbours[self.starts[cell] as usize..self.starts[cell + 1] as usize]
    }

    /// The neighbour of `cell` that is nearest to `x` at this scale under these weights; the first of equals. Every sum is in
    /// ggml's order (`iq3_find_best_neighbour`), because the bytes depend on it.
    pub fn nearest_neighbour(&self, cell: usize, scale: f32, x: &[f32], weights: &[f32]) -> u16 {
        let near = self.neighbours(cell);
        let (mut best, mut least) = (near[0], f32::MAX);
        for &point in near {
            let mut distance = 0f32;
            for ((&x, &w), l) in x.iter().zip(weights).zip(self.levels(point)) {
                let diff = scale * odd(l) - x;
                distance += w * diff * diff;
            }
            if distance < least {
                (best, least) = (point, distance);
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
                let want: Vec<u16> = all.iter().filter(|a| a.0 <= kinds[distances - 1]).map(|a| a.1).collect();
                assert_eq!(book.neighbours(c), want, "cell {c}");
            }
        }
    }
}
