//! Properties of the grids whose weights are rounded eight at a time to points of a codebook (IQ1 and IQ2): what the solver sees is
//! what the runtime decodes; rounding takes the nearest allowed point; fits are no worse than the reference; refits lower the loss.

use bitsmith_formats::{BlockScales, Codec, CodecId, Gram, Grid};
use proptest::prelude::*;

const LEN: usize = 256;
const WIDTH: usize = 8;
const IDS: [CodecId; 5] = [CodecId::IQ1S, CodecId::IQ1M, CodecId::IQ2XXS, CodecId::IQ2XS, CodecId::IQ2S];

fn ids() -> impl Strategy<Value = CodecId> {
    prop::sample::select(IDS.to_vec())
}

/// Weights of many kinds and magnitudes, and importance: flat, skewed or with zeros.
fn block() -> impl Strategy<Value = (Vec<f32>, Vec<f32>)> {
    let unit = prop::collection::vec((-1f32..1.0, -1f32..1.0, -1f32..1.0), LEN);
    (unit, 0..4u8, 0..3u8, -7i32..4).prop_map(|(unit, kind, importance, exponent)| {
        let weight = |&(a, b, c): &(f32, f32, f32)| match kind {
            0 => a + b + c,
            1 => a * a * a * 8.0,
            2 if c > 0.5 => 0.0,
            3 if c > 0.95 => a * 20.0,
            _ => a,
        };
        let importance = |&(_, b, c): &(f32, f32, f32)| match importance {
            0 => 1.0,
            1 => (2.0 * b).exp(),
            _ => c.max(0.0),
        };
        let magnitude = 10f32.powi(exponent);
        (unit.iter().map(|u| magnitude * weight(u)).collect(), unit.iter().map(importance).collect())
    })
}

fn encode(c: &dyn Codec, x: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
    let mut bytes = vec![0x55; c.block_bytes()];
    c.encode(x, importance, &mut bytes);
    bytes
}

fn decode(c: &dyn Codec, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![f32::NAN; LEN];
    c.decode(bytes, &mut out);
    out
}

fn pack(g: &dyn Grid, c: &dyn Codec, scales: &BlockScales, codes: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x55; c.block_bytes()];
    g.pack(scales, codes, &mut bytes);
    bytes
}

fn round(g: &dyn Grid, scales: &BlockScales, x: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let (mut codes, mut values) = (vec![0; LEN], vec![0.0; LEN]);
    for at in (0..LEN).step_by(WIDTH) {
        let group = at..at + WIDTH;
        g.round(scales, at, &x[group.clone()], &mut codes[group.clone()], &mut values[group]);
    }
    (codes, values)
}

fn values(g: &dyn Grid, scales: &BlockScales, codes: &[u8]) -> Vec<f32> {
    codes.iter().enumerate().map(|(i, &c)| g.value(scales, i, c)).collect()
}

