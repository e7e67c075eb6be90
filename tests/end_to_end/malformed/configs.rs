//! `config.json`, and what it says of weights that are packed.

use super::{Row, row};
use crate::support::{Work, edit_json, read_safetensors, write_safetensors};
use crate::tiny::LLAMA;
use serde_json::{Value, json};
use std::fs;

const FILE: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INSPECT: &str = "inspect model";

fn with_key(work: &Work, key: &str, value: Value) -> String {
    edit_json(&LLAMA.write(work, "model").join(FILE), key, value);
    "generate model -p x".into()
}

fn with_text(work: &Work, text: &str) -> String {
    LLAMA.write(work, "model");
    work.write("model/config.json", text);
    INSPECT.into()
}

/// A packed folder with another value in its configuration, at this pointer.
fn packed(work: &Work, target: &str, pointer: &str, value: Value) -> String {
    LLAMA.write(work, "dense");
    work.ok(&format!("quantize dense --to {target} --method rtn -o model"));
    fs::remove_dir_all(work.path("dense")).unwrap();
    let path = work.path("model/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    config.pointer_mut(parent).unwrap()[key] = value;
    fs::write(path, config.to_string()).unwrap();
    INSPECT.into()
}

pub fn rows() -> Vec<Row> {
    vec![
        row("no configuration", 66, FILE, "config.json", |w| {
            fs::remove_file(LLAMA.write(w, "model").join(FILE)).unwrap();
            "generate model -p x".into()
        }),
        row("a configuration that ends early", 65, FILE, "JSON", |w| with_text(w, "{\"model_type\":")),
        row("a configuration that is a list", 65, FILE, "", |w| with_text(w, "[]")),
        row("a configuration that is nested too deep", 65, FILE, "JSON", |w| with_text(w, &"[".repeat(200_000))),
        row("an architecture that nobody knows", 69, FILE, "telepathy", |w| with_key(w, "model_type", json!("telepathy"))),
        row("more layers than memory holds", 65, FILE, "layers", |w| with_key(w, "num_hidden_layers", json!(1u64 << 40))),
        row("a vocabulary below zero", 65, FILE, "vocab_size", |w| with_key(w, "vocab_size", json!(-1))),
        row("no attention heads", 65, FILE, "heads", |w| with_key(w, "num_attention_heads", json!(0))),
        row("a width that overflows", 65, FILE, "hidden_size", |w| with_key(w, "hidden_size", json!(u64::MAX))),
        row("a rotation that nobody knows", 69, FILE, "telescope", |w| {
            with_key(w, "rope_scaling", json!({"rope_type": "telescope", "factor": 2.0}))
        }),
        row("MLX groups that are no number", 65, FILE, "group_size", |w| {
            packed(w, "mlx:4bit", "/quantization/group_size", json!("wide"))
        }),
        row("MLX with 7 bits", 69, WEIGHTS, "7 bits", |w| packed(w, "mlx:4bit", "/quantization/bits", json!(7))),
        row("MLX groups that do not fit", 65, WEIGHTS, "do not fit", |w| {
            packed(w, "mlx:4bit", "/quantization/group_size", json!(32))
        }),
        row("GPTQ with 5 bits", 69, FILE, "5 bits", |w| packed(w, "gptq:4bit-g32", "/quantization_config/bits", json!(5))),
        row("GPTQ groups that do not fit", 65, WEIGHTS, "", |w| {
            packed(w, "gptq:4bit-g32", "/quantization_config/group_size", json!(64))
        }),
        row("GPTQ rules that are no patterns", 65, FILE, "dynamic", |w| {
            packed(w, "gptq:4bit-g32", "/quantization_config/dynamic", json!({"(((": {}}))
        }),
        row("GPTQ columns in groups that are not there", 65, WEIGHTS, "column 7 is in group", |w| {
            let line = packed(w, "gptq:4bit-g32", "/quantization_config/bits", json!(4));
            let path = w.path("model/model.safetensors");
            let (header, mut data) = read_safetensors(&path);
            let name = "model.layers.0.self_attn.q_proj.g_idx";
            let at = header[name]["data_offsets"][0].as_u64().unwrap() as usize + 4 * 7;
            data[at..at + 4].copy_from_slice(&(-9i32).to_le_bytes());
            write_safetensors(&path, &header, &data);
            line
        })
        .tensor("model.layers.0.self_attn.q_proj.g_idx"),
        row("AWQ groups of nothing", 65, FILE, "group_size", |w| {
            packed(w, "awq:4bit-g32", "/quantization_config/group_size", json!(0))
        }),
        row("a method of quantization that nobody knows", 69, FILE, "sorcery", |w| {
            with_key(w, "quantization_config", json!({"quant_method": "sorcery"}));
            "generate model -p x".into()
        }),
    ]
}
