//! What each preset gives each tensor, against llama-quantize's own answers for models of many shapes.

use super::*;
use crate::plan::{Plan, PlanOptions};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Made by `tests/interop/presets.py --golden` with the real llama-quantize.
const GOLDEN: &str = include_str!("../../tests/golden/presets.json");

fn golden() -> Vec<Value> {
    serde_json::from_str(GOLDEN).unwrap()
}

fn preset(name: &str) -> GgufPreset {
    GgufPreset::known().find(|p| p.to_string() == name).unwrap()
}

/// The formats by layer, run-length encoded (`q6_k*2 q4_k*5`), and the parts that have them.
fn runs(plan: &Plan) -> BTreeMap<String, String> {
    let mut parts: BTreeMap<String, Vec<(String, usize)>> = BTreeMap::new();
    for e in plan.entries.iter().filter(|e| e.role.part.is_matrix()) {
        let runs = parts.entry(e.role.part.to_string()).or_default();
        match runs.last_mut() {
            Some((codec, n)) if *codec == e.codec.to_string() => *n += 1,
            _ => runs.push((e.codec.to_string(), 1)),
        }
    }
    let text = |(codec, n): &(String, usize)| if *n > 1 { format!("{codec}*{n}") } else { codec.clone() };
    let mut by_runs: BTreeMap<String, String> = BTreeMap::new();
    for (part, runs) in parts {
        let same = by_runs.entry(runs.iter().map(text).collect::<Vec<_>>().join(" ")).or_default();
        *same = format!("{same} {part}").trim_start().to_string();
    }
    by_runs
}

#[test]
fn every_preset_is_llama_quantizes() {
    let mut compared = 0;
    for model in golden() {
        let spec = ModelSpec::from_config(&model["config"]).unwrap();
        for (name, answers) in model["presets"].as_object().unwrap() {
            for importance in [false, true] {
                let answer = answers.get("imatrix").filter(|_| importance).unwrap_or(&answers["plain"]);
                let options = PlanOptions { importance, ..PlanOptions::default() };
                let plan = Plan::gguf(&spec, preset(name), &options).unwrap();
                assert_eq!(json!(runs(&plan)), *answer, "{} {name}, importance: {importance}", model["name"]);
                compared += 1;
            }
        }
    }
    assert!(compared > 900, "{compared}");
}

fn spec(changes: Value) -> ModelSpec {
    let mut config = golden()[0]["config"].clone();
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    ModelSpec::from_config(&config).unwrap()
}

