//! Codebooks of points with eight coordinates of three levels, as ggml's 2-bit and 1-bit formats have them, and the search for
//! the point to take for eight weights.
//!
//! ggml rounds each weight by itself. If the eight levels are not a point of the book, it compares the point's neighbours: the
//! points at the one to three smallest distances in level space, in order of distance and then of index; the first of the
//! closest wins. (`ggml-quants.c`: `iq2xs_init_impl`, `iq2_find_best_neighbour`, `iq1_find_best_neighbour2`.) The lists depend
//! on the book alone and are made at first use.

use super::codebook8_points as points;
use crate::simd::{IntLanes, Lanes, MAX_LANES, MaskLanes, Portable, nearest};
use std::array::from_fn;
use std::sync::LazyLock;

/// Coordinates of a point, and weights that share an index.
pub(super) const WIDTH: usize = 8;

/// What each level of each coordinate costs: `terms[4 · i + level]`, the fourth unused.
pub(super) type Terms = [f32; 4 * WIDTH];

/// Points in the lower halves of a stretch of a list.
const HALVES: usize = 8;
/// Points of half the coordinates, 3⁴.
const HALF: usize = 81;
const RANKS: usize = HALF * HALF;
/// Marks a place that holds a list of neighbours instead of a point; above [`LIST_AT`] is where the list starts.
const OFF: u32 = 1 << 31;
const LIST_AT: u32 = 10;

/// The points of IQ2_XXS.
pub(super) static IQ2_XXS: LazyLock<Codebook> = LazyLock::new(|| Codebook::new(points::IQ2_XXS, 2, [8.0, 25.0, 43.0]));
/// The points of IQ2_XS.
pub(super) static IQ2_XS: LazyLock<Codebook> = LazyLock::new(|| Codebook::new(points::IQ2_XS, 2, [8.0, 25.0, 43.0]));
/// The points of IQ2_S.
pub(super) static IQ2_S: LazyLock<Codebook> = LazyLock::new(|| Codebook::new(points::IQ2_S, 1, [8.0, 25.0, 43.0]));
/// The points of IQ1_S and IQ1_M.
pub(super) static IQ1: LazyLock<Codebook> = LazyLock::new(|| Codebook::new(points::IQ1, 3, [-1.0, 0.0, 1.0]));

/// A set of points. A point's levels are written as a u16, two bits for each coordinate, the first lowest.
pub(super) struct Codebook {
    /// The levels of each point, ascending.
    levels: Vec<u16>,
    /// What the runtime multiplies by the step: for each point, its coordinates' values.
    values: Vec<[f32; WIDTH]>,
    /// By rank: the index of the point that has these levels; or [`OFF`], where the list of neighbours starts, and its length.
    places: Vec<u32>,
    /// Levels of neighbours, sixteen to eight integers: the first eight in the lower halves, the others in the upper. Padded for
    /// the widest lanes.
    lists: Vec<i32>,
    /// Where the list of all points starts.
    all: usize,
}

/// Σ levelᵢ · 3ⁱ of four coordinates.
const RANK: [u16; 256] = {
    let mut ranks = [0; 256];
    let mut code = 0;
    while code < 256 {
        ranks[code] = (code & 3) as u16 + 3 * (code >> 2 & 3) as u16 + 9 * (code >> 4 & 3) as u16 + 27 * (code >> 6) as u16;
        code += 1;
    }
    ranks
};

/// Σ levelᵢ · 3ⁱ of all coordinates.
fn rank(levels: u16) -> usize {
    RANK[levels as usize & 255] as usize + HALF * RANK[levels as usize >> 8] as usize
}

/// The levels of a rank.
fn levels_of(rank: usize) -> u16 {
    (0..WIDTH).fold((0, rank), |(levels, rest), i| (levels | ((rest % 3) << (2 * i)) as u16, rest / 3)).0
}

/// Squared distance of two points of half the coordinates.
fn half_distance(a: usize, b: usize) -> u8 {
    (0..4).map(|i| (a / 3usize.pow(i) % 3).abs_diff(b / 3usize.pow(i) % 3).pow(2) as u8).sum()
}

