//! pull, and models from the hub in other commands.

use crate::hub::{Fault, Hub, State};
use crate::support::{Ended, Work, demo};
use std::fs;

fn hub() -> Hub {
    let mut state = State { blobs: true, large: vec!["model.safetensors".into()], ..State::default() };
    for entry in fs::read_dir(demo()).unwrap() {
        let entry = entry.unwrap();
        state.files.insert(entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    }
    Hub::start(state)
}

fn call(work: &Work, hub: &Hub, line: &str) -> Ended {
    Ended::of(work.command(line).env("HF_ENDPOINT", &hub.endpoint).output().unwrap())
}

#[test]
fn pulled_and_used() {
    let (work, hub) = (Work::new(), hub());
    let plan = call(&work, &hub, "pull org/tiny --dry-run --json").json();
    assert!(plan["download_bytes"].as_u64().unwrap() > 5_000_000);
    assert!(work.names("hf").is_empty());

    hub.fault("model.safetensors", &[Fault::Status(503), Fault::BreakAfter(1_000_000), Fault::NoRange]);
    let pulled = call(&work, &hub, "pull org/tiny --json");
    assert_eq!(pulled.code, Some(0), "{}", pulled.err);
    assert_eq!(hub.gets("model.safetensors").len(), 3);
    let document = pulled.json();
    assert_eq!(document["commit"], crate::hub::COMMIT);
    assert!(work.path("hf/hub/models--org--tiny").is_dir());
    let text = call(&work, &hub, "pull org/tiny").out;
    assert_eq!(text.trim(), document["path"].as_str().unwrap());

    hub.forget();
    let inspected = call(&work, &hub, "inspect org/tiny --offline --json").json();
    assert_eq!(inspected["model"], format!("org/tiny@{}", crate::hub::COMMIT));
    assert!(hub.requests().is_empty());
    // Another command downloads what it needs by itself, into another cache.
    let tokens = call(&work, &hub, "tokenize org/tiny -p Hello --json --cache-dir elsewhere");
    assert_eq!(tokens.code, Some(0), "{}", tokens.err);
    assert!(work.path("elsewhere/models--org--tiny").is_dir());
}

#[test]
fn failures_have_their_exit_codes() {
    let (work, hub) = (Work::new(), hub());
    let code = |line: &str| call(&work, &hub, line).code;
    assert_eq!(code("pull org/none"), Some(66));
    assert_eq!(code("pull org/tiny --revision v9"), Some(66));
    assert_eq!(code("pull org/tiny@main --revision v9"), Some(2));
    assert_eq!(code("pull org/tiny --include *.gguf"), Some(66));
    assert_eq!(code("pull nonsense"), Some(2));
    assert_eq!(code("pull org/tiny --offline"), Some(66));
    hub.fault("tokenizer.json", &[Fault::WrongBytes]);
    let ended = call(&work, &hub, "pull org/tiny --json");
    assert_eq!(ended.code, Some(65));
    assert_eq!(ended.json()["error"]["file"], "tokenizer.json");
    hub.state.lock().unwrap().token = Some("hf_x".into());
    let refused = call(&work, &hub, "pull org/tiny --json");
    assert_eq!(refused.code, Some(77));
    assert_eq!(refused.json()["error"]["kind"], "not_authorised");
    let token = work.command("pull org/tiny").env("HF_ENDPOINT", &hub.endpoint).env("HF_TOKEN", "hf_x").output().unwrap();
    assert!(token.status.success());
}
