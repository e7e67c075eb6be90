//! Looking at models, artifacts and importance matrices: check, verify, imatrix.

use crate::hub::{Hub, State};
use crate::support::{Ended, Work, demo, edit_json, read_safetensors, write_safetensors};
use crate::tiny::{LLAMA, MISTRAL, QWEN2, QWEN3};
use serde_json::{Value, json};
use std::fs;

fn call(work: &Work, hub: &Hub, line: &str) -> Ended {
    Ended::of(work.command(line).env("HF_ENDPOINT", &hub.endpoint).output().unwrap())
}

/// A document and the exit code that it came with.
fn document(work: &Work, line: &str, code: i32) -> Value {
    let ended = work.call(&format!("--json {line}"));
    assert_eq!(ended.code, Some(code), "{line}: {}{}", ended.out, ended.err);
    ended.json()
}

#[test]
fn check_says_what_can_be_made() {
    let work = Work::new();
    LLAMA.write(&work, "model");
    let all = document(&work, "check model", 0);
    assert_eq!((&all["container"], &all["architecture"], &all["ok"]), (&json!("safetensors"), &json!("llama"), &json!(true)));
    assert!(all["targets"].as_array().unwrap().len() > 10);
    let one = document(&work, "check model --to gguf:q4_k_m", 0);
    let made = work.json("quantize model --to gguf:q4_k_m --method reference --samples 2 --ctx 64 -o q.gguf");
    let target = &one["targets"][0];
    assert!((target["bpw"].as_f64().unwrap() - made["artifacts"][0]["bpw"].as_f64().unwrap()).abs() < 1e-9, "{target}");
    assert!(target["fallbacks"].to_string().contains("q5_0 instead of q4_k"), "{target}");
    assert!(work.ok("check model --to mlx:4bit,gguf:q8_0").out.contains("mlx:4bit"));
    // What is quantized already can be decoded, but not quantized again unasked.
    assert_eq!(document(&work, "check q.gguf --to gguf:f32", 0)["targets"][0]["ok"], true);
    assert_eq!(document(&work, "check q.gguf --to gguf:q4_0", 69)["targets"][0]["ok"], false);
    work.ok("convert model --to gguf:bf16 -o d.gguf");
    let all = document(&work, "check d.gguf --to gguf:q4_0,mlx:4bit,hf:f32,gptq:4bit-g32", 0);
    assert!(all["targets"].as_array().unwrap().iter().all(|t| t["ok"] == true), "{all}");
}

#[test]
fn check_says_what_stands_in_the_way() {
    let work = Work::new();
    let folder = LLAMA.write(&work, "model");
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    let found = document(&work, "check model --to gguf:q4_0", 69);
    assert!(found["read"].is_null() && found["run"]["file"].as_str().unwrap().ends_with("tokenizer.json"), "{found}");
    let folder = LLAMA.write(&work, "model");
    let (mut header, data) = read_safetensors(&folder.join("model.safetensors"));
    header.insert("model.extra.weight".into(), json!({"dtype": "BF16", "shape": [0], "data_offsets": [data.len(), data.len()]}));
    write_safetensors(&folder.join("model.safetensors"), &header, &data);
    let found = document(&work, "check model", 69);
    assert_eq!(found["read"]["tensor"], "model.extra.weight", "{found}");
    let folder = LLAMA.write(&work, "model");
    edit_json(&folder.join("config.json"), "model_type", json!("mamba"));
    let found = document(&work, "check model --to gguf:q4_0", 69);
    assert!(found["read"]["message"].as_str().unwrap().contains("mamba"), "{found}");
    let human = work.call("check model");
    assert!(
        human.code == Some(69) && human.out.contains("can be read") && human.err.contains("mamba"),
        "{}{}",
        human.out,
        human.err
    );
    // Nothing to look at is an error.
    work.fails("check nowhere", 66);
    work.fails("check model --to gguf:nothing", 69);
    work.fails("check model --file x", 2);
}

