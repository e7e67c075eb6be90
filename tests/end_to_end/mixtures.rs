//! Mixtures of experts: their tensors in every container, what calibration knows of each expert, and every kind of target.

use crate::support::{Work, demo, edit_json, read_safetensors, write_safetensors};
use crate::tiny::write_random;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

const HIDDEN: usize = 128;
const FFN: usize = 64;
const EXPERTS: usize = 4;
const LAYERS: usize = 2;

fn config(changes: &Value) -> Value {
    let mut config: Value = serde_json::from_slice(&fs::read(demo().join("config.json")).unwrap()).unwrap();
    let common = json!({
        "hidden_size": HIDDEN, "intermediate_size": FFN, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": LAYERS,
        "vocab_size": 2048, "head_dim": 32, "tie_word_embeddings": false, "num_experts_per_tok": 2, "num_local_experts": EXPERTS,
    });
    for keys in [&common, changes] {
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    }
    config
}

/// A checkpoint; `layer` are the tensors of each layer besides the norms.
fn write(work: &Work, name: &str, changes: &Value, layer: &[(&str, &[usize])]) -> PathBuf {
    let mut all = vec![
        ("model.embed_tokens.weight".to_string(), vec![2048, HIDDEN], 0.0, 0.3),
        ("model.norm.weight".to_string(), vec![HIDDEN], 1.0, 0.5),
        ("lm_head.weight".to_string(), vec![2048, HIDDEN], 0.0, 0.3),
    ];
    for i in 0..LAYERS {
        let at = |name: &str| format!("model.layers.{i}.{name}");
        for norm in ["input_layernorm.weight", "post_attention_layernorm.weight"] {
            all.push((at(norm), vec![HIDDEN], 1.0, 0.5));
        }
        for (name, shape) in layer {
            let (centre, width) = if name.contains("norm") { (1.0, 0.5) } else { (0.0, 0.15) };
            match name.contains("{e}") {
                false => all.push((at(name), shape.to_vec(), centre, width)),
                true => {
                    all.extend((0..EXPERTS).map(|e| (at(&name.replace("{e}", &e.to_string())), shape.to_vec(), centre, width)))
                }
            }
        }
    }
    write_random(work, name, &config(changes), all)
}

const ATTENTION: [(&str, &[usize]); 4] = [
    ("self_attn.q_proj.weight", &[128, HIDDEN]),
    ("self_attn.k_proj.weight", &[64, HIDDEN]),
    ("self_attn.v_proj.weight", &[64, HIDDEN]),
    ("self_attn.o_proj.weight", &[HIDDEN, 128]),
];

/// One tensor per expert.
fn mixtral(work: &Work) {
    let experts: [(&str, &[usize]); 4] = [
        ("block_sparse_moe.gate.weight", &[EXPERTS, HIDDEN]),
        ("block_sparse_moe.experts.{e}.w1.weight", &[FFN, HIDDEN]),
        ("block_sparse_moe.experts.{e}.w3.weight", &[FFN, HIDDEN]),
        ("block_sparse_moe.experts.{e}.w2.weight", &[HIDDEN, FFN]),
    ];
    write(work, "mixtral", &json!({"model_type": "mixtral", "sliding_window": null}), &[&ATTENTION[..], &experts].concat());
}

/// All experts' gates and ups in one tensor.
fn granite(work: &Work) {
    let experts: [(&str, &[usize]); 3] = [
        ("block_sparse_moe.router.layer.weight", &[EXPERTS, HIDDEN]),
        ("block_sparse_moe.input_linear.weight", &[EXPERTS, 2 * FFN, HIDDEN]),
        ("block_sparse_moe.output_linear.weight", &[EXPERTS, HIDDEN, FFN]),
    ];
    let changes = json!({"model_type": "granitemoe", "attention_multiplier": 0.2, "logits_scaling": 2.0});
    write(work, "granite", &changes, &[&ATTENTION[..], &experts].concat());
}

