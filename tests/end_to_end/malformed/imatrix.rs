//! Importance matrices and statistics.

use super::{Row, row};
use crate::support::Work;
use crate::tiny::LLAMA;
use std::fs;

fn quantize(work: &Work, flag: &str, file: &str) -> String {
    LLAMA.write(work, "model");
    format!("quantize model --to gguf:q4_0 --method reference {flag} {file} -o d.gguf")
}

/// A `.dat` file with one entry.
fn dat(name: &[u8], values: &[f32]) -> Vec<u8> {
    let int = |n: usize| (n as i32).to_le_bytes().to_vec();
    let values: Vec<u8> = [int(values.len()), values.iter().flat_map(|v| v.to_le_bytes()).collect()].concat();
    [int(1), int(name.len()), name.to_vec(), int(3), values].concat()
}

fn with_dat(work: &Work, bytes: &[u8]) -> String {
    work.write("x.dat", bytes);
    quantize(work, "--imatrix", "x.dat")
}

/// Statistics of the model, with other bytes.
fn with_stats(work: &Work, change: impl FnOnce(&mut Vec<u8>)) -> String {
    let line = quantize(work, "--stats", "x.stats");
    work.ok("calibrate model --samples 2 --ctx 32 -o x.stats");
    let _ = fs::remove_dir_all(work.path("cache"));
    let mut bytes = fs::read(work.path("x.stats")).unwrap();
    change(&mut bytes);
    work.write("x.stats", bytes);
    line
}

pub fn rows() -> Vec<Row> {
    const Q: &str = "blk.0.attn_q.weight";
    vec![
        row("no importance matrix at all", 65, "x.dat", "not an importance matrix", |w| {
            with_dat(w, b"Lorem ipsum dolor sit amet")
        }),
        row("more entries than bytes", 65, "x.dat", "ends inside", |w| {
            let mut bytes = dat(Q.as_bytes(), &[1.0; 128]);
            bytes[..4].copy_from_slice(&i32::MAX.to_le_bytes());
            with_dat(w, &bytes)
        }),
        row("more values than bytes", 65, "x.dat", "ends inside the values", |w| {
            let mut bytes = dat(Q.as_bytes(), &[1.0; 128]);
            let at = 4 + 4 + Q.len() + 4;
            bytes[at..at + 4].copy_from_slice(&i32::MAX.to_le_bytes());
            with_dat(w, &bytes)
        })
        .tensor(Q),
        row("a name longer than the file", 65, "x.dat", "", |w| {
            let mut bytes = dat(Q.as_bytes(), &[1.0; 128]);
            bytes[4..8].copy_from_slice(&i32::MAX.to_le_bytes());
            with_dat(w, &bytes)
        }),
        row("importance that is not a number", 65, "x.dat", "not finite", |w| with_dat(w, &dat(Q.as_bytes(), &[f32::NAN; 128])))
            .tensor(Q),
        row("importance below zero", 65, "x.dat", "negative", |w| with_dat(w, &dat(Q.as_bytes(), &[-1.0; 128]))).tensor(Q),
        row("importance of another model", 65, "x.dat", "another model", |w| {
            with_dat(w, &dat(b"blk.99.attn_q.weight", &[1.0; 128]))
        })
        .tensor("blk.99.attn_q.weight"),
        row("importance of another width", 65, "x.dat", "127 sums", |w| with_dat(w, &dat(Q.as_bytes(), &[1.0; 127]))).tensor(Q),
        row("a model as importance matrix", 65, "x.gguf", "general.type", |w| {
            let line = quantize(w, "--imatrix", "x.gguf");
            w.ok("convert model --to gguf:q8_0 -o x.gguf");
            line
        }),
        row("statistics that end early", 65, "x.stats", "calibrate", |w| with_stats(w, |b| b.truncate(b.len() / 2))),
        row("statistics with a flipped bit", 65, "x.stats", "calibrate", |w| {
            with_stats(w, |b| {
                let middle = b.len() / 2;
                b[middle] ^= 4;
            })
        }),
        row("statistics that unpack without end", 65, "x.stats", "header", |w| {
            let line = quantize(w, "--stats", "x.stats");
            // Ones: a header of any length.
            let mut bomb = b"bsstats1".to_vec();
            bomb.extend((60u64 << 20).to_le_bytes());
            bomb.resize(64 << 20, b' ');
            w.write("x.stats", zstd::encode_all(&bomb[..], 3).unwrap());
            line
        }),
    ]
}
