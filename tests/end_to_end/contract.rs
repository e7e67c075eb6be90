//! What scripts rely on: keys, exit codes, what goes to which stream, what is left alone.

use crate::support::Work;
use crate::tiny::{LLAMA, MISTRAL, QWEN2, QWEN3};
use serde_json::{Value, json};
use std::fs;

const JOB: &str = "--samples 4 --ctx 64 --eval-ctx 128 --limit 2";
const ARTIFACT: [&str; 10] =
    ["target", "path", "bytes", "sha256", "bpw", "seconds", "peak_rss_bytes", "method", "reused", "notes"];
const PERPLEXITY: [&str; 7] = ["data", "ctx", "style", "tokens", "nll", "ppl", "stderr"];
const KLD: [&str; 12] =
    ["data", "against", "tokens", "mean", "median", "p90", "p99", "p999", "max", "same_top_p", "rms_dp", "ppl_ratio"];

fn has(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some(), "no {key}: {value}");
    }
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn documents_have_their_keys() {
    let work = Work::new();
    MISTRAL.write(&work, "model");
    let document = work.json(&format!("run model --to gguf:q4_0,mlx:8bit --method rtn {JOB} --out out"));
    has(&document, &["artifacts", "report", "eval", "gates"]);
    document["artifacts"].as_array().unwrap().iter().for_each(|a| has(a, &ARTIFACT));
    let evaluated = document["eval"].as_array().unwrap();
    assert_eq!(evaluated.len(), 3);
    for (i, result) in evaluated.iter().enumerate() {
        assert_eq!(keys(result), ["model", "bytes", "bpw", "perplexity", "kld", "tasks"]);
        has(&result["perplexity"][0], &PERPLEXITY);
        assert_eq!(result["kld"].as_array().unwrap().len(), usize::from(i > 0));
    }
    has(&evaluated[1]["kld"][0], &KLD);
    // `eval` says the same of the artifact.
    let path = document["artifacts"][0]["path"].as_str().unwrap();
    let again = work.json(&format!("eval {path} --ppl builtin --kld builtin --against model --ctx 128 --limit 2"));
    assert_eq!(keys(&again), ["model", "bytes", "bpw", "perplexity", "kld", "tasks"]);
    assert_eq!(again["kld"][0]["mean"], evaluated[1]["kld"][0]["mean"]);
    assert_eq!(again["perplexity"][0]["ppl"], evaluated[1]["perplexity"][0]["ppl"]);
    let ratio = again["perplexity"][0]["ppl"].as_f64().unwrap() / evaluated[0]["perplexity"][0]["ppl"].as_f64().unwrap();
    assert!((again["kld"][0]["ppl_ratio"].as_f64().unwrap() - ratio).abs() < 1e-6);

    for artifact in document["artifacts"].as_array().unwrap() {
        let path = artifact["path"].as_str().unwrap();
        let described = work.json(&format!("inspect {path}"));
        has(&described, &["model", "container", "architecture", "params", "bytes", "bpw", "bpw_linear", "tensors", "metadata"]);
        let tensors = described["tensors"].as_array().unwrap();
        tensors.iter().for_each(|t| has(t, &["name", "role", "shape", "codec", "bytes"]));
        assert_eq!(artifact["target"].as_str().unwrap().split(':').next(), described["container"].as_str());
        assert!((described["bpw"].as_f64().unwrap() - artifact["bpw"].as_f64().unwrap()).abs() < 0.05, "{path}");
        // The manifest says where it came from and what it measures.
        let beside = [format!("{path}.bitsmith.json"), format!("{path}/bitsmith.json")];
        let manifest = beside.iter().find_map(|p| fs::read(work.path(p)).ok()).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!((&manifest["sha256"], &manifest["recipe"]["target"]), (&artifact["sha256"], &artifact["target"]));
        assert!(manifest["quality"]["kld"][0]["mean"].is_number());
        assert!(manifest["recipe"]["inputs"].as_array().unwrap().iter().any(|i| i["name"] == "model.safetensors"));
    }
    for (file, what) in [("html", "<html"), ("markdown", "mlx:8bit"), ("json", "mlx:8bit")] {
        let report = fs::read_to_string(work.path(document["report"][file].as_str().unwrap())).unwrap();
        assert!(report.contains(what), "{file}");
    }
}

