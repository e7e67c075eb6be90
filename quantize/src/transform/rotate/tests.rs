use super::*;
use bitsmith_formats::ErrorKind;
use bitsmith_runtime::{Device, Head, MemoryWeights, sweep};
use serde_json::{Value, json};

/// A small made-up model; channels of its norms, values and down projections are far from equal.
fn model(model_type: &str, changes: Value) -> MemoryWeights {
    let mut config = json!({
        "model_type": model_type, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "vocab_size": 61,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0,
        "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2,
    });
    if let (Value::Object(config), Value::Object(changes)) = (&mut config, changes) {
        config.extend(changes);
    }
    let spec = ModelSpec::from_config(&config).unwrap();
    let mut model = MemoryWeights::random(spec.clone(), 11);
    for role in spec.roles().into_iter().filter(|r| r.part.name().ends_with("norm")) {
        let mut data = model.read(role).unwrap().data;
        data.iter_mut().step_by(5).for_each(|v| *v = *v * 8.0 + 3.0);
        model.set(role, data).unwrap();
    }
    model
}

fn logits(source: &dyn WeightSource) -> Vec<f32> {
    let windows: Vec<Vec<u32>> =
        [40usize, 7].iter().map(|n| (0..*n).map(|i| ((i * i * 7 + i * 13 + n) % 61) as u32).collect()).collect();
    let normed = sweep::run(source, &windows, &Device::Cpu, None).unwrap();
    let head = Head::load(source, &Device::Cpu).unwrap();
    (0..windows.len()).flat_map(|i| normed.logits(&head, i).unwrap()).collect()
}

fn rotated<'a>(model: &'a MemoryWeights, rotate: &Rotate, seed: u64) -> Rotated<'a> {
    Rotated::new(Box::new(model), rotate, seed).unwrap()
}

