//! PyTorch checkpoints as sources.

use crate::support::{Work, read_safetensors};
use crate::tiny::LLAMA;
use serde_json::Value;
use std::fs;

/// The pickle of a state dict: every tensor over a storage of its own, named by its number.
fn pickle(tensors: &[(String, Vec<u64>)]) -> Vec<u8> {
    let text = |s: &str| [b"X", &(s.len() as u32).to_le_bytes()[..], s.as_bytes()].concat();
    let int = |n: u64| [&[0x8a, 8][..], &n.to_le_bytes()].concat();
    let tuple = |items: &[u64]| [b"(".to_vec(), items.iter().flat_map(|n| int(*n)).collect(), b"t".to_vec()].concat();
    let mut out = b"\x80\x02ccollections\nOrderedDict\n)R(".to_vec();
    for (i, (name, shape)) in tensors.iter().enumerate() {
        let numel = shape.iter().product();
        let strides: Vec<u64> = (1..=shape.len()).map(|d| shape[d..].iter().product()).collect();
        out.extend(text(name));
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        out.extend(
            [text("storage"), b"ctorch\nBFloat16Storage\n".to_vec(), text(&i.to_string()), text("cpu"), int(numel)].concat(),
        );
        out.extend([b"tQ".to_vec(), int(0), tuple(shape), tuple(&strides), b"\x89NtR".to_vec()].concat());
    }
    out.extend(b"u.");
    out
}

/// A zip archive of stored entries.
fn archive(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let at = out.len() as u32;
        let sizes = [(data.len() as u32).to_le_bytes(), (data.len() as u32).to_le_bytes()].concat();
        let middle = [&[0; 12][..], &sizes, &(name.len() as u16).to_le_bytes(), &[0, 0]].concat();
        out.extend([b"PK\x03\x04\0\0", &middle[..], name.as_bytes(), data].concat());
        directory.extend([b"PK\x01\x02\0\0\0\0", &middle[..], &[0; 10], &at.to_le_bytes(), name.as_bytes()].concat());
    }
    let (start, n) = (out.len() as u32, (entries.len() as u16).to_le_bytes());
    let len = (directory.len() as u32).to_le_bytes();
    out.extend([&directory[..], b"PK\x05\x06\0\0\0\0", &n, &n, &len, &start.to_le_bytes(), &[0, 0]].concat());
    out
}

/// A file with these tensors of a safetensors file.
fn some(part: &[(&String, &Value)], data: &[u8]) -> Vec<u8> {
    let number = |v: &Value| v.as_u64().unwrap();
    let shapes: Vec<(String, Vec<u64>)> =
        part.iter().map(|(n, t)| (n.to_string(), t["shape"].as_array().unwrap().iter().map(number).collect())).collect();
    let mut entries = vec![("m/data.pkl".to_string(), pickle(&shapes)), ("m/byteorder".to_string(), b"little".to_vec())];
    entries.extend(part.iter().enumerate().map(|(i, (_, t))| {
        let range = number(&t["data_offsets"][0]) as usize..number(&t["data_offsets"][1]) as usize;
        (format!("m/data/{i}"), data[range].to_vec())
    }));
    archive(&entries)
}

/// A file with all tensors of a safetensors file.
pub fn whole((header, data): &(serde_json::Map<String, Value>, Vec<u8>)) -> Vec<u8> {
    some(&header.iter().collect::<Vec<_>>(), data)
}

#[test]
fn a_pytorch_folder_makes_the_artifact_of_its_safetensors() {
    let work = Work::new();
    let folder = LLAMA.write(&work, "a/model");
    let (header, data) = read_safetensors(&folder.join("model.safetensors"));
    LLAMA.write(&work, "b/model");
    fs::remove_file(work.path("b/model/model.safetensors")).unwrap();
    let named: Vec<(&String, &Value)> = header.iter().collect();
    let shard = |part: &[(&String, &Value)]| some(part, &data);
    let sha = |model: &str, out: &str| {
        let document = work.json(&format!("quantize {model} --to gguf:q4_0,mlx:bf16 --method rtn -o {out}/"));
        let shas: Vec<Value> = document["artifacts"].as_array().unwrap().iter().map(|a| a["sha256"].clone()).collect();
        shas
    };
    let want = sha("a/model", "oa");
    work.write("b/model/pytorch_model.bin", shard(&named));
    assert_eq!(sha("b/model", "ob"), want);
    assert_eq!(work.json("inspect b/model")["container"], "torch");
    work.ok("generate b/model -p x -n 1");
    // Shards with an index.
    fs::remove_file(work.path("b/model/pytorch_model.bin")).unwrap();
    let half = named.len() / 2;
    let files = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"];
    let map: serde_json::Map<String, Value> =
        named.iter().enumerate().map(|(i, (n, _))| (n.to_string(), files[usize::from(i >= half)].into())).collect();
    work.write("b/model/pytorch_model.bin.index.json", serde_json::json!({ "weight_map": map }).to_string());
    work.write(&format!("b/model/{}", files[0]), shard(&named[..half]));
    let error = work.fails("inspect b/model", 66);
    assert!(error["file"].as_str().unwrap().ends_with(files[1]), "{error}");
    work.write(&format!("b/model/{}", files[1]), shard(&named[half..]));
    assert_eq!(sha("b/model", "oc"), want);
}

#[test]
fn pickles_run_nothing() {
    let work = Work::new();
    LLAMA.write(&work, "model");
    fs::remove_file(work.path("model/model.safetensors")).unwrap();
    let evil = b"\x80\x02cos\nsystem\n(X\x09\0\0\0touch rantR.".to_vec();
    work.write("model/pytorch_model.bin", archive(&[("m/data.pkl".into(), evil)]));
    for line in ["inspect model", "quantize model --to gguf:q4_0 --method rtn -o x.gguf", "generate model -p x"] {
        let error = work.fails(line, 69);
        assert!(error["message"].as_str().unwrap().contains("os.system"), "{error}");
        assert!(error["file"].as_str().unwrap().ends_with("pytorch_model.bin"), "{error}");
    }
    assert!(!work.path("ran").exists());
}
