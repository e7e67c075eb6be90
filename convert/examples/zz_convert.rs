//! tmp
use bitsmith_convert::*;
use bitsmith_formats::*;
use bitsmith_runtime::*;
use bitsmith_runtime::tokenizer::*;
use std::path::Path;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let src = Path::new(&a[1]);
    let out = Path::new(&a[2]);
    let ck = Checkpoint::open(src).unwrap();
    let spec = ck.spec().clone();
    let about = ModelAbout::from_source(src, None).unwrap();
    let tok = Tokenizer::from_hf_folder(src).unwrap();
    let vocab = GgufVocab::from_hf_folder(src, spec.vocab_size).unwrap();
    let re = Tokenizer::from_vocab(&vocab, src).unwrap();
    println!("roundtrip {}", verify_roundtrip(&tok, &re, PROBES).unwrap());
    let enc = |role: Role, codec: CodecId| -> Result<EncodedTensor> { let t = ck.read(role)?; EncodedTensor::encode(codec, &t.shape, &t.data, None) };
    for e in ["bf16", "q8_0"] {
        let c: CodecId = e.parse().unwrap();
        let pick = |r: Role| if r.part.is_matrix() { let s = spec.shape(r.part); if c.row_bytes(s[1]).is_ok() { c } else { CodecId::F16 } } else { CodecId::F32 };
        let codecs: Vec<_> = spec.roles().into_iter().filter(|r| r.part.is_matrix()).map(|r| (r, pick(r))).collect();
        let plan = GgufPlan::new(&spec, &vocab, &about, e, &codecs).unwrap();
        let art = plan.write(out.join(names::gguf_file(&about.name, e)), |r| enc(r, pick(r))).unwrap();
        println!("{:?} {}", art.path, art.bytes());
        let t = Tokenizer::from_gguf(formats_meta(&art.path).metadata(), &art.path).unwrap();
        verify_roundtrip(&tok, &t, PROBES).unwrap();
    }
    for e in ["bf16", "4bit", "8bit-g32"] {
        let c: CodecId = if e == "bf16" { CodecId::BF16 } else { format!("mlx-{e}").parse().unwrap() };
        let pick = |r: Role| if r.part.is_matrix() { let s = spec.shape(r.part); if c.row_bytes(s[1]).is_ok() { c } else { CodecId::BF16 } } else { CodecId::BF16 };
        let codecs: Vec<_> = spec.roles().into_iter().filter(|r| r.part.is_matrix()).map(|r| (r, pick(r))).collect();
        let plan = MlxPlan::new(&spec, src, &about, Float::BF16, &codecs).unwrap();
        let art = plan.write(out.join(names::mlx_folder(&about.name, e)), |r| enc(r, pick(r))).unwrap();
        println!("{:?} {} {:?}", art.path, art.bytes(), art.files.len());
    }
    let lines = std::fs::read_to_string("/work/shared/accept/prompts.txt").unwrap();
    let seqs: Vec<Vec<u32>> = lines.split('\n').filter(|l| !l.is_empty()).map(|l| tok.encode(l, false).unwrap()).collect();
    std::fs::write(out.join("tokens.json"), serde_json::json!({"sequences": seqs}).to_string()).unwrap();
}
fn formats_meta(p: &Path) -> bitsmith_formats::gguf::GgufStore { bitsmith_formats::gguf::GgufStore::open(p).unwrap() }