#[test]
fn gates() {
    let work = Work::new();
    LLAMA.write(&work, "model");
    let run = |gates: &str| work.call(&format!("run model --to gguf:q8_0 --method rtn {JOB} --out out {gates} --json"));
    let held = run("--gate kld.mean<1 --gate ppl_ratio<2 --gate bytes<4GiB --gate kld.same_top_p>0.1 --gate bpw<9");
    assert_eq!(held.code, Some(0), "{}", held.err);
    assert!(held.json()["gates"].as_array().unwrap().iter().all(|g| g[1]["held"] == true), "{}", held.out);

    fs::remove_dir_all(work.path("out")).unwrap();
    let failed = run("--gate kld.mean<0 --gate ppl_ratio<2");
    assert_eq!(failed.code, Some(3), "{}", failed.err);
    let document = failed.json();
    has(&document, &["artifacts", "report", "eval"]);
    assert_eq!(document["gates"].as_array().unwrap().iter().filter(|g| g[1]["held"] == false).count(), 1);
    assert!(failed.err.contains("kld.mean<0") && failed.err.contains("gguf:q8_0"), "{}", failed.err);
    for file in ["html", "markdown", "json"] {
        assert!(work.path(document["report"][file].as_str().unwrap()).is_file(), "{file}");
    }
    assert!(work.path(document["artifacts"][0]["path"].as_str().unwrap()).is_file());
    // For people, the table is out too.
    let human = work.call(&format!("run model --to gguf:q8_0 --method rtn {JOB} --out out --gate bytes<1"));
    assert_eq!(human.code, Some(3));
    assert!(human.out.contains("gguf:q8_0") && human.out.contains("report.html"), "{}", human.out);

    for (gate, code) in [("kld.mean", 2), ("kld.mean<x", 2), ("speed>1", 2), ("tasks.hellaswag.delta>-0.005", 2)] {
        work.fails(&format!("run model --to gguf:q8_0 --gate {gate} --out gated"), code);
    }
    assert!(!work.path("gated").exists());
}

