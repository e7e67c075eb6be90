//! Damaged and incomplete models: each has its exit code, names file and tensor, and leaves nothing under the final name.

use crate::support::{Work, edit_json, read_safetensors, write_safetensors};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

const WEIGHTS: &str = "model.safetensors";
const UP: &str = "model.layers.1.mlp.up_proj.weight";

/// Damages a copy of the demo and quantizes it: the error.
fn damaged(code: i32, damage: impl FnOnce(&Path)) -> Value {
    let work = Work::new();
    damage(&work.checkpoint("model"));
    let error = work.fails("quantize model --to gguf:q4_k_m --samples 2 --ctx 64 -o out/d.gguf", code);
    assert!(!work.names("out").iter().any(|n| n == "d.gguf" || n.ends_with(".partial")), "{:?}", work.names("out"));
    error
}

fn names(error: &Value, key: &str, end: &str) {
    assert!(error[key].as_str().is_some_and(|f| f.ends_with(end)), "{error}");
}

#[test]
fn truncated_weights() {
    let error = damaged(65, |model| {
        let bytes = fs::read(model.join(WEIGHTS)).unwrap();
        fs::write(model.join(WEIGHTS), &bytes[..bytes.len() - 1000]).unwrap();
    });
    names(&error, "file", WEIGHTS);
    names(&damaged(65, |model| fs::write(model.join(WEIGHTS), b"short").unwrap()), "file", WEIGHTS);
}

#[test]
fn a_missing_shard() {
    let error = damaged(66, |model| {
        let (header, data) = read_safetensors(&model.join(WEIGHTS));
        let shard = "model-00001-of-00002.safetensors";
        let map: serde_json::Map<String, Value> = header
            .keys()
            .filter(|k| *k != "__metadata__")
            .map(|k| (k.clone(), json!(if k == UP { "model-00002-of-00002.safetensors" } else { shard })))
            .collect();
        write_safetensors(&model.join(shard), &header, &data);
        fs::remove_file(model.join(WEIGHTS)).unwrap();
        fs::write(model.join("model.safetensors.index.json"), json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    });
    names(&error, "file", "model-00002-of-00002.safetensors");
}

#[test]
fn a_wrong_shape() {
    let error = damaged(65, |model| {
        let (mut header, data) = read_safetensors(&model.join(WEIGHTS));
        header[UP]["shape"] = json!([256, 768]);
        write_safetensors(&model.join(WEIGHTS), &header, &data);
    });
    assert_eq!(error["tensor"], UP);
    names(&error, "file", WEIGHTS);
}

#[test]
fn a_missing_tensor() {
    let error = damaged(66, |model| {
        let (mut header, mut data) = read_safetensors(&model.join(WEIGHTS));
        let offsets = |entry: &Value| [0, 1].map(|i| entry["data_offsets"][i].as_u64().unwrap());
        let [start, end] = offsets(&header.remove(UP).unwrap());
        data.drain(start as usize..end as usize);
        for (_, entry) in header.iter_mut().filter(|(name, _)| *name != "__metadata__") {
            let [a, b] = offsets(entry);
            if a >= end {
                entry["data_offsets"] = json!([a - (end - start), b - (end - start)]);
            }
        }
        write_safetensors(&model.join(WEIGHTS), &header, &data);
    });
    assert!(error.to_string().contains(UP), "{error}");
}

#[test]
fn a_tensor_without_a_place() {
    let error = damaged(69, |model| {
        let (mut header, data) = read_safetensors(&model.join(WEIGHTS));
        let entry = header.remove(UP).unwrap();
        header.insert("model.layers.1.mlp.sideways.weight".into(), entry);
        write_safetensors(&model.join(WEIGHTS), &header, &data);
    });
    assert!(error.to_string().contains("sideways"), "{error}");
}

#[test]
fn not_a_number() {
    let error = damaged(65, |model| {
        let (header, mut data) = read_safetensors(&model.join(WEIGHTS));
        let at = header[UP]["data_offsets"][0].as_u64().unwrap() as usize;
        // A quiet NaN in bf16, in the sixth weight.
        data[at + 10..at + 12].copy_from_slice(&0x7fc0u16.to_le_bytes());
        write_safetensors(&model.join(WEIGHTS), &header, &data);
    });
    assert_eq!(error["tensor"], UP);
    names(&error, "file", WEIGHTS);
    assert!(error["message"].as_str().unwrap().contains("NaN"), "{error}");
}

#[test]
fn no_tokenizer() {
    let error = damaged(66, |model| fs::remove_file(model.join("tokenizer.json")).unwrap());
    names(&error, "file", "tokenizer.json");
    let error = damaged(65, |model| fs::write(model.join("tokenizer.json"), "{").unwrap());
    names(&error, "file", "tokenizer.json");
}

#[test]
fn configurations() {
    let error = damaged(69, |model| edit_json(&model.join("config.json"), "model_type", json!("mystery")));
    assert!(error["message"].as_str().unwrap().contains("mystery"));
    names(&error, "file", "config.json");
    names(&damaged(66, |model| fs::remove_file(model.join("config.json")).unwrap()), "file", "config.json");
    names(&damaged(65, |model| fs::write(model.join("config.json"), "{\"model_type\":").unwrap()), "file", "config.json");
    names(&damaged(65, |model| edit_json(&model.join("config.json"), "hidden_size", json!("wide"))), "file", "config.json");
    damaged(69, |model| edit_json(&model.join("config.json"), "hidden_act", json!("swoosh")));
}

#[test]
fn damaged_ggufs() {
    let work = Work::new();
    work.ok("convert demo --to gguf:q8_0 -o d.gguf");
    let bytes = fs::read(work.path("d.gguf")).unwrap();
    for (name, contents) in [("cut.gguf", &bytes[..bytes.len() / 2]), ("head.gguf", &bytes[..100]), ("empty.gguf", &bytes[..0])] {
        work.write(name, contents);
        for line in ["inspect", "generate -p x -n 1", "eval --ppl builtin --limit 1"] {
            let error = work.fails(&format!("{line} {name}"), 65);
            names(&error, "file", name);
        }
    }
    work.write("text.gguf", "This is no GGUF file, whatever it is called.");
    work.fails("inspect text.gguf", 65);
}

#[test]
fn nothing_there() {
    let work = Work::new();
    fs::create_dir(work.path("empty")).unwrap();
    for line in ["inspect empty", "inspect nowhere", "inspect nowhere/at/all.gguf", "tokenize empty -p x"] {
        assert_eq!(work.fails(line, 66)["kind"], "missing", "{line}");
    }
    work.fails("eval demo --ppl nothing.txt", 66);
}
