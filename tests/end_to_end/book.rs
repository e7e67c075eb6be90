//! The documentation: every command in it runs, every message that it explains exists, and no link leads nowhere.

use crate::hub::{Hub, State};
use crate::support::{Ended, Work, demo};
use crate::tiny::{LLAMA, write_random};
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
fn desk() -> (Work, Hub) {
    let work = Work::new();
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
    state.files.insert("README.md".into(), b"---\nlicense: mit\n---\n# Tiny\n".to_vec());
    // Programs that are not ours are there, and do nothing.
    for (name, script) in [("bitsmith", script.as_str()), ("cargo", "#!/bin/sh\n"), ("lm_eval", "#!/bin/sh\n")] {
        let path = work.write(&format!("bin/{name}"), script);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    (work, Hub::start(state))
}

/// Runs a script at the desk. How its commands ended is in `bin/codes`.
fn shell(work: &Work, hub: &Hub, flags: &str, script: &str) -> Ended {
    let path = format!("{}:{}", work.path("bin").display(), std::env::var("PATH").unwrap());
    let mut shell = work.prepare("sh");
    shell.arg(flags).arg(script.replace("Qwen/Qwen2.5-0.5B", "org/tiny")).env("PATH", path).env("HF_ENDPOINT", &hub.endpoint);
    Ended::of(shell.output().unwrap())
}

/// What became of every command: its exit code and its line.
fn codes(work: &Work) -> Vec<(String, String)> {
    let text = fs::read_to_string(work.path("bin/codes")).unwrap_or_default();
    text.lines().filter_map(|l| l.split_once(' ')).map(|(code, line)| (code.to_string(), line.to_string())).collect()
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
        let (work, hub) = desk();
        LLAMA.write(&work, "my-model");
        for script in scripts {
            let ended = shell(&work, &hub, "-ec", &script);
            if ended.code != Some(0) {
                failed.push(format!("{}: {:?}\n{script}{}", page.display(), ended.code, ended.err));
            }
        }
        commands += codes(&work).len();
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
    assert!(commands > 50, "{commands} commands");
}

/// One layer with rows of 256, which all formats fit.
fn one_layer(work: &Work, name: &str) {
    let mut config = LLAMA.config();
    for (key, value) in [("hidden_size", 256), ("intermediate_size", 256), ("num_hidden_layers", 1), ("head_dim", 64)] {
        config[key] = value.into();
    }
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_string(), vec![2048, 256], 0.0, 0.3),
        ("model.norm.weight".to_string(), vec![256], 1.0, 0.5),
    ];
    for (part, rows) in [
        ("self_attn.q", 256),
        ("self_attn.k", 128),
        ("self_attn.v", 128),
        ("self_attn.o", 256),
        ("mlp.gate", 256),
        ("mlp.up", 256),
        ("mlp.down", 256),
    ] {
        tensors.push((format!("model.layers.0.{part}_proj.weight"), vec![rows, 256], 0.0, 0.15));
    }
    for norm in ["input_layernorm", "post_attention_layernorm"] {
        tensors.push((format!("model.layers.0.{norm}.weight"), vec![256], 1.0, 0.5));
    }
    write_random(work, name, &config, tensors);
}

/// The README's too, but for those that need a GPU, a cluster, object storage or data sets of the hub.
#[test]
fn every_command_of_the_readme_runs() {
    let (work, hub) = desk();
    one_layer(&work, "my-model");
    work.write("chat.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"Where is the lighthouse?\"}]}\n".repeat(40));
    // What others have made, and earlier days' results.
    let made = "
        bitsmith quantize ./my-model --to awq:4bit-g128 --method rtn -o their-model-awq
        bitsmith quantize ./my-model --to gguf:q4_k_m --method rtn -o their-Q4_K_M.gguf
        bitsmith calibrate ./my-model --calib code.txt -o code.stats --imatrix code.imatrix.gguf
        bitsmith imatrix code.imatrix.gguf -o code.dat
        cp code.imatrix.gguf chat.imatrix.gguf
        for n in 4 5 8; do bitsmith eval their-Q4_K_M.gguf --kld wiki.txt --against ./my-model -o q$n.json; done";
    let ended = shell(&work, &hub, "-ec", made);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let text = fs::read_to_string(tree("README.md")).unwrap();
    // The recipe that its commands name, on less text, and with nobody to publish it for.
    let recipe = blocks(&text, "toml").into_iter().find(|b| b.starts_with("# recipe.toml")).unwrap();
    let recipe: String = recipe.lines().filter(|l| !l.starts_with("publish")).map(|l| format!("{l}\n")).collect();
    let less = "samples = 8\nctx = 64\neval-ctx = 64\nlimit = 1\n";
    work.write("recipe.toml", recipe.replace("Qwen/Qwen2.5-0.5B", "org/tiny").replace("0.02", "9") + less);
    let elsewhere = ["--device cuda", "--tasks hellaswag", "--engine slurm", "s3://"];
    let mut failed = Vec::new();
    for script in blocks(&text, "sh") {
        let can = |line: &&str| !elsewhere.iter().any(|e| line.contains(e));
        let script: String = script.lines().filter(can).map(|l| format!("{l}\n")).collect();
        let before = codes(&work).len();
        let ended = shell(&work, &hub, "-c", &script);
        for (code, line) in codes(&work).split_off(before) {
            // Gates are allowed not to hold.
            if code != "0" && !(code == "3" && line.contains("--gate")) {
                failed.push(format!("{code}: {line}\n{}", ended.err));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
    assert!(codes(&work).len() > 30, "{:?}", codes(&work));
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