/// Gates and ups transposed and in turn, with biases.
fn gpt_oss(work: &Work) {
    let experts: [(&str, &[usize]); 11] = [
        ("self_attn.q_proj.bias", &[128]),
        ("self_attn.k_proj.bias", &[64]),
        ("self_attn.v_proj.bias", &[64]),
        ("self_attn.o_proj.bias", &[HIDDEN]),
        ("self_attn.sinks", &[4]),
        ("mlp.router.weight", &[EXPERTS, HIDDEN]),
        ("mlp.router.bias", &[EXPERTS]),
        ("mlp.experts.gate_up_proj", &[EXPERTS, HIDDEN, 2 * FFN]),
        ("mlp.experts.gate_up_proj_bias", &[EXPERTS, 2 * FFN]),
        ("mlp.experts.down_proj", &[EXPERTS, FFN, HIDDEN]),
        ("mlp.experts.down_proj_bias", &[EXPERTS, HIDDEN]),
    ];
    write(
        work,
        "gpt-oss",
        &json!({"model_type": "gpt_oss", "sliding_window": 16, "attention_bias": true}),
        &[&ATTENTION[..], &experts].concat(),
    );
}

/// Keys and values of the latent in one matrix, a shared expert, a bias of the choice.
fn deepseek(work: &Work) {
    let layer: [(&str, &[usize]); 14] = [
        ("self_attn.q_a_proj.weight", &[64, HIDDEN]),
        ("self_attn.q_a_layernorm.weight", &[64]),
        ("self_attn.q_b_proj.weight", &[4 * 48, 64]),
        ("self_attn.kv_a_proj_with_mqa.weight", &[64 + 16, HIDDEN]),
        ("self_attn.kv_a_layernorm.weight", &[64]),
        ("self_attn.kv_b_proj.weight", &[4 * (32 + 32), 64]),
        ("self_attn.o_proj.weight", &[HIDDEN, 4 * 32]),
        ("mlp.gate.weight", &[EXPERTS, HIDDEN]),
        ("mlp.gate.e_score_correction_bias", &[EXPERTS]),
        ("mlp.experts.{e}.gate_proj.weight", &[FFN, HIDDEN]),
        ("mlp.experts.{e}.up_proj.weight", &[FFN, HIDDEN]),
        ("mlp.experts.{e}.down_proj.weight", &[HIDDEN, FFN]),
        ("mlp.shared_experts.gate_proj.weight", &[FFN, HIDDEN]),
        ("mlp.shared_experts.up_proj.weight", &[FFN, HIDDEN]),
    ];
    let down: [(&str, &[usize]); 1] = [("mlp.shared_experts.down_proj.weight", &[HIDDEN, FFN])];
    let changes = json!({"model_type": "deepseek_v3", "num_key_value_heads": 4, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
        "v_head_dim": 32, "kv_lora_rank": 64, "q_lora_rank": 64, "n_routed_experts": EXPERTS, "n_shared_experts": 1,
        "moe_intermediate_size": FFN, "first_k_dense_replace": 0, "n_group": 1, "topk_group": 1});
    write(work, "deepseek", &changes, &[&layer[..], &down].concat());
}

/// The tensors of a folder: type, shape and bytes by name.
fn tensors(work: &Work, folder: &str) -> BTreeMap<String, (Value, Value, Vec<u8>)> {
    let (header, data) = read_safetensors(&work.path(&format!("{folder}/model.safetensors")));
    let bytes = |info: &Value| {
        let at = |i: usize| info["data_offsets"][i].as_u64().unwrap() as usize;
        data[at(0)..at(1)].to_vec()
    };
    let named = header.iter().filter(|(name, _)| !name.starts_with("__"));
    named.map(|(name, info)| (name.clone(), (info["dtype"].clone(), info["shape"].clone(), bytes(info)))).collect()
}

/// To GGUF and MLX and back, every tensor is what it was, bit for bit.
#[test]
fn containers_have_the_same_experts() {
    let work = Work::new();
    for (name, make) in [("mixtral", mixtral as fn(&Work)), ("granite", granite), ("gpt-oss", gpt_oss), ("deepseek", deepseek)] {
        make(&work);
        let original = tensors(&work, name);
        for (target, artifact) in [("gguf:bf16", format!("{name}.gguf")), ("mlx:bf16", format!("{name}-mlx"))] {
            work.ok(&format!("convert {name} --to {target} -o {artifact}"));
            work.ok(&format!("convert {artifact} --to hf:bf16 -o {artifact}-back"));
            let back = tensors(&work, &format!("{artifact}-back"));
            assert_eq!(back.keys().collect::<Vec<_>>(), original.keys().collect::<Vec<_>>(), "{artifact}");
            for (tensor, was) in &original {
                assert!(back[tensor] == *was, "{artifact}: {tensor}");
            }
            let verified = work.json(&format!("verify {artifact} --source {name}"));
            assert!(verified["tensors"].as_array().unwrap().iter().all(|t| t["rel_rmse"] == 0.0), "{artifact}");
        }
    }
}

