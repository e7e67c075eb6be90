//! The documentation: every command in it runs, every message that it explains exists, and no link leads nowhere.

use crate::hub::{Hub, State};
use crate::support::{Work, demo};
use crate::tiny::LLAMA;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

fn tree(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// All pages of the book, by their paths in the source tree.
fn pages() -> Vec<PathBuf> {
    let (mut pages, mut folders) = (Vec::new(), vec![tree("docs/src")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    pages
}

/// The contents of the fenced blocks of this language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(&format!("```{language}\n")) {
        let body = &rest[start + language.len() + 4..];
        let end = body.find("\n```").unwrap() + 1;
        found.push(body[..end].to_string());
        rest = &body[end + 3..];
    }
    found
}

/// What readers have: a model, texts, and a hub with a model.
fn desk(page: &str) -> (Work, Hub) {
    let work = Work::new();
    LLAMA.write(&work, "my-model");
    let text = fs::read_to_string(tree("datasets/text/evaluation/prose.txt")).unwrap();
    for name in ["notes.txt", "wiki.txt", "code.txt"] {
        work.write(name, &text);
    }
    let mut state = State { blobs: true, large: vec!["model.safetensors".into()], ..State::default() };
    for entry in fs::read_dir(demo()).unwrap() {
        let entry = entry.unwrap();
        state.files.insert(entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    }
    // Commands as they stand, on less text; how each ended goes into a file.
    let program = env!("CARGO_BIN_EXE_bitsmith");
    let script = format!(
        r#"#!/bin/sh
here=$(dirname "$0")
command=$1
case "$command" in
run | quantize) shift; set -- "$command" --samples 8 --ctx 64 "$@" ;;
calibrate) shift; set -- calibrate --samples 2 --ctx 64 "$@" ;;
eval) shift; set -- eval --ctx 64 --limit 2 "$@" ;;
map) shift; set -- map --samples 2 --ctx 64 --eval-ctx 64 --limit 1 "$@" ;;
"") set -- run --samples 8 --ctx 64 ;;
esac
case "$command" in run | "") set -- "$@" --eval-ctx 64 --limit 1 ;; esac
case "$command" in
serve)
    {program} "$@" 2> "$here/served" &
    for _ in $(seq 100); do grep -q http://127.0.0.1 "$here/served" && break; sleep 0.1; done
    grep -q http://127.0.0.1 "$here/served"; code=$?
    kill -INT $!; wait $! || code=$?
    ;;
*) {program} "$@"; code=$? ;;
esac
echo "$code $*" >> "$here/codes"
exit $code
"#
    );
    let path = work.write(&format!("bin-{page}/bitsmith"), script);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    (work, Hub::start(state))
}

#[test]
fn every_command_runs() {
    let mut failed = Vec::new();
    let mut commands = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let scripts = blocks(&text, "sh");
        if scripts.is_empty() {
            continue;
        }
        let (work, hub) = desk("x");
        for script in scripts {
            let script = script.replace("Qwen/Qwen2.5-0.5B", "org/tiny");
            let mut shell = work.prepare("sh");
            let path = format!("{}:{}", work.path("bin-x").display(), std::env::var("PATH").unwrap());
            shell.arg("-ec").arg(&script).env("PATH", path).env("HF_ENDPOINT", &hub.endpoint);
            let output = shell.output().unwrap();
            if !output.status.success() {
                let err = String::from_utf8_lossy(&output.stderr).into_owned();
                failed.push(format!("{}: {:?}\n{script}{err}", page.display(), output.status.code()));
            }
        }
        commands += fs::read_to_string(work.path("bin-x/codes")).unwrap_or_default().lines().count();
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
    assert!(commands > 50, "{commands} commands");
}

/// The sources of what is said to users.
fn sources(folder: &Path, all: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|e| e == "rs") {
            all.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_message_exists() {
    let mut all = String::new();
    for part in ["formats", "runtime", "datasets", "calibrate", "quantize", "convert", "eval", "pipeline", "cli"] {
        sources(&tree(&format!("{part}/src")), &mut all);
    }
    let text = fs::read_to_string(tree("docs/src/troubleshooting.md")).unwrap();
    let quoted: Vec<&str> =
        text.lines().filter(|l| l.starts_with("### ")).flat_map(|l| l.split('`').skip(1).step_by(2)).collect();
    assert!(quoted.len() > 20);
    // What varies is left out by an ellipsis.
    let missing: Vec<&&str> = quoted.iter().filter(|q| !q.split('…').all(|part| all.contains(part.trim()))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn no_link_leads_nowhere() {
    let summary = fs::read_to_string(tree("docs/src/SUMMARY.md")).unwrap();
    for page in pages() {
        let name = page.strip_prefix(tree("docs/src")).unwrap().display().to_string();
        assert!(name == "SUMMARY.md" || summary.contains(&format!("({name})")), "{name} is not in the summary");
        let text = fs::read_to_string(&page).unwrap();
        let links = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link);
        let includes = text.split("{{#include ").skip(1).filter_map(|rest| rest.split_once("}}")).map(|(link, _)| link);
        for link in links.filter(|l| !l.is_empty() && !l.starts_with("http")).chain(includes) {
            let target = page.parent().unwrap().join(link.split('#').next().unwrap());
            assert!(target.is_file(), "{name}: {link}");
        }
    }
    for page in ["README.md", "CONTRIBUTING.md", "SECURITY.md", "ARCHITECTURE.md"] {
        let text = fs::read_to_string(tree(page)).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
            assert!(link.starts_with("http") || link.starts_with('#') || tree(link).exists(), "{page}: {link}");
        }
    }
}
