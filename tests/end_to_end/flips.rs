//! Bits that flip on disk: in what is read, in what is kept meanwhile, and in what is written. None becomes another result without a word.

use crate::support::{Work, read_safetensors};
use crate::tiny::LLAMA;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Files about an artifact, which its hash does not cover.
const ABOUT: [&str; 3] = ["bitsmith.json", "README.md", "SHA256SUMS"];

/// Flips a bit, as far into the file as `part` of `of` says.
fn flip(path: &Path, part: usize, of: usize) {
    let mut bytes = fs::read(path).unwrap();
    let at = (bytes.len() - 1) * part / of;
    bytes[at] ^= 1 << (part % 8);
    fs::write(path, bytes).unwrap();
}

fn sha(document: &Value) -> String {
    document["artifacts"][0]["sha256"].as_str().unwrap().to_string()
}

#[test]
fn in_artifacts() {
    let work = Work::new();
    LLAMA.write(&work, "model");
    work.ok("quantize model --to gguf:q4_0,mlx:4bit,gptq:4bit-g32 --method rtn -o out/");
    let artifacts: Vec<String> = work.names("out").into_iter().filter(|n| !n.ends_with(".json")).collect();
    assert_eq!(artifacts.len(), 3, "{artifacts:?}");
    for artifact in artifacts {
        let path = work.path("out").join(&artifact);
        let line = format!("verify out/{artifact}");
        work.ok(&line);
        let files: Vec<_> = match path.is_dir() {
            true => fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()).collect(),
            false => vec![path],
        };
        let covered = |p: &&std::path::PathBuf| !ABOUT.contains(&p.file_name().unwrap().to_str().unwrap());
        for file in files.iter().filter(covered) {
            let sound = fs::read(file).unwrap();
            for part in [0, 3, 7, 10] {
                flip(file, part, 10);
                let ended = work.call(&line);
                assert_eq!(ended.code, Some(65), "{} at {part}: {}", file.display(), ended.out);
                fs::write(file, &sound).unwrap();
            }
        }
        work.ok(&line);
    }
}

#[test]
fn in_inputs() {
    let work = Work::new();
    let weights = LLAMA.write(&work, "model").join("model.safetensors");
    let line = "quantize model --to gguf:q8_0 --method rtn -o d.gguf";
    let first = work.json(line);
    assert_eq!(work.json(line)["artifacts"][0]["reused"], true);
    // A small change of one weight: the file is as sound as before, but another one.
    let (header, _) = read_safetensors(&weights);
    let mut bytes = fs::read(&weights).unwrap();
    let at = bytes.len() - header["model.norm.weight"]["data_offsets"][1].as_u64().unwrap() as usize;
    bytes[at] ^= 1;
    fs::write(&weights, &bytes).unwrap();
    let second = work.json(line);
    assert_eq!(second["artifacts"][0]["reused"], false);
    let inputs = |work: &Work| {
        let manifest: Value = serde_json::from_slice(&fs::read(work.path("d.gguf.bitsmith.json")).unwrap()).unwrap();
        manifest["recipe"]["inputs"].clone()
    };
    let recorded = inputs(&work);
    bytes[at] ^= 1;
    fs::write(&weights, &bytes).unwrap();
    assert_eq!(sha(&work.json(line)), sha(&first));
    assert_ne!(inputs(&work), recorded, "the manifest says what was read");
}

#[test]
fn in_statistics() {
    let work = Work::new();
    LLAMA.write(&work, "model");
    work.ok("calibrate model --samples 2 --ctx 32 -o x.stats");
    let sound = fs::read(work.path("x.stats")).unwrap();
    for part in 0..24 {
        flip(&work.path("x.stats"), part, 23);
        let error = work.fails("quantize model --to gguf:q4_0 --method gptq --stats x.stats -o d.gguf", 65);
        assert!(error["file"].as_str().unwrap().ends_with("x.stats"), "{part}: {error}");
        work.write("x.stats", &sound);
    }
    work.ok("quantize model --to gguf:q4_0 --method gptq --stats x.stats -o d.gguf");
}

#[test]
fn in_the_work_of_a_killed_run() {
    let work = Work::new();
    LLAMA.write(&work, "model");
    let line = |out: &str| {
        format!("quantize model --to gguf:q4_k_m --method awq+gptq --samples 4 --ctx 128 --threads 1 -o {out}/d.gguf")
    };
    let whole = sha(&work.json(&line("whole")));
    let folder = "killed/.d.gguf.work";
    let kept = || -> Vec<String> {
        work.names(folder).into_iter().filter(|n| n.starts_with("blk.0.") && !n.ends_with(".partial")).collect()
    };
    let mut child = work.command(&line("killed")).spawn().unwrap();
    let start = Instant::now();
    while kept().len() < 9 && child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(100));
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = child.kill();
    child.wait().unwrap();
    let names = kept();
    assert_eq!(names.len(), 9, "{names:?}");
    for (i, name) in names.iter().enumerate() {
        let path = work.path(folder).join(name);
        let sound = fs::read(&path).unwrap();
        flip(&path, i, names.len());
        let error = work.fails(&line("killed"), 65);
        assert!(error["message"].as_str().unwrap().contains("damaged"), "{error}");
        fs::write(&path, sound).unwrap();
    }
    assert_eq!(sha(&work.json(&line("killed"))), whole);
}

#[test]
fn in_remembered_results() {
    let work = Work::new();
    LLAMA.write(&work, "model");
    let line = "eval model --ppl builtin --ctx 64 --limit 2";
    let first = work.json(line);
    let remembered = |work: &Work| work.ok(&format!("{line} --json")).err.contains("remembered");
    assert!(remembered(&work));
    let path = work.path("cache/bitsmith/results.sqlite");
    let mut bytes = fs::read(&path).unwrap();
    // A digit of the number that counts.
    let name = b"\"ppl\":";
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap() + 8;
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(work.json(line), first);
    assert!(remembered(&work), "measured anew and remembered again");
}
