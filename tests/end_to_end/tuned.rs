//! End-to-end tuning: closer on text that was held out, never farther, and the same bytes every time.

use crate::support::Work;

const TEXT: &str = "--samples 16 --ctx 64";

/// The divergences on held-out text before and after, from the artifact's notes.
fn divergences(document: &serde_json::Value) -> (f64, f64) {
    let notes = document["artifacts"][0]["notes"].as_array().unwrap().clone();
    let note = notes.iter().filter_map(|n| n.as_str()).find(|n| n.starts_with("tuned end to end"));
    let note = note.unwrap_or_else(|| panic!("{notes:?}")).to_string();
    let numbers: Vec<f64> = note.split([' ', ',']).filter(|w| w.contains('.')).filter_map(|w| w.parse().ok()).collect();
    assert_eq!(numbers.len(), 2, "{note}");
    (numbers[0], numbers[1])
}

#[test]
fn matrices_tuned_together_lose_less() {
    let work = Work::new();
    let line = format!("quantize demo --to mlx:2bit --method tuned {TEXT}");
    let (before, after) = divergences(&work.json(&format!("{line} -o a")));
    assert!(after < before, "{before} {after}");
    // On one thread and again: the same bytes.
    work.json(&format!("{line} --threads 1 -o b"));
    let weights = |name: &str| std::fs::read(work.path(name).join("model.safetensors")).unwrap();
    assert!(weights("a") == weights("b"));
    work.ok("verify a --source demo");
}

#[test]
fn without_enough_text_nothing_is_tuned() {
    let work = Work::new();
    let document = work.json("quantize demo --to gguf:q4_0 --method tuned --samples 4 --ctx 64 -o a.gguf");
    let notes = document["artifacts"][0]["notes"].to_string();
    assert!(notes.contains("too little text to tune on"), "{notes}");
    work.ok("quantize demo --to gguf:q4_0 --method gptq --samples 4 --ctx 64 -o b.gguf");
    assert!(std::fs::read(work.path("a.gguf")).unwrap() == std::fs::read(work.path("b.gguf")).unwrap());
}
