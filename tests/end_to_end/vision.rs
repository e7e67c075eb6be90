//! Models with a vision tower: the projector file beside GGUFs, the tower in folders, and the account of every tensor.

use crate::support::{Work, edit_json, read_safetensors};
use crate::tiny::{HIDDEN, MISTRAL, write_random};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

const WIDTH: usize = 64;
const LAYERS: usize = 2;
/// Only what the layer before the last gives is read.
const USED: usize = 1;

/// A Llava around a tiny Mistral, with the names of the hub.
fn llava(work: &Work, name: &str, more: &[(&str, &[usize])]) -> PathBuf {
    let mut tensors: Vec<_> = MISTRAL.tensors();
    tensors.iter_mut().for_each(|(name, ..)| *name = format!("language_model.{name}"));
    let mut add = |name: String, shape: &[usize]| tensors.push((name, shape.to_vec(), 0.1, 0.3));
    let tower = |name: &str| format!("vision_tower.vision_model.{name}");
    add(tower("embeddings.class_embedding"), &[WIDTH]);
    add(tower("embeddings.patch_embedding.weight"), &[WIDTH, 3, 14, 14]);
    add(tower("embeddings.position_embedding.weight"), &[5, WIDTH]);
    for end in ["weight", "bias"] {
        add(tower(&format!("pre_layrnorm.{end}")), &[WIDTH]);
        add(tower(&format!("post_layernorm.{end}")), &[WIDTH]);
        for (name, rows, columns) in [("linear_1", HIDDEN, WIDTH), ("linear_2", HIDDEN, HIDDEN)] {
            let shape = if end == "weight" { vec![rows, columns] } else { vec![rows] };
            add(format!("multi_modal_projector.{name}.{end}"), &shape);
        }
        for layer in 0..LAYERS {
            for name in ["layer_norm1", "layer_norm2"] {
                add(tower(&format!("encoder.layers.{layer}.{name}.{end}")), &[WIDTH]);
            }
            for (name, rows, columns) in [
                ("self_attn.q_proj", WIDTH, WIDTH),
                ("self_attn.k_proj", WIDTH, WIDTH),
                ("self_attn.v_proj", WIDTH, WIDTH),
                ("self_attn.out_proj", WIDTH, WIDTH),
                ("mlp.fc1", 96, WIDTH),
                ("mlp.fc2", WIDTH, 96),
            ] {
                let shape = if end == "weight" { vec![rows, columns] } else { vec![rows] };
                add(tower(&format!("encoder.layers.{layer}.{name}.{end}")), &shape);
            }
        }
    }
    more.iter().for_each(|(name, shape)| add(name.to_string(), shape));
    let mut text = MISTRAL.config();
    text.as_object_mut().unwrap().remove("torch_dtype");
    let config = json!({
        "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "torch_dtype": "bfloat16", "text_config": text,
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": LAYERS,
            "num_attention_heads": 4, "image_size": 28, "patch_size": 14,
        },
        "vision_feature_layer": -2, "image_token_index": 2000,
    });
    let folder = write_random(work, name, &config, tensors);
    let images = json!({"image_mean": [0.5, 0.25, 0.125], "image_std": [0.5, 0.5, 0.5], "do_normalize": true});
    fs::write(folder.join("preprocessor_config.json"), images.to_string()).unwrap();
    fs::write(folder.join("processor_config.json"), "{}").unwrap();
    fs::write(folder.join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    folder
}

fn read(folder: &std::path::Path, name: &str) -> Value {
    serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap()
}

