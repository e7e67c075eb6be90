//! What PyTorch wrote (`tests/golden/torch`), and what it never would.

use super::*;
use crate::container::{Encoding, TensorStore};
use crate::error::{Error, ErrorKind, Result};
use crate::store::open_store;
use serde_json::Value as Json;
use std::fs;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/torch").join(name)
}

fn expected(key: &str) -> serde_json::Map<String, Json> {
    let all: Json = serde_json::from_slice(&fs::read(golden("expected.json")).unwrap()).unwrap();
    all[key].as_object().unwrap().clone()
}

fn assert_holds(store: &TorchStore, expected: &serde_json::Map<String, Json>) {
    let names: Vec<&str> = store.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, expected.keys().collect::<Vec<_>>());
    for (name, want) in expected {
        let info = store.find(name).unwrap();
        let shape: Vec<usize> = serde_json::from_value(want["shape"].clone()).unwrap();
        let values: Vec<f32> = serde_json::from_value(want["values"].clone()).unwrap();
        assert_eq!(info.shape, shape, "{name}");
        match &info.encoding {
            Encoding::Codec(_) => {
                assert_eq!(store.read_f32(name).unwrap().1, values, "{name}");
                for row in 0..info.n_rows() {
                    let part = &values[row * info.row_len()..(row + 1) * info.row_len()];
                    assert_eq!(store.read_rows(name, row..row + 1).unwrap(), part, "{name} row {row}");
                }
            }
            Encoding::Opaque(ty) if ty == "I64" => {
                let bytes = store.bytes(name).unwrap();
                assert_eq!(bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as f32).collect::<Vec<_>>(), values);
            }
            other => assert_eq!((other.to_string().as_str(), info.n_bytes), ("F8_E4M3", 3), "{name}"),
        }
    }
}

#[test]
fn real_checkpoints_hold_what_pytorch_put_in() {
    for file in ["plain.bin", "protocol4.bin"] {
        assert_holds(&TorchStore::open(golden(file)).unwrap(), &expected("plain"));
    }
    assert_holds(&TorchStore::open(golden("wrapped.pt")).unwrap(), &expected("wrapped"));
    let nested = open_store(golden("nested.pth")).unwrap();
    let names: Vec<&str> = nested.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["block.0.weight", "bias"]);
}

#[test]
fn what_is_no_state_dict_is_refused() {
    let error = |name: &str| TorchStore::open(golden(name)).unwrap_err();
    let module = error("module.pt");
    assert_eq!(module.kind, ErrorKind::Unsupported);
    assert!(module.message.contains("torch.nn.modules.linear.Linear") && module.message.contains("would run code"), "{module}");
    let legacy = error("legacy.bin");
    assert!(legacy.kind == ErrorKind::Unsupported && legacy.message.contains("1.6"), "{legacy}");
    assert_eq!((error("bare.pt").kind, error("bare.pt").file), (ErrorKind::Corrupt, Some(golden("bare.pt"))));
}

/// A zip archive as `torch.save` lays it out, or with `method` instead of stored.
fn archive(entries: &[(&str, &[u8])], method: u16) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let at = out.len() as u32;
        let middle = |out: &mut Vec<u8>| {
            out.extend([0, 0]);
            out.extend(method.to_le_bytes());
            out.extend([0; 8]);
            out.extend((data.len() as u32).to_le_bytes());
            out.extend((data.len() as u32).to_le_bytes());
            out.extend((name.len() as u16).to_le_bytes());
        };
        out.extend(b"PK\x03\x04\0\0");
        middle(&mut out);
        out.extend([3, 0]);
        out.extend(name.as_bytes());
        out.extend([0; 3]);
        out.extend(*data);
        directory.extend(b"PK\x01\x02\0\0\0\0");
        middle(&mut directory);
        directory.extend([0; 12]);
        directory.extend(at.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let start = out.len() as u32;
    let n = entries.len() as u16;
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend(n.to_le_bytes());
    out.extend(n.to_le_bytes());
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0, 0]);
    out
}

