//! Conversions of models that are quantized already.

use crate::support::{Ended, Work, read_safetensors};
use bitsmith_formats::sha256_bytes;
use serde_json::Value;
use std::collections::BTreeMap;

/// The codecs of the tensors, and their errors against a source, by role.
fn against(work: &Work, artifact: &str, source: &str) -> Vec<(String, String, f64)> {
    let document = work.json(&format!("verify {artifact} --source {source}"));
    let tensors = document["tensors"].as_array().unwrap().iter();
    let text = |v: &Value| v.as_str().unwrap().to_string();
    let one = |t: &Value| (text(&t["name"]), text(&t["codec"]), t["rel_rmse"].as_f64().unwrap());
    tensors.map(one).collect()
}

fn in_layers(list: &[(String, String, f64)]) -> impl Iterator<Item = &(String, String, f64)> {
    list.iter().filter(|t| t.1 != "f32" && t.1 != "f16" && t.1 != "bf16" && t.0.contains(['0', '1', '2']))
}

/// Hashes of the tensors that hold quantized weights.
fn planes(work: &Work, folder: &str) -> BTreeMap<String, String> {
    let (header, data) = read_safetensors(&work.path(&format!("{folder}/model.safetensors")));
    let plane = |name: &str, info: &Value| {
        let at = |i: usize| info["data_offsets"][i].as_u64().unwrap() as usize;
        (name.to_string(), sha256_bytes(&data[at(0)..at(1)]))
    };
    let dense =
        |info: &Value| ["F32", "F16", "BF16"].iter().any(|t| info["dtype"] == *t) && info["shape"].as_array().unwrap().len() == 1;
    let packed = header.iter().filter(|(name, info)| !name.starts_with("__") && !name.contains("embed") && !dense(info));
    packed.map(|(name, info)| plane(name, info)).collect()
}

fn says(ended: &Ended, words: &[&str]) {
    assert!(words.iter().all(|w| ended.err.contains(w)), "{words:?}: {}", ended.err);
}

#[test]
fn grids_that_coincide_are_kept() {
    let work = Work::new();
    work.ok(
        "quantize demo --to gptq:4bit-g32,gptq:8bit-g64,awq:4bit-g32,mlx:4bit,mlx:5bit-g32,mlx:mxfp4,mlx:nvfp4 --method rtn -o q",
    );
    for (source, target, codec, loss) in [
        ("gptq-4bit-g32", "gguf:q4_0", "q4_0", 0.0),
        ("gptq-8bit-g64", "gguf:q8_0", "q8_0", 0.0),
        ("gptq-4bit-g32", "mlx:4bit-g32", "mlx-4bit-g32-f16", 0.0),
        ("awq-4bit-g32", "mlx:4bit-g32", "mlx-4bit-g32-f16", 1e-3),
        ("awq-4bit-g32", "gguf:q4_1", "q4_1", 1e-3),
        ("mlx-4bit", "gguf:q4_1", "q4_1", 0.0),
        ("mlx-5bit-g32", "gguf:q5_1", "q5_1", 0.0),
        ("mlx-mxfp4", "gguf:mxfp4", "mxfp4", 0.0),
        ("mlx-nvfp4", "gguf:nvfp4", "nvfp4", 0.0),
    ] {
        let source = match source.strip_prefix("mlx-") {
            Some(rest) => format!("q/bitsmith-demo-{rest}"),
            None => format!("q/bitsmith-demo-{source}"),
        };
        let out = format!("{}.{}", target.replace(':', "-"), if target.starts_with("gguf") { "gguf" } else { "mlx" });
        let ended = work.ok(&format!("convert {source} --to {target} -o {out}"));
        says(&ended, &[if loss == 0.0 { "kept without loss" } else { "of a step" }, codec]);
        let found = against(&work, &out, &source);
        assert!(in_layers(&found).count() >= 21, "{found:?}");
        for (name, held, error) in in_layers(&found) {
            assert!(held == codec && *error <= loss, "{source} to {target}: {name} {held} {error}");
        }
        assert!(loss == 0.0 || in_layers(&found).any(|t| t.2 > 0.0));
    }
}

