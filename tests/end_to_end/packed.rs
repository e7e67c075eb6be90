//! GPTQ and AWQ folders: written, read back, measured.

use crate::support::{Work, edit_json, read_safetensors};
use serde_json::{Value, json};
use std::fs;

fn config(work: &Work, folder: &str) -> Value {
    serde_json::from_slice(&fs::read(work.path(folder).join("config.json")).unwrap()).unwrap()
}

fn perplexity(work: &Work, model: &str) -> f64 {
    let document = work.json(&format!("eval {model} --ppl builtin --ctx 128 --limit 4"));
    document["perplexity"][0]["ppl"].as_f64().unwrap()
}

#[test]
fn folders_are_written_and_read_back() {
    let work = Work::new();
    let dense = perplexity(&work, "demo");
    // Target, its codec when read, bits per weight of the linear layers at most, perplexity relative to the dense model's at most.
    for (target, method, codec, ratio) in [
        ("gptq:4bit-g32", "rtn", "int4-g32-f16", 1.10),
        ("gptq:4bit-g128", "gptq", "int4-g128-f16", 1.10),
        ("gptq:3bit-g64-asym", "awq+gptq", "int3-g64-f16", 1.25),
        ("gptq:8bit-g128", "rtn", "int8-g128-f16", 1.01),
        ("gptq:2bit-g32", "gptq", "int2-g32-f16", 2.5),
        ("awq:4bit-g64", "awq", "int4-g64-f16", 1.10),
        ("awq:4bit-g32", "awq+gptq", "int4-g32-f16", 1.10),
    ] {
        let out = target.replace(':', "-");
        work.ok(&format!("quantize demo --to {target} --method {method} --samples 8 --ctx 128 -o {out}"));
        let document = work.json(&format!("inspect {out}"));
        assert_eq!(document["container"], "packed", "{target}");
        for t in document["tensors"].as_array().unwrap() {
            let matrix = t["shape"].as_array().unwrap().len() == 2 && t["role"].as_str().unwrap().starts_with("blk.");
            let float = if target.starts_with("awq") { "f16" } else { "bf16" };
            assert_eq!(t["codec"], if matrix { codec } else { float }, "{target}: {t}");
        }
        let found = perplexity(&work, &out) / dense;
        assert!(found > 0.98 && found < ratio, "{target} {method}: {found}");
        let text = work.json(&format!("generate {out} -p The -n 3"));
        assert_eq!(text["tokens"].as_array().unwrap().len(), 3);
        // What is quantized already is not quantized again unasked.
        assert!(work.fails(&format!("quantize {out} --to gguf:q4_0 -o x.gguf"), 69)["hint"].is_string());
    }
    let gptq = config(&work, "gptq-4bit-g32")["quantization_config"].clone();
    let known =
        ["bits", "group_size", "sym", "desc_act", "checkpoint_format", "quant_method", "lm_head"].map(|k| gptq[k].clone());
    assert_eq!(json!(known), json!([4, 32, true, false, "gptq", "gptq", false]));
    assert_eq!(config(&work, "gptq-3bit-g64-asym")["quantization_config"]["checkpoint_format"], "gptq_v2");
    let awq = config(&work, "awq-4bit-g32");
    let known =
        ["bits", "group_size", "zero_point", "version", "modules_to_not_convert"].map(|k| awq["quantization_config"][k].clone());
    assert_eq!(json!(known), json!([4, 32, true, "gemm", null]));
    assert_eq!(awq["torch_dtype"], "float16");
    let (header, _) = read_safetensors(&work.path("gptq-4bit-g32/model.safetensors"));
    let plane = |name: &str| {
        let t = &header[&format!("model.layers.0.mlp.down_proj.{name}")];
        json!([t["dtype"], t["shape"]])
    };
    // 256 rows of 768 weights.
    assert_eq!(plane("qweight"), json!(["I32", [96, 256]]));
    assert_eq!(plane("qzeros"), json!(["I32", [24, 32]]));
    assert_eq!(plane("scales"), json!(["F16", [24, 256]]));
    assert_eq!(plane("g_idx"), json!(["I32", [768]]));
    assert!(header.keys().all(|k| !k.contains("_proj.weight")));
}

#[test]
fn exceptions_are_named_in_the_configuration() {
    let work = Work::new();
    let types = "--tensor-type blk.0.attn_v=int8-g64-f16-sym --tensor-type ffn_up=bf16";
    work.ok(&format!("quantize demo --to gptq:4bit-g32 --method rtn {types} -o g"));
    let rules = config(&work, "g")["quantization_config"]["dynamic"].clone();
    assert_eq!(rules["+:^model\\.layers\\.0\\.self_attn\\.v_proj$"], json!({ "bits": 8, "group_size": 64, "sym": true }));
    assert_eq!(rules["-:^model\\.layers\\.2\\.mlp\\.up_proj$"], json!({}));
    assert_eq!(rules.as_object().unwrap().len(), 4);
    let document = work.json("inspect g");
    let codec = |role: &str| {
        let tensors = document["tensors"].as_array().unwrap();
        tensors.iter().find(|t| t["role"] == role).unwrap()["codec"].as_str().unwrap().to_string()
    };
    let found = ["blk.0.attn_v.weight", "blk.1.attn_v.weight", "blk.1.ffn_up.weight"].map(codec);
    assert_eq!(found, ["int8-g64-f16", "int4-g32-f16", "bf16"]);
    work.ok("quantize demo --to awq:4bit --method rtn --tensor-type blk.1.attn_q=f16 -o a");
    assert_eq!(config(&work, "a")["quantization_config"]["modules_to_not_convert"], json!(["model.layers.1.self_attn.q_proj"]));
    work.ok("inspect a");

    // What the formats cannot hold, and configurations that lie.
    work.fails("quantize demo --to awq:4bit --method rtn --tensor-type attn_q=int4-g32-f16 -o x", 69);
    work.fails("quantize demo --to gptq:4bit --method rtn --tensor-type attn_q=q4_0 -o x", 69);
    work.fails("quantize demo --to gptq:4bit --method rtn --tensor-type token_embd=int4-g128-f16-sym -o x", 69);
    let mut lie = config(&work, "a")["quantization_config"].clone();
    lie["group_size"] = json!(64);
    edit_json(&work.path("a/config.json"), "quantization_config", lie);
    let error = work.fails("eval a --ppl builtin --limit 1", 65);
    assert!(error["tensor"].as_str().unwrap().ends_with(".qzeros") && error["hint"].is_string(), "{error}");
}