#[test]
fn rotated_models_compute_the_same() {
    let latent = json!({"num_key_value_heads": 4, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10, "kv_lora_rank": 16,
        "q_lora_rank": 20, "n_routed_experts": 4, "n_shared_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1});
    let experts = json!({"num_local_experts": 4, "num_experts_per_tok": 2});
    for (model_type, changes) in [
        ("llama", json!({"attention_bias": true, "mlp_bias": true, "tie_word_embeddings": true})),
        ("llama", json!({"hidden_size": 64, "head_dim": 16, "num_key_value_heads": 4})),
        ("mistral", json!({"sliding_window": 9, "head_dim": 10})),
        ("qwen2", json!({"tie_word_embeddings": true})),
        ("qwen3", json!({"hidden_size": 56})),
        ("phi3", json!({"partial_rotary_factor": 0.5, "sliding_window": 64})),
        ("smollm3", json!({"no_rope_layers": [0, 1], "tie_word_embeddings": true})),
        (
            "granite",
            json!({"attention_multiplier": 0.1, "logits_scaling": 3.0, "residual_multiplier": 0.2, "embedding_multiplier": 6.0}),
        ),
        ("mixtral", experts.clone()),
        (
            "qwen2_moe",
            json!({"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40,
                "mlp_only_layers": [0]}),
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
    ] {
        let model = model(model_type, changes);
        let want = logits(&model);
        let size = (want.iter().map(|v| v * v).sum::<f32>() / want.len() as f32).sqrt();
        for rotate in [&HADAMARD, &RANDOM] {
            let turned = MemoryWeights::copy(&rotated(&model, rotate, 3)).unwrap();
            assert!(!turned.spec().tied && turned.spec().has(Part::Output));
            let error = logits(&turned).iter().zip(&want).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(error < 1e-3 * size, "{model_type}, {}: {error} of {size}", rotate.name);
        }
    }
}

/// With the same matrices, once more transposed, every tensor is again what it was, up to norm weights that its readers now have.
#[test]
fn a_rotation_can_be_undone() {
    let model = model("llama", json!({"num_key_value_heads": 4}));
    let turned = rotated(&model, &HADAMARD, 5);
    let (h, dim) = (48, 12);
    let dense = |rotation: &Rotation, n: usize| {
        let mut t = ndarray::Array2::<f32>::eye(n);
        rotation.turn_columns(t.as_slice_mut().unwrap());
        t
    };
    let t = dense(&turned.residual, h);
    let matrix = |data: Vec<f32>, columns: usize| ndarray::Array2::from_shape_vec((data.len() / columns, columns), data).unwrap();
    let close = |a: &ndarray::Array2<f32>, b: &ndarray::Array2<f32>, what: &str| {
        let error = a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(error < 2e-5, "{what}: {error}");
    };
    for layer in 0..2 {
        let read = |source: &dyn WeightSource, part: Part| source.read(Role::layer(layer, part)).unwrap().data;
        let gamma = ndarray::Array1::from(read(&model, Part::AttnNorm));
        let q = matrix(read(&turned, Part::AttnQ), h).dot(&t) / &gamma;
        close(&q, &matrix(read(&model, Part::AttnQ), h), "q");
        // Values and what reads them, head by head, with their levels.
        let levels = ndarray::Array1::from(turned.level(layer, Channels::Heads).unwrap().to_vec());
        let heads = dense(&turned.heads[layer], dim);
        let v = matrix(read(&turned, Part::AttnV), h).dot(&t) / &gamma;
        let o = t.t().dot(&matrix(read(&turned, Part::AttnOutput), 48));
        for head in 0..4 {
            let rows = ndarray::s![head * dim..(head + 1) * dim, ..];
            let undone = heads.t().dot(&v.slice(rows))
                * levels.slice(ndarray::s![head * dim..(head + 1) * dim]).insert_axis(ndarray::Axis(1));
            close(&undone, &matrix(read(&model, Part::AttnV), h).slice(rows).to_owned(), "v");
            let columns = ndarray::s![.., head * dim..(head + 1) * dim];
            let undone = o.slice(columns).dot(&heads) / levels.slice(ndarray::s![head * dim..(head + 1) * dim]);
            close(&undone, &matrix(read(&model, Part::AttnOutput), 48).slice(columns).to_owned(), "o");
        }
    }
}

#[test]
fn down_projections_have_level_columns() {
    let mut model = model("llama", json!({}));
    let role = Role::layer(1, Part::FfnDown);
    let mut down = model.read(role).unwrap().data;
    down.iter_mut().enumerate().filter(|(i, _)| i % 40 == 7).for_each(|(_, w)| *w *= 32.0);
    model.set(role, down).unwrap();
    let norms = |source: &dyn WeightSource| -> Vec<f32> {
        let down = source.read(role).unwrap().data;
        (0..40).map(|c| down.iter().skip(c).step_by(40).map(|w| w * w).sum::<f32>().sqrt()).collect()
    };
    let ratio = |norms: &[f32]| norms.iter().fold(0f32, |m, v| m.max(*v)) / norms.iter().fold(f32::MAX, |m, v| m.min(*v));
    assert!(ratio(&norms(&model)) > 20.0 && ratio(&norms(&rotated(&model, &HADAMARD, 0))) < 1.001);
    assert_eq!(levelling(&[0.0, 4.0, 1.0]), [1.0, 0.5f32.sqrt(), 2f32.sqrt()]);
}

#[test]
fn seeds_make_rotations() {
    let model = model("llama", json!({}));
    let q = |seed| rotated(&model, &HADAMARD, seed).read(Role::layer(0, Part::AttnQ)).unwrap().data;
    assert_eq!(q(1), q(1));
    assert_ne!(q(1), q(2));
}

#[test]
fn what_a_rotation_would_change_is_refused() {
    let layer = json!({"rms_norm_eps": null, "layer_norm_eps": 1e-6, "head_dim": null, "hidden_act": "gelu"});
    let mut neox = layer.clone();
    neox["rotary_pct"] = json!(0.5);
    for (model_type, changes, why) in [
        ("gpt_neox", neox, "subtract a mean"),
        ("bert", layer, "encoders"),
        ("olmo2", json!({}), "between its blocks' outputs"),
        (
            "gemma2",
            json!({"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 168, "sliding_window": 16,
                "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0}),
            "between its blocks' outputs",
        ),
        ("gemma", json!({"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": true}), "embedding for the output matrix"),
    ] {
        let model = model(model_type, changes);
        let e = Rotated::new(Box::new(&model), &HADAMARD, 0).err().unwrap();
        assert_eq!(e.kind, ErrorKind::Unsupported);
        assert!(e.message.contains(why) && e.message.contains(model.spec().arch.name), "{e}");
    }
}
