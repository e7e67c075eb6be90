//! Properties that every block format must have: of its codec (error bounds, any bytes decode) and of its grid (what the
//! solver sees is what the runtime decodes; fits beat the reference encoder; refits lower the loss; packing is exact).

use bitsmith_formats::{BlockScales, Codec, CodecId, Float, Gram, Grid, Micro};
use proptest::prelude::*;

fn all() -> Vec<CodecId> {
    // Codebooks of eight weights have tests of their own.
    let mut ids: Vec<CodecId> = CodecId::GGML.into_iter().filter(|id| id.codec().grid().is_some_and(|g| g.step() < 8)).collect();
    ids.extend([Micro::Mxfp4, Micro::Mxfp8, Micro::Nvfp4].map(CodecId::Micro));
    for bits in [2, 3, 4, 5, 6, 8] {
        for group in [32, 64, 128] {
            for scale in [Float::F32, Float::F16, Float::BF16] {
                ids.push(CodecId::MlxAffine { bits, group, scale });
            }
        }
    }
    for (bits, group, scale) in [
        (2, 32, Float::F16),
        (3, 32, Float::BF16),
        (4, 128, Float::F16),
        (4, 8, Float::F32),
        (4, 200, Float::BF16),
        (8, 64, Float::F16),
    ] {
        ids.extend([false, true].map(|symmetric| CodecId::IntGroup { bits, group, scale, symmetric }));
    }
    ids
}

fn codecs() -> impl Strategy<Value = CodecId> {
    prop::sample::select(all())
}

/// A block's weights and importance, of many kinds: bell-shaped or flat, with outliers, zeros, an offset, of any magnitude;
/// importance flat, skewed, partly or wholly zero.
fn block(len: usize) -> impl Strategy<Value = (Vec<f32>, Vec<f32>)> {
    let unit = prop::collection::vec((-1f32..1.0, -1f32..1.0, -1f32..1.0), len);
    let kinds = (0..5u8, 0..4u8, -9i32..4, -1f32..1.0);
    (unit, kinds).prop_map(|(unit, (kind, importance_kind, exponent, shift))| {
        let weight = |&(a, b, c): &(f32, f32, f32)| match kind {
            0 => a + b + c,
            1 => a * a * a * 8.0,
            2 => {
                if c > 0.8 {
                    0.0
                } else {
                    a
                }
            }
            3 => a * 0.1 + shift,
            _ => {
                if c > 0.95 {
                    a * 20.0
                } else {
                    a
                }
            }
        };
        let importance = |&(_, b, c): &(f32, f32, f32)| match importance_kind {
            0 => 1.0,
            1 => (4.0 * b).exp(),
            2 => {
                if c < 0.0 {
                    0.0
                } else {
                    c
                }
            }
            _ => 0.0,
        };
        let magnitude = 10f32.powi(exponent);
        (unit.iter().map(|u| magnitude * weight(u)).collect(), unit.iter().map(importance).collect())
    })
}

fn codec_and_block() -> impl Strategy<Value = (CodecId, Vec<f32>, Vec<f32>)> {
    codecs().prop_flat_map(|id| block(id.codec().block_len()).prop_map(move |(x, w)| (id, x, w)))
}

fn codec_and_bytes() -> impl Strategy<Value = (CodecId, Vec<u8>)> {
    codecs().prop_flat_map(|id| prop::collection::vec(any::<u8>(), id.codec().block_bytes()).prop_map(move |b| (id, b)))
}

fn encode(c: &dyn Codec, x: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
    let mut bytes = vec![0; c.block_bytes()];
    c.encode(x, importance, &mut bytes);
    bytes
}

fn decode(c: &dyn Codec, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![f32::NAN; c.block_len()];
    c.decode(bytes, &mut out);
    out
}

fn round(g: &dyn Grid, scales: &BlockScales, x: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let (mut codes, mut values) = (vec![0; x.len()], vec![0.0; x.len()]);
    for at in (0..x.len()).step_by(g.step()) {
        let group = at..at + g.step();
        g.round(scales, at, &x[group.clone()], &mut codes[group.clone()], &mut values[group]);
    }
    (codes, values)
}

fn weighted_error(x: &[f32], values: &[f32], importance: &[f32]) -> f64 {
    let square = |(&x, &v): (&f32, &f32)| (x as f64 - v as f64).powi(2);
    x.iter().zip(values).map(square).zip(importance).map(|(e, &w)| e * w as f64).sum()
}

