//! run, quantize, convert, calibrate.

use crate::support::{Ended, Work};
use serde_json::{Value, json};
use std::fs;
use std::time::{Duration, Instant};

#[test]
fn the_whole_pipeline_on_the_demo() {
    let work = Work::new();
    let ended = work.call("--json --samples 4 --limit 3 run");
    assert_eq!(ended.code, Some(2), "flags of a command stand after it");
    let document = work.json("run --samples 4 --limit 3");
    let artifacts = document["artifacts"].as_array().unwrap();
    assert_eq!(artifacts.iter().map(|a| a["target"].as_str().unwrap()).collect::<Vec<_>>(), ["gguf:q4_k_m", "mlx:4bit"]);
    for artifact in artifacts {
        for key in ["target", "path", "bytes", "sha256", "bpw", "seconds", "peak_rss_bytes"] {
            assert!(artifact.get(key).is_some(), "{key}");
        }
        assert!(work.path(artifact["path"].as_str().unwrap()).exists());
    }
    let gguf = work.path(artifacts[0]["path"].as_str().unwrap());
    assert_eq!(sha256(&gguf), artifacts[0]["sha256"].as_str().unwrap());
    assert!(document["eval"].as_array().unwrap().iter().any(|e| e["kld"][0]["mean"].as_f64() > Some(0.0)));
    for file in ["html", "markdown", "json"] {
        assert!(work.path(document["report"][file].as_str().unwrap()).is_file(), "{file}");
    }
    // Both load back, and speak.
    for artifact in artifacts {
        let text = work.json(&format!("generate {} -p The -n 3", artifact["path"].as_str().unwrap()));
        assert_eq!(text["tokens"].as_array().unwrap().len(), 3);
    }

    // Again: nothing is made anew. Then a gate that cannot hold: the results are out all the same.
    let again = work.call("run demo --samples 4 --limit 3 --json --gate bytes<1 --gate ppl_ratio<2");
    assert_eq!(again.code, Some(3), "{}", again.err);
    let again_document = again.json();
    assert!(again_document["artifacts"].as_array().unwrap().iter().all(|a| a["reused"] == true));
    assert_eq!(again_document["artifacts"][0]["sha256"], artifacts[0]["sha256"]);
    assert!(again.err.contains("bytes<1") && !again.err.contains("ppl_ratio"), "{}", again.err);
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let work = Work::new();
    let make = |job: &str, threads: u32| {
        let out = format!("{}-{threads}", job.replace([' ', ':'], "-"));
        let document = work.json(&format!("quantize demo --to {job} --samples 4 --ctx 128 -o {out}/ --threads {threads}"));
        document["artifacts"][0]["sha256"].as_str().unwrap().to_string()
    };
    for job in ["gguf:q4_k_m --method gptq", "mlx:4bit --method awq"] {
        assert_eq!(make(job, 1), make(job, 2), "{job}");
    }
}

#[test]
fn a_killed_job_goes_on_and_ends_with_the_same_bytes() {
    let work = Work::new();
    let line =
        |out: &str| format!("quantize demo --to gguf:q4_0 --method gptq --samples 8 --ctx 128 --threads 1 -o {out}/d.gguf");
    let whole = work.json(&line("whole"));
    let mut child = work.command(&line("killed")).spawn().unwrap();
    // As soon as there is anything to resume from.
    let start = Instant::now();
    while work.names("killed").is_empty() && start.elapsed() < Duration::from_secs(60) {
        assert!(child.try_wait().unwrap().is_none(), "finished before it could be killed");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(300));
    let _ = child.kill();
    let killed = !child.wait().unwrap().success();
    assert!(!killed || !work.path("killed/d.gguf").exists());
    assert_eq!(work.json(&line("killed"))["artifacts"][0]["sha256"], whole["artifacts"][0]["sha256"]);
    assert_eq!(work.names("killed"), ["d.gguf", "d.gguf.bitsmith.json"]);
}

