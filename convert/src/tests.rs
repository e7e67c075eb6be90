//! A tiny model in memory, written and read back.

use crate::{ArtifactWriter, FolderFiles, FolderPlan, GgufPlan, ModelAbout, PlannedTensor, gguf, permute_rows};
use bitsmith_formats::gguf::{GgufStore, Metadata};
use bitsmith_formats::mlx::MlxStore;
use bitsmith_formats::{CodecId, EncodedTensor, Encoding, ErrorKind, Float, TensorStore};
use bitsmith_runtime::tokenizer::{GgufVocab, TokenType, VocabModel};
use bitsmith_runtime::{Checkpoint, ModelSpec, Part, Role, WeightSource};
use serde_json::{Value, json};
use std::path::Path;

fn config() -> Value {
    json!({
        "model_type": "llama", "_name_or_path": "x", "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 70, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5, "rope_theta": 50000.0, "tie_word_embeddings": false, "eos_token_id": 1, "bos_token_id": 0,
        "torch_dtype": "float32", "attention_bias": true,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    })
}

fn spec() -> ModelSpec {
    ModelSpec::from_config(&config()).unwrap()
}

fn vocab(n: usize) -> GgufVocab {
    GgufVocab {
        model: VocabModel::Bpe,
        pre: "gpt-2".into(),
        tokens: (0..n).map(|i| format!("t{i}")).collect(),
        types: vec![TokenType::Normal; n],
        scores: Vec::new(),
        merges: vec![("t".into(), "1".into())],
        bos: Some(0),
        eos: Some(1),
        more_eos: Vec::new(),
        unk: None,
        pad: None,
        add_bos: true,
        add_eos: false,
        add_space_prefix: false,
        remove_extra_whitespaces: false,
        templates: Default::default(),
        notes: Vec::new(),
    }
}

/// A vocabulary that the tokenizer library takes: special tokens, letters and one merge.
fn letters(n: usize) -> GgufVocab {
    let mut tokens: Vec<String> = ["<s>", "</s>", "<pad>", "<|end|>"].map(String::from).into();
    tokens.extend(('!'..).take(n - 5).map(String::from));
    tokens.push("AB".into());
    let mut types = vec![TokenType::Normal; n];
    types[..4].fill(TokenType::Control);
    GgufVocab { tokens, types, merges: vec![("A".into(), "B".into())], ..vocab(n) }
}

/// Values that differ everywhere and are exact in bf16: position in the tensor, modulo 251, with a sign.
fn values(role: Role, n: usize) -> Vec<f32> {
    let seed = role.layer.unwrap_or(9) * 31 + role.part as usize * 7;
    (0..n).map(|i| ((i * 17 + seed) % 251) as f32 - 125.0).collect()
}

fn encoded(spec: &ModelSpec, role: Role, codec: CodecId) -> EncodedTensor {
    let shape = spec.shape(role.part);
    EncodedTensor::encode(codec, &shape, &values(role, shape.iter().product()), None).unwrap()
}

fn codecs(spec: &ModelSpec, f: impl Fn(Role) -> CodecId) -> Vec<(Role, CodecId)> {
    spec.roles().into_iter().filter(|r| r.part.is_matrix()).map(|r| (r, f(r))).collect()
}

fn about() -> ModelAbout {
    ModelAbout {
        name: "Tiny-1B-Instruct".into(),
        repo: Some("org/Tiny-1B-Instruct".into()),
        license: Some("mit".into()),
        ..Default::default()
    }
}

