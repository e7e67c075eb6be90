//! Planes and blocks, and one test per wrong folder.

use super::*;
use crate::safetensors::SafetensorsWriter;
use std::fs;

const Q4: CodecId = CodecId::MlxAffine { bits: 4, group: 64, scale: Float::BF16 };
const Q8: CodecId = CodecId::MlxAffine { bits: 8, group: 128, scale: Float::F16 };

fn tensor(codec: CodecId, shape: &[usize]) -> EncodedTensor {
    let bytes: usize = plan_planes("x.weight", codec, shape).unwrap().iter().map(TensorPlan::n_bytes).sum();
    EncodedTensor::new(shape, codec, (0..bytes).map(|i| (i * 7 % 251) as u8).collect())
}

/// A folder with two packed tensors and a dense one, and its config.
fn folder(config: &str) -> (tempfile::TempDir, Vec<(String, EncodedTensor)>) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(CONFIG_FILE), config).unwrap();
    let tensors = vec![
        ("m.a.weight".to_string(), tensor(Q4, &[3, 128])),
        ("m.b.weight".to_string(), tensor(Q8, &[2, 2, 128])),
        ("m.norm.weight".to_string(), tensor(CodecId::BF16, &[5])),
    ];
    let plan: Vec<_> = tensors.iter().map(|(n, t)| (n.clone(), t.codec, t.shape.clone())).collect();
    let writer = MlxWriter::create(dir.path(), &plan, 200).unwrap();
    tensors.iter().for_each(|(n, t)| writer.write(n, t).unwrap());
    writer.finish().unwrap();
    (dir, tensors)
}

fn config(quantization: Value) -> String {
    json!({ "quantization": quantization }).to_string()
}

fn good() -> Value {
    quantization_block(Q4, [("m.a.weight", Q4), ("m.b.weight", Q8), ("m.norm.weight", CodecId::BF16)]).unwrap()
}

fn refused(config: &str) -> Error {
    MlxStore::open(folder(config).0.path()).expect_err("wrong, but opened")
}

#[test]
fn a_folder_round_trips() {
    let (dir, tensors) = folder(&config(good()));
    let store = MlxStore::open(dir.path()).unwrap();
    assert_eq!(store.tensors().len(), 3);
    for (name, t) in &tensors {
        let info = store.find(name).unwrap();
        assert_eq!((&info.shape, &info.encoding, info.n_bytes), (&t.shape, &Encoding::Codec(t.codec), t.bytes.len()));
        assert_eq!(&*store.bytes(name).unwrap(), t.bytes.as_slice(), "{name}");
    }
    assert_eq!(store.bytes("m.a.scales").unwrap_err().kind, ErrorKind::Missing);
    let index: Value = serde_json::from_slice(&fs::read(dir.path().join(crate::safetensors::INDEX_FILE)).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_parameters"], 3 * 128 + 2 * 2 * 128 + 5);
}

/// Every mode, width and group size, mixed in one model, with stacked experts and rows read apart.
#[test]
fn all_modes_round_trip_in_one_folder() {
    let mut codecs: Vec<CodecId> = [Micro::Mxfp4, Micro::Mxfp8, Micro::Nvfp4].map(CodecId::Micro).to_vec();
    for bits in [2, 3, 4, 5, 6, 8] {
        for group in [32, 64, 128] {
            codecs.extend([Float::F32, Float::F16, Float::BF16].map(|scale| CodecId::MlxAffine { bits, group, scale }));
        }
    }
    let shape = [2, 3, 256];
    let tensors: Vec<_> = codecs.iter().enumerate().map(|(i, &c)| (format!("m.{i}.weight"), tensor(c, &shape))).collect();
    let dir = tempfile::tempdir().unwrap();
    let block = quantization_block(codecs[0], tensors.iter().map(|(n, t)| (n.as_str(), t.codec))).unwrap();
    fs::write(dir.path().join(CONFIG_FILE), config(block)).unwrap();
    let plan: Vec<_> = tensors.iter().map(|(n, t)| (n.clone(), t.codec, t.shape.clone())).collect();
    let writer = MlxWriter::create(dir.path(), &plan, 100_000).unwrap();
    tensors.iter().for_each(|(n, t)| writer.write(n, t).unwrap());
    writer.finish().unwrap();
    let store = MlxStore::open(dir.path()).unwrap();
    assert_eq!(store.tensors().len(), tensors.len());
    for (name, t) in &tensors {
        let info = store.find(name).unwrap();
        assert_eq!((&info.shape[..], &info.encoding, info.n_bytes), (&shape[..], &Encoding::Codec(t.codec), t.bytes.len()));
        assert_eq!(&*store.bytes(name).unwrap(), t.bytes.as_slice(), "{name}");
        let row = t.bytes.len() / 6;
        assert_eq!(&*store.row_bytes(name, 2..5).unwrap(), &t.bytes[2 * row..5 * row], "{name}");
    }
}

/// Three experts of two rows with these planes.
fn experts(mode: &str, extra: &[(&str, &str, &[usize], Vec<u8>)]) -> Result<MlxStore> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(CONFIG_FILE), config(json!({ "mode": mode }))).unwrap();
    let codes: Vec<u8> = (0..3 * 2 * 16).map(|i| (i * 37 % 251) as u8).collect();
    let group = if mode == "nvfp4" { 16 } else { 32 };
    let scales: Vec<u8> = (0..6 * 32 / group).map(|i| 0x38 + i as u8).collect();
    let mut planes: Vec<(&str, &str, &[usize], Vec<u8>)> = vec![
        ("x.weight", "U32", &[3, 2, 4], codes),
        ("x.scales", "U8", if group == 16 { &[3, 2, 2] } else { &[3, 2, 1] }, scales),
    ];
    planes.extend(extra.iter().cloned());
    let plans: Vec<_> = planes.iter().map(|(n, d, s, _)| TensorPlan::new(*n, d, s).unwrap()).collect();
    let writer = SafetensorsWriter::create(dir.path().join(crate::safetensors::SINGLE_FILE), plans, &BTreeMap::new()).unwrap();
    planes.iter().for_each(|(n, _, _, bytes)| writer.write(n, bytes).unwrap());
    writer.finish().unwrap();
    // Memory maps outlive the folder's names.
    MlxStore::open(dir.path())
}

