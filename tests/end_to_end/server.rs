//! Folders in the layouts of compressed-tensors and ModelOpt: written, read back, measured.

use crate::support::{Work, read_safetensors};
use serde_json::{Map, Value, json};
use std::fs;

fn read_json(work: &Work, file: &str) -> Value {
    serde_json::from_slice(&fs::read(work.path(file)).unwrap()).unwrap()
}

fn quantization(work: &Work, folder: &str) -> Value {
    read_json(work, &format!("{folder}/config.json"))["quantization_config"].clone()
}

fn perplexity(work: &Work, model: &str) -> f64 {
    let document = work.json(&format!("eval {model} --ppl builtin --ctx 128 --limit 4"));
    document["perplexity"][0]["ppl"].as_f64().unwrap()
}

/// One F32 number of a safetensors file.
fn number((header, data): &(Map<String, Value>, Vec<u8>), name: &str) -> f32 {
    let at = header[name]["data_offsets"][0].as_u64().unwrap() as usize;
    f32::from_le_bytes(data[at..at + 4].try_into().unwrap())
}

#[test]
fn folders_are_written_and_read_back() {
    let work = Work::new();
    let dense = perplexity(&work, "demo");
    work.write("tokens.json", json!({ "sequences": [[5, 6, 7]] }).to_string());
    // Target, method, codecs of rows of 256 and of 768 weights when read, perplexity relative to the dense model's at most.
    for (target, method, codecs, ratio) in [
        ("compressed:int4-g32", "rtn", ["int4-g32-bf16-sym"; 2], 1.10),
        ("compressed:int4-g128", "awq+gptq", ["int4-g128-bf16-sym"; 2], 1.08),
        ("compressed:int4-g64-asym", "gptq", ["int4-g64-bf16"; 2], 1.08),
        ("compressed:int8", "gptq", ["int8-g256-bf16-sym", "int8-g768-bf16-sym"], 1.01),
        ("compressed:int8", "awq", ["int8-g256-bf16-sym", "int8-g768-bf16-sym"], 1.01),
        ("compressed:int8-g128", "rtn", ["int8-g128-bf16-sym"; 2], 1.01),
        ("compressed:nvfp4", "rtn", ["mlx-nvfp4"; 2], 1.10),
        ("compressed:nvfp4", "awq+gptq", ["mlx-nvfp4"; 2], 1.06),
        ("compressed:fp8", "rtn", ["fp8-g256-bf16", "fp8-g768-bf16"], 1.02),
        ("compressed:fp8", "awq+gptq", ["fp8-g256-bf16", "fp8-g768-bf16"], 1.02),
        ("modelopt:nvfp4", "gptq", ["mlx-nvfp4"; 2], 1.08),
    ] {
        let out = format!("{target}-{method}").replace([':', '+'], "-");
        work.ok(&format!("quantize demo --to {target} --method {method} --samples 8 --ctx 128 -o {out}"));
        let document = work.json(&format!("inspect {out}"));
        assert_eq!(document["container"], "packed", "{target}");
        for t in document["tensors"].as_array().unwrap() {
            let matrix = t["shape"].as_array().unwrap().len() == 2 && t["role"].as_str().unwrap().starts_with("blk.");
            let codec = codecs[usize::from(t["shape"][1] == 768)];
            assert_eq!(t["codec"], if matrix { codec } else { "bf16" }, "{target}: {t}");
        }
        let found = perplexity(&work, &out) / dense;
        assert!(found > 0.98 && found < ratio, "{target} {method}: {found}");
        work.ok(&format!("verify {out} --source demo"));
        assert_eq!(work.json(&format!("generate {out} -p The -n 3"))["tokens"].as_array().unwrap().len(), 3);
        work.json(&format!("logits {out} --tokens tokens.json"));
        let again = work.json(&format!("quantize demo --to {target} --method {method} --samples 8 --ctx 128 -o {out}"));
        assert_eq!(again["artifacts"][0]["reused"], true, "{again}");
    }
}

