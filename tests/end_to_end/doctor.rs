//! Faults of files and folders: found, named, mended without touching a tensor.

use crate::support::{Work, edit_json, read_safetensors, write_safetensors};
use crate::tiny::LLAMA;
use bitsmith_formats::gguf::{GgufStore, GgufWriter, Metadata, TensorPlan, Value};
use serde_json::Value as Json;
use std::fs;
use std::path::Path;

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";

/// Names and bytes of a GGUF's tensors.
fn tensors(path: &Path) -> Vec<(String, Vec<u8>)> {
    GgufStore::open(path).unwrap().stored().map(|t| (t.entry.name.clone(), t.bytes.to_vec())).collect()
}

/// A copy with other metadata, and perhaps other bytes in one tensor.
fn spoil(from: &Path, to: &Path, change: impl Fn(&mut Metadata), damage: Option<(&str, &[u8])>) {
    let store = GgufStore::open(from).unwrap();
    let mut metadata = store.metadata().clone();
    change(&mut metadata);
    let plans = store.stored().map(|t| TensorPlan::of_type(&t.entry.name, t.entry.ty, &t.entry.shape).unwrap()).collect();
    let writer = GgufWriter::create(to, &metadata, plans).unwrap();
    for t in store.stored() {
        let mut bytes = t.bytes.to_vec();
        if let Some((_, start)) = damage.filter(|(name, _)| *name == t.entry.name) {
            bytes[..start.len()].copy_from_slice(start);
        }
        writer.write(&t.entry.name, &bytes).unwrap();
    }
    writer.finish().unwrap();
}

fn faults(diagnosis: &Json) -> Vec<&str> {
    diagnosis["findings"].as_array().unwrap().iter().map(|f| f["fault"].as_str().unwrap()).collect()
}

/// The diagnosis of an artifact that is not well.
fn ill(work: &Work, line: &str) -> Json {
    let ended = work.call(&format!("--json doctor {line}"));
    assert_eq!(ended.code, Some(65), "{line}: {}{}", ended.out, ended.err);
    ended.json()
}