#[test]
fn gguf_is_what_the_runtime_reads() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    let spec = spec();
    let choose = |r: Role| if r.part == Part::FfnDown { CodecId::Q8_0 } else { CodecId::BF16 };
    let plan = GgufPlan::new(&spec, &vocab(70), &about(), "bf16", &codecs(&spec, choose)).unwrap();
    let bytes = plan.bytes().unwrap();
    let artifact = plan
        .write(&path, |role| Ok(encoded(&spec, role, if role.part == Part::FfnDown { CodecId::Q8_0 } else { CodecId::BF16 })))
        .unwrap();
    assert_eq!((artifact.bytes(), artifact.files.len()), (bytes, 1));

    let store = GgufStore::open(&path).unwrap();
    let m = store.metadata();
    assert_eq!(m.str("general.architecture").unwrap(), "llama");
    assert_eq!(m.str("general.basename").unwrap(), "Tiny");
    assert_eq!(m.str("general.finetune").unwrap(), "Instruct");
    assert_eq!(m.str("general.license").unwrap(), "mit");
    assert_eq!(m.str("general.base_model.0.repo_url").unwrap(), "https://huggingface.co/org/Tiny-1B-Instruct");
    assert_eq!((m.u64("general.file_type").unwrap(), m.u64("llama.context_length").unwrap()), (32, 256));
    assert_eq!(m.u64("llama.attention.head_count_kv").unwrap(), 2);
    assert!(m.bool("tokenizer.ggml.add_bos_token").unwrap());
    assert!(!m.contains("llama.rope.scaling.type"));
    let read = ModelAbout::from_gguf(m, &path).unwrap();
    assert_eq!(read, ModelAbout { base_models: vec!["org/Tiny-1B-Instruct".into()], ..about() });
    assert_eq!(store.find("blk.0.attn_norm.weight").unwrap().encoding, Encoding::Codec(CodecId::F32));
    let (_, freqs) = store.read_f32("rope_freqs.weight").unwrap();
    assert_eq!(freqs, spec.rope.factors(16).unwrap());
    assert!(freqs[0] == 1.0 && freqs[7] == 8.0);

    // Rows of q are interleaved in the file: 0, 8, 1, 9, … of each head; and the runtime undoes it.
    let q = Role::layer(1, Part::AttnQ);
    let expected = values(q, 64 * 64);
    let (_, file) = store.read_f32("blk.1.attn_q.weight").unwrap();
    assert_eq!(file[64..128], expected[8 * 64..9 * 64]);
    assert_eq!(
        store.read_f32("blk.1.attn_q.bias").unwrap().1[..4],
        [0, 8, 1, 9].map(|i| values(Role::layer(1, Part::AttnQBias), 64)[i])
    );
    let checkpoint = Checkpoint::open(&path).unwrap();
    for role in spec.roles() {
        let read = checkpoint.read(role).unwrap();
        assert_eq!(read.shape, spec.shape(role.part), "{role}");
        if role.part != Part::FfnDown {
            assert_eq!(read.data, values(role, read.data.len()), "{role}");
        }
    }
    let got = checkpoint.spec();
    assert_eq!((got.n_layers, got.head_dim, got.vocab_size, got.rms_eps as f32), (2, 16, 70, 1e-5));
}

#[test]
fn gguf_plans_are_checked() {
    let spec = spec();
    let all = codecs(&spec, |_| CodecId::Q8_0);
    assert!(GgufPlan::new(&spec, &vocab(69), &about(), "q8_0", &all).is_err());
    assert!(GgufPlan::new(&spec, &vocab(70), &about(), "q8_0", &all[1..]).is_err());
    let twice = [all.as_slice(), &all[..1]].concat();
    assert!(GgufPlan::new(&spec, &vocab(70), &about(), "q8_0", &twice).is_err());
    let unknown = [all.as_slice(), &[(Role::layer(2, Part::AttnQ), CodecId::F32)]].concat();
    assert!(GgufPlan::new(&spec, &vocab(70), &about(), "q8_0", &unknown).is_err());
    // 64 weights are no whole block of 256, and the error names the tensor.
    let e = GgufPlan::new(&spec, &vocab(70), &about(), "q4_k_m", &codecs(&spec, |_| CodecId::Q4K)).unwrap_err();
    assert_eq!(e.tensor.as_deref(), Some("token_embd.weight"));
    let mlx = CodecId::MlxAffine { bits: 4, group: 64, scale: Float::BF16 };
    assert_eq!(
        GgufPlan::new(&spec, &vocab(70), &about(), "x", &codecs(&spec, |_| mlx)).unwrap_err().kind,
        ErrorKind::Unsupported
    );
    assert_eq!((gguf::file_type("Q4_K_M"), gguf::file_type("auto@4bpw")), (Some(15), None));
    let mixed = codecs(&spec, |r| if r.part == Part::Output { CodecId::F16 } else { CodecId::Q5_0 });
    let plan = GgufPlan::new(&spec, &vocab(70), &about(), "auto@4bpw", &mixed).unwrap();
    assert_eq!(plan.metadata().u64("general.file_type").unwrap(), 8);
    let (all, linear) = plan.bits_per_weight();
    assert!(linear == 5.5 && all > 5.5, "{all} {linear}");
}

