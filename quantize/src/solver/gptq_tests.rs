//! Tests of error feedback and polish.

use super::*;
use crate::asymmetric::correct;
use crate::solver::find;
use bitsmith_calibrate::{Held, Paired, SiteStats};
use bitsmith_formats::{Float, Micro};
use bitsmith_runtime::Device;

fn noise(rows: usize, cols: usize, seed: usize) -> Array2<f32> {
    let value = |i: usize| (((i + 1) * (seed + 7) * 7919 % 10007) as f32 * 0.37).sin();
    Array2::from_shape_fn((rows, cols), |(r, c)| value(r * cols + c))
}

/// Of inputs that are correlated and differ in size.
fn hessian(cols: usize, seed: usize) -> Hessian {
    let x = noise(4 * cols, cols, seed) + noise(4 * cols, 1, seed + 1);
    let x = &x * &noise(1, cols, seed + 2).mapv(|v| 0.5 + v.abs());
    Hessian::new(x.t().dot(&x) / (4 * cols) as f32)
}

fn loss(h: &Hessian, weights: &Array2<f32>, values: &Array2<f32>) -> f64 {
    let delta = values - weights;
    f64::from((delta.dot(&h.damped) * &delta).sum())
}

fn solved(solver: &str, codec: CodecId, h: &Hessian, weights: &Array2<f32>) -> Array2<f32> {
    let problem = Problem {
        weights: weights.view(),
        codec,
        scale: 1.0,
        importance: Some(&h.importance),
        hessian: Some(h),
        device: &Device::Cpu,
    };
    let tensor = find(solver).unwrap().solve(&problem).unwrap().tensor;
    Array2::from_shape_vec(weights.dim(), tensor.decode()).unwrap()
}

const fn mlx(bits: u8, group: u16) -> CodecId {
    CodecId::MlxAffine { bits, group, scale: Float::F32 }
}

/// Optimal brain quantization by its definition (Frantar & Alistarh 2022): round a column, let the columns that are left make up for
/// it by the inverse of their part of H, computed anew for each column.
fn by_definition(grid: &dyn Grid, rows: &Rows, h: &Hessian, weights: &Array2<f32>) -> Array2<u8> {
    let mut codes = Array2::zeros(weights.dim());
    let mut w = weights.mapv(f64::from);
    for (i, &c) in h.order.iter().enumerate() {
        let left = &h.order[i..];
        let inverse =
            inverted(&Array2::from_shape_fn((left.len(), left.len()), |(a, b)| f64::from(h.damped[[left[a], left[b]]])));
        for r in 0..w.nrows() {
            let scales = &rows.scales[r * rows.blocks + c / grid.block_len()];
            let (mut code, mut value) = ([0], [0.0]);
            grid.round(scales, c % grid.block_len(), &[w[[r, c]] as f32], &mut code, &mut value);
            codes[[r, c]] = code[0];
            let error = (w[[r, c]] - f64::from(value[0])) / inverse[[0, 0]];
            left.iter().enumerate().for_each(|(k, &later)| w[[r, later]] -= error * inverse[[0, k]]);
        }
    }
    codes
}

/// By Gauss and Jordan.
fn inverted(m: &Array2<f64>) -> Array2<f64> {
    let n = m.nrows();
    let (mut m, mut inverse) = (m.clone(), Array2::<f64>::eye(n));
    for i in 0..n {
        let pivot = m[[i, i]];
        m.row_mut(i).mapv_inplace(|v| v / pivot);
        inverse.row_mut(i).mapv_inplace(|v| v / pivot);
        for j in (0..n).filter(|j| *j != i) {
            let factor = m[[j, i]];
            let (row, inverse_row) = (m.row(i).to_owned(), inverse.row(i).to_owned());
            m.row_mut(j).scaled_add(-factor, &row);
            inverse.row_mut(j).scaled_add(-factor, &inverse_row);
        }
    }
    inverse
}

#[test]
fn feedback_is_what_the_definition_says() {
    for (seed, codec) in [(1, mlx(2, 64)), (2, mlx(3, 64)), (3, mlx(2, 32)), (4, mlx(3, 32)), (5, CodecId::Q4_0)] {
        let (h, weights) = (hessian(64, seed), noise(7, 64, seed + 40));
        let grid = codec.codec().grid().unwrap();
        let visits = h.visits(1);
        let solving = Solving::new(codec, grid, &h, &visits, Box::new(Host(&h)), &EFFORT);
        let mut chunks = vec![Chunk::fit(grid, weights.view(), &h.importance)];
        solving.feedback(&mut chunks, visits.factor.as_deref().unwrap()).unwrap();
        assert_eq!(chunks[0].rows.codes, by_definition(grid, &chunks[0].rows, &h, &weights), "{codec}");
        // With what follows, no row loses more.
        let lost = |values: &Array2<f32>, r: usize| {
            let delta = &values.row(r) - &weights.row(r);
            f64::from(delta.dot(&h.damped.dot(&delta)))
        };
        let whole = solved("gptq", codec, &h, &weights);
        for r in 0..7 {
            assert!(lost(&whole, r) <= lost(&chunks[0].rows.values, r) * (1.0 + 1e-5), "{codec}, row {r}");
        }
    }
}

