//! Checkpoints that the layouts' own packages wrote (`tests/golden/README.md`): the same shapes and values must come out, whole and by
//! rows; damaged ones must be refused with a word on what is wrong.

use bitsmith_formats::packed::PackedStore;
use bitsmith_formats::safetensors::{SafetensorsStore, SafetensorsWriter, TensorPlan};
use bitsmith_formats::{Container, Encoding, ErrorKind, TensorStore, open_store};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Case, the encoding that is offered, and how exactly the package's values must be met: packages compute in the weights' type.
const CASES: [(&str, &str, f32); 22] = [
    ("bnb-fp4", "fp4-g64", 1e-6),
    ("bnb-int8", "int8-g64-f32-sym", 1e-3),
    ("bnb-nf4", "nf4-g64", 1e-6),
    ("bnb-nf4-double", "nf4-g64", 1e-6),
    ("bnb-nf4-ragged", "nf4-g32", 1e-6),
    ("ct-fp8-block", "fp8-g32-f32", 1e-6),
    ("ct-fp8-channel", "fp8-g64-bf16", 4e-3),
    ("ct-fp8-tensor", "fp8-g64-f32", 1e-6),
    ("ct-int3-channel-asym", "int3-g64-f32", 1e-6),
    ("ct-int4-channel", "int4-g64-f16-sym", 1e-3),
    ("ct-int4-g16-asym", "int4-g16-f32", 1e-6),
    ("ct-int4-g32", "int4-g32-bf16-sym", 4e-3),
    ("ct-int5-g32", "int5-g32-f32-sym", 1e-6),
    ("ct-int8-g64", "int8-g64-f32-sym", 1e-6),
    ("ct-mxfp4", "mlx-mxfp4", 1e-6),
    ("ct-mxfp8", "mlx-mxfp8", 1e-6),
    ("ct-nvfp4", "mlx-nvfp4", 1e-6),
    ("ct-w8a8", "int8-g64-bf16-sym", 4e-3),
    ("fp8-partial-tiles", "fp8-g32-f32", 1e-6),
    ("fp8-tiles", "fp8-g32-f32", 1e-6),
    ("gpt-oss", "mlx-mxfp4", 1e-6),
    ("modelopt-nvfp4", "mlx-nvfp4", 1e-6),
];

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/packed").join(case)
}

#[test]
fn values_are_the_packages() {
    for (case, encoding, precision) in CASES {
        assert_eq!(Container::detect(golden(case)).unwrap(), Container::Packed, "{case}");
        let store = open_store(golden(case)).unwrap_or_else(|e| panic!("{case}: {e}"));
        let decoded = SafetensorsStore::open(golden(case).join("decoded.safetensors")).unwrap();
        let [expected] = decoded.tensors() else { panic!("{case}: one tensor is expected") };
        let names: Vec<&str> = store.tensors().iter().map(|t| t.name.as_str()).filter(|n| *n != "model.norm.weight").collect();
        assert_eq!(names, [expected.name.as_str()], "{case}: no plane is a tensor of its own");
        let info = store.find(&expected.name).unwrap();
        assert_eq!(info.encoding.to_string(), encoding, "{case}");
        let (shape, values) = store.read_f32(&expected.name).unwrap_or_else(|e| panic!("{case}: {e}"));
        let (expected_shape, wanted) = decoded.read_f32(&expected.name).unwrap();
        assert_eq!(shape, expected_shape, "{case}");
        for (i, (got, want)) in values.iter().zip(&wanted).enumerate() {
            assert!((got - want).abs() <= precision * want.abs() + 1e-9, "{case}, weight {i}: {got} instead of {want}");
        }
        let width = info.row_len();
        for rows in [0..1, 3..7, info.n_rows() - 1..info.n_rows()] {
            let part = store.read_rows(&expected.name, rows.clone()).unwrap();
            assert_eq!(part, values[rows.start * width..rows.end * width], "{case} {rows:?}");
        }
    }
}

#[test]
fn whole_groups_are_offered_as_they_are_stored() {
    for (case, ..) in CASES {
        let decoded = ["bnb-fp4", "bnb-nf4-ragged", "ct-int5-g32", "fp8-partial-tiles"].contains(&case);
        let store = PackedStore::open(golden(case)).unwrap();
        let info = store.tensors().iter().find(|t| t.name != "model.norm.weight").unwrap();
        assert_eq!(matches!(info.encoding, Encoding::Decoded(_)), decoded, "{case}");
    }
}

