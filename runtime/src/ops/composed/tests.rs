use super::testing::composed;
use crate::block::Rows;
use crate::checkpoint::{HostTensor, WeightSource};
use crate::generate::{Batch, CacheType, Feed, Wanted};
use crate::ops::*;
use crate::product::{Blocks, Weight};
use crate::role::Role;
use crate::rope::{RopeTable, Rotated};
use crate::spec::{ModelSpec, Rope, RopeScaling};
use crate::testing::{Rounded, model, tokens};
use crate::{Head, Model, sweep};
use bitsmith_formats::{CodecId, EncodedTensor, Encoding};
use serde_json::{Value, json};

/// Values within ±2 without a pattern.
fn noise(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| (((i + 1) * (seed + 7) * 7919 % 10007) as f32 * 0.37).sin() * 2.0).collect()
}

fn tensor(shape: &[usize], seed: usize) -> Tensor {
    from_host(noise(shape.iter().product(), seed), shape, &Device::Cpu).unwrap()
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// Whether values agree to 1e-5 of the largest.
fn assert_close(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let most = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() <= 1e-5 * most, "{what}: {g} {w}, of at most {most}");
    }
}

/// Compares what an operation makes with and without kernels.
fn compare(what: &str, f: impl Fn() -> Tensor) {
    assert_close(&values(&composed(&f)), &values(&f()), what);
}

#[test]
fn norms() {
    for norm_of in [Norm::rms(1e-5), Norm::layer(1e-3), Norm { offset: 1.0, ..Norm::rms(1e-6) }] {
        // Rows, heads, and heads with a weight each; then a view into a larger tensor.
        for (weights, bias) in [(vec![24], true), (vec![8], false), (vec![3, 8], false)] {
            let (w, b) = (tensor(&weights, 2), bias.then(|| tensor(&weights, 3)));
            compare("norm", || norm(&tensor(&[7, 24], 1), &w, b.as_ref(), norm_of).unwrap());
            compare("norm of a view", || norm(&tensor(&[9, 24], 1).narrow(0, 2, 5).unwrap(), &w, b.as_ref(), norm_of).unwrap());
        }
    }
    let bad = || norm(&tensor(&[7, 24], 1), &tensor(&[9], 2), None, Norm::rms(1e-5));
    assert!(bad().is_err() && composed(bad).is_err());
}

#[test]
fn operations_in_place() {
    // A part of a tensor.
    let x = || tensor(&[9, 12], 1).narrow(0, 2, 6).unwrap();
    let (other, row, factors) = (tensor(&[6, 12], 2), tensor(&[12], 3), tensor(&[6, 1], 4));
    compare("add", || add(x(), &other).unwrap());
    compare("add bias", || add_bias(x(), &row).unwrap());
    compare("scale", || scale(x(), 0.3).unwrap());
    compare("softcap", || softcap(x(), 1.5).unwrap());
    compare("scale rows", || scale_rows(x(), &factors).unwrap());
    let rows = [(0, 0.5), (2, -1.0), (5, 2.0)];
    compare("add rows", || add_rows(x(), &rows, &tensor(&[3, 12], 5)).unwrap());
    for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::SwigluOai] {
        // Wide enough for clamps.
        let (gate, up) = (noise(72, 6).iter().map(|v| 6.0 * v).collect(), &other);
        let gate = from_host(gate, &[6, 12], &Device::Cpu).unwrap();
        compare("gate", || activate(activation, gate.copy().unwrap(), up).unwrap());
        compare("activation", || activate_alone(activation, x()).unwrap());
    }
}

#[test]
fn the_rest() {
    compare("sigmoid", || sigmoid(&tensor(&[5, 1], 1)).unwrap());
    for (bad, finite) in [(1.0, true), (f32::NAN, false), (f32::INFINITY, false), (f32::MAX, true)] {
        let mut values = noise(300, 1);
        values[120] = bad;
        values[121] = bad;
        let x = from_host(values, &[30, 10], &Device::Cpu).unwrap();
        assert_eq!((all_finite(&x).unwrap(), composed(|| all_finite(&x).unwrap())), (finite, finite), "{bad}");
    }
    let encoded = EncodedTensor::encode(CodecId::Q4K, &[2, 6, 256], &noise(2 * 6 * 256, 1), None).unwrap();
    let weight = Weight::Blocks(Blocks::new(encoded).unwrap()).expert(1).unwrap();
    compare("product with blocks", || weight.product(&tensor(&[5, 256], 2), crate::ComputeMode::F32).unwrap());
}

#[test]
fn rotations() {
    for interleaved in [false, true] {
        for (dims, part) in
            [(8, Rotated { head: 8, from: 0 }), (4, Rotated { head: 8, from: 0 }), (4, Rotated { head: 8, from: 4 })]
        {
            let table = RopeTable::new(&Rope { theta: 100.0, dims, interleaved, scaling: RopeScaling::None }, 40);
            for (len, start) in [(5, 0), (10, 3), (1, 39), (10, 36)] {
                let span = |windows: usize| Rows { windows, len, start };
                let x = || tensor(&[14, 24], 1).narrow(0, 2, 10).unwrap();
                compare("rotation", || table.apply(x(), &[span(10 / len)], part).unwrap());
                if len < 10 {
                    let spans = [span(1), span(10 / len - 1)];
                    compare("rotation of spans", || table.apply(x(), &spans, part).unwrap());
                }
            }
        }
    }
}

