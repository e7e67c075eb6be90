//! The solvers against a layer whose losses under other tools are known (`tests/golden/solvers`).

use bitsmith_formats::safetensors::SafetensorsStore;
use bitsmith_formats::{CodecId, Float, TensorStore};
use bitsmith_quantize::{Hessian, Problem, solver};
use bitsmith_runtime::Device;
use ndarray::{Array2, ArrayView2};
use std::path::PathBuf;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/solvers").join(name)
}

fn layer() -> (Array2<f32>, Array2<f32>) {
    let store = SafetensorsStore::open(golden("layer.safetensors")).unwrap();
    let read = |name| {
        let (shape, values) = store.read_f32(name).unwrap();
        Array2::from_shape_vec((shape[0], shape[1]), values).unwrap()
    };
    (read("W"), read("H"))
}

fn published(name: &str) -> f64 {
    let text = std::fs::read_to_string(golden("losses.json")).unwrap();
    serde_json::from_str::<serde_json::Value>(&text).unwrap()[name].as_f64().unwrap()
}

/// `tr(Δ H Δᵀ) / tr(W H Wᵀ)` under the undamped H.
fn loss(w: ArrayView2<'_, f32>, q: &[f32], h: &Array2<f32>) -> f64 {
    let q = ArrayView2::from_shape(w.dim(), q).unwrap();
    let quadratic = |m: &Array2<f32>| m.dot(h).iter().zip(m).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    quadratic(&(&q - &w)) / quadratic(&w.to_owned())
}

fn solve(method: &str, codec: CodecId) -> f64 {
    let (w, h) = layer();
    let hessian = Hessian::new(h.clone());
    let importance: Vec<f32> = h.diag().to_vec();
    let problem = Problem {
        weights: w.view(),
        codec,
        scale: 1.0,
        importance: Some(&importance),
        hessian: Some(&hessian),
        device: &Device::Cpu,
    };
    let solution = solver::find(method).unwrap().solve(&problem).unwrap();
    assert!(solution.notes.is_empty(), "{:?}", solution.notes);
    let loss = loss(w.view(), &solution.tensor.decode(), &h);
    eprintln!("{method} {codec}: {loss:.4e}");
    loss
}

const MLX4: CodecId = CodecId::MlxAffine { bits: 4, group: 64, scale: Float::F32 };

#[test]
fn reference_and_rtn_lose_what_the_peers_lose() {
    let close = |ours: f64, theirs: f64| assert!((ours / theirs - 1.0).abs() < 0.01, "{ours} and {theirs}");
    close(solve("reference", CodecId::Q4K), published("ggml_Q4_K_imat.deq"));
    close(solve("rtn", CodecId::Q4K), published("ggml_Q4_K.deq"));
    close(solve("rtn", CodecId::Q4_0), published("ggml_Q4_0.deq"));
    close(solve("rtn", CodecId::Q6K), published("ggml_Q6_K.deq"));
    close(solve("rtn", MLX4), published("mlx_rtn_g64"));
}

#[test]
fn gptq_loses_no_more_than_the_prototype() {
    assert!(solve("gptq", CodecId::Q4K) < published("Q4_K_gptq_diagH"));
    assert!(solve("gptq", CodecId::Q5K) < published("Q5_K_gptq_diagH"));
    assert!(solve("gptq", MLX4) < published("mlx_gptq_g64_diagH"));
}

#[test]
fn gptq_beats_the_reference_in_every_linear_format() {
    let mlx8 = CodecId::MlxAffine { bits: 8, group: 64, scale: Float::BF16 };
    let linear = |id: &CodecId| id.codec().grid().is_some_and(|g| g.is_linear());
    for codec in CodecId::GGML.into_iter().filter(linear).chain([MLX4, mlx8]) {
        let (gptq, reference) = (solve("gptq", codec), solve("reference", codec));
        assert!(gptq < 0.8 * reference, "{codec}: {gptq} and {reference}");
    }
}
