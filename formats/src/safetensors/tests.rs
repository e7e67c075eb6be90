//! Round trips, and one test per kind of damage.

use super::*;
use crate::codec::CodecId;
use crate::container::{Encoding, TensorStore};
use crate::error::{Error, ErrorKind};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn none() -> BTreeMap<String, String> {
    BTreeMap::new()
}

/// A file with this JSON header and these data.
fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn open_bytes(bytes: &[u8]) -> Result<SafetensorsStore, Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    fs::write(&path, bytes).unwrap();
    let opened = SafetensorsStore::open(&path);
    if let Err(e) = &opened {
        assert_eq!(e.file.as_deref(), Some(path.as_path()), "{e}");
    }
    opened
}

fn rejected(bytes: &[u8]) -> Error {
    let error = open_bytes(bytes).expect_err("damaged, but opened");
    assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
    error
}

const GOOD: &str =
    r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"I64","shape":[1],"data_offsets":[8,16]}}"#;

#[test]
fn reads_a_minimal_file() {
    let store = open_bytes(&raw(GOOD, &[1; 16])).unwrap();
    assert_eq!(store.tensors().len(), 2);
    assert_eq!(store.find("a").unwrap().encoding, Encoding::Codec(CodecId::F32));
    assert_eq!(store.find("b").unwrap().encoding, Encoding::Opaque("I64".into()));
    assert_eq!(&*store.bytes("b").unwrap(), &[1; 8]);
    assert_eq!(store.bytes("c").unwrap_err().kind, ErrorKind::Missing);
    assert!(open_bytes(&raw("{}", &[])).unwrap().tensors().is_empty());
}

#[test]
fn tensors_come_in_the_order_of_their_data() {
    let header = r#"{"x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"y":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    let store = open_bytes(&raw(header, b"yx")).unwrap();
    assert_eq!(store.tensors().iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["y", "x"]);
    assert_eq!(&*store.bytes("x").unwrap(), b"x");
}

#[test]
fn rejects_an_empty_file() {
    rejected(b"");
}

#[test]
fn rejects_a_truncated_length() {
    rejected(&[3, 0, 0]);
}

#[test]
fn rejects_a_truncated_header() {
    let error = rejected(&raw(GOOD, &[])[..40]);
    assert!(error.message.contains("inside its header"), "{error}");
}

#[test]
fn rejects_an_overlong_header_length() {
    rejected(&[0xff; 64]);
    rejected(&(100_000_001u64).to_le_bytes());
}

#[test]
fn rejects_truncated_data_and_names_the_tensor() {
    let error = rejected(&raw(GOOD, &[0; 15]));
    assert_eq!(error.tensor.as_deref(), Some("b"));
    let error = rejected(&raw(GOOD, &[0; 3]));
    assert_eq!(error.tensor.as_deref(), Some("a"));
    assert!(error.hint.is_some());
}

#[test]
fn rejects_trailing_data() {
    rejected(&raw(GOOD, &[0; 17]));
}

#[test]
fn rejects_a_header_that_is_not_json() {
    rejected(&raw("{\"a\":", &[]));
    rejected(&raw("[]", &[]));
    rejected(&raw("\u{1}\u{2}", &[]));
    let mut bytes = raw("{\"a\":1}", &[]);
    bytes[9] = 0xff;
    rejected(&bytes);
}

#[test]
fn rejects_duplicate_tensors() {
    let t = r#""a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    let error = rejected(&raw(&format!("{{{t},{t}}}"), &[0]));
    assert!(error.message.contains("`a` appears twice"), "{error}");
}

#[test]
fn rejects_overlapping_tensors() {
    let header = r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#;
    rejected(&raw(header, &[0; 3]));
}

#[test]
fn rejects_gaps_between_tensors() {
    let header = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#;
    rejected(&raw(header, &[0; 3]));
}

#[test]
fn rejects_sizes_that_contradict_the_shape() {
    rejected(&raw(r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, &[0; 8]));
    rejected(&raw(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, &[0; 8]));
}

