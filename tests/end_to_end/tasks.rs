//! eval --tasks, tasks.

use crate::hub::{Hub, State};
use crate::support::{Ended, Work};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A task file of the source tree.
pub fn task(name: &str) -> String {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/end_to_end/tasks").join(name);
    path.display().to_string()
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn the_registry() {
    let work = Work::new();
    let document = work.json("tasks");
    let tasks = document["tasks"].as_array().unwrap();
    let names: Vec<&str> = tasks.iter().map(|t| t["name"].as_str().unwrap()).collect();
    for name in
        ["hellaswag", "arc_challenge", "winogrande", "lambada_openai", "truthfulqa_mc2", "gsm8k", "humaneval", "mmlu_virology"]
    {
        assert!(names.contains(&name), "{name}");
    }
    assert_eq!(tasks.iter().filter(|t| t["groups"].as_array().unwrap().contains(&json!("mmlu"))).count(), 57);
    assert!(work.ok("tasks").out.contains("Rowan/hellaswag (default, validation)"));
}

#[test]
fn scores_and_pairs() {
    let work = Work::new();
    let line = format!("eval demo --tasks {}", task("endings.toml"));
    let alone = work.json(&line);
    let scores = alone["tasks"].as_array().unwrap();
    assert_eq!(scores.iter().map(|s| s["metric"].as_str().unwrap()).collect::<Vec<_>>(), ["acc", "acc_norm"]);
    for score in scores {
        let value = score["value"].as_f64().unwrap();
        // The demo model knows how such sentences end; chance is a quarter.
        assert!(value > 0.4 && value <= 1.0, "{score}");
        let n = score["n"].as_f64().unwrap();
        assert_eq!((score["task"].as_str(), n), (Some("endings"), 32.0));
        assert!((score["stderr"].as_f64().unwrap() - (value * (1.0 - value) / (n - 1.0)).sqrt()).abs() < 1e-12);
        let [low, high] = [0, 1].map(|i| score["interval"][i].as_f64().unwrap());
        assert!(low < value && value < high.max(value + 1e-12) && score.get("paired").is_none());
    }
    assert_eq!(work.json(&format!("{line} --threads 1 --fresh")), alone);

    let both = work.json(&format!("{line} --against demo --kv q4_0 --limit 20 -o r.json"));
    assert_eq!(both, serde_json::from_slice::<Value>(&fs::read(work.path("r.json")).unwrap()).unwrap());
    let paired = &both["tasks"][0]["paired"];
    for key in ["against", "delta", "flips", "p_value", "gained", "lost", "interval", "verdict"] {
        assert!(paired.get(key).is_some(), "{key}");
    }
    assert_eq!((both["tasks"][0]["n"].as_u64(), paired["verdict"].as_str()), (Some(20), Some("not distinguishable")));
    let text = work.ok(&format!("{line} --against demo")).out;
    assert!(text.contains("not distinguishable") && text.contains("1.000"), "{text}");
}

#[test]
fn gates_name_value_and_bound() {
    let work = Work::new();
    let line = format!("eval demo --limit 12 --tasks {} --against demo", task("endings.toml"));
    work.ok(&format!("{line} --gate tasks.endings.delta>-0.005 --gate tasks.endings.acc_norm.flips<=0"));
    let failed = work.call(&format!("{line} --json --gate tasks.endings.delta>0.25 --gate tasks.endings.value>=0"));
    assert_eq!(failed.code, Some(3));
    assert_eq!(failed.json()["tasks"][0]["paired"]["delta"], 0.0);
    assert!(
        failed.err.contains("tasks.endings.delta>0.25 is not met by 0") && !failed.err.contains("value>=0"),
        "{}",
        failed.err
    );
    let unknown = work.call(&format!("{line} --gate tasks.mmlu.value>0"));
    assert_eq!(unknown.code, Some(3));
    assert!(unknown.err.contains("is not measured"), "{}", unknown.err);
}

#[test]
fn files_as_the_harness_writes_them() {
    let work = Work::new();
    let document = work.json(&format!("eval demo --limit 5 --fewshot 2 --tasks {} --results-dir out", task("endings.toml")));
    let names = work.names("out/demo");
    let [results, samples] = names.as_slice() else { panic!("{names:?}") };
    assert!(results.starts_with("results_") && samples.starts_with("samples_endings_"), "{names:?}");
    let written: Value = serde_json::from_slice(&fs::read(work.path("out/demo").join(results)).unwrap()).unwrap();
    for score in document["tasks"].as_array().unwrap() {
        let metric = score["metric"].as_str().unwrap();
        assert_eq!(written["results"]["endings"][format!("{metric},none")], score["value"]);
        assert_eq!(written["results"]["endings"][format!("{metric}_stderr,none")], score["stderr"]);
    }
    assert_eq!(written["n-samples"]["endings"], json!({"original": 32, "effective": 5}));
    assert_eq!(written["n-shot"]["endings"], 2);
    let samples = lines(&work.path("out/demo").join(samples));
    assert_eq!(samples.len(), 5);
    let mean = samples.iter().map(|s| s["acc"].as_f64().unwrap()).sum::<f64>() / 5.0;
    assert_eq!(mean, document["tasks"][0]["value"].as_f64().unwrap());
    let first = &samples[0];
    assert_eq!(
        (first["resps"].as_array().unwrap().len(), first["doc"]["right"].to_string()),
        (4, first["target"].as_str().unwrap().into())
    );
    let prompt = first["arguments"]["gen_args_0"]["arg_0"].as_str().unwrap();
    assert_eq!(prompt.matches("\n\n").count(), 2);
    assert!(prompt.ends_with(first["doc"]["beginning"].as_str().unwrap()));
}

/// Writing is kept text by text: a killed run goes on, and the result is that of one that was not killed.
#[test]
fn killed_and_continued() {
    let work = Work::new();
    let line = format!("eval demo --json --tasks {}", task("writing.toml"));
    let whole = work.command(&line).env("XDG_CACHE_HOME", work.path("other")).output().unwrap();
    let whole = Ended::of(whole).json();
    let mut child = work.command(&line).spawn().unwrap();
    let start = Instant::now();
    let kept = || {
        let folder = work.path("cache/bitsmith/tasks");
        let files = fs::read_dir(&folder).into_iter().flatten().flatten();
        files.map(|f| fs::read_to_string(f.path()).unwrap_or_default().lines().count()).sum::<usize>()
    };
    while kept() < 3 && child.try_wait().unwrap().is_none() && start.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let before = kept();
    assert!((3..32).contains(&before), "{before} answers when killed");
    let again = Ended::of(work.command(&line).output().unwrap());
    assert_eq!(again.code, Some(0), "{}", again.err);
    assert!(again.err.contains("from an interrupted run"), "{}", again.err);
    assert_eq!(again.json(), whole);
    assert_eq!(kept(), 0);
}

/// Of the same model, questions and settings, whatever the files are called.
#[test]
fn answers_are_remembered() {
    let work = Work::new();
    let line = format!("eval demo --tasks {} --limit 6", task("endings.toml"));
    let asked = |line: &str| {
        let ended = work.ok(line);
        (!ended.err.contains("remembered"), ended.out)
    };
    let (first, again) = (asked(&line), asked(&line));
    assert_eq!((first.0, again.0, &first.1), (true, false, &again.1));
    // Others are not taken for these.
    for other in ["--fresh", "--fewshot 1", "--kv q8_0", "--compute int8"] {
        assert!(asked(&format!("{line} {other}")).0, "{other}");
    }
    assert!(asked(&line.replace("--limit 6", "--limit 5")).0);
    let rows = work.json("compare --remembered demo")["report"]["rows"].clone();
    let tasks: Vec<&Value> = rows.as_array().unwrap().iter().flat_map(|r| r["eval"]["tasks"].as_array().unwrap()).collect();
    assert!(tasks.iter().any(|t| t["task"] == "endings" && t["shots"] == 1), "{rows}");
}

/// Programs are written in any case, and run when that is allowed, without being written again.
#[test]
fn programs_are_written_before_they_may_be_run() {
    let work = Work::new();
    let record =
        json!({"task_id": "t/0", "prompt": "def one():\n", "entry_point": "one", "test": "def check(f):\n    assert f() == 1\n"});
    work.write("data/humaneval.jsonl", format!("{record}\n"));
    let line = "eval demo --tasks humaneval --task-data data --max-gen-tokens 8";
    let written = work.ok(line);
    assert!(written.err.contains("was not run and has no score"), "{}", written.err);
    let again = work.ok(&format!("{line} --results-dir out"));
    assert!(again.err.contains("remembered"), "{}", again.err);
    let names = work.names("out/demo");
    let samples = names.iter().find(|n| n.starts_with("samples_humaneval")).unwrap();
    assert!(lines(&work.path("out/demo").join(samples))[0]["resps"][0][0].is_string());
}

#[test]
fn records_from_the_hub() {
    let parquet = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../datasets/tests/questions.parquet")).unwrap();
    let files = [("default/test/0000.parquet".to_string(), parquet), ("default/train/0000.parquet".to_string(), b"no".to_vec())];
    let hub = Hub::start(State { blobs: true, files: files.into(), ..State::default() });
    let work = Work::new();
    work.write(
        "wet.toml",
        "name = 'wet'\nprompt = '{{ question }}'\nchoices = 'choices.text'\nanswer = 'answer'\n[hub]\nrepo = 'org/tiny'\nsplit = 'test'\nshots = 'train'\n",
    );
    let call = |line: &str| Ended::of(work.command(line).env("HF_ENDPOINT", &hub.endpoint).output().unwrap());
    let online = call("eval demo --json --tasks wet.toml");
    assert_eq!(online.code, Some(0), "{}", online.err);
    assert_eq!(online.json()["tasks"][0]["n"], 3);
    assert!(work.path("hf/hub/datasets--org--tiny").is_dir());
    hub.forget();
    assert_eq!(call("eval demo --json --tasks wet.toml --offline").json(), online.json());
    assert!(hub.requests().is_empty());
    let damaged = call("eval demo --json --tasks wet.toml --fewshot 1");
    assert_eq!(damaged.code, Some(65), "{}", damaged.err);
    assert_eq!(call("eval demo --tasks piqa --offline").code, Some(66));
}

#[test]
fn mistakes_are_named() {
    let work = Work::new();
    let says = |line: &str, code: i32, what: &str| {
        let error = work.fails(line, code);
        let all = format!("{} {}", error["message"].as_str().unwrap(), error["hint"]);
        assert!(all.contains(what), "{line}: {all}");
    };
    says("eval demo --tasks nonsense", 2, "bitsmith tasks");
    says("eval demo --ppl builtin --fewshot 2", 2, "");
    says("eval demo --tasks none.toml", 66, "");
    work.write("empty/x.txt", "");
    says("eval demo --tasks piqa --task-data empty", 66, "piqa.jsonl");
    work.write("bad/piqa.jsonl", "{\"goal\": \"g\", \"sol1\": \"a\", \"label\": 0}\n");
    says("eval demo --tasks piqa --task-data bad", 65, "record 1: no field `sol2`");
    work.write("t.toml", "name = 't'\nprompt = '{{ missing }}'\nanswer = 'a'\ndata = 'bad/piqa.jsonl'\n");
    says("eval demo --tasks t.toml", 2, "missing");
    says("run demo --gate tasks.piqa.value>0 --dry-run", 2, "--tasks");
    says(&format!("eval demo --tasks {} --fewshot 40", task("endings.toml")), 2, "lower --fewshot");
}