/// One model of every kind of graph.
fn models() -> Vec<(&'static str, Value)> {
    let layer = |changes: Value| {
        let mut all = json!({"rms_norm_eps": null, "layer_norm_eps": 1e-6, "head_dim": null});
        all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        all
    };
    let latent = json!({"num_key_value_heads": 4, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10, "kv_lora_rank": 16,
        "q_lora_rank": 20, "n_routed_experts": 4, "n_shared_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1});
    vec![
        ("llama", json!({"attention_bias": true, "mlp_bias": true, "tie_word_embeddings": true})),
        ("mistral", json!({"sliding_window": 9, "head_dim": 10})),
        ("qwen3", json!({"head_dim": 12})),
        (
            "gemma2",
            json!({"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 168, "sliding_window": 16,
                "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0}),
        ),
        (
            "gpt2",
            json!({"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "n_inner": 48, "layer_norm_epsilon": 1e-5,
                "activation_function": "gelu_new", "num_key_value_heads": null, "head_dim": null}),
        ),
        ("gpt_neox", layer(json!({"hidden_act": "gelu", "rotary_pct": 0.25}))),
        ("phi3", json!({"partial_rotary_factor": 0.75, "sliding_window": 64})),
        ("cohere", layer(json!({"logit_scale": 0.3, "use_qk_norm": true, "tie_word_embeddings": true}))),
        ("mixtral", json!({"num_local_experts": 4, "num_experts_per_tok": 2})),
        (
            "qwen2_moe",
            json!({"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40}),
        ),
        ("deepseek_v3", latent),
        (
            "gpt_oss",
            json!({"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16,
                "layer_types": ["full_attention", "sliding_attention"]}),
        ),
        (
            "llama4_text",
            json!({"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 64, "moe_layers": [0],
                "attention_chunk_size": 16, "no_rope_layers": [1, 0], "floor_scale": 4, "attn_scale": 0.3}),
        ),
    ]
}

/// Logits of all windows, one after the other.
fn swept(source: &dyn WeightSource, windows: &[Vec<u32>]) -> Vec<f32> {
    let normed = sweep::run(source, windows, &Device::Cpu, None).unwrap();
    let head = Head::load(source, &Device::Cpu).unwrap();
    (0..windows.len()).flat_map(|i| normed.logits(&head, i).unwrap()).collect()
}

/// Logits of two texts read beside each other: a prompt in two pieces, then token by token.
fn generated(source: &dyn WeightSource, cache: CacheType) -> Vec<f32> {
    let model = Model::load(source, &Device::Cpu).unwrap();
    let texts = [tokens(50, 0), tokens(50, 1)];
    let mut batch = Batch::new(&model);
    let mut sequences = [batch.sequence(cache).unwrap(), batch.sequence(cache).unwrap()];
    let mut all = Vec::new();
    // One of them starts anew.
    for (from, n, clear) in [(0, 20, false), (0, 30, true), (30, 7, false), (37, 1, false), (38, 1, false), (39, 11, false)] {
        let mut feeds = Vec::new();
        for (sequence, text) in sequences.iter_mut().zip(&texts) {
            if clear {
                sequence.clear();
            }
            feeds.push(Feed { sequence, tokens: &text[from..from + n], wanted: Wanted::All });
        }
        batch.step(&mut feeds, |_, _, logits| all.extend_from_slice(logits)).unwrap();
    }
    all
}

#[test]
fn whole_models() {
    let windows = [tokens(150, 0), tokens(20, 1), tokens(1, 2), tokens(20, 3)];
    for (model_type, changes) in models() {
        let source = model(model_type, changes);
        let one = || swept(&source, &windows);
        assert_close(&composed(one), &one(), model_type);
        let one = || generated(&source, CacheType::F32);
        assert_close(&composed(one), &one(), &format!("{model_type}, token by token"));
    }
}

/// Weights in blocks.
struct InBlocks(crate::MemoryWeights);

impl WeightSource for InBlocks {
    fn spec(&self) -> &ModelSpec {
        self.0.spec()
    }
    fn codec(&self, role: Role) -> Result<Encoding> {
        self.0.codec(role)
    }
    fn read(&self, role: Role) -> Result<HostTensor> {
        self.0.read(role)
    }
    fn weight(&self, role: Role, device: &Device) -> Result<Weight> {
        let host = self.read(role)?;
        if !role.part.is_matrix() {
            return Ok(Weight::Dense(from_host(host.data, &host.shape, device)?));
        }
        Ok(Weight::Blocks(Blocks::new(EncodedTensor::encode(CodecId::Q8_0, &host.shape, &host.data, None)?)?))
    }
}

#[test]
fn weights_in_blocks_and_rounded_caches() {
    let wide = json!({"hidden_size": 64, "intermediate_size": 96, "head_dim": 32, "num_attention_heads": 2});
    let windows = [tokens(70, 0), tokens(9, 1)];
    let blocks = InBlocks(model("llama", wide.clone()));
    assert_close(&composed(|| swept(&blocks, &windows)), &swept(&blocks, &windows), "blocks");
    let experts = json!({"num_local_experts": 4, "num_experts_per_tok": 2, "hidden_size": 64, "intermediate_size": 96});
    let blocks = InBlocks(model("mixtral", experts));
    assert_close(&composed(|| swept(&blocks, &windows)), &swept(&blocks, &windows), "experts in blocks");
    for cache in CacheType::ALL {
        let rounded = Rounded(model("llama", wide.clone()), cache);
        let close = |got: Vec<f32>, want: Vec<f32>| {
            // A value on the edge of a code may go the other way.
            let error = got.iter().zip(&want).map(|(g, w)| f64::from(g - w).powi(2)).sum::<f64>();
            let size = want.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>();
            assert!(error <= size * 1e-6, "{cache}: {}", (error / size).sqrt());
        };
        close(composed(|| swept(&rounded, &windows)), swept(&rounded, &windows));
        close(composed(|| generated(&rounded, cache)), generated(&rounded, cache));
    }
}
