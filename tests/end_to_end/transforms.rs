//! Transforms: what they leave alone, what they change, and what they refuse.

use crate::support::{Work, edit_json};
use crate::tiny::{LLAMA, QWEN2};
use serde_json::{Value, json};

const CALIBRATION: &str = "--samples 4 --ctx 128";

/// Mean KL divergence of an artifact from its source.
fn kld(work: &Work, artifact: &str, source: &str) -> f64 {
    let eval = work.json(&format!("eval {artifact} --kld builtin --against {source} --ctx 128 --limit 2"));
    eval["kld"][0]["mean"].as_f64().unwrap()
}

fn config(work: &Work, folder: &str) -> Value {
    serde_json::from_slice(&std::fs::read(work.path(folder).join("config.json")).unwrap()).unwrap()
}

#[test]
fn a_rotated_model_is_a_plain_one_of_the_same_function() {
    let work = Work::new();
    for (method, out) in [("rotate", "a"), ("rotate-random", "b"), ("rotate+smooth+rtn", "c")] {
        work.ok(&format!("quantize demo --method {method} {CALIBRATION} --to gguf:f32,mlx:f32 -o {out}/"));
        for name in ["bitsmith-demo-F32.gguf", "bitsmith-demo-f32"] {
            let loss = kld(&work, &format!("{out}/{name}"), "demo");
            assert!(loss.abs() < 1e-6, "{method}, {name}: {loss}");
        }
        // The demo's output matrix is its embedding; a rotated one's is not.
        assert_eq!(config(&work, &format!("{out}/bitsmith-demo-f32"))["tie_word_embeddings"], false);
        let tensors = work.json(&format!("inspect {out}/bitsmith-demo-F32.gguf --tensors"))["tensors"].clone();
        let names: Vec<&str> = tensors.as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
        assert!(names.contains(&"output.weight") && names.contains(&"token_embd.weight"));
        // Held against the source as it was rotated.
        work.ok(&format!("verify {out}/bitsmith-demo-F32.gguf --source demo"));
        work.ok(&format!("verify {out}/bitsmith-demo-f32 --source demo"));
    }
    // A later quantization starts from it as from any model.
    work.ok("quantize a/bitsmith-demo-F32.gguf --method rtn --to mlx:8bit -o again");
    assert!(kld(&work, "again", "demo") < 1e-2);
}

#[test]
fn rotations_compose_with_everything_in_every_container() {
    let work = Work::new();
    LLAMA.write(&work, "model");
    for (target, name) in [("gguf:q4_0", "r.gguf"), ("mlx:4bit", "r-mlx"), ("gptq:4bit-g32", "r-gptq")] {
        work.ok(&format!("quantize model --method rtn {CALIBRATION} --to {target} -o plain-{name}"));
        let plain = kld(&work, &format!("plain-{name}"), "model");
        for method in ["rotate+rtn", "rotate+awq+gptq"] {
            let document = work.json(&format!("quantize model --method {method} {CALIBRATION} --to {target} -o {name}"));
            assert_eq!(document["artifacts"][0]["method"], method);
            work.ok(&format!("verify {name} --source model"));
            let loss = kld(&work, name, "model");
            // Uniform random weights suit a grid best as they are; turned, they are normal, with some farther out. Another function
            // would lose far more.
            assert!(loss < 5.0 * plain, "{method} {target}: {loss} {plain}");
        }
    }
}

#[test]
fn seeds_belong_to_the_recipe() {
    let work = Work::new();
    LLAMA.write(&work, "model");
    let run = |more: &str| {
        let document = work.json(&format!("quantize model --method rotate+gptq {CALIBRATION} --to gguf:q4_0 -o r.gguf {more}"));
        let artifact = &document["artifacts"][0];
        (artifact["sha256"].as_str().unwrap().to_string(), artifact["reused"].as_bool().unwrap())
    };
    let (first, _) = run("--threads 1");
    assert_eq!(run("--threads 2"), (first.clone(), true));
    let (second, reused) = run("--seed 1");
    assert!(second != first && !reused);
    work.ok("verify r.gguf --source model");
    assert_eq!(run("--threads 2"), (first, false));
    // Unrotated models have no seed.
    work.ok("quantize model --method rtn --to gguf:q4_0 -o plain.gguf");
    let document = work.json("quantize model --method rtn --to gguf:q4_0 -o plain.gguf --seed 5");
    assert_eq!(document["artifacts"][0]["reused"], true);
}

