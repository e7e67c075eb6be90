//! What is made, once, whatever happens meanwhile.

use super::{MEASURE, flip, hashes, nodes, read, recipe, records, usual, with_hub};
use crate::hub::{Hub, State};
use crate::support::{Ended, Work};
use crate::tasks::task;
use crate::tiny::{LLAMA, QWEN3};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

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

/// Scores do not depend on how questions are shared out, and asking others leaves everything else as it is.
#[test]
fn tasks_are_scored_as_a_run_scores_them() {
    let work = Work::new();
    let (endings, writing) = (task("endings.toml"), task("writing.toml"));
    let measure = "eval-ctx = 64\nlimit = 7\nmax-gen-tokens = 8";
    let base = format!(
        "models = ['demo']\nto = ['gguf:q4_0', 'mlx:2bit']\nmethod = 'rtn'\ntasks = ['{endings}', '{writing}']\n{measure}"
    );
    let scores = |report: PathBuf| -> Vec<serde_json::Value> {
        let mut tasks: Vec<_> = read(&report)["rows"].as_array().unwrap().iter().map(|r| r["eval"]["tasks"].clone()).collect();
        // A run calls the source as the user called it.
        for score in tasks.iter_mut().flat_map(|t| t.as_array_mut().unwrap()) {
            score["paired"]["against"].take();
        }
        tasks
    };
    let flags = "--method rtn --eval-ctx 64 --limit 7 --max-gen-tokens 8 --out alone";
    let run = work.json(&format!("run demo --to gguf:q4_0,mlx:2bit --tasks {endings},{writing} {flags}"));
    let alone = scores(work.path(run["report"]["json"].as_str().unwrap()));
    assert_eq!(alone.iter().map(|t| t.as_array().unwrap().len()).collect::<Vec<_>>(), [3, 3, 3]);
    assert!(alone[2][0]["paired"]["flips"].is_u64());

    work.write("r.toml", base.clone() + "\ngate = ['tasks.endings.delta>-1']");
    work.ok("batch r.toml --out out --plan");
    let plan = nodes(&read(&work.path("r.plan.json")));
    assert!(["ask the source", "ask gguf:q4_0", "ask mlx:2bit"].iter().all(|ask| plan.keys().any(|label| label.ends_with(ask))));
    work.ok("batch r.toml --out out");
    let report = |out: &str| work.path(out).join(work.names(out).iter().find(|n| *n != ".store").unwrap()).join("report.json");
    assert_eq!(scores(report("out")), alone);
    let card = fs::read_to_string(report("out").with_file_name("README.md")).unwrap();
    assert!(card.contains("endings (acc_norm)"), "{card}");

    work.write("parts.toml", base.clone() + "\nparts = 3");
    work.ok("batch parts.toml --out parts");
    assert_eq!(scores(report("parts")), alone);

    work.write("r.toml", base + "\nfewshot = 1\ngate = ['tasks.endings.value>2']");
    let failed = work.call("batch r.toml --out out --json");
    assert_eq!(failed.code, Some(3), "{}", failed.err);
    // Three models asked, and a report.
    assert_eq!(failed.json()["nodes"]["done"], 4);
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
    // Evaluations are of the same windows, whatever part they are in.
    let text = "models = ['a']\nto = ['gguf:q4_0']\nmethod = 'rtn'\nrelease = false\neval-ctx = 64\nlimit = 5\n";
    let measured = |name: &str, more: &str| {
        work.write("e.toml", format!("{text}{more}"));
        work.ok(&format!("batch e.toml --out {name}"));
        read(&work.path(name).join("a/report.json"))["rows"][1]["eval"].clone()
    };
    let (whole, parts) = (measured("eval-whole", ""), measured("eval-parts", "parts = 3\n"));
    assert!(whole["kld"][0]["mean"].as_f64().unwrap() > 0.0, "{whole}");
    assert_eq!(parts, whole);
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
