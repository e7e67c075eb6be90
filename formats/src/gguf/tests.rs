//! Round trips, bytes checked by hand, and one test per attack.

use super::wire::{put_string, put_u32, put_u64};
use super::*;
use crate::codec::{CodecId, EncodedTensor};
use crate::container::{Encoding, TensorStore};
use crate::error::{Error, ErrorKind};
use proptest::prelude::*;
use std::fs;

/// Builds files byte by byte, right or wrong.
struct Raw(Vec<u8>);

impl Raw {
    fn new(version: u32, n_tensors: u64, n_pairs: u64) -> Self {
        let mut out = MAGIC.to_vec();
        put_u32(&mut out, version);
        put_u64(&mut out, n_tensors);
        put_u64(&mut out, n_pairs);
        Raw(out)
    }
    fn key(mut self, key: &str, ty: u32) -> Self {
        put_string(&mut self.0, key);
        put_u32(&mut self.0, ty);
        self
    }
    fn u32(mut self, v: u32) -> Self {
        put_u32(&mut self.0, v);
        self
    }
    fn u64(mut self, v: u64) -> Self {
        put_u64(&mut self.0, v);
        self
    }
    fn bytes(mut self, v: &[u8]) -> Self {
        self.0.extend(v);
        self
    }
    fn tensor(mut self, name: &str, dims: &[u64], ty: u32, offset: u64) -> Self {
        put_string(&mut self.0, name);
        put_u32(&mut self.0, dims.len() as u32);
        dims.iter().for_each(|&d| put_u64(&mut self.0, d));
        put_u32(&mut self.0, ty);
        put_u64(&mut self.0, offset);
        self
    }
    /// Padding to `alignment`, then data.
    fn data(mut self, alignment: usize, n: usize) -> Self {
        let start = self.0.len().next_multiple_of(alignment);
        self.0.resize(start + n, 0);
        self
    }
    fn parse(&self) -> crate::Result<Header> {
        parse_header(&self.0)
    }
    fn rejected(&self) -> Error {
        let error = self.parse().expect_err("damaged, but parsed");
        assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
        error
    }
}

#[test]
fn a_file_written_by_hand_is_read() {
    for version in [2, 3] {
        let header = Raw::new(version, 1, 2)
            .key("general.alignment", 4)
            .u32(8)
            .key("s", 8)
            .u64(2)
            .bytes(b"hi")
            .tensor("t", &[3, 2], 0, 0)
            .data(8, 24)
            .parse()
            .unwrap();
        assert_eq!((header.version, header.alignment), (version, 8));
        assert_eq!(header.metadata.str("s").unwrap(), "hi");
        assert_eq!(header.tensors[0].shape, [2, 3]);
        assert_eq!(header.tensors[0].range.len(), 24);
        assert_eq!(header.tensors[0].range.start % 8, 0);
    }
}

#[test]
fn rejects_other_files() {
    for bytes in [&b""[..], b"GG", b"GGML\x03\0\0\0", b"PK\x03\x04 and so on"] {
        assert_eq!(parse_header(bytes).unwrap_err().kind, ErrorKind::Corrupt);
    }
}

#[test]
fn other_versions_and_byte_orders_are_unsupported() {
    for version in [0, 1, 4, 3u32.swap_bytes()] {
        assert_eq!(Raw::new(version, 0, 0).parse().unwrap_err().kind, ErrorKind::Unsupported);
    }
}

#[test]
fn rejects_every_truncation() {
    let whole = Raw::new(3, 1, 2)
        .key("a", 9)
        .u32(8)
        .u64(2)
        .u64(1)
        .bytes(b"x")
        .u64(1)
        .bytes(b"y")
        .key("b", 7)
        .bytes(&[1])
        .tensor("t", &[4], 0, 0)
        .data(32, 16);
    whole.parse().unwrap();
    for n in 0..whole.0.len() {
        assert_eq!(parse_header(&whole.0[..n]).unwrap_err().kind, ErrorKind::Corrupt, "{n} bytes");
    }
}

#[test]
fn truncated_data_names_the_tensor() {
    let error = Raw::new(3, 1, 0).tensor("t", &[4], 0, 0).data(32, 15).rejected();
    assert_eq!(error.tensor.as_deref(), Some("t"));
    assert!(error.hint.is_some());
}