/// And `verify` finds out where each channel went.
#[test]
fn reordered_channels_compute_the_same() {
    let work = Work::new();
    work.ok("quantize demo --method rtn --to gguf:f32 -o plain.gguf");
    let bytes = |name: &str| std::fs::read(work.path(name)).unwrap();
    for (method, name) in [("reorder", "a"), ("rotate+reorder+awq", "b")] {
        work.ok(&format!("quantize demo --method {method} {CALIBRATION} --to gguf:f32 -o {name}.gguf"));
        assert!(bytes(&format!("{name}.gguf")) != bytes("plain.gguf"));
        assert!(kld(&work, &format!("{name}.gguf"), "demo").abs() < 1e-6, "{method}");
        work.ok(&format!("verify {name}.gguf --source demo"));
    }
    // Without a manifest, the weights show it.
    std::fs::copy(work.path("a.gguf"), work.path("alone.gguf")).unwrap();
    work.ok("verify alone.gguf --source demo");
    LLAMA.write(&work, "model");
    for (target, name) in [("gguf:q4_0", "r.gguf"), ("mlx:4bit", "r-mlx"), ("gptq:4bit-g32", "r-gptq")] {
        work.ok(&format!("quantize model --method rtn --to {target} -o plain-{name}"));
        work.ok(&format!("quantize model --method reorder+awq+qep+gptq {CALIBRATION} --to {target} -o {name}"));
        work.ok(&format!("verify {name} --source model"));
        let (plain, ours) = (kld(&work, &format!("plain-{name}"), "model"), kld(&work, name, "model"));
        assert!(ours < 0.9 * plain, "{target}: {ours} {plain}");
    }
}

#[test]
fn what_cannot_be_rotated_is_refused() {
    let work = Work::new();
    let gemma = work.checkpoint("gemma");
    edit_json(&gemma.join("config.json"), "model_type", json!("gemma"));
    edit_json(&gemma.join("config.json"), "hidden_act", json!("gelu_pytorch_tanh"));
    let error = work.fails("quantize gemma --method rotate+gptq --to gguf:q4_0 -o x.gguf", 69);
    assert!(error["message"].as_str().unwrap().contains("`gemma` cannot be rotated"), "{error}");
    work.ok("calibrate demo --samples 2 --ctx 64 -o demo.stats");
    let error = work.fails("quantize demo --method rotate+gptq --stats demo.stats --to gguf:q4_0 -o x.gguf", 2);
    assert!(error["hint"].as_str().unwrap().contains("--calib"), "{error}");
    work.fails("quantize demo --method awq+rotate+gptq --to gguf:q4_0 -o x.gguf", 2);
}

#[test]
fn biases_take_up_the_mean_error() {
    let work = Work::new();
    QWEN2.write(&work, "model");
    let mut losses = Vec::new();
    for method in ["reference", "bias+reference", "smooth+bias+rtn"] {
        work.ok(&format!("quantize model --method {method} {CALIBRATION} --calib builtin --pure --to gguf:q4_0 -o m.gguf"));
        losses.push(kld(&work, "m.gguf", "model"));
        work.ok("verify m.gguf --source model");
    }
    assert!(losses[1] < losses[0], "{losses:?}");
    // With full precision there is nothing to correct.
    work.ok(&format!("quantize model --method bias+smooth {CALIBRATION} --to gguf:f32 -o f.gguf"));
    assert!(kld(&work, "f.gguf", "model").abs() < 1e-6);
}

#[test]
fn methods_tell_what_transforms_touch() {
    let work = Work::new();
    let methods = work.json("methods");
    let roles = |name: &str| -> Vec<String> {
        let of = |t: &&Value| t["name"] == name;
        let transform = methods["transforms"].as_array().unwrap().iter().find(of).unwrap();
        serde_json::from_value(transform["roles"].clone()).unwrap()
    };
    assert!(roles("rotate").contains(&"token_embd".to_string()) && roles("bias").iter().all(|r| r.ends_with(".bias")));
    assert!(work.ok("methods").out.contains("smooth changes attn_norm"));
}