fn error(x: &[f32], values: &[f32], importance: &[f32]) -> f64 {
    let square = |(&x, &v): (&f32, &f32)| (f64::from(x) - f64::from(v)).powi(2);
    x.iter().zip(values).map(square).zip(importance).map(|(e, &w)| e * f64::from(w)).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_decode(id in ids(), seed in prop::collection::vec(any::<u8>(), 82)) {
        let c = id.codec();
        let g = c.grid().unwrap();
        let bytes = &seed[..c.block_bytes()];
        let mut codes = vec![0; LEN];
        let scales = g.unpack(bytes, &mut codes);
        prop_assert!(codes.iter().all(|&code| code <= g.max_code()));
        let decoded = decode(c, bytes);
        for (v, d) in values(g, &scales, &codes).iter().zip(&decoded) {
            prop_assert!(v == d || (!v.is_finite() && !d.is_finite()), "{}: {v} decodes as {d}", id);
        }
        if !scales.stored[0].is_nan() {
            prop_assert_eq!(pack(g, c, &scales, &codes), bytes);
        }
        // A block that never came from an encoder must not make the solver panic either.
        prop_assert!(round(g, &scales, &decoded).0.iter().all(|&code| code <= g.max_code()));
    }

    #[test]
    fn fits_are_exact_and_no_worse_than_the_reference(id in ids(), (x, importance) in block()) {
        let c = id.codec();
        let g = c.grid().unwrap();
        let scales = g.fit(&x, &importance);
        let (codes, rounded) = round(g, &scales, &x);
        prop_assert_eq!(&rounded, &values(g, &scales, &codes));
        // Only allowed points: what is packed comes back.
        let packed = pack(g, c, &scales, &codes);
        prop_assert_eq!(&rounded, &decode(c, &packed));
        let mut unpacked = vec![0; LEN];
        prop_assert_eq!(&g.unpack(&packed, &mut unpacked), &scales);
        prop_assert_eq!(&unpacked, &codes);

        let flat = vec![1.0; LEN];
        let importance = if importance.iter().all(|&w| w == 0.0) { flat.clone() } else { importance };
        let reference = encode(c, &x, Some(&importance));
        let by_reference = round(g, &g.unpack(&reference, &mut vec![0; LEN]), &x).1;
        let slack = 1e-9 * error(&x, &vec![0.0; LEN], &importance);
        let ours = error(&x, &rounded, &importance);
        prop_assert!(ours <= error(&x, &by_reference, &importance) + slack, "{}", id);
        if importance == flat {
            prop_assert!(ours <= error(&x, &decode(c, &reference), &flat) + slack, "{}", id);
        }

        // Weights that have moved on: never worse than the start.
        let moved: Vec<f32> = x.iter().enumerate().map(|(i, x)| x * (1.0 + 0.2 * ((i * 37 % 11) as f32 / 11.0 - 0.5))).collect();
        let near = g.fit_near(&scales, &moved, &importance);
        let (start, end) = (round(g, &scales, &moved).1, round(g, &near, &moved).1);
        prop_assert!(error(&moved, &end, &importance) <= error(&moved, &start, &importance) + slack, "{}", id);
    }

    #[test]
    fn rounding_takes_the_nearest_point(id in ids(), (x, importance) in block(), seed in any::<u64>()) {
        let c = id.codec();
        let g = c.grid().unwrap();
        let scales = g.fit(&x, &importance);
        let mut state = seed | 1;
        let mut next = || { state ^= state << 13; state ^= state >> 7; state ^= state << 17; (state >> 40) as f32 / 16_777_216.0 - 0.5 };
        let target: Vec<f32> = x.iter().map(|x| x * (1.0 + next())).collect();
        let (_, rounded) = round(g, &scales, &target);
        // Other allowed points: those that other weights are rounded to.
        for spread in [0.1, 0.5, 2.0] {
            let others: Vec<f32> = target.iter().map(|x| x + spread * 4.0 * next() * (x.abs() + scales.step[0].abs() * 8.0)).collect();
            let others = round(g, &scales, &others).1;
            for at in (0..LEN).step_by(WIDTH) {
                let of = |v: &[f32]| error(&target[at..at + WIDTH], &v[at..at + WIDTH], &[1.0; WIDTH]);
                prop_assert!(of(&rounded) <= of(&others) * 1.0001, "{} at {at}", id);
            }
        }
    }

    #[test]
    fn refits_lower_the_loss(id in ids(), (x, importance) in block(), full in any::<bool>(), seed in any::<u64>()) {
        let c = id.codec();
        let g = c.grid().unwrap();
        let mut state = seed | 1;
        let mut next = || { state ^= state << 13; state ^= state >> 7; state ^= state << 17; (state >> 40) as f32 / 16_777_216.0 - 0.5 };
        let start = g.fit(&x, &importance);
        let codes = round(g, &start, &x.iter().map(|x| 1.3 * x * (1.0 + next())).collect::<Vec<_>>()).0;
        let factors: Vec<Vec<f32>> = (0..if full { 4 } else { 0 }).map(|_| (0..LEN).map(|_| next()).collect()).collect();
        let h: Vec<f32> = (0..LEN * LEN).map(|k| {
            let (i, j) = (k / LEN, k % LEN);
            factors.iter().map(|f| f[i] * f[j]).sum::<f32>() + if i == j { importance[i] } else { 0.0 }
        }).collect();
        let gram = if full { Gram::Full(&h) } else { Gram::Diagonal(&importance) };
        let loss = |scales: &BlockScales| -> f64 {
            let e: Vec<f64> = values(g, scales, &codes).iter().zip(&x).map(|(&v, &x)| f64::from(v) - f64::from(x)).collect();
            (0..LEN).map(|i| e[i] * (0..LEN).map(|j| f64::from(h[i * LEN + j]) * e[j]).sum::<f64>()).sum()
        };
        let mut scales = start.clone();
        if g.refit(&mut scales, &codes, &x, gram) {
            prop_assert!(loss(&scales) < loss(&start), "{}", id);
            prop_assert_eq!(g.unpack(&pack(g, c, &scales, &codes), &mut vec![0; LEN]), scales);
        } else {
            prop_assert_eq!(scales, start);
        }
    }
}