#[test]
fn everything_is_kept_where_it_has_a_home() {
    let work = Work::new();
    work.ok("quantize demo --to gptq:4bit-g64,awq:4bit-g128,mlx:4bit --method rtn -o q");
    // The narrowest format that has the grid, and dense tensors as they are.
    for (source, target, codec) in [
        ("gptq-4bit-g64", "gguf:keep", "q4_0"),
        ("awq-4bit-g128", "mlx:keep", "mlx-4bit-g128-f16"),
        ("gptq-4bit-g64", "mlx:keep", "mlx-4bit-g64-f16"),
        ("4bit", "gguf:keep", "q4_1"),
    ] {
        let out = format!("{source}-{}{}", &target[..4], if target.starts_with("gguf") { ".gguf" } else { "" });
        work.ok(&format!("convert q/bitsmith-demo-{source} --to {target} -o {out}"));
        let found = against(&work, &out, &format!("q/bitsmith-demo-{source}"));
        assert_eq!(found.iter().filter(|t| t.1 == codec).count(), if source == "4bit" { 22 } else { 21 }, "{found:?}");
        assert!(found.iter().all(|t| t.2 < 1e-3), "{found:?}");
    }
    // There and back: the same values in the same planes.
    for (source, there, again) in [
        ("gptq-4bit-g64", "gptq-4bit-g64-mlx:", "gptq:keep"),
        ("gptq-4bit-g64", "gptq-4bit-g64-gguf.gguf", "gptq:keep"),
        ("awq-4bit-g128", "awq-4bit-g128-mlx:", "awq:keep"),
        ("4bit", "4bit-gguf.gguf", "mlx:keep"),
    ] {
        let out = format!("{source}-from-{there}");
        work.ok(&format!("convert {there} --to {again} -o {out}"));
        let (old, new) = (planes(&work, &format!("q/bitsmith-demo-{source}")), planes(&work, &out));
        assert!(old.len() >= 63 && old == new, "{out}: {:?}", old.keys().zip(new.keys()).find(|(a, b)| a != b));
    }
    // Formats that nothing could be quantized to without importance.
    work.ok("quantize demo --to gguf:iq2_xxs --method reference --samples 2 --ctx 64 --calib builtin -o low.gguf");
    work.ok("convert low.gguf --to gguf:iq2_xxs -o again.gguf");
    assert!(against(&work, "again.gguf", "low.gguf").iter().all(|t| t.2 == 0.0));
    // Nothing is quantized, so that there is nothing but plain numbers to keep.
    work.ok("convert demo --to gguf:keep -o dense.gguf");
    assert!(against(&work, "dense.gguf", "demo").iter().all(|t| t.2 == 0.0));
    assert_eq!(work.fails("convert demo --to awq:keep -o x", 69)["kind"], "unsupported");
    assert!(work.fails("quantize demo --to mlx:keep -o x", 2)["hint"].as_str().unwrap().contains("convert"));
}

#[test]
fn small_floats_change_homes() {
    let work = Work::new();
    work.ok("quantize demo --to mlx:mxfp4,mlx:nvfp4,compressed:nvfp4,compressed:fp8 --method rtn -o q");
    let chain = |source: &str, targets: &[&str]| {
        let mut at = format!("q/bitsmith-demo-{source}");
        for (i, target) in targets.iter().enumerate() {
            let out = format!("{source}-{i}{}", if target.starts_with("gguf") { ".gguf" } else { "" });
            let ended = work.ok(&format!("convert {at} --to {target} -o {out}"));
            says(&ended, &["kept without loss"]);
            at = out;
        }
        let (old, new) = (planes(&work, &format!("q/bitsmith-demo-{source}")), planes(&work, &at));
        assert!(old.len() >= 42 && old == new, "{source}: {:?}", old.keys().zip(new.keys()).find(|(a, b)| a != b));
    };
    chain("mxfp4", &["gguf:mxfp4", "mlx:keep"]);
    chain("nvfp4", &["gguf:keep", "mlx:nvfp4"]);
    chain("compressed-nvfp4", &["gguf:nvfp4", "modelopt:nvfp4", "compressed:keep"]);
    chain("compressed-fp8", &["compressed:keep"]);
    // MLX has no scale for a whole tensor.
    let refused = work.fails("convert q/bitsmith-demo-compressed-nvfp4 --to mlx:nvfp4 -o x", 69);
    assert!(refused["message"].as_str().unwrap().contains("the scale"), "{refused}");
    work.ok("convert q/bitsmith-demo-compressed-nvfp4 --to mlx:nvfp4 -o x --allow-requantize");
    // Models are released in FP8, to be quantized further.
    let ended = work.ok("convert q/bitsmith-demo-compressed-fp8 --to gguf:q4_k_m -o y.gguf");
    says(&ended, &["18 tensors are decoded from fp8-g256-bf16"]);
    assert!(!ended.err.contains("warning"), "{}", ended.err);
}

#[test]
fn a_second_quantization_is_allowed_or_refused() {
    let work = Work::new();
    work.ok("quantize demo --to awq:4bit-g32 --method rtn -o awq");
    let refused = work.fails("convert awq --to gguf:q4_k_m -o x.gguf", 69);
    assert!(refused["message"].as_str().unwrap().contains("second time"), "{refused}");
    assert!(refused["hint"].as_str().unwrap().contains("--allow-requantize") && refused["tensor"].is_string());
    // The formats may coincide, but these groups do not.
    let refused = work.fails("convert awq --to gguf:q4_0 -o x.gguf", 69);
    assert!(refused["message"].as_str().unwrap().contains("no place in q4_0"), "{refused}");
    assert!(work.names(".").iter().all(|n| !n.starts_with("x.gguf") && !n.starts_with(".x")), "{:?}", work.names("."));
    let checked = work.json("check awq --to gguf:q4_1");
    assert_eq!(checked["ok"], true);
    assert_eq!(work.call("--json check awq --to gguf:q4_k_m").json()["ok"], false);

    let ended = work.ok("convert awq --to gguf:q4_k_m -o a.gguf --allow-requantize");
    says(&ended, &["warning", "a second time", "relative error"]);
    let ended = work.ok("convert awq --to gguf:q4_0 -o b.gguf --allow-requantize");
    says(&ended, &["warning", "% of the weights", "no place in q4_0"]);
    let ended = work.ok("quantize awq --to gguf:q4_k_m -o c.gguf --method gptq --samples 4 --ctx 64 --allow-requantize");
    says(&ended, &["warning", "a second time", "relative error"]);
    // Decoding is no quantization.
    let ended = work.ok("convert awq --to gguf:f32 -o d.gguf");
    says(&ended, &["decoded from int4-g32-f16 to f32 without loss"]);
    assert!(against(&work, "d.gguf", "awq").iter().all(|t| t.2 == 0.0));
    let ended = work.ok("convert awq --to gguf:bf16 -o e.gguf");
    says(&ended, &["decoded from int4-g32-f16 to bf16, rounding error 0.1"]);
}
