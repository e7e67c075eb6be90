//! GPTQ and AWQ checkpoints against the tools' own packing. The vectors and how they were made: `tests/golden/README.md`.

use bitsmith_formats::packed::{PackedFormat, PackedStore, PackedWriter, ZeroPoints};
use bitsmith_formats::safetensors::SafetensorsStore;
use bitsmith_formats::{CodecId, EncodedTensor, Encoding, ErrorKind, Float, TensorStore, sha256_bytes};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const WEIGHT: &str = "m.weight";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

fn manifest() -> serde_json::Map<String, Value> {
    serde_json::from_slice(&std::fs::read(golden("gptq/manifest.json")).unwrap()).unwrap()
}

/// A checkpoint folder of one golden file.
fn folder(case: &str, config: &Value) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(golden(&format!("gptq/{case}.safetensors")), dir.path().join("model.safetensors")).unwrap();
    std::fs::write(dir.path().join("config.json"), json!({ "quantization_config": config }).to_string()).unwrap();
    dir
}

/// The 64 × 64 weights that the files were made from.
fn weights() -> Vec<f32> {
    let all: Vec<f32> = std::fs::read(golden("ggml/weights.f32"))
        .unwrap()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect();
    [0, 4, 6, 15].iter().flat_map(|row| all[row * 1024..(row + 1) * 1024].to_vec()).collect()
}

/// The layout as it would be written.
fn format(config: &Value) -> PackedFormat {
    match (config["quant_method"].as_str(), config["checkpoint_format"].as_str()) {
        (Some("awq"), _) => PackedFormat::Awq,
        (_, Some("gptq_v2")) => PackedFormat::Gptq(ZeroPoints::AsTheyAre),
        _ => PackedFormat::Gptq(ZeroPoints::MinusOne),
    }
}

fn planes(store: &dyn TensorStore) -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let plane = |t: &bitsmith_formats::TensorInfo| (t.name.clone(), t.shape.clone(), store.bytes(&t.name).unwrap().into_owned());
    let mut all: Vec<_> = store.tensors().iter().map(plane).collect();
    all.sort();
    all
}

fn error(case: &str, change: impl Fn(&mut Value)) -> bitsmith_formats::Error {
    let mut config = manifest()[case]["config"].clone();
    change(&mut config);
    let dir = folder(case, &config);
    PackedStore::open(dir.path()).and_then(|s| s.read_f32(WEIGHT)).unwrap_err()
}

#[test]
fn checkpoints_decode_as_their_tools_decode_them() {
    for (case, about) in manifest() {
        let dir = folder(&case, &about["config"]);
        let store = PackedStore::open(dir.path()).unwrap();
        assert_eq!(store.tensors().len(), 1, "{case}");
        let (shape, values) = store.read_f32(WEIGHT).unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(
            (shape.as_slice(), sha256_bytes(&bytes)),
            (&[64, 64][..], about["decoded_sha256"].as_str().unwrap().into()),
            "{case}"
        );
        let info = store.find(WEIGHT).unwrap();
        assert_eq!(matches!(info.encoding, Encoding::Decoded(_)), case.ends_with("-act"), "{case}: {}", info.encoding);
        assert_eq!(info.n_bytes, planes(&SafetensorsStore::open(dir.path()).unwrap()).iter().map(|p| p.2.len()).sum::<usize>());
        // Any range of rows gives the same as the whole.
        for rows in [0..0, 0..1, 63..64, 5..43, 8..16, 30..34] {
            assert_eq!(store.read_rows(WEIGHT, rows.clone()).unwrap(), values[rows.start * 64..rows.end * 64], "{case}");
        }
    }
}

