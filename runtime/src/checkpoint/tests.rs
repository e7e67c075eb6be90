use super::*;
use crate::arch::Order;
use crate::memory::MemoryWeights;
use crate::spec::RopeScaling;
use crate::testing::{config, model};
use bitsmith_formats::gguf::{Metadata, write_gguf};
use bitsmith_formats::safetensors::{SafetensorsWriter, TensorPlan};
use bitsmith_formats::{CodecId, EncodedTensor, ErrorKind};
use serde_json::json;
use std::collections::BTreeMap;

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn hf_tensors(source: &MemoryWeights) -> Tensors {
    let named = |role: Role| {
        let t = source.read(role).unwrap();
        let places = source.spec().arch.places(source.spec(), ContainerKind::Hf, role).unwrap();
        (places[0].name.clone(), (t.shape, t.data))
    };
    source.spec().roles().into_iter().map(named).collect()
}

fn write_hf(folder: &Path, config: &Value, tensors: &Tensors) {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let plans = tensors.iter().map(|(n, (s, _))| TensorPlan::float(n, CodecId::F32, s).unwrap()).collect();
    let file = SafetensorsWriter::create(folder.join("model.safetensors"), plans, &BTreeMap::new()).unwrap();
    for (name, (_, data)) in tensors {
        let bytes: Vec<u8> = data.iter().flat_map(|v| v.to_le_bytes()).collect();
        file.write(name, &bytes).unwrap();
    }
    file.finish().unwrap();
}

/// Writes a GGUF as a converter does, with q and k interleaved where the architecture asks for it.
fn write_model_gguf(path: &Path, source: &MemoryWeights, extra: &[(String, EncodedTensor)], change: impl Fn(&mut Metadata)) {
    let spec = source.spec();
    let mut meta = Metadata::new();
    meta.set("general.architecture", spec.arch.gguf);
    spec.gguf_metadata().unwrap().into_iter().for_each(|(key, value)| meta.set(key, value));
    meta.set("tokenizer.ggml.bos_token_id", 1u32);
    meta.set("tokenizer.ggml.eos_token_id", 2u32);
    change(&mut meta);
    let tensor = |role: Role| {
        let t = source.read(role).unwrap();
        let [place] = &spec.arch.places(spec, ContainerKind::Gguf, role).unwrap()[..] else { panic!("one tensor each") };
        let mut data = place.order.apply(&t.data, if t.shape.len() > 1 { t.shape[1] } else { 1 });
        if let Order::Plus(offset) = place.order {
            data.iter_mut().for_each(|v| *v += offset);
        }
        (role.to_string(), EncodedTensor::encode(CodecId::F32, &t.shape, &data, None).unwrap())
    };
    let mut tensors: Vec<_> = spec.roles().into_iter().map(tensor).collect();
    tensors.extend_from_slice(extra);
    write_gguf(path, &meta, &tensors).unwrap();
}

fn assert_same(a: &dyn WeightSource, b: &dyn WeightSource) {
    assert_eq!(a.spec().roles(), b.spec().roles());
    for role in a.spec().roles() {
        assert_eq!(a.read(role).unwrap(), b.read(role).unwrap(), "{role}");
    }
}

#[test]
fn folder_and_gguf_give_the_same_weights() {
    let dir = tempfile::tempdir().unwrap();
    for (model_type, changes) in [
        ("llama", json!({"attention_bias": true, "tie_word_embeddings": true})),
        ("mistral", json!({})),
        ("qwen2", json!({})),
        ("qwen3", json!({"head_dim": 12})),
    ] {
        let source = model(model_type, changes.clone());
        let config = config(model_type, changes);
        write_hf(dir.path(), &config, &hf_tensors(&source));
        let hf = Checkpoint::open(dir.path()).unwrap();
        assert_eq!((hf.kind(), hf.config()), (ContainerKind::Hf, Some(&config)));
        assert_same(&hf, &source);
        let file = dir.path().join(format!("{model_type}.gguf"));
        write_model_gguf(&file, &source, &[], |_| {});
        let gguf = Checkpoint::open(&file).unwrap();
        assert_eq!(gguf.kind(), ContainerKind::Gguf);
        assert_same(&gguf, &source);
        for role in source.spec().roles() {
            let whole = source.read(role).unwrap();
            let row_len = *whole.shape.last().unwrap();
            for row in 0..whole.data.len() / row_len {
                let want = &whole.data[row * row_len..(row + 1) * row_len];
                assert_eq!(gguf.read_rows(role, row..row + 1).unwrap(), want, "{role} row {row}");
            }
        }
        let (a, b) = (gguf.spec(), source.spec());
        assert_eq!((a.vocab_size, a.head_dim, a.norm.eps, a.rope.theta), (b.vocab_size, b.head_dim, b.norm.eps, b.rope.theta));
        assert_eq!((a.context_length, a.bos, &a.eos), (b.context_length, b.bos, &b.eos));
        assert_eq!(gguf.codec(Role::layer(0, Part::AttnQ)).unwrap(), Encoding::Codec(CodecId::F32));
    }
}