#[test]
fn rejects_huge_tensor_counts() {
    Raw::new(3, u64::MAX, 0).rejected();
    Raw::new(3, 1 << 40, 0).data(1, 1000).rejected();
}

#[test]
fn rejects_huge_metadata_counts() {
    Raw::new(3, 0, u64::MAX).rejected();
    Raw::new(3, 0, 100).data(1, 1000).rejected();
}

#[test]
fn rejects_overlong_strings() {
    for n in [u64::MAX, 1 << 40, 100] {
        Raw::new(3, 0, 1).u64(n).bytes(b"key and some more").rejected();
        Raw::new(3, 0, 1).key("k", 8).u64(n).bytes(b"value").rejected();
        Raw::new(3, 1, 0).u64(n).data(1, 24).rejected();
    }
}

#[test]
fn rejects_overlong_keys() {
    Raw::new(3, 0, 1).key(&"k".repeat(70_000), 0).bytes(&[0]).rejected();
}

#[test]
fn rejects_huge_arrays() {
    for ty in 0..13 {
        for n in [u64::MAX, u64::MAX / 8, 1 << 40, 101] {
            Raw::new(3, 0, 1).key("k", 9).u32(ty).u64(n).bytes(&[0; 100]).rejected();
        }
    }
}

#[test]
fn rejects_deeply_nested_arrays() {
    let mut raw = Raw::new(3, 0, 1).key("k", 9);
    for _ in 0..100_000 {
        raw = raw.u32(9).u64(1);
    }
    let error = raw.u32(0).u64(0).rejected();
    assert!(error.message.contains("nested"), "{error}");
}

#[test]
fn rejects_unknown_value_types() {
    Raw::new(3, 0, 1).key("k", 13).bytes(&[0; 16]).rejected();
    let error = Raw::new(3, 0, 1).key("the key", 9).u32(13).u64(1).bytes(&[0; 16]).rejected();
    assert!(error.message.contains("`the key`"), "{error}");
}

#[test]
fn rejects_truth_values_other_than_0_and_1() {
    Raw::new(3, 0, 1).key("k", 7).bytes(&[2]).rejected();
    Raw::new(3, 0, 1).key("k", 9).u32(7).u64(2).bytes(&[0, 255]).rejected();
}

#[test]
fn rejects_text_that_is_not_utf8() {
    Raw::new(3, 0, 1).key("k", 8).u64(2).bytes(&[0xc3, 0x28]).rejected();
}

#[test]
fn rejects_duplicate_keys() {
    Raw::new(3, 0, 2).key("k", 0).bytes(&[1]).key("k", 0).bytes(&[1]).rejected();
}

#[test]
fn rejects_duplicate_tensors() {
    let error = Raw::new(3, 2, 0).tensor("t", &[8], 0, 0).tensor("t", &[8], 0, 32).data(32, 64).rejected();
    assert_eq!(error.tensor.as_deref(), Some("t"));
}

#[test]
fn rejects_zero_and_odd_alignments() {
    for alignment in [0, 3, 33, u32::MAX] {
        Raw::new(3, 0, 1).key("general.alignment", 4).u32(alignment).rejected();
    }
    Raw::new(3, 0, 1).key("general.alignment", 10).u64(32).rejected();
    Raw::new(3, 0, 1).key("general.alignment", 4).u32(1 << 31).parse().unwrap();
}

#[test]
fn rejects_offsets_outside_the_file() {
    for offset in [32, 64, 1 << 40, u64::MAX - 31] {
        let error = Raw::new(3, 1, 0).tensor("t", &[8], 0, offset).data(32, 32).rejected();
        assert_eq!(error.tensor.as_deref(), Some("t"));
    }
}

#[test]
fn rejects_misaligned_offsets() {
    Raw::new(3, 1, 0).tensor("t", &[1], 0, 4).data(32, 32).rejected();
}

#[test]
fn rejects_overlapping_tensors() {
    let error = Raw::new(3, 2, 0).tensor("a", &[16], 0, 0).tensor("b", &[8], 0, 32).data(32, 64).rejected();
    assert_eq!(error.tensor.as_deref(), Some("b"));
    Raw::new(3, 2, 0).tensor("a", &[8], 0, 0).tensor("b", &[8], 0, 0).data(32, 64).rejected();
    // Empty tensors in between must not hide the overlap.
    Raw::new(3, 3, 0).tensor("a", &[16], 0, 0).tensor("e", &[0], 0, 32).tensor("b", &[8], 0, 32).data(32, 64).rejected();
}