/// Opens an archive with this pickle and one storage `0` of these bytes.
fn open(pickle: &[u8], storage: &[u8]) -> Result<TorchStore> {
    open_entries(&[("a/data.pkl", pickle), ("a/data/0", storage)])
}

fn open_entries(entries: &[(&str, &[u8])]) -> Result<TorchStore> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.bin");
    fs::write(&path, archive(entries, 0)).unwrap();
    TorchStore::open(path)
}

fn text(s: &str) -> Vec<u8> {
    [b"X", &(s.len() as u32).to_le_bytes()[..], s.as_bytes()].concat()
}

fn int(n: i64) -> Vec<u8> {
    [&[0x8a, 8][..], &n.to_le_bytes()].concat()
}

fn tuple(items: &[i64]) -> Vec<u8> {
    [b"(".to_vec(), items.iter().flat_map(|n| int(*n)).collect(), b"t".to_vec()].concat()
}

/// `{"w": tensor}` over storage `0` of f32.
fn one_tensor(numel: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let storage =
        [b"(".to_vec(), text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text("0"), text("cpu"), int(numel), b"tQ".to_vec()];
    let args = [storage.concat(), int(offset), tuple(shape), tuple(strides), b"\x89NtR".to_vec()].concat();
    [b"\x80\x02}".to_vec(), text("w"), b"ctorch._utils\n_rebuild_tensor_v2\n(".to_vec(), args, b"s.".to_vec()].concat()
}