#[test]
fn gguf_rope_variants() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.gguf");
    let source = model("llama", json!({}));
    let factors = EncodedTensor::encode(CodecId::F32, &[4], &[1.0, 2.0, 4.0, 8.0], None).unwrap();
    write_model_gguf(&file, &source, &[("rope_freqs.weight".into(), factors.clone())], |_| {});
    let c = Checkpoint::open(&file).unwrap();
    assert_eq!(c.spec().rope.scaling, RopeScaling::Factors(vec![1.0, 2.0, 4.0, 8.0]));
    assert_eq!(c.map().dropped, ["rope_freqs.weight"]);
    write_model_gguf(&file, &source, &[], |m| {
        m.set("llama.rope.scaling.type", "linear");
        m.set("llama.rope.scaling.factor", 4f32);
    });
    assert_eq!(Checkpoint::open(&file).unwrap().spec().rope.scaling, RopeScaling::Linear { factor: 4.0 });
    write_model_gguf(&file, &source, &[], |m| m.set("llama.rope.scaling.type", "telescope"));
    assert_eq!(Checkpoint::open(&file).unwrap_err().kind, ErrorKind::Unsupported);
    write_model_gguf(&file, &source, &[], |m| m.set("general.architecture", "mamba"));
    let e = Checkpoint::open(&file).unwrap_err();
    assert_eq!((e.kind, e.file.as_deref()), (ErrorKind::Unsupported, Some(file.as_path())));
    write_model_gguf(&file, &source, &[], |m| m.set("llama.attention.head_count", 5u32));
    assert_eq!(Checkpoint::open(&file).unwrap_err().kind, ErrorKind::Corrupt);
    write_model_gguf(&file, &source, &[], |m| {
        m.remove("llama.block_count");
    });
    assert!(Checkpoint::open(&file).unwrap_err().message.contains("llama.block_count"));
    let short = EncodedTensor::new(&[2], factors.codec, factors.bytes[..8].to_vec());
    write_model_gguf(&file, &source, &[("rope_freqs.weight".into(), short)], |_| {});
    assert_eq!(Checkpoint::open(&file).unwrap_err().kind, ErrorKind::Corrupt);
}

#[test]
fn a_missing_key_for_tied_embeddings_is_settled_by_the_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let source = model("llama", json!({}));
    let config = config("llama", json!({"tie_word_embeddings": null}));
    let mut tensors = hf_tensors(&source);
    write_hf(dir.path(), &json!({"tie": 0}), &tensors);
    let mut without_key = config.clone();
    without_key.as_object_mut().unwrap().remove("tie_word_embeddings");
    write_hf(dir.path(), &without_key, &tensors);
    assert!(!Checkpoint::open(dir.path()).unwrap().spec().tied);
    tensors.remove("lm_head.weight");
    write_hf(dir.path(), &without_key, &tensors);
    assert!(Checkpoint::open(dir.path()).unwrap().spec().tied);
}

#[test]
fn generation_config_decides_on_eos() {
    let dir = tempfile::tempdir().unwrap();
    write_hf(dir.path(), &config("llama", json!({})), &hf_tensors(&model("llama", json!({}))));
    std::fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [9, 8]}"#).unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().spec().eos, [9, 8]);
    std::fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": "x"}"#).unwrap();
    let e = Checkpoint::open(dir.path()).unwrap_err();
    assert!(e.kind == ErrorKind::Corrupt && e.file.unwrap().ends_with("generation_config.json"));
}

#[test]
fn bad_checkpoints_name_file_and_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let good = config("llama", json!({}));
    let tensors = hf_tensors(&model("llama", json!({})));
    let open = || Checkpoint::open(dir.path()).unwrap_err();
    let q = "model.layers.1.self_attn.q_proj.weight";

    let mut bad = tensors.clone();
    bad.insert(q.into(), (vec![16, 32], vec![0.0; 512]));
    write_hf(dir.path(), &good, &bad);
    let e = open();
    assert_eq!((e.kind, e.tensor.as_deref()), (ErrorKind::Corrupt, Some(q)));
    assert!(e.file.unwrap().ends_with("model.safetensors") && e.message.contains("[16, 32], expected [32, 32]"));

    bad.remove(q);
    write_hf(dir.path(), &good, &bad);
    let e = open();
    assert_eq!((e.kind, e.tensor.as_deref()), (ErrorKind::Missing, Some(q)));

    let mut nan = tensors.clone();
    nan.get_mut(q).unwrap().1[70] = f32::NAN;
    write_hf(dir.path(), &good, &nan);
    let e = Checkpoint::open(dir.path()).unwrap().read(Role::layer(1, Part::AttnQ)).unwrap_err();
    assert_eq!((e.kind, e.tensor.as_deref()), (ErrorKind::Corrupt, Some(q)));

    write_hf(dir.path(), &config("llama", json!({"hidden_size": null})), &tensors);
    let e = open();
    assert!(e.kind == ErrorKind::Corrupt && e.file.unwrap().ends_with("config.json") && e.message.contains("hidden_size"));

    let unknown = config("llama", json!({"quantization_config": {"quant_method": "aqlm", "bits": 4}}));
    write_hf(dir.path(), &unknown, &tensors);
    let e = open();
    assert!(e.kind == ErrorKind::Unsupported && e.message.contains("aqlm"));

    std::fs::write(dir.path().join("config.json"), "{").unwrap();
    assert_eq!(open().kind, ErrorKind::Corrupt);
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    let e = open();
    assert!(e.kind == ErrorKind::Missing && e.file.unwrap().ends_with("config.json"));
    assert_eq!(Checkpoint::open(dir.path().join("absent")).unwrap_err().kind, ErrorKind::Missing);
}