fn loss(h: &[f32], error: &[f64]) -> f64 {
    let n = error.len();
    (0..n).map(|i| error[i] * (0..n).map(|j| h[i * n + j] as f64 * error[j]).sum::<f64>()).sum()
}

fn values(g: &dyn Grid, scales: &BlockScales, codes: &[u8]) -> Vec<f32> {
    let linear = |(i, &c): (usize, &u8)| scales.step[i / scales.sub_len] * c as f32 + scales.offset[i / scales.sub_len];
    let values: Vec<f32> = codes.iter().enumerate().map(|(i, &c)| g.value(scales, i, c)).collect();
    if g.is_linear() {
        let same = |(v, l): (&f32, f32)| v.to_bits() == l.to_bits() || (v.is_nan() && l.is_nan());
        assert!(values.iter().zip(codes.iter().enumerate().map(linear)).all(same), "a linear grid's values");
    }
    values
}

/// How far a value may lie from the nearest code, as a fraction of the block's largest magnitude; and in absolute terms, for blocks
/// whose scale can become no smaller.
fn coarseness(id: CodecId) -> (f32, f32) {
    let steps = id.codec().grid().unwrap().max_code() as f32;
    match id {
        // 5 between 4 and 6, or what a scale that is rounded down cuts off.
        CodecId::Micro(Micro::Mxfp4) => (0.201, 0.0),
        CodecId::Micro(Micro::Nvfp4) => (0.2, 6.0 / 512.0),
        CodecId::Micro(Micro::Mxfp8) => (0.0626, 0.0),
        // The power of two below the largest magnitude may cut a quarter off.
        CodecId::MXFP4 => (0.25, 0.0),
        // The smallest scale is 2^-9, and e2m1's largest value 6.
        CodecId::NVFP4 => (0.2, 0.006),
        // The table's values are at most 24 of 240 apart, and its positive end is a tenth shorter.
        CodecId::IQ4NL | CodecId::IQ4XS => (0.15, 254e-6),
        // Half a step of the widest range, the clipped end of symmetric grids, coarse super-block minima, the smallest f16 steps.
        _ => (3.0 / steps + 0.02, steps * 2e-6),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn reference_encoders_keep_errors_small((id, x, _) in codec_and_block()) {
        let c = id.codec();
        let decoded = decode(c, &encode(c, &x, None));
        let largest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
        let g = c.grid().unwrap();
        if g.step() > 1 {
            // Points of a codebook are far apart, and the reference weighs errors by the weights' squares.
            let squares: Vec<f32> = x.iter().map(|x| x * x).collect();
            let (error, all) = (weighted_error(&x, &decoded, &squares), weighted_error(&x, &vec![0.0; x.len()], &squares));
            prop_assert!(error <= 0.2 * all + 1e-8 * squares.iter().sum::<f32>() as f64, "{}: {error} of {all}", id);
            return Ok(());
        }
        let (relative, absolute) = coarseness(id);
        // NVFP4's scales end at 448 and e2m1 at 6: without a scale per tensor, what lies beyond is cut off.
        let end = if matches!(id, CodecId::NVFP4 | CodecId::Micro(Micro::Nvfp4)) { 2688.0 } else { f32::INFINITY };
        for (x, d) in x.iter().map(|x| x.clamp(-end, end)).zip(&decoded) {
            prop_assert!((x - d).abs() <= largest * relative + absolute, "{}: {x} became {d}", id);
        }
    }

    #[test]
    fn any_bytes_decode((id, bytes) in codec_and_bytes()) {
        let c = id.codec();
        let g = c.grid().unwrap();
        let mut codes = vec![0; c.block_len()];
        let scales = g.unpack(&bytes, &mut codes);
        // TQ2_0's bytes have room for a code that its grid does not use.
        prop_assert!(codes.iter().all(|&code| code <= g.max_code() || id == CodecId::TQ2_0));
        let decoded = decode(c, &bytes);
        // What the solver computes is what the runtime decodes.
        for (v, d) in values(g, &scales, &codes).iter().zip(&decoded) {
            prop_assert!(v == d || (!v.is_finite() && !d.is_finite()), "{}: {v} decodes as {d}", id);
        }
        let mut packed = vec![0x55; c.block_bytes()];
        g.pack(&scales, &codes, &mut packed);
        if id == CodecId::TQ1_0 {
            // Not every byte is one that five ternary digits give; what it decodes as has another.
            let again = decode(c, &packed);
            prop_assert!(again.iter().zip(&decoded).all(|(a, d)| a == d || (!a.is_finite() && !d.is_finite())));
        } else if scales.stored.iter().all(|s| !s.is_nan()) {
            prop_assert_eq!(packed, bytes);
        }
        // A block that never came from an encoder must not make the solver panic either.
        let (codes, _) = round(g, &scales, &decoded);
        prop_assert!(codes.iter().all(|&code| code <= g.max_code()));
    }

    #[test]
    fn fits_are_finite_exact_and_no_worse_than_the_reference((id, x, importance) in codec_and_block()) {
        let c = id.codec();
        let g = c.grid().unwrap();
        let scales = g.fit(&x, &importance);
        prop_assert_eq!(scales.step.len() * scales.sub_len, c.block_len());
        prop_assert!(scales.step.iter().chain(&scales.offset).chain(&scales.stored).all(|s| s.is_finite()));
        let (codes, rounded) = round(g, &scales, &x);
        prop_assert_eq!(&rounded, &values(g, &scales, &codes));

        let mut packed = vec![0; c.block_bytes()];
        g.pack(&scales, &codes, &mut packed);
        prop_assert_eq!(&rounded, &decode(c, &packed));
        let mut unpacked = vec![0; c.block_len()];
        prop_assert_eq!(&g.unpack(&packed, &mut unpacked), &scales);
        prop_assert_eq!(&unpacked, &codes);

        let reference = decode(c, &encode(c, &x, Some(&importance)));
        let all: Vec<f32> = importance.iter().map(|&w| if importance.iter().all(|&w| w == 0.0) { 1.0 } else { w }).collect();
        if g.step() > 1 && importance.iter().any(|&w| w != importance[0]) {
            // Rounding to a codebook does not know importance, which the reference does: scales alone cannot make up for it.
            return Ok(());
        }
        let (ours, theirs) = (weighted_error(&x, &rounded, &all), weighted_error(&x, &reference, &all));
        let rounding = 1e-12 * weighted_error(&x, &vec![0.0; x.len()], &all);
        prop_assert!(ours <= theirs * 1.0001 + rounding, "{}: error {ours}, reference {theirs}", id);
    }

    #[test]
    fn rounding_takes_the_nearest_code((id, x, importance) in codec_and_block(), shift in -0.3f32..0.3) {
        let c = id.codec();
        let g = c.grid().unwrap();
        let scales = g.fit(&x, &importance);
        // The solver's weights have moved on since the fit.
        let moved: Vec<f32> = x.iter().map(|x| x * (1.0 + shift)).collect();
        let (_, rounded) = round(g, &scales, &moved);
        if g.step() > 1 {
            // Other points of the codebook: those of other weights.
            let error = |values: &[f32], at: usize| weighted_error(&moved[at..][..g.step()], &values[at..][..g.step()], &vec![1.0; g.step()]);
            for factor in [0.0, 0.6, 0.9, 1.1, -1.0] {
                let others: Vec<f32> = moved.iter().rev().zip(&moved).map(|(o, x)| factor * x + 0.2 * (1.0 - factor) * o).collect();
                let others = round(g, &scales, &others).1;
                for at in (0..x.len()).step_by(g.step()) {
                    prop_assert!(error(&rounded, at) <= error(&others, at) * 1.0001, "{} at {at}", id);
                }
            }
            return Ok(());
        }
        for i in 0..x.len() {
            let step = scales.step[i / scales.sub_len];
            let error = (rounded[i] - moved[i]).abs();
            for other in 0..=g.max_code() {
                let other = (g.value(&scales, i, other) - moved[i]).abs();
                prop_assert!(other.is_nan() || error <= other + 1e-5 * (step.abs() + moved[i].abs()), "{}", id);
            }
        }
    }

    #[test]
    fn refits_lower_the_loss((id, x, importance) in codec_and_block(), full in any::<bool>(), noise in any::<u64>()) {
        let c = id.codec();
        let g = c.grid().unwrap();
        let n = c.block_len();
        let start = g.fit(&x, &importance);
        // Codes of other weights: as after error feedback.
        let mut random = noise | 1;
        let mut next = || { random ^= random << 13; random ^= random >> 7; random ^= random << 17; (random >> 40) as f32 / 16_777_216.0 - 0.5 };
        let codes = if g.step() > 1 {
            round(g, &start, &x.iter().map(|x| x * (1.0 + next())).collect::<Vec<_>>()).0
        } else {
            let mut codes = round(g, &start, &x).0;
            for (i, code) in codes.iter_mut().enumerate() {
                let moved = (*code as f32 + 4.0 * next()).clamp(0.0, g.max_code() as f32) as u8;
                // e4m3 has codes that are no numbers.
                *code = if g.value(&start, i, moved).is_finite() { moved } else { *code };
            }
            codes
        };
        let h = if full {
            let factors: Vec<Vec<f32>> = (0..6).map(|_| (0..n).map(|_| next()).collect()).collect();
            let entry = |i: usize, j: usize| factors.iter().map(|f| f[i] * f[j]).sum::<f32>() + if i == j { 0.05 } else { 0.0 };
            (0..n * n).map(|k| entry(k / n, k % n)).collect::<Vec<f32>>()
        } else {
            (0..n * n).map(|k| if k / n == k % n { importance[k / n] } else { 0.0 }).collect()
        };
        let diagonal: Vec<f32> = (0..n).map(|i| h[i * n + i]).collect();
        let gram = if full { Gram::Full(&h) } else { Gram::Diagonal(&diagonal) };
        let errors = |scales: &BlockScales| -> Vec<f64> {
            values(g, scales, &codes).iter().zip(&x).map(|(&v, &x)| v as f64 - x as f64).collect()
        };

        let mut scales = start.clone();
        let lower = g.refit(&mut scales, &codes, &x, gram);
        let (before, after) = (loss(&h, &errors(&start)), loss(&h, &errors(&scales)));
        if lower {
            prop_assert!(after < before, "{}: loss {before} became {after}", id);
            let mut packed = vec![0; c.block_bytes()];
            g.pack(&scales, &codes, &mut packed);
            prop_assert_eq!(g.unpack(&packed, &mut vec![0; n]), scales);
        } else {
            prop_assert_eq!(scales, start);
        }
    }
}

#[test]
fn refit_recovers_disturbed_scales() {
    // Scales that are powers of two cannot be disturbed a little.
    for id in all().into_iter().filter(|id| id.codec().grid().unwrap().is_linear()) {
        let (c, g) = (id.codec(), id.codec().grid().unwrap());
        let n = c.block_len();
        let x: Vec<f32> = (0..n).map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0) * 0.05).collect();
        let fitted = g.fit(&x, &vec![1.0; n]);
        let (codes, best) = round(g, &fitted, &x);
        // The same codes under a scale a twentieth too large, or the next larger one where scales are bytes.
        let mut wrong = fitted.clone();
        if g.is_linear() {
            wrong.stored[0] *= 1.05;
        } else {
            wrong.ints.iter_mut().for_each(|byte| *byte += 1);
        }
        let mut bytes = vec![0; c.block_bytes()];
        g.pack(&wrong, &codes, &mut bytes);
        let mut scales = g.unpack(&bytes, &mut vec![0; n]);
        let before = weighted_error(&x, &values(g, &scales, &codes), &vec![1.0; n]);
        assert!(g.refit(&mut scales, &codes, &x, Gram::Diagonal(&vec![1.0; n])), "{id}");
        let after = weighted_error(&x, &values(g, &scales, &codes), &vec![1.0; n]);
        let least = weighted_error(&x, &best, &vec![1.0; n]);
        assert!(after < before && after < 1.05 * least, "{id}: {before} became {after}, the fit's own error is {least}");
    }
}

