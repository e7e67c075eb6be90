//! Weights of a Hugging Face folder, and their index.

use super::{Row, row};
use crate::support::{Work, read_safetensors, write_safetensors};
use crate::tiny::LLAMA;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::PathBuf;

const FILE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const UP: &str = "model.layers.1.mlp.up_proj.weight";
const DOWN: &str = "model.layers.1.mlp.down_proj.weight";
const QUANTIZE: &str = "quantize model --to gguf:q4_0 --method rtn -o d.gguf";

/// A model whose weights' file has other bytes.
fn with_bytes(work: &Work, change: impl FnOnce(&mut Vec<u8>)) -> String {
    let path = LLAMA.write(work, "model").join(FILE);
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
    QUANTIZE.into()
}

/// A model whose weights' header says something else.
fn with_header(work: &Work, change: impl FnOnce(&mut Map<String, Value>)) -> String {
    let path = LLAMA.write(work, "model").join(FILE);
    let (mut header, data) = read_safetensors(&path);
    change(&mut header);
    write_safetensors(&path, &header, &data);
    QUANTIZE.into()
}

/// A model with another header as it stands.
fn with_json(work: &Work, json: &[u8]) -> String {
    with_bytes(work, |bytes| {
        let mut all = (json.len() as u64).to_le_bytes().to_vec();
        all.extend(json);
        all.extend_from_slice(&bytes[bytes.len() - 1000..]);
        *bytes = all;
    })
}

/// A model one of whose weights has this bf16 pattern.
fn with_value(work: &Work, pattern: u16, line: &str) -> String {
    let path = LLAMA.write(work, "model").join(FILE);
    let (header, mut data) = read_safetensors(&path);
    let at = header[UP]["data_offsets"][0].as_u64().unwrap() as usize + 2 * (128 * 3 + 5);
    data[at..at + 2].copy_from_slice(&pattern.to_le_bytes());
    write_safetensors(&path, &header, &data);
    line.into()
}

