//! Damaged and incomplete models: each has its exit code, names file and tensor, and leaves nothing under the final name.

use crate::support::{Work, edit_json, read_safetensors, write_safetensors};
use crate::tiny::LLAMA;
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

/// Where in a model a number may be missing, and what still finds it.
#[test]
fn not_a_number_anywhere() {
    let work = Work::new();
    for (i, (tensor, row, value)) in [
        ("model.embed_tokens.weight", 700, [0x80, 0x7f]),
        ("model.layers.0.self_attn.k_proj.weight", 3, [0xc0, 0xff]),
        ("model.layers.1.post_attention_layernorm.weight", 0, [0xc0, 0x7f]),
        ("model.layers.0.mlp.down_proj.weight", 127, [0x80, 0xff]),
        ("model.norm.weight", 0, [0xc0, 0x7f]),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("model{i}");
        let path = LLAMA.write(&work, &name).join(WEIGHTS);
        let (header, mut data) = read_safetensors(&path);
        let width = header[tensor]["shape"].as_array().unwrap().last().unwrap().as_u64().unwrap() as usize;
        let at = header[tensor]["data_offsets"][0].as_u64().unwrap() as usize + 2 * (row * width + 5);
        data[at..at + 2].copy_from_slice(&value);
        write_safetensors(&path, &header, &data);
        for line in [
            "quantize MODEL --to gguf:q4_0 --method rtn -o out/d.gguf",
            "quantize MODEL --to gguf:q4_k_m --method gptq --samples 2 --ctx 64 -o out/d.gguf",
            "quantize MODEL --to mlx:4bit --method awq+gptq --samples 2 --ctx 64 -o out/d",
            "run MODEL --to mlx:8bit,gguf:q8_0 --samples 2 --ctx 64 --eval-ctx 64 --limit 1 --out out",
            "convert MODEL --to gguf:f16 -o out/d.gguf",
            "calibrate MODEL -o out.stats --samples 2 --ctx 64",
            "eval MODEL --ppl builtin --ctx 64 --limit 1",
        ] {
            let line = line.replace("MODEL", &name);
            let error = work.fails(&line, 65);
            assert_eq!(error["tensor"], tensor, "{line}: {error}");
            names(&error, "file", WEIGHTS);
            let message = error["message"].as_str().unwrap();
            assert!(message.contains(&format!("row {row}")) || (row == 0 && message.contains("5")), "{line}: {message}");
            assert!(
                work.names("out").iter().all(|n| n.starts_with('.') && n.ends_with(".work")),
                "{line}: {:?}",
                work.names("out")
            );
            assert!(!work.path("out.stats").exists());
        }
    }
}

#[test]
fn a_configuration_of_another_model() {
    for (key, value, code, tensor) in [
        ("intermediate_size", json!(512), 65, "model.layers.0.mlp."),
        ("num_key_value_heads", json!(4), 65, "model.layers.0.self_attn."),
        ("vocab_size", json!(2047), 65, "model.embed_tokens.weight"),
        ("num_hidden_layers", json!(3), 66, "model.layers.2."),
        ("num_hidden_layers", json!(1), 69, "model.layers.1."),
        ("tie_word_embeddings", json!(false), 66, "lm_head.weight"),
    ] {
        let work = Work::new();
        let folder = LLAMA.write(&work, "model");
        edit_json(&folder.join("config.json"), key, value.clone());
        for line in ["quantize model --to mlx:4bit -o d", "run model", "generate model -p x", "eval model --ppl builtin"] {
            let error = work.fails(line, code);
            assert!(error.to_string().contains(tensor), "{key} {value}: {line}: {error}");
            assert!(error["file"].as_str().is_some_and(|f| f.starts_with("model")), "{line}: {error}");
        }
        assert_eq!(work.names(""), ["model"]);
    }
}

#[test]
fn commands_that_need_a_tokenizer_say_so_before_any_work() {
    let work = Work::new();
    let folder = LLAMA.write(&work, "model");
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    for line in [
        "run model --out out",
        "quantize model --to gguf:q4_0 --method rtn -o d.gguf",
        "quantize model --to mlx:4bit --method gptq -o d",
        "convert model --to gguf:f16 -o d.gguf",
        "calibrate model -o d.stats",
        "eval model --ppl builtin",
        "generate model -p x",
        "tokenize model -p x",
    ] {
        names(&work.fails(line, 66), "file", "tokenizer.json");
    }
    assert_eq!(work.names(""), ["model"]);
}