/// Experts have sums and counts of their own; what one file says of them, the other says too, and both weigh the same way.
#[test]
fn every_expert_has_its_importance() {
    let work = Work::new();
    for (name, make) in [("mixtral", mixtral as fn(&Work)), ("deepseek", deepseek)] {
        make(&work);
        work.ok(&format!("calibrate {name} --calib builtin --samples 3 --ctx 64 -o {name}.stats --imatrix {name}.imatrix.gguf"));
        let covered = work.json(&format!("imatrix {name}.imatrix.gguf"));
        let of = |tensor: &str| covered["tensors"].as_array().unwrap().iter().find(|t| t["name"] == tensor).unwrap().clone();
        for part in ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"] {
            let entry = of(&format!("blk.1.{part}.weight"));
            // Every token goes to two experts.
            assert_eq!((&entry["experts"], &entry["tokens"]), (&json!(EXPERTS), &json!(2 * 3 * 64)), "{entry}");
        }
        assert_eq!(of("blk.0.attn_output.weight")["tokens"], 3 * 64);
        let quantize = |evidence: &str, out: &str| {
            work.ok(&format!("quantize {name} --to gguf:q4_k_m --method reference {evidence} -o {out}.gguf"));
            fs::read(work.path(&format!("{out}.gguf"))).unwrap()
        };
        let by_stats = quantize(&format!("--stats {name}.stats"), &format!("{name}-s"));
        let by_windows = quantize("--calib builtin --samples 3 --ctx 64", &format!("{name}-w"));
        assert!(by_stats == by_windows, "{name}: given statistics, and gathered ones");
        assert!(by_stats != quantize("--method rtn", &format!("{name}-r")), "{name}: importance counts");
        if covered["tensors"].as_array().unwrap().iter().all(|t| t["experts_never"] == json!([])) {
            let by_imatrix = quantize(&format!("--imatrix {name}.imatrix.gguf"), &format!("{name}-i"));
            assert_eq!(by_imatrix.len(), by_stats.len());
        }
    }
}

/// Every kind of target takes a mixture, is verified against its source, and computes nearly what that does.
#[test]
fn mixtures_become_every_kind_of_target() {
    let work = Work::new();
    mixtral(&work);
    let targets = "gguf:q8_0,mlx:8bit-g32,gptq:8bit-g32,awq:4bit-g32,compressed:int8";
    let calibration = "--calib builtin --samples 2 --ctx 64";
    let made = work.json(&format!("quantize mixtral --to {targets} {calibration} -o out/"));
    let artifacts = made["artifacts"].as_array().unwrap();
    assert_eq!(artifacts.len(), 5);
    for artifact in artifacts {
        let (path, target) = (artifact["path"].as_str().unwrap(), artifact["target"].as_str().unwrap());
        work.ok(&format!("check {path}"));
        let inspected = work.json(&format!("inspect {path}"));
        assert_eq!(inspected["architecture"], "mixtral", "{target}: {inspected}");
        let verified = work.json(&format!("verify {path} --source mixtral"));
        let limit = if target.starts_with("awq") { 0.2 } else { 0.02 };
        // Norms that scales were folded into have no error of their own.
        let errors = verified["tensors"].as_array().unwrap().iter().filter_map(|t| Some((t, t["rel_rmse"].as_f64()?)));
        let compared = errors.inspect(|(t, error)| assert!(*error < limit, "{target}: {t}")).count();
        assert!(compared > 10, "{target}: {compared} tensors compared");
    }
    let text = work.ok("generate out/mixtral-Q8_0.gguf -p hello -n 4");
    assert!(!text.out.trim().is_empty());
    granite(&work);
    let error = work.fails("quantize granite --to gptq:4bit-g32 --calib builtin --samples 1 --ctx 32 -o g", 69);
    assert!(error["message"].as_str().unwrap().contains("all experts in one tensor"), "{error}");
}