#[test]
fn check_fetches_headers_only() {
    let work = Work::new();
    let mut state = State { blobs: true, large: vec!["model.safetensors".into()], ..State::default() };
    for entry in fs::read_dir(demo()).unwrap() {
        let entry = entry.unwrap();
        state.files.insert(entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    }
    let total = state.files["model.safetensors"].len();
    let hub = Hub::start(state);
    let ended = call(&work, &hub, "--json check org/tiny --to gguf:q4_k_m,mlx:4bit");
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    let found = ended.json();
    assert_eq!(found["model"], format!("org/tiny@{}", crate::hub::COMMIT));
    let local = document(&work, "check demo --to gguf:q4_k_m,mlx:4bit", 0);
    assert_eq!((&found["targets"], &found["bytes"]), (&local["targets"], &local["bytes"]));
    // The length, the header, and not a byte more.
    let ranges: Vec<String> = hub
        .requests()
        .into_iter()
        .filter(|r| r.path.starts_with("/storage/model.safetensors"))
        .map(|r| r.range.unwrap())
        .collect();
    let header = u64::from_le_bytes(hub.state.lock().unwrap().files["model.safetensors"][..8].try_into().unwrap());
    assert_eq!(ranges, ["bytes=0-7".to_string(), format!("bytes=8-{}", 7 + header)]);
    assert!(found["downloaded_bytes"].as_u64().unwrap() < total as u64 / 4, "{found}");
    assert!(hub.gets("README.md").is_empty() && work.names("hf").is_empty(), "nothing goes into the cache");

    // Damage shows without the weights: a header that promises other bytes than the file has.
    hub.state.lock().unwrap().files.get_mut("model.safetensors").unwrap().truncate(total / 2);
    let ended = call(&work, &hub, "--json check org/tiny");
    assert_eq!(ended.code, Some(69), "{}", ended.err);
    let file = ended.json()["read"]["file"].as_str().unwrap().to_string();
    assert_eq!(file, format!("org/tiny@{}/model.safetensors", crate::hub::COMMIT));
}

#[test]
fn check_reads_gguf_headers_on_the_hub() {
    let work = Work::new();
    work.ok("convert demo --to gguf:bf16 -o m-BF16.gguf");
    work.ok("quantize demo --to gguf:q4_0 --method rtn -o m-Q4_0.gguf");
    let mut state = State { blobs: true, ..State::default() };
    for name in ["m-BF16.gguf", "m-Q4_0.gguf"] {
        state.files.insert(name.into(), fs::read(work.path(name)).unwrap());
    }
    let total = state.files["m-BF16.gguf"].len() as u64;
    let hub = Hub::start(state);
    let many = call(&work, &hub, "--json check org/tiny");
    assert!(many.code == Some(2) && many.out.contains("--file"), "{}", many.out);
    let ended = call(&work, &hub, "--json check org/tiny --file *BF16* --to gguf:q4_0");
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    let found = ended.json();
    assert!(found["container"] == "gguf" && found["downloaded_bytes"].as_u64().unwrap() < total / 4, "{found}");
    hub.state.lock().unwrap().files.get_mut("m-Q4_0.gguf").unwrap().truncate(600_000);
    assert_eq!(call(&work, &hub, "check org/tiny --file *Q4_0*").code, Some(65));
}

#[test]
fn sound_artifacts_of_every_method_are_found_sound() {
    let work = Work::new();
    for (family, target, method) in [
        (LLAMA, "gguf:q4_k_m", "rtn"),
        (LLAMA, "mlx:4bit", "awq+gptq"),
        (MISTRAL, "gguf:q4_0", "awq+gptq"),
        (MISTRAL, "mlx:8bit", "gptq"),
        (QWEN2, "gguf:q8_0", "awq"),
        (QWEN3, "gguf:q5_k_m", "awq+gptq"),
        (QWEN3, "mlx:bf16", "rtn"),
    ] {
        let name = family.name;
        family.write(&work, name);
        let made = work.json(&format!("quantize {name} --to {target} --method {method} --samples 4 --ctx 64 -o {name}-out/"));
        let path = made["artifacts"][0]["path"].as_str().unwrap().to_string();
        let found = document(&work, &format!("verify {path} --source {name}"), 0);
        assert_eq!((&found["ok"], &found["checksums"]), (&json!(true), &json!(["manifest"])), "{found}");
        let errors: Vec<f64> = found["tensors"].as_array().unwrap().iter().filter_map(|t| t["rel_rmse"].as_f64()).collect();
        assert!(errors.len() > 10 && errors.is_sorted_by(|a, b| a >= b), "worst first: {errors:?}");
        // Another model of the same shapes is not the source.
        if target != "mlx:bf16" {
            let folder = family.write(&work, "other");
            let (header, mut data) = read_safetensors(&folder.join("model.safetensors"));
            let at = header["model.layers.1.mlp.up_proj.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
            let (row, rows) = (256, 256);
            for pair in 0..rows / 2 {
                for byte in 0..row {
                    data.swap(at + 2 * pair * row + byte, at + (2 * pair + 1) * row + byte);
                }
            }
            write_safetensors(&folder.join("model.safetensors"), &header, &data);
            let found = document(&work, &format!("verify {path} --source other"), 65);
            assert_eq!(found["problems"].as_array().unwrap().len(), 1, "{found}");
            assert!(found["tensors"][0]["role"] == "blk.1.ffn_up.weight", "{found}");
        }
    }
    let table = work.ok("verify llama-out/llama-Q4_K_M.gguf --source llama").out;
    assert!(table.contains("relative error") && table.contains("sound"), "{table}");
    let strict = work.call("verify llama-out/llama-Q4_K_M.gguf --source llama --max-error 0.0001");
    assert!(strict.code == Some(65) && strict.err.contains("error against the source"), "{}", strict.err);
    let other = document(&work, "verify llama-out/llama-Q4_K_M.gguf --source mistral", 65);
    assert!(other["problems"][0]["message"].as_str().unwrap().contains("another model"), "{other}");
    work.fails("verify nowhere.gguf", 66);
    work.fails("verify llama-out/llama-Q4_K_M.gguf --max-error 1", 2);
}

#[test]
fn damaged_artifacts_are_found_out() {
    let work = Work::new();
    LLAMA.write(&work, "model");
    work.ok("quantize model --to gguf:q4_0 --method rtn --pure -o d.gguf");
    let bytes = fs::read(work.path("d.gguf")).unwrap();
    let wrong = |name: &str, line: &str| {
        let found = document(&work, line, 65);
        assert_eq!(found["ok"], false);
        let all = found["problems"].as_array().unwrap().clone();
        assert!(!all.is_empty() && all.iter().all(|p| p["file"].as_str().is_some_and(|f| f.contains(name))), "{found}");
        all
    };
    document(&work, "verify d.gguf", 0);
    // One bit of a code: only the checksum knows.
    let mut bit = bytes.clone();
    *bit.last_mut().unwrap() ^= 1;
    work.write("d.gguf", &bit);
    let found = wrong("d.gguf", "verify d.gguf");
    assert!(found.len() == 1 && found[0]["message"].as_str().unwrap().contains("sha256"), "{found:?}");
    // A scale that is no number: the last block of 18 bytes starts with it.
    let mut nan = bytes.clone();
    let at = nan.len() - 18;
    work.write("d.gguf", &bytes);
    let last = work.json("inspect d.gguf")["tensors"].as_array().unwrap().iter().rfind(|t| t["codec"] == "q4_0").unwrap()["name"]
        .clone();
    let is_last = work.json("inspect d.gguf")["tensors"].as_array().unwrap().last().unwrap()["name"] == last;
    assert!(is_last, "the file ends in a quantized tensor");
    nan[at..at + 2].copy_from_slice(&[0, 0x7e]);
    work.write("n.gguf", &nan);
    let found = wrong("n.gguf", "verify n.gguf --source model");
    assert!(found.len() == 1 && found[0]["tensor"] == last && found[0]["message"].as_str().unwrap().contains("row"), "{found:?}");
    // Cut off, and lists of checksums.
    work.write("c.gguf", &bytes[..bytes.len() - 1]);
    wrong("c.gguf", "verify c.gguf");
    work.write("d.gguf.bitsmith.json", "{");
    wrong("d.gguf.bitsmith.json", "verify d.gguf");
    fs::remove_file(work.path("d.gguf.bitsmith.json")).unwrap();
    let sum = |text: String| work.write("SHA256SUMS", text);
    let right = work.json("quantize model --to gguf:q4_0 --method rtn --pure -o again.gguf")["artifacts"][0]["sha256"].clone();
    let right = right.as_str().unwrap();
    sum(format!("{right}  d.gguf\n{}  other.gguf\n", "0".repeat(64)));
    assert_eq!(document(&work, "verify d.gguf", 0)["checksums"], json!(["SHA256SUMS"]));
    sum(format!("{} *d.gguf\n", "0".repeat(64)));
    wrong("d.gguf", "verify d.gguf");
    sum("nonsense\n".into());
    wrong("SHA256SUMS", "verify d.gguf");

    // A folder, file by file.
    work.ok("quantize model --to mlx:4bit --method rtn -o d-mlx");
    document(&work, "verify d-mlx", 0);
    work.write("d-mlx/config.json", fs::read_to_string(work.path("d-mlx/config.json")).unwrap() + "\n");
    wrong("d-mlx", "verify d-mlx");
    work.write("d-mlx/SHA256SUMS", format!("{}  config.json\n{}  gone.json\n", "0".repeat(64), "1".repeat(64)));
    assert_eq!(wrong("d-mlx", "verify d-mlx").len(), 3);
}

#[test]
fn importance_matrices_are_shown_merged_and_converted() {
    let work = Work::new();
    let text: String = (0..600).map(|i| format!("Line {i}: {} sheep, {} goats.\n", i * i % 97, i * 31 % 89)).collect();
    work.write("notes.txt", &text);
    work.write("more.txt", text.to_uppercase());
    MISTRAL.write(&work, "model");
    let calibrate =
        |data: &str, out: &str| work.ok(&format!("calibrate model --imatrix {out} --calib {data} --samples 4 --ctx 128"));
    calibrate("notes.txt", "a.gguf");
    calibrate("notes.txt", "a.dat");
    calibrate("more.txt", "b.gguf");
    let shown = work.json("imatrix a.gguf");
    let tensors = shown["tensors"].as_array().unwrap();
    assert!(
        tensors.iter().any(|t| t["name"] == "blk.1.ffn_down.weight" && t["channels"] == 256 && t["tokens"] == 512),
        "{shown}"
    );
    assert!(tensors.iter().all(|t| t["max"].as_f64() >= t["median"].as_f64() && t["experts"] == 1));
    assert_eq!((&shown["chunk_count"], &shown["chunk_size"]), (&json!(4), &json!(128)));
    let table = work.ok("imatrix a.gguf").out;
    assert!(table.contains("median") && table.contains("blk.0.attn_q.weight") && table.contains("4 windows of 128"), "{table}");

    // Both layouts say the same, to quantize as well.
    work.ok("imatrix a.gguf -o converted.dat");
    assert_eq!(fs::read(work.path("converted.dat")).unwrap(), fs::read(work.path("a.dat")).unwrap());
    work.ok("imatrix a.dat -o back.gguf");
    work.ok("imatrix back.gguf -o again.dat");
    assert_eq!(fs::read(work.path("again.dat")).unwrap(), fs::read(work.path("a.dat")).unwrap());
    let sha = |files: &str, out: &str| {
        let line = format!("quantize model --to gguf:q4_k_m --method reference --imatrix {files} -o {out}.gguf");
        work.json(&line)["artifacts"][0]["sha256"].clone()
    };
    let alone = sha("a.gguf", "q1");
    assert_eq!(sha("a.dat", "q2"), alone);
    work.ok("imatrix a.gguf b.gguf -o both.gguf");
    let both = work.json("imatrix both.gguf");
    assert!(both["tensors"][0]["tokens"] == 1024 && both["datasets"].as_array().unwrap().len() == 2, "{both}");
    let merged = sha("both.gguf", "q3");
    assert_eq!(sha("a.gguf,b.gguf", "q4"), merged);
    assert_ne!(merged, alone);
    work.write("job.toml", "to = ['gguf:q4_k_m']\nmethod = 'reference'\nimatrix = ['a.gguf', 'b.gguf']\nmodel = 'model'\n");
    assert_eq!(work.json("quantize model --recipe job.toml -o q5.gguf")["artifacts"][0]["sha256"], merged);

    LLAMA.write(&work, "other");
    work.ok("calibrate demo --imatrix c.gguf --samples 2 --ctx 64");
    let error = work.fails("imatrix a.gguf c.gguf", 65);
    assert!(error["file"] == "c.gguf" && error["tensor"].is_string(), "{error}");
    work.fails("imatrix a.gguf -o x.bin", 2);
    work.fails("imatrix a.gguf -o a.gguf", 2);
    work.fails("imatrix none.gguf", 66);
    assert_eq!(work.fails("imatrix notes.txt", 65)["file"], "notes.txt");
}