/// Qronos by its definition (Zhang et al. 2025): round a column to where it is in the least squares solution for all columns that are left,
/// with the columns before it as they were rounded: what they give from x̂ is to be what W gives from x. `target` is `W E[x x̂ᵀ]`, damped.
fn qronos(grid: &dyn Grid, rows: &Rows, h: &Hessian, target: &Array2<f64>) -> Array2<u8> {
    let mut codes = Array2::zeros(target.dim());
    let mut values = Array2::<f64>::zeros(target.dim());
    let part = |a: &[usize], b: &[usize]| Array2::from_shape_fn((a.len(), b.len()), |(i, j)| f64::from(h.damped[[a[i], b[j]]]));
    for (i, &c) in h.order.iter().enumerate() {
        let (done, left) = h.order.split_at(i);
        let inverse = inverted(&part(left, left));
        for r in 0..target.nrows() {
            let given = values.select(Axis(1), done).row(r).dot(&part(done, left));
            let wanted = target.select(Axis(1), left).row(r).to_owned() - given;
            let scales = &rows.scales[r * rows.blocks + c / grid.block_len()];
            let (mut code, mut value) = ([0], [0.0]);
            grid.round(scales, c % grid.block_len(), &[inverse.row(0).dot(&wanted) as f32], &mut code, &mut value);
            (codes[[r, c]], values[[r, c]]) = (code[0], f64::from(value[0]));
        }
    }
    codes
}

#[test]
fn feedback_on_corrected_weights_is_qronos() {
    let (x, weights) = (noise(400, 32, 5) + noise(400, 1, 6), noise(7, 32, 47));
    let quantized = &x + &(x.dot(&noise(32, 32, 8)) * 0.02);
    let mut stats = SiteStats::new(32, true);
    stats.add(quantized.view());
    let held = Held { dense: Some(x.clone()), quantized: Some(quantized.clone()), lacking: None };
    let paired = Paired { stats, cross: Some((&x - &quantized).t().dot(&quantized)), lacking: None, held };
    let h = Hessian::from_stats(&paired.stats).unwrap();
    let corrected = correct(&weights, &paired, &h, 1.0).unwrap();
    assert_eq!(corrected.strengths[0], 1.0);
    let (wide, damping) = (|m: &Array2<f32>| m.mapv(f64::from), h.damped[[0, 0]] - h.importance[0]);
    let target = wide(&weights).dot(&(wide(&x).t().dot(&wide(&quantized)) / 400.0 + Array2::<f64>::eye(32) * f64::from(damping)));
    for codec in [mlx(2, 32), mlx(3, 32), CodecId::Q4_0] {
        let grid = codec.codec().grid().unwrap();
        let visits = h.visits(1);
        let solving = Solving::new(codec, grid, &h, &visits, Box::new(Host(&h)), &EFFORT);
        let mut chunks = vec![Chunk::fit(grid, corrected.weights.view(), &h.importance)];
        solving.feedback(&mut chunks, visits.factor.as_deref().unwrap()).unwrap();
        assert_eq!(chunks[0].rows.codes, qronos(grid, &chunks[0].rows, &h, &target), "{codec}");
    }
}

#[test]
fn every_format_loses_less_than_its_own_encoder() {
    let codecs = [
        CodecId::Q4K,
        CodecId::Q2K,
        CodecId::Q3K,
        CodecId::Q6K,
        CodecId::IQ4XS,
        CodecId::IQ3XXS,
        CodecId::IQ2S,
        CodecId::IQ2XXS,
        CodecId::IQ1M,
        CodecId::TQ2_0,
        CodecId::MXFP4,
        CodecId::Micro(Micro::Nvfp4),
        mlx(3, 64),
    ];
    let (h, weights) = (hessian(256, 3), noise(3, 256, 9));
    for codec in codecs {
        let reference = loss(&h, &weights, &solved("reference", codec, &h, &weights));
        for solver in ["gptq", "descent"] {
            let lost = loss(&h, &weights, &solved(solver, codec, &h, &weights));
            assert!(lost <= reference, "{solver} into {codec}: {lost} and {reference}");
        }
    }
}

