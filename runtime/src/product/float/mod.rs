//! Products with f32 activations: weights are decoded a panel at a time, in the cache, and never stand in memory whole.

mod dense;
mod rows;
mod tile;

#[cfg(test)]
pub(super) use dense::add_product_on;
pub use dense::{Packed, RowPair, add_product, quadratic_forms};

use super::Output;
use super::processor::Processor;
use bitsmith_formats::CodecId;
use rayon::prelude::*;

/// Rows of weights in a panel: one register of AVX-512, two of AVX2.
const PANEL_ROWS: usize = 16;
/// Panels that are multiplied together, and that one task takes.
const PANELS: usize = 2;
/// Columns of a panel, about: 32 KiB of decoded weights for a pair of panels of so many.
const PART: usize = 256;
/// Most rows of activations for which rows of weights are multiplied without panels.
const FEW: usize = 4;
/// Weights that one task takes without panels.
const ROW_TASK: usize = 64 * 1024;

/// Decoded weights of [`PANELS`] panels, `(panel, column, row)`.
type Panels = [Vec<[f32; PANEL_ROWS]>; PANELS];

/// Sums of a tile, `(row of activations, row of weights)`.
type TileRows<'a> = [&'a mut [f32; PANELS * PANEL_ROWS]; tile::MAX_WIDTH];

/// `x wᵀ`: weights are rows of blocks, `row_bytes` each, times `factor`; `x` is `(rows, columns)`. Gives `(rows, out)`.
pub(super) fn product(
    processor: Processor,
    codec: CodecId,
    weights: &[u8],
    row_bytes: usize,
    factor: f32,
    x: &[f32],
    columns: usize,
) -> Vec<f32> {
    let (out, rows) = (weights.len() / row_bytes, x.len() / columns);
    let result = Output::new(rows, out);
    let (len, bytes) = (codec.codec().block_len(), codec.codec().block_bytes());
    // Whole blocks.
    let part = len * (PART / len).max(1);
    let part_bytes = part / len * bytes;
    if rows <= FEW {
        let per_task = (ROW_TASK / columns).max(1);
        weights.par_chunks(per_task * row_bytes).enumerate().for_each_init(
            || vec![0f32; part],
            |buffer, (task, weights)| {
                for (i, row) in weights.chunks_exact(row_bytes).enumerate() {
                    let mut sums = [0f32; FEW];
                    if rows::has(codec) {
                        sums = rows::dot_floats(processor, codec, row, x);
                    } else {
                        for (blocks, first) in row.chunks(part_bytes).zip((0..columns).step_by(part)) {
                            let w = &mut buffer[..blocks.len() / bytes * len];
                            codec.codec().decode(blocks, w);
                            for (sum, x) in sums.iter_mut().zip(x.chunks_exact(columns)) {
                                *sum += rows::dot(processor, w, &x[first..][..w.len()]);
                            }
                        }
                    }
                    for (row, sum) in sums[..rows].iter().enumerate() {
                        // SAFETY: no other task has these rows of weights.
                        unsafe { result.write(row, task * per_task + i, &[sum * factor]) };
                    }
                }
            },
        );
        return result.into_vec();
    }
    let width = tile::width(processor);
    let packed = pack(x, columns, part, width);
    let padded = rows.next_multiple_of(width);
    let rows_per_task = PANELS * PANEL_ROWS;
    weights.par_chunks(rows_per_task * row_bytes).enumerate().for_each_init(
        || {
            let panels: Panels = std::array::from_fn(|_| vec![[0.0; PANEL_ROWS]; part]);
            (panels, vec![0f32; part], vec![[[0f32; PANELS * PANEL_ROWS]; tile::MAX_WIDTH]; padded / width])
        },
        |(panels, buffer, sums), (task, weights)| {
            sums.fill([[0.0; PANELS * PANEL_ROWS]; tile::MAX_WIDTH]);
            for first in (0..columns).step_by(part) {
                let n = part.min(columns - first);
                for (row, blocks) in weights.chunks_exact(row_bytes).enumerate() {
                    let values = &mut buffer[..n];
                    codec.codec().decode(&blocks[first / len * bytes..][..n / len * bytes], values);
                    let panel = &mut panels[row / PANEL_ROWS];
                    for (to, value) in panel.iter_mut().zip(values) {
                        to[row % PANEL_ROWS] = *value * factor;
                    }
                }
                let x = &packed[first * padded..][..n * padded];
                for (x, sums) in x.chunks_exact(n * width).zip(sums.iter_mut()) {
                    tile::tile(processor, panels, x, &mut sums.each_mut());
                }
            }
            let n = weights.len() / row_bytes;
            for row in 0..rows {
                // SAFETY: no other task has these rows of weights.
                unsafe { result.write(row, task * rows_per_task, &sums[row / width][row % width][..n]) };
            }
        },
    );
    result.into_vec()
}

/// Activations as `(part, tile, column, row of the tile)`, zeros after the last row.
fn pack(x: &[f32], columns: usize, part: usize, width: usize) -> Vec<f32> {
    let rows = x.len() / columns;
    let padded = rows.next_multiple_of(width);
    let mut packed = vec![0f32; padded * columns];
    packed.par_chunks_mut(part * padded).enumerate().for_each(|(i, packed)| {
        let (first, n) = (i * part, part.min(columns - i * part));
        pack_part(packed, x.chunks_exact(columns).map(|row| &row[first..][..n]), n, width);
    });
    packed
}

/// The same of one part of `n` columns.
fn pack_part<'x>(packed: &mut [f32], mut rows: impl Iterator<Item = &'x [f32]>, n: usize, width: usize) {
    for tile in packed.chunks_exact_mut(n * width) {
        for (r, row) in rows.by_ref().take(width).enumerate() {
            tile[r..].iter_mut().step_by(width).zip(row).for_each(|(to, x)| *to = *x);
        }
    }
}