fn floats(n: usize) -> Vec<u8> {
    (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect()
}

#[test]
fn views_are_gathered() {
    let read = |numel, offset, shape: &[i64], strides: &[i64]| {
        open(&one_tensor(numel, offset, shape, strides), &floats(12)).unwrap().read_f32("w").unwrap().1
    };
    assert_eq!(read(12, 0, &[3, 4], &[4, 1])[5], 5.0);
    assert_eq!(read(12, 1, &[2, 3], &[1, 4]), [1.0, 5.0, 9.0, 2.0, 6.0, 10.0]);
    assert_eq!(read(12, 11, &[1, 1], &[700, 9]), [11.0]);
    assert_eq!(read(12, 3, &[], &[]), [3.0]);
    assert!(read(12, 99, &[0, 4], &[4, 1]).is_empty());
}

#[test]
fn big_endian_storages_are_turned() {
    let storage: Vec<u8> = (0..4).flat_map(|i| (i as f32).to_be_bytes()).collect();
    let pickle = one_tensor(4, 0, &[4], &[1]);
    let store = |order: &[u8]| open_entries(&[("a/data.pkl", &pickle), ("a/byteorder", order), ("a/data/0", &storage)]);
    assert_eq!(store(b"big").unwrap().read_f32("w").unwrap().1, [0.0, 1.0, 2.0, 3.0]);
    assert_eq!(store(b"middle").unwrap_err().kind, ErrorKind::Corrupt);
}

#[test]
fn views_outside_their_storage_are_refused() {
    for (what, numel, offset, shape, strides) in [
        ("too long", 12, 0, vec![13], vec![1]),
        ("offset", 12, 10, vec![3], vec![1]),
        ("stride", 12, 0, vec![2, 2], vec![12, 1]),
        ("storage shorter than it says", 13, 0, vec![2], vec![1]),
        ("storage of any size", i64::MAX, 0, vec![2], vec![1]),
        ("negative stride", 12, 0, vec![2], vec![-1]),
        ("negative size", 12, 0, vec![-2], vec![1]),
        ("negative offset", 12, -1, vec![2], vec![1]),
        ("huge product", 12, 0, vec![i64::MAX, i64::MAX], vec![0, 0]),
        ("huge stride", 12, 0, vec![3], vec![i64::MAX]),
        ("huge beside empty", 12, 0, vec![0, i64::MAX, i64::MAX], vec![1, 1, 1]),
        ("strides missing", 12, 0, vec![2, 2], vec![1]),
        ("too many dimensions", 12, 0, vec![1; 65], vec![1; 65]),
    ] {
        let error = open(&one_tensor(numel, offset, &shape, &strides), &floats(12)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupt, "{what}: {error}");
    }
    let broadcast = open(&one_tensor(12, 0, &[1 << 20, 1 << 20], &[0, 0]), &floats(12)).unwrap_err();
    assert!(broadcast.kind == ErrorKind::Unsupported && broadcast.tensor.as_deref() == Some("w"), "{broadcast}");
    let lost = open_entries(&[("a/data.pkl", &one_tensor(2, 0, &[2], &[1])[..])]).unwrap_err();
    assert!(lost.message.contains("a/data/0"), "{lost}");
}

/// No pickle may do more than fail.
fn refused(what: &str, pickle: &[u8]) -> Error {
    open(pickle, &floats(4)).err().unwrap_or_else(|| panic!("{what} was read"))
}

#[test]
fn code_is_never_run() {
    let marker = tempfile::tempdir().unwrap().path().join("ran");
    let command = text(&format!("touch {}", marker.display()));
    for module in
        ["os\nsystem", "posix\nsystem", "builtins\neval", "subprocess\nPopen", "torch\nload", "torch._utils\n_rebuild_wrapper"]
    {
        let error =
            refused(module, &[b"\x80\x02c".to_vec(), module.into(), b"\n(".to_vec(), command.clone(), b"tR.".to_vec()].concat());
        assert_eq!(error.kind, ErrorKind::Unsupported, "{error}");
        assert!(error.message.contains(&module.replace('\n', ".")) && error.message.contains("would run code"), "{error}");
    }
    let by_stack = [b"\x80\x04\x8c\x02os\x8c\x06system\x93".to_vec(), b"(".to_vec(), command.clone(), b"tR.".to_vec()].concat();
    assert!(refused("STACK_GLOBAL", &by_stack).message.contains("os.system"));
    // INST and OBJ call what they name as well, and extension codes name what they call.
    for (what, code) in [("INST", &b"(ios\nsystem\n."[..]), ("OBJ", b"(cos\nsystem\no."), ("EXT1", b"\x82\x01.")] {
        assert_eq!(refused(what, &[b"\x80\x02", code].concat()).kind, ErrorKind::Unsupported, "{what}");
    }
    // Known names, in ways in which torch does not use them.
    for (what, code) in [
        ("a dtype is called", &b"ctorch\nfloat32\n)R."[..]),
        ("a text is called", b"X\x01\0\0\0x)R."),
        ("attributes of a name", b"ctorch\nfloat32\n}b."),
        ("a tensor of nothing", b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR."),
        ("a reference to a module", b"(X\x06\0\0\0modulectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQ."),
        ("an unknown storage", b"ctorch\nFileStorage\n."),
    ] {
        refused(what, &[b"\x80\x02", code].concat());
    }
    assert!(!marker.exists());
}

#[test]
fn damaged_and_hostile_pickles_give_errors() {
    let repeated = |code: &[u8], n: usize, end: &[u8]| [b"\x80\x02", code.repeat(n).as_slice(), end].concat();
    for (what, pickle) in [
        ("empty", vec![]),
        ("protocol 0", b"(dp0\n.".to_vec()),
        ("protocol 9", b"\x80\x09.".to_vec()),
        ("nothing to give", b"\x80\x02.".to_vec()),
        ("no end", b"\x80\x02}".to_vec()),
        ("nested tuples", [b"\x80\x02N".to_vec(), b"\x85".repeat(1_000_000), b".".to_vec()].concat()),
        ("many marks", repeated(b"(", 1_000_000, b".")),
        (
            "many dicts in dicts",
            [b"\x80\x02".to_vec(), b"}X\x01\0\0\0a".repeat(5000), b"N".to_vec(), b"s".repeat(5000), b".".to_vec()].concat(),
        ),
        ("a memo index of 4 billion that is not there", b"\x80\x02j\xff\xff\xff\xff.".to_vec()),
        ("a memo index of 4 billion", b"\x80\x02Nr\xff\xff\xff\xff.".to_vec()),
        ("a text of 4 GiB", b"\x80\x02X\xff\xff\xff\xffabc.".to_vec()),
        ("a text of 2^64 bytes", b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff.".to_vec()),
        ("bytes of 2^63", b"\x80\x05\x96\0\0\0\0\0\0\0\x80.".to_vec()),
        ("an integer of 2 GiB", b"\x80\x02\x8b\xff\xff\xff\x7f.".to_vec()),
        ("a long integer", b"\x80\x02\x8a\x09\0\0\0\0\0\0\0\0\x01.".to_vec()),
        ("a frame past the end", b"\x80\x04\x95\xff\0\0\0\0\0\0\0N.".to_vec()),
        ("half a pair", b"\x80\x02}(Ku.".to_vec()),
        ("a key without a value", b"\x80\x02}(K\x01u.".to_vec()),
        ("not UTF-8", b"\x80\x02X\x02\0\0\0\xff\xfe.".to_vec()),
        ("below a mark", b"\x80\x02N(0.".to_vec()),
        ("no mark", b"\x80\x02t.".to_vec()),
        ("a line without an end", b"\x80\x02ctorch".to_vec()),
    ] {
        let error = refused(what, &pickle);
        assert!(matches!(error.kind, ErrorKind::Corrupt | ErrorKind::Unsupported), "{what}: {error}");
    }
}

#[test]
fn dicts_that_hold_themselves_have_an_end() {
    let inside_itself = [b"\x80\x02}q\0".to_vec(), text("a"), b"h\0s.".to_vec()].concat();
    assert!(refused("cycle", &inside_itself).message.contains("two places"));
    // Each dict holds the one before twice: 2^30 names in a few hundred bytes.
    let mut bomb = b"\x80\x02}q\0".to_vec();
    for i in 0..30u8 {
        bomb.extend(
            [b"}".to_vec(), text("a"), vec![b'h', i], b"s".to_vec(), text("b"), vec![b'h', i], b"s".to_vec(), vec![b'q', i + 1]]
                .concat(),
        );
    }
    bomb.push(b'.');
    assert_eq!(refused("bomb", &bomb).kind, ErrorKind::Corrupt);
}

#[test]
fn damaged_archives_give_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.bin");
    let real = fs::read(golden("plain.bin")).unwrap();
    let open = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        TorchStore::open(&path)
    };
    for cut in (0..real.len()).step_by(7) {
        let error = open(&real[..cut]).unwrap_err();
        assert_eq!((error.kind, error.file.as_deref()), (ErrorKind::Corrupt, Some(path.as_path())), "{cut}: {error}");
    }
    // Any changed byte gives other values or an error, and no panic.
    for at in (0..real.len()).step_by(2) {
        let mut changed = real.clone();
        changed[at] ^= 0xff;
        if let Ok(store) = open(&changed) {
            store.tensors().iter().for_each(|t| {
                let _ = store.bytes(&t.name).unwrap();
            });
        }
    }
    let pickle = one_tensor(2, 0, &[2], &[1]);
    let entries = [("a/data.pkl", &pickle[..]), ("a/data/0", &floats(2))];
    assert!(open(&archive(&entries, 0)).is_ok());
    let packed = open(&archive(&entries, 8)).unwrap_err();
    assert!(packed.kind == ErrorKind::Unsupported && packed.message.contains("a/data.pkl"), "{packed}");
    assert!(open(&archive(&entries[1..], 0)).unwrap_err().message.contains("data.pkl"));
    let twice = [entries[0], entries[0], entries[1]];
    assert!(open(&archive(&twice, 0)).unwrap_err().message.contains("twice"));
}

#[test]
fn folders_and_shards() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    let open = || open_store(dir.path());
    let file = |name: &str| {
        let pickle = one_tensor(2, 0, &[2], &[1]);
        let at = pickle.windows(6).position(|w| w == [&text("w")[..]].concat()).unwrap();
        let renamed = [&pickle[..at], &text(name), &pickle[at + 6..]].concat();
        archive(&[("a/data.pkl", &renamed), ("a/data/0", &floats(2))], 0)
    };
    let names = |store: &dyn TensorStore| store.tensors().iter().map(|t| t.name.clone()).collect::<Vec<_>>();
    put("training_args.bin", b"not read");
    put("x.pt", &file("x"));
    assert_eq!(names(open().unwrap().as_ref()), ["x"]);
    put("y.pt", &file("y"));
    assert!(open().err().unwrap().message.contains("x.pt, y.pt"));
    put("pytorch_model-00001-of-00002.bin", &file("x"));
    assert_eq!(open().err().unwrap().kind, ErrorKind::Missing);
    put("pytorch_model-00002-of-00002.bin", &file("x"));
    assert_eq!(open().err().unwrap().tensor.as_deref(), Some("x"));
    put("pytorch_model-00002-of-00002.bin", &file("z"));
    assert_eq!(names(open().unwrap().as_ref()), ["x", "z"]);
    let index = |z: &str| format!(r#"{{"weight_map":{{"x":"pytorch_model-00001-of-00002.bin","z":"{z}"}}}}"#);
    put(INDEX_FILE, index("pytorch_model-00002-of-00002.bin").as_bytes());
    assert_eq!(names(open().unwrap().as_ref()), ["x", "z"]);
    put(INDEX_FILE, index("y.pt").as_bytes());
    assert_eq!(open().err().unwrap().kind, ErrorKind::Missing);
    put(SINGLE_FILE, &file("w"));
    assert_eq!(names(open().unwrap().as_ref()), ["w"]);
    put("model.safetensors", b"");
    assert!(open().err().unwrap().to_string().contains("model.safetensors"));
}

#[test]
fn archives_of_more_than_4_gib_keep_their_offsets_in_zip64_fields() {
    let pickle = one_tensor(2, 0, &[2], &[1]);
    let mut bytes = archive(&[("a/data.pkl", &pickle), ("a/data/0", &floats(2))], 0);
    // The same directory written wide: all three numbers of every entry in an extra field, and an end record of 64 bits.
    let end = bytes.len() - 22;
    let start = u32::from_le_bytes(bytes[end + 16..end + 20].try_into().unwrap()) as usize;
    let (narrow, mut at) = (bytes[start..end].to_vec(), 0);
    bytes.truncate(start);
    while at < narrow.len() {
        let name_len = usize::from(narrow[at + 28]);
        let mut entry = narrow[at..at + 46 + name_len].to_vec();
        let number = |i: usize| u64::from(u32::from_le_bytes(narrow[at + i..at + i + 4].try_into().unwrap())).to_le_bytes();
        let extra = [&[1, 0, 24, 0][..], &number(24), &number(20), &number(42)].concat();
        for i in [20, 24, 42] {
            entry[i..i + 4].fill(0xff);
        }
        entry[30] = extra.len() as u8;
        entry.extend(extra);
        bytes.extend(entry);
        at += 46 + name_len;
    }
    let record = bytes.len() as u64;
    bytes.extend([&b"PK\x06\x06"[..], &44u64.to_le_bytes(), &[0; 12], &2u64.to_le_bytes(), &2u64.to_le_bytes()].concat());
    bytes.extend([&(record - start as u64).to_le_bytes()[..], &(start as u64).to_le_bytes()].concat());
    bytes.extend(
        [&b"PK\x06\x07\0\0\0\0"[..], &record.to_le_bytes(), &[1, 0, 0, 0], b"PK\x05\x06\0\0\0\0", &[0xff; 12], &[0, 0]].concat(),
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.pth");
    fs::write(&path, bytes).unwrap();
    assert_eq!(TorchStore::open(&path).unwrap().read_f32("w").unwrap().1, [0.0, 1.0]);
}
