//! Tokens and keys appear nowhere: not in what is printed, whatever goes wrong, and not in what is written.

use crate::hub::{Fault, Hub, State};
use crate::support::{Ended, Work, demo};
use std::fs;
use std::path::Path;

const TOKEN: &str = "hf_abcdefghijklmnopqrstuvwxyz012345";

fn hub() -> Hub {
    let mut state = State { blobs: true, large: vec!["model.safetensors".into()], token: Some(TOKEN.into()), ..State::default() };
    for entry in fs::read_dir(demo()).unwrap() {
        let entry = entry.unwrap();
        state.files.insert(entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    }
    Hub::start(state)
}

fn call(work: &Work, hub: &Hub, line: &str) -> Ended {
    Ended::of(work.command(line).env("HF_ENDPOINT", &hub.endpoint).env("HF_TOKEN", TOKEN).output().unwrap())
}

/// Files below a folder that contain the token.
fn leaks(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(leaks(&path));
        } else if fs::read(&path).is_ok_and(|b| b.windows(TOKEN.len()).any(|w| w == TOKEN.as_bytes())) {
            found.push(path.display().to_string());
        }
    }
    found
}

#[test]
fn the_hubs_token() {
    let (work, hub) = (Work::new(), hub());
    let mut all = String::new();
    let mut codes = Vec::new();
    for (line, fault) in [
        ("pull org/none", None),
        ("pull org/tiny", Some(Fault::Status(401))),
        ("pull org/tiny", Some(Fault::Status(403))),
        ("pull org/tiny", Some(Fault::WrongBytes)),
        ("pull org/tiny", None),
        ("check org/tiny --to gguf:q4_k_m", None),
        ("quantize org/tiny --to gguf:q4_0 --method rtn --release --license mit -o out/", None),
        ("publish out --repo org/tiny", Some(Fault::Status(500))),
        ("publish out --repo org/tiny --dry-run", None),
    ] {
        if let Some(fault) = fault {
            hub.fault("tokenizer.json", &[fault]);
        }
        for flags in ["-vv", "-vv --json --log-format jsonl"] {
            let ended = call(&work, &hub, &format!("{flags} {line}"));
            codes.push(ended.code);
            all.push_str(&ended.out);
            all.push_str(&ended.err);
        }
    }
    assert!(codes.contains(&Some(0)) && codes.iter().any(|c| c.is_some_and(|c| c != 0)), "{codes:?}");
    assert!(hub.requests().iter().any(|r| r.authorization.as_deref().is_some_and(|a| a.contains(TOKEN))), "the hub gets it");
    assert!(!all.contains(TOKEN), "{all}");
    assert_eq!(leaks(&work.path("")), Vec::<String>::new());
}
