//! tokenize, logits, generate, inspect, eval.

use crate::support::{Work, demo, edit_json};
use serde_json::{Value, json};
use std::io::Write;
use std::process::Stdio;

#[test]
fn token_ids() {
    let work = Work::new();
    work.write("t.txt", "One line.\n\nAnother, with ünïcode.\n");
    let lines = work.json("tokenize demo --file t.txt --lines");
    let keys: Vec<&String> = lines.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["sequences"]);
    assert_eq!(lines["sequences"].as_array().unwrap().len(), 2);
    let whole = work.json("tokenize demo --file t.txt");
    assert_eq!(whole["sequences"].as_array().unwrap().len(), 1);

    let prompt = work.json("tokenize demo -p Hello");
    let human = work.ok("tokenize demo -p Hello").out;
    let ids: Vec<String> = prompt["sequences"][0].as_array().unwrap().iter().map(Value::to_string).collect();
    assert_eq!(human.trim(), ids.join(" "));

    let mut child = work.command("tokenize demo --file - --json").stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"Hello").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), prompt);

    work.write("latin1.txt", b"caf\xe9");
    let error = work.fails("tokenize demo --file latin1.txt", 65);
    assert_eq!(error["file"], "latin1.txt");
}

#[test]
fn special_tokens_are_added_only_when_asked_for() {
    let work = Work::new();
    let folder = work.checkpoint("bos");
    edit_json(&folder.join("tokenizer_config.json"), "add_bos_token", json!(true));
    let ids = |line: &str| work.json(line)["sequences"][0].as_array().unwrap().clone();
    let plain = ids("tokenize bos -p Hello");
    let special = ids("tokenize bos -p Hello --special");
    assert!(special == plain || special[1..] == plain[..], "{special:?} {plain:?}");
    assert!(!plain.contains(&json!(0)));
}

