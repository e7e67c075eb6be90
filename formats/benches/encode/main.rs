//! CPU time of the encoders and decoders on one thread, for `benches/quantize.py` and `benches/quantize_mlx.py`, which compare them with
//! ggml's and MLX's.
//!
//! ```text
//! encode --types
//! encode WEIGHTS.f32 ROW_LEN [--importance FILE.f32] [--repeat N] [--out FOLDER] TYPE...
//! encode --bandwidth TYPE...
//! encode --reading THREADS
//! encode --fits TYPE...
//! encode --twins BLOCKS TYPE...
//! ```
//!
//! `--types` prints the names of ggml's formats. With a file, each line of output is one type's result as JSON: CPU seconds of every
//! repetition, for encoding (`encode_s`) and for decoding what was encoded (`decode_s`). With `--out`, FOLDER/TYPE.bin receives
//! the bytes and FOLDER/TYPE.f32 the decoded values. Files are little-endian f32.
//!
//! `--bandwidth` measures what share of the memory's speed the encoders reach, `--reading` at what speed threads read memory,
//! `--fits` what fits of scales cost and give, `--twins` compares encoders with their scalar twins (build with `--features twins`).
#![allow(clippy::print_stdout)]

mod bandwidth;
mod fits;
#[cfg(feature = "twins")]
mod twins;

use bitsmith_formats::{CodecId, Error, Result, encode_all};
use rustix::time::{ClockId, clock_gettime};
use std::path::{Path, PathBuf};

struct Job {
    weights: Vec<f32>,
    row_len: usize,
    importance: Option<Vec<f32>>,
    repeat: usize,
    out: Option<PathBuf>,
    types: Vec<CodecId>,
}

fn main() -> Result<()> {
    // Cargo adds `--bench` when it runs this; without a file to encode there is nothing to do.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    match args.first().map(String::as_str) {
        None => {
            println!("usage: encode --types | WEIGHTS.f32 ROW_LEN [--importance FILE] [--repeat N] [--out FOLDER] TYPE...");
            println!("       encode --bandwidth TYPE... | --reading THREADS | --fits TYPE... | --twins BLOCKS TYPE...");
            Ok(())
        }
        Some("--types") => {
            CodecId::GGML.iter().for_each(|id| println!("{id}"));
            Ok(())
        }
        Some("--bandwidth") => bandwidth::run(&types(&args[1..])?),
        Some("--fits") => fits::run(&types(&args[1..])?),
        Some("--reading") => {
            let count = args.get(1).ok_or_else(|| Error::usage("THREADS is missing"))?;
            bandwidth::reading(count.parse().map_err(|_| Error::usage(format!("not a number of threads: {count}")))?)
        }
        #[cfg(feature = "twins")]
        Some("--twins") => {
            let count = args.get(1).ok_or_else(|| Error::usage("BLOCKS is missing"))?;
            let blocks = count.parse().map_err(|_| Error::usage(format!("not a number of blocks: {count}")))?;
            if !twins::run(blocks, &types(&args[2..])?)? {
                std::process::exit(1);
            }
            Ok(())
        }
        #[cfg(not(feature = "twins"))]
        Some("--twins") => Err(Error::usage("the scalar twins are not compiled in: build with --features twins")),
        Some(_) => run(&parse(args)?),
    }
}

fn types(names: &[String]) -> Result<Vec<CodecId>> {
    names.iter().map(|name| name.parse()).collect()
}

fn parse(args: Vec<String>) -> Result<Job> {
    let number = |s: &str| s.parse::<usize>().map_err(|_| Error::usage(format!("not a number: {s}")));
    let mut args = args.into_iter();
    let mut next = |what: &str| args.next().ok_or_else(|| Error::usage(format!("{what} is missing")));
    let weights = floats(Path::new(&next("WEIGHTS")?))?;
    let row_len = number(&next("ROW_LEN")?)?;
    if row_len == 0 || !weights.len().is_multiple_of(row_len) {
        return Err(Error::usage(format!("{} weights are not whole rows of {row_len}", weights.len())));
    }
    let mut job = Job { weights, row_len, importance: None, repeat: 1, out: None, types: Vec::new() };
    while let Ok(arg) = next("TYPE") {
        match arg.as_str() {
            "--importance" => job.importance = Some(floats(Path::new(&next("importance")?))?),
            "--repeat" => job.repeat = number(&next("count")?)?,
            "--out" => job.out = Some(next("folder")?.into()),
            name => job.types.push(name.parse()?),
        }
    }
    match &job.importance {
        Some(importance) if importance.len() != row_len => {
            Err(Error::usage(format!("{} values of importance for rows of {row_len}", importance.len())))
        }
        _ => Ok(job),
    }
}

fn run(job: &Job) -> Result<()> {
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(|e| Error::usage(e.to_string()))?;
    for &id in &job.types {
        let (codec, row_bytes) = (id.codec(), id.row_bytes(job.row_len)?);
        let mut bytes = vec![0xaau8; job.weights.len() / job.row_len * row_bytes];
        let mut values = vec![1f32; job.weights.len()];
        let (mut encode_s, mut decode_s) = (Vec::new(), Vec::new());
        for _ in 0..job.repeat {
            encode_s.push(one.install(|| {
                let start = cpu_seconds();
                encode_all(id, &job.weights, job.row_len, job.importance.as_deref(), &mut bytes);
                cpu_seconds() - start
            }));
            let start = cpu_seconds();
            for (bytes, values) in bytes.chunks(row_bytes).zip(values.chunks_mut(job.row_len)) {
                codec.decode(bytes, values);
            }
            decode_s.push(cpu_seconds() - start);
        }
        if let Some(folder) = &job.out {
            let write = |name: String, bytes: &[u8]| {
                let path = folder.join(name);
                std::fs::write(&path, bytes).map_err(|e| Error::write(&path, e))
            };
            write(format!("{id}.bin"), &bytes)?;
            write(format!("{id}.f32"), &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())?;
        }
        println!("{}", serde_json::json!({"type": id, "encode_s": encode_s, "decode_s": decode_s}));
    }
    Ok(())
}

fn floats(path: &Path) -> Result<Vec<f32>> {
    let bytes = std::fs::read(path).map_err(|e| Error::read(path, e))?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
}

/// CPU time of this thread. The encoders run where it is read.
fn cpu_seconds() -> f64 {
    let t = clock_gettime(ClockId::ThreadCPUTime);
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}