/// What a damaged copy of a case changes: its configuration, or its tensors by name, each as dtype, shape and bytes.
type Tensors = BTreeMap<String, (String, Vec<usize>, Vec<u8>)>;

fn damaged(case: &str, change: impl FnOnce(&mut Value, &mut Tensors)) -> bitsmith_formats::Error {
    let dir = tempfile::tempdir().unwrap();
    let mut config: Value = serde_json::from_slice(&std::fs::read(golden(case).join("config.json")).unwrap()).unwrap();
    let store = SafetensorsStore::open(golden(case).join("model.safetensors")).unwrap();
    let dtype = |encoding: &Encoding| encoding.to_string().to_uppercase();
    let tensor = |t: &bitsmith_formats::TensorInfo| (dtype(&t.encoding), t.shape.clone(), store.bytes(&t.name).unwrap().to_vec());
    let mut tensors: Tensors = store.tensors().iter().map(|t| (t.name.clone(), tensor(t))).collect();
    change(&mut config, &mut tensors);
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    for file in ["hf_quant_config.json"] {
        if golden(case).join(file).is_file() {
            std::fs::copy(golden(case).join(file), dir.path().join(file)).unwrap();
        }
    }
    let plans = tensors.iter().map(|(name, (dtype, shape, _))| TensorPlan::new(name, dtype, shape).unwrap()).collect();
    let writer = SafetensorsWriter::create(dir.path().join("model.safetensors"), plans, &BTreeMap::new()).unwrap();
    for (name, (.., bytes)) in &tensors {
        writer.write(name, bytes).unwrap();
    }
    writer.finish().unwrap();
    let error = open_store(dir.path()).and_then(|store| {
        let names: Vec<String> = store.tensors().iter().map(|t| t.name.clone()).collect();
        names.iter().try_for_each(|name| store.read_f32(name).map(drop))
    });
    error.expect_err(case)
}

const UP: &str = "model.layers.0.mlp.up_proj";

/// Leaves out the last row of a tensor.
fn shorten(tensors: &mut Tensors, name: &str) {
    let (_, shape, bytes) = tensors.get_mut(name).unwrap();
    let rows = shape[0];
    bytes.truncate(bytes.len() / rows * (rows - 1));
    shape[0] -= 1;
}

#[test]
fn missing_planes_are_named() {
    for (case, plane) in [
        ("ct-int4-g32", "weight_scale"),
        ("ct-int4-g32", "weight_shape"),
        ("ct-int4-g16-asym", "weight_zero_point"),
        ("ct-nvfp4", "weight_global_scale"),
        ("ct-fp8-channel", "weight_scale"),
        ("modelopt-nvfp4", "weight_scale_2"),
        ("bnb-nf4", "weight.absmax"),
        ("bnb-nf4-double", "weight.nested_quant_map"),
        ("bnb-int8", "weight"),
    ] {
        let name = format!("{UP}.{plane}");
        let error = damaged(case, |_, tensors| drop(tensors.remove(&name).unwrap()));
        assert_eq!((error.kind, error.tensor.as_deref()), (ErrorKind::Missing, Some(name.as_str())), "{case} {plane}: {error}");
        assert!(error.hint.is_some() && error.file.is_some());
    }
}

#[test]
fn planes_that_do_not_fit_are_refused() {
    for (case, plane) in [
        ("ct-int4-g32", "weight_packed"),
        ("ct-int4-g32", "weight_scale"),
        ("ct-int4-g16-asym", "weight_zero_point"),
        ("ct-nvfp4", "weight_scale"),
        ("ct-mxfp8", "weight_scale"),
        ("ct-fp8-block", "weight_scale"),
        ("ct-w8a8", "weight_scale"),
        ("fp8-tiles", "weight_scale_inv"),
        ("modelopt-nvfp4", "weight_scale"),
        ("bnb-nf4", "weight"),
        ("bnb-nf4", "weight.absmax"),
        ("bnb-nf4-double", "weight.nested_quant_map"),
        ("bnb-int8", "SCB"),
    ] {
        let error = damaged(case, |_, tensors| shorten(tensors, &format!("{UP}.{plane}")));
        assert_eq!(error.kind, ErrorKind::Corrupt, "{case} {plane}: {error}");
        assert!(error.tensor.is_some() && error.file.is_some() && error.hint.is_some(), "{case} {plane}: {error}");
    }
    let error = damaged("gpt-oss", |_, t| shorten(t, "model.layers.0.mlp.experts.down_proj_scales"));
    assert_eq!(error.kind, ErrorKind::Corrupt);
    // Other types of the right shape.
    let error = damaged("ct-nvfp4", |_, t| t.get_mut(&format!("{UP}.weight_scale")).unwrap().0 = "I8".into());
    assert!(error.message.contains("should be F8_E4M3"), "{error}");
    let error = damaged("ct-nvfp4", |_, t| t.get_mut(&format!("{UP}.weight_global_scale")).unwrap().2.fill(0));
    assert!(error.message.contains("positive"), "{error}");
}