#[test]
fn configurations_are_the_libraries_own() {
    let work = Work::new();
    work.ok(
        "quantize demo --to compressed:int4,compressed:int8,compressed:fp8,compressed:nvfp4,modelopt:nvfp4 --method rtn -o all",
    );
    let folders = ["int4-g128", "int8", "fp8", "nvfp4"].map(|e| format!("all/bitsmith-demo-compressed-{e}"));
    let known = |folder: &String| {
        let config = quantization(&work, folder);
        let group = &config["config_groups"]["group_0"];
        let weights = ["num_bits", "type", "symmetric", "strategy", "group_size"].map(|k| group["weights"][k].clone());
        let inputs = ["num_bits", "strategy", "dynamic"].map(|k| group["input_activations"][k].clone());
        // The demo's output matrix is its embedding, but loaders make a layer of it.
        assert_eq!((&config["ignore"], &group["targets"]), (&json!(["lm_head"]), &json!(["Linear"])));
        json!([config["format"], weights, inputs])
    };
    let none = json!([null, null, null]);
    assert_eq!(known(&folders[0]), json!(["pack-quantized", [4, "int", true, "group", 128], none]));
    assert_eq!(known(&folders[1]), json!(["pack-quantized", [8, "int", true, "channel", null], none]));
    assert_eq!(known(&folders[2]), json!(["float-quantized", [8, "float", true, "channel", null], [8, "token", true]]));
    assert_eq!(known(&folders[3]), json!(["nvfp4-pack-quantized", [4, "float", true, "tensor_group", 16], none]));
    let modelopt = "all/bitsmith-demo-modelopt-nvfp4";
    let (own, config) = (read_json(&work, &format!("{modelopt}/hf_quant_config.json")), quantization(&work, modelopt));
    assert_eq!((&own["quantization"]["quant_algo"], &own["quantization"]["group_size"]), (&config["quant_algo"], &json!(16)));
    assert_eq!((&own["quantization"]["exclude_modules"], &config["ignore"]), (&json!(["lm_head"]), &json!(["lm_head"])));

    // NVFP4: servers fuse q, k and v, and gate and up; ModelOpt's factor is the reciprocal of compressed-tensors' divisor.
    let compressed = read_safetensors(&work.path(&format!("{}/model.safetensors", folders[3])));
    let factors = read_safetensors(&work.path(&format!("{modelopt}/model.safetensors")));
    let mut seen = Vec::new();
    for layer in 0..3 {
        for fused in
            [&["self_attn.q", "self_attn.k", "self_attn.v"][..], &["mlp.gate", "mlp.up"], &["self_attn.o"], &["mlp.down"]]
        {
            let module = |name: &str| format!("model.layers.{layer}.{name}_proj");
            let divisors: Vec<f32> =
                fused.iter().map(|m| number(&compressed, &format!("{}.weight_global_scale", module(m)))).collect();
            assert!(divisors.iter().all(|d| *d == divisors[0]), "{fused:?} {divisors:?}");
            let factor = number(&factors, &format!("{}.weight_scale_2", module(fused[0])));
            assert_eq!((1.0 / divisors[0], 1.0 / factor), (factor, divisors[0]), "{fused:?}");
            seen.push(divisors[0]);
        }
    }
    seen.sort_by(f32::total_cmp);
    seen.dedup();
    assert!(seen.len() > 3, "each input has a scale of its own: {seen:?}");
    // The same weights in two layouts are the same model.
    assert_eq!(perplexity(&work, modelopt), perplexity(&work, &folders[3]));
    // Calibrated or in one pass, the peer's encoder makes the same planes.
    work.ok("quantize demo --to compressed:nvfp4 --method reference --samples 2 --ctx 64 -o calibrated");
    let calibrated = read_safetensors(&work.path("calibrated/model.safetensors"));
    assert_eq!(calibrated, compressed);
}

#[test]
fn tensors_may_have_formats_of_their_own() {
    let work = Work::new();
    let types =
        "--tensor-type blk.0.attn_v=bf16 --tensor-type ffn_down=fp8-g768-bf16 --tensor-type blk.1.attn_q=int8-g64-bf16-sym";
    work.ok(&format!("quantize demo --to compressed:nvfp4 --method rtn {types} -o mixed"));
    let config = quantization(&work, "mixed");
    assert_eq!(config["ignore"], json!(["model.layers.0.self_attn.v_proj", "lm_head"]));
    assert_eq!((&config["format"], config["config_groups"].as_object().unwrap().len()), (&json!("mixed-precision"), 3));
    let document = work.json("inspect mixed");
    let codec = |role: &str| {
        let tensors = document["tensors"].as_array().unwrap();
        tensors.iter().find(|t| t["role"] == role).unwrap()["codec"].as_str().unwrap().to_string()
    };
    let roles = ["blk.0.attn_v.weight", "blk.1.attn_v.weight", "blk.2.ffn_down.weight", "blk.1.attn_q.weight"];
    assert_eq!(roles.map(codec), ["bf16", "mlx-nvfp4", "fp8-g768-bf16", "int8-g64-bf16-sym"]);
    work.ok("verify mixed --source demo");

    for (target, kind) in [
        ("compressed:int4", "attn_q=q4_0"),
        ("compressed:int4", "attn_q=mlx-4bit-g64"),
        ("compressed:int4", "token_embd=int4-g128-bf16-sym"),
        ("modelopt:nvfp4", "attn_q=int4-g128-bf16-sym"),
        ("gptq:4bit", "attn_q=mlx-nvfp4"),
    ] {
        let error = work.fails(&format!("quantize demo --to {target} --method rtn --tensor-type {kind} -o x"), 69);
        assert!(error["hint"].is_string(), "{target} {kind}: {error}");
    }
    let checked = work.json("check demo --to compressed:int8,compressed:fp8,modelopt:nvfp4");
    assert_eq!(checked["ok"], true, "{checked}");
    work.fails("quantize demo --to compressed:int4-g256 --method rtn -o x", 69);
}