#[test]
fn rejects_too_many_dimensions() {
    Raw::new(3, 1, 0).tensor("t", &[1; 5], 0, 0).data(32, 32).rejected();
    Raw::new(3, 1, 0).u64(1).bytes(b"t").u32(u32::MAX).data(32, 64).rejected();
}

#[test]
fn rejects_shapes_that_overflow() {
    Raw::new(3, 1, 0).tensor("t", &[1 << 32, 1 << 32], 0, 0).data(32, 32).rejected();
    Raw::new(3, 1, 0).tensor("t", &[u64::MAX / 4 + 1], 0, 0).data(32, 32).rejected();
    Raw::new(3, 1, 0).tensor("t", &[1 << 33, 1 << 33], 999, 0).data(32, 32).rejected();
}

#[test]
fn rejects_rows_that_are_not_whole_blocks() {
    let error = Raw::new(3, 1, 0).tensor("t", &[33, 2], 2, 0).data(32, 64).rejected();
    assert_eq!(error.tensor.as_deref(), Some("t"));
}

#[test]
fn unknown_types_are_opaque_up_to_the_next_tensor() {
    let header = Raw::new(3, 3, 0)
        .tensor("new", &[5, 7], 77, 0)
        .tensor("old", &[64, 1], 9, 96)
        .tensor("last", &[5], 4, 192)
        .data(32, 200)
        .parse()
        .unwrap();
    let lens: Vec<usize> = header.tensors.iter().map(|t| t.range.len()).collect();
    assert_eq!(lens, [96, 72, 8]);
    assert_eq!(header.tensors[0].ty.encoding(), Encoding::Opaque("ggml type 77".into()));
    assert_eq!(header.tensors[1].ty.encoding(), Encoding::Opaque("Q8_1".into()));
}

#[test]
fn many_tensors_at_one_offset_are_handled_quickly() {
    let mut raw = Raw::new(3, 200_000, 0);
    for i in 0..200_000 {
        raw = raw.tensor(&format!("t{i}"), &[0], 77, 0);
    }
    raw.data(32, 32).parse().unwrap_err();
    let mut raw = Raw::new(3, 200_000, 0);
    for i in 0..200_000 {
        raw = raw.tensor(&format!("t{i}"), &[0], 0, 0);
    }
    raw.data(32, 0).parse().unwrap();
}

fn all_types() -> Metadata {
    let mut m = Metadata::new();
    m.set("u8", u8::MAX);
    m.set("i8", i8::MIN);
    m.set("u16", u16::MAX);
    m.set("i16", i16::MIN);
    m.set("u32", u32::MAX);
    m.set("i32", i32::MIN);
    m.set("f32", 1e-5f32);
    m.set("bool", true);
    m.set("string", "grüß 你好 🙂");
    m.set("u64", u64::MAX);
    m.set("i64", i64::MIN);
    m.set("f64", 1e-300);
    m.set("strings", vec!["a".to_string(), String::new()]);
    m.set("empty", Vec::<f32>::new());
    m.set("nested", Array::Array(vec![Array::U16(vec![1, 2]), Array::Array(vec![]), Array::String(vec!["x".into()])]));
    m
}

#[test]
fn all_types_round_trip() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    write_gguf(&path, &all_types(), &[]).unwrap();
    let store = GgufStore::open(&path).unwrap();
    assert_eq!(store.metadata(), &all_types());
    assert!(store.tensors().is_empty());
    assert_eq!(store.version(), 3);
}

fn f32s(shape: &[usize], first: f32) -> EncodedTensor {
    let n = shape.iter().product::<usize>();
    let bytes = (0..n).flat_map(|i| (first + i as f32).to_le_bytes()).collect();
    EncodedTensor::new(shape, CodecId::F32, bytes)
}

