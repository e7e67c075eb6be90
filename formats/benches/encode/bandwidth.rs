//! What share of the memory's speed encoders reach.
//!
//! An encoder reads four bytes per weight and writes its blocks, a quarter of that or less. Its limit is what one thread needs in CPU
//! time to add up the same weights and to fill as many bytes, as often alternating; what it needs to copy a buffer much larger than the caches, half
//! of whose bytes are written, and to read it, is told besides.

use crate::cpu_seconds;
use bitsmith_formats::{CodecId, Error, Result, encode_rows, in_large_pages};
use std::hint::black_box;
use std::time::Instant;

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
    let copy = 2.0 * bytes / fastest(|| black_box(&mut copied).copy_from_slice(&weights));
    let read = bytes
        / fastest(|| {
            black_box(sum(&weights));
        });
    drop(copied);
    println!("one thread copies {:.1} GB/s (read and written) and reads {:.1} GB/s", copy / 1e9, read / 1e9);
    println!("| type | ns/weight | GB/s | share of a copy | share of reading | share of reading and writing as much |");
    println!("|---|---|---|---|---|---|");
    for &id in types {
        let row_bytes = id.row_bytes(ROW_LEN)?;
        let mut out = vec![0xaau8; WEIGHTS / ROW_LEN * row_bytes];
        let seconds = fastest(|| {
            for (rows, out) in weights.chunks(ROWS * ROW_LEN).zip(out.chunks_mut(ROWS * row_bytes)) {
                encode_rows(id, rows, ROW_LEN, None, out);
            }
        });
        let limit = fastest(|| {
            for (rows, out) in weights.chunks(ROWS * ROW_LEN).zip(out.chunks_mut(ROWS * row_bytes)) {
                black_box(sum(rows));
                black_box(out).fill(1);
            }
        });
        let rate = (bytes + out.len() as f64) / seconds;
        println!(
            "| {id} | {:.2} | {:.1} | {:.0} % | {:.0} % | {:.0} % |",
            seconds * 1e9 / WEIGHTS as f64,
            rate / 1e9,
            100.0 * rate / copy,
            100.0 * rate / read,
            100.0 * limit / seconds
        );
    }
    Ok(())
}

/// Prints the bytes that so many threads read together in a second of wall time, each its own part of 1 GiB in large pages: what text generation
/// is held against.
pub fn reading(threads: usize) -> Result<()> {
    let part = (1 << 28) / threads.max(1);
    if part == 0 {
        return Err(Error::usage(format!("{threads} threads leave nothing to each")));
    }
    let mut numbers: Vec<f32> = in_large_pages(Vec::with_capacity(1 << 28));
    numbers.resize(1 << 28, 1.0);
    let mut best = f64::INFINITY;
    for _ in 0..2 * REPEAT {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in numbers.chunks_exact(part) {
                scope.spawn(|| {
                    black_box(sum(part));
                });
            }
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    let bytes = (numbers.len() / part * part * size_of::<f32>()) as f64;
    println!("{}", serde_json::json!({"threads": threads, "bytes_per_second": bytes / best}));
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
