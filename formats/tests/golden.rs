//! Byte-for-byte comparison with the reference encoders. The vectors and how they were made: `tests/golden/README.md`.

use bitsmith_formats::{Codec, CodecId, Float, Micro, decode_all};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::PathBuf;

const ROWS: usize = 16;
const COLS: usize = 1024;

/// Formats that ggml does not encode without importance.
const NEED_IMPORTANCE: [CodecId; 3] = [CodecId::IQ1S, CodecId::IQ2XXS, CodecId::IQ2XS];

fn golden(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn manifest(name: &str) -> Value {
    serde_json::from_slice(&golden(name)).unwrap()
}

fn floats(name: &str) -> Vec<f32> {
    golden(name).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Compares row by row, so that a failure names the kind of row.
fn compare(codec: &dyn Codec, case: &str, kinds: &Value, got: &[u8], want: &[u8]) -> Vec<String> {
    assert_eq!(got.len(), want.len(), "{case}");
    let row_bytes = want.len() / ROWS;
    let mut wrong = Vec::new();
    for row in 0..ROWS {
        let (got, want) = (&got[row * row_bytes..][..row_bytes], &want[row * row_bytes..][..row_bytes]);
        if got != want {
            let size = codec.block_bytes();
            let blocks: Vec<usize> =
                (0..row_bytes / size).filter(|b| got[b * size..][..size] != want[b * size..][..size]).collect();
            let b = blocks[0] * size;
            wrong.push(format!(
                "{case}, row {row} ({}): blocks {blocks:?} differ; first\n  got  {:?}\n  want {:?}",
                kinds[row],
                &got[b..b + size],
                &want[b..b + size]
            ));
        }
    }
    wrong
}

#[test]
fn ggml_encoders() {
    let manifest = manifest("ggml/manifest.json");
    let (weights, importance) = (floats("ggml/weights.f32"), floats("ggml/importance.f32"));
    let mut wrong = Vec::new();
    for id in CodecId::GGML {
        for (suffix, importance) in [("", None), (".imatrix", Some(&importance[..]))] {
            if suffix.is_empty() && NEED_IMPORTANCE.contains(&id) {
                continue;
            }
            let case = format!("{id}{suffix}");
            let want = golden(&format!("ggml/{case}.bin"));
            let name = format!("{}{suffix}", id.to_string().to_uppercase());
            assert_eq!(manifest["types"][&name]["bytes"], want.len(), "{name}");
            assert_eq!(manifest["types"][&name]["sha256"], sha256(&want), "{name}");
            let mut got = vec![0xaa; want.len()];
            for (row, out) in weights.chunks_exact(COLS).zip(got.chunks_exact_mut(want.len() / ROWS)) {
                id.codec().encode(row, importance, out);
            }
            wrong.extend(compare(id.codec(), &case, &manifest["row_kinds"], &got, &want));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn ggml_decoders() {
    let manifest = manifest("ggml/manifest.json");
    for id in CodecId::GGML {
        for suffix in ["", ".imatrix"] {
            if suffix.is_empty() && NEED_IMPORTANCE.contains(&id) {
                continue;
            }
            let values = decode_all(id, &golden(&format!("ggml/{id}{suffix}.bin")));
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let name = format!("{}{suffix}", id.to_string().to_uppercase());
            assert_eq!(manifest["types"][&name]["decoded_sha256"], sha256(&bytes), "{name}");
        }
    }
}

#[test]
fn mlx_encoders() {
    let manifest = manifest("mlx/manifest.json");
    let kinds = &self::manifest("ggml/manifest.json")["row_kinds"];
    let weights = floats("ggml/weights.f32");
    let mut wrong = Vec::new();
    for (bits, group, scale, name) in mlx_formats() {
        let case = format!("affine-{bits}bit-g{group}.{name}");
        let part = |part: &str| {
            let bytes = golden(&format!("mlx/{case}.{part}.bin"));
            assert_eq!(manifest["cases"][&case][part]["sha256"], sha256(&bytes), "{case} {part}");
            bytes
        };
        let (codes, scales, biases) = (part("weight"), part("scales"), part("biases"));
        let size = scale.size();
        let mut want = Vec::new();
        for (i, codes) in codes.chunks_exact(group as usize * bits as usize / 8).enumerate() {
            want.extend_from_slice(codes);
            want.extend_from_slice(&scales[i * size..][..size]);
            want.extend_from_slice(&biases[i * size..][..size]);
        }
        let codec = CodecId::MlxAffine { bits, group, scale }.codec();
        let mut got = vec![0xaa; want.len()];
        for (row, out) in weights.chunks_exact(COLS).zip(got.chunks_exact_mut(want.len() / ROWS)) {
            codec.encode(row, None, out);
        }
        wrong.extend(compare(codec, &case, kinds, &got, &want));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn mlx_small_float_encoders() {
    let manifest = manifest("mlx/manifest.json");
    let kinds = &self::manifest("ggml/manifest.json")["row_kinds"];
    let weights: Vec<f32> = floats("ggml/weights.f32").into_iter().map(|x| Float::BF16.round(x)).collect();
    let mut wrong = Vec::new();
    for (format, name) in [(Micro::Mxfp4, "mxfp4-4bit-g32"), (Micro::Mxfp8, "mxfp8-8bit-g32"), (Micro::Nvfp4, "nvfp4-4bit-g16")] {
        let case = format!("{name}.bf16");
        let [codes, scales] = ["weight", "scales"].map(|part| {
            let bytes = golden(&format!("mlx/{case}.{part}.bin"));
            assert_eq!(manifest["cases"][&case][part]["sha256"], sha256(&bytes), "{case} {part}");
            bytes
        });
        let mut want = Vec::new();
        for (codes, scale) in codes.chunks_exact(format.code_bytes()).zip(&scales) {
            want.extend_from_slice(codes);
            want.push(*scale);
        }
        let codec = CodecId::Micro(format).codec();
        let mut got = vec![0xaa; want.len()];
        for (row, out) in weights.chunks_exact(COLS).zip(got.chunks_exact_mut(want.len() / ROWS)) {
            codec.encode(row, None, out);
        }
        wrong.extend(compare(codec, &case, kinds, &got, &want));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn mlx_formats() -> impl Iterator<Item = (u8, u16, Float, &'static str)> {
    let floats = [(Float::F32, "f32"), (Float::F16, "f16"), (Float::BF16, "bf16")];
    [2, 3, 4, 5, 6, 8].into_iter().flat_map(move |bits| {
        [32, 64, 128].into_iter().flat_map(move |group| floats.into_iter().map(move |(scale, name)| (bits, group, scale, name)))
    })
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