impl Codebook {
    /// The book of the points in `bitmap`, with lists of the neighbours at the `rings` smallest distances. `values` are what the
    /// levels stand for.
    fn new(bitmap: &str, rings: usize, values: [f32; 3]) -> Self {
        let bit = |rank: usize| {
            let digit = bitmap.as_bytes()[rank / 8 * 2 + usize::from(rank % 8 < 4)];
            (digit as char).to_digit(16).unwrap_or(0) >> (rank % 4) & 1 == 1
        };
        let ranks: Vec<usize> = (0..RANKS).filter(|&r| bit(r)).collect();
        let levels: Vec<u16> = ranks.iter().map(|&r| levels_of(r)).collect();
        let mut book = Codebook {
            values: levels.iter().map(|l| from_fn(|i| values[(l >> (2 * i) & 3) as usize])).collect(),
            levels,
            places: vec![0; RANKS],
            lists: Vec::new(),
            all: 0,
        };
        // Distances come in two halves of the coordinates: of each lower half to all points, and of each upper half.
        let table: Vec<u8> = (0..HALF * HALF).map(|r| half_distance(r / HALF, r % HALF)).collect();
        let row = |a: usize, half: fn(usize) -> usize| ranks.iter().map(|&r| table[a * HALF + half(r)]).collect();
        let lower: Vec<Vec<u8>> = (0..HALF).map(|a| row(a, |r| r % HALF)).collect();
        let upper: Vec<Vec<u8>> = (0..HALF).map(|a| row(a, |r| r / HALF)).collect();
        let mut distances = vec![0u8; ranks.len()];
        let mut list: Vec<u16> = Vec::new();
        for rank in 0..RANKS {
            for ((d, l), u) in distances.iter_mut().zip(&lower[rank % HALF]).zip(&upper[rank / HALF]) {
                *d = l + u;
            }
            list.clear();
            let mut ring = distances.iter().fold(u8::MAX, |m, &d| m.min(d));
            if ring == 0 {
                continue;
            }
            for _ in 0..rings {
                for (at, chunk) in distances.chunks(32).enumerate() {
                    // Most chunks have none: one comparison of all is cheaper than a branch for each.
                    if chunk.iter().fold(false, |any, &d| any | (d == ring)) {
                        let equal = chunk.iter().zip(&book.levels[32 * at..]).filter(|&(&d, _)| d == ring);
                        list.extend(equal.map(|(_, &levels)| levels));
                    }
                }
                ring = distances.iter().fold(u8::MAX, |m, &d| if d > ring { m.min(d) } else { m });
            }
            book.places[rank] = OFF | (book.lists.len() as u32) << LIST_AT | list.len() as u32;
            book.push_list(&list);
        }
        for (i, &r) in ranks.iter().enumerate() {
            book.places[r] = i as u32;
        }
        book.all = book.lists.len();
        book.push_list(&book.levels.clone());
        book.lists.extend([0; MAX_LANES]);
        book
    }
    fn push_list(&mut self, list: &[u16]) {
        for chunk in list.chunks(2 * HALVES) {
            let half = |i: usize| i32::from(chunk.get(i).copied().unwrap_or(0));
            self.lists.extend((0..chunk.len().min(HALVES)).map(|i| half(i) | half(HALVES + i) << 16));
        }
    }

    /// The levels of point `index`.
    pub fn levels(&self, index: u16) -> u16 {
        self.levels[index as usize]
    }
    /// The values of point `index`.
    pub fn values(&self, index: u16) -> &[f32; WIDTH] {
        &self.values[index as usize]
    }
    /// The index of the point that has these levels, each 0 to 2, if there is one.
    pub fn index(&self, levels: u16) -> Option<u16> {
        let place = self.places[rank(levels)];
        (place & OFF == 0).then_some(place as u16)
    }
    /// The neighbour of `levels` (not a point of the book) whose terms have the least sum: the first of equals, and the first of
    /// all if every sum overflows. Sums are taken in order of the coordinates.
    #[inline(always)]
    pub fn neighbour<F: Lanes>(&self, levels: u16, terms: &Terms) -> u16 {
        let place = self.places[rank(levels)] & !OFF;
        let (start, len) = ((place >> LIST_AT) as usize, (place & ((1 << LIST_AT) - 1)) as usize);
        least::<F>(&self.lists[start..], len, terms, None).1
    }
    /// The point of the whole book whose terms have the least sum, plus the least of its entries in `extra` where there is one:
    /// the sum, and the point's levels.
    #[inline(always)]
    pub fn closest<F: Lanes>(&self, terms: &Terms, extra: Option<&Terms>) -> (f32, u16) {
        least::<F>(&self.lists[self.all..], self.levels.len(), terms, extra)
    }
}

