//! Interrupted jobs go on where they stopped and end with the bytes of an uninterrupted one; the same recipe gives the same
//! bytes whatever the number of threads.

use crate::support::{Ended, Work};
use crate::tiny::{LLAMA, MISTRAL};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// Target and the artifact's name.
const TARGETS: [(&str, &str); 2] = [("gguf:q4_k_m", "d.gguf"), ("mlx:4bit", "d-mlx")];
const CALIBRATION: &str = "--samples 4 --ctx 128";

fn sha(document: &Value) -> &str {
    document["artifacts"][0]["sha256"].as_str().unwrap()
}

/// Starts a call and kills it as soon as `when` holds. False if it ended before.
fn kill_when(work: &Work, line: &str, when: impl Fn() -> bool) -> bool {
    let mut child = work.command(line).spawn().unwrap();
    let start = Instant::now();
    while !when() && child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(100), "{line}");
        std::thread::sleep(Duration::from_millis(1));
    }
    // SIGKILL; a child that has ended cannot be killed.
    let _ = child.kill();
    child.wait().unwrap().code().is_none()
}

/// Files of a work folder whose names start so, and when they were written.
fn written(work: &Work, folder: &str, start: &str) -> BTreeMap<String, SystemTime> {
    let names = work.names(folder).into_iter().filter(|n| n.starts_with(start) && !n.ends_with(".partial"));
    names.filter_map(|n| Some((n.clone(), fs::metadata(work.path(folder).join(&n)).ok()?.modified().ok()?))).collect()
}

#[test]
fn killed_again_and_again() {
    let work = Work::new();
    LLAMA.write(&work, "model");
    for (target, name) in TARGETS {
        let line =
            |out: &str| format!("quantize model --to {target} --method awq+gptq {CALIBRATION} --threads 1 -o {out}/{name}");
        let whole = work.json(&line("whole"));
        let folder = format!("killed/.{name}.work");
        let unfinished = |n: usize| {
            assert!(!work.path("killed").join(name).exists(), "{target}: after kill {n}");
        };
        let layer = |i: usize| written(&work, &folder, &format!("blk.{i}."));
        assert!(kill_when(&work, &line("killed"), || layer(0).len() == 9), "{target}: ended before the first layer");
        unfinished(1);
        let first = layer(0);
        assert!(kill_when(&work, &line("killed"), || !layer(1).is_empty()), "{target}: ended before the second layer");
        unfinished(2);
        // The first layer was not made again.
        assert_eq!(layer(0), first, "{target}");
        // In the middle of writing, if that takes long enough.
        let partial = work.path("killed").join(format!("{name}.partial"));
        kill_when(&work, &line("killed"), || partial.exists());
        assert_eq!(sha(&work.json(&line("killed"))), sha(&whole), "{target}");
        let left: Vec<String> = work.names("killed").into_iter().filter(|n| n.contains(name)).collect();
        assert_eq!(left, work.names("whole").into_iter().filter(|n| n.contains(name)).collect::<Vec<_>>(), "{target}");
    }
}

/// The moment between a whole folder and its manifest is short: it is looked for again and again, without and with a solver.
#[test]
fn killed_when_the_folder_has_just_appeared() {
    let work = Work::new();
    LLAMA.write(&work, "model");
    for method in ["rtn", "gptq"] {
        let line = |out: &str| format!("quantize model --to mlx:4bit --method {method} {CALIBRATION} -o {out}/{method}");
        let whole = work.json(&line("whole"));
        let folder = work.path("killed").join(method);
        let mut caught = 0;
        for _ in 0..10 {
            let _ = fs::remove_dir_all(&folder);
            let mut child = work.command(&line("killed")).spawn().unwrap();
            while !folder.exists() && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_micros(50));
            }
            let _ = child.kill();
            child.wait().unwrap();
            caught += u32::from(!folder.join("bitsmith.json").exists());
            assert_eq!(sha(&work.json(&line("killed"))), sha(&whole), "{method}");
            let left: Vec<String> = work.names("killed").into_iter().filter(|n| n.contains(method)).collect();
            assert_eq!(left, [method], "{method}");
        }
        assert!(caught > 0, "{method}: no kill came in between");
    }
}

