use super::*;
use bitsmith_formats::{CodecId, EncodedTensor};
use std::fs;

fn entry(sums: &[f64], counts: &[u64]) -> Entry {
    Entry { sums: sums.to_vec(), counts: counts.to_vec() }
}

fn example() -> Imatrix {
    Imatrix {
        entries: BTreeMap::from([
            ("blk.0.attn_q.weight".into(), entry(&[2.0, 0.0, 6.5, 1024.0], &[1024])),
            ("blk.0.ffn_down_exps.weight".into(), entry(&[1.0, 3.0, 0.0, 0.0, 5.0, 0.5], &[1000, 0, 24])),
        ]),
        datasets: vec!["a.txt".into()],
        chunk_count: 2,
        chunk_size: 512,
    }
}

fn in_folder(test: impl Fn(&dyn Fn(&str) -> std::path::PathBuf)) {
    let dir = tempfile::tempdir().unwrap();
    test(&|name| dir.path().join(name));
}

#[test]
fn gguf_keeps_everything() {
    in_folder(|at| {
        example().write(&at("x.gguf"), Layout::Gguf).unwrap();
        assert_eq!(Imatrix::read(&at("x.gguf"), 7).unwrap(), example());
    });
}

#[test]
fn the_older_layout_is_llama_cpps() {
    let mut bytes = 1i32.to_le_bytes().to_vec();
    let int = |bytes: &mut Vec<u8>, n: i32| bytes.extend(n.to_le_bytes());
    int(&mut bytes, 1);
    bytes.extend(b"w");
    int(&mut bytes, 3);
    int(&mut bytes, 2);
    bytes.extend([0.3f32, 7.7].iter().flat_map(|v| v.to_le_bytes()));
    in_folder(|at| {
        let read = |bytes: &[u8]| {
            fs::write(at("x.dat"), bytes).unwrap();
            Imatrix::read(&at("x.dat"), 512)
        };
        // Without the trailer, as very old files are.
        let old = read(&bytes).unwrap();
        assert_eq!((old.chunk_count, old.entries["w"].counts[0]), (0, 3 * 512));
        let mut whole = bytes.clone();
        int(&mut whole, 3);
        int(&mut whole, 5);
        whole.extend(b"a.txt");
        let new = read(&whole).unwrap();
        assert_eq!((new.chunk_count, new.datasets.as_slice()), (3, &["a.txt".to_string()][..]));
        assert!((new.entries["w"].sums[0] / 1536.0 - f64::from(0.3f32) / 3.0).abs() < 1e-12, "E(x²) is the value over the calls");
        // To the other layout and back: the same bytes.
        new.write(&at("x.gguf"), Layout::Gguf).unwrap();
        Imatrix::read(&at("x.gguf"), 1).unwrap().write(&at("y.dat"), Layout::Dat).unwrap();
        assert_eq!(fs::read(at("y.dat")).unwrap(), whole);
        for cut in [0, 3, 4, 8, 9, 13, 17, 20, whole.len() - 1] {
            assert_eq!(read(&whole[..cut]).unwrap_err().kind, ErrorKind::Corrupt, "cut at {cut}");
        }
        for (what, at, value) in
            [("entries", 0, -1), ("many entries", 0, i32::MAX), ("name", 4, i32::MAX), ("values", 13, i32::MAX)]
        {
            let mut bad = whole.clone();
            bad[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let error = read(&bad).unwrap_err();
            assert!(error.kind == ErrorKind::Corrupt && error.file.is_some(), "{what}: {error}");
        }
        let mut nan = whole.clone();
        nan[17..21].copy_from_slice(&f32::NAN.to_le_bytes());
        assert_eq!(read(&nan).unwrap_err().tensor.as_deref(), Some("w"));
        assert!(read(b"This is no importance matrix.").is_err());
    });
}

#[test]
fn experts_without_tokens_count_evenly_in_the_older_layout() {
    in_folder(|at| {
        example().write(&at("x.dat"), Layout::Dat).unwrap();
        let back = Imatrix::read(&at("x.dat"), 512).unwrap();
        let e = &back.entries["blk.0.ffn_down_exps.weight"];
        // Two calls: the expert that saw most saw 1000 tokens.
        assert_eq!(e.counts, [1024]);
        let means: Vec<f64> = e.sums.iter().map(|s| s / 1024.0).collect();
        for (mean, want) in means.iter().zip([0.001, 0.003, 1.0, 1.0, 5.0 / 24.0, 0.5 / 24.0]) {
            assert!((mean - want).abs() < 1e-6 * want, "{means:?}");
        }
    });
}

#[test]
fn merging_adds() {
    let mut a = example();
    let mut b = example();
    b.entries.insert("blk.1.attn_q.weight".into(), entry(&[1.0], &[5]));
    b.datasets = vec!["b.txt".into(), "a.txt".into()];
    a.merge(b).unwrap();
    assert_eq!(a.entries["blk.0.attn_q.weight"], entry(&[4.0, 0.0, 13.0, 2048.0], &[2048]));
    assert_eq!(a.entries["blk.0.ffn_down_exps.weight"].counts, [2000, 0, 48]);
    assert_eq!((a.entries.len(), a.chunk_count, a.datasets.len()), (3, 4, 2));
    for wrong in [entry(&[1.0; 5], &[1]), entry(&[1.0; 4], &[1, 1])] {
        let mut other = example();
        other.entries.insert("blk.0.attn_q.weight".into(), wrong);
        let before = a.clone();
        let error = a.merge(other).unwrap_err();
        assert_eq!((error.kind, error.tensor.as_deref()), (ErrorKind::Corrupt, Some("blk.0.attn_q.weight")));
        assert_eq!(a, before, "nothing is added if anything does not fit");
    }
}

#[test]
fn coverage_tells_what_is_missing() {
    let coverage = example().coverage();
    let q = &coverage.tensors[0];
    assert_eq!((q.tokens, q.dead_percent, q.min, q.max, q.experts), (1024, 25.0, 0.0, 1.0, 1));
    let experts = &coverage.tensors[1];
    assert_eq!((experts.tokens, &experts.experts_never[..], &experts.experts_seldom[..]), (1024, &[1][..], &[2][..]));
    assert_eq!((experts.dead_percent, experts.channels), (0.0, 2));
}

#[test]
fn damaged_gguf_is_refused() {
    in_folder(|at| {
        let write = |counts: &[f32], sums: &[f32], kind: &str| {
            let mut meta = bitsmith_formats::gguf::Metadata::new();
            meta.set("general.type", kind);
            let plain = |v: &[f32]| EncodedTensor::encode(CodecId::F32, &[1, v.len()], v, None).unwrap();
            let tensors = [("w.in_sum2".to_string(), plain(sums)), ("w.counts".to_string(), plain(counts))];
            bitsmith_formats::gguf::write_gguf(at("x.gguf"), &meta, &tensors).unwrap();
            Imatrix::read(&at("x.gguf"), 512)
        };
        assert!(write(&[2.0], &[1.0, 2.0], "imatrix").is_ok());
        for (counts, sums, kind) in [
            (&[2.0][..], &[1.0, 2.0][..], "model"),
            (&[-2.0], &[1.0, 2.0], "imatrix"),
            (&[2.0, 1.0], &[1.0, 2.0, 3.0], "imatrix"),
            (&[2.0], &[1.0, -2.0], "imatrix"),
            (&[2.0], &[1.0, f32::INFINITY], "imatrix"),
        ] {
            let error = write(counts, sums, kind).unwrap_err();
            assert!(error.kind == ErrorKind::Corrupt && error.file.is_some(), "{error}");
        }
    });
}

#[test]
fn sums_beyond_f32_are_not_written() {
    in_folder(|at| {
        let mut large = example();
        large.entries.insert("w".into(), entry(&[1e39], &[1]));
        for (layout, name) in [(Layout::Gguf, "x.gguf"), (Layout::Dat, "x.dat")] {
            let error = large.write(&at(name), layout).unwrap_err();
            assert_eq!((error.kind, error.tensor.as_deref()), (ErrorKind::Corrupt, Some("w")));
            assert!(!at(name).exists());
        }
    });
}
