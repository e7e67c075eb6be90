//! Where solvers take their statistics from, and the formats of single tensors.

use crate::support::{Work, read_safetensors};
use crate::tiny::{LLAMA, MISTRAL, QWEN3};
use serde_json::Value;
use std::collections::BTreeSet;

/// A power of two of tokens, so that means of f32 sums are exact.
const CALIBRATION: &str = "--calib notes.txt --samples 4 --ctx 128";

fn notes(work: &Work) {
    let text: String = (0..600).map(|i| format!("Line {i}: {} sheep, {} goats.\n", i * i % 97, i * 31 % 89)).collect();
    work.write("notes.txt", text);
}

fn sha(work: &Work, line: &str) -> String {
    work.json(line)["artifacts"][0]["sha256"].as_str().unwrap().to_string()
}

#[test]
fn an_importance_matrix_stands_for_its_text() {
    let work = Work::new();
    notes(&work);
    // The output matrix of the first is its embedding, which an importance matrix does not cover: Q8_0 needs none.
    for (family, more) in [(LLAMA, "--tensor-type token_embd=q8_0"), (MISTRAL, ""), (QWEN3, "")] {
        let name = family.name;
        family.write(&work, name);
        work.ok(&format!("calibrate {name} --imatrix {name}.imatrix {CALIBRATION}"));
        for target in ["gguf:q4_k_m", "gguf:q4_0"] {
            let line = |evidence: &str, out: &str| {
                sha(&work, &format!("quantize {name} --to {target} --method reference {evidence} {more} -o {out}.gguf"))
            };
            let by_text = line(CALIBRATION, "a");
            assert_eq!(line(&format!("--imatrix {name}.imatrix"), "b"), by_text, "{name} {target}");
            assert_ne!(line("", "c"), by_text, "{name} {target}: importance matters");
        }
    }
    // Of another model.
    let error = work.fails("quantize qwen3 --to gguf:q4_0 --method reference --imatrix notes.txt -o x.gguf", 65);
    assert_eq!(error["file"], "notes.txt");
    work.fails("quantize qwen3 --to gguf:q4_0 --method reference --imatrix none.gguf -o x.gguf", 66);
    work.ok("calibrate demo --imatrix demo.imatrix --samples 2 --ctx 64");
    let error = work.fails("quantize qwen3 --to gguf:q4_0 --method reference --imatrix demo.imatrix -o x.gguf", 65);
    assert_eq!(error["file"], "demo.imatrix");
    assert!(error["tensor"].is_string(), "{error}");
    work.fails("quantize qwen3 --to gguf:q4_0 --method gptq --imatrix qwen3.imatrix -o x.gguf", 2);
    work.fails("quantize qwen3 --to gguf:q4_0 --method reference --imatrix qwen3.imatrix --calib notes.txt -o x.gguf", 2);
    assert!(!work.path("x.gguf").exists());
}

#[test]
fn statistics_stand_for_their_text() {
    let work = Work::new();
    notes(&work);
    LLAMA.write(&work, "model");
    work.ok(&format!("calibrate model -o model.stats {CALIBRATION}"));
    for (target, method) in [("gguf:q4_k_m", "gptq"), ("gguf:q4_k_m", "reference"), ("mlx:4bit", "awq+gptq"), ("mlx:4bit", "awq")]
    {
        let line = |evidence: &str, out: &str| {
            sha(&work, &format!("quantize model --to {target} --method {method} {evidence} -o {out}-{method}/"))
        };
        let independent = line(&format!("{CALIBRATION} --independent"), "a");
        assert_eq!(line("--stats model.stats", "b"), independent, "{target} {method}");
        let sequential = line(CALIBRATION, "c");
        assert_eq!(sequential == independent, !method.contains("gptq"), "{target} {method}");
    }
    MISTRAL.write(&work, "other");
    let error = work.fails("quantize other --to gguf:q4_0 --method gptq --stats model.stats -o x.gguf", 65);
    assert_eq!(error["file"], "model.stats");
    assert!(!work.path("x.gguf").exists());
}