#[test]
fn weights_are_rounded_and_packed_as_the_tools_do() {
    let weights = weights();
    for (case, about) in manifest() {
        let config = &about["config"];
        // Orders of activation are not written.
        if case.ends_with("-act") {
            continue;
        }
        let dir = folder(&case, config);
        let group = config["group_size"].as_u64().unwrap_or(64) as u32;
        let bits = config["bits"].as_u64().unwrap() as u8;
        let codec = CodecId::IntGroup { bits, group, scale: scale(&case), symmetric: config["sym"] == true };
        let ours = EncodedTensor::encode(codec, &[64, 64], &weights, None).unwrap();
        let store = PackedStore::open(dir.path()).unwrap();
        let theirs = store.bytes(WEIGHT).unwrap();
        // The zero points 0 of AutoGPTQ's files had been raised to 1.
        let block = codec.codec().block_bytes();
        let rows = ours.bytes.len() / 64;
        let raised = |row: &[u8]| case.starts_with("autogptq") && row.chunks_exact(block).any(|b| b[block - 1] == 0);
        let same = ours.bytes.chunks_exact(rows).zip(theirs.chunks_exact(rows)).filter(|(o, t)| o == t || raised(o)).count();
        assert_eq!(same, 64, "{case}");
        if *ours.bytes != *theirs || case.ends_with("-v1") {
            continue;
        }
        let mut split = format(config).split_planes(WEIGHT, &ours).unwrap();
        split.sort();
        let want = planes(&SafetensorsStore::open(dir.path()).unwrap());
        assert_eq!(split.len(), want.len());
        for ((name, bytes), (want_name, _, want)) in split.iter().zip(&want) {
            assert!(name == want_name && bytes.as_ref() == want, "{case}: {name}");
        }
    }
}

fn scale(case: &str) -> Float {
    let dir = folder(case, &manifest()[case]["config"]);
    match SafetensorsStore::open(dir.path()).unwrap().find("m.scales").unwrap().encoding {
        Encoding::Codec(codec) => codec.float().unwrap(),
        ref other => panic!("{other}"),
    }
}

#[test]
fn what_is_read_is_written_again_unchanged() {
    for (case, about) in manifest() {
        let config = &about["config"];
        let dir = folder(&case, config);
        let store = PackedStore::open(dir.path()).unwrap();
        let info = store.find(WEIGHT).unwrap();
        // Words that borrowed from each other hold zero points 0, which a v1 file is not given.
        let Encoding::Codec(codec) = info.encoding else { continue };
        let tensor = EncodedTensor::new(&info.shape, codec, store.bytes(WEIGHT).unwrap().into_owned());
        let out = tempfile::tempdir().unwrap();
        let plan = [(WEIGHT.to_string(), codec, info.shape.clone())];
        let writer = PackedWriter::create(out.path(), format(config), &plan, 1 << 30, None).unwrap();
        let block = codec.codec().block_bytes();
        let has_zero = tensor.bytes.chunks_exact(block).any(|b| b[block - 1] == 0);
        assert!(!(has_zero && case.starts_with("autogptq")));
        if has_zero && format(config) == PackedFormat::Gptq(ZeroPoints::MinusOne) {
            let error = writer.write_rows(WEIGHT, 0, &tensor).unwrap_err();
            assert!(error.kind == ErrorKind::Unsupported && error.message.contains("zero point 0"), "{error}");
            continue;
        }
        assert!(writer.write_rows("other.weight", 0, &tensor).is_err());
        let half = EncodedTensor::new(&[32, 64], codec, tensor.bytes[..tensor.bytes.len() / 2].to_vec());
        assert!(writer.write_rows(WEIGHT, 0, &half).is_err() && writer.write_rows(WEIGHT, 32, &half).is_err());
        writer.write_rows(WEIGHT, 0, &tensor).unwrap();
        writer.finish().unwrap();
        let [theirs, ours] = [dir.path(), out.path()].map(|p| planes(&SafetensorsStore::open(p).unwrap()));
        assert!(theirs == ours, "{case}");
    }
}

