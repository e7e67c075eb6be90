//! Where artifacts came from, as an in-toto statement with a SLSA predicate: what supply-chain tools read.

use crate::manifest::{InputFile, Manifest};
use serde_json::{Map, Value, json};

/// How artifacts are made, as SLSA names it.
const BUILD_TYPE: &str = "urn:bitsmith:quantize:v1";

/// The statement that these files, by name and sha256, were made as the manifests say. Manifests of one source.
pub fn statement(subjects: Vec<(String, String)>, manifests: &[&Manifest]) -> Value {
    let subjects: Vec<Value> = subjects.iter().map(|(name, sha256)| resource(name, sha256, None)).collect();
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subjects,
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": manifests.first().map(|first| predicate(first, manifests)),
    })
}

fn predicate(first: &Manifest, all: &[&Manifest]) -> Value {
    let each = |of: fn(&Manifest) -> Value| all.iter().map(|m| of(m)).collect::<Vec<Value>>();
    let mut version = Map::from_iter([("bitsmith".to_string(), Value::from(first.made.version.as_str()))]);
    if let Some(commit) = &first.made.commit {
        version.insert("commit".into(), commit.as_str().into());
    }
    json!({
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "model": first.made.model,
                "targets": each(|m| m.recipe.target.as_str().into()),
                "commands": each(|m| m.made.command.clone()),
            },
            "internalParameters": {
                "methods": each(|m| m.recipe.method.as_str().into()),
                "instructions": each(|m| m.made.instructions.as_str().into()),
            },
            "resolvedDependencies": dependencies(first, all),
        },
        "runDetails": { "builder": { "id": "urn:bitsmith", "version": version } },
    })
}

/// The source's files and what was calibrated on, each once.
fn dependencies(first: &Manifest, all: &[&Manifest]) -> Vec<Value> {
    let uri = |file: &InputFile| match (&first.made.repo, &first.made.revision) {
        (Some(repo), Some(revision)) => Some(format!("https://huggingface.co/{repo}/resolve/{revision}/{}", file.name)),
        _ => None,
    };
    let mut list: Vec<Value> = first.recipe.inputs.iter().map(|f| resource(&f.name, &f.sha256, uri(f))).collect();
    for calibration in all.iter().filter_map(|m| m.recipe.calibration.as_ref()) {
        let name = calibration["data"].as_str();
        let hashes =
            [("sha256", name.unwrap_or("text")), ("stats_sha256", "statistics"), ("imatrix_sha256", "importance matrix")];
        for (key, name) in hashes {
            let several = calibration[key].as_array().cloned().unwrap_or_else(|| vec![calibration[key].clone()]);
            for hash in several.iter().filter_map(Value::as_str) {
                let one = resource(&format!("calibration: {name}"), hash, None);
                if !list.contains(&one) {
                    list.push(one);
                }
            }
        }
    }
    list
}

fn resource(name: &str, sha256: &str, uri: Option<String>) -> Value {
    let mut resource = json!({ "name": name, "digest": { "sha256": sha256 } });
    if let Some(uri) = uri {
        resource["uri"] = uri.into();
    }
    resource
}
