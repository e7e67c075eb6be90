//! Checkpoint folders: plain ones, and those of all kinds made from a GGUF alone.

use crate::support::{Work, demo, edit_json, read_safetensors};
use crate::tiny::{LLAMA, MISTRAL, QWEN2, QWEN3};
use bitsmith_formats::gguf::{GgufStore, write_gguf};
use bitsmith_formats::{CodecId, EncodedTensor, TensorStore};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

fn read(work: &Work, file: &str) -> Value {
    serde_json::from_slice(&fs::read(work.path(file)).unwrap()).unwrap()
}

#[test]
fn a_checkpoint_comes_back_out_of_a_gguf() {
    let work = Work::new();
    let ids: Vec<u32> = (0..100).map(|i| 3 + i * 37 % 2000).collect();
    work.write("tokens.json", json!({ "sequences": [ids] }).to_string());
    for family in [LLAMA, MISTRAL, QWEN2, QWEN3] {
        let name = family.name;
        family.write(&work, name);
        work.ok(&format!("convert {name} --to gguf:f32 -o {name}.gguf"));
        work.ok(&format!("convert {name}.gguf --to hf:f32 -o {name}-out"));
        work.ok(&format!("convert {name} --to hf:f32 -o {name}-direct"));
        let weights = |folder: &str| fs::read(work.path(folder).join("model.safetensors")).unwrap();
        assert!(weights(&format!("{name}-out")) == weights(&format!("{name}-direct")), "{name}");
        let logits = |model: &str| work.json(&format!("logits {model} --tokens tokens.json --top 20"));
        assert_eq!(logits(&format!("{name}-out")), logits(name), "{name}");
        let (source, made) = (read(&work, &format!("{name}/config.json")), read(&work, &format!("{name}-out/config.json")));
        for key in ["num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "tie_word_embeddings", "vocab_size"] {
            assert_eq!(made[key], source[key], "{name}: {key}");
        }
        assert_eq!(made["rope_scaling"], source.get("rope_scaling").cloned().unwrap_or_default(), "{name}");
        assert_eq!(made["torch_dtype"], "float32");
    }
}