/// A table of each coordinate's terms.
#[inline(always)]
fn quads<F: Lanes>(terms: &Terms) -> [F::Quad; WIDTH] {
    let quad = |i: usize| [terms[4 * i], terms[4 * i + 1], terms[4 * i + 2], terms[4 * i + 3]];
    let mut quads = [F::quad(&quad(0)); WIDTH];
    for (i, out) in quads.iter_mut().enumerate().skip(1) {
        *out = F::quad(&quad(i));
    }
    quads
}

/// The places in a list of the lower halves of the integers.
const PLACES: [i32; MAX_LANES] = {
    let mut places = [0; MAX_LANES];
    let mut i = 0;
    while i < MAX_LANES {
        places[i] = (i / HALVES * 2 * HALVES + i % HALVES) as i32;
        i += 1;
    }
    places
};

/// Of the first `len` points of a list, the first that has the least sum of terms, plus the least of its terms in `extra`: sum and
/// levels. Lanes are points.
#[inline(always)]
fn least<F: Lanes>(list: &[i32], len: usize, terms: &Terms, extra: Option<&Terms>) -> (f32, u16) {
    let quads = quads::<F>(terms);
    let end = F::Int::splat(len as i32);
    let mut best = F::splat(f32::MAX);
    let mut best_at = F::Int::splat(0);
    let mut at = 0;
    let mut stretch = list;
    // Below eight lanes, several loads make a stretch.
    let per = F::N.max(HALVES);
    while at < len {
        // Places must rise within a lane.
        for half in 0..2 {
            if half == 1 && at + HALVES >= len {
                break;
            }
            for part in (0..per).step_by(F::N) {
                let mut levels = F::Int::load(&stretch[part..]);
                let mut place = F::Int::load(&PLACES[part..]) + F::Int::splat(at as i32);
                if half == 1 {
                    levels = levels.shr::<16>();
                    place = place + F::Int::splat(HALVES as i32);
                }
                let mut shifted = levels;
                let mut sum = F::pick(quads[0], levels);
                for &quad in &quads[1..] {
                    shifted = shifted.shr::<2>();
                    sum = sum + F::pick(quad, shifted);
                }
                if let Some(extra) = extra {
                    sum = sum + least_term::<F>(extra, levels);
                }
                let closer = sum.lt(best) & end.gt(place);
                best = F::select(closer, sum, best);
                best_at = F::Int::select(closer, place, best_at);
            }
        }
        stretch = &stretch[per..];
        at += 2 * per;
    }
    let least = best.least();
    let mut places = [0i32; MAX_LANES];
    best_at.store(&mut places);
    // Among equals the first place wins.
    let mut equal = best.eq(F::splat(least)).bits();
    let mut first = places[equal.trailing_zeros() as usize % MAX_LANES];
    equal &= equal.wrapping_sub(1);
    while equal != 0 {
        first = first.min(places[equal.trailing_zeros() as usize % MAX_LANES]);
        equal &= equal - 1;
    }
    let (chunk, i) = (first as usize / (2 * HALVES) * HALVES, first as usize % (2 * HALVES));
    (least, (list[chunk + i % HALVES] >> (16 * (i / HALVES))) as u16)
}

/// The least of the terms of these levels.
#[inline(always)]
fn least_term<F: Lanes>(terms: &Terms, levels: F::Int) -> F {
    let quads = quads::<F>(terms);
    let mut shifted = levels;
    let mut least = F::pick(quads[0], levels);
    for &quad in &quads[1..] {
        shifted = shifted.shr::<2>();
        least = least.min(F::pick(quad, shifted));
    }
    least
}

/// weight = importance · √(`sigma` · mean square + x²); without importance, `plain` · mean square + x², or as if importance
/// were 1.
#[inline(always)]
pub(super) fn weigh<F: Lanes>(x: &[f32], importance: Option<&[f32]>, sigma: f32, plain: Option<f32>, out: &mut [f32]) {
    let sum = x.iter().fold(0f32, |sum, &x| sum + x * x);
    let sigma2 = F::splat(sigma * sum / x.len() as f32);
    for at in (0..x.len()).step_by(F::N) {
        let x = F::load(&x[at..]);
        let weight = match (importance, plain) {
            (Some(q), _) => F::load(&q[at..]) * (sigma2 + x * x).sqrt(),
            (None, None) => (sigma2 + x * x).sqrt(),
            (None, Some(0.0)) => x * x,
            (None, Some(plain)) => F::splat(plain) * sigma2 + x * x,
        };
        weight.store(&mut out[at..]);
    }
}