#[test]
fn polish_never_raises_the_loss() {
    let (h, weights) = (hessian(256, 5), noise(5, 256, 11));
    for codec in [CodecId::Q3K, CodecId::Q2K, CodecId::IQ2XS, CodecId::IQ3S, CodecId::IQ4NL, mlx(2, 32)] {
        let grid = codec.codec().grid().unwrap();
        let visits = h.visits(grid.step());
        // From a poor start: scales fitted to other weights.
        let other = noise(5, 256, 12);
        let mut chunk = Chunk::fit(grid, other.view(), &h.importance);
        chunk.weights = weights.view();
        chunk.rows.round(grid, weights.view());
        let mut chunks = vec![chunk];
        let mut before = f64::INFINITY;
        for round in 0..4 {
            let products = Host(&h);
            products.gradients(&mut chunks).unwrap();
            chunks[0].live = true;
            let now = chunks[0].losses().iter().sum::<f64>();
            assert!(now <= before * (1.0 + 1e-6), "{codec}, round {round}: {before} to {now}");
            before = now;
            let effort = Effort { passes: 0, rounds: 1, gain: 0.0 };
            Polish::new(&h, &visits.order, grid).polish(grid, &mut chunks, &products, &effort).unwrap();
            let rows = &chunks[0].rows;
            for ((r, c), value) in rows.values.indexed_iter() {
                let n = grid.block_len();
                let want = grid.value(&rows.scales[r * rows.blocks + c / n], c % n, rows.codes[[r, c]]);
                assert!((want - value).abs() <= 1e-6 * want.abs(), "{codec}: values are those of the codes");
            }
        }
    }
}

#[test]
fn a_broken_hessian_falls_back() {
    let weights = noise(4, 256, 1);
    let mut broken = hessian(256, 2).damped;
    broken[[0, 0]] = f32::NAN;
    let h = Hessian::new(broken);
    for codec in [CodecId::Q4K, CodecId::IQ2XS] {
        let values = solved("gptq", codec, &h, &weights);
        assert!(values.iter().all(|v| v.is_finite()));
        let weighed = |values: &Array2<f32>| loss(&h, &weights, values);
        assert!(weighed(&values) <= weighed(&solved("reference", codec, &h, &weights)), "{codec}");
    }
}

/// Products on a device, here the CPU as one, against those of single chunks.
#[test]
fn a_device_solves_as_well() {
    let (rows, cols) = (2 * ROWS + 5, 512);
    let (h, weights) = (hessian(cols, 1), noise(rows, cols, 3));
    for (codec, factored) in
        [(CodecId::Q4K, true), (CodecId::Q4_0, true), (mlx(4, 64), true), (CodecId::Q3K, false), (CodecId::IQ3S, true)]
    {
        let mut hessian = h.clone();
        hessian.factor = hessian.factor.filter(|_| factored);
        let grid = codec.codec().grid().unwrap();
        let visits = hessian.visits(grid.step());
        let solved = |products: Box<dyn Products + Sync + '_>, together: usize| {
            let solving = Solving::new(codec, grid, &hessian, &visits, products, &EFFORT);
            let (mut values, mut codes) = (Array2::zeros((0, cols)), Vec::new());
            for weights in weights.axis_chunks_iter(Axis(0), together) {
                let chunks = weights.axis_chunks_iter(Axis(0), ROWS);
                let mut chunks: Vec<_> = chunks.map(|w| Chunk::fit(grid, w, &hessian.importance)).collect();
                solving.solve(&mut chunks).unwrap();
                for c in &chunks {
                    values.append(Axis(0), c.rows.values.view()).unwrap();
                    codes.extend(c.rows.codes.iter().copied());
                }
            }
            (values, codes)
        };
        let (want, want_codes) = solved(Box::new(Host(&hessian)), ROWS);
        let (got, got_codes) = solved(Box::new(OnDevice::new(&hessian, visits.factor.as_deref(), &Device::Cpu).unwrap()), rows);
        // Sums are rounded differently, so that a weight between two codes may go the other way, and later ones of its row after it.
        let differ = got_codes.iter().zip(&want_codes).filter(|(g, w)| g != w).count();
        assert!(differ * 20 < got.len(), "{codec}: {differ} of {} codes differ", got.len());
        let ratio = loss(&hessian, &weights, &got) / loss(&hessian, &weights, &want);
        assert!((ratio - 1.0).abs() < 5e-3, "{codec}: {ratio}");
    }
}
