//! Small made-up models for this crate's tests, and a plain f64 model to compare with.

use crate::cache::CacheType;
use crate::checkpoint::{HostTensor, WeightSource};
use crate::memory::MemoryWeights;
use crate::role::{Part, Role};
use crate::spec::ModelSpec;
use bitsmith_formats::{Encoding, Result};
use serde_json::{Value, json};

/// A `config.json` of a tiny model; `changes` replace or add keys.
pub fn config(model_type: &str, changes: Value) -> Value {
    let mut c = json!({
        "model_type": model_type, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 61,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0,
        "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2,
    });
    if let (Value::Object(c), Value::Object(changes)) = (&mut c, changes) {
        c.extend(changes);
    }
    c
}

pub fn spec(model_type: &str, changes: Value) -> ModelSpec {
    ModelSpec::from_config(&config(model_type, changes)).unwrap()
}

pub fn model(model_type: &str, changes: Value) -> MemoryWeights {
    MemoryWeights::random(spec(model_type, changes), 11)
}

/// A model whose keys and values of whole windows are rounded.
pub struct Rounded(pub MemoryWeights, pub CacheType);

impl WeightSource for Rounded {
    fn spec(&self) -> &ModelSpec {
        self.0.spec()
    }
    fn codec(&self, role: Role) -> Result<Encoding> {
        self.0.codec(role)
    }
    fn read(&self, role: Role) -> Result<HostTensor> {
        self.0.read(role)
    }
    fn cache(&self) -> CacheType {
        self.1
    }
}

pub fn tokens(n: usize, seed: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * i * 7 + i * 13 + seed * 29 + 3) % 61) as u32).collect()
}

fn product(w: &[f32], bias: Option<&[f32]>, x: &[f64]) -> Vec<f64> {
    let rows = w.len() / x.len();
    let row = |r: usize| w[r * x.len()..(r + 1) * x.len()].iter().zip(x).map(|(a, b)| f64::from(*a) * b).sum::<f64>();
    (0..rows).map(|r| row(r) + bias.map_or(0.0, |b| f64::from(b[r]))).collect()
}

fn norm(x: &[f64], w: &[f32], eps: f64) -> Vec<f64> {
    let rms = (x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64 + eps).sqrt();
    x.iter().zip(w).map(|(v, w)| v / rms * f64::from(*w)).collect()
}

/// Logits of every position, straight from the definition: one token and one head at a time, in f64.
pub fn plain_logits(source: &dyn WeightSource, tokens: &[u32]) -> Vec<Vec<f64>> {
    let s = source.spec();
    let (hidden, dim) = (s.hidden_size, s.head_dim);
    let read = |role: Role| source.read(role).unwrap().data;
    let embedding = read(Role::global(Part::TokenEmbd));
    let row = |t: &u32| embedding[*t as usize * hidden..(*t as usize + 1) * hidden].iter().map(|v| f64::from(*v)).collect();
    let mut states: Vec<Vec<f64>> = tokens.iter().map(row).collect();
    let frequencies = s.rope.frequencies(dim);
    let rotate = |x: &mut [f64], position: usize| {
        for head in x.chunks_mut(dim) {
            for (i, f) in frequencies.iter().enumerate() {
                let (sin, cos) = (position as f64 * f).sin_cos();
                let (a, b) = (head[i], head[i + dim / 2]);
                (head[i], head[i + dim / 2]) = (a * cos - b * sin, b * cos + a * sin);
            }
        }
    };
    for layer in 0..s.n_layers {
        let w = |part: Part| read(Role::layer(layer, part));
        let linear = |part: Part, x: &[f64]| {
            let bias = part.bias().filter(|b| s.has(*b)).map(&w);
            product(&w(part), bias.as_deref(), x)
        };
        let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
        for (position, x) in states.iter().enumerate() {
            let x = norm(x, &w(Part::AttnNorm), s.norm.eps);
            let head_norm = |part: Part, x: Vec<f64>| match s.has(part) {
                true => x.chunks(dim).flat_map(|h| norm(h, &w(part), s.norm.eps)).collect(),
                false => x,
            };
            let mut qx = head_norm(Part::AttnQNorm, linear(Part::AttnQ, &x));
            let mut kx = head_norm(Part::AttnKNorm, linear(Part::AttnK, &x));
            rotate(&mut qx, position);
            rotate(&mut kx, position);
            q.push(qx);
            k.push(kx);
            v.push(linear(Part::AttnV, &x));
        }
        for (p, x) in states.iter_mut().enumerate() {
            let first = s.sliding_window.map_or(0, |w| (p + 1).saturating_sub(w));
            let mut mixed = Vec::new();
            for head in 0..s.n_heads {
                let kv = head / (s.n_heads / s.n_kv_heads) * dim;
                let qh = &q[p][head * dim..(head + 1) * dim];
                let score = |j: usize| qh.iter().zip(&k[j][kv..]).map(|(a, b)| a * b).sum::<f64>() / (dim as f64).sqrt();
                let e: Vec<f64> = (first..=p).map(|j| score(j).exp()).collect();
                let total: f64 = e.iter().sum();
                mixed.extend((0..dim).map(|i| e.iter().zip(first..).map(|(e, j)| e / total * v[j][kv + i]).sum::<f64>()));
            }
            let add = |x: &mut Vec<f64>, y: Vec<f64>| x.iter_mut().zip(y).for_each(|(a, b)| *a += b);
            add(x, linear(Part::AttnOutput, &mixed));
            let y = norm(x, &w(Part::FfnNorm), s.norm.eps);
            let gate = linear(Part::FfnGate, &y);
            let inner: Vec<f64> = gate.iter().zip(linear(Part::FfnUp, &y)).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            add(x, linear(Part::FfnDown, &inner));
        }
    }
    let (last, head) = (read(Role::global(Part::OutputNorm)), read(Role::global(s.head_part())));
    states.iter().map(|x| product(&head, None, &norm(x, &last, s.norm.eps))).collect()
}