#[test]
fn rejects_shapes_that_overflow() {
    let huge = u64::MAX;
    rejected(&raw(&format!(r#"{{"a":{{"dtype":"U8","shape":[{huge},{huge}],"data_offsets":[0,0]}}}}"#), &[]));
    rejected(&raw(&format!(r#"{{"a":{{"dtype":"U8","shape":[{huge}],"data_offsets":[0,{huge}]}}}}"#), &[]));
}

#[test]
fn rejects_offsets_whose_sum_wraps_around() {
    // Nine contiguous tensors that end at the largest address: adding the header's length would wrap to the file's length.
    let (step, mut at, mut entries) = (u64::MAX / 8, 0u64, Vec::new());
    for i in 0..9 {
        let end = if i == 8 { u64::MAX } else { at + step };
        entries.push(format!(r#""t{i}":{{"dtype":"U8","shape":[{}],"data_offsets":[{at},{end}]}}"#, end - at));
        at = end;
    }
    let error = rejected(&raw(&format!("{{{}}}", entries.join(",")), &[0; 16]));
    assert_eq!(error.tensor.as_deref(), Some("t0"));
}

#[test]
fn rejects_negative_and_fractional_offsets() {
    let error = rejected(&raw(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}}"#, &[0]));
    assert_eq!(error.tensor.as_deref(), Some("a"));
    rejected(&raw(r#"{"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}}"#, &[0]));
}

#[test]
fn an_unknown_dtype_is_unsupported_not_corrupt() {
    let error = open_bytes(&raw(r#"{"a":{"dtype":"F3","shape":[8],"data_offsets":[0,3]}}"#, &[0; 3])).unwrap_err();
    assert_eq!((error.kind, error.tensor.as_deref()), (ErrorKind::Unsupported, Some("a")));
}

#[test]
fn nan_is_reported_with_its_place() {
    let header = r#"{"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#;
    let data: Vec<u8> = [0.0, 1.0, 2.0, f32::NAN].iter().flat_map(|v: &f32| v.to_le_bytes()).collect();
    let error = open_bytes(&raw(header, &data)).unwrap().read_f32("w").unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt);
    assert!(error.message.contains("row 1, column 1"), "{error}");
}

fn sharded(dir: &Path) {
    let plan = (0..4).map(|i| TensorPlan::new(format!("t{i}"), "U8", &[10]).unwrap()).collect();
    let writer = ShardedWriter::create(dir, plan_shards(plan, 25, &none(), Some(40), false).unwrap()).unwrap();
    (0..4u8).for_each(|i| writer.write(&format!("t{i}"), &[i; 10]).unwrap());
    writer.finish().unwrap();
}

#[test]
fn a_sharded_folder_round_trips() {
    let dir = tempfile::tempdir().unwrap();
    sharded(dir.path());
    let index: serde_json::Value = serde_json::from_slice(&fs::read(dir.path().join(INDEX_FILE)).unwrap()).unwrap();
    assert_eq!(index["metadata"], serde_json::json!({ "total_size": 40, "total_parameters": 40 }));
    assert_eq!(index["weight_map"]["t2"], "model-00002-of-00002.safetensors");
    for path in [dir.path().to_path_buf(), dir.path().join(INDEX_FILE)] {
        let store = SafetensorsStore::open(path).unwrap();
        assert_eq!(store.files().count(), 2);
        (0..4u8).for_each(|i| assert_eq!(&*store.bytes(&format!("t{i}")).unwrap(), &[i; 10]));
    }
    fs::remove_file(dir.path().join(INDEX_FILE)).unwrap();
    assert_eq!(SafetensorsStore::open(dir.path()).unwrap().tensors().len(), 4);
}

fn second(dir: &Path) -> PathBuf {
    dir.join("model-00002-of-00002.safetensors")
}

#[test]
fn a_missing_shard_names_file_and_tensors() {
    let dir = tempfile::tempdir().unwrap();
    sharded(dir.path());
    fs::remove_file(second(dir.path())).unwrap();
    let error = SafetensorsStore::open(dir.path()).unwrap_err();
    assert_eq!((error.kind, error.file.as_deref()), (ErrorKind::Missing, Some(&*second(dir.path()))));
    assert!(error.message.contains("`t2`, `t3`"), "{error}");
    assert!(error.hint.is_some());
    fs::remove_file(dir.path().join(INDEX_FILE)).unwrap();
    let error = SafetensorsStore::open(dir.path()).unwrap_err();
    assert_eq!((error.kind, error.file.as_deref()), (ErrorKind::Missing, Some(&*second(dir.path()))));
}

#[test]
fn a_tensor_that_only_the_index_has_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    sharded(dir.path());
    fs::write(second(dir.path()), raw(r#"{"t2":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, &[0])).unwrap();
    let error = SafetensorsStore::open(dir.path()).unwrap_err();
    assert_eq!((error.kind, error.tensor.as_deref()), (ErrorKind::Missing, Some("t3")));
    assert_eq!(error.file.as_deref(), Some(&*second(dir.path())));
}

#[test]
fn a_tensor_in_two_shards_is_corrupt() {
    let dir = tempfile::tempdir().unwrap();
    sharded(dir.path());
    fs::copy(dir.path().join("model-00001-of-00002.safetensors"), second(dir.path())).unwrap();
    let error = SafetensorsStore::open(dir.path()).unwrap_err();
    assert_eq!((error.kind, error.tensor.as_deref()), (ErrorKind::Corrupt, Some("t0")));
}

#[test]
fn a_tensor_in_another_shard_than_indexed_is_corrupt() {
    let dir = tempfile::tempdir().unwrap();
    sharded(dir.path());
    let path = dir.path().join(INDEX_FILE);
    let index = fs::read_to_string(&path).unwrap();
    fs::write(&path, index.replace(r#""t0": "model-00001"#, r#""t0": "model-00002"#)).unwrap();
    let error = SafetensorsStore::open(dir.path()).unwrap_err();
    assert_eq!((error.kind, error.tensor.as_deref()), (ErrorKind::Corrupt, Some("t0")));
}

#[test]
fn rejects_index_entries_that_leave_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("inner");
    fs::create_dir(&inner).unwrap();
    let outside = dir.path().join("x.safetensors");
    fs::write(&outside, raw(r#"{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, &[0])).unwrap();
    let absolute = outside.display().to_string();
    for name in ["../x.safetensors", absolute.as_str(), "..", ".", "", "a/../../x.safetensors", r"..\x.safetensors", r"C:x"] {
        let index = serde_json::json!({ "weight_map": { "t": name } });
        fs::write(inner.join(INDEX_FILE), index.to_string()).unwrap();
        let error = SafetensorsStore::open(&inner).unwrap_err();
        assert_eq!((error.kind, error.tensor.as_deref()), (ErrorKind::Corrupt, Some("t")), "{name}: {error}");
    }
}

#[test]
fn rejects_broken_indexes() {
    let dir = tempfile::tempdir().unwrap();
    for index in ["", "{}", "[]", r#"{"weight_map":{}}"#, r#"{"weight_map":{"a":1}}"#, r#"{"weight_map":{"a":"x","a":"y"}}"#] {
        fs::write(dir.path().join(INDEX_FILE), index).unwrap();
        let error = SafetensorsStore::open(dir.path()).unwrap_err();
        assert_eq!((error.kind, error.file), (ErrorKind::Corrupt, Some(dir.path().join(INDEX_FILE))), "{index}");
    }
}

#[test]
fn a_folder_without_safetensors_says_what_it_has_instead() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(SafetensorsStore::open(dir.path()).unwrap_err().kind, ErrorKind::Missing);
    fs::write(dir.path().join("x.gguf"), b"").unwrap();
    assert!(SafetensorsStore::open(dir.path()).unwrap_err().hint.unwrap().contains("x.gguf"));
    assert_eq!(SafetensorsStore::open(dir.path().join("none")).unwrap_err().kind, ErrorKind::Missing);
}

#[test]
fn written_bytes_are_those_of_the_reference_implementation() {
    use safetensors_reference as reference;
    let data: Vec<u8> = (0..=255).collect();
    let tensors = [
        ("z", "BF16", vec![3, 5]),
        ("a", "U8", vec![7]),
        ("m", "U32", vec![2, 2]),
        ("b", "BF16", vec![2]),
        ("e", "F32", vec![0, 4]),
    ];
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    let plans: Vec<_> = tensors.iter().map(|(n, d, s)| TensorPlan::new(*n, d, s).unwrap()).collect();
    let views = tensors.iter().zip(&plans).map(|((name, _, shape), plan)| {
        let dtype = super::header::parse_dtype(&plan.dtype()).unwrap();
        (*name, reference::TensorView::new(dtype, shape.clone(), &data[..plan.n_bytes()]).unwrap())
    });
    let expected = reference::serialize(views, Some(metadata.clone().into_iter().collect())).unwrap();

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    for order in [[0, 1, 2, 3, 4], [4, 2, 0, 1, 3]] {
        let planned = order.iter().map(|&i| plans[i].clone()).collect();
        let writer = SafetensorsWriter::create(&path, planned, &metadata).unwrap();
        order.iter().for_each(|&i| writer.write(tensors[i].0, &data[..plans[i].n_bytes()]).unwrap());
        writer.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), expected);
    }
    assert_eq!(SafetensorsStore::open(&path).unwrap().metadata(), &metadata);
}

mod safetensors_reference {
    pub use safetensors::serialize;
    pub use safetensors::tensor::TensorView;
}

#[test]
fn plans_that_cannot_be_written_are_refused() {
    let plan = |name: &str| TensorPlan::new(name, "U8", &[1]).unwrap();
    let create = |plans| SafetensorsWriter::create("unused.safetensors", plans, &none());
    assert!(create(vec![plan("a"), plan("a")]).is_err());
    assert!(create(vec![plan("__metadata__")]).is_err());
    assert!(plan_shards(vec![plan("a"), plan("b"), plan("a")], 1, &none(), None, false).is_err());
    assert_eq!(TensorPlan::new("a", "F3", &[1]).unwrap_err().kind, ErrorKind::Unsupported);
    assert!(TensorPlan::new("a", "F4", &[1]).is_err());
    assert!(TensorPlan::new("a", "U8", &[usize::MAX, 2]).is_err());
    assert_eq!(TensorPlan::float("a", CodecId::Q4_0, &[32]).unwrap_err().kind, ErrorKind::Unsupported);
}

#[test]
fn shards_are_filled_greedily() {
    let plans =
        [4, 4, 20, 1, 9, 1].iter().enumerate().map(|(i, &n)| TensorPlan::new(format!("t{i}"), "U8", &[n]).unwrap()).collect();
    let plan = plan_shards(plans, 10, &none(), None, false).unwrap();
    let sizes: Vec<usize> = plan.files.iter().map(|(_, f)| f.slots.len()).collect();
    assert_eq!(sizes, [2, 1, 2, 1]);
    assert_eq!(plan.files()[3].0, "model-00004-of-00004.safetensors");
    assert_eq!(plan.files()[4].0, INDEX_FILE);
    let one = plan_shards(vec![TensorPlan::new("a", "U8", &[50]).unwrap()], 10, &none(), None, true).unwrap();
    assert_eq!(one.files().iter().map(|f| f.0.as_str()).collect::<Vec<_>>(), [SINGLE_FILE, INDEX_FILE]);
}

#[test]
fn data_start_is_aligned() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "bb", "ccc", "a name with \"quotes\" and ünïcode"] {
        let path = dir.path().join("x.safetensors");
        let writer = SafetensorsWriter::create(&path, vec![TensorPlan::new(name, "F32", &[1]).unwrap()], &none()).unwrap();
        writer.write(name, &1f32.to_le_bytes()).unwrap();
        writer.finish().unwrap();
        assert_eq!((fs::read(&path).unwrap().len() - 4) % 8, 0);
        assert_eq!(SafetensorsStore::open(&path).unwrap().tensors()[0].name, name);
    }
}

proptest! {
    #[test]
    fn damaged_bytes_never_panic(at in 0usize..200, byte in any::<u8>(), cut in 0usize..200) {
        let mut bytes = raw(GOOD, &[7; 16]);
        let n = bytes.len();
        bytes[at % n] = byte;
        bytes.truncate(n.saturating_sub(cut % 3 * (cut % n)));
        let _ = super::header::parse(&bytes);
    }
}
