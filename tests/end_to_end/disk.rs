//! Disks that are full, folders that cannot be written.

use crate::support::{Ended, Work};
use crate::tiny::LLAMA;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system, where one may be mounted.
struct Disk {
    at: PathBuf,
}

impl Disk {
    fn mount(at: PathBuf, kib: u32) -> Option<Disk> {
        std::fs::create_dir_all(&at).unwrap();
        let size = format!("size={kib}k");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&at).output();
        mounted.is_ok_and(|o| o.status.success()).then_some(Disk { at })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.at).status();
    }
}

/// Not under the final name, nor unfinished beside it; a folder of finished tensors may stay for the next attempt.
fn nothing_left(work: &Work, folder: &str) {
    let names = work.names(folder);
    assert!(names.iter().all(|n| n.starts_with('.') && n.ends_with(".work")), "{names:?}");
    for inner in &names {
        let inner = work.names(&format!("{folder}/{inner}"));
        assert!(!inner.iter().any(|n| n.ends_with(".partial")), "{inner:?}");
    }
}

fn is_full(error: &Value, what: &str, line: &str) {
    assert_eq!(error["kind"], "io", "{line}: {error}");
    assert!(error["file"].as_str().is_some_and(|f| f.contains(what)), "{line}: {error}");
    assert!(error["hint"].as_str().is_some_and(|h| h.contains("disk")), "{line}: {error}");
}

const JOBS: [&str; 7] = [
    "quantize model --to gguf:q4_k_m --method rtn -o full/d.gguf",
    "quantize model --to mlx:4bit --method rtn -o full/d-mlx",
    "run model --to gguf:q8_0 --method rtn --eval-ctx 64 --limit 1 --out full",
    "convert model --to gguf:f16 -o full/d.gguf",
    "convert model --to mlx:f16 -o full/d",
    "calibrate model -o full/d.stats --samples 2 --ctx 64",
    "calibrate model --imatrix full/d.imatrix --samples 2 --ctx 64",
];

#[test]
fn a_full_disk() {
    let work = Work::new();
    LLAMA.write(&work, "model");
    // Too small for anything; too small for the artifact alone.
    for kib in [4, 500] {
        for line in JOBS {
            let Some(_disk) = Disk::mount(work.path("full"), kib) else {
                eprintln!("skipped: file systems cannot be mounted here");
                return;
            };
            if kib == 500 && (line.starts_with("calibrate") || line.contains("mlx:4bit")) {
                continue;
            }
            is_full(&work.fails(line, 74), "full/", line);
            nothing_left(&work, "full");
        }
    }
    // With the room it needs, a job goes on and ends well.
    let disk = Disk::mount(work.path("full"), 600).unwrap();
    work.fails(JOBS[0], 74);
    let resize = Command::new("mount").args(["-o", "remount,size=8m"]).arg(&disk.at).status().unwrap();
    assert!(resize.success());
    let made = work.json(JOBS[0]);
    let whole = work.json(&JOBS[0].replace("full/", "whole/"));
    assert_eq!(made["artifacts"][0]["sha256"], whole["artifacts"][0]["sha256"]);
    assert_eq!(work.names("full"), ["d.gguf", "d.gguf.bitsmith.json"]);
}

/// As `a_full_disk`, for those who may not mount.
#[cfg(unix)]
#[test]
fn files_that_may_not_grow() {
    let work = Work::new();
    LLAMA.write(&work, "model");
    for (i, line) in JOBS.into_iter().enumerate() {
        let folder = format!("full{i}/");
        let line = line.replace("full/", &folder).replace("--out full", &format!("--out full{i}"));
        std::fs::create_dir(work.path(&folder)).unwrap();
        let script = format!("trap '' XFSZ; ulimit -f 1; exec '{}' --json {line}", env!("CARGO_BIN_EXE_bitsmith"));
        let ended = Ended::of(work.prepare("bash").args(["-c", &script]).output().unwrap());
        assert_eq!(ended.code, Some(74), "{line}: {}", ended.err);
        is_full(&ended.json()["error"], &folder, &line);
        nothing_left(&work, &folder);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn folders_that_cannot_be_written() {
    let work = Work::new();
    LLAMA.write(&work, "model");
    std::fs::create_dir(work.path("closed")).unwrap();
    work.write("file", "a file");
    let mut places = vec!["/proc/bitsmith", "file/inside"];
    // Permissions do not bind everybody, root for example.
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(work.path("closed"), std::fs::Permissions::from_mode(0o555)).unwrap();
    if std::fs::write(work.path("closed/probe"), "").is_err() {
        places.push("closed");
    }
    for place in places {
        for line in [
            format!("quantize model --to gguf:q4_0 --method rtn -o {place}/d.gguf"),
            format!("quantize model --to mlx:4bit --method rtn -o {place}/d"),
            format!("run model --to gguf:q4_0 --method rtn --eval-ctx 64 --limit 1 --out {place}/d"),
            format!("convert model --to gguf:f16 -o {place}/d.gguf"),
            format!("calibrate model -o {place}/d.stats --samples 2 --ctx 64"),
            format!("calibrate model --imatrix {place}/d.imatrix --samples 2 --ctx 64"),
            format!("eval model --ppl builtin --ctx 64 --limit 1 -o {place}/d.json"),
        ] {
            let error = work.fails(&line, 73);
            assert_eq!(error["kind"], "cannot_write", "{line}");
            assert!(error["file"].as_str().is_some_and(|f| Path::new(f).starts_with(place)), "{line}: {error}");
        }
    }
    assert_eq!(work.names("file"), Vec::<String>::new());
}
