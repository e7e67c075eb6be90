//! Batches: plans from headers, results that are the same however they are come by, and nothing that is done twice.

use crate::hub::{Hub, State};
use crate::support::{Ended, Work, demo};
use crate::tiny::{LLAMA, QWEN3};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

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

#[test]
fn a_plan_tells_what_is_to_be_done() {
    let work = Work::new();
    usual(&work);
    let summary = work.json("batch r.toml --plan");
    assert_eq!((&summary["models"], &summary["artifacts"]), (&json!(2), &json!(8)));
    // Per model: source, statistics, reference, four artifacts, four evaluations, release.
    assert_eq!(summary["nodes"], 2 * 12);
    let path = work.path("r.plan.json");
    let plan = read(&path);
    let first = nodes(&plan);
    let keys: BTreeSet<&str> = first.values().map(|n| n["key"].as_str().unwrap()).collect();
    assert_eq!(keys.len(), 24);
    for node in first.values() {
        let cost = &node["cost"];
        assert!(cost["cpu_seconds"].as_f64().unwrap() > 0.0 && cost["ram_bytes"].as_u64().unwrap() > 0, "{node}");
    }
    // Those that depend on nothing but importance share a pass.
    let pass = |label: &str| first[label]["pass"].clone();
    assert_eq!(pass("a: quantize gguf:q4_k_m"), pass("a: quantize mlx:4bit"));
    assert_ne!(pass("a: quantize gguf:q4_k_m"), pass("b: quantize gguf:q4_k_m"));
    // The same again, to the byte, wherever it is written.
    work.ok("batch r.toml --plan=again.json");
    assert_eq!(fs::read(&path).unwrap(), fs::read(work.path("again.json")).unwrap());
    assert_eq!(work.json("batch r.toml --dry-run")["key"], plan["key"]);
    // Nothing was begun.
    assert!(!work.path("bitsmith-batch").exists());

    // What changes in the recipe changes the nodes that it decides, and those that follow.
    let changed = |from: &str, to: &str| {
        let text = fs::read_to_string(work.path("r.toml")).unwrap();
        assert!(text.contains(from), "{from}");
        work.write("changed.toml", text.replace(from, to));
        work.ok("batch changed.toml --plan");
        let other = nodes(&read(&work.path("changed.plan.json")));
        let same = |label: &String| first.get(label).is_some_and(|n| n["key"] == other[label]["key"]);
        other.keys().filter(|label| !same(label)).cloned().collect::<BTreeSet<_>>()
    };
    let set = |labels: &[&str]| labels.iter().map(|l| l.to_string()).collect::<BTreeSet<_>>();
    let eval: BTreeSet<String> =
        first.keys().filter(|l| ["evaluate", "reference", "release"].iter().any(|w| l.contains(w))).cloned().collect();
    assert_eq!(changed("limit = 2", "limit = 3"), eval);
    assert_eq!(changed("limit = 2", "limit = 2\ngate = ['kld.mean<9']"), set(&["a: release", "b: release"]));
    let sources = set(&["a: source", "b: source"]);
    assert!(changed("samples = 4", "samples = 5").is_disjoint(&sources));
    assert_eq!(changed("samples = 4", "samples = 5").len(), 24 - 2 - 2, "all but sources and references");
    // A file that only looks another.
    let config = work.path("a/config.json");
    File::options().write(true).open(config).unwrap().set_modified(SystemTime::now() + Duration::from_secs(5)).unwrap();
    let touched = changed("limit = 2", "limit = 2 ");
    assert_eq!(touched.len(), 12);
    assert!(touched.iter().all(|l| l.starts_with("a:")));
}

