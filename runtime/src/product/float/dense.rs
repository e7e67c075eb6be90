//! Products of plain matrices, as statistics and solvers need them. On one thread; what a row gets does not depend on the rows that it is
//! given together with, though many rows at once are faster.

use super::{PANEL_ROWS, PANELS, PART, Panels, TileRows, pack_part, tile};
use crate::product::processor::Processor;
use ndarray::{ArrayView2, s};

/// Columns of the result that a tile has.
const TILE: usize = PANELS * PANEL_ROWS;
/// Columns of the result that are made together: with [`PART`] rows of `b`, half a megabyte, which the second level of caches holds.
const STRIP: usize = 512;

/// A row of the left matrix, and the row of the result.
pub type RowPair<'r> = (&'r [f32], &'r mut [f32]);

/// Adds `a b` to every row `c`, for rows `(a, c)` of `in` and `out` numbers and `b`, `(in, out)`.
pub fn add_product(rows: &mut [RowPair<'_>], b: ArrayView2<'_, f32>) {
    add_product_on(Processor::detect(), rows, b);
}

/// [`add_product`] with the kernels for a processor.
pub(in crate::product) fn add_product_on(processor: Processor, rows: &mut [RowPair<'_>], b: ArrayView2<'_, f32>) {
    let (inner, out) = b.dim();
    assert!(rows.iter().all(|(a, c)| a.len() == inner && c.len() == out), "rows of a product");
    if rows.is_empty() {
        return;
    }
    let left = Left::new(processor, rows.iter().map(|(a, _)| *a), inner);
    let mut strip = Strip::new(inner, out);
    for first in (0..out).step_by(STRIP) {
        let columns = first..(first + STRIP).min(out);
        let mut rows: Vec<&mut [f32]> = rows.iter_mut().map(|(_, c)| &mut c[columns.clone()]).collect();
        for part in 0..inner.div_ceil(PART) {
            let inner = part * PART..((part + 1) * PART).min(inner);
            strip.pack(b.slice(s![inner, columns.clone()]), 1.0);
            left.add_part(part, &strip, &mut rows);
        }
    }
}

/// `a h aᵀ` of each row a, for a symmetric h, `(in, in)`, of which the upper half is read.
pub fn quadratic_forms(rows: &[&[f32]], h: ArrayView2<'_, f32>) -> Vec<f64> {
    let n = h.ncols();
    assert!(rows.iter().all(|a| a.len() == n) && h.nrows() == n, "rows of a quadratic form");
    let mut sums = vec![0f64; rows.len()];
    if rows.is_empty() {
        return sums;
    }
    let left = Left::new(Processor::detect(), rows.iter().copied(), n);
    let mut strip = Strip::new(n, n);
    let mut along = vec![0f32; rows.len() * STRIP.min(n)];
    for first in (0..n).step_by(STRIP) {
        let columns = first..(first + STRIP).min(n);
        let along = &mut along[..rows.len() * columns.len()];
        along.fill(0.0);
        let mut to: Vec<&mut [f32]> = along.chunks_exact_mut(columns.len()).collect();
        for part in 0..columns.end.div_ceil(PART) {
            let inner = part * PART..((part + 1) * PART).min(n);
            // What is above the strip's own square stands for what is beside it too.
            let factor = if inner.start < first { 1.0 } else { 0.5 };
            strip.pack(h.slice(s![inner, columns.clone()]), factor);
            left.add_part(part, &strip, &mut to);
        }
        for ((sum, along), a) in sums.iter_mut().zip(along.chunks_exact(columns.len())).zip(rows) {
            *sum += 2.0 * along.iter().zip(&a[columns.clone()]).map(|(x, a)| f64::from(*x) * f64::from(*a)).sum::<f64>();
        }
    }
    sums
}

/// A matrix that many rows are multiplied with, as the kernel reads it. For small ones: it stands in memory twice.
pub struct Packed {
    inner: usize,
    out: usize,
    /// Strip by strip, and of each part by part.
    strips: Vec<Strip>,
}

impl Packed {
    /// Of `b`, `(in, out)`.
    pub fn new(b: ArrayView2<'_, f32>) -> Self {
        let (inner, out) = b.dim();
        let mut strips = Vec::new();
        for first in (0..out).step_by(STRIP) {
            for part in (0..inner).step_by(PART) {
                let b = b.slice(s![part..(part + PART).min(inner), first..(first + STRIP).min(out)]);
                let mut strip = Strip::new(b.nrows(), b.ncols());
                strip.pack(b, 1.0);
                strips.push(strip);
            }
        }
        Packed { inner, out, strips }
    }

    /// As [`add_product`].
    pub fn add_product(&self, rows: &mut [RowPair<'_>]) {
        assert!(rows.iter().all(|(a, c)| a.len() == self.inner && c.len() == self.out), "rows of a product");
        if rows.is_empty() || self.inner == 0 {
            return;
        }
        let left = Left::new(Processor::detect(), rows.iter().map(|(a, _)| *a), self.inner);
        for (i, parts) in self.strips.chunks_exact(self.inner.div_ceil(PART)).enumerate() {
            let columns = i * STRIP..((i + 1) * STRIP).min(self.out);
            let mut rows: Vec<&mut [f32]> = rows.iter_mut().map(|(_, c)| &mut c[columns.clone()]).collect();
            parts.iter().enumerate().for_each(|(part, strip)| left.add_part(part, strip, &mut rows));
        }
    }
}

/// The rows of the left matrix, packed.
struct Left {
    processor: Processor,
    /// Rows and those that fill the last tile.
    padded: usize,
    inner: usize,
    /// `(part, tile, column, row of the tile)`.
    values: Vec<f32>,
}

impl Left {
    fn new<'r>(processor: Processor, rows: impl ExactSizeIterator<Item = &'r [f32]> + Clone, inner: usize) -> Self {
        let width = tile::width(processor);
        let padded = rows.len().next_multiple_of(width);
        let mut values = vec![0f32; padded * inner];
        for (i, to) in values.chunks_mut(PART * padded).enumerate() {
            let n = PART.min(inner - i * PART);
            pack_part(to, rows.clone().map(|row| &row[i * PART..][..n]), n, width);
        }
        Left { processor, padded, inner, values }
    }

    /// Adds the product of a part of the columns with a strip to the rows of the result.
    fn add_part(&self, part: usize, strip: &Strip, rows: &mut [&mut [f32]]) {
        let (width, n) = (tile::width(self.processor), PART.min(self.inner - part * PART));
        let a = &self.values[part * PART * self.padded..][..n * self.padded];
        let mut spare = [[0f32; TILE]; tile::MAX_WIDTH];
        for (panels, at) in strip.panels.iter().zip((0..strip.out).step_by(TILE)) {
            for (a, rows) in a.chunks_exact(n * width).zip(rows.chunks_mut(width)) {
                if at + TILE <= strip.out {
                    let mut spare = spare.iter_mut();
                    let mut to = rows.iter_mut().filter_map(|c| c[at..].first_chunk_mut());
                    let mut sums: TileRows<'_> =
                        std::array::from_fn(|_| to.next().or_else(|| spare.next()).expect("as many spare rows as a tile has"));
                    tile::tile(self.processor, panels, a, &mut sums);
                } else {
                    spare.fill([0.0; TILE]);
                    tile::tile(self.processor, panels, a, &mut spare.each_mut());
                    for (c, sums) in rows.iter_mut().zip(&spare) {
                        c[at..].iter_mut().zip(sums).for_each(|(c, sum)| *c += sum);
                    }
                }
            }
        }
    }
}

/// At most [`STRIP`] columns of at most [`PART`] rows of the right matrix.
struct Strip {
    out: usize,
    panels: Vec<Panels>,
}

impl Strip {
    /// Room for parts of a matrix, `(in, out)`.
    fn new(inner: usize, out: usize) -> Self {
        let panels = || std::array::from_fn(|_| vec![[0.0; PANEL_ROWS]; PART.min(inner)]);
        Strip { out: 0, panels: (0..STRIP.min(out).div_ceil(TILE)).map(|_| panels()).collect() }
    }

    /// Takes a part times `factor`.
    fn pack(&mut self, b: ArrayView2<'_, f32>, factor: f32) {
        self.out = b.ncols();
        for (k, row) in b.rows().into_iter().enumerate() {
            let Some(row) = row.to_slice() else {
                for (i, value) in row.iter().enumerate() {
                    self.panels[i / TILE][i % TILE / PANEL_ROWS][k][i % PANEL_ROWS] = *value * factor;
                }
                continue;
            };
            let (whole, rest) = row.as_chunks::<PANEL_ROWS>();
            let mut to = self.panels.iter_mut().flatten();
            whole.iter().zip(&mut to).for_each(|(from, to)| to[k] = from.map(|v| v * factor));
            if let Some(to) = to.next().filter(|_| !rest.is_empty()) {
                to[k].iter_mut().zip(rest).for_each(|(to, v)| *to = *v * factor);
            }
        }
    }
}
