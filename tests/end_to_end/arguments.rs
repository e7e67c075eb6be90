//! Help, usage errors, registries, messages.

use crate::support::Work;
use serde_json::Value;
use std::process::Stdio;

const COMMANDS: [&str; 16] = [
    "run",
    "quantize",
    "convert",
    "calibrate",
    "eval",
    "generate",
    "inspect",
    "pull",
    "tokenize",
    "logits",
    "targets",
    "methods",
    "datasets",
    "archs",
    "completions",
    "man",
];

#[test]
fn every_command_has_a_help_with_an_example() {
    let work = Work::new();
    let all = work.ok("--help").out;
    for command in COMMANDS {
        assert!(all.contains(&format!("\n  {command} ")), "{command}");
        let help = work.ok(&format!("{command} --help")).out;
        assert!(help.contains("Example") && help.contains(&format!("bitsmith {command}")), "{command}");
    }
    assert!(work.ok("--version").out.starts_with("bitsmith "));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(work.ok(&format!("completions {shell}")).out.contains("quantize"), "{shell}");
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let work = Work::new();
    assert!(work.ok("man").out.starts_with(".ie"));
    let files = work.json("man --out pages")["files"].as_array().unwrap().len();
    let names = work.names("pages");
    assert!(names.len() == files && names.contains(&"bitsmith.1".to_string()), "{names:?}");
    for command in COMMANDS {
        let page = std::fs::read_to_string(work.path("pages").join(format!("bitsmith-{command}.1"))).unwrap();
        assert!(page.contains(".TH bitsmith-") && page.contains("Example"), "{command}");
    }
}

#[test]
fn wrong_arguments() {
    let work = Work::new();
    for line in [
        "frobnicate",
        "quantize demo -o x",
        "inspect",
        "inspect demo --what",
        "tokenize demo",
        "eval demo",
        "eval demo --kld builtin",
    ] {
        let ended = work.call(line);
        assert_eq!((ended.code, ended.out.as_str()), (Some(2), ""), "{line}");
        assert!(ended.err.contains("error"), "{line}");
        assert_eq!(work.fails(line, 2)["kind"], "usage", "{line}");
    }
    for line in [
        "quantize demo --to q4 -o x",
        "quantize demo --to gguf:q8_0 --method magic -o x",
        "quantize demo --to gguf:q8_0 --method rtn --tensor-type attn_v -o x",
        "quantize demo --to gguf:q8_0 --method rtn --tensor-type attn_w=q8_0 -o x",
        "run demo --gate kld.average<1",
        "run demo --style haiku",
        "eval demo --ppl nothing",
        "generate demo -p x --temp -1",
        "inspect demo --device tpu",
    ] {
        assert_eq!(work.fails(line, 2)["kind"], "usage", "{line}");
    }
    assert!(work.names("").iter().all(|n| n == "cache"), "{:?}", work.names(""));
}

#[test]
fn what_this_build_cannot_do() {
    let work = Work::new();
    for line in [
        "inspect demo --device cuda:0",
        "inspect demo --device metal",
        "quantize demo --to awq:auto@4.5bpw -o x",
        "eval demo --ppl c4",
    ] {
        assert_eq!(work.fails(line, 69)["kind"], "unsupported", "{line}");
    }
}

#[test]
fn messages() {
    let work = Work::new();
    let ended = work.call("inspect nowhere");
    assert_eq!((ended.code, ended.out.as_str()), (Some(66), ""));
    assert!(ended.err.starts_with("error: nowhere: ") && ended.err.contains("\nhint: "), "{}", ended.err);
    assert!(!ended.err.contains('\x1b'));
    assert!(work.call("inspect nowhere --color always").err.contains("\x1b[1;31m"));
    let lines = work.call("--log-format jsonl inspect nowhere").err;
    let event: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!((event["event"].as_str(), event["kind"].as_str()), (Some("error"), Some("missing")));

    let lines = work.ok("--log-format jsonl calibrate demo --imatrix i.gguf --samples 2 --ctx 64").err;
    let events: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(events.iter().any(|e| e["event"] == "start" && e["stage"] == "calibrate"), "{lines}");
    assert_eq!(work.ok("-q calibrate demo --imatrix i.gguf --samples 2 --ctx 64").err, "");
}

#[test]
fn registries() {
    let work = Work::new();
    let find = |line: &str, list: &str, key: &str, value: &str| {
        let document = work.json(line);
        let found = document[list].as_array().unwrap().iter().find(|e| e[key] == value).cloned();
        found.unwrap_or_else(|| panic!("{line}: no {value}"))
    };
    assert_eq!(find("targets", "targets", "target", "gguf:q4_0")["bpw"], 4.5);
    assert_eq!(find("targets", "targets", "target", "mlx:4bit")["container"], "mlx");
    assert_eq!(find("datasets", "datasets", "name", "builtin")["purpose"], "calibration");
    assert_eq!(find("archs", "architectures", "name", "qwen2")["gguf"], "qwen2");
    let bert = find("archs", "architectures", "name", "bert");
    assert_eq!(bert["proof"], serde_json::json!(["transformers", "llama.cpp"]));
    assert_eq!(bert["model_types"], serde_json::json!(["bert"]));
    find("methods", "solvers", "name", "gptq");
    find("methods", "transforms", "name", "awq");
    for line in ["targets", "datasets", "archs", "methods"] {
        assert!(work.ok(line).out.lines().count() > 1);
    }
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let work = Work::new();
    let mut child = work.command("inspect demo --tensors --metadata").stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn threads_and_memory() {
    let work = Work::new();
    assert_eq!(work.fails("inspect demo --threads 0", 2)["kind"], "usage");
    let error = work.fails("quantize demo --to gguf:q8_0 --method rtn -o x.gguf --max-ram 1MiB", 2);
    assert!(error["message"].as_str().unwrap().contains("--max-ram"), "{error}");
    assert!(!work.path("x.gguf").exists());
}
