//! The GitHub action and the example workflows: inputs that are named are declared, and the other way round.

use serde_yaml_ng::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn yaml(path: &Path) -> Value {
    serde_yaml_ng::from_str(&fs::read_to_string(path).unwrap()).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn keys(value: &Value) -> BTreeSet<String> {
    value.as_mapping().unwrap().keys().map(|k| k.as_str().unwrap().to_string()).collect()
}

#[test]
fn the_action_uses_its_inputs() {
    let path = root().join("action.yml");
    let (action, text) = (yaml(&path), fs::read_to_string(&path).unwrap());
    let used: BTreeSet<String> = text
        .split("inputs.")
        .skip(1)
        .map(|t| t.split(|c: char| !c.is_alphanumeric() && c != '-').next().unwrap().to_string())
        .collect();
    assert_eq!(used, keys(&action["inputs"]));
    let steps = action["runs"]["steps"].as_sequence().unwrap();
    for step in steps {
        // A composite action's commands need a shell.
        assert_eq!(step.get("run").is_some(), step.get("shell").is_some(), "{step:?}");
    }
    let ids: BTreeSet<&str> = steps.iter().filter_map(|s| s.get("id")?.as_str()).collect();
    for part in text.split("steps.").skip(1).filter_map(|t| t.split_once('.')) {
        assert!(ids.contains(part.0), "{}", part.0);
    }
}

#[test]
fn examples_use_what_the_action_has() {
    let inputs = keys(&yaml(&root().join("action.yml"))["inputs"]);
    let mut seen = 0;
    for entry in fs::read_dir(root().join("examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "yml") {
            continue;
        }
        let workflow = yaml(&path);
        for job in workflow["jobs"].as_mapping().unwrap().values() {
            for step in job["steps"].as_sequence().unwrap() {
                if step.get("uses").and_then(Value::as_str).is_some_and(|u| u.contains("bitsmith")) {
                    let with = keys(&step["with"]);
                    assert!(with.is_subset(&inputs), "{}: {with:?}", path.display());
                    seen += 1;
                }
            }
        }
    }
    assert!(seen >= 2);
}
