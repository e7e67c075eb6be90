//! What clusters are told.

use super::{recipe, records, usual};
use crate::support::{Ended, Work};
use crate::tiny::LLAMA;
use serde_json::json;
use std::fs::{self};

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
