//! Layers for multi-token prediction: kept, split off, or dropped, and never run.

use crate::support::{Work, demo, read_safetensors};
use crate::tiny::write_random;
use serde_json::{Value, json};
use std::fs;

const HIDDEN: usize = 128;
const FFN: usize = 256;
const VOCAB: usize = 2048;
/// Layers that the model runs; one more predicts further tokens.
const LAYERS: usize = 2;

/// A DeepSeek V3 with one layer for multi-token prediction.
fn deepseek(work: &Work, name: &str) {
    let mut all: Vec<(String, Vec<usize>, f32, f32)> = Vec::new();
    let mut add = |name: String, shape: &[usize]| {
        let (centre, width) = if name.contains("norm") { (1.0, 0.5) } else { (0.0, 0.15) };
        all.push((name, shape.to_vec(), centre, width));
    };
    for (name, shape) in
        [("model.embed_tokens", vec![VOCAB, HIDDEN]), ("model.norm", vec![HIDDEN]), ("lm_head", vec![VOCAB, HIDDEN])]
    {
        add(format!("{name}.weight"), &shape);
    }
    for layer in 0..=LAYERS {
        let at = |name: &str| format!("model.layers.{layer}.{name}");
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.q_a_proj", vec![64, HIDDEN]),
            ("self_attn.q_a_layernorm", vec![64]),
            ("self_attn.q_b_proj", vec![4 * 48, 64]),
            ("self_attn.kv_a_proj_with_mqa", vec![64 + 16, HIDDEN]),
            ("self_attn.kv_a_layernorm", vec![64]),
            ("self_attn.kv_b_proj", vec![4 * 64, 64]),
            ("self_attn.o_proj", vec![HIDDEN, 4 * 32]),
        ] {
            add(at(&format!("{name}.weight")), &shape);
        }
        let block = |add: &mut dyn FnMut(String, &[usize]), within: &str| {
            for (name, shape) in [("gate_proj", [FFN, HIDDEN]), ("up_proj", [FFN, HIDDEN]), ("down_proj", [HIDDEN, FFN])] {
                add(at(&format!("{within}.{name}.weight")), &shape);
            }
        };
        if layer == 0 {
            block(&mut add, "mlp");
            continue;
        }
        (0..4).for_each(|e| block(&mut add, &format!("mlp.experts.{e}")));
        block(&mut add, "mlp.shared_experts");
        add(at("mlp.gate.weight"), &[4, HIDDEN]);
        add(at("mlp.gate.e_score_correction_bias"), &[4]);
        if layer == LAYERS {
            for (name, shape) in [
                ("eh_proj", vec![HIDDEN, 2 * HIDDEN]),
                ("enorm", vec![HIDDEN]),
                ("hnorm", vec![HIDDEN]),
                ("embed_tokens", vec![VOCAB, HIDDEN]),
                ("shared_head.norm", vec![HIDDEN]),
                ("shared_head.head", vec![VOCAB, HIDDEN]),
            ] {
                add(at(&format!("{name}.weight")), &shape);
            }
        }
    }
    let mut config: Value = serde_json::from_slice(&fs::read(demo().join("config.json")).unwrap()).unwrap();
    let own = json!({
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": HIDDEN, "intermediate_size": FFN,
        "moe_intermediate_size": FFN, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": LAYERS,
        "vocab_size": VOCAB, "q_lora_rank": 64, "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
        "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
        "first_k_dense_replace": 1, "routed_scaling_factor": 1.5, "norm_topk_prob": true, "scoring_func": "sigmoid",
        "topk_method": "noaux_tc", "tie_word_embeddings": false, "num_nextn_predict_layers": 1,
    });
    config.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
    config.as_object_mut().unwrap().remove("head_dim");
    write_random(work, name, &config, all);
}

fn read(work: &Work, name: &str) -> Value {
    serde_json::from_slice(&fs::read(work.path(name)).unwrap()).unwrap()
}

/// Names and formats of a file's tensors, and its metadata.
fn inspect(work: &Work, file: &str) -> (Vec<(String, String)>, Value) {
    let found = work.json(&format!("inspect {file} --tensors --metadata"));
    let text = |v: &Value| v.as_str().unwrap().to_string();
    let tensors = found["tensors"].as_array().unwrap().iter().map(|t| (text(&t["name"]), text(&t["codec"]))).collect();
    (tensors, found["metadata"].clone())
}

