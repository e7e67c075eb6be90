//! Whole products: panels over threads, or rows over threads.

use super::activations::Activations;
use super::{Form, PANEL_ROWS, PANELS, rows, tile, unpack};
use crate::product::Output;
use crate::product::processor::{Processor, prefetch};
use rayon::prelude::*;

/// Groups of panels that one task takes: while it goes through them, a part of the activations stays in the second-level cache.
const GROUPS: usize = 2;
/// Bytes before those being multiplied that are fetched from memory.
const AHEAD: usize = 1024;
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
    let (form, out) = (&form.on(processor), weights.len() / row_bytes);
    let x = Activations::new(x, columns, form.block);
    let result = Output::new(x.rows, out);
    if x.rows <= rows::FEW && rows::has(form.codec) {
        let rows = rows::Rows::new(form, &x);
        let per_task = (ROW_TASK / row_bytes).max(1);
        weights.par_chunks(per_task * row_bytes).enumerate().for_each(|(task, weights)| {
            for (i, blocks) in weights.chunks_exact(row_bytes).enumerate() {
                prefetch(weights, (i + 1) * row_bytes + AHEAD, row_bytes);
                for (row, value) in rows.dot(processor, blocks)[..x.rows].iter().enumerate() {
                    // SAFETY: no other task has these rows of weights.
                    unsafe { result.write(row, task * per_task + i, &[factor * value]) };
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
    let rows = PANELS * PANEL_ROWS;
    // Few panels leave threads without work: then a task takes less of them.
    let groups = GROUPS.min(out.div_ceil(rows).div_ceil(8)).max(1);
    let zero = [[0f32; PANELS * PANEL_ROWS]; tile::MAX_WIDTH];
    weights.par_chunks(groups * rows * row_bytes).enumerate().for_each_init(
        || (std::array::from_fn(|_| unpack::panel(form)), vec![zero; tiles * groups]),
        |(panels, sums), (task, weights)| {
            sums.fill(zero);
            for (part, first) in (0..columns).step_by(part_columns).enumerate() {
                let segments = part_columns.min(columns - first) / form.segment;
                for (weights, sums) in weights.chunks(rows * row_bytes).zip(sums.chunks_exact_mut(tiles)) {
                    let from = part * part_bytes;
                    for (weights, panel) in weights.chunks(PANEL_ROWS * row_bytes).zip(panels.iter_mut()) {
                        // Where rows are missing, others stand in for them.
                        let row = |i: usize| &weights[i % (weights.len() / row_bytes) * row_bytes..][..row_bytes];
                        let blocks = std::array::from_fn(|i| &row(i)[from..row_bytes.min(from + part_bytes)]);
                        unpack::unpack(processor, form, factor, blocks, panel);
                    }
                    for (tile, sums) in sums.iter_mut().enumerate() {
                        let job = tile::Job { form, panels, activations: &packed, part, segments, tile };
                        tile::tile(processor, &job, sums);
                    }
                }
            }
            for (group, (weights, sums)) in weights.chunks(rows * row_bytes).zip(sums.chunks_exact(tiles)).enumerate() {
                let n = weights.len() / row_bytes;
                let at = (task * groups + group) * rows;
                for row in 0..x.rows {
                    // SAFETY: no other task has these rows of weights.
                    unsafe { result.write(row, at, &sums[row / width][row % width][..n]) };
                }
            }
        },
    );
    result.into_vec()
}