#[test]
fn gguf_files_are_mended() {
    let work = Work::new();
    let model = LLAMA.write(&work, "model");
    edit_json(&model.join("tokenizer_config.json"), "chat_template", CHATML.into());
    work.ok("quantize model --to gguf:q4_k_m --method rtn -o m.gguf");
    let (whole, bad) = (work.path("m.gguf"), work.path("bad.gguf"));
    assert_eq!(work.json("doctor m.gguf --source model")["findings"], serde_json::json!([]));

    let keys = ["general.quantization_version", "tokenizer.ggml.pre", "tokenizer.chat_template"];
    let change = |m: &mut Metadata| {
        keys.iter().for_each(|k| drop(m.remove(k)));
        m.set("general.file_type", 1u32);
        m.set("tokenizer.ggml.eos_token_id", 999_999u32);
        m.set("split.count", 3u16);
    };
    spoil(&whole, &bad, change, None);
    // The file says that it is one of three, which readers refuse.
    let found = ill(&work, "bad.gguf --headers-only");
    assert_eq!(faults(&found), ["split-keys", "quantization-version", "file-type", "pre-tokenizer", "eos"]);
    assert!(found["findings"].as_array().unwrap().iter().all(|f| f["fixed"] == false));
    // Alone it is mended as far as it goes, with the source altogether.
    assert_eq!(faults(&ill(&work, "bad.gguf --headers-only --fix --pre gpt-2")).len(), 5);
    assert_eq!(faults(&ill(&work, "bad.gguf")), ["eos"]);
    let mended = work.json("doctor bad.gguf --source model --fix");
    assert_eq!((faults(&mended), &mended["ok"]), (vec!["eos", "chat-template"], &Json::Bool(true)));
    assert_eq!(work.json("doctor bad.gguf --source model")["findings"], serde_json::json!([]));
    assert_eq!(tensors(&bad), tensors(&whole));
    let (a, b) = (GgufStore::open(&bad).unwrap(), GgufStore::open(&whole).unwrap());
    for (key, value) in b.metadata().iter() {
        // Of K types there are small mixes and larger ones, which the types alone do not tell apart.
        assert!(key == "general.file_type" || a.metadata().get(key) == Some(value), "{key}");
    }
    work.ok("generate bad.gguf -p Hello -n 2");
    assert_eq!(work.names("").into_iter().filter(|n| n.contains("partial")).count(), 0);

    // Parts of a set with keys of the wrong type.
    work.ok("quantize model --to gguf:q8_0 --method rtn --shard-size 300kB -o set/");
    let first =
        work.path("set").join(work.names("set").into_iter().find(|n| n.contains("-00001-of-") && n.ends_with(".gguf")).unwrap());
    let line = format!("{}", first.display());
    assert_eq!(work.json(&format!("doctor {line}"))["findings"], serde_json::json!([]));
    let bytes = fs::read(&first).unwrap();
    let header = bitsmith_formats::gguf::parse_header(&bytes).unwrap();
    let mut metadata = header.metadata.clone();
    let Some(Value::U16(count)) = metadata.get("split.count").cloned() else { panic!("no split.count") };
    metadata.set("split.count", u32::from(count));
    let plans = header.tensors.iter().map(|t| TensorPlan::of_type(&t.name, t.ty, &t.shape).unwrap()).collect();
    let writer = GgufWriter::create(&first, &metadata, plans).unwrap();
    header.tensors.iter().for_each(|t| writer.write(&t.name, &bytes[t.range.clone()]).unwrap());
    writer.finish().unwrap();
    assert_eq!(faults(&work.json(&format!("doctor {line} --fix"))), ["split-keys"]);
    assert_eq!(work.json(&format!("doctor {line}"))["findings"], serde_json::json!([]));
    assert_eq!(fs::read(&first).unwrap(), bytes);

    // What metadata cannot mend.
    spoil(&whole, &work.path("nan.gguf"), |_| {}, Some(("output_norm.weight", &f32::NAN.to_le_bytes())));
    let found = ill(&work, "nan.gguf --fix");
    assert_eq!((faults(&found), &found["findings"][0]["tensor"]), (vec!["damaged-tensor"], &Json::from("output_norm.weight")));
    work.write("text.gguf", "no model");
    work.fails("doctor text.gguf", 69);
    work.fails("doctor m.gguf --pre frobnicate", 69);
}

#[test]
fn folders_are_mended() {
    let work = Work::new();
    LLAMA.write(&work, "model");
    work.ok("quantize model --to mlx:4bit --method rtn --shard-size 100kB -o m/");
    assert_eq!(work.json("doctor m/model-4bit")["findings"], serde_json::json!([]));
    let folder = work.path("m/model-4bit");
    let shard = folder.join(work.names("m/model-4bit").into_iter().find(|n| n.contains("-00001-of-")).unwrap());
    let (header, data) = read_safetensors(&shard);
    let mut without = header.clone();
    without.remove("__metadata__");
    write_safetensors(&shard, &without, &data);
    fs::remove_file(folder.join("model.safetensors.index.json")).unwrap();
    let mut config: Json = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    let object = config.as_object_mut().unwrap();
    object.remove("quantization_config");
    object.insert("eos_token_id".into(), 999_999.into());
    fs::write(folder.join("config.json"), config.to_string()).unwrap();

    let expected = ["header-metadata", "index", "quantization-block", "eos"];
    assert_eq!(faults(&ill(&work, "m/model-4bit --headers-only")), expected);
    assert_eq!(faults(&work.json("doctor m/model-4bit --fix")), expected);
    assert_eq!(work.json("doctor m/model-4bit")["findings"], serde_json::json!([]));
    let (mended, same) = read_safetensors(&shard);
    assert_eq!((&mended["__metadata__"]["format"], same == data), (&Json::from("mlx"), true));
    work.ok("generate m/model-4bit -p Hello -n 2");

    fs::remove_file(&shard).unwrap();
    assert!(faults(&ill(&work, "m/model-4bit --headers-only")).contains(&"missing-file"));
    fs::create_dir(work.path("empty")).unwrap();
    assert_eq!(faults(&ill(&work, "empty --headers-only")), ["no-config"]);
}