#[test]
fn a_gguf_has_its_projector_beside_it() {
    let work = Work::new();
    let source = llava(&work, "lv", &[]);
    let ended = work.ok("--json quantize lv --to gguf:bf16,gguf:q8_0 --method rtn -o out");
    assert!(ended.err.contains("are dropped"), "{}", ended.err);
    assert_eq!(
        work.names("out"),
        ["lv-BF16.gguf", "lv-BF16.gguf.bitsmith.json", "lv-Q8_0.gguf", "lv-Q8_0.gguf.bitsmith.json", "mmproj-lv-BF16.gguf"]
    );
    let document = ended.json();
    let manifest = read(&work.path("out"), "lv-Q8_0.gguf.bitsmith.json");
    for companion in [&document["artifacts"][1]["companions"][0], &manifest["companions"][0]] {
        assert_eq!((companion["kind"].as_str(), companion["file"].as_str()), (Some("mmproj"), Some("mmproj-lv-BF16.gguf")));
    }
    // What the projector's input does not depend on.
    let dropped: Vec<&str> = manifest["dropped"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    assert_eq!(dropped.len(), 16 + 2);
    assert!(dropped.iter().all(|n| n.contains(&format!("layers.{USED}.")) || n.contains("post_layernorm")), "{dropped:?}");
    let found = work.json("inspect out/mmproj-lv-BF16.gguf --tensors --metadata");
    let metadata = &found["metadata"];
    for (key, value) in [
        ("general.architecture", json!("clip")),
        ("general.type", json!("mmproj")),
        ("clip.projector_type", json!("mlp")),
        ("clip.has_vision_encoder", json!(true)),
        ("clip.vision.projection_dim", json!(HIDDEN)),
        ("clip.vision.block_count", json!(USED)),
        ("clip.vision.image_mean", json!([0.5, 0.25, 0.125])),
        ("clip.use_gelu", json!(false)),
    ] {
        assert_eq!(metadata[key], value, "{key}");
    }
    let tensors = found["tensors"].as_array().unwrap();
    let codec = |name: &str| tensors.iter().find(|t| t["name"] == name).map(|t| t["codec"].as_str().unwrap().to_string());
    for (name, wanted) in [
        ("v.class_embd", Some("f32")),
        ("v.patch_embd.weight", Some("f32")),
        ("v.position_embd.weight", Some("f32")),
        ("v.pre_ln.bias", Some("f32")),
        ("v.post_ln.weight", None),
        ("v.blk.0.attn_out.weight", Some("bf16")),
        ("v.blk.0.ffn_up.bias", Some("f32")),
        ("v.blk.1.ffn_up.weight", None),
        ("mm.0.weight", Some("bf16")),
        ("mm.2.bias", Some("f32")),
    ] {
        assert_eq!(codec(name).as_deref(), wanted, "{name}");
    }
    assert_eq!(tensors.len(), 5 + 16 + 4);
    // The text model is a model like any other, and a finished job with all its files is not repeated.
    let text = json!({"sequences": [[5, 6, 7, 8, 9]]}).to_string();
    work.write("tokens.json", text);
    let logits = |model: &str| work.json(&format!("logits {model} --tokens tokens.json --top 3"));
    assert_eq!(logits("lv"), logits("out/lv-BF16.gguf"));
    assert_eq!(work.json("verify out/lv-BF16.gguf --source lv")["ok"], true);
    let again = work.json("quantize lv --to gguf:bf16,gguf:q8_0 --method rtn -o out");
    assert!(again["artifacts"].as_array().unwrap().iter().all(|a| a["reused"] == true));
    fs::write(work.path("out/mmproj-lv-BF16.gguf"), "broken").unwrap();
    assert_eq!(work.call("verify out/lv-BF16.gguf").code, Some(65));
    let again = work.json("quantize lv --to gguf:bf16 --method rtn -o out");
    assert_eq!(again["artifacts"][0]["reused"], false);
    work.ok("verify out/lv-BF16.gguf");
    // Without the file that says how images are normalised there is no projector file, and nothing else either.
    fs::remove_file(source.join("preprocessor_config.json")).unwrap();
    let error = work.fails("convert lv --to gguf:bf16 -o other.gguf", 65);
    assert!(error["message"].as_str().unwrap().contains("image_mean") && error["hint"].is_string());
    assert!(!work.path("other.gguf").exists());
}

#[test]
fn folders_carry_the_tower() {
    let work = Work::new();
    let source = llava(&work, "lv", &[]);
    let (header, data) = read_safetensors(&source.join("model.safetensors"));
    let bytes = |header: &serde_json::Map<String, Value>, data: &[u8], name: &str| {
        let at = |i: usize| header[name]["data_offsets"][i].as_u64().unwrap() as usize;
        data[at(0)..at(1)].to_vec()
    };
    let towers: Vec<&String> = header.keys().filter(|n| !n.starts_with("language_model")).collect();
    work.ok("quantize lv --to hf:bf16,mlx:4bit,gptq:4bit-g32,awq:4bit-g32,compressed:int8 --method rtn -o out");
    for (folder, block) in [
        ("lv-hf-bf16", None),
        ("lv-mlx", None),
        ("lv-gptq-4bit-g32", Some(json!({}))),
        ("lv-awq-4bit-g32", Some(json!({}))),
        ("lv-compressed-int8", Some(json!({}))),
    ] {
        let folder = if folder == "lv-mlx" { "lv-4bit" } else { folder };
        let path = work.path("out").join(folder);
        for file in ["preprocessor_config.json", "processor_config.json", "chat_template.jinja", "tokenizer.json"] {
            assert!(path.join(file).is_file(), "{folder}: {file}");
        }
        let (written, weights) = read_safetensors(&path.join("model.safetensors"));
        let mlx = folder == "lv-4bit";
        for name in &towers {
            assert_eq!(written[*name]["dtype"], "BF16", "{folder}: {name}");
            let turned = mlx && name.ends_with("patch_embedding.weight");
            if turned {
                assert_eq!(written[*name]["shape"], json!([WIDTH, 14, 14, 3]));
            } else {
                assert!(bytes(&written, &weights, name) == bytes(&header, &data, name), "{folder}: {name}");
            }
        }
        let config = read(&path, "config.json");
        assert_eq!((&config["model_type"], &config["vision_config"]["patch_size"]), (&json!("llava"), &json!(14)), "{folder}");
        assert_eq!(config["quantization_config"].is_object(), block.is_some() || mlx);
        let text = config["quantization_config"].to_string();
        assert!(block.is_none() || text.contains("vision_tower"), "{folder}: {text}");
        if mlx {
            assert_eq!(config["quantization"]["vision_tower.vision_model.encoder.layers.0.mlp.fc1"], false);
        }
        // All of it can be read again, and gives the same projector.
        work.ok(&format!("verify out/{folder} --source lv"));
        work.ok(&format!("convert out/{folder} --to gguf:bf16 -o again-{folder}/m.gguf"));
    }
    let projector = |folder: &str| {
        let name = work.names(folder).into_iter().find(|n| n.starts_with("mmproj-")).unwrap();
        let found = bitsmith_formats::gguf::GgufStore::open(work.path(folder).join(name)).unwrap();
        let tensors = bitsmith_formats::TensorStore::tensors(&found).to_vec();
        tensors
            .iter()
            .map(|t| (t.name.clone(), bitsmith_formats::TensorStore::bytes(&found, &t.name).unwrap().to_vec()))
            .collect::<Vec<_>>()
    };
    let first = projector("again-lv-hf-bf16");
    for other in ["again-lv-4bit", "again-lv-gptq-4bit-g32", "again-lv-awq-4bit-g32", "again-lv-compressed-int8"] {
        assert!(projector(other) == first, "{other}");
    }
}

#[test]
fn what_has_no_place_is_named() {
    let work = Work::new();
    llava(&work, "lv", &[("vision_tower.vision_model.embeddings.position_ids", &[1, 5])]);
    let checked = work.json("check lv --to gguf:bf16");
    assert_eq!(checked["dropped"], json!(["vision_tower.vision_model.embeddings.position_ids"]));
    llava(&work, "odd", &[("vision_tower.vision_model.encoder.layers.0.gamma", &[5])]);
    let error = work.fails("convert odd --to gguf:bf16 -o x.gguf", 69);
    assert_eq!(error["tensor"], "vision_tower.vision_model.encoder.layers.0.gamma");
    // A tower that llama.cpp has no form for goes along in folders only.
    let folder = llava(&work, "two", &[]);
    edit_json(&folder.join("config.json"), "vision_feature_layer", json!([-2, -1]));
    let error = work.fails("convert two --to gguf:bf16 -o x.gguf", 69);
    assert!(error["message"].as_str().unwrap().contains("one layer"), "{error}");
    work.ok("convert two --to hf:bf16 -o two-hf");
}
