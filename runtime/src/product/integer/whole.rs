//! Whole products: panels over threads, or rows over threads.

use super::activations::Activations;
use super::{Form, PANEL_ROWS, rows, tile, unpack};
use crate::product::Output;
use crate::product::processor::Processor;
use rayon::prelude::*;

/// Panels that one task takes: while it goes through them, a part of the activations stays in the second-level cache.
const PANELS: usize = 4;
/// Most rows of activations for which rows of weights are multiplied without panels.
const FEW: usize = 2;
/// Bytes of weights that one task takes without panels.
const ROW_TASK: usize = 64 * 1024;

/// `x wᵀ`: weights are rows of blocks, `row_bytes` each, times `factor`; `x` is `(rows, columns)`. Writes `(rows, out)`.
pub(crate) fn product(
    processor: Processor,
    form: &Form,
    weights: &[u8],
    row_bytes: usize,
    factor: f32,
    x: &[f32],
    columns: usize,
) -> Vec<f32> {
    let out = weights.len() / row_bytes;
    let x = Activations::new(x, columns, form.block);
    let result = Output::new(x.rows, out);
    if x.rows <= FEW && rows::has(form.codec) {
        let per_task = (ROW_TASK / row_bytes).max(1);
        weights.par_chunks(per_task * row_bytes).enumerate().for_each(|(task, weights)| {
            for (i, blocks) in weights.chunks_exact(row_bytes).enumerate() {
                for row in 0..x.rows {
                    let value = factor * rows::dot(processor, form.codec, blocks, &x, row);
                    // SAFETY: no other task has these rows of weights.
                    unsafe { result.write(row, task * per_task + i, &[value]) };
                }
            }
        });
        return result.into_vec();
    }
    let width = tile::width(processor);
    let packed = x.pack(form, width, tile::halves(processor));
    let tiles = packed.padded / width;
    let codec = form.codec.codec();
    let part_columns = form.panel_columns();
    let part_bytes = part_columns / codec.block_len() * codec.block_bytes();
    // Few panels leave threads without work: then a task takes less of them.
    let panels = PANELS.min(out.div_ceil(PANEL_ROWS).div_ceil(16)).max(1);
    weights.par_chunks(panels * PANEL_ROWS * row_bytes).enumerate().for_each_init(
        || (unpack::panel(form), vec![[[0f32; PANEL_ROWS]; tile::MAX_WIDTH]; tiles * panels]),
        |(panel, sums), (task, weights)| {
            sums.fill([[0.0; PANEL_ROWS]; tile::MAX_WIDTH]);
            for (part, first) in (0..columns).step_by(part_columns).enumerate() {
                let segments = part_columns.min(columns - first) / form.segment;
                for (weights, sums) in weights.chunks(PANEL_ROWS * row_bytes).zip(sums.chunks_exact_mut(tiles)) {
                    for (row, blocks) in weights.chunks_exact(row_bytes).enumerate() {
                        let from = part * part_bytes;
                        unpack::unpack(form, factor, &blocks[from..row_bytes.min(from + part_bytes)], row, panel);
                    }
                    for (tile, sums) in sums.iter_mut().enumerate() {
                        let job = tile::Job { form, panel, activations: &packed, part, segments, tile };
                        tile::tile(processor, &job, sums);
                    }
                }
            }
            for (p, (weights, sums)) in weights.chunks(PANEL_ROWS * row_bytes).zip(sums.chunks_exact(tiles)).enumerate() {
                let n = weights.len() / row_bytes;
                let at = (task * panels + p) * PANEL_ROWS;
                for row in 0..x.rows {
                    // SAFETY: no other task has these rows of weights.
                    unsafe { result.write(row, at, &sums[row / width][row % width][..n]) };
                }
            }
        },
    );
    result.into_vec()
}