#[test]
fn scales_of_experts_multiply_their_values() {
    let plain = experts("nvfp4", &[]).unwrap();
    let values = plain.read_f32("x.weight").unwrap().1;
    let global = |largest: [f32; 3]| largest.iter().flat_map(|g| g.to_le_bytes()).collect::<Vec<u8>>();
    for largest in [[2688.0 * 4.0; 3], [2688.0, 5376.0, 1344.0]] {
        let store = experts("nvfp4", &[("x.global_scale", "F32", &[3], global(largest))]).unwrap();
        assert_eq!(store.tensors().len(), 1);
        // One scale for all is the tensor's own, so that its blocks can be carried over as they are.
        let info = store.find("x.weight").unwrap();
        let (one_for_all, blocks) = (largest[0] == largest[1], Encoding::Codec(CodecId::Micro(Micro::Nvfp4)));
        assert_eq!((info.encoding == blocks, info.scale), (one_for_all, if one_for_all { 4.0 } else { 1.0 }));
        let (shape, scaled) = store.read_f32("x.weight").unwrap();
        assert_eq!(shape, [3, 2, 32]);
        for (i, (a, b)) in scaled.iter().zip(&values).enumerate() {
            assert_eq!(*a, b * largest[i / 64] / 2688.0);
        }
        assert_eq!(store.read_rows("x.weight", 3..5).unwrap(), scaled[96..160]);
    }
    let of_one_for_all = ("x.global_scale", "F32", &[1][..], global([1.0; 3])[..4].to_vec());
    assert_eq!(experts("nvfp4", &[of_one_for_all]).unwrap_err().kind, ErrorKind::Corrupt);
    let right = ("x.global_scale", "F32", &[3][..], global([1.0; 3]));
    assert_eq!(experts("mxfp4", &[right]).unwrap_err().kind, ErrorKind::Corrupt);
    let biases = ("x.biases", "U8", &[3, 2, 2][..], vec![0; 12]);
    assert_eq!(experts("nvfp4", &[biases]).unwrap_err().kind, ErrorKind::Corrupt);
}