#[test]
fn an_unfinished_gguf_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let spec = spec();
    let plan = || GgufPlan::new(&spec, &vocab(70), &about(), "f16", &codecs(&spec, |_| CodecId::F16)).unwrap();
    let path = dir.path().join("a.gguf");
    let e = plan().write(&path, |_| Err(bitsmith_formats::Error::failed("no"))).unwrap_err();
    assert_eq!(e.message, "no");
    let writer = plan().start(&path).unwrap();
    writer.put(Role::global(Part::TokenEmbd), &encoded(&spec, Role::global(Part::TokenEmbd), CodecId::F16)).unwrap();
    let wrong = encoded(&spec, Role::layer(0, Part::AttnQ), CodecId::F32);
    assert!(writer.put(Role::layer(0, Part::AttnQ), &wrong).is_err());
    assert!(writer.put(Role::layer(0, Part::AttnK), &wrong).is_err());
    assert!(writer.finish().is_err());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Writes every tensor in parts of about `rows` rows, last part first.
fn put_in_parts(writer: &dyn ArtifactWriter, spec: &ModelSpec, rows: usize, codec: impl Fn(Role) -> CodecId) {
    for role in spec.roles() {
        let t = encoded(spec, role, if role.part.is_matrix() { codec(role) } else { CodecId::F32 });
        let n: usize = t.shape.iter().rev().skip(1).product();
        let (row_len, row_bytes, step) =
            (*t.shape.last().unwrap(), t.bytes.len() / n, rows.next_multiple_of(writer.row_align(role)));
        for first in (0..n).step_by(step).rev() {
            let end = (first + step).min(n);
            let part = EncodedTensor::new(&[end - first, row_len], t.codec, t.bytes[first * row_bytes..end * row_bytes].to_vec());
            let part = if t.shape.len() == 1 { t.clone() } else { part };
            writer.put_rows(role, first, &part).unwrap();
        }
    }
}

#[test]
fn tensors_can_come_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    let spec = spec();
    let (whole, parts) = (dir.path().join("whole.gguf"), dir.path().join("parts.gguf"));
    let plan = || GgufPlan::new(&spec, &vocab(70), &about(), "q8_0", &codecs(&spec, |_| CodecId::Q8_0)).unwrap();
    let codec = |role: Role| if role.part.is_matrix() { CodecId::Q8_0 } else { CodecId::F32 };
    plan().write(&whole, |role| Ok(encoded(&spec, role, codec(role)))).unwrap();
    let writer = plan().start(&parts).unwrap();
    assert_eq!([Part::AttnQ, Part::AttnV, Part::AttnQBias].map(|p| writer.row_align(Role::layer(0, p))), [16, 1, 1]);
    // Half a head of q cannot be put into its place.
    let half = EncodedTensor::encode(CodecId::Q8_0, &[8, 64], &[0.0; 512], None).unwrap();
    assert!(writer.put_rows(Role::layer(0, Part::AttnQ), 0, &half).is_err());
    assert!(writer.put_rows(Role::layer(0, Part::AttnV), 30, &half).is_err());
    assert!(writer.put(Role::layer(0, Part::AttnV), &half).is_err());
    put_in_parts(&*writer, &spec, 5, codec);
    writer.finish().unwrap();
    assert_eq!(std::fs::read(&whole).unwrap(), std::fs::read(&parts).unwrap());

    let src = dir.path().join("src");
    std::fs::create_dir(&src).unwrap();
    source(&src);
    let four = CodecId::MlxAffine { bits: 4, group: 64, scale: Float::F32 };
    let plan = || {
        FolderPlan::mlx(&spec, &FolderFiles::of_folder(&src).unwrap(), &about(), Float::F32, &codecs(&spec, |_| four)).unwrap()
    };
    let codec = |role: Role| if role.part.is_matrix() { four } else { CodecId::F32 };
    let whole = plan().write(dir.path().join("whole"), |role| Ok(encoded(&spec, role, codec(role)))).unwrap();
    let writer = plan().start(dir.path().join("parts")).unwrap();
    put_in_parts(&*writer, &spec, 7, codec);
    let parts = writer.finish().unwrap();
    for ((a, _), (b, _)) in whole.files.iter().zip(&parts.files) {
        assert_eq!(std::fs::read(a).unwrap(), std::fs::read(b).unwrap(), "{}", a.display());
    }
}

