//! Types of caches: `generate --kv`, `eval --kv` and `serve --kv`.

use crate::support::Work;
use crate::tiny::LLAMA;
use serde_json::Value;

const TYPES: [&str; 5] = ["f32", "f16", "q8_0", "fp8", "q4_0"];

#[test]
fn text_is_generated_over_every_type() {
    let work = Work::new();
    let tokens = |more: &str| {
        let generation = work.json(&format!("generate demo -p Once -n 90 {more}"));
        generation["tokens"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap()).collect::<Vec<_>>()
    };
    let exact = tokens("");
    assert!(exact.len() > 20);
    for kind in TYPES {
        let got = tokens(&format!("--kv {kind} --threads 1"));
        assert_eq!(got, tokens(&format!("--kv {kind} --threads 3")), "{kind}");
        // The first token depends on the prompt alone, the first ones on little.
        assert_eq!(got[..2], exact[..2], "{kind}");
        assert!(kind != "f32" || got == exact);
    }
}

#[test]
fn what_a_type_costs_is_measured() {
    let work = Work::new();
    let eval =
        |more: &str| work.json(&format!("eval demo --ppl builtin --kld builtin --against demo --ctx 128 --limit 4 {more}"));
    let kld = |document: &Value| document["kld"][0]["mean"].as_f64().unwrap();
    let ppl = |document: &Value| document["perplexity"][0]["ppl"].as_f64().unwrap();
    let exact = eval("");
    assert_eq!((exact.get("kv"), kld(&exact), &exact), (None, 0.0, &eval("--kv f32")));
    let mut before = 0.0;
    for kind in ["f16", "q8_0", "fp8", "q4_0"] {
        let document = eval(&format!("--kv {kind}"));
        assert_eq!(document["kv"], kind);
        assert!(kld(&document) > 2.0 * before && kld(&document) < 0.05, "{kind}: {} after {before}", kld(&document));
        assert!((ppl(&document) / ppl(&exact) - 1.0).abs() < 0.05, "{kind}");
        before = kld(&document);
    }
    let alone = work.json("eval demo --ppl builtin --ctx 128 --limit 4 --kv q4_0");
    assert_eq!(ppl(&alone), ppl(&eval("--kv q4_0")));
    assert!(work.ok("eval demo --ppl builtin --limit 1 --kv q4_0").out.contains("q4_0"));
}

#[test]
fn other_types_and_heads_are_refused() {
    let work = Work::new();
    LLAMA.with_heads(40).write(&work, "model");
    for command in ["generate demo -p a", "serve demo --port 0", "eval demo --ppl builtin"] {
        let ended = work.call(&format!("{command} --kv q5_0"));
        assert_eq!(ended.code, Some(2));
        assert!(TYPES.iter().all(|kind| ended.err.contains(kind)), "{}", ended.err);
    }
    for command in ["generate model -p a -n 2", "serve model --port 0", "eval model --ppl builtin --ctx 32 --limit 1"] {
        for kind in ["q8_0", "q4_0"] {
            let error = work.fails(&format!("{command} --kv {kind}"), 2);
            assert!(error["message"].as_str().unwrap().contains("heads have 40"), "{error}");
            assert!(error["hint"].as_str().unwrap().contains("fp8"), "{error}");
        }
    }
    for kind in ["f16", "fp8"] {
        work.ok(&format!("generate model -p a -n 2 --kv {kind}"));
        work.ok(&format!("eval model --ppl builtin --ctx 32 --limit 1 --kv {kind}"));
    }
}