fn codec(tensors: &[(String, String)], name: &str) -> Option<String> {
    tensors.iter().find(|(n, _)| n == name).map(|(_, codec)| codec.clone())
}

#[test]
fn kept_where_there_is_a_place() {
    let work = Work::new();
    deepseek(&work, "ds");
    work.ok("quantize ds --to gguf:bf16,gguf:q8_0,hf:bf16,compressed:int8,mlx:8bit --method rtn -o out");
    work.write("tokens.json", json!({"sequences": [[5, 6, 7, 8, 9]]}).to_string());
    let logits = |model: &str| work.json(&format!("logits {model} --tokens tokens.json --top 3"));
    for file in ["out/ds-BF16.gguf", "out/ds-hf-bf16"] {
        assert_eq!(logits(file), logits("ds"), "{file}");
    }
    let (tensors, metadata) = inspect(&work, "out/ds-Q8_0.gguf");
    assert_eq!((&metadata["deepseek2.block_count"], &metadata["deepseek2.nextn_predict_layers"]), (&json!(3), &json!(1)));
    for (name, wanted) in [
        ("blk.2.nextn.eh_proj.weight", "q8_0"),
        ("blk.2.nextn.enorm.weight", "f32"),
        ("blk.2.nextn.embed_tokens.weight", "q8_0"),
        ("blk.2.nextn.shared_head_norm.weight", "f32"),
        ("blk.2.ffn_down_exps.weight", "q8_0"),
        ("blk.2.attn_norm.weight", "f32"),
    ] {
        assert_eq!(codec(&tensors, name).as_deref(), Some(wanted), "{name}");
    }
    // Servers run them from a folder as they are.
    let (tensors, _) = inspect(&work, "out/ds-compressed-int8");
    assert_eq!(codec(&tensors, "model.layers.2.eh_proj.weight").as_deref(), Some("bf16"));
    assert_eq!(codec(&tensors, "model.layers.2.self_attn.o_proj.weight").as_deref(), Some("bf16"));
    assert_ne!(codec(&tensors, "model.layers.1.self_attn.o_proj.weight").as_deref(), Some("bf16"));
    // MLX has no place for them, and says so.
    let dropped = read(&work, "out/ds-8bit/bitsmith.json")["dropped"].as_array().unwrap().clone();
    assert!(dropped.contains(&json!("model.layers.2.eh_proj.weight")) && dropped.len() > 20, "{dropped:?}");
    assert_eq!(read(&work, "out/ds-8bit/config.json")["num_nextn_predict_layers"], 0);
    for file in ["out/ds-BF16.gguf", "out/ds-Q8_0.gguf", "out/ds-hf-bf16", "out/ds-8bit", "out/ds-compressed-int8"] {
        assert_eq!(work.json(&format!("verify {file} --source ds"))["ok"], true, "{file}");
    }
    // And out of a GGUF again.
    work.ok("convert out/ds-BF16.gguf --to hf:bf16 -o back");
    let names = |folder: &str| {
        let (header, _) = read_safetensors(&work.path(folder).join("model.safetensors"));
        header.keys().filter(|n| *n != "__metadata__").cloned().collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(names("back"), names("ds"));
}

#[test]
fn split_off_into_a_file() {
    let work = Work::new();
    deepseek(&work, "ds");
    let document = work.json("quantize ds --to gguf:q8_0,hf:bf16,gptq:4bit-g32 --method rtn --mtp split -o out");
    let companion = &document["artifacts"][0]["companions"][0];
    assert_eq!((companion["kind"].as_str(), companion["file"].as_str()), (Some("mtp"), Some("mtp-ds-Q8_0.gguf")));
    let (trunk, metadata) = inspect(&work, "out/ds-Q8_0.gguf");
    assert!(trunk.iter().all(|(name, _)| !name.starts_with("blk.2.")));
    assert_eq!((&metadata["deepseek2.block_count"], metadata.get("deepseek2.nextn_predict_layers")), (&json!(2), None));
    let store = bitsmith_formats::gguf::GgufStore::open(work.path("out/mtp-ds-Q8_0.gguf")).unwrap();
    let names: Vec<&str> = bitsmith_formats::TensorStore::tensors(&store).iter().map(|t| t.name.as_str()).collect();
    let global = ["token_embd.weight", "output_norm.weight", "output.weight"];
    assert!(global.iter().all(|n| names.contains(n)) && names.contains(&"blk.2.nextn.eh_proj.weight"));
    assert!(names.iter().all(|n| global.contains(n) || n.starts_with("blk.2.")), "{names:?}");
    assert_eq!(store.metadata().usize("deepseek2.block_count").unwrap(), 3);
    assert_eq!(store.metadata().usize("deepseek2.nextn_predict_layers").unwrap(), 1);
    work.ok("verify out/ds-Q8_0.gguf --source ds");
    let again = work.json("quantize ds --to gguf:q8_0,hf:bf16,gptq:4bit-g32 --method rtn --mtp split -o out");
    assert!(again["artifacts"].as_array().unwrap().iter().all(|a| a["reused"] == true));
    for folder in ["out/ds-hf-bf16", "out/ds-gptq-4bit-g32"] {
        let index = read(&work, &format!("{folder}/model.safetensors.index.json"));
        for (name, file) in index["weight_map"].as_object().unwrap() {
            assert_eq!(file == "mtp.safetensors", name.starts_with("model.layers.2."), "{folder}: {name}");
        }
        work.ok(&format!("verify {folder} --source ds"));
    }
    work.ok("convert out/ds-hf-bf16 --to gguf:bf16 -o whole.gguf");
    assert!(codec(&inspect(&work, "whole.gguf").0, "blk.2.nextn.hnorm.weight").is_some());
}

#[test]
fn dropped_and_refused() {
    let work = Work::new();
    deepseek(&work, "ds");
    let ended = work.ok("convert ds --to gguf:bf16 --mtp drop -o ds.gguf");
    assert!(ended.err.contains("are dropped"), "{}", ended.err);
    let (tensors, metadata) = inspect(&work, "ds.gguf");
    assert!(tensors.iter().all(|(name, _)| !name.starts_with("blk.2.")));
    assert_eq!(metadata["deepseek2.block_count"], 2);
    assert!(read(&work, "ds.gguf.bitsmith.json")["dropped"].as_array().unwrap().contains(&json!("model.layers.2.enorm.weight")));
    for (line, code) in [
        ("convert ds --to mlx:bf16 --mtp keep -o x", 69),
        ("convert ds --to mlx:bf16 --mtp split -o x", 69),
        ("convert demo --to gguf:bf16 --mtp split -o x.gguf", 2),
        ("convert ds --to gguf:bf16 --mtp maybe -o x.gguf", 2),
    ] {
        work.fails(line, code);
    }
}

/// Nothing is observed in layers that are not run: they get formats that need no importance, and no share of that of others.
#[test]
fn calibrated_without_evidence_of_their_own() {
    let work = Work::new();
    deepseek(&work, "ds");
    work.ok("quantize ds --to gguf:iq2_xs,gguf:q4_k_m --method awq+gptq --samples 2 --ctx 64 -o out");
    let (tensors, _) = inspect(&work, "out/ds-IQ2_XS.gguf");
    let down = |layer: usize| codec(&tensors, &format!("blk.{layer}.ffn_down_exps.weight")).unwrap();
    assert!(down(1).starts_with("iq2") || down(1).starts_with("q2"), "{}", down(1));
    assert_eq!(codec(&tensors, "blk.2.nextn.eh_proj.weight").as_deref(), Some("q4_k"));
    // Transforms leave them alone.
    work.ok("quantize ds --to gguf:q4_k_m --method reference -o plain.gguf");
    let open = |name: &str| bitsmith_formats::gguf::GgufStore::open(work.path(name)).unwrap();
    let (calibrated, plain) = (open("out/ds-Q4_K_M.gguf"), open("plain.gguf"));
    let bytes = |store: &bitsmith_formats::gguf::GgufStore, name: &str| {
        bitsmith_formats::TensorStore::bytes(store, name).unwrap().to_vec()
    };
    for name in ["blk.2.nextn.enorm.weight", "blk.2.ffn_norm.weight", "blk.2.attn_norm.weight"] {
        assert!(bytes(&calibrated, name) == bytes(&plain, name), "{name}");
    }
}