#[test]
fn a_gguf_can_be_a_split_set() {
    let dir = tempfile::tempdir().unwrap();
    let spec = spec();
    let plan = || GgufPlan::new(&spec, &vocab(70), &about(), "bf16", &codecs(&spec, |_| CodecId::BF16)).unwrap();
    let tensor = |role: Role| encoded(&spec, role, if role.part.is_matrix() { CodecId::BF16 } else { CodecId::F32 });
    let single = plan().write(dir.path().join("single.gguf"), |role| Ok(tensor(role))).unwrap();
    let plan = plan().shard_bytes(Some(40_000));
    let path = dir.path().join("set.gguf");
    let (paths, bytes) = (plan.paths(&path).unwrap(), plan.bytes().unwrap());
    assert!(paths.len() > 2 && paths[0].ends_with(format!("set-00001-of-{:05}.gguf", paths.len())));
    let set = plan.write(&path, |role| Ok(tensor(role))).unwrap();
    assert_eq!((&set.path, set.bytes()), (&paths[0], bytes));
    assert_eq!(set.files.iter().map(|(p, _)| p.clone()).collect::<Vec<_>>(), paths);
    assert!(!path.exists());
    let (one, many) = (Checkpoint::open(&single.path).unwrap(), Checkpoint::open(&paths[0]).unwrap());
    for role in spec.roles() {
        assert_eq!(one.read(role).unwrap(), many.read(role).unwrap());
    }
}

#[test]
fn a_scale_goes_beside_a_weight_whose_format_has_one() {
    let planned = |part: Part, codec: CodecId| {
        let role = if part.per_layer() { Role::layer(3, part) } else { Role::global(part) };
        PlannedTensor { role, name: role.to_string(), shape: vec![2, 64], codec, bytes: 72 }
    };
    let name = |part, codec| gguf::scale_name(&planned(part, codec));
    assert_eq!(name(Part::AttnQ, CodecId::NVFP4).as_deref(), Some("blk.3.attn_q.scale"));
    assert_eq!(name(Part::Output, CodecId::NVFP4).as_deref(), Some("output.scale"));
    assert_eq!((name(Part::TokenEmbd, CodecId::NVFP4), name(Part::AttnQ, CodecId::Q8_0)), (None, None));
    // A scale for which the file has no place is not dropped.
    let dir = tempfile::tempdir().unwrap();
    let spec = spec();
    let plan = GgufPlan::new(&spec, &vocab(70), &about(), "q8_0", &codecs(&spec, |_| CodecId::Q8_0)).unwrap();
    let writer = plan.start(dir.path().join("a.gguf")).unwrap();
    let role = Role::layer(0, Part::FfnUp);
    let scaled = EncodedTensor { scale: 0.5, ..encoded(&spec, role, CodecId::Q8_0) };
    assert_eq!(writer.put(role, &scaled).unwrap_err().tensor.as_deref(), Some("blk.0.ffn_up.weight"));
}

#[test]
fn rows_of_any_codec_are_permuted_whole() {
    let t = EncodedTensor::encode(CodecId::Q8_0, &[3, 32], &(0..96).map(|i| i as f32).collect::<Vec<_>>(), None).unwrap();
    let p = permute_rows(&t, &[2, 0, 1]).unwrap();
    assert_eq!(p.bytes, [&t.bytes[68..], &t.bytes[..68]].concat());
    assert!(permute_rows(&t, &[0, 1]).is_err());
    assert!(permute_rows(&t, &[0, 1, 3]).is_err());
}

