//! What a recipe becomes, from headers alone.

use super::{nodes, read, recipe, usual, with_hub};
use crate::hub::{Hub, State};
use crate::support::{Work, demo};
use crate::tiny::LLAMA;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::time::{Duration, Instant, SystemTime};

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
