//! The same matrix gives the same bytes: with any number of threads, every time, and whatever vector registers there are. For every format
//! and every solver.

use bitsmith_formats::{CodecId, Float, Micro as SmallFloats, Vectors, limit_vectors};
use bitsmith_quantize::solver::SOLVERS;
use bitsmith_quantize::{Hessian, Problem, Solver};
use bitsmith_runtime::Device;
use ndarray::Array2;
use rayon::ThreadPoolBuilder;

const ROWS: usize = 40;
/// Whole blocks of every format.
const COLUMNS: usize = 256;
const THREADS: [usize; 4] = [1, 2, 3, 8];

/// One of every kind of format; all block formats of GGUF.
fn codecs() -> Vec<CodecId> {
    use CodecId::*;
    let mut all = vec![
        F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2K, Q3K, Q4K, Q5K, Q6K, IQ4NL, IQ4XS, IQ3S, IQ3XXS, IQ2S, IQ2XS, IQ2XXS,
        IQ1S, IQ1M, TQ1_0, TQ2_0, MXFP4, NVFP4, Q1_0, Q2_0,
    ];
    all.extend([SmallFloats::Mxfp4, SmallFloats::Mxfp8, SmallFloats::Nvfp4].map(Micro));
    for bits in [2, 3, 4, 5, 6, 8] {
        all.push(MlxAffine { bits, group: 64, scale: Float::BF16 });
    }
    for bits in [2, 3, 4, 8] {
        all.push(IntGroup { bits, group: 128, scale: Float::F16, symmetric: bits != 4 });
    }
    all.push(Fp8Group { group: COLUMNS as u32, scale: Float::BF16 });
    all
}

fn noise(rows: usize, cols: usize, seed: usize) -> Array2<f32> {
    let value = |i: usize| (((i + 1) * (seed + 7) * 7919 % 10007) as f32 * 0.37).sin();
    Array2::from_shape_fn((rows, cols), |(r, c)| value(r * cols + c))
}

/// Of inputs that are correlated and differ in size.
fn hessian() -> Hessian {
    let x = noise(COLUMNS, COLUMNS, 1) + noise(COLUMNS, 1, 2);
    let x = &x * &noise(1, COLUMNS, 3).mapv(|v| 0.5 + v.abs());
    Hessian::new(x.t().dot(&x) / COLUMNS as f32)
}

fn solve(solver: &dyn Solver, codec: CodecId, weights: &Array2<f32>, hessian: &Hessian, threads: usize) -> Vec<u8> {
    let problem = Problem {
        weights: weights.view(),
        codec,
        scale: 1.0,
        importance: Some(&hessian.importance),
        hessian: Some(hessian),
        device: &Device::Cpu,
    };
    let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let solved = pool.install(|| solver.solve(&problem));
    solved.unwrap_or_else(|e| panic!("{} {codec}: {e}", solver.name())).tensor.bytes
}

/// One test, because the limit of registers is the process's.
#[test]
fn every_format_with_every_solver() {
    let (weights, hessian) = (noise(ROWS, COLUMNS, 4), hessian());
    let mut differ = Vec::new();
    for codec in codecs() {
        for solver in SOLVERS {
            let once = solve(*solver, codec, &weights, &hessian, THREADS[0]);
            let mut same = |what: &str, again: &[u8]| {
                if again != once {
                    let n = again.iter().zip(&once).filter(|(a, b)| a != b).count();
                    differ.push(format!("{codec} {}: {n} of {} bytes with {what}", solver.name(), once.len()));
                }
            };
            for threads in THREADS {
                same(&format!("{threads} threads"), &solve(*solver, codec, &weights, &hessian, threads));
            }
            for widest in [Vectors::Baseline, Vectors::Avx2] {
                limit_vectors(Some(widest));
                let narrow = solve(*solver, codec, &weights, &hessian, 2);
                limit_vectors(None);
                same(&format!("registers of {widest:?}"), &narrow);
            }
        }
    }
    assert!(differ.is_empty(), "{} differ:\n{}", differ.len(), differ.join("\n"));
}
