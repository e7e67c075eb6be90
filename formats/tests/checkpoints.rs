//! Checkpoints that the layouts' own packages wrote (`tests/golden/README.md`): the same shapes and values must come out, whole and by
//! rows; damaged ones must be refused with a word on what is wrong.

use bitsmith_formats::packed::{Described, PackedFormat, PackedStore, PackedWriter, compressed_tensors_config, modelopt_config};
use bitsmith_formats::safetensors::{SafetensorsStore, SafetensorsWriter, TensorPlan};
use bitsmith_formats::{
    CodecId, Container, EncodedTensor, Encoding, ErrorKind, Float, Micro, TensorInfo, TensorStore, open_store,
};
use proptest::prelude::*;
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
    ("ct-nvfp4", "mlx-nvfp4", 4e-3),
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
        let [wanted] = decoded.tensors() else { panic!("{case}: one tensor is expected") };
        // Blocks keep their name, as the dense matrix of the other is transposed.
        let name = if case == "gpt-oss" { format!("{}_blocks", wanted.name) } else { wanted.name.clone() };
        let expected = TensorInfo { name, ..wanted.clone() };
        let names: Vec<&str> = store.tensors().iter().map(|t| t.name.as_str()).filter(|n| *n != "model.norm.weight").collect();
        assert_eq!(names, [expected.name.as_str()], "{case}: no plane is a tensor of its own");
        let info = store.find(&expected.name).unwrap();
        assert_eq!(info.encoding.to_string(), encoding, "{case}");
        let (shape, values) = store.read_f32(&expected.name).unwrap_or_else(|e| panic!("{case}: {e}"));
        let (expected_shape, wanted) = decoded.read_f32(&wanted.name).unwrap();
        assert_eq!(shape, expected_shape, "{case}");
        let peak = wanted.iter().fold(0f32, |peak, v| peak.max(v.abs()));
        for (i, (got, want)) in values.iter().zip(&wanted).enumerate() {
            assert!((got - want).abs() <= precision * want.abs() + 1e-7 * peak, "{case}, weight {i}: {got} instead of {want}");
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

/// A weight of a case in its codec.
fn stored(store: &PackedStore, name: &str) -> EncodedTensor {
    let info = store.find(name).unwrap();
    let Encoding::Codec(codec) = info.encoding else { panic!("{name} is {}", info.encoding) };
    let mut tensor = EncodedTensor::new(&info.shape, codec, store.bytes(name).unwrap().into_owned());
    tensor.scale = info.scale;
    tensor
}

#[test]
fn planes_are_written_as_the_packages_write_them() {
    let compressed = ["ct-fp8-channel", "ct-int3-channel-asym", "ct-int4-channel", "ct-int4-g16-asym", "ct-int4-g32"];
    let compressed = compressed.into_iter().chain(["ct-int8-g64", "ct-mxfp4", "ct-mxfp8", "ct-nvfp4"]);
    let formats = compressed.map(|case| (case, PackedFormat::CompressedTensors));
    for (case, format) in formats.chain([("modelopt-nvfp4", PackedFormat::ModelOpt)]) {
        let name = format!("{UP}.weight");
        let tensor = stored(&PackedStore::open(golden(case)).unwrap(), &name);
        let theirs = SafetensorsStore::open(golden(case).join("model.safetensors")).unwrap();
        let plans = format.plan_planes(&name, tensor.codec, &tensor.shape).unwrap();
        let split = format.split_planes(&name, &tensor).unwrap();
        let ours: Vec<&str> = split.iter().map(|(name, _)| name.as_str()).collect();
        let of_weight = |n: &&str| n.starts_with(UP) && !n.ends_with("input_scale");
        let mut expected: Vec<&str> = theirs.tensors().iter().map(|t| t.name.as_str()).filter(of_weight).collect();
        expected.sort_by_key(|n| ours.iter().position(|o| o == n));
        assert_eq!(ours, expected, "{case}");
        for ((plane, bytes), plan) in split.iter().zip(plans) {
            let info = theirs.find(plane).unwrap();
            assert_eq!(plan.dtype(), info.encoding.to_string().to_uppercase(), "{case} {plane}");
            assert_eq!(plan.shape, info.shape, "{case} {plane}");
            if plane.ends_with("global_scale") {
                // A reciprocal of a reciprocal.
                let number = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
                let (got, want) = (number(bytes), number(&theirs.bytes(plane).unwrap()));
                assert!((got - want).abs() <= 2e-7 * want, "{case}: {got} {want}");
            } else {
                assert_eq!(bytes[..], theirs.bytes(plane).unwrap()[..], "{case} {plane}");
            }
        }
    }
}

/// Writes tensors and reads them back.
fn round_trip(format: PackedFormat, tensors: &[(&str, EncodedTensor)], config: Value) {
    let dir = tempfile::tempdir().unwrap();
    let plans: Vec<_> = tensors.iter().map(|(n, t)| (n.to_string(), t.codec, t.shape.clone())).collect();
    let writer = PackedWriter::create(dir.path(), format, &plans, 1 << 30, None).unwrap();
    for (name, tensor) in tensors {
        writer.write_rows(name, 0, tensor).unwrap();
    }
    writer.finish().unwrap();
    std::fs::write(dir.path().join("config.json"), serde_json::json!({ "quantization_config": config }).to_string()).unwrap();
    let store = PackedStore::open(dir.path()).unwrap();
    assert_eq!(store.tensors().len(), tensors.len());
    for (name, tensor) in tensors {
        let back = stored(&store, name);
        assert_eq!((back.codec, &back.shape, back.scale), (tensor.codec, &tensor.shape, tensor.scale));
        assert!(back.bytes == tensor.bytes, "{name} in {}", tensor.codec);
    }
}

/// Formats of one row length, at least 64 and a multiple of 32, that compressed-tensors can hold.
fn held(width: u32) -> impl Strategy<Value = CodecId> {
    let floats = prop::sample::select(vec![Float::F32, Float::F16, Float::BF16]);
    let integer = (prop::sample::select(vec![4u8, 8]), prop::sample::select(vec![8, 32, width]), floats.clone(), any::<bool>());
    let integer = integer.prop_map(|(bits, group, scale, symmetric)| CodecId::IntGroup { bits, group, scale, symmetric });
    let fp8 = (prop::sample::select(vec![32, width]), floats).prop_map(|(group, scale)| CodecId::Fp8Group { group, scale });
    let micro = prop::sample::select(vec![Micro::Mxfp4, Micro::Mxfp8, Micro::Nvfp4]).prop_map(CodecId::Micro);
    prop_oneof![integer, fp8, micro]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read(
        (width, first, second) in (2u32..5).prop_flat_map(|n| (Just(32 * n), held(32 * n), held(32 * n))),
        rows in 1usize..20,
        exponent in -20i32..20,
        seed in any::<u32>(),
    ) {
        let shape = [rows, width as usize];
        let weights: Vec<f32> = (0..rows * width as usize)
            .map(|i| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32 / 8_388_608.0 - 1.0).collect();
        let encode = |codec| {
            let mut tensor = EncodedTensor::encode(codec, &shape, &weights, None).unwrap();
            if codec == CodecId::Micro(Micro::Nvfp4) {
                tensor.scale = codec.tensor_scale(1.37 * 2f32.powi(exponent));
            }
            tensor
        };
        let tensors = [("a.weight", encode(first)), ("b.weight", encode(second)), ("c.weight", encode(CodecId::BF16))];
        let described: Vec<Described> = tensors.iter()
            .map(|(name, t)| Described { name, codec: t.codec, row_len: width as usize, linear: true }).collect();
        let config = compressed_tensors_config(&described).unwrap();
        prop_assert_eq!(&config["ignore"], &serde_json::json!(["c"]));
        round_trip(PackedFormat::CompressedTensors, &tensors, config);
        let tensors = [("a.weight", encode(CodecId::Micro(Micro::Nvfp4))), ("c.weight", encode(CodecId::BF16))];
        round_trip(PackedFormat::ModelOpt, &tensors, modelopt_config(&["c"]).0);
    }
}

#[test]
fn configurations_name_schemes_by_modules() {
    let int4 = |group| CodecId::IntGroup { bits: 4, group, scale: Float::BF16, symmetric: true };
    let tensor = |name, codec, row_len, linear| Described { name, codec, row_len, linear };
    let config = compressed_tensors_config(&[
        tensor("embed.weight", CodecId::BF16, 128, false),
        tensor("q.weight", int4(128), 128, true),
        tensor("down.weight", int4(128), 384, true),
        tensor("v.weight", CodecId::Fp8Group { group: 128, scale: Float::BF16 }, 128, true),
        tensor("lm_head.weight", CodecId::BF16, 128, true),
    ])
    .unwrap();
    let groups = config["config_groups"].as_object().unwrap();
    assert_eq!(groups.len(), 2, "a row that is one group counts as a group where other rows have several: {config}");
    assert_eq!(groups["group_0"]["targets"], serde_json::json!(["Linear"]));
    assert_eq!(
        (&groups["group_0"]["weights"]["strategy"], &groups["group_0"]["weights"]["group_size"]),
        (&"group".into(), &128.into())
    );
    assert_eq!(groups["group_1"]["targets"], serde_json::json!(["v"]));
    assert_eq!((&config["ignore"], &config["format"]), (&serde_json::json!(["lm_head"]), &"mixed-precision".into()));
    let channel = compressed_tensors_config(&[tensor("a.weight", int4(128), 128, true), tensor("b.weight", int4(64), 64, true)]);
    let channel = channel.unwrap();
    assert_eq!(channel["config_groups"]["group_0"]["weights"]["strategy"], "channel");
    assert_eq!((&channel["config_groups"].as_object().unwrap().len(), &channel["format"]), (&1, &"pack-quantized".into()));
    assert!(compressed_tensors_config(&[tensor("a.weight", CodecId::BF16, 64, true)]).is_err());
    assert!(compressed_tensors_config(&[tensor("a.weight", CodecId::Q4K, 256, true)]).is_err());
}

/// Planes that compressed-tensors and ModelOpt made of matrices by rounding to nearest: ours are the same bytes.
#[test]
fn rounding_is_the_packages() {
    let mut cases = 0;
    for float in ["bf16", "f32"] {
        let compressed = [format!("int4-g32-{float}-sym"), format!("int4-g32-{float}"), format!("int8-g64-{float}-sym")];
        let compressed = compressed.into_iter().chain([format!("fp8-g64-{float}")]);
        let compressed = compressed.map(|case| (case.parse().unwrap(), case, PackedFormat::CompressedTensors));
        let modelopt = (CodecId::Micro(Micro::Nvfp4), format!("nvfp4-{float}"), PackedFormat::ModelOpt);
        for (codec, case, format) in compressed.chain([modelopt]) {
            let theirs = SafetensorsStore::open(golden("rounding").join(format!("{case}.safetensors"))).unwrap();
            let (shape, weights) = theirs.read_f32("dense").unwrap();
            let scale = match format {
                PackedFormat::ModelOpt => theirs.read_f32("X.weight_scale_2").unwrap().1[0],
                _ => 1.0,
            };
            // Ours is one that survives its reciprocal.
            let own = codec.tensor_scale(weights.iter().fold(0f32, |m, w| m.max(w.abs())));
            assert!((own / scale - 1.0).abs() < 1.3e-7, "{case}: {own} {scale}");
            let tensor = EncodedTensor::encode_scaled(codec, &shape, &weights, None, scale).unwrap();
            let planes = format.split_planes("X.weight", &tensor).unwrap();
            assert_eq!(planes.len() + 1, theirs.tensors().len(), "{case}");
            for (name, bytes) in planes {
                let wanted = theirs.bytes(&name).unwrap();
                let wrong = bytes.iter().zip(&wanted[..]).position(|(a, b)| a != b);
                assert!(wrong.is_none(), "{case}: {name} from byte {wrong:?} on");
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 2 * (3 + 4 + 3 + 2 + 3));
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
    let unreadable = |key: &'static str, value: Value| {
        let error = damaged("ct-int4-g32", |config, _| config["quantization_config"][key] = value);
        assert_eq!(error.kind, ErrorKind::Unsupported, "{key}: {error}");
    };
    unreadable("format", "marlin-24".into());
    unreadable("transform_config", serde_json::json!({ "config_groups": { "u": {} } }));
    unreadable("sparsity_config", serde_json::json!({ "format": "sparse-24-bitmask" }));
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