#[test]
fn what_cannot_be_is_said_while_planning() {
    let work = Work::new();
    LLAMA.write(&work, "a");
    let plan = |text: &str, code: i32| {
        recipe(&work, "bad.toml", text);
        work.fails("batch bad.toml --plan", code)
    };
    assert!(plan("models = ['a', 'nowhere']\nto = ['gguf:q8_0']", 66)["file"].as_str().unwrap().contains("nowhere"));
    assert!(plan("models = ['a']\nto = ['gguf:iq5_m']", 69)["message"].as_str().unwrap().contains("iq5_m"));
    plan("models = ['a', './a']\nto = ['gguf:q8_0']", 2);
    plan("models = ['a']\nto = ['gguf:q8_0']\ncalib = 'gone.txt'", 66);
    plan("models = ['a']\nto = ['gguf:auto']", 2);
    // Rows of 128 do not fit Q4_K.
    plan("models = ['a']\nto = ['gguf:q4_k_m']\nno-fallback = true", 69);
    assert!(!work.path("bad.plan.json").exists());
    recipe(&work, "r.toml", "models = ['a']\nto = ['gguf:q8_0']\nmethod = 'rtn'");
    // Nothing to go on with; no such store; more memory than there may be.
    work.fails("batch r.toml --resume", 66);
    work.fails("batch r.toml --max-ram 1MiB", 2);
    work.fails("batch r.toml --store ftp://a/b", 2);
}

#[test]
fn a_batch_makes_what_a_run_makes() {
    let work = Work::new();
    usual(&work);
    let document = work.json("batch r.toml --out out");
    assert_eq!(document["nodes"], json!({"there": 0, "done": 24, "failed": 0, "blocked": 0}));
    let made = hashes(&document);
    let flags = "--method reference --calib builtin --samples 4 --ctx 64";
    for model in ["a", "b"] {
        let alone =
            work.json(&format!("quantize {model} --to gguf:q4_k_m,gguf:q8_0,gguf:bf16,mlx:4bit {flags} -o alone{model}/"));
        for artifact in alone["artifacts"].as_array().unwrap() {
            let target = artifact["target"].as_str().unwrap();
            assert_eq!(artifact["sha256"], made[&format!("{model} {target}")].as_str(), "{model} {target}");
        }
    }
    // Folders are releases.
    let names = work.names("out/a");
    for name in
        ["README.md", "SHA256SUMS", "bitsmith.json", "report.html", "a-Q4_K_M.gguf", "a-4bit", "a-imatrix.gguf", "Modelfile"]
    {
        assert!(names.contains(&name.to_string()), "{name}: {names:?}");
    }
    for folder in ["out/a", "out/a/a-4bit"] {
        let check =
            std::process::Command::new("sha256sum").args(["-c", "--quiet", "SHA256SUMS"]).current_dir(work.path(folder)).output();
        assert!(check.is_ok_and(|c| c.status.success()), "{folder}");
    }
    assert!(fs::read_to_string(work.path("out/a/README.md")).unwrap().contains("Mean KLD"));
    let report = read(&work.path("out/b/report.json"));
    assert_eq!(report["rows"].as_array().unwrap().len(), 5);
    let kld = report["rows"][1]["eval"]["kld"][0]["mean"].as_f64().unwrap();
    assert!(kld > 0.0 && kld < 1.0, "{kld}");
    // And recorded well enough to be made again.
    assert_eq!(work.json("reproduce out/a/bitsmith.json")["same"], true);

    // Once more: nothing is done, and results that were taken away come back.
    let before = records(&work, "out/.store");
    assert_eq!(before.len(), 24);
    fs::remove_dir_all(work.path("out/a")).unwrap();
    let again = work.json("batch r.toml --out out --resume");
    assert_eq!(again["nodes"], json!({"there": 24, "done": 0, "failed": 0, "blocked": 0}));
    assert_eq!((hashes(&again), records(&work, "out/.store")), (made, before));
    assert!(work.path("out/a/a-Q4_K_M.gguf").is_file());
    assert_eq!(work.names("out/.store/work"), Vec::<String>::new());
    let status = work.json("batch r.toml --out out --status");
    assert_eq!((&status["states"][0], &status["cpu_seconds_left"]), (&json!(["done", 24]), &json!(0.0)));
    assert_eq!((&status["models"][0]["made"], &status["models"][0]["left"]), (&json!(4), &json!(0)));
}

