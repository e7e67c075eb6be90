//! Folders: plain and MLX, their files copied or made.

use super::*;
use bitsmith_formats::mlx::MlxStore;

/// A vocabulary that the tokenizer library takes: special tokens, letters and one merge.
fn letters(n: usize) -> GgufVocab {
    let mut tokens: Vec<String> = ["<s>", "</s>", "<pad>", "<|end|>"].map(String::from).into();
    tokens.extend(('!'..).take(n - 5).map(String::from));
    tokens.push("AB".into());
    let mut types = vec![TokenType::Normal; n];
    types[..4].fill(TokenType::Control);
    GgufVocab { tokens, types, merges: vec![("A".into(), "B".into())], ..vocab(n) }
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
    assert!(text.starts_with("{\n    \"architectures\""));
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
