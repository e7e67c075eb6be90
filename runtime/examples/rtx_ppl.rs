//! x
use bitsmith_runtime::*;
use candle_core::Device;
fn main() {
    let a: Vec<String> = std::env::args().skip(1).collect();
    let c = Checkpoint::open(&a[0]).unwrap();
    let windows: Vec<Vec<u32>> = serde_json::from_slice(&std::fs::read(&a[1]).unwrap()).unwrap();
    let t = std::time::Instant::now();
    let n = sweep::run(&c, &windows, &Device::Cpu, None).unwrap();
    eprintln!("sweep {:?}", t.elapsed());
    let head = Head::load(&c, &Device::Cpu).unwrap();
    let (mut total, mut count) = (0.0, 0);
    for (i, w) in windows.iter().enumerate() {
        let x = n.window(i).unwrap();
        let nll = head.nll(&x.narrow(0, 0, w.len() - 1).unwrap(), &w[1..]).unwrap();
        total += nll.iter().sum::<f64>(); count += nll.len();
    }
    eprintln!("all {:?}", t.elapsed());
    println!("ppl {} bits {:x}", (total / count as f64).exp(), total.to_bits());
}