#[test]
fn rows_in_parts_give_the_same_folder() {
    let (whole, tensors) = folder(&config(good()));
    let dir = tempfile::tempdir().unwrap();
    let plan: Vec<_> = tensors.iter().map(|(n, t)| (n.clone(), t.codec, t.shape.clone())).collect();
    let writer = MlxWriter::create(dir.path(), &plan, 200).unwrap();
    for (name, t) in &tensors {
        let (row_len, rows) = (*t.shape.last().unwrap(), t.shape.iter().rev().skip(1).product::<usize>());
        let row_bytes = t.bytes.len() / rows;
        let part = |rows: std::ops::Range<usize>| {
            EncodedTensor::new(&[rows.len(), row_len], t.codec, t.bytes[rows.start * row_bytes..rows.end * row_bytes].to_vec())
        };
        let middle = rows / 2;
        writer.write_rows(name, middle, &part(middle..rows)).unwrap();
        if middle > 0 {
            writer.write_rows(name, 0, &part(0..middle)).unwrap();
        }
        assert!(writer.write_rows(name, rows, &part(0..1)).is_err());
        assert!(writer.write_rows(name, 0, &part(0..1)).is_err());
    }
    assert!(writer.write_rows("m.a.weight", 0, &tensor(Q4, &[1, 64])).is_err());
    assert!(writer.write_rows("m.x.weight", 0, &tensor(Q4, &[1, 128])).is_err());
    writer.finish().unwrap();
    for file in fs::read_dir(dir.path()).unwrap() {
        let name = file.unwrap().file_name();
        assert_eq!(fs::read(dir.path().join(&name)).unwrap(), fs::read(whole.path().join(&name)).unwrap(), "{name:?}");
    }
}

#[test]
fn planes_have_the_shapes_and_types_of_mlx() {
    let planes = plan_planes("m.a.weight", Q4, &[3, 128]).unwrap();
    let seen: Vec<_> = planes.iter().map(|p| (p.name.as_str(), p.dtype(), p.shape.clone())).collect();
    assert_eq!(
        seen,
        [
            ("m.a.weight", "U32".to_string(), vec![3, 16]),
            ("m.a.scales", "BF16".to_string(), vec![3, 2]),
            ("m.a.biases", "BF16".to_string(), vec![3, 2]),
        ]
    );
    assert!(plan_planes("m.a.weight", Q4, &[3, 96]).is_err());
    assert!(plan_planes("m.a.weight", Q4, &[128]).is_err());
    assert!(plan_planes("m.a.kernel", Q4, &[3, 128]).is_err());
}

#[test]
fn blocks_are_codes_scale_bias() {
    let group = CodecId::MlxAffine { bits: 4, group: 32, scale: Float::F16 };
    let bytes: Vec<u8> = (0..40).collect();
    let packed = EncodedTensor::new(&[1, 64], group, bytes);
    let planes = split_planes("x.weight", &packed).unwrap();
    let codes: Vec<u8> = (0..16).chain(20..36).collect();
    assert_eq!(planes[0], ("x.weight".to_string(), Cow::Owned(codes)));
    assert_eq!(planes[1], ("x.scales".to_string(), Cow::Owned(vec![16, 17, 36, 37])));
    assert_eq!(planes[2], ("x.biases".to_string(), Cow::Owned(vec![18, 19, 38, 39])));
}

#[test]
fn the_quantization_block_has_only_true_overrides() {
    assert_eq!(
        good().to_string(),
        r#"{"bits":4,"group_size":64,"m.b":{"bits":8,"group_size":128,"mode":"affine"},"mode":"affine"}"#
    );
}

#[test]
fn defaults_and_nulls_of_mlx_lm_are_understood() {
    let q = Quantization::of_config(
        &json!({ "quantization": { "bits": 8, "group_size": 32, "x": { "group_size": null, "bits": 4 }, "y": false, "z": true } }),
    );
    let q = q.unwrap().unwrap();
    assert_eq!(q.scheme("x").unwrap(), &Scheme { mode: "affine".into(), bits: 4, group: 64 });
    assert_eq!(q.scheme("y"), None);
    for (mode, bits, group) in [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16), ("affine", 4, 64)] {
        let q = Quantization::of_config(&json!({ "quantization": { "mode": mode } })).unwrap().unwrap();
        assert_eq!(q.scheme("x").unwrap(), &Scheme { mode: mode.into(), bits, group });
    }
    assert_eq!(q.scheme("z"), q.scheme("anything"));
    assert_eq!(q.scheme("z").unwrap().bits, 8);
    assert_eq!(Quantization::of_config(&json!({})).unwrap(), None);
    assert!(Quantization::of_config(&json!({ "quantization": 4 })).is_err());
    assert!(Quantization::of_config(&json!({ "quantization": { "bits": "4" } })).is_err());
}

#[test]
fn wrong_bits_in_the_config_are_caught() {
    let mut q = good();
    q["bits"] = 8.into();
    let error = refused(&config(q));
    assert_eq!((error.kind, error.tensor.as_deref()), (ErrorKind::Corrupt, Some("m.a.weight")));
}

#[test]
fn a_wrong_group_size_in_the_config_is_caught() {
    let mut q = good();
    q["m.b"]["group_size"] = 64.into();
    let error = refused(&config(q));
    assert_eq!((error.kind, error.tensor.as_deref()), (ErrorKind::Corrupt, Some("m.b.weight")));
    assert!(error.file.unwrap().to_string_lossy().ends_with(".safetensors"));
}