/// Fits are what the quality of everything else rests on: their weighted error on bell-shaped weights, as a fraction of the
/// reference encoder's, must not creep up.
#[test]
fn fits_gain_on_the_reference() {
    let mlx = |bits| CodecId::MlxAffine { bits, group: 64, scale: Float::BF16 };
    let int = |bits, symmetric| CodecId::IntGroup { bits, group: 128, scale: Float::F16, symmetric };
    let expected = [
        (CodecId::IQ3XXS, 0.96),
        (CodecId::IQ3S, 0.90),
        (CodecId::IQ4XS, 0.93),
        (CodecId::IQ4NL, 0.93),
        (CodecId::Q4_0, 0.96),
        (CodecId::Q4_1, 0.94),
        (CodecId::Q5_0, 0.96),
        (CodecId::Q5_1, 0.92),
        (CodecId::Q8_0, 0.72),
        (CodecId::TQ1_0, 0.3),
        (CodecId::TQ2_0, 0.3),
        (CodecId::MXFP4, 0.93),
        (CodecId::NVFP4, 0.95),
        (CodecId::Q1_0, 0.995),
        (CodecId::Q2_0, 0.3),
        (CodecId::Q4K, 0.93),
        (CodecId::Q5K, 0.86),
        (CodecId::Q6K, 0.89),
        (mlx(2), 0.61),
        (mlx(3), 0.65),
        (mlx(4), 0.70),
        (mlx(5), 0.70),
        (mlx(6), 0.70),
        (mlx(8), 0.45),
        (int(2, false), 0.55),
        (int(3, false), 0.71),
        (int(4, false), 0.84),
        (int(8, false), 0.88),
        (int(2, true), 0.48),
        (int(3, true), 0.61),
        (int(4, true), 0.74),
        (int(8, true), 0.84),
        (CodecId::Micro(Micro::Mxfp4), 0.87),
        // Another power of two gives e4m3 the same steps.
        (CodecId::Micro(Micro::Mxfp8), 1.0001),
        (CodecId::Micro(Micro::Nvfp4), 0.9),
    ];
    let mut random = 88_172_645_463_325_252u64;
    let mut uniform = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 40) as f32 / 16_777_216.0
    };
    let mut bell = || (0..12).map(|_| uniform()).sum::<f32>() - 6.0;
    let x: Vec<f32> = (0..64 * 256).map(|_| 0.02 * bell()).collect();
    let importance: Vec<f32> = (0..256).map(|_| bell().exp()).collect();
    for (id, most) in expected {
        let (c, g) = (id.codec(), id.codec().grid().unwrap());
        let n = c.block_len();
        let (mut ours, mut theirs) = (0.0, 0.0);
        for (i, x) in x.chunks_exact(n).enumerate() {
            // Rounding to a codebook knows no importance.
            let w = if g.step() > 1 { &[1.0; 256][..n] } else { &importance[i * n % 256..][..n] };
            ours += weighted_error(x, &round(g, &g.fit(x, w), x).1, w);
            theirs += weighted_error(x, &decode(c, &encode(c, x, Some(w))), w);
        }
        assert!(ours < most * theirs, "{id}: {}", ours / theirs);
    }
}