#[test]
fn a_killed_run_goes_on() {
    let work = Work::new();
    LLAMA.write(&work, "model");
    let line = |out: &str| {
        format!("run model --to gguf:q4_0,mlx:4bit --method gptq {CALIBRATION} --eval-ctx 128 --limit 2 --threads 1 --out {out}")
    };
    let whole = work.json(&line("whole"));
    // In the middle of the second artifact: the first one is finished.
    let second = || work.names("killed").iter().any(|n| n.starts_with('.') && n.contains("4bit"));
    assert!(kill_when(&work, &line("killed"), second));
    let again = work.json(&line("killed"));
    for i in 0..2 {
        assert_eq!(again["artifacts"][i]["sha256"], whole["artifacts"][i]["sha256"]);
        assert_eq!(again["artifacts"][i]["reused"], i == 0);
        assert_eq!(again["eval"][i + 1]["kld"][0]["mean"], whole["eval"][i + 1]["kld"][0]["mean"]);
    }
    assert_eq!(work.names("killed"), work.names("whole"));
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// A run may end after any tensor, after the last one, and after the artifact has its name.
#[cfg(unix)]
#[test]
fn any_tensor_may_be_the_one_that_is_missing() {
    let work = Work::new();
    LLAMA.write(&work, "model");
    for ((target, name), kib) in TARGETS.into_iter().zip([400, 200]) {
        let line = |out: &str| format!("quantize model --to {target} --method awq {CALIBRATION} -o {out}/{name}");
        // Every tensor fits on the disk, the artifact does not.
        let ended = limited(&work, kib, &line("full"));
        assert_eq!(ended.code, Some(74), "{target}: {}", ended.err);
        assert_eq!(ended.json()["error"]["kind"], "io", "{target}");
        let left: Vec<String> = work.names("full").into_iter().filter(|n| n.contains(name)).collect();
        assert_eq!(left, [format!(".{name}.work")], "{target}");

        let whole = work.json(&line("whole"));
        let complete = work.path("full").join(&left[0]);
        let (out, resumed) = (work.path("resumed").join(name), work.path("resumed").join(&left[0]));
        let again = || {
            let result = work.json(&line("resumed"));
            assert!(!resumed.exists(), "{target}");
            result
        };
        let tensors: Vec<String> = work.names(&format!("full/{}", left[0])).into_iter().filter(|n| n != "key").collect();
        assert_eq!(tensors.len(), 2 * 9 + 2, "{target}: {tensors:?}");
        for tensor in &tensors {
            let _ = fs::remove_dir_all(work.path("resumed"));
            copy(&complete, &resumed);
            fs::remove_file(resumed.join(tensor)).unwrap();
            assert_eq!(sha(&again()), sha(&whole), "{target}: {tensor}");
        }
        // All there but the manifest.
        copy(&complete, &resumed);
        let manifest = if out.is_dir() { out.join("bitsmith.json") } else { out.with_file_name(format!("{name}.bitsmith.json")) };
        fs::remove_file(manifest).unwrap();
        let result = again();
        assert_eq!((sha(&result), &result["artifacts"][0]["reused"]), (sha(&whole), &Value::Bool(false)), "{target}");
        // A work folder of another recipe is not taken for this one's.
        copy(&complete, &resumed);
        let other = work.json(&line("resumed").replace("awq", "rtn"));
        let fresh = work.json(&line("fresh").replace("awq", "rtn"));
        assert_eq!(sha(&other), sha(&fresh), "{target}");
    }
}

/// Runs with files of at most so many KiB, which stands in for a full disk.
#[cfg(unix)]
fn limited(work: &Work, kib: u32, line: &str) -> Ended {
    let script = format!("trap '' XFSZ; ulimit -f {kib}; exec '{}' --json {line}", env!("CARGO_BIN_EXE_bitsmith"));
    Ended::of(work.prepare("bash").args(["-c", &script]).output().unwrap())
}

#[test]
fn a_changed_recipe_is_made_anew() {
    let work = Work::new();
    LLAMA.write(&work, "model");
    let base = "quantize model --to mlx:4bit --method gptq --samples 2 --ctx 64 --calib builtin -o out/m";
    let made = |line: &str| {
        let document = work.json(line);
        (document["artifacts"][0]["reused"].as_bool().unwrap(), sha(&document).to_string())
    };
    let (reused, first) = made(base);
    assert!(!reused);
    assert_eq!(made(base), (true, first.clone()));
    assert_eq!(made(&format!("{base} --threads 1")), (true, first.clone()), "threads decide nothing");
    work.write("notes.txt", "Sheep may safely graze. ".repeat(100));
    for (from, to) in [
        ("samples 2", "samples 3"),
        ("ctx 64", "ctx 32"),
        ("--calib builtin", "--calib notes.txt"),
        ("--method gptq", "--method awq"),
        ("-o", "--independent -o"),
        ("-o", "--tensor-type ffn_up=mlx-8bit -o"),
        ("-o", "--mlx-dtype f32 -o"),
        ("-o", "--shard-size 100KB -o"),
    ] {
        let (reused, other) = made(&base.replace(from, to));
        assert!(!reused && other != first, "{to}");
    }
    assert_eq!(made(base), (false, first.clone()));
    // Neither is an artifact trusted that somebody changed, nor one made from other weights.
    let weights = work.path("out/m/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    assert_eq!(made(base), (false, first.clone()));
    let source = work.path("model/model.safetensors");
    let mut bytes = fs::read(&source).unwrap();
    let end = bytes.len() - 100;
    bytes[end] ^= 0x55;
    fs::write(&source, bytes).unwrap();
    let (reused, other) = made(base);
    assert!(!reused && other != first);
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let work = Work::new();
    LLAMA.write(&work, "tied");
    MISTRAL.write(&work, "untied");
    for (model, method) in [("tied", "gptq"), ("untied", "awq+gptq")] {
        let make = |threads: u32| {
            let line = format!(
                "quantize {model} --to gguf:q4_k_m,mlx:4bit --method {method} {CALIBRATION} -o {method}{threads}/ --threads {threads}"
            );
            let document = work.json(&line);
            document["artifacts"].as_array().unwrap().iter().map(|a| a["sha256"].clone()).collect::<Vec<_>>()
        };
        let one = make(1);
        assert_eq!(make(2), one, "{method}");
        assert_eq!(make(3), one, "{method}");
    }
    let gather = |threads: u32| {
        let line = format!("calibrate tied -o {threads}.stats --imatrix {threads}.gguf {CALIBRATION} --threads {threads}");
        work.ok(&line);
        (fs::read(work.path(&format!("{threads}.stats"))).unwrap(), fs::read(work.path(&format!("{threads}.gguf"))).unwrap())
    };
    assert!(gather(1) == gather(3));
    let measure = |threads: u32| {
        work.json(&format!("eval untied --kld builtin --against untied --ppl builtin --ctx 128 --limit 3 --threads {threads}"))
    };
    assert_eq!(measure(1), measure(3));
}