#[test]
fn a_missing_override_is_caught() {
    let error = refused(&config(json!({ "bits": 4, "group_size": 64 })));
    assert_eq!((error.kind, error.tensor.as_deref()), (ErrorKind::Corrupt, Some("m.b.weight")));
}

#[test]
fn a_packed_weight_that_should_be_dense_is_caught() {
    let mut q = good();
    q["m.a"] = false.into();
    assert_eq!(refused(&config(q)).kind, ErrorKind::Corrupt);
}

#[test]
fn a_dense_weight_that_should_be_packed_is_caught() {
    let mut q = good();
    q["m.norm"] = json!({ "bits": 4, "group_size": 64 });
    let error = refused(&config(q));
    assert_eq!((error.kind, error.tensor.as_deref()), (ErrorKind::Corrupt, Some("m.norm.weight")));
}

#[test]
fn other_modes_and_widths_are_unsupported() {
    for (key, value) in [("mode", json!("mxfp4")), ("mode", json!("fp5")), ("bits", json!(7)), ("group_size", json!(16))] {
        let mut q = good();
        q["m.b"][key] = value;
        let error = refused(&config(q));
        assert_eq!((error.kind, error.tensor.as_deref()), (ErrorKind::Unsupported, Some("m.b.weight")), "{key}");
    }
}

#[test]
fn a_folder_without_the_block_is_no_mlx_folder() {
    assert_eq!(refused("{}").kind, ErrorKind::Unsupported);
    assert_eq!(refused("not json").kind, ErrorKind::Corrupt);
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(MlxStore::open(dir.path()).unwrap_err().kind, ErrorKind::Missing);
}

/// A folder of one file with these tensors, filled with zeros.
fn planes(tensors: &[(&str, &str, &[usize])]) -> Result<MlxStore> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(CONFIG_FILE), config(json!({ "bits": 4, "group_size": 64 }))).unwrap();
    let plans: Vec<_> = tensors.iter().map(|(n, d, s)| TensorPlan::new(*n, d, s).unwrap()).collect();
    let path = dir.path().join(crate::safetensors::SINGLE_FILE);
    let writer = SafetensorsWriter::create(path, plans.clone(), &BTreeMap::new()).unwrap();
    plans.iter().for_each(|p| writer.write(&p.name, &vec![0; p.n_bytes()]).unwrap());
    writer.finish().unwrap();
    MlxStore::open(dir.path())
}

#[test]
fn planes_that_do_not_belong_together_are_caught() {
    let weight = ("x.weight", "U32", &[4, 16][..]);
    let scales = ("x.scales", "F16", &[4, 2][..]);
    assert_eq!(planes(&[weight, scales]).unwrap_err().kind, ErrorKind::Missing);
    assert_eq!(planes(&[weight, ("x.scales", "U8", &[4, 2])]).unwrap_err().kind, ErrorKind::Unsupported);
    for biases in [("x.biases", "F16", &[4, 1][..]), ("x.biases", "F32", &[4, 2]), ("x.biases", "F16", &[2, 4])] {
        assert_eq!(planes(&[weight, scales, biases]).unwrap_err().kind, ErrorKind::Corrupt);
    }
    let biases = ("x.biases", "F16", &[4, 2][..]);
    assert_eq!(planes(&[("x.weight", "U32", &[16, 4]), scales, biases]).unwrap_err().kind, ErrorKind::Corrupt);
    assert_eq!(
        planes(&[("x.weight", "U32", &[16]), ("x.scales", "F16", &[2]), ("x.biases", "F16", &[2])]).unwrap_err().kind,
        ErrorKind::Corrupt
    );
    assert_eq!(planes(&[weight, scales, biases]).unwrap().tensors().len(), 1);
}

#[test]
fn tensors_that_only_look_like_planes_stay_as_they_are() {
    let store =
        planes(&[("x.scales", "F32", &[3]), ("y.weight", "F32", &[2, 2]), ("y.scales", "F32", &[2]), ("z.weight", "U32", &[2])]);
    assert_eq!(store.unwrap().tensors().len(), 4);
}

#[test]
fn a_tensor_that_differs_from_its_plan_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let writer = MlxWriter::create(dir.path(), &[("x.weight".into(), Q4, vec![2, 64])], MAX_SHARD_BYTES).unwrap();
    assert!(writer.write("x.weight", &tensor(Q4, &[1, 128])).is_err());
    assert!(writer.write("y.weight", &tensor(Q4, &[2, 64])).is_err());
    drop(writer);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
