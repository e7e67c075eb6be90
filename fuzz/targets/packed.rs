//! Packed checkpoints: the configuration says one thing, the weights another. The first byte chooses a checkpoint of the golden files and
//! which of its two files the other bytes are.

use super::{files, tree, with_folder};
use bitsmith_formats::open_store;
use std::path::PathBuf;

/// The golden checkpoints, MLX's and GPTQ's among them.
fn fixtures() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(tree("tests/golden/packed"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.join("config.json").is_file() && p.join("model.safetensors").is_file())
        .collect();
    found.sort();
    found
}

const FILES: [&str; 2] = ["config.json", "model.safetensors"];

/// A folder.
pub fn run(data: &[u8]) {
    thread_local! {
        static FIXTURES: Vec<PathBuf> = fixtures();
    }
    let Some((&choice, data)) = data.split_first() else { return };
    with_folder(|folder| {
        FIXTURES.with(|all| {
            if all.is_empty() {
                return;
            }
            let fixture = &all[usize::from(choice) % (2 * all.len()) / 2];
            // A folder for each choice, so that what stays the same is copied once.
            let folder = folder.join(format!("packed-{}", usize::from(choice) % (2 * all.len())));
            let [own, other] = if choice % 2 == 0 { FILES } else { [FILES[1], FILES[0]] };
            if !folder.exists() {
                std::fs::create_dir_all(&folder).expect("a folder can be made");
                std::fs::copy(fixture.join(other), folder.join(other)).expect("a file can be copied");
            }
            std::fs::write(folder.join(own), data).expect("a file can be written");
            if let Ok(store) = open_store(&folder) {
                files::read_all(store.as_ref());
            }
        });
    });
}

/// The golden files themselves.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (i, fixture) in fixtures().into_iter().enumerate() {
        for (which, file) in FILES.iter().enumerate() {
            let bytes = std::fs::read(fixture.join(file)).unwrap_or_default();
            seeds.push([vec![(2 * i + which) as u8], bytes].concat());
        }
    }
    seeds
}
