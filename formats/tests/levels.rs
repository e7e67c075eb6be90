//! Properties of the grids whose codes name uneven levels: groups of e4m3 bytes, NF4.

use bitsmith_formats::{BlockScales, CodecId, Float, Gram, Grid};
use proptest::prelude::*;

fn formats() -> impl Strategy<Value = CodecId> {
    let fp8 = |group, scale| CodecId::Fp8Group { group, scale };
    prop::sample::select(vec![
        fp8(32, Float::F32),
        fp8(128, Float::BF16),
        fp8(200, Float::F16),
        CodecId::Nf4 { group: 64 },
        CodecId::Nf4 { group: 26 },
    ])
}

/// Weights of any magnitude, some zero, and their importance.
fn format_and_group() -> impl Strategy<Value = (CodecId, Vec<f32>, Vec<f32>)> {
    formats().prop_flat_map(|id| {
        let n = id.codec().block_len();
        let unit = prop::collection::vec((-1f32..1.0, -1f32..1.0, 0f32..1.0), n);
        (unit, -6i32..4, 0.0f32..1.0).prop_map(move |(unit, exponent, zeros)| {
            let weight =
                |&(a, b, c): &(f32, f32, f32)| if c < 0.3 * zeros { 0.0 } else { (a + b * b * b * 3.0) * 10f32.powi(exponent) };
            (id, unit.iter().map(weight).collect(), unit.iter().map(|u| u.2).collect())
        })
    })
}

fn round(grid: &dyn Grid, scales: &BlockScales, x: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let (mut codes, mut values) = (vec![0; x.len()], vec![0.0; x.len()]);
    grid.round(scales, 0, x, &mut codes, &mut values);
    (codes, values)
}

fn error(x: &[f32], values: &[f32], importance: &[f32]) -> f64 {
    x.iter().zip(values).zip(importance).map(|((x, v), w)| f64::from(*w) * (f64::from(*x) - f64::from(*v)).powi(2)).sum()
}