#[test]
fn tasks_are_idempotent_and_know_what_was_made() {
    let work = Work::new();
    LLAMA.write(&work, "a");
    recipe(&work, "r.toml", "models = ['a']\nto = ['gguf:q8_0', 'gguf:q4_0']\nmethod = 'rtn'");
    let summary = work.json("batch r.toml --plan=p.json");
    let last = summary["nodes"].as_u64().unwrap() - 1;
    let plan = nodes(&read(&work.path("p.json")));
    // Each by itself and in its order, as other engines do.
    let task = |index: &str, store: &str| work.call(&format!("--json task run --plan p.json --index {index} --store {store}"));
    let missing = task("3", "s");
    assert_eq!(missing.code, Some(66), "{}", missing.err);
    assert_eq!(missing.json()["nodes"][0]["state"], "failed");
    let states = |ended: &Ended| {
        let all = ended.json()["nodes"].clone();
        all.as_array().unwrap().iter().map(|n| n["state"].as_str().unwrap().to_string()).collect::<Vec<_>>()
    };
    for index in 0..=last {
        assert_eq!(states(&task(&index.to_string(), "s")), ["made"], "{index}");
    }
    let once = records(&work, "s");
    assert_eq!(states(&task(&format!("0-{last}"), "s")), vec!["there"; last as usize + 1]);
    assert_eq!(records(&work, "s"), once);
    // All in one process, with a pass for two: the same contents.
    assert_eq!(task(&format!("0-{last}"), "t").code, Some(0));
    let result = |store: &str, label: &str| {
        let key = plan[label]["key"].as_str().unwrap();
        read(&work.path(store).join("records").join(&key[..2]).join(format!("{key}.json")))
    };
    for label in ["a: quantize gguf:q8_0", "a: quantize gguf:q4_0", "a: evaluate gguf:q4_0", "a: reference"] {
        assert_eq!(result("s", label)["content"], result("t", label)["content"], "{label}");
    }
    // Of a model that was only touched, all is known once it is read.
    let weights = work.path("a/model.safetensors");
    File::options().write(true).open(&weights).unwrap().set_modified(SystemTime::now() - Duration::from_secs(99)).unwrap();
    let old = task("0", "u");
    assert_eq!(old.code, Some(65), "{}", old.out);
    assert!(old.err.contains("has changed"), "{}", old.err);
    work.ok("batch r.toml --plan=p.json");
    let known = states(&task(&format!("0-{last}"), "s"));
    assert_eq!((known[0].as_str(), known[1..].iter().all(|s| s == "known")), ("made", true), "{known:?}");
    // What a node left is not trusted when it is gone.
    let blob = result("s", "a: quantize gguf:q4_0")["outputs"][0]["sha256"].as_str().unwrap().to_string();
    fs::remove_file(work.path("s/blobs").join(&blob[..2]).join(&blob)).unwrap();
    let healed = states(&task(&format!("0-{last}"), "s"));
    assert_eq!(healed.iter().filter(|s| *s == "made").count(), 1, "{healed:?}");
    for bad in ["999", "x", "3-1"] {
        assert_eq!(task(bad, "s").code, Some(2), "{bad}");
    }
}

#[test]
fn a_changed_source_is_never_mixed_in() {
    let work = Work::new();
    LLAMA.write(&work, "a");
    QWEN3.write(&work, "b");
    recipe(&work, "r.toml", "models = ['a', 'b']\nto = ['gguf:q8_0', 'mlx:4bit']\nmethod = 'rtn'\nevaluate = false");
    let first = hashes(&work.json("batch r.toml --out out"));
    let before = records(&work, "out/.store");
    // The same size and the same time of modification.
    let weights = work.path("a/model.safetensors");
    let then = fs::metadata(&weights).unwrap().modified().unwrap();
    flip(&weights, 100);
    File::options().write(true).open(&weights).unwrap().set_modified(then).unwrap();
    assert_eq!(work.json("batch r.toml --out out --status")["states"][0], json!(["done", 4]), "b's nodes");
    work.fails("batch r.toml --out out --resume", 66);
    let second = hashes(&work.json("batch r.toml --out out"));
    for (artifact, sha256) in &first {
        assert_eq!(second[artifact] == *sha256, artifact.starts_with('b'), "{artifact}");
    }
    let fresh = work.json("quantize a --to gguf:q8_0 --method rtn -o fresh.gguf");
    assert_eq!(fresh["artifacts"][0]["sha256"], second["a gguf:q8_0"].as_str());
    // What was done of `b` was not done again.
    let after = records(&work, "out/.store");
    assert!(before.iter().all(|(path, at)| after[path] == *at));
    // A task of the old plan finds that its source is gone.
    recipe(&work, "one.toml", "models = ['a']\nto = ['gguf:q8_0']\nmethod = 'rtn'\nevaluate = false");
    work.ok("batch one.toml --plan=old.json");
    work.ok("task run --plan old.json --index 0 --store s");
    flip(&weights, 100);
    let ended = work.call("--json task run --plan old.json --index 1 --store s");
    assert_eq!(ended.code, Some(65), "{}{}", ended.out, ended.err);
    assert_eq!(records(&work, "s").len(), 1);
}

