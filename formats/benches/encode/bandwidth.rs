//! What share of the memory's speed encoders reach.
//!
//! There are two limits: the bytes that one thread reads and writes in a second of CPU time when it copies a buffer much larger than
//! the caches, half of them written, and those that it reads when it adds up the numbers there. An encoder reads four bytes per weight
//! and writes its blocks, a quarter of that or less, so that the second is nearer to its own.

use crate::cpu_seconds;
use bitsmith_formats::{CodecId, Result, encode_rows};

/// Weights: 256 MiB of f32, so that no cache holds a part that matters.
const WEIGHTS: usize = 1 << 26;
const ROW_LEN: usize = 4096;
/// Rows that one call encodes.
const ROWS: usize = 16;
/// Repetitions, of which the fastest counts.
const REPEAT: usize = 5;

/// Prints the limits and a line per type.
pub fn run(types: &[CodecId]) -> Result<()> {
    let mut state = 1u64;
    // Sums of noise, near enough to a bell.
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    let weights: Vec<f32> = (0..WEIGHTS).map(|_| 0.02 * (uniform() + uniform() + uniform() + uniform())).collect();
    let mut copied = vec![1f32; WEIGHTS];
    let bytes = 4.0 * WEIGHTS as f64;
    let copy = 2.0 * bytes / fastest(|| std::hint::black_box(&mut copied).copy_from_slice(&weights));
    let read = bytes
        / fastest(|| {
            std::hint::black_box(sum(&weights));
        });
    drop(copied);
    println!("one thread copies {:.1} GB/s (read and written) and reads {:.1} GB/s", copy / 1e9, read / 1e9);
    println!("| type | ns/weight | GB/s | share of a copy | share of reading |");
    println!("|---|---|---|---|---|");
    for &id in types {
        let row_bytes = id.row_bytes(ROW_LEN)?;
        let mut out = vec![0xaau8; WEIGHTS / ROW_LEN * row_bytes];
        let seconds = fastest(|| {
            for (rows, out) in weights.chunks(ROWS * ROW_LEN).zip(out.chunks_mut(ROWS * row_bytes)) {
                encode_rows(id, rows, ROW_LEN, None, out);
            }
        });
        let rate = (bytes + out.len() as f64) / seconds;
        println!(
            "| {id} | {:.2} | {:.1} | {:.0} % | {:.0} % |",
            seconds * 1e9 / WEIGHTS as f64,
            rate / 1e9,
            100.0 * rate / copy,
            100.0 * rate / read
        );
    }
    Ok(())
}

/// CPU seconds of the fastest repetition.
fn fastest(mut work: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..REPEAT {
        let start = cpu_seconds();
        work();
        best = best.min(cpu_seconds() - start);
    }
    best
}

/// A sum in lanes enough for any processor's registers.
fn sum(x: &[f32]) -> [f32; 64] {
    let mut sums = [0f32; 64];
    for x in x.as_chunks::<64>().0 {
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum += x;
        }
    }
    sums
}