#[test]
fn more_bits_are_where_llama_quantize_puts_them() {
    let chosen: Vec<usize> = (0..32).filter(|&i| more_bits(i, 32)).collect();
    assert_eq!(chosen, [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]);
    assert_eq!((0..4).filter(|&i| more_bits(i, 4)).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn joint_projections_count_as_values() {
    let joint = spec(json!({"model_type": "phi3", "num_hidden_layers": 16}));
    let apart = spec(json!({"num_hidden_layers": 16}));
    for preset in GgufPreset::known() {
        for layer in 0..16 {
            let of = |spec: &ModelSpec, part| preset.choose(spec, Role::layer(layer, part), true);
            assert_eq!(of(&joint, AttnQkv), of(&apart, AttnV), "{preset} {layer}");
            assert_eq!(of(&joint, FfnUp), of(&apart, FfnUp), "{preset} {layer}");
        }
    }
}

#[test]
fn names() {
    for p in GgufPreset::all() {
        assert_eq!(p.to_string().to_uppercase().parse::<GgufPreset>().unwrap(), p);
    }
    for (alias, name) in ALIASES {
        assert!(GgufPreset::known().any(|p| p.to_string() == name) && GgufPreset::known().all(|p| p.to_string() != alias));
    }
    assert_eq!("Q5_K".parse::<GgufPreset>().unwrap().to_string(), "q5_k_m");
    assert!("q9".parse::<GgufPreset>().is_err());
    let unique: std::collections::BTreeSet<String> = GgufPreset::known().map(|p| p.to_string()).collect();
    assert_eq!(unique.len(), GgufPreset::known().count());
    // A rule for a preset that does not exist would be dead.
    assert!(RULES.iter().flat_map(|rule| rule.0).all(|name| unique.contains(*name)));
}

#[test]
fn presets_are_there_when_all_their_codecs_are() {
    let listed: Vec<GgufPreset> = GgufPreset::all().collect();
    assert!(listed.contains(&preset("q4_k_m")) && listed.contains(&preset("q6_k_l")));
    for model in golden() {
        let spec = ModelSpec::from_config(&model["config"]).unwrap();
        for p in &listed {
            for importance in [false, true] {
                let plan = Plan::gguf(&spec, *p, &PlanOptions { importance, ..PlanOptions::default() }).unwrap();
                assert!(plan.entries.iter().all(|e| codecs::find(e.codec).is_some()), "{p}");
            }
        }
    }
}

#[test]
fn fallbacks_follow_the_row_length() {
    assert_eq!(fallback(CodecId::Q4K, 64), CodecId::Q5_0);
    assert_eq!(fallback(CodecId::Q6K, 96), CodecId::Q8_0);
    assert_eq!(fallback(CodecId::Q5K, 32), CodecId::Q5_1);
    assert_eq!(fallback(CodecId::Q4K, 172), CodecId::F16);
    assert_eq!(fallback(CodecId::Q8_0, 172), CodecId::F16);
}

#[test]
fn output_and_embedding_can_be_named() {
    let of = |tied: bool, options: PlanOptions| {
        let plan = Plan::gguf(&spec(json!({"tie_word_embeddings": tied})), preset("q4_k_m"), &options).unwrap();
        (plan.codec(Role::global(TokenEmbd)).unwrap(), plan.codec(Role::global(Output)))
    };
    let (output_type, embedding_type) = (Some(Q8_0), Some(Q5_0));
    let overrides = vec![("token_embd".to_string(), Q4_0)];
    let named = |output_type, embedding_type| PlanOptions { output_type, embedding_type, ..PlanOptions::default() };
    assert_eq!(of(false, named(output_type, None)), (Q4K, Some(Q8_0)));
    assert_eq!(of(false, named(output_type, embedding_type)), (Q5_0, Some(Q8_0)));
    assert_eq!(of(true, named(output_type, None)), (Q8_0, None));
    assert_eq!(of(true, named(output_type, embedding_type)), (Q5_0, None));
    assert_eq!(of(true, PlanOptions { overrides: overrides.clone(), ..named(output_type, None) }), (Q4_0, None));
    assert_eq!(of(true, PlanOptions { overrides, ..named(None, embedding_type) }), (Q5_0, None));
    assert!(named(None, Some(F16)).names_quantized() == named(None, None).names_quantized());
    assert!(named(output_type, None).names_quantized());
}

#[test]
fn the_lowest_presets_need_importance() {
    let spec = spec(json!({"tie_word_embeddings": false}));
    let needing = |name: &str, pure: bool| {
        let plan = Plan::gguf(&spec, preset(name), &PlanOptions { pure, ..PlanOptions::default() }).unwrap();
        let needing: Vec<Role> = plan.entries.iter().filter(|e| e.needs_importance).map(|e| e.role).collect();
        assert_eq!(plan.check_importance(|_| false).is_err(), !needing.is_empty());
        plan.check_importance(|role| needing.contains(&role)).unwrap();
        needing
    };
    for name in ["iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq3_xxs", "iq3_xs", "q2_k_s"] {
        let needing = needing(name, false);
        assert!(!needing.is_empty() && needing.iter().all(|r| r.layer.is_some()), "{name}");
    }
    for name in ["q2_k", "q3_k_s", "iq3_s", "iq3_m", "iq4_xs", "tq1_0", "q4_0", "f16"] {
        assert!(needing(name, false).is_empty() && needing(name, true).is_empty(), "{name}");
    }
    let error = Plan::gguf(&spec, preset("iq2_xxs"), &PlanOptions::default()).unwrap().check_importance(|_| false).unwrap_err();
    assert!(error.hint.unwrap().contains("--calib") && error.tensor.unwrap().starts_with("blk.0."));
}
