//! A tiny model in memory, written and read back.

use crate::{ArtifactWriter, FolderFiles, FolderPlan, GgufPlan, ModelAbout, PlannedTensor, gguf};
use bitsmith_formats::gguf::{GgufStore, Metadata};
use bitsmith_formats::{CodecId, EncodedTensor, Encoding, ErrorKind, Float, TensorStore};
use bitsmith_runtime::arch::Order;
use bitsmith_runtime::tokenizer::{GgufVocab, TokenType, VocabModel};
use bitsmith_runtime::{Checkpoint, ModelSpec, Part, Role, WeightSource};
use serde_json::{Value, json};
use std::path::Path;

mod folders;

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
        lowercase: false,
        strip_accents: false,
        templates: Default::default(),
        notes: Vec::new(),
    }
}

/// A source folder: config and small files, no weights.
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
    assert_eq!(freqs, spec.rope.factors().unwrap());
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
    assert_eq!((got.n_layers, got.head_dim, got.vocab_size, got.norm.eps as f32), (2, 16, 70, 1e-5));
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
        PlannedTensor { role, first_row: 0, order: Order::Same, name: role.to_string(), shape: vec![2, 64], codec, bytes: 72 }
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
fn metadata_can_be_added() {
    let dir = tempfile::tempdir().unwrap();
    let spec = spec();
    let mut plan = GgufPlan::new(&spec, &vocab(70), &about(), "f32", &codecs(&spec, |_| CodecId::F32)).unwrap();
    plan.metadata_mut().set("bitsmith.method", "gptq");
    let path = dir.path().join("a.gguf");
    plan.write(&path, |role| Ok(encoded(&spec, role, CodecId::F32))).unwrap();
    assert_eq!(GgufStore::open(&path).unwrap().metadata().optional("bitsmith.method", Metadata::str).unwrap(), Some("gptq"));
}