#[test]
fn configurations_must_agree_with_the_planes() {
    let group = "/quantization_config/config_groups/group_0";
    let set = |pointer: &'static str, value: Value| {
        move |config: &mut Value, _: &mut Tensors| *config.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value
    };
    let weights = |key: &str| -> &'static str { Box::leak(format!("{group}/weights/{key}").into_boxed_str()) };
    for (case, pointer, value) in [
        ("ct-int4-g32", weights("num_bits"), Value::from(8)),
        ("ct-int4-g32", weights("num_bits"), Value::from(0)),
        ("ct-int4-g32", weights("group_size"), Value::from(64)),
        ("ct-int4-g32", weights("type"), Value::from("complex")),
        ("ct-w8a8", weights("type"), Value::from("float")),
        ("ct-nvfp4", weights("group_size"), Value::from(64)),
        ("ct-int4-g32", "/quantization_config/ignore", serde_json::json!(["re:.*up_proj"])),
        ("ct-int4-g32", "/quantization_config/ignore", serde_json::json!(["re:("])),
        ("ct-int4-g32", "/quantization_config/config_groups", serde_json::json!([])),
        ("fp8-tiles", "/quantization_config/weight_block_size", serde_json::json!([16])),
        ("fp8-tiles", "/quantization_config/weight_block_size", serde_json::json!([64, 64])),
    ] {
        let error = damaged(case, set(pointer, value.clone()));
        assert!(matches!(error.kind, ErrorKind::Corrupt | ErrorKind::Unsupported), "{case} {pointer} {value}: {error}");
        assert!(error.file.is_some(), "{case} {pointer} {value}: {error}");
    }
    // A group that names the module goes before one that names its class.
    let dir = tempfile::tempdir().unwrap();
    let mut config: Value = serde_json::from_slice(&std::fs::read(golden("ct-int4-g32").join("config.json")).unwrap()).unwrap();
    let mut wrong = config.pointer(group).unwrap().clone();
    wrong["weights"]["num_bits"] = 8.into();
    config.pointer_mut(group).unwrap()["targets"] = serde_json::json!(["re:.*up_proj"]);
    config["quantization_config"]["config_groups"] = serde_json::json!({ "a": wrong, "b": config.pointer(group).unwrap() });
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    std::fs::copy(golden("ct-int4-g32").join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    assert!(PackedStore::open(dir.path()).is_ok());
}

#[test]
fn hostile_states_are_refused() {
    let name = format!("{UP}.weight.quant_state.bitsandbytes__nf4");
    for json in [
        "{",
        "{}",
        r#"{"blocksize": 64}"#,
        r#"{"blocksize": 0, "shape": [24, 64]}"#,
        r#"{"blocksize": 64, "shape": [24, 0]}"#,
        r#"{"blocksize": 64, "shape": [4294967296, 4294967296, 4294967296]}"#,
        r#"{"blocksize": 64, "shape": [24, 65]}"#,
        r#"{"blocksize": 64, "shape": [-24, 64]}"#,
    ] {
        let error = damaged("bnb-nf4", |_, t| *t.get_mut(&name).unwrap() = ("U8".into(), vec![json.len()], json.into()));
        assert_eq!(error.kind, ErrorKind::Corrupt, "{json}: {error}");
    }
    let shape = format!("{UP}.weight_shape");
    for numbers in [[24i64, 65], [0, 64], [-1, 64], [i64::MAX, i64::MAX]] {
        let bytes = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        let error = damaged("ct-int4-g32", |_, t| t.get_mut(&shape).unwrap().2 = bytes);
        assert_eq!(error.kind, ErrorKind::Corrupt, "{numbers:?}: {error}");
    }
    let error = damaged("bnb-int8", |_, t| t.get_mut(&format!("{UP}.weight_format")).unwrap().2[0] = 2);
    assert_eq!(error.kind, ErrorKind::Unsupported);
}