#[test]
fn one_failure_does_not_keep_the_rest_from_being_done() {
    let work = Work::new();
    LLAMA.write(&work, "a");
    QWEN3.write(&work, "b");
    // A weight of `b` is NaN, in the output matrix, which is written last.
    let path = work.path("b/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&[0xff, 0x7f]);
    fs::write(&path, bytes).unwrap();
    let text = "models = ['b', 'a']\nto = ['gguf:q8_0', 'gguf:q4_0']\nmethod = 'rtn'\nevaluate = false";
    recipe(&work, "r.toml", text);
    let ended = work.call("--json batch r.toml --out out");
    assert_eq!(ended.code, Some(65), "{}", ended.err);
    let document = ended.json();
    assert_eq!(document["nodes"], json!({"there": 0, "done": 5, "failed": 2, "blocked": 1}));
    assert_eq!(hashes(&document).keys().collect::<Vec<_>>(), ["a gguf:q4_0", "a gguf:q8_0"]);
    assert_eq!(document["failed"][0]["failure"]["kind"], "corrupt");
    let status = work.json("batch r.toml --out out --status");
    assert_eq!(status["failures"].as_array().unwrap().len(), 2);
    let counts: BTreeMap<String, u64> =
        serde_json::from_value(status["states"].clone()).map(|l: Vec<(String, u64)>| l.into_iter().collect()).unwrap();
    assert_eq!((counts["failed"], counts["blocked"], counts["done"]), (2, 1, 5));
    // Mended, it goes on.
    QWEN3.write(&work, "b");
    let mended = work.json("batch r.toml --out out");
    assert_eq!((mended["artifacts"].as_array().unwrap().len(), &mended["nodes"]["failed"]), (4, &json!(0)));
}

#[test]
fn gates_are_judged_when_all_is_done() {
    let work = Work::new();
    LLAMA.write(&work, "a");
    let text = "models = ['a']\nto = ['gguf:q8_0', 'gguf:q2_k']\nmethod = 'rtn'\ngate = ['kld.mean<0.02']";
    recipe(&work, "r.toml", text);
    let ended = work.call("--json batch r.toml --out out");
    assert_eq!(ended.code, Some(3), "{}", ended.err);
    let document = ended.json();
    assert_eq!(document["artifacts"].as_array().unwrap().len(), 2);
    let held: Vec<bool> = document["gates"].as_array().unwrap().iter().map(|g| g[2]["held"].as_bool().unwrap()).collect();
    assert_eq!(held, [true, false]);
    assert!(work.path("out/a/report.html").is_file());
}

#[test]
fn jobs_have_folders_of_their_own_and_share_what_they_can() {
    let work = Work::new();
    LLAMA.write(&work, "a");
    let text = "models = ['a']\nto = ['gguf:q4_0']\nrelease = false\n";
    let jobs = "[[job]]\nname = 'plain'\nmethod = 'rtn'\n[[job]]\nname = 'fine'\nmethod = 'gptq'\n";
    work.write("r.toml", format!("{text}{MEASURE}{jobs}"));
    let document = work.json("batch r.toml --out out");
    // Source and reference once; artifact, evaluation and the end twice.
    assert_eq!(document["nodes"]["done"], 2 + 6);
    let named: BTreeSet<&str> = document["artifacts"].as_array().unwrap().iter().map(|a| a["job"].as_str().unwrap()).collect();
    assert_eq!(named, BTreeSet::from(["plain", "fine"]));
    for job in ["plain", "fine"] {
        assert_eq!(work.names(&format!("out/{job}/a")).iter().filter(|n| n.ends_with(".gguf")).count(), 1, "{job}");
        assert!(!work.path("out").join(job).join("a/README.md").exists());
    }
}

#[test]
fn a_model_in_parts_gives_the_same_bytes() {
    let work = Work::new();
    LLAMA.write(&work, "a");
    let text = "models = ['a']\nto = ['gguf:q4_k_m', 'mlx:4bit', 'gguf:q8_0']\nrelease = false\nevaluate = false\n";
    for (method, statistics) in [("rtn", false), ("reference", true), ("gptq", true)] {
        let given = if statistics { "stats = 'a.stats'\n" } else { "" };
        if statistics {
            work.ok("calibrate a --samples 4 --ctx 64 -o a.stats");
        }
        let text = format!("{text}method = '{method}'\n{given}");
        work.write("whole.toml", &text);
        work.write("parts.toml", format!("{text}parts = 3\n"));
        let whole = work.json(&format!("batch whole.toml --out whole-{method}"));
        let parts = work.json(&format!("batch parts.toml --out parts-{method}"));
        assert_eq!(hashes(&parts), hashes(&whole), "{method}");
        // Three parts of each of three targets.
        assert_eq!(parts["nodes"]["done"].as_u64().unwrap(), whole["nodes"]["done"].as_u64().unwrap() + 9, "{method}");
    }
    // Text in parts: its sums are rounded elsewhere, but the same whatever does them.
    let text = text.replace("gguf:q8_0", "gguf:iq4_xs");
    work.write("r.toml", format!("{text}method = 'reference'\ncalib = 'builtin'\nparts = 2\nsamples = 4\nctx = 64\n"));
    let document = work.json("batch r.toml --out one");
    assert_eq!(hashes(&work.json("batch r.toml --out two --threads 1")), hashes(&document));
    work.json("batch r.toml --plan");
    let labels: Vec<String> = nodes(&read(&work.path("r.plan.json"))).into_keys().collect();
    for label in ["a: observe, part 2 of 2", "a: calibrate", "a: encode gguf:q4_k_m, part 1 of 2", "a: quantize gguf:q4_k_m"] {
        assert!(labels.iter().any(|l| l == label), "{label} is not among {labels:?}");
    }
    work.write("r.toml", "models = ['a']\nto = ['gguf:q8_0']\nparts = 0\n");
    work.fails("batch r.toml --plan", 2);
}

/// Calls a batch and kills it after this time. False if it ended before.
fn kill_after(work: &Work, line: &str, time: Duration) -> bool {
    let mut child = work.command(line).spawn().unwrap();
    let start = Instant::now();
    while start.elapsed() < time && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    // SIGKILL; a child that has ended cannot be killed.
    let _ = child.kill();
    child.wait().unwrap().code().is_none()
}

#[test]
fn killed_at_any_moment() {
    let work = Work::new();
    usual(&work);
    let start = Instant::now();
    let whole = hashes(&work.json("batch r.toml --out whole"));
    let time = start.elapsed();
    let line = "batch r.toml --out killed -q";
    let (mut kills, mut seen): (u32, BTreeMap<PathBuf, SystemTime>) = (0, BTreeMap::new());
    // Moments that are spread over the time that the whole takes, each a step later than the last one.
    for step in 1..=12u32 {
        kills += u32::from(kill_after(&work, line, time * step / 24));
        let now = records(&work, "killed/.store");
        // Nothing that was finished is made again.
        assert!(seen.iter().all(|(path, at)| now[path] == *at), "after {step} kills");
        seen = now;
    }
    assert!(kills >= 3, "{kills} kills");
    let document = work.json(line.trim_end_matches(" -q"));
    assert_eq!(hashes(&document), whole);
    assert!(document["nodes"]["there"].as_u64().unwrap() >= seen.len() as u64);
    let now = records(&work, "killed/.store");
    assert!(seen.iter().all(|(path, at)| now[path] == *at));
    // The same files, and nothing besides.
    for folder in ["a", "b", "a/a-4bit", ".store/work"] {
        assert_eq!(work.names(&format!("killed/{folder}")), work.names(&format!("whole/{folder}")), "{folder}");
    }
}

/// Checkpoints whose weights are holes.
fn sparse(work: &Work, name: &str, layers: usize) {
    let folder = LLAMA.write(work, name);
    let mut config = LLAMA.config();
    let sizes = json!({"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4,
                       "num_hidden_layers": layers, "head_dim": 64, "vocab_size": 2048});
    config.as_object_mut().unwrap().extend(sizes.as_object().unwrap().clone());
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let (mut header, mut at) = (serde_json::Map::new(), 0usize);
    let mut add = |name: String, shape: &[usize]| {
        let end = at + 2 * shape.iter().product::<usize>();
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}));
        at = end;
    };
    add("model.embed_tokens.weight".into(), &[2048, 2048]);
    for layer in 0..layers {
        for (part, shape) in [
            ("self_attn.q_proj", &[2048, 2048][..]),
            ("self_attn.k_proj", &[256, 2048]),
            ("self_attn.v_proj", &[256, 2048]),
            ("self_attn.o_proj", &[2048, 2048]),
            ("mlp.gate_proj", &[5632, 2048]),
            ("mlp.up_proj", &[5632, 2048]),
            ("mlp.down_proj", &[2048, 5632]),
            ("input_layernorm", &[2048]),
            ("post_attention_layernorm", &[2048]),
        ] {
            add(format!("model.layers.{layer}.{part}.weight"), shape);
        }
    }
    add("model.norm.weight".into(), &[2048]);
    let head = serde_json::to_vec(&header).unwrap();
    let mut bytes = (head.len() as u64).to_le_bytes().to_vec();
    bytes.extend(&head);
    let path = folder.join("model.safetensors");
    fs::write(&path, &bytes).unwrap();
    File::options().write(true).open(path).unwrap().set_len((bytes.len() + at) as u64).unwrap();
}