#[cfg(unix)]
#[test]
fn an_interrupted_job_says_so() {
    let work = Work::new();
    let child = work.command("--json quantize demo --to gguf:q4_0 --method gptq --samples 64 -o out/d.gguf").spawn().unwrap();
    while work.names("out").is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(work.prepare("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let ended = Ended::of(child.wait_with_output().unwrap());
    assert_eq!(ended.code, Some(130), "{}", ended.err);
    assert_eq!(ended.json()["error"]["kind"], "interrupted");
    assert!(!work.path("out/d.gguf").exists());
}

#[test]
fn estimates_cost_nothing() {
    let work = Work::new();
    for line in [
        "quantize demo --to gguf:q4_k_m,mlx:4bit -o out --dry-run",
        "convert demo --to gguf:f16 -o out.gguf --dry-run",
        "run --dry-run",
    ] {
        let document = work.json(line);
        let first = &document["estimates"][0];
        for key in ["target", "bytes", "bpw", "ram_bytes", "disk_bytes", "seconds"] {
            assert!(first.get(key).is_some(), "{line}: {key}");
        }
        assert_eq!(work.names(""), ["cache"], "{line}");
        assert!(work.ok(line).out.contains("disk"));
    }
}

#[test]
fn a_gguf_can_be_split_and_merged() {
    let work = Work::new();
    work.ok("convert demo --to gguf:bf16 -o d.gguf");
    let whole = fs::read(work.path("d.gguf")).unwrap();
    // Planned ahead from the checkpoint, or cut from the file: the same set.
    let first = |line: &str| work.json(line)["artifacts"][0]["path"].as_str().unwrap().to_string();
    let ours = first("convert demo --to gguf:bf16 --shard-size 2MB -o a/s.gguf");
    let cut = first("convert d.gguf --to gguf:keep --shard-size 2MB -o b/s.gguf");
    assert!(ours.starts_with("a/s-00001-of-0000") && cut.starts_with("b/s-00001-of-0000"), "{ours} {cut}");
    let parts: Vec<String> = work.names("b");
    assert!(parts.len() > 2);
    for part in &parts {
        assert_eq!(
            fs::read(work.path(&format!("a/{part}"))).unwrap(),
            fs::read(work.path(&format!("b/{part}"))).unwrap(),
            "{part}"
        );
    }
    assert_eq!(work.json(&format!("inspect {ours}"))["bpw_linear"], 16.0);
    // A finished set is recognised, and made again when a part has changed.
    let again = "convert demo --to gguf:bf16 --shard-size 2MB -o a/s.gguf";
    assert_eq!(work.json(again)["artifacts"][0]["reused"], true);
    fs::write(work.path(&format!("a/{}", parts[1])), "x").unwrap();
    assert_eq!(work.json(again)["artifacts"][0]["reused"], false);
    // Merged, split otherwise and merged again: the file's bytes.
    assert_eq!(first(&format!("convert {cut} --to gguf:keep -o m.gguf")), "m.gguf");
    assert_eq!(fs::read(work.path("m.gguf")).unwrap(), whole);
    let other = first(&format!("convert {cut} --to gguf:keep --shard-size 1MB -o c"));
    assert!(other.starts_with("c/s-00001-of-") && work.names("c").len() > parts.len(), "{other}");
    work.ok(&format!("convert {other} --to gguf:keep -o n.gguf"));
    assert_eq!(fs::read(work.path("n.gguf")).unwrap(), whole);
    let dry = work.json("convert d.gguf --to gguf:keep --shard-size 2MB -o z/s.gguf --dry-run");
    assert!(dry["estimates"][0]["bytes"].as_u64().unwrap() >= whole.len() as u64 && !work.path("z").exists());
    // Nothing of the source is replaced.
    work.fails("convert d.gguf --to gguf:keep -o d.gguf", 73);
    work.fails(&format!("convert {cut} --to gguf:keep --shard-size 2MB -o b/s.gguf"), 73);
    work.fails("quantize demo --to gguf:keep -o k.gguf", 2);
}

#[test]
fn formats_of_output_and_embedding_can_be_named() {
    let work = Work::new();
    let codec = |flags: &str, role: &str| {
        let line = format!("quantize demo --to gguf:q4_k_m --method rtn {flags} -o d.gguf --dry-run");
        let document = work.json(&line);
        let plan = document["estimates"][0]["plan"].as_array().unwrap();
        let entry = plan.iter().find(|e| e["role"] == role).unwrap();
        entry["codec"].as_str().unwrap().to_string()
    };
    assert_eq!(codec("", "token_embd.weight"), "q6_k");
    assert_eq!(codec("--output-tensor-type q8_0", "token_embd.weight"), "q8_0");
    assert_eq!(codec("--output-tensor-type q8_0 --token-embedding-type q5_0", "token_embd.weight"), "q5_0");
    assert_eq!(codec("--token-embedding-type q5_0 --pure", "blk.0.attn_v.weight"), "q4_k");
    work.fails("quantize demo --to gguf:q4_k_m --output-tensor-type q99 -o d.gguf", 69);
}

#[test]
fn conversions_keep_the_function() {
    let work = Work::new();
    work.write("tokens.json", r#"{"sequences":[[5,6,7,300,301]]}"#);
    let logits = |model: &str| work.json(&format!("logits {model} --tokens tokens.json --top 5"));
    let source = logits("demo");
    for (target, out) in [("gguf:bf16", "d.gguf"), ("gguf:f32", "f.gguf"), ("mlx:bf16", "d-mlx")] {
        work.ok(&format!("convert demo --to {target} -o {out}"));
        assert_eq!(logits(out), source, "{target}");
    }
    // And back out of a GGUF.
    work.ok("convert d.gguf --to gguf:f16 -o e.gguf");
    assert_eq!(work.json("inspect e.gguf")["bpw_linear"], 16.0);
}

#[test]
fn statistics_are_reused() {
    let work = Work::new();
    work.write("notes.txt", "The quick brown fox jumps over the lazy dog. ".repeat(400));
    let gathered = work.json("calibrate demo -o s.stats --imatrix i.gguf --calib notes.txt --samples 4 --ctx 64");
    assert_eq!(gathered["tokens"], 256);
    assert!(work.path("s.stats").is_file() && work.path("i.gguf").is_file());
    work.ok("quantize demo --to gguf:q4_k_m --stats s.stats -o a.gguf");
    work.ok("quantize demo --to gguf:q4_k_m --method reference --imatrix i.gguf -o b.gguf");
    work.fails("quantize demo --to gguf:q4_k_m --method gptq --imatrix i.gguf -o c.gguf", 2);
    work.fails("quantize demo --to gguf:q4_k_m --stats none -o c.gguf", 66);
    work.fails("quantize demo --to gguf:q4_k_m --stats notes.txt -o c.gguf", 65);
    work.fails("quantize demo --to gguf:q4_k_m --calib notes.txt --samples 4 --ctx 4096 -o c.gguf", 2);
}

#[test]
fn formats_of_single_tensors() {
    let work = Work::new();
    work.ok("quantize demo --to gguf:q4_0 --method rtn --tensor-type attn_v=q8_0 --tensor-type blk.1.ffn_down=q6_k -o d.gguf");
    let document = work.json("inspect d.gguf");
    let codec = |role: &str| {
        let tensors = document["tensors"].as_array().unwrap();
        tensors.iter().find(|t| t["role"] == role).unwrap()["codec"].as_str().unwrap().to_string()
    };
    assert_eq!(codec("blk.0.attn_v.weight"), "q8_0");
    assert_eq!((codec("blk.0.ffn_down.weight"), codec("blk.1.ffn_down.weight")), ("q4_0".into(), "q6_k".into()));
    work.ok("quantize demo --to gguf:q4_k_m --pure --method rtn -o pure.gguf");
    let codecs: Vec<Value> =
        work.json("inspect pure.gguf")["tensors"].as_array().unwrap().iter().map(|t| t["codec"].clone()).collect();
    assert!(codecs.iter().all(|c| c == "q4_k" || c == "f32"));
}

#[test]
fn recipes() {
    let work = Work::new();
    work.write(
        "r.toml",
        "model = 'demo'\nout = 'from-recipe'\nto = ['gguf:q8_0']\nmethod = 'rtn'\nlimit = 2\ngate = ['bytes<1GiB']",
    );
    let document = work.json("run --recipe r.toml");
    assert!(document["artifacts"][0]["path"].as_str().unwrap().starts_with("from-recipe"));
    let document = work.json("run --recipe r.toml --to mlx:8bit --out elsewhere");
    assert_eq!(document["artifacts"][0]["target"], "mlx:8bit");
    assert!(work.path("elsewhere").is_dir());
    // `quantize` does not evaluate: a recipe that says how is not for it.
    work.fails("quantize --recipe r.toml", 2);
    work.write("q.toml", "model = 'demo'\nout = 'q.gguf'\nto = ['gguf:q8_0']\nmethod = 'rtn'");
    work.ok("quantize --recipe q.toml");
    work.write("bad.toml", "colour = 'blue'");
    let error = work.fails("run --recipe bad.toml", 2);
    assert!(error["message"].as_str().unwrap().contains("colour"));
    assert_eq!(error["file"], "bad.toml");
}

#[test]
fn nothing_of_the_users_is_overwritten() {
    let work = Work::new();
    work.write("mine/thesis.txt", "precious");
    work.fails("convert demo --to mlx:bf16 -o mine", 73);
    work.write("file", "precious");
    work.fails("convert demo --to gguf:f16 -o file/d.gguf", 73);
    work.checkpoint("model");
    work.fails("convert model --to mlx:bf16 -o model", 73);
    assert_eq!(fs::read_to_string(work.path("mine/thesis.txt")).unwrap(), "precious");
    assert_eq!(work.names("mine"), ["thesis.txt"]);
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing_behind() {
    let work = Work::new();
    work.ok("inspect demo");
    // Files of at most 1000 blocks of 1 KiB stand in for the disk.
    let script = format!(
        "trap '' XFSZ; ulimit -f 1000; exec '{}' --json convert demo --to gguf:f16 -o full/d.gguf",
        env!("CARGO_BIN_EXE_bitsmith")
    );
    let ended = Ended::of(work.prepare("bash").args(["-c", &script]).output().unwrap());
    assert_eq!(ended.code, Some(74), "{}", ended.err);
    let error = &ended.json()["error"];
    assert_eq!(error["kind"], json!("io"));
    assert!(error["file"].as_str().unwrap().contains("d.gguf") && error["hint"].is_string(), "{error}");
    assert!(!work.names("full").iter().any(|n| n == "d.gguf" || n.ends_with(".partial")), "{:?}", work.names("full"));
}

fn sha256(path: &std::path::Path) -> String {
    use sha2::Digest;
    crate::hub::hex(&sha2::Sha256::digest(fs::read(path).unwrap()))
}