#[test]
fn standard_output_is_for_results() {
    let work = Work::new();
    LLAMA.write(&work, "model");
    work.write("tokens.json", r#"{"sequences":[[5,6]]}"#);
    for line in [
        "quantize model --to gguf:q4_k_m --method rtn -o d.gguf",
        "quantize model --to gguf:q4_k_m --method rtn -o d.gguf",
        "convert model --to mlx:bf16 -o d-mlx",
        "calibrate model --imatrix i.gguf --samples 2 --ctx 64",
        "eval model --ppl builtin --limit 1",
        "inspect d.gguf --tensors",
        "tokenize model -p Hello",
        "logits model --tokens tokens.json",
        "generate model -p Hello -n 2",
        "quantize model --to mlx:4bit -o x --dry-run",
        "targets",
    ] {
        for verbosity in ["-v", "-q"] {
            let ended = work.ok(&format!("{line} --json {verbosity}"));
            assert_eq!(ended.out.lines().count(), 1, "{line}");
            assert!(ended.json().is_object(), "{line}");
            if verbosity == "-q" {
                // Warnings remain.
                assert!(ended.err.lines().all(|l| l.starts_with("warning: ")), "{line}: {}", ended.err);
            }
        }
        assert_eq!(work.ok(&format!("{line} -qq")).err, "", "{line}");
    }
    // Errors are not silenced.
    let ended = work.call("inspect nowhere -qq");
    assert!(ended.code == Some(66) && ended.err.starts_with("error: nowhere") && ended.out.is_empty());
}

#[test]
fn nothing_is_done_before_memory_is_known_to_suffice() {
    let work = Work::new();
    // With no command at all, the demo run is meant.
    for line in ["", "run demo --to mlx:4bit --out out", "quantize demo --to mlx:4bit -o out/m"] {
        let ended = work.call(&format!("--max-ram 1MiB --json --log-format jsonl {line}"));
        assert_eq!(ended.code, Some(2), "{line}: {}", ended.err);
        let error = &ended.json()["error"];
        let target = if line.is_empty() { "gguf:q4_k_m" } else { "mlx:4bit" };
        let message = error["message"].as_str().unwrap();
        assert!(error["kind"] == "usage" && message.contains("--max-ram") && message.contains(target), "{error}");
        assert!(!ended.err.contains("\"start\""), "{line}: {}", ended.err);
        assert_eq!(work.names(""), ["cache"], "{line}");
    }
    // Neither does an estimate run the model.
    let estimate = work.ok("--log-format jsonl quantize demo --to mlx:4bit,gguf:q4_k_m -o out --dry-run --json");
    assert!(!estimate.err.contains("\"start\""), "{}", estimate.err);
    let expected = estimate.json()["estimates"][0]["bytes"].as_u64().unwrap();
    let made = work.json("quantize demo --to mlx:4bit --method rtn -o out/");
    let weights = work.path(made["artifacts"][0]["path"].as_str().unwrap()).join("model.safetensors");
    let bytes = fs::metadata(weights).unwrap().len();
    assert!(bytes.abs_diff(expected) < 16_384, "{bytes}, expected {expected}");
    work.ok("quantize demo --to gguf:q8_0 --method rtn -o d.gguf --max-ram 64GiB");
}

#[test]
fn offline_and_devices() {
    let work = Work::new();
    for line in [
        "inspect org/none",
        "run org/none --out out",
        "quantize org/none --to gguf:q8_0 -o x.gguf",
        "eval org/none --ppl builtin",
    ] {
        assert_eq!(work.fails(&format!("--offline {line}"), 66)["kind"], "missing", "{line}");
        assert_eq!(work.fails(&format!("--device cuda {line}"), 69)["kind"], "unsupported", "{line}");
    }
    work.ok("--offline inspect demo");
    work.ok("--device cpu inspect demo");
    assert_eq!(work.names(""), ["cache"]);
}

#[test]
fn quantized_models_are_not_quantized_again_unasked() {
    let work = Work::new();
    LLAMA.write(&work, "model");
    work.ok("quantize model --to gguf:q8_0,mlx:4bit --method rtn -o out/");
    for model in work.names("out").into_iter().filter(|n| !n.ends_with(".json")) {
        for line in [
            format!("quantize out/{model} --to gguf:q4_0 --method rtn -o again/x.gguf"),
            format!("run out/{model} --to gguf:q4_0 --out again"),
        ] {
            let error = work.fails(&line, 69);
            assert!(error["tensor"].is_string() && error["file"].as_str().unwrap().contains(&model), "{line}: {error}");
            assert!(error["hint"].is_string());
        }
    }
    assert!(work.names("again").is_empty());
}

/// The same function in every container, for each peculiarity of the families.
#[test]
fn families_keep_their_function() {
    let work = Work::new();
    let ids: Vec<u32> = (0..100).map(|i| 3 + i * 37 % 2000).collect();
    work.write("tokens.json", json!({"sequences": [ids, [7, 8, 9]]}).to_string());
    for family in [LLAMA, MISTRAL, QWEN2, QWEN3] {
        let name = family.name;
        family.write(&work, name);
        let logits = |model: &str| work.json(&format!("logits {model} --tokens tokens.json --top 20"));
        let source = logits(name);
        let top = source["sequences"][0][99]["top"].as_array().unwrap();
        assert!(top[0][1].as_f64() > top[19][1].as_f64(), "{name}: a flat distribution shows nothing");
        for target in ["gguf:bf16", "gguf:f32", "mlx:bf16", "mlx:f32"] {
            let out = format!("{name}-{}", target.replace(':', "."));
            let out = if target.starts_with("gguf") { format!("{out}.gguf") } else { out };
            work.ok(&format!("convert {name} --to {target} -o {out}"));
            assert_eq!(logits(&out), source, "{name} {target}");
            assert!(work.json(&format!("inspect {out}"))["architecture"].is_string());
        }
        // Quantized, both containers stay near.
        let document = work.json(&format!(
            "run {name} --to gguf:q8_0,mlx:8bit --method rtn --eval-ctx 128 --limit 2 --out {name}-out --gate kld.mean<0.01"
        ));
        assert_eq!(document["artifacts"].as_array().unwrap().len(), 2);
    }
}