/// gpt-oss as it is released, in the folder `packed`: the experts' matrices in MXFP4 as transformers packs them; and the same values in
/// BF16, in the folder `gpt-oss`.
fn gpt_oss_packed(work: &Work) {
    const LEVELS: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    gpt_oss(work);
    let mut dense = tensors(work, "gpt-oss");
    let mut packed = dense.clone();
    let mut state = 1u64;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    for layer in 0..LAYERS {
        for (name, rows, columns) in [("gate_up_proj", 2 * FFN, HIDDEN), ("down_proj", HIDDEN, FFN)] {
            let name = format!("model.layers.{layer}.mlp.experts.{name}");
            let groups = EXPERTS * rows * columns / 32;
            let blocks: Vec<u8> = (0..16 * groups).map(|_| byte()).collect();
            let scales: Vec<u8> = (0..groups).map(|_| 122 + byte() % 4).collect();
            let (_, _, values) = dense.get_mut(&name).unwrap();
            for i in 0..EXPERTS * rows * columns {
                let code = blocks[i / 2] >> (4 * (i % 2));
                let sign = if code & 8 == 0 { 1.0 } else { -1.0 };
                let value = sign * LEVELS[usize::from(code & 7)] * 2f32.powi(i32::from(scales[i / 32]) - 127);
                let (expert, row, column) = (i / columns / rows, i / columns % rows, i % columns);
                let at = 2 * ((expert * columns + column) * rows + row);
                values[at..at + 2].copy_from_slice(&value.to_le_bytes()[2..]);
            }
            packed.remove(&name);
            let shape = [EXPERTS, rows, columns / 32];
            packed.insert(format!("{name}_scales"), (json!("U8"), json!(shape), scales));
            packed.insert(format!("{name}_blocks"), (json!("U8"), json!([shape[0], shape[1], shape[2], 16]), blocks));
        }
    }
    fs::create_dir(work.path("packed")).unwrap();
    for file in work.names("gpt-oss") {
        fs::copy(work.path("gpt-oss").join(&file), work.path("packed").join(&file)).unwrap();
    }
    for (folder, tensors) in [("gpt-oss", dense), ("packed", packed)] {
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, (dtype, shape, bytes)) in tensors {
            let offsets = [data.len(), data.len() + bytes.len()];
            header.insert(name, json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
            data.extend(bytes);
        }
        write_safetensors(&work.path(folder).join("model.safetensors"), &header, &data);
    }
    edit_json(&work.path("packed/config.json"), "quantization_config", json!({"quant_method": "mxfp4"}));
}

/// Experts in released blocks compute what their values compute, where they lie and in a GGUF that keeps the blocks.
#[test]
fn packed_experts_compute_as_their_values() {
    let work = Work::new();
    gpt_oss_packed(&work);
    work.ok("convert packed --to gguf:keep -o kept.gguf");
    for (model, codec) in [("packed", "mlx-mxfp4"), ("kept.gguf", "mxfp4")] {
        let inspected = work.json(&format!("inspect {model}"));
        let tensors = inspected["tensors"].as_array().unwrap();
        assert_eq!(tensors.iter().filter(|t| t["codec"] == codec).count() % LAYERS, 0, "{model}: {inspected}");
        assert!(tensors.iter().any(|t| t["codec"] == codec), "{model}: {inspected}");
        let kld = |compute: &str| {
            let document =
                work.json(&format!("eval {model} --kld builtin --against gpt-oss --ctx 64 --limit 4 --compute {compute}"));
            document["kld"][0]["mean"].as_f64().unwrap()
        };
        let (exact, rounded) = (kld("f32"), kld("int8"));
        assert!(exact < 1e-9, "{model}: {exact}");
        assert!(rounded < 0.1, "{model}: {rounded}");
        work.ok(&format!("verify {model} --source gpt-oss"));
        assert_eq!(work.json(&format!("generate {model} -p hello -n 3"))["tokens"].as_array().unwrap().len(), 3);
    }
}