#[test]
fn the_tokenizer_comes_back_out_of_a_gguf() {
    let work = Work::new();
    work.ok("convert demo --to gguf:bf16 -o d.gguf");
    let made = work.json("convert d.gguf --to hf:bf16 --shard-size 2MB -o out/");
    assert_eq!(made["artifacts"][0]["path"], "out/d-hf-bf16");
    let names = work.names("out/d-hf-bf16");
    let others: Vec<&str> = names.iter().map(String::as_str).filter(|n| !n.starts_with("model-0000")).collect();
    assert_eq!(
        others,
        [
            "README.md",
            "bitsmith.json",
            "config.json",
            "generation_config.json",
            "model.safetensors.index.json",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    let config = read(&work, "out/d-hf-bf16/config.json");
    assert_eq!((&config["architectures"], &config["torch_dtype"]), (&json!(["LlamaForCausalLM"]), &json!("bfloat16")));
    let source: Value = serde_json::from_slice(&fs::read(demo().join("tokenizer_config.json")).unwrap()).unwrap();
    let tokenizer = read(&work, "out/d-hf-bf16/tokenizer_config.json");
    for key in ["bos_token", "eos_token", "chat_template"] {
        assert_eq!(tokenizer[key], source[key], "{key}");
    }
    assert_eq!(tokenizer["tokenizer_class"], "PreTrainedTokenizerFast");
    work.write("text.txt", "Hello, world! <s> 1234567\n\n  indented\tText; naïve 東京 🙂</s>");
    for flags in ["", "--special"] {
        let tokens = |model: &str| work.json(&format!("tokenize {model} --file text.txt {flags}"));
        assert_eq!(tokens("out/d-hf-bf16"), tokens("demo"), "{flags}");
    }
    // From there on it is a checkpoint like any other.
    work.ok("convert out/d-hf-bf16 --to gguf:bf16 -o again.gguf");
    let gguf = |name: &str| GgufStore::open(work.path(name)).unwrap();
    let (first, again) = (gguf("d.gguf"), gguf("again.gguf"));
    let keys = |store: &GgufStore| -> Vec<String> {
        let kept = store.metadata().iter().filter(|(k, _)| !k.starts_with("general."));
        kept.map(|(k, v)| format!("{k} {v:?}")).collect()
    };
    assert_eq!(keys(&first), keys(&again));
    for t in first.tensors() {
        assert!(first.bytes(&t.name).unwrap() == again.bytes(&t.name).unwrap(), "{}", t.name);
    }
    assert_eq!(work.json("verify out/d-hf-bf16 --source demo")["ok"], true);
}

#[test]
fn folders_from_a_gguf_have_the_weights_of_those_from_the_checkpoint() {
    let work = Work::new();
    work.ok("convert demo --to gguf:bf16 -o d.gguf");
    let targets = ["mlx:4bit", "mlx:bf16", "mlx:mxfp4", "gptq:4bit-g32", "awq:4bit-g32", "hf:f16"];
    for (model, out) in [("demo", "a"), ("d.gguf", "b")] {
        work.ok(&format!("quantize {model} --to {} --method rtn -o {out}", targets.join(",")));
    }
    let pairs = work.names("a").into_iter().zip(work.names("b"));
    let pairs: Vec<_> = pairs.filter(|(a, _)| work.path("a").join(a).is_dir()).collect();
    assert_eq!(pairs.len(), targets.len());
    for (a, b) in pairs {
        let (a, b) = (work.path("a").join(a), work.path("b").join(b));
        let ((a_header, a_data), (b_header, b_data)) =
            (read_safetensors(&a.join("model.safetensors")), read_safetensors(&b.join("model.safetensors")));
        assert!(a_header == b_header && a_data == b_data, "{}", b.display());
        let block = |folder: &Path| -> Value {
            let config: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
            json!([config["quantization"], config["quantization_config"], config["torch_dtype"]])
        };
        assert_eq!(block(&a), block(&b), "{}", b.display());
    }
    // With calibration and error feedback, too.
    let line = "--to mlx:4bit --method awq+gptq --samples 2 --ctx 64";
    work.ok(&format!("quantize demo {line} -o c"));
    work.ok(&format!("quantize d.gguf {line} -o d"));
    let weights = |folder: &str| fs::read(work.path(folder).join("model.safetensors")).unwrap();
    assert!(weights("c") == weights("d"));
}

#[test]
fn plain_folders_carry_on_what_the_source_has() {
    let work = Work::new();
    let folder = work.checkpoint("model");
    fs::write(folder.join("LICENSE"), "mine").unwrap();
    edit_json(&folder.join("config.json"), "my_key", json!([1, 2]));
    work.ok("convert model --to hf:f16 -o half");
    let (source, made) = (read(&work, "model/config.json"), read(&work, "half/config.json"));
    assert_eq!((&made["my_key"], &made["torch_dtype"]), (&source["my_key"], &json!("float16")));
    for file in ["tokenizer.json", "tokenizer_config.json", "LICENSE"] {
        assert_eq!(fs::read(folder.join(file)).unwrap(), fs::read(work.path("half").join(file)).unwrap(), "{file}");
    }
    // Out of an MLX folder, and back to where the weights came from.
    work.ok("convert model --to mlx:bf16 -o m");
    work.ok("convert m --to hf:bf16 -o back");
    work.ok("convert model --to hf:bf16 -o same");
    let weights = |folder: &str| fs::read(work.path(folder).join("model.safetensors")).unwrap();
    assert!(weights("back") == weights("same"));
    work.fails("convert model --to hf:q8_0 -o x", 69);
    work.fails("quantize model --to hf:bf16 --tensor-type attn_v=q8_0 -o x", 69);
    work.fails("convert model --to hf:bf16 -o model", 73);
}

/// A copy of a GGUF with another `rope_freqs.weight`.
fn with_divisors(from: &Path, to: &Path, divisors: &[f32]) {
    let store = GgufStore::open(from).unwrap();
    let tensor = |t: &bitsmith_formats::TensorInfo| {
        let bitsmith_formats::Encoding::Codec(codec) = t.encoding else { panic!("{}", t.name) };
        (t.name.clone(), EncodedTensor::new(&t.shape, codec, store.bytes(&t.name).unwrap().to_vec()))
    };
    let mut tensors: Vec<_> = store.tensors().iter().map(tensor).filter(|(n, _)| n != "rope_freqs.weight").collect();
    let rope = EncodedTensor::encode(CodecId::F32, &[divisors.len()], divisors, None).unwrap();
    tensors.push(("rope_freqs.weight".into(), rope));
    write_gguf(to, store.metadata(), &tensors).unwrap();
}

#[test]
fn what_no_configuration_says_is_refused() {
    let work = Work::new();
    work.ok("convert demo --to gguf:bf16 -o d.gguf");
    let (source, odd) = (work.path("d.gguf"), work.path("odd.gguf"));
    with_divisors(&source, &odd, &(0..16).map(|i| if i % 2 == 0 { 1.0 } else { 3.0 }).collect::<Vec<_>>());
    let error = work.fails("convert odd.gguf --to hf:bf16 -o x", 69);
    assert_eq!((&error["tensor"], &error["file"]), (&json!("rope_freqs.weight"), &json!("odd.gguf")), "{error}");
    assert!(error["hint"].as_str().unwrap().contains("GGUF") && !work.path("x").exists());
    work.fails("quantize odd.gguf --to mlx:4bit --method rtn -o x", 69);
    let checked = work.call("--json check odd.gguf --to gguf:q8_0,mlx:4bit");
    assert_eq!(checked.code, Some(69));
    assert_eq!((&checked.json()["targets"][0]["ok"], &checked.json()["targets"][1]["ok"]), (&json!(true), &json!(false)));
    // One divisor for all has a name.
    with_divisors(&source, &odd, &[2.5; 16]);
    work.ok("convert odd.gguf --to hf:bf16 -o x");
    let scaling = read(&work, "x/config.json")["rope_scaling"].clone();
    assert_eq!((&scaling["rope_type"], &scaling["factor"]), (&json!("linear"), &json!(2.5)));
}