#[test]
fn bytes_are_the_specified_ones() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let m: Metadata = [("general.alignment", Value::U32(64)), ("k", Value::U8(9))].into_iter().collect();
    write_gguf(&path, &m, &[("a".into(), f32s(&[2, 3], 0.0)), ("b".into(), f32s(&[1], 5.0))]).unwrap();
    let expected = Raw::new(3, 2, 2)
        .key("general.alignment", 4)
        .u32(64)
        .key("k", 0)
        .bytes(&[9])
        .tensor("a", &[3, 2], 0, 0)
        .tensor("b", &[1], 0, 64)
        .data(64, 0)
        .bytes(&f32s(&[6], 0.0).bytes)
        .data(64, 0)
        .bytes(&5f32.to_le_bytes())
        .data(64, 0);
    assert_eq!(fs::read(&path).unwrap(), expected.0);
    let store = GgufStore::open(&path).unwrap();
    assert_eq!(store.alignment(), 64);
    assert_eq!(store.find("a").unwrap().shape, [2, 3]);
    assert_eq!(&*store.bytes("b").unwrap(), &5f32.to_le_bytes());
    assert_eq!(store.ggml_type("b"), Some(GgmlType(0)));
}

#[test]
fn any_order_of_writing_gives_the_same_file() {
    let dir = tempfile::tempdir().unwrap();
    let tensors: Vec<(String, EncodedTensor)> = (0..20).map(|i| (format!("t{i}"), f32s(&[i + 1], i as f32))).collect();
    let plans: Vec<_> = tensors.iter().map(|(n, t)| TensorPlan::new(n, t.codec, &t.shape).unwrap()).collect();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    write_gguf(&a, &all_types(), &tensors).unwrap();
    let writer = GgufWriter::create(&b, &all_types(), plans.clone()).unwrap();
    std::thread::scope(|scope| {
        for chunk in tensors.rchunks(7) {
            let writer = &writer;
            scope.spawn(move || chunk.iter().rev().for_each(|(n, t)| writer.write_tensor(n, t).unwrap()));
        }
    });
    assert!(!b.exists());
    writer.finish().unwrap();
    assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap());
    assert_eq!(fs::metadata(&b).unwrap().len(), planned_bytes(&all_types(), &plans).unwrap());
}

#[test]
fn rows_in_parts_give_the_same_file() {
    let dir = tempfile::tempdir().unwrap();
    let values: Vec<f32> = (0..3 * 2 * 32).map(|i| i as f32).collect();
    let t = EncodedTensor::encode(CodecId::Q8_0, &[3, 2, 32], &values, None).unwrap();
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    write_gguf(&whole, &Metadata::new(), &[("t".into(), t.clone())]).unwrap();
    let plans = vec![TensorPlan::new("t", t.codec, &t.shape).unwrap()];
    let writer = GgufWriter::create(&parts, &Metadata::new(), plans).unwrap();
    for rows in [4..6usize, 0..1, 1..4] {
        writer.write_rows("t", rows.start, &t.bytes[rows.start * 34..rows.end * 34]).unwrap();
    }
    assert!(writer.write_rows("t", 5, &t.bytes[..34]).is_err());
    assert!(writer.write_rows("t", 6, &t.bytes[..34]).is_err());
    assert!(writer.write_rows("t", 0, &t.bytes[..33]).is_err());
    assert!(writer.write_rows("u", 0, &t.bytes[..34]).is_err());
    writer.finish().unwrap();
    assert_eq!(std::fs::read(whole).unwrap(), std::fs::read(parts).unwrap());
}

#[test]
fn plans_that_no_reader_would_take_are_refused() {
    let f32 = CodecId::F32;
    assert!(TensorPlan::new("", f32, &[1]).is_err());
    assert!(TensorPlan::new("n".repeat(64), f32, &[1]).is_err());
    assert!(TensorPlan::new("n", f32, &[]).is_err());
    assert!(TensorPlan::new("n", f32, &[1; 5]).is_err());
    assert!(TensorPlan::new("n", CodecId::Q4_0, &[2, 33]).is_err());
    assert_eq!(TensorPlan::new("n", "mlx-4bit".parse().unwrap(), &[64, 64]).unwrap_err().kind, ErrorKind::Unsupported);
    assert_eq!(TensorPlan::of_type("n", GgmlType(77), &[1]).unwrap_err().kind, ErrorKind::Unsupported);
    let t = TensorPlan::new("n", f32, &[1]).unwrap();
    assert!(planned_bytes(&Metadata::new(), &[t.clone(), t]).is_err());
    let m: Metadata = [("general.alignment", Value::U32(48))].into_iter().collect();
    assert!(planned_bytes(&m, &[]).is_err());
}