#[test]
fn distributions() {
    let work = Work::new();
    work.write("tokens.json", r#"{"sequences":[[5,6,7],[],[8]]}"#);
    let document = work.json("logits demo --tokens tokens.json --top 4");
    let sequences = document["sequences"].as_array().unwrap();
    assert_eq!(sequences.iter().map(|s| s.as_array().unwrap().len()).collect::<Vec<_>>(), [3, 0, 1]);
    for (i, next) in sequences[0].as_array().unwrap().iter().enumerate() {
        assert_eq!(next["position"], i);
        let top: Vec<f64> = next["top"].as_array().unwrap().iter().map(|t| t[1].as_f64().unwrap()).collect();
        assert_eq!(top.len(), 4);
        assert!(top.is_sorted_by(|a, b| a >= b) && top.iter().map(|l| l.exp()).sum::<f64>() <= 1.0);
    }
    let all = work.json("logits demo --tokens tokens.json --top 100000");
    let total: f64 = all["sequences"][2][0]["top"].as_array().unwrap().iter().map(|t| t[1].as_f64().unwrap().exp()).sum();
    assert!((total - 1.0).abs() < 1e-6, "{total}");

    work.write("bad.json", r#"{"sequences":[[5,-6]]}"#);
    assert_eq!(work.fails("logits demo --tokens bad.json", 65)["file"], "bad.json");
    work.write("large.json", r#"{"sequences":[[5,1000000]]}"#);
    work.fails("logits demo --tokens large.json", 65);
    work.fails("logits demo --tokens none.json", 66);
}

#[test]
fn generated_text() {
    let work = Work::new();
    let a = work.json("generate demo -p The -n 12 --temp 0.9 --top-k 40 --top-p 0.95 --seed 3");
    let b = work.json("generate demo -p The -n 12 --temp 0.9 --top-k 40 --top-p 0.95 --seed 3 --threads 1");
    assert_eq!((&a["text"], &a["tokens"], &a["stop"]), (&b["text"], &b["tokens"], &b["stop"]));
    let human = work.ok("generate demo -p The -n 12 --temp 0.9 --top-k 40 --top-p 0.95 --seed 3").out;
    assert_eq!(human, format!("{}\n", a["text"].as_str().unwrap()));
    assert_eq!(work.json("generate demo -p The -n 5 --kv f16")["tokens"].as_array().unwrap().len(), 5);
    let folder = work.checkpoint("chat");
    edit_json(&folder.join("tokenizer_config.json"), "chat_template", json!(null));
    work.fails("generate chat --chat -p Hi", 66);
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";
    edit_json(&folder.join("tokenizer_config.json"), "chat_template", json!(template));
    let answer = work.json("generate chat --chat --system Short -p Hi -n 2");
    assert_eq!(answer["prompt"], "system: Short\nuser: Hi\nassistant:");
}

#[test]
fn descriptions() {
    let work = Work::new();
    let document = work.json("inspect demo");
    for key in ["model", "container", "architecture", "params", "bytes", "bpw", "bpw_linear", "tensors", "metadata"] {
        assert!(document.get(key).is_some(), "{key}");
    }
    assert_eq!((document["architecture"].as_str(), document["bpw"].as_f64()), (Some("llama"), Some(16.0)));
    let tensors = document["tensors"].as_array().unwrap();
    let q = tensors.iter().find(|t| t["role"] == "blk.0.attn_q.weight").unwrap();
    assert_eq!((q["name"].as_str(), q["codec"].as_str()), (Some("model.layers.0.self_attn.q_proj.weight"), Some("bf16")));
    assert_eq!((&q["shape"], &q["bytes"]), (&json!([256, 256]), &json!(131_072)));
    assert_eq!(document["metadata"]["model_type"], "llama");
    assert!(work.ok("inspect demo --tensors --metadata").out.contains("blk.0.attn_q.weight"));

    // A GGUF: long arrays by their length, unless asked for.
    work.ok("convert demo --to gguf:q8_0 -o d.gguf");
    let gguf = work.json("inspect d.gguf");
    assert_eq!((gguf["container"].as_str(), gguf["bpw_linear"].as_f64()), (Some("gguf"), Some(8.5)));
    assert_eq!(gguf["metadata"]["tokenizer.ggml.tokens"]["array_length"], 2048);
    let full = work.json("inspect d.gguf --metadata");
    assert_eq!(full["metadata"]["tokenizer.ggml.tokens"].as_array().unwrap().len(), 2048);

    // An architecture that we do not know is described all the same.
    let folder = work.checkpoint("strange");
    edit_json(&folder.join("config.json"), "model_type", json!("strange"));
    let strange = work.json("inspect strange");
    assert_eq!((strange["architecture"].as_str(), strange["supported"].as_bool()), (Some("strange"), Some(false)));
    assert_eq!((&strange["params"], &strange["bpw_linear"]), (&document["params"], &Value::Null));
}

#[test]
fn a_local_path_and_the_word_demo_are_the_same_model() {
    let work = Work::new();
    let line = |model: &str| work.json(&format!("tokenize {model} -p Hello"));
    assert_eq!(line("demo"), line(demo().to_str().unwrap()));
    // In a folder with spaces, too.
    work.checkpoint("my model");
    let output = work.prepare(env!("CARGO_BIN_EXE_bitsmith")).args(["inspect", "my model", "--json"]).output().unwrap();
    assert!(output.status.success());
}

#[test]
fn measurements() {
    let work = Work::new();
    work.ok("convert demo --to gguf:bf16 -o d.gguf");
    let document = work.json("eval d.gguf --ppl builtin --kld builtin --against demo --limit 3 -o e.json");
    let from_file: Value = serde_json::from_slice(&std::fs::read(work.path("e.json")).unwrap()).unwrap();
    assert_eq!(document, from_file);
    let (ppl, kld) = (&document["perplexity"][0], &document["kld"][0]);
    for key in ["data", "ctx", "style", "tokens", "nll", "ppl", "stderr"] {
        assert!(ppl.get(key).is_some(), "{key}");
    }
    for key in ["data", "against", "tokens", "mean", "median", "p90", "p99", "p999", "max", "same_top_p", "rms_dp", "ppl_ratio"] {
        assert!(kld.get(key).is_some(), "{key}");
    }
    assert_eq!((&ppl["ctx"], &ppl["style"], &ppl["tokens"]), (&json!(512), &json!("llama.cpp"), &json!(765)));
    assert!(kld["mean"].as_f64().unwrap().abs() < 1e-9 && kld["same_top_p"] == 1.0, "{kld}");
    assert_eq!(work.json("eval demo --ppl builtin --style paper --ctx 64 --limit 2")["perplexity"][0]["tokens"], 126);
    assert!(work.ok("eval demo --ppl builtin --limit 1").out.contains("perplexity"));
}

/// The two modes of products: rounding activations is seen, but changes little; quality numbers are computed without it.
#[test]
fn activations_of_8_bits_change_little() {
    let work = Work::new();
    work.ok("quantize demo --method rtn --to gguf:q4_0 -o q.gguf");
    work.write("tokens.json", r#"{"sequences":[[5,6,7,300,301,12,99]]}"#);
    let logits = |mode: &str| work.json(&format!("logits q.gguf --tokens tokens.json --top 1 {mode}"));
    let (exact, rounded) = (logits("--compute f32"), logits("--compute int8"));
    assert_eq!(logits(""), exact);
    assert_ne!(exact, rounded);
    let top = |v: &Value| -> Vec<f64> {
        v["sequences"][0].as_array().unwrap().iter().map(|p| p["top"][0][1].as_f64().unwrap()).collect()
    };
    for (a, b) in top(&exact).iter().zip(top(&rounded)) {
        assert!((a - b).abs() < 0.1, "{a} {b}");
    }
    let ppl = |mode: &str| {
        let eval = work.json(&format!("eval q.gguf --ppl builtin --ctx 128 --limit 2 {mode}"));
        eval["perplexity"][0]["ppl"].as_f64().unwrap()
    };
    let (exact, rounded) = (ppl("--compute f32"), ppl("--compute int8"));
    assert!(exact != rounded && (rounded / exact - 1.0).abs() < 0.02, "{exact} {rounded}");
    assert_eq!(ppl(""), exact);
    work.fails("eval q.gguf --ppl builtin --compute int4", 2);
}
