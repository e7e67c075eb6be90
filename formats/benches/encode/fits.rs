//! What fits of scales cost and give: time per weight of [`Grid::fit`](bitsmith_formats::Grid::fit) and of a fit near scales that suited
//! weights a little different, and the error left over as a share of that with the scales of the reference encoder.

use crate::cpu_seconds;
use bitsmith_formats::{BlockScales, CodecId, Error, Grid, Result};

/// Weights that are fitted, in whole blocks.
const WEIGHTS: usize = 1 << 18;

/// Prints a line per type.
pub fn run(types: &[CodecId]) -> Result<()> {
    println!("| type | fit, ns/weight | near, ns/weight | error, of the reference's | near |");
    println!("|---|---|---|---|---|");
    for &id in types {
        let grid = id.codec().grid().ok_or_else(|| Error::usage(format!("{id} has no scales to fit")))?;
        let len = grid.block_len();
        let blocks: Vec<Block> = (0..WEIGHTS / len).map(|i| Block::new(i as u64, len)).collect();
        let (mut reference, mut packed) = (0.0, vec![0u8; id.codec().block_bytes()]);
        for b in &blocks {
            let mut values = vec![0f32; len];
            id.codec().encode(&b.weights, Some(&b.importance), &mut packed);
            id.codec().decode(&packed, &mut values);
            reference += b.error(&values);
        }
        let start = cpu_seconds();
        let fitted: Vec<BlockScales> = blocks.iter().map(|b| grid.fit(&b.weights, &b.importance)).collect();
        let fit_s = cpu_seconds() - start;
        let start = cpu_seconds();
        let near: Vec<BlockScales> =
            blocks.iter().zip(&fitted).map(|(b, scales)| grid.fit_near(scales, &b.moved, &b.importance)).collect();
        let near_s = cpu_seconds() - start;
        let error = |scales: &[BlockScales], weights: fn(&Block) -> &[f32]| -> f64 {
            blocks.iter().zip(scales).map(|(b, s)| b.error_of(grid, s, weights(b))).sum()
        };
        println!(
            "| {id} | {:.1} | {:.1} | {:.4} | {:.4} |",
            fit_s * 1e9 / WEIGHTS as f64,
            near_s * 1e9 / WEIGHTS as f64,
            error(&fitted, |b| &b.weights) / reference,
            error(&near, |b| &b.moved) / reference,
        );
    }
    Ok(())
}

struct Block {
    weights: Vec<f32>,
    /// The same, moved by a tenth of their size.
    moved: Vec<f32>,
    importance: Vec<f32>,
}

impl Block {
    fn new(seed: u64, len: usize) -> Self {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
        };
        let mut bell = || uniform() + uniform() + uniform() + uniform();
        // Tails as heavy as those of trained weights, and an importance that differs by a factor of ten or so.
        let weights: Vec<f32> = (0..len).map(|_| 0.02 * bell() * (1.0 + bell().abs())).collect();
        let moved = weights.iter().map(|w| w + 0.001 * bell()).collect();
        let importance = (0..len).map(|_| (2.0 * bell()).exp()).collect();
        Block { weights, moved, importance }
    }

    fn error(&self, values: &[f32]) -> f64 {
        let of = |((w, v), i): ((&f32, &f32), &f32)| f64::from(*i) * f64::from(w - v).powi(2);
        self.weights.iter().zip(values).zip(&self.importance).map(of).sum()
    }

    fn error_of(&self, grid: &dyn Grid, scales: &BlockScales, weights: &[f32]) -> f64 {
        let (mut codes, mut values) = ([0u8; 8], [0f32; 8]);
        let step = grid.step();
        let mut sum = 0.0;
        for (at, (x, w)) in weights.chunks_exact(step).zip(self.importance.chunks_exact(step)).enumerate() {
            grid.round(scales, at * step, x, &mut codes[..step], &mut values[..step]);
            sum += x.iter().zip(&values).zip(w).map(|((x, v), w)| f64::from(*w) * f64::from(x - v).powi(2)).sum::<f64>();
        }
        sum
    }
}