#[test]
fn extreme_blocks_stay_finite() {
    for id in all() {
        let (c, g) = (id.codec(), id.codec().grid().unwrap());
        let n = c.block_len();
        let alternating = |a: f32, b: f32| (0..n).map(|i| if i % 2 == 0 { a } else { b }).collect::<Vec<f32>>();
        for x in [
            alternating(0.0, 0.0),
            alternating(f32::MAX, f32::MIN),
            alternating(1e30, 1e-30),
            alternating(1e-45, -1e-45),
            alternating(1e6, 1e6),
            alternating(-0.7, -0.7),
            alternating(0.7, 0.7),
        ] {
            for importance in
                [alternating(1.0, 1.0), alternating(0.0, 0.0), alternating(f32::MAX, 0.0), alternating(1e-40, 1e-45)]
            {
                let scales = g.fit(&x, &importance);
                let (codes, rounded) = round(g, &scales, &x);
                assert!(rounded.iter().all(|v| v.is_finite()), "{id} {:?} {importance:?}", &x[..2]);
                let mut bytes = vec![0; c.block_bytes()];
                g.pack(&scales, &codes, &mut bytes);
                assert_eq!(decode(c, &bytes), rounded, "{id}");
            }
        }
        let zeros = vec![0.0; n];
        assert_eq!(round(g, &g.fit(&zeros, &vec![1.0; n]), &zeros).1, zeros, "{id}");
        // A constant block is a case for the scale or the bias alone.
        let constant = vec![0.7; n];
        let rounded = round(g, &g.fit(&constant, &vec![1.0; n]), &constant).1;
        let tolerance = if g.is_linear() { 2e-3 } else { 0.7 * coarseness(id).0 };
        assert!(rounded.iter().all(|v| (v - 0.7).abs() < tolerance), "{id}: {}", rounded[0]);
    }
}