#[test]
fn a_tensor_that_differs_from_its_plan_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let plan = TensorPlan::new("t", CodecId::F32, &[2, 3]).unwrap();
    let writer = GgufWriter::create(dir.path().join("x"), &Metadata::new(), vec![plan]).unwrap();
    assert!(writer.write_tensor("t", &f32s(&[3, 2], 0.0)).is_err());
    drop(writer);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Writes a set of `files.len()` files with the given tensors each.
fn split_set(dir: &std::path::Path, files: &[&[&str]], edit: impl Fn(usize, &mut Metadata)) {
    let total: usize = files.iter().map(|f| f.len()).sum();
    for (i, names) in files.iter().enumerate() {
        let mut m = Metadata::new();
        if i == 0 {
            m.set("general.name", "set");
        }
        m.set("split.no", i as u16);
        m.set("split.count", files.len() as u16);
        m.set("split.tensors.count", total as i32);
        edit(i, &mut m);
        let tensors: Vec<_> = names.iter().map(|n| (n.to_string(), f32s(&[4], i as f32))).collect();
        write_gguf(dir.join(format!("m-{:05}-of-{:05}.gguf", i + 1, files.len())), &m, &tensors).unwrap();
    }
}

fn open_set(files: &[&[&str]], edit: impl Fn(usize, &mut Metadata)) -> crate::Result<GgufStore> {
    let dir = tempfile::tempdir().unwrap();
    split_set(dir.path(), files, edit);
    GgufStore::open(dir.path().join(format!("m-00001-of-{:05}.gguf", files.len())))
}

#[test]
fn a_split_set_opens_from_its_first_file() {
    let store = open_set(&[&["a"], &["b", "c"], &["d"]], |_, _| {}).unwrap();
    assert_eq!(store.files().count(), 3);
    assert_eq!(store.tensors().iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c", "d"]);
    assert_eq!(&store.bytes("d").unwrap()[..4], &2f32.to_le_bytes());
    assert_eq!(store.metadata().str("general.name").unwrap(), "set");
}

#[test]
fn a_missing_file_of_a_split_set_is_named() {
    let dir = tempfile::tempdir().unwrap();
    split_set(dir.path(), &[&["a"], &["b"]], |_, _| {});
    let second = dir.path().join("m-00002-of-00002.gguf");
    fs::remove_file(&second).unwrap();
    let error = GgufStore::open(dir.path().join("m-00001-of-00002.gguf")).unwrap_err();
    assert_eq!((error.kind, error.file), (ErrorKind::Missing, Some(second)));
    assert!(error.hint.is_some());
}

#[test]
fn a_later_file_of_a_split_set_points_to_the_first() {
    let dir = tempfile::tempdir().unwrap();
    split_set(dir.path(), &[&["a"], &["b"]], |_, _| {});
    let error = GgufStore::open(dir.path().join("m-00002-of-00002.gguf")).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Usage);
    assert!(error.hint.unwrap().contains("-00001-of-00002.gguf"));
}

#[test]
fn rejects_split_sets_that_contradict_themselves() {
    let wrong_count = open_set(&[&["a"], &["b"]], |i, m| {
        if i == 1 {
            m.set("split.count", 3u16)
        }
    });
    let wrong_number = open_set(&[&["a"], &["b"]], |i, m| {
        if i == 1 {
            m.set("split.no", 0u16)
        }
    });
    let wrong_total = open_set(&[&["a"], &["b"]], |_, m| m.set("split.tensors.count", 3i32));
    let no_keys = open_set(&[&["a"], &["b"]], |i, m| {
        if i == 1 {
            *m = Metadata::new()
        }
    });
    let duplicate = open_set(&[&["a"], &["a"]], |_, _| {});
    let first = open_set(&[&["a"], &["b"]], |i, m| {
        if i == 0 {
            m.set("split.no", 1u16)
        }
    });
    let not_a_number = open_set(&[&["a"], &["b"]], |_, m| m.set("split.count", "2"));
    for opened in [wrong_count, wrong_number, wrong_total, no_keys, duplicate, first, not_a_number] {
        assert_eq!(opened.unwrap_err().kind, ErrorKind::Corrupt);
    }
}