#[test]
fn large_plans_are_made_from_headers() {
    let work = Work::new();
    let models: Vec<String> = (0..20).map(|i| format!("m{i}")).collect();
    models.iter().enumerate().for_each(|(i, m)| sparse(&work, m, 16 + i % 4));
    let to = "to = ['gguf:q2_k', 'gguf:q3_k_m', 'gguf:q4_k_m', 'gguf:q5_k_m', 'gguf:q6_k', 'gguf:q8_0', 'mlx:4bit', 'mlx:8bit']";
    recipe(&work, "r.toml", &format!("models = {}\n{to}\nmethod = 'reference'\ncalib = 'builtin'", json!(models)));
    let start = Instant::now();
    let summary = work.json("batch r.toml --plan");
    // A tenth of what 200 models and 20 targets are allowed, with time to spare on busy machines.
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!((&summary["models"], &summary["artifacts"]), (&json!(20), &json!(160)));
    let start = Instant::now();
    work.ok("batch r.toml --status");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn plans_in_the_words_of_other_systems() {
    let work = Work::new();
    usual(&work);
    let matrix: Value = serde_json::from_str(&work.ok("batch r.toml --out out --emit github").out).unwrap();
    let include = matrix["include"].as_array().unwrap();
    assert_eq!(include.len(), 2);
    assert_eq!((&include[0]["name"], &include[0]["index"]), (&json!("a"), &json!("0-11")));
    // A job of the matrix finds the plan in the store.
    let (plan, index) = (include[0]["plan"].as_str().unwrap(), include[0]["index"].as_str().unwrap());
    work.ok(&format!("task run --plan {plan} --index {index} --store out/.store"));
    let left: Value = serde_json::from_str(&work.ok("batch r.toml --out out --emit github").out).unwrap();
    assert_eq!(left["include"].as_array().unwrap().len(), 1);
    assert_eq!(work.json("batch r.toml --out out")["nodes"], json!({"there": 12, "done": 12, "failed": 0, "blocked": 0}));
    // Pods reach no folder of this machine.
    work.fails("batch r.toml --emit k8s", 2);
}

/// Commands of Slurm that only remember what they were told, and a queue that a test writes.
#[cfg(unix)]
fn fake_slurm(work: &Work) -> std::ffi::OsString {
    use std::os::unix::fs::PermissionsExt;
    let log = work.path("slurm.log").display().to_string();
    let sbatch = format!("#!/bin/sh\necho \"$@\" >> {log}\ncat >> {log}.scripts\nwc -l < {log}\n");
    let squeue = format!("#!/bin/sh\ncat {log}.queue 2> /dev/null || true\n");
    for (name, text) in [("sbatch", sbatch), ("squeue", squeue)] {
        let path = work.write(&format!("bin/{name}"), text);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(std::iter::once(work.path("bin")).chain(std::env::split_paths(&path))).unwrap()
}

#[cfg(unix)]
#[test]
fn slurm_is_given_arrays() {
    let work = Work::new();
    usual(&work);
    let path = fake_slurm(&work);
    let call = |line: &str| {
        let ended = Ended::of(work.command(line).env("PATH", &path).output().unwrap());
        assert_eq!(ended.code, Some(0), "{line}: {}{}", ended.out, ended.err);
        ended
    };
    let submit = "--json batch r.toml --out out --engine slurm --pack 0 --threads 2 --sbatch=--partition=cpu";
    let round = call(submit).json()["submitted"].clone();
    assert_eq!((&round["nodes"], round["submitted"].as_array().unwrap().len()), (&json!(24), 12), "six stages of two models");
    let log = fs::read_to_string(work.path("slurm.log")).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    let has = |line: &str, words: &[&str]| words.iter().for_each(|w| assert!(line.contains(w), "{w}: {line}"));
    has(
        lines[0],
        &["--array=0-0", "--job-name=bitsmith-a-source", "--requeue", "--kill-on-invalid-dep=yes", "--mem=", "--partition=cpu"],
    );
    assert!(!lines[0].contains("--dependency"));
    has(lines[3], &["--array=0-3", "bitsmith-a-quantize", "--cpus-per-task=2", "--dependency=afterok:1_0,afterok:2_0"]);
    has(lines[4], &["--array=0-3", "bitsmith-a-evaluate", "afterok:3_0", "aftercorr:4"]);
    has(lines[6], &["bitsmith-b-source"]);
    // Nothing is submitted while it is in the queue.
    let queue: String = (1..=12).flat_map(|id| (0..4).map(move |e| format!("{id}|{e}|PENDING|Dependency\n"))).collect();
    fs::write(work.path("slurm.log.queue"), queue).unwrap();
    assert_eq!(call(submit).json()["submitted"], json!({"submitted": [], "nodes": 0, "queued": 24, "given_up": []}));
    let status = call("--json batch r.toml --out out --engine slurm --status").json();
    assert_eq!(status["queue"], json!({"pending": 48}));
    // What left the queue without a word was killed: more memory for what could have run, and the rest after it.
    fs::write(work.path("slurm.log.queue"), "").unwrap();
    let first: u64 = memory(lines[0]);
    call(submit);
    let log = fs::read_to_string(work.path("slurm.log")).unwrap();
    let again: Vec<&str> = log.lines().skip(12).collect();
    assert_eq!((again.len(), memory(again[0])), (12, 2 * first), "{again:?}");
    // The scripts do what they are for.
    let scripts = fs::read_to_string(work.path("slurm.log.scripts")).unwrap();
    let script = scripts.split("#!/bin/bash").nth(1).unwrap();
    let run = |task: &str| work.prepare("bash").args(["-c", script]).env("SLURM_ARRAY_TASK_ID", task).output().unwrap();
    assert!(run("0").status.success());
    assert_eq!(records(&work, "out/.store").len(), 1);
    // Small models are one piece.
    let packed = call("--json batch r.toml --out other --engine slurm --pack 3600").json();
    assert_eq!((&packed["submitted"]["nodes"], packed["submitted"]["submitted"].as_array().unwrap().len()), (&json!(24), 1));
}

/// What `--mem` asks for, in MiB.
#[cfg(unix)]
fn memory(line: &str) -> u64 {
    line.split_once("--mem=").unwrap().1.split('M').next().unwrap().parse().unwrap()
}

#[test]
fn without_slurm_that_is_said() {
    let work = Work::new();
    LLAMA.write(&work, "a");
    recipe(&work, "r.toml", "models = ['a']\nto = ['gguf:q8_0']\nmethod = 'rtn'");
    let ended = Ended::of(work.command("--json batch r.toml --engine slurm").env("PATH", work.path("none")).output().unwrap());
    assert_eq!(ended.code, Some(66), "{}", ended.err);
    assert!(ended.json()["error"]["message"].as_str().unwrap().contains("squeue"));
}

fn with_hub(work: &Work, hub: &Hub, line: &str) -> Ended {
    Ended::of(work.command(line).env("HF_ENDPOINT", &hub.endpoint).env("HF_TOKEN", "t").output().unwrap())
}

#[test]
fn models_on_the_hub_are_planned_from_their_headers_and_pinned() {
    let work = Work::new();
    let mut state = State { blobs: true, large: vec!["model.safetensors".into()], ..State::default() };
    for entry in fs::read_dir(demo()).unwrap().map(|e| e.unwrap()) {
        state.files.insert(entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    }
    let hub = Hub::start(state);
    recipe(&work, "r.toml", "models = ['org/tiny']\nto = ['gguf:q8_0']\nmethod = 'rtn'\nevaluate = false");
    let planned = with_hub(&work, &hub, "batch r.toml --plan");
    assert_eq!(planned.code, Some(0), "{}", planned.err);
    assert!(work.names("hf").is_empty(), "nothing was downloaded");
    let origin = read(&work.path("r.plan.json"))["models"][0]["origin"].clone();
    assert_eq!((&origin["from"], origin["commit"].as_str()), (&json!("hub"), Some(crate::hub::COMMIT)));
    let made = with_hub(&work, &hub, "--json batch r.toml --out out");
    assert_eq!(made.code, Some(0), "{}", made.err);
    let alone = with_hub(&work, &hub, "--json quantize org/tiny --to gguf:q8_0 --method rtn -o alone.gguf").json();
    assert_eq!(alone["artifacts"][0]["sha256"], made.json()["artifacts"][0]["sha256"]);
    let card = fs::read_to_string(work.path("out/tiny/README.md")).unwrap();
    assert!(card.contains("base_model:\n- org/tiny"), "{card}");
    // From the cache, by the commit that is known.
    let offline = work.json("batch r.toml --out out --offline");
    assert_eq!(offline["nodes"]["done"], 0);
}

#[test]
fn releases_are_published_when_their_gates_hold() {
    let work = Work::new();
    LLAMA.write(&work, "tiny");
    let repo = Some("me/tiny-GGUF".into());
    let hub = Hub::start(State { blobs: true, token: Some("t".into()), repo, ..State::default() });
    let text = |gate: &str| {
        format!(
            "models = ['tiny']\nto = ['gguf:q8_0', 'gguf:q4_0']\nmethod = 'rtn'\nlicense = 'mit'\npublish = 'me'\ngate = ['{gate}']"
        )
    };
    recipe(&work, "r.toml", &text("kld.mean<1e-9"));
    let refused = with_hub(&work, &hub, "--json batch r.toml --out out");
    assert_eq!(refused.code, Some(3), "{}", refused.err);
    assert_eq!(refused.json()["failed"][0]["failure"]["kind"], "gate");
    assert!(hub.state.lock().unwrap().files.is_empty());
    // A gate that holds: nothing but the end is done again.
    recipe(&work, "r.toml", &text("kld.mean<9"));
    let published = with_hub(&work, &hub, "--json batch r.toml --out out");
    assert_eq!(published.code, Some(0), "{}", published.err);
    assert_eq!(published.json()["nodes"], json!({"there": 6, "done": 2, "failed": 0, "blocked": 0}));
    let state = hub.state.lock().unwrap();
    for name in ["README.md", "SHA256SUMS", "tiny-Q8_0.gguf", "tiny-Q4_0.gguf"] {
        assert_eq!(state.files.get(name), Some(&fs::read(work.path("out/tiny").join(name)).unwrap()), "{name}");
    }
    assert_eq!(state.commits, 1);
}

/// Files that may not grow stand in for a full disk.
#[cfg(unix)]
#[test]
fn a_full_disk_ends_a_batch_that_goes_on_later() {
    let work = Work::new();
    LLAMA.write(&work, "a");
    recipe(&work, "r.toml", "models = ['a']\nto = ['gguf:q8_0', 'gguf:f32']\nmethod = 'rtn'\nevaluate = false");
    let line = format!("exec '{}' --json batch r.toml --out out", env!("CARGO_BIN_EXE_bitsmith"));
    let script = format!("trap '' XFSZ; ulimit -f 1000; {line}");
    let ended = Ended::of(work.prepare("bash").args(["-c", &script]).output().unwrap());
    assert_eq!(ended.code, Some(74), "{}{}", ended.out, ended.err);
    let document = ended.json();
    assert_eq!((&document["failed"][0]["failure"]["kind"], hashes(&document).len()), (&json!("io"), 1));
    let whole = work.json("batch r.toml --out out");
    assert_eq!(hashes(&whole).len(), 2);
    let alone = work.json("quantize a --to gguf:f32 --method rtn -o a.gguf");
    assert_eq!(alone["artifacts"][0]["sha256"].as_str(), hashes(&whole).get("a gguf:f32").map(String::as_str));
    assert_eq!(work.names("out/.store/work"), Vec::<String>::new());
}