#[test]
fn refit_recovers_disturbed_scales() {
    for id in IDS {
        let (c, g) = (id.codec(), id.codec().grid().unwrap());
        let x: Vec<f32> = (0..LEN).map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0) * 0.05).collect();
        let flat = vec![1.0; LEN];
        let fitted = g.fit(&x, &flat);
        let (codes, best) = round(g, &fitted, &x);
        let mut wrong = fitted.clone();
        wrong.stored[0] *= 1.1;
        let mut scales = g.unpack(&pack(g, c, &wrong, &codes), &mut vec![0; LEN]);
        let before = error(&x, &values(g, &scales, &codes), &flat);
        assert!(g.refit(&mut scales, &codes, &x, Gram::Diagonal(&flat)), "{id}");
        let after = error(&x, &values(g, &scales, &codes), &flat);
        assert!(after < before && after < 1.01 * error(&x, &best, &flat), "{id}: {before} became {after}");
    }
}

/// Errors of fits on bell-shaped weights, as a fraction of the reference encoder's, must not creep up.
#[test]
fn fits_gain_on_the_reference() {
    let expected = [0.86, 0.85, 0.93, 0.93, 0.935];
    let mut state = 88_172_645_463_325_252u64;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / 16_777_216.0
    };
    let x: Vec<f32> = (0..16 * LEN).map(|_| 0.02 * ((0..12).map(|_| uniform()).sum::<f32>() - 6.0)).collect();
    let flat = vec![1.0; LEN];
    for (id, most) in IDS.into_iter().zip(expected) {
        let (c, g) = (id.codec(), id.codec().grid().unwrap());
        let (mut ours, mut theirs) = (0.0, 0.0);
        for x in x.chunks_exact(LEN) {
            ours += error(x, &round(g, &g.fit(x, &flat), x).1, &flat);
            theirs += error(x, &decode(c, &encode(c, x, Some(&flat))), &flat);
        }
        assert!(ours < most * theirs, "{id}: {}", ours / theirs);
    }
}

#[test]
fn extreme_blocks_stay_finite() {
    for id in IDS {
        let (c, g) = (id.codec(), id.codec().grid().unwrap());
        let alternating = |a: f32, b: f32| (0..LEN).map(|i| if i % 2 == 0 { a } else { b }).collect::<Vec<f32>>();
        for x in [(0.0, 0.0), (f32::MAX, f32::MIN), (1e30, 1e-30), (1e-45, -1e-45), (-0.7, -0.7)] {
            let x = alternating(x.0, x.1);
            for w in [(1.0, 1.0), (0.0, 0.0), (f32::MAX, 0.0), (1e-40, 1e-45)] {
                let scales = g.fit(&x, &alternating(w.0, w.1));
                let (codes, rounded) = round(g, &scales, &x);
                assert!(rounded.iter().all(|v| v.is_finite()), "{id} {:?} {w:?}", &x[..2]);
                assert_eq!(decode(c, &pack(g, c, &scales, &codes)), rounded, "{id}");
            }
        }
    }
}

/// Without importance, formats that demand it are encoded as if all importance were the same; rows are encoded apart.
#[test]
fn rows_are_independent_and_importance_may_be_absent() {
    let x: Vec<f32> = (0..6 * LEN).map(|i| ((i * 7919 % 1000) as f32 / 500.0 - 1.0) * 0.05).collect();
    for id in IDS {
        let c = id.codec();
        let importance: Vec<f32> = (0..2 * LEN).map(|i| (i % 7) as f32).collect();
        let mut all = vec![0x55; 6 * c.block_bytes()];
        c.encode_rows(&x, 2 * LEN, Some(&importance), &mut all);
        for (row, bytes) in x.chunks_exact(2 * LEN).zip(all.chunks_exact(2 * c.block_bytes())) {
            let mut one = vec![0xaa; bytes.len()];
            c.encode(row, Some(&importance), &mut one);
            assert_eq!(one, bytes, "{id}");
        }
        if [CodecId::IQ1S, CodecId::IQ2XXS, CodecId::IQ2XS].contains(&id) {
            assert_eq!(encode(c, &x[..LEN], None), encode(c, &x[..LEN], Some(&[1.0; LEN])), "{id}");
        }
    }
}