#[test]
fn a_scale_is_part_of_its_weight() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let weight = EncodedTensor::encode(CodecId::Q8_0, &[2, 32], &[1.0; 64], None).unwrap();
    let scale = |shape: &[usize], value: f32| {
        EncodedTensor::encode(CodecId::F32, shape, &vec![value; shape.iter().product()], None).unwrap()
    };
    let write = |value| {
        let tensors: Vec<(String, EncodedTensor)> = vec![
            ("q.scale".into(), scale(&[1], value)),
            ("q.weight".into(), weight.clone()),
            ("q.input_scale".into(), scale(&[1], 7.0)),
            // Scales of experts, of a norm and of nothing are tensors like any other.
            ("e.weight".into(), weight.clone()),
            ("e.scale".into(), scale(&[3], 2.0)),
            ("n.weight".into(), f32s(&[4], 1.0)),
            ("n.scale".into(), scale(&[1], 2.0)),
            ("o.scale".into(), scale(&[1], 2.0)),
        ];
        write_gguf(&path, &Metadata::new(), &tensors).unwrap();
        GgufStore::open(&path)
    };
    let store = write(0.5).unwrap();
    let names: Vec<&str> = store.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["q.weight", "e.weight", "e.scale", "n.weight", "n.scale", "o.scale"]);
    assert_eq!((store.find("q.weight").unwrap().scale, store.find("e.weight").unwrap().scale), (0.5, 1.0));
    assert_eq!(store.read_f32("q.weight").unwrap().1, weight.decode().iter().map(|v| v * 0.5).collect::<Vec<_>>());
    assert_eq!(store.stored().count(), 8);
    assert_eq!(store.bytes("q.scale").unwrap_err().kind, ErrorKind::Missing);
    assert_eq!(write(f32::NAN).unwrap_err().tensor.as_deref(), Some("q.scale"));
}

#[test]
fn numbers_are_shown_in_their_shortest_form() {
    assert_eq!(Value::F32(1e-5).to_json().as_f64(), Some(1e-5));
    assert_eq!(Value::F32(0.1).to_json().to_string(), "0.1");
    assert_eq!(Value::F64(f64::NAN).to_json().to_string(), "\"NaN\"");
    assert_eq!(Value::from(vec![true, false]).to_json().to_string(), "[true,false]");
}

fn arrays() -> impl Strategy<Value = Array> {
    let leaf = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..5).prop_map(Array::U8),
        prop::collection::vec(any::<i8>(), 0..5).prop_map(Array::I8),
        prop::collection::vec(any::<u16>(), 0..5).prop_map(Array::U16),
        prop::collection::vec(any::<i16>(), 0..5).prop_map(Array::I16),
        prop::collection::vec(any::<u32>(), 0..5).prop_map(Array::U32),
        prop::collection::vec(any::<i32>(), 0..5).prop_map(Array::I32),
        prop::collection::vec(any::<f32>(), 0..5).prop_map(Array::F32),
        prop::collection::vec(any::<bool>(), 0..5).prop_map(Array::Bool),
        prop::collection::vec(any::<String>(), 0..5).prop_map(Array::String),
        prop::collection::vec(any::<u64>(), 0..5).prop_map(Array::U64),
        prop::collection::vec(any::<i64>(), 0..5).prop_map(Array::I64),
        prop::collection::vec(any::<f64>(), 0..5).prop_map(Array::F64),
    ];
    leaf.prop_recursive(4, 20, 4, |inner| prop::collection::vec(inner, 0..4).prop_map(Array::Array))
}

fn values() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<f32>().prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        any::<String>().prop_map(Value::String),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any::<f64>().prop_map(Value::F64),
        arrays().prop_map(Value::Array),
    ]
}

proptest! {
    #[test]
    fn metadata_round_trip(pairs in prop::collection::vec(("[a-z.]{1,12}", values()), 0..12)) {
        let written: Metadata = pairs.into_iter().collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        write_gguf(&path, &written, &[]).unwrap();
        let store = GgufStore::open(&path).unwrap();
        prop_assert_eq!(store.metadata(), &written);
    }

    #[test]
    fn damaged_bytes_never_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        write_gguf(&path, &all_types(), &[("t".into(), f32s(&[2, 3], 0.0))]).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        for (at, byte) in edits {
            let i = at.index(bytes.len());
            bytes[i] = byte;
        }
        if let Ok(header) = parse_header(&bytes) {
            prop_assert!(header.tensors.iter().all(|t| t.range.end <= bytes.len()));
        }
    }
}