#[test]
fn planes_are_held_against_the_configuration() {
    for case in ["autogptq-4bit-g32", "autoawq-4bit-g32"] {
        let wrong = |key: &str, value: Value| error(case, |c| c[key] = value.clone());
        assert_eq!(wrong("bits", json!(5)).kind, ErrorKind::Unsupported);
        assert_eq!(wrong("bits", json!("four")).kind, ErrorKind::Corrupt);
        assert_eq!(wrong("group_size", json!(0)).kind, ErrorKind::Corrupt);
        let e = wrong("group_size", json!(64));
        assert!(e.kind == ErrorKind::Corrupt && e.tensor.as_deref() == Some("m.qzeros") && e.hint.is_some(), "{e}");
    }
    let e = error("autogptq-4bit-g32", |c| c["bits"] = json!(8));
    assert_eq!((e.kind, e.tensor.as_deref()), (ErrorKind::Corrupt, Some("m.qzeros")));
    for (key, value) in [("checkpoint_format", json!("marlin")), ("pack_dtype", json!("int64"))] {
        assert_eq!(error("autogptq-4bit-g32", |c| c[key] = value.clone()).kind, ErrorKind::Unsupported);
    }
    assert_eq!(error("autoawq-4bit-g32", |c| c["version"] = json!("gemv")).kind, ErrorKind::Unsupported);
    assert_eq!(error("autoawq-4bit-g32", |c| c["zero_point"] = json!(false)).kind, ErrorKind::Unsupported);
    // The planes of the other layout, and a plane that is not there.
    assert_eq!(error("autoawq-4bit-g32", |c| c["quant_method"] = json!("gptq")).kind, ErrorKind::Corrupt);
    let dir = folder("autogptq-4bit-g32", &manifest()["autogptq-4bit-g32"]["config"]);
    let model = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&model).unwrap();
    let at = bytes.windows(8).position(|w| w == b"m.scales").unwrap();
    let renamed = [&bytes[..at], b"m.scalez", &bytes[at + 8..]].concat();
    std::fs::write(&model, renamed).unwrap();
    let e = PackedStore::open(dir.path()).unwrap_err();
    assert_eq!((e.kind, e.tensor.as_deref()), (ErrorKind::Missing, Some("m.scales")));
}

#[test]
fn columns_must_be_in_groups_that_exist() {
    let case = "autogptq-4bit-g32-sym-act";
    let dir = folder(case, &manifest()[case]["config"]);
    let model = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&model).unwrap();
    let index = planes(&SafetensorsStore::open(dir.path()).unwrap()).remove(0);
    assert_eq!(index.0, "m.g_idx");
    let at = bytes.windows(index.2.len()).position(|w| w == index.2).unwrap();
    for group in [2i32, -1] {
        bytes[at + 4..at + 8].copy_from_slice(&group.to_le_bytes());
        std::fs::write(&model, &bytes).unwrap();
        let e = PackedStore::open(dir.path()).unwrap_err();
        assert!(e.kind == ErrorKind::Corrupt && e.message.contains(&format!("column 1 is in group {group}")), "{e}");
    }
}

#[test]
fn rules_for_modules_override_the_default() {
    let case = "autogptq-3bit-g32";
    let opens = |dynamic: Value| {
        let mut config = manifest()[case]["config"].clone();
        (config["bits"], config["group_size"], config["dynamic"]) = (json!(4), json!(64), dynamic);
        PackedStore::open(folder(case, &config).path()).map(|_| ())
    };
    assert!(opens(json!({})).is_err());
    // The first that matches counts; from the start of the name, not to its end; and with look-ahead.
    for rules in [
        json!({ "m": { "bits": 3, "group_size": 32 } }),
        json!({ "+:^(?!.*lm_head).*$": { "bits": 3, "group_size": 32 }, "-:m": {} }),
        json!({ "-:x?\\.m": {}, "+:m": { "bits": 3, "group_size": 32 } }),
    ] {
        opens(rules.clone()).unwrap_or_else(|e| panic!("{rules}: {e}"));
    }
    let e = opens(json!({ "-:.*": {}, "m": { "bits": 3, "group_size": 32 } })).unwrap_err();
    assert!(e.message.contains("not quantized"), "{e}");
    assert!(opens(json!({ "(": {} })).unwrap_err().message.contains("`(`"));
    assert_eq!(opens(json!([])).unwrap_err().kind, ErrorKind::Corrupt);
}

#[test]
fn older_checkpoints_have_a_file_of_their_own() {
    let case = "autogptq-4bit-g32";
    let dir = folder(case, &json!(null));
    assert!(PackedStore::open(dir.path()).is_err());
    let older = json!({ "bits": 4, "group_size": 32, "desc_act": false, "sym": false });
    std::fs::write(dir.path().join("quantize_config.json"), older.to_string()).unwrap();
    assert_eq!(PackedStore::open(dir.path()).unwrap().layout(), "gptq");
    std::fs::write(dir.path().join("quantize_config.json"), "{").unwrap();
    assert_eq!(PackedStore::open(dir.path()).unwrap_err().kind, ErrorKind::Corrupt);
}
