//! temporary
#![allow(clippy::print_stdout)]
use bitsmith_datasets::*;
use bitsmith_eval::*;
use bitsmith_runtime::*;
use candle_core::Device;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let mut tok = Tokenizer::from_hf_folder(&a[1]).unwrap();
    tok.set_parse_special(false);
    let enc = |t: &str| tok.encode(t, false);
    let c = a[2].parse::<DataSpec>().unwrap().load(Purpose::Evaluation).unwrap();
    let e = Encoder { encode: &enc, bos: tok.bos().filter(|_| tok.adds_bos()) };
    let t = std::time::Instant::now();
    let style = a[3].parse().unwrap();
    let ctx = a.get(6).map(|c| c.parse().unwrap());
    let w = evaluation_windows(&c, &e, style, ctx, Some(a[4].parse().unwrap())).unwrap();
    println!(
        "tokenised {:?} bos {:?} notes {:?} working {}",
        t.elapsed(),
        e.bos,
        w.set.notes,
        working_bytes(Checkpoint::open(&a[1]).unwrap().spec(), &w)
    );
    let m = Checkpoint::open(&a[1]).unwrap();
    let r = Reference::new("ref", &m, w, &Device::Cpu, &ignore_progress).unwrap();
    println!("ref {:?} {} bytes", t.elapsed(), r.bytes());
    let p = r.perplexity(&ignore_progress).unwrap();
    println!("{:?} {}", t.elapsed(), serde_json::to_string(&p).unwrap());
    if let Some(b) = a.get(5).filter(|b| *b != "-") {
        let mut k = r.compare(&Checkpoint::open(b).unwrap(), &ignore_progress).unwrap();
        k.kld.windows.clear();
        println!("{:?} {}", t.elapsed(), serde_json::to_string_pretty(&k.kld).unwrap());
    }
}
