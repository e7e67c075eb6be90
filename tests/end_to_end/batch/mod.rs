//! Batches: plans from headers, results that are the same however they are come by, and nothing that is done twice.

mod engines;
mod planning;
mod running;

use crate::hub::Hub;
use crate::support::{Ended, Work};
use crate::tiny::{LLAMA, QWEN3};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const MEASURE: &str = "eval-ctx = 128\nlimit = 2\nsamples = 4\nctx = 64\n";

fn recipe(work: &Work, name: &str, text: &str) -> PathBuf {
    work.write(name, format!("{text}\n{MEASURE}"))
}

/// Two models, five targets, with importance.
fn usual(work: &Work) -> PathBuf {
    LLAMA.write(work, "a");
    QWEN3.write(work, "b");
    let text = "models = ['a', 'b']\nto = ['gguf:q4_k_m', 'gguf:q8_0', 'gguf:bf16', 'mlx:4bit']\nmethod = 'reference'\ncalib = 'builtin'";
    recipe(work, "r.toml", text)
}

/// Artifacts by model and target.
fn hashes(document: &Value) -> BTreeMap<String, String> {
    let text = |v: &Value| v.as_str().unwrap().to_string();
    let all = document["artifacts"].as_array().unwrap();
    all.iter().map(|a| (format!("{} {}", text(&a["model"]), text(&a["target"])), text(&a["sha256"]))).collect()
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The nodes of a plan by their labels.
fn nodes(plan: &Value) -> BTreeMap<String, Value> {
    plan["nodes"].as_array().unwrap().iter().map(|n| (n["label"].as_str().unwrap().to_string(), n.clone())).collect()
}

/// When each record of a store was written.
fn records(work: &Work, store: &str) -> BTreeMap<PathBuf, SystemTime> {
    let mut found = BTreeMap::new();
    let mut folders = vec![work.path(store).join("records")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().map(|e| e.unwrap()) {
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => drop(found.insert(entry.path(), entry.metadata().unwrap().modified().unwrap())),
            }
        }
    }
    found
}

fn flip(path: &Path, from_end: usize) {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.len() - from_end;
    bytes[at] ^= 0x55;
    fs::write(path, bytes).unwrap();
}

fn with_hub(work: &Work, hub: &Hub, line: &str) -> Ended {
    Ended::of(work.command(line).env("HF_ENDPOINT", &hub.endpoint).env("HF_TOKEN", "t").output().unwrap())
}
