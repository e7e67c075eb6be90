//! Importance matrices in both layouts, and statistics.

use super::with_file;
use bitsmith_calibrate::Stats;
use bitsmith_calibrate::imatrix::{Imatrix, Layout};
use bitsmith_formats::gguf::{Metadata, write_gguf};
use bitsmith_formats::{CodecId, EncodedTensor};

/// A matrix; what is read can be written in both layouts and read again.
pub fn run_imatrix(data: &[u8]) {
    with_file("x.imatrix", data, |path| {
        let Ok(matrix) = Imatrix::read(path, 512) else { return };
        let _ = matrix.coverage();
        for (layout, name) in [(Layout::Gguf, "y.gguf"), (Layout::Dat, "y.dat")] {
            let out = path.with_file_name(name);
            if matrix.write(&out, layout).is_ok() {
                let again = Imatrix::read(&out, 512);
                assert!(again.is_ok(), "what was written cannot be read: {again:?}");
            }
        }
    });
}

/// Both layouts.
pub fn imatrix_seeds() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let path = dir.path().join("x.gguf");
    let mut m = Metadata::new();
    m.set("general.type", "imatrix");
    m.set("imatrix.datasets", vec!["a.txt".to_string()]);
    m.set("imatrix.chunk_count", 2u32);
    m.set("imatrix.chunk_size", 512u32);
    let plain = |shape: &[usize], v: &[f32]| EncodedTensor::encode(CodecId::F32, shape, v, None).expect("seeds can be encoded");
    let tensors = [
        ("blk.0.attn_q.weight.in_sum2".to_string(), plain(&[1, 4], &[1.0, 2.0, 0.0, 4.0])),
        ("blk.0.attn_q.weight.counts".to_string(), plain(&[1, 1], &[1024.0])),
        ("blk.0.ffn_down_exps.weight.in_sum2".to_string(), plain(&[2, 2], &[1.0, 2.0, 0.0, 0.0])),
        ("blk.0.ffn_down_exps.weight.counts".to_string(), plain(&[2, 1], &[1024.0, 0.0])),
    ];
    write_gguf(&path, &m, &tensors).expect("seeds can be written");
    let gguf = std::fs::read(&path).expect("seeds can be read");
    let matrix = Imatrix::read(&path, 512).expect("a seed is a matrix");
    let dat = dir.path().join("x.dat");
    matrix.write(&dat, Layout::Dat).expect("seeds can be written");
    vec![gguf, std::fs::read(dat).expect("seeds can be read")]
}

/// A file of statistics: as it comes, or packed first if the first byte is odd, so that mutations reach what is inside.
pub fn run_stats(data: &[u8]) {
    let Some((&how, data)) = data.split_first() else { return };
    let packed = if how % 2 == 1 { zstd::encode_all(data, 1).unwrap_or_default() } else { data.to_vec() };
    with_file("x.stats", &packed, |path| {
        let _ = Stats::load(path);
    });
}

/// A header with one site and its arrays, plain and packed.
pub fn stats_seeds() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let path = dir.path().join("x.stats");
    let stats = Stats::default();
    stats.save(&path).expect("seeds can be written");
    let packed = std::fs::read(path).expect("seeds can be read");
    let inside = zstd::decode_all(&packed[..]).expect("seeds can be unpacked");
    let text = String::from_utf8_lossy(&inside[16..]).into_owned();
    let site = r#"[{"site":{"layer":0,"input":"FfnIn"},"width":4,"tokens":7,"gram":true,"means":true,"matrices":[3,0]}]"#;
    let json = text.replace("\"sites\":[]", &format!("\"sites\":{site}"));
    let mut one = inside[..8].to_vec();
    one.extend((json.len() as u64).to_le_bytes());
    one.extend(json.bytes());
    one.resize(one.len() + 512, 0);
    vec![[vec![0], packed].concat(), [vec![1], inside].concat(), [vec![1], one].concat()]
}