/// A model of one shard with an index that `weight_map` makes of its tensors' names.
fn with_index(work: &Work, change: impl FnOnce(&mut Map<String, Value>)) -> PathBuf {
    let folder = LLAMA.write(work, "model");
    let shard = "model-00001-of-00001.safetensors";
    fs::rename(folder.join(FILE), folder.join(shard)).unwrap();
    let (header, _) = read_safetensors(&folder.join(shard));
    let mut map: Map<String, Value> = header.keys().map(|name| (name.clone(), json!(shard))).collect();
    change(&mut map);
    fs::write(folder.join(INDEX), json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    folder
}

pub fn rows() -> Vec<Row> {
    let index = |change: fn(&mut Map<String, Value>)| {
        move |work: &Work| {
            with_index(work, change);
            work.write("secret.safetensors", "secret");
            QUANTIZE.to_string()
        }
    };
    vec![
        row("a file without bytes", 65, FILE, "0 bytes", |w| with_bytes(w, Vec::clear)),
        row("a header longer than the format allows", 65, FILE, "more than the format's", |w| {
            with_bytes(w, |b| b[..8].copy_from_slice(&u64::MAX.to_le_bytes()))
        }),
        row("a header longer than the file", 65, FILE, "ends inside its header", |w| {
            with_bytes(w, |b| b[..8].copy_from_slice(&99_000_000u64.to_le_bytes()))
        }),
        row("a header that is no JSON", 65, FILE, "header", |w| with_json(w, b"not a header")),
        row("a header that is nested too deep", 65, FILE, "header", |w| with_json(w, &vec![b'['; 100_000])),
        row("a header with a nested tensor", 65, FILE, "header", |w| {
            with_json(w, format!("{{\"x\":{}", "{\"x\":".repeat(10_000)).as_bytes())
        }),
        row("a dtype that nobody knows", 69, FILE, "F7", |w| with_header(w, |h| h[UP]["dtype"] = json!("F7"))).tensor(UP),
        row("tensors that overlap", 65, FILE, "", |w| {
            with_header(w, |h| h[UP]["data_offsets"] = h[DOWN]["data_offsets"].clone())
        }),
        row("a hole between tensors", 65, FILE, "", |w| {
            with_header(w, |h| {
                h.remove(UP);
            })
        }),
        row("offsets beyond any file", 65, FILE, "", |w| with_header(w, |h| h[UP]["data_offsets"] = json!([0, u64::MAX / 2]))),
        row("offsets below zero", 65, FILE, "", |w| with_header(w, |h| h[UP]["data_offsets"] = json!([-4, 8]))).tensor(UP),
        row("a shape that is not the data's", 65, FILE, "", |w| with_header(w, |h| h[UP]["shape"] = json!([256, 129]))),
        row("a shape that overflows", 65, FILE, "", |w| with_header(w, |h| h[UP]["shape"] = json!([1u64 << 40, 1u64 << 40]))),
        row("a shape of another model", 65, FILE, "expected", |w| with_header(w, |h| h[UP]["shape"] = json!([128, 256])))
            .tensor(UP),
        row("a tensor twice", 65, FILE, "twice", |w| {
            with_json(w, br#"{"a":{"dtype":"U8","shape":[500],"data_offsets":[0,500]},"a":{"dtype":"U8","shape":[500],"data_offsets":[500,1000]}}"#)
        }),
        row("a file that lacks its last byte", 65, FILE, "promises", |w| with_bytes(w, |b| b.truncate(b.len() - 1))),
        row("a file that goes on", 65, FILE, "promises", |w| with_bytes(w, |b| b.extend([0; 9]))),
        row("a weight that is not a number", 65, FILE, "row 3, column 5", |w| with_value(w, 0x7fc0, QUANTIZE)).tensor(UP),
        row("a weight that is infinite", 65, FILE, "inf in row 3, column 5", |w| with_value(w, 0xff80, QUANTIZE)).tensor(UP),
        row("a weight beyond F16", 65, FILE, "1 weight does not fit into f16", |w| {
            with_value(w, 0x4974, "convert model --to gguf:f16 -o d.gguf")
        }),
        row("an index that is no JSON", 65, INDEX, "", |w| {
            with_index(w, |_| {});
            w.write(&format!("model/{INDEX}"), "{\"weight_map\":");
            QUANTIZE.into()
        }),
        row("an index without tensors", 65, INDEX, "no tensors", index(Map::clear)),
        row(
            "an index that leads out of the folder",
            65,
            INDEX,
            "inside the checkpoint's folder",
            index(|map| {
                map.insert(UP.into(), json!("../secret.safetensors"));
            }),
        )
        .tensor(UP),
        row(
            "an index with an absolute path",
            65,
            INDEX,
            "inside the checkpoint's folder",
            index(|map| {
                map.insert(UP.into(), json!("/etc/passwd"));
            }),
        )
        .tensor(UP),
        row(
            "an index that promises too much",
            66,
            "model-00001-of-00001.safetensors",
            "lacks it",
            index(|map| {
                map.insert("model.layers.9.mlp.up_proj.weight".into(), json!("model-00001-of-00001.safetensors"));
            }),
        )
        .tensor("model.layers.9.mlp.up_proj.weight"),
        row(
            "an index that names a missing shard",
            66,
            "model-00002-of-00002.safetensors",
            "missing",
            index(|map| {
                map.insert(UP.into(), json!("model-00002-of-00002.safetensors"));
            }),
        )
        .tensor(UP),
        #[cfg(unix)]
        row("weights that are a link to a file elsewhere", 65, FILE, "leads out of the folder", |w| {
            let folder = LLAMA.write(w, "model");
            fs::rename(folder.join(FILE), w.path("elsewhere")).unwrap();
            std::os::unix::fs::symlink(w.path("elsewhere"), folder.join(FILE)).unwrap();
            QUANTIZE.into()
        }),
        #[cfg(unix)]
        row("a sidecar that is a link to a secret", 65, "merges.txt", "leads out of the folder", |w| {
            let folder = LLAMA.write(w, "model");
            w.write("secret", "secret");
            std::os::unix::fs::symlink("../secret", folder.join("merges.txt")).unwrap();
            "convert model --to mlx:bf16 -o d".into()
        }),
    ]
}