proptest! {
    #[test]
    fn fits_are_what_is_decoded_and_no_worse_than_the_reference((id, x, importance) in format_and_group()) {
        let (codec, grid) = (id.codec(), id.codec().grid().unwrap());
        let scales = grid.fit(&x, &importance);
        let (codes, values) = round(grid, &scales, &x);
        prop_assert!(codes.iter().all(|&c| c <= grid.max_code()));
        let mut bytes = vec![0; codec.block_bytes()];
        grid.pack(&scales, &codes, &mut bytes);
        let mut decoded = vec![f32::NAN; x.len()];
        codec.decode(&bytes, &mut decoded);
        prop_assert_eq!(&decoded, &values);
        let mut unpacked = vec![0; x.len()];
        prop_assert_eq!(&grid.unpack(&bytes, &mut unpacked), &scales);
        prop_assert_eq!(&unpacked, &codes);

        codec.encode(&x, Some(&importance), &mut bytes);
        codec.decode(&bytes, &mut decoded);
        let (ours, theirs) = (error(&x, &values, &importance), error(&x, &decoded, &importance));
        prop_assert!(ours <= theirs * 1.0001 + 1e-12, "{}: {} but the reference has {}", id, ours, theirs);
        // Every level at most half the widest gap from what it stands for: a sixteenth of a magnitude, or NF4's tails.
        let peak = x.iter().fold(0f32, |p, x| p.max(x.abs()));
        let bound = |x: f32| if matches!(id, CodecId::Nf4 { .. }) { 0.153 * peak } else { x.abs() / 15.0 + peak / 400_000.0 };
        // Scales below the normal halves are coarse themselves.
        let coarse = matches!(id, CodecId::Fp8Group { scale: Float::F16, .. }) && peak < 448.0 * 2f32.powi(-13);
        for (x, d) in x.iter().zip(&decoded).filter(|_| !coarse) {
            prop_assert!((x - d).abs() <= bound(*x) + 1e-9, "{}: {} became {}", id, x, d);
        }
        // A fit near the best one changes nothing for the worse.
        let near = grid.fit_near(&scales, &x, &importance);
        prop_assert!(error(&x, &round(grid, &near, &x).1, &importance) <= ours * 1.0001 + 1e-12);
    }

    #[test]
    fn rounding_takes_the_nearest_level((id, x, importance) in format_and_group(), shift in -0.3f32..0.3) {
        let grid = id.codec().grid().unwrap();
        let scales = grid.fit(&x, &importance);
        let moved: Vec<f32> = x.iter().map(|x| x * (1.0 + shift)).collect();
        let (_, values) = round(grid, &scales, &moved);
        for (at, (x, v)) in moved.iter().zip(&values).enumerate() {
            let least = (0..=grid.max_code()).map(|c| (grid.value(&scales, at, c) - x).abs()).fold(f32::MAX, f32::min);
            prop_assert!((v - x).abs() <= least * 1.0001 + 1e-6 * x.abs(), "{}: {} became {}", id, x, v);
        }
    }

    #[test]
    fn refits_lower_the_loss((id, x, importance) in format_and_group(), by in 0.7f32..1.4) {
        let grid = id.codec().grid().unwrap();
        let fitted = grid.fit(&x, &importance);
        let (codes, _) = round(grid, &fitted, &x);
        // The same codes under another scale.
        let mut bytes = vec![0; id.codec().block_bytes()];
        let wrong = BlockScales { stored: [fitted.stored[0] * by, 0.0], ..fitted };
        grid.pack(&wrong, &codes, &mut bytes);
        let start = grid.unpack(&bytes, &mut vec![0; x.len()]);
        let values = |s: &BlockScales| codes.iter().enumerate().map(|(i, &c)| grid.value(s, i, c)).collect::<Vec<f32>>();
        let mut scales = start.clone();
        let lower = grid.refit(&mut scales, &codes, &x, Gram::Diagonal(&importance));
        let (before, after) = (error(&x, &values(&start), &importance), error(&x, &values(&scales), &importance));
        if lower {
            prop_assert!(after < before, "{}: {} became {}", id, before, after);
            grid.pack(&scales, &codes, &mut bytes);
            prop_assert_eq!(grid.unpack(&bytes, &mut vec![0; x.len()]), scales);
        } else {
            prop_assert_eq!(scales, start);
        }
    }

    #[test]
    fn any_bytes_decode((id, bytes) in formats().prop_flat_map(|id| (Just(id), prop::collection::vec(any::<u8>(), id.codec().block_bytes())))) {
        let (codec, grid) = (id.codec(), id.codec().grid().unwrap());
        let mut codes = vec![0; codec.block_len()];
        let scales = grid.unpack(&bytes, &mut codes);
        let mut decoded = vec![0.0; codes.len()];
        codec.decode(&bytes, &mut decoded);
        for (at, (&c, d)) in codes.iter().zip(&decoded).enumerate() {
            let v = grid.value(&scales, at, c);
            prop_assert!(v == *d || !v.is_finite() && !d.is_finite(), "{}: {} decodes as {}", id, v, d);
        }
        let mut packed = vec![0; bytes.len()];
        grid.pack(&scales, &codes, &mut packed);
        if !scales.stored[0].is_nan() {
            prop_assert_eq!(packed, bytes);
        }
    }
}

#[test]
fn extreme_groups_stay_finite() {
    for id in [CodecId::Fp8Group { group: 64, scale: Float::F16 }, CodecId::Nf4 { group: 64 }] {
        let (codec, grid) = (id.codec(), id.codec().grid().unwrap());
        for (a, b) in [(0.0, 0.0), (f32::MAX, f32::MIN), (1e30, 1e-30), (1e-45, -1e-45), (0.7, 0.7)] {
            let x: Vec<f32> = (0..64).map(|i| if i % 2 == 0 { a } else { b }).collect();
            for importance in [vec![1.0; 64], vec![0.0; 64]] {
                let (_, values) = round(grid, &grid.fit(&x, &importance), &x);
                assert!(values.iter().all(|v| v.is_finite()), "{id} {a} {b}");
            }
            let (mut bytes, mut decoded) = (vec![0; codec.block_bytes()], vec![0.0; 64]);
            codec.encode(&x, None, &mut bytes);
            codec.decode(&bytes, &mut decoded);
            assert!(decoded.iter().all(|v| v.is_finite()), "{id} {a} {b}");
            assert!(a != 0.0 || decoded == x);
        }
    }
}