/// A source folder for MLX: config and small files, no weights.
fn source(dir: &Path) {
    let write = |name: &str, text: String| std::fs::write(dir.join(name), text).unwrap();
    write("config.json", config().to_string());
    write("generation_config.json", json!({"eos_token_id": [1, 5]}).to_string());
    write("tokenizer.json", "{}".into());
    write("tokenizer_config.json", "{}".into());
    write("chat_template.jinja", "T".into());
    write("LICENSE", "L".into());
    write("modeling_x.py", "import os".into());
    write("model.safetensors", "not copied".into());
    std::fs::create_dir(dir.join("additional_chat_templates")).unwrap();
    write("additional_chat_templates/rag.jinja", "R".into());
}

#[test]
fn mlx_is_what_the_runtime_reads() {
    let dir = tempfile::tempdir().unwrap();
    let src = dir.path().join("src");
    std::fs::create_dir(&src).unwrap();
    source(&src);
    let spec = spec();
    let four = CodecId::MlxAffine { bits: 4, group: 64, scale: Float::F32 };
    let eight = CodecId::MlxAffine { bits: 8, group: 32, scale: Float::F32 };
    let choose = move |r: Role| match r.part {
        Part::Output => eight,
        Part::AttnV if r.layer == Some(1) => CodecId::BF16,
        _ => four,
    };
    let plan = FolderPlan::mlx(&spec, &FolderFiles::of_folder(&src).unwrap(), &about(), Float::F32, &codecs(&spec, choose))
        .unwrap()
        .shard_bytes(Some(20_000));
    let out = dir.path().join("out");
    let artifact = plan
        .write(&out, |role| Ok(encoded(&spec, role, if role.part.is_matrix() { choose(role) } else { CodecId::F32 })))
        .unwrap();
    let names: Vec<String> =
        artifact.files.iter().map(|(p, _)| p.strip_prefix(&out).unwrap().to_str().unwrap().to_string()).collect();
    let shards = names.iter().filter(|n| n.starts_with("model-0000")).count();
    assert!(shards > 1);
    let rest: Vec<&str> = names.iter().map(String::as_str).filter(|n| !n.starts_with("model-")).collect();
    assert_eq!(
        rest,
        [
            "LICENSE",
            "README.md",
            "additional_chat_templates/rag.jinja",
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    assert!(!dir.path().join("out.partial").exists());

    let text = std::fs::read_to_string(out.join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    let keys: Vec<&String> = config.as_object().unwrap().keys().collect();
    assert!(keys.is_sorted() && !keys.iter().any(|k| *k == "_name_or_path"));
    assert!(text.starts_with("{\n    \"attention_bias\""));
    assert_eq!(config["eos_token_id"], json!([1, 5]));
    assert_eq!(config["torch_dtype"], "float32");
    let expected = json!({
        "bits": 4, "group_size": 64, "mode": "affine", "lm_head": {"bits": 8, "group_size": 32, "mode": "affine"},
        "model.layers.1.self_attn.v_proj": false,
    });
    assert_eq!(config["quantization"], expected);
    assert_eq!(config["quantization_config"], expected);
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    assert!(
        card.starts_with("---\nlibrary_name: mlx\n")
            && card.contains("license: mit")
            && card.contains("base_model:\n- org/Tiny-1B-Instruct")
    );

    let store = MlxStore::open(&out).unwrap();
    assert_eq!(store.find("lm_head.weight").unwrap().encoding, Encoding::Codec(eight));
    let checkpoint = Checkpoint::open(&out).unwrap();
    for role in spec.roles() {
        let codec = if role.part.is_matrix() { choose(role) } else { CodecId::F32 };
        assert_eq!(checkpoint.read(role).unwrap().data, encoded(&spec, role, codec).decode(), "{role}");
    }
}

#[test]
fn an_mlx_folder_says_what_mlx_lm_does_not_find_or_assumes_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    source(dir.path());
    let mut newer = config();
    let object = newer.as_object_mut().unwrap();
    let mut parameters = object.remove("rope_scaling").unwrap();
    parameters["rope_theta"] = object.remove("rope_theta").unwrap_or(json!(5e5));
    object.insert("rope_parameters".into(), parameters.clone());
    object.remove("tie_word_embeddings");
    let spec = ModelSpec::from_config(&newer).unwrap();
    std::fs::write(dir.path().join("config.json"), newer.to_string()).unwrap();
    let plan = FolderPlan::mlx(
        &spec,
        &FolderFiles::of_folder(dir.path()).unwrap(),
        &about(),
        Float::F16,
        &codecs(&spec, |_| CodecId::F16),
    )
    .unwrap();
    let written = plan.config();
    assert_eq!(written["rope_theta"], json!(spec.rope.theta));
    assert_eq!(written["tie_word_embeddings"], json!(spec.tied));
    assert_eq!(written["rope_parameters"], parameters);
    parameters.as_object_mut().unwrap().remove("rope_theta");
    assert_eq!(written["rope_scaling"], parameters);
    assert_eq!(ModelSpec::from_config(written).unwrap().rope, spec.rope);
}

#[test]
fn a_plain_folder_forgets_how_its_source_was_packed() {
    let dir = tempfile::tempdir().unwrap();
    let src = dir.path().join("src");
    std::fs::create_dir(&src).unwrap();
    source(&src);
    let mut packed = config();
    for key in ["quantization", "quantization_config", "compression_config"] {
        packed[key] = json!({"bits": 4});
    }
    packed["dtype"] = "bfloat16".into();
    std::fs::write(src.join("config.json"), packed.to_string()).unwrap();
    let spec = spec();
    let files = FolderFiles::of_folder(&src).unwrap();
    let plan = FolderPlan::hf(&spec, &files, &about(), Float::F16, &codecs(&spec, |_| CodecId::F16)).unwrap();
    let mut expected = config();
    expected.as_object_mut().unwrap().remove("_name_or_path");
    (expected["torch_dtype"], expected["dtype"]) = ("float16".into(), "float16".into());
    assert_eq!(plan.config(), &expected);
    let writer = plan.shard_bytes(Some(20_000)).start(dir.path().join("out")).unwrap();
    put_in_parts(&*writer, &spec, 7, |_| CodecId::F16);
    let artifact = writer.finish().unwrap();
    assert!(artifact.path.join("model.safetensors.index.json").is_file() && artifact.path.join("chat_template.jinja").is_file());
    let card = std::fs::read_to_string(artifact.path.join("README.md")).unwrap();
    assert!(card.contains("library_name: transformers") && !card.contains("base_model_relation"), "{card}");
    let checkpoint = Checkpoint::open(&artifact.path).unwrap();
    for role in spec.roles() {
        assert_eq!(checkpoint.read(role).unwrap().data, encoded(&spec, role, CodecId::F16).decode(), "{role}");
    }
    let quantized = codecs(&spec, |_| CodecId::Q8_0);
    let e = FolderPlan::hf(&spec, &files, &about(), Float::F16, &quantized).unwrap_err();
    assert_eq!((e.kind, e.tensor.as_deref()), (ErrorKind::Unsupported, Some("model.embed_tokens.weight")));
}

#[test]
fn files_can_be_made_from_a_vocabulary() {
    let spec = spec();
    let byte_level = GgufVocab { pad: Some(2), more_eos: vec![3], ..letters(70) };
    let files = FolderFiles::made(&spec, &byte_level, "a.gguf").unwrap();
    let plan =
        |files: &FolderFiles| FolderPlan::hf(&spec, files, &about(), Float::BF16, &codecs(&spec, |_| CodecId::BF16)).unwrap();
    let written = plan(&files).config().clone();
    assert_eq!((&written["eos_token_id"], &written["pad_token_id"]), (&json!([1, 3]), &json!(2)));
    assert_eq!((&written["torch_dtype"], &written["architectures"]), (&json!("bfloat16"), &json!(["LlamaForCausalLM"])));
    assert_eq!(ModelSpec::from_config(&written).unwrap().rope, spec.rope);
    let dir = tempfile::tempdir().unwrap();
    let out = plan(&files).write(dir.path().join("out"), |role| Ok(encoded(&spec, role, CodecId::BF16))).unwrap().path;
    let read = |name: &str| -> Value { serde_json::from_slice(&std::fs::read(out.join(name)).unwrap()).unwrap() };
    assert_eq!(read("generation_config.json"), json!({"bos_token_id": 0, "eos_token_id": [1, 3], "pad_token_id": 2}));
    let again = GgufVocab::from_hf_folder(&out, 70).unwrap();
    assert_eq!((again.pre, again.tokens, again.merges), (byte_level.pre, byte_level.tokens, byte_level.merges));
    // Other kinds of folder take the same files; and a vocabulary must fit the model.
    let mlx = FolderPlan::mlx(&spec, &files, &about(), Float::F16, &codecs(&spec, |_| CodecId::F16)).unwrap();
    assert_eq!((&mlx.config()["torch_dtype"], &mlx.config()["eos_token_id"]), (&json!("float16"), &json!([1, 3])));
    let e = FolderFiles::made(&spec, &letters(71), "a.gguf").unwrap_err();
    assert_eq!((e.kind, e.file.as_deref()), (ErrorKind::Corrupt, Some(Path::new("a.gguf"))));
    let e = FolderFiles::made(&spec, &GgufVocab { bos: None, ..letters(70) }, "a.gguf").unwrap_err();
    assert_eq!(e.kind, ErrorKind::Corrupt);
}

#[test]
fn a_dense_mlx_folder_has_no_quantization() {
    let dir = tempfile::tempdir().unwrap();
    let src = dir.path().join("src");
    std::fs::create_dir(&src).unwrap();
    source(&src);
    let spec = spec();
    let plan =
        FolderPlan::mlx(&spec, &FolderFiles::of_folder(&src).unwrap(), &about(), Float::F16, &codecs(&spec, |_| CodecId::F16))
            .unwrap();
    assert!(plan.config().get("quantization").is_none());
    assert_eq!(plan.config()["torch_dtype"], "float16");
    // Norms come as F32 and are stored as planned.
    let dense = |role: Role| encoded(&spec, role, if role.part.is_matrix() { CodecId::F16 } else { CodecId::F32 });
    plan.write(dir.path().join("out"), |role| Ok(dense(role))).unwrap();
    let checkpoint = Checkpoint::open(dir.path().join("out")).unwrap();
    let norm = Role::layer(0, Part::FfnNorm);
    assert_eq!(checkpoint.codec(norm).unwrap(), Encoding::Codec(CodecId::F16));
    assert_eq!(checkpoint.read(norm).unwrap().data, values(norm, 64));
}

#[test]
fn mlx_needs_a_configuration_and_its_own_codecs() {
    let dir = tempfile::tempdir().unwrap();
    let spec = spec();
    assert_eq!(FolderFiles::of_folder(dir.path()).unwrap_err().kind, ErrorKind::Missing);
    source(dir.path());
    let files = FolderFiles::of_folder(dir.path()).unwrap();
    let plan = |codec| FolderPlan::mlx(&spec, &files, &about(), Float::BF16, &codecs(&spec, |_| codec)).map(|_| ());
    assert_eq!(plan(CodecId::Q8_0).unwrap_err().kind, ErrorKind::Unsupported);
    plan(CodecId::BF16).unwrap();
}

#[test]
fn metadata_can_be_added() {
    let dir = tempfile::tempdir().unwrap();
    let spec = spec();
    let mut plan = GgufPlan::new(&spec, &vocab(70), &about(), "f32", &codecs(&spec, |_| CodecId::F32)).unwrap();
    plan.metadata_mut().set("bitsmith.method", "gptq");
    let path = dir.path().join("a.gguf");
    plan.write(&path, |role| Ok(encoded(&spec, role, CodecId::F32))).unwrap();
    assert_eq!(GgufStore::open(&path).unwrap().metadata().optional("bitsmith.method", Metadata::str).unwrap(), Some("gptq"));
}