/// Each of `x` four times, to go with the levels of [`Terms`].
#[inline(always)]
pub(super) fn fourfold(x: &[f32], out: &mut [f32]) {
    for (out, &x) in out.chunks_exact_mut(4).zip(x) {
        out.fill(x);
    }
}

/// `weight · (scale · value − x)²` for every level, as ggml computes it. `values`, `x` and `weights` as [`fourfold`] gives them.
#[inline(always)]
pub(super) fn squares<F: Lanes>(values: &Terms, scale: f32, x: &[f32], weights: &[f32]) -> Terms {
    let mut terms = [0.0; 4 * WIDTH];
    for at in (0..4 * WIDTH).step_by(F::N) {
        let diff = F::splat(scale) * F::load(&values[at..]) - F::load(&x[at..]);
        (F::load(&weights[at..]) * diff * diff).store(&mut terms[at..]);
    }
    terms
}

/// [`nearest`] of one number.
#[inline(always)]
pub(super) fn nearest_one(x: f32) -> i32 {
    let mut lane = [0];
    nearest(Portable::<1>::splat(x)).store(&mut lane);
    lane[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, without any of the savings.
    fn plain_neighbours(book: &Codebook, levels: u16, rings: usize) -> Vec<u16> {
        let distance =
            |p: &u16| (0..WIDTH).map(|i| ((p >> (2 * i) & 3) as i32 - (levels >> (2 * i) & 3) as i32).pow(2)).sum::<i32>();
        let mut sorted: Vec<(i32, u16)> = book.levels.iter().map(|p| (distance(p), *p)).collect();
        sorted.sort_by_key(|&(d, _)| d);
        let mut distances: Vec<i32> = sorted.iter().map(|&(d, _)| d).collect();
        distances.dedup();
        let last = distances[rings.min(distances.len()) - 1];
        sorted.into_iter().take_while(|&(d, _)| d <= last).map(|(_, p)| p).collect()
    }

    #[test]
    fn books_have_their_points_and_neighbours() {
        for (book, size, rings) in [(&*IQ2_XXS, 256, 2), (&*IQ2_XS, 512, 2), (&*IQ2_S, 1024, 1), (&*IQ1, 2048, 3)] {
            assert_eq!(book.levels.len(), size);
            assert!(book.levels.is_sorted());
            assert!((0..size as u16).all(|i| book.index(book.levels(i)) == Some(i)));
            for rank in (0..RANKS).step_by(7) {
                let place = book.places[rank];
                if place & OFF == 0 {
                    continue;
                }
                let want = plain_neighbours(book, levels_of(rank), rings);
                let start = ((place & !OFF) >> LIST_AT) as usize;
                let got = (0..want.len()).map(|i| (book.lists[start + i / 16 * 8 + i % 8] >> (i % 16 / 8 * 16)) as u16);
                assert_eq!(place & ((1 << LIST_AT) - 1), want.len() as u32);
                assert!(got.eq(want));
            }
        }
    }

    #[test]
    fn wide_lanes_choose_as_one_does() {
        let mut state = 9u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Few different numbers, so that there are ties.
            (state >> 29) as f32 * 0.25
        };
        for round in 0..2000 {
            let book = [&*IQ2_XXS, &*IQ2_XS, &*IQ2_S, &*IQ1][round % 4];
            let terms: Terms = from_fn(|_| if round % 50 == 7 { f32::INFINITY } else { next() });
            let extra: Terms = from_fn(|_| next());
            let levels = levels_of(round * 3);
            if book.index(levels).is_none() {
                let one = book.neighbour::<Portable<1>>(levels, &terms);
                assert_eq!(one, book.neighbour::<Portable<8>>(levels, &terms));
                assert_eq!(one, book.neighbour::<Portable<16>>(levels, &terms));
            }
            for extra in [None, Some(&extra)] {
                let one = book.closest::<Portable<1>>(&terms, extra);
                assert_eq!(one, book.closest::<Portable<8>>(&terms, extra));
                assert_eq!(one, book.closest::<Portable<16>>(&terms, extra));
            }
        }
    }
}
