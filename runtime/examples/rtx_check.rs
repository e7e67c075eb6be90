use bitsmith_runtime::*;
use candle_core::Device;
fn main() {
    for dir in std::env::args().skip(1) {
        let c = Checkpoint::open(&dir).unwrap();
        let windows: Vec<Vec<u32>> = serde_json::from_slice(&std::fs::read(format!("{dir}/tokens.json")).unwrap()).unwrap();
        let n = sweep::run(&c, &windows, &Device::Cpu, None).unwrap();
        let head = Head::load(&c, &Device::Cpu).unwrap();
        let (mut worst, mut scale) = (0f32, 0f32);
        for i in 0..windows.len() {
            let got = n.logits(&head, i).unwrap();
            let want: Vec<f32> = std::fs::read(format!("{dir}/want{i}.bin")).unwrap().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            assert_eq!(got.len(), want.len());
            for (g, w) in got.iter().zip(&want) { worst = worst.max((g - w).abs()); scale = scale.max(w.abs()); }
        }
        let model = Model::load(&c, &Device::Cpu).unwrap();
        let mut s = model.session(Default::default());
        s.feed(&windows[0][..200]).unwrap();
        let mut w2 = 0f32;
        let all = n.logits(&head, 0).unwrap();
        for p in 200..300 {
            let l = s.feed(&windows[0][p..p + 1]).unwrap();
            for (a, b) in l.iter().zip(&all[p * l.len()..]) { w2 = w2.max((a - b).abs()); }
        }
        println!("{dir}: max |diff| {worst:e} of max {scale}: rel {:e}; generate {:e}", worst / scale, w2 / scale);
    }
}