#[test]
fn rows_that_do_not_fit() {
    let work = Work::new();
    LLAMA.write(&work, "model");
    let codecs = |path: &str| {
        let document = work.json(&format!("inspect {path}"));
        move |role: &str| {
            let tensors = document["tensors"].as_array().unwrap();
            tensors.iter().find(|t| t["role"] == role).unwrap_or_else(|| panic!("no {role}"))["codec"]
                .as_str()
                .unwrap()
                .to_string()
        }
    };
    // As llama-quantize falls back, and it is said.
    let made = work.call("--json quantize model --to gguf:q4_k_m --method rtn -o f.gguf");
    assert_eq!(made.code, Some(0), "{}", made.err);
    let notes = made.json()["artifacts"][0]["notes"].to_string();
    let said = "attn_q (2 tensors): q5_0 instead of q4_k";
    assert!(notes.contains(said) && made.err.contains(said), "{notes}\n{}", made.err);
    let codec = codecs("f.gguf");
    assert_eq!((codec("blk.0.attn_q.weight"), codec("token_embd.weight")), ("q5_0".into(), "q8_0".into()));
    assert!(["q4_k", "q6_k"].contains(&codec("blk.0.ffn_down.weight").as_str()));

    let error = work.fails("quantize model --to gguf:q4_k_m --method rtn --no-fallback -o n.gguf", 69);
    assert!(error["tensor"].is_string() && error["message"].as_str().unwrap().contains("128"), "{error}");
    work.fails("quantize model --to gguf:q8_0 --method rtn --tensor-type attn_q=q4_k --no-fallback -o n.gguf", 69);
    assert!(work.names("").iter().all(|n| !n.contains("n.gguf")), "{:?}", work.names(""));

    work.ok("quantize model --to gguf:q4_0 --method rtn --pure -o p.gguf --no-fallback");
    let document = work.json("inspect p.gguf");
    let all: Vec<&Value> = document["tensors"].as_array().unwrap().iter().map(|t| &t["codec"]).collect();
    assert!(all.iter().all(|c| *c == "q4_0" || *c == "f32"), "{all:?}");

    work.ok("quantize model --to gguf:q4_0 --method rtn --tensor-type ffn_down=f16 --tensor-type blk.1.attn_v=q6_k -o t.gguf");
    let codec = codecs("t.gguf");
    assert_eq!(codec("blk.0.ffn_down.weight"), "f16");
    // Overrides fall back like presets' choices.
    assert_eq!((codec("blk.0.attn_v.weight"), codec("blk.1.attn_v.weight")), ("q4_0".into(), "q8_0".into()));
    work.ok("quantize model --to mlx:4bit --method rtn --tensor-type ffn_down=mlx-8bit --mlx-dtype f16 -o t-mlx");
    let codec = codecs("t-mlx");
    assert!(codec("blk.0.ffn_down.weight").starts_with("mlx-8bit"));
    assert!(codec("blk.0.ffn_up.weight").starts_with("mlx-4bit"));
    let (header, _) = read_safetensors(&work.path("t-mlx/model.safetensors"));
    let types: BTreeSet<&str> = header.values().filter_map(|t| t["dtype"].as_str()).collect();
    assert_eq!(types, BTreeSet::from(["F16", "U32"]), "one type for all scales");
    work.ok("generate t-mlx -p x -n 2");
    // One quantized tensor among dense ones gets its calibration, too.
    let one = "quantize model --to mlx:bf16 --tensor-type ffn_down=mlx-4bit --samples 2 --ctx 64";
    assert_ne!(sha(&work, &format!("{one} --method gptq -o g-mlx")), sha(&work, &format!("{one} --method rtn -o r-mlx")));
    // What the container does not have is refused before any work.
    for line in ["--to gguf:q4_0 --tensor-type ffn_down=mlx-8bit -o w/x.gguf", "--to mlx:4bit --tensor-type ffn_down=q4_k -o w/x"]
    {
        let error = work.fails(&format!("quantize model {line}"), 69);
        assert_eq!(error["tensor"], "blk.0.ffn_down.weight", "{line}");
        assert!(work.names("w").is_empty(), "{line}: {:?}", work.names("w"));
    }
    for bad in ["--tensor-type blk.9.attn_v=q8_0", "--tensor-type attn_v=q9", "--tensor-type =q8_0"] {
        let ended = work.call(&format!("quantize model --to gguf:q4_0 --method rtn {bad} -o x.gguf"));
        assert!(matches!(ended.code, Some(2 | 69)), "{bad}: {:?} {}", ended.code, ended.err);
    }
}
