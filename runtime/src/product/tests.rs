//! Every format, every kernel, against sums in f64 of what the format's own decoder gives.

use super::integer::{Activations, Form, product};
use super::processor::Processor;
use super::{Blocks, ComputeMode, Packed, Weight, add_product, float, quadratic_forms};
use crate::ops;
use bitsmith_formats::{CodecId, EncodedTensor};
use candle_core::Device;
use ndarray::{Array1, Array2, ArrayView2};

/// Numbers around 0, spread like weights.
fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| next() + next() + next() + next()).collect()
}

fn formats() -> impl Iterator<Item = CodecId> {
    let grouped = [
        "f32",
        "f16",
        "bf16",
        "mlx-2bit-g64",
        "mlx-3bit-g32",
        "mlx-4bit-g64-f16",
        "mlx-5bit-g32",
        "mlx-6bit-g128",
        "mlx-8bit-g64-f32",
        "int2-g32-f16",
        "int3-g32-f16",
        "int4-g128-f16",
        "int8-g64-bf16",
        "int4-g1280-f32",
        "int4-g40-f16",
        "mlx-mxfp4",
        "mlx-mxfp8",
        "mlx-nvfp4",
        "fp8-g128-f32",
        "nf4-g64",
    ];
    CodecId::GGML.into_iter().chain(grouped.map(|name| name.parse().unwrap()))
}

/// The kernels that can run here.
fn processors() -> Vec<Processor> {
    match Processor::detect() {
        Processor::Portable => vec![Processor::Portable],
        Processor::Avx2 => vec![Processor::Portable, Processor::Avx2],
        Processor::Avx512 => vec![Processor::Portable, Processor::Avx2, Processor::Avx512],
    }
}

/// The largest difference from the exact product, as a part of the sum of magnitudes.
fn error(y: &[f32], x: &[f32], w: &[f32], columns: usize) -> f64 {
    let out = w.len() / columns;
    y.iter().enumerate().fold(0.0, |worst, (i, y)| {
        let (x, w) = (&x[i / out * columns..][..columns], &w[i % out * columns..][..columns]);
        let terms = || x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
        let magnitude: f64 = terms().map(f64::abs).sum();
        let error = (f64::from(*y) - terms().sum::<f64>()).abs() / magnitude;
        if error > worst || error.is_nan() { error } else { worst }
    })
}

const COLUMNS: usize = 1280;
const OUT: usize = 37;

fn encoded(codec: CodecId) -> EncodedTensor {
    EncodedTensor::encode(codec, &[OUT, COLUMNS], &numbers(OUT * COLUMNS, 5), Some(&[1.0; COLUMNS])).unwrap()
}

#[test]
fn integer_products_are_those_of_rounded_activations() {
    for codec in formats() {
        let Some(form) = Form::of(codec, COLUMNS) else {
            let floats = ["f32", "f16", "bf16", "mlx-mxfp8", "fp8-g128-f32", "nf4-g64", "int4-g40-f16"];
            assert!(floats.contains(&codec.to_string().as_str()), "{codec} has no integer form");
            continue;
        };
        let w = encoded(codec);
        let row_bytes = codec.row_bytes(COLUMNS).unwrap();
        let decoded: Vec<f32> = w.decode().iter().map(|v| v * 0.25).collect();
        for rows in [1, 2, 3, 13] {
            let x = numbers(rows * COLUMNS, 77);
            let rounded = Activations::new(&x, COLUMNS, form.block).decode();
            assert!(error(&x, &rounded, &[1.0], 1) > 0.0);
            let run = |processor| product(processor, &form, &w.bytes, row_bytes, 0.25, &x, COLUMNS);
            let twin = run(Processor::Portable);
            for processor in processors() {
                let y = run(processor);
                let error = error(&y, &rounded, &decoded, COLUMNS);
                assert!(error < 2e-7, "{codec}, {rows} rows, {processor:?}: {error}");
                // The loops over panels do the same in the same order.
                if rows > 4 {
                    assert_eq!(y, twin, "{codec}, {rows} rows, {processor:?}");
                }
            }
        }
    }
}

#[test]
fn extreme_codes_do_not_overflow() {
    // All bits set, and bytes at the limits of signed and unsigned numbers; activations at their limits throughout.
    for codec in formats() {
        let Some(form) = Form::of(codec, COLUMNS) else { continue };
        let row_bytes = codec.row_bytes(COLUMNS).unwrap();
        for byte in [0x00, 0x3b, 0x77, 0x7a, 0xbb, 0xfb] {
            let bytes = vec![byte; 3 * row_bytes];
            let w = EncodedTensor::new(&[3, COLUMNS], codec, bytes);
            let decoded = w.decode();
            if decoded.iter().any(|v| v.is_nan() || v.abs() >= 1e30) {
                continue;
            }
            for sign in [1.0, -1.0] {
                let x = vec![sign; 5 * COLUMNS];
                let run = |processor, rows| product(processor, &form, &w.bytes, row_bytes, 1.0, &x[..rows * COLUMNS], COLUMNS);
                let rounded = Activations::new(&x, COLUMNS, form.block).decode();
                for processor in processors() {
                    for rows in [1, 5] {
                        let y = run(processor, rows);
                        if decoded.iter().any(|v| *v != 0.0) {
                            let error = error(&y, &rounded, &decoded, COLUMNS);
                            // Equal terms round alike; an overflow would be a thousand times larger.
                            assert!(error < 1e-5, "{codec} of bytes {byte:#x}, {rows} rows, {processor:?}: {error}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn float_products_are_those_of_decoded_weights() {
    for codec in formats() {
        let w = encoded(codec);
        let decoded: Vec<f32> = w.decode().iter().map(|v| v * 0.25).collect();
        for rows in [1, 4, 5, 13] {
            let x = numbers(rows * COLUMNS, 77);
            for processor in processors() {
                let y = float::product(processor, codec, &w.bytes, codec.row_bytes(COLUMNS).unwrap(), 0.25, &x, COLUMNS);
                let error = error(&y, &x, &decoded, COLUMNS);
                assert!(error < 2e-7, "{codec}, {rows} rows, {processor:?}: {error}");
            }
        }
    }
}

#[test]
fn products_of_plain_matrices_are_added_row_by_row() {
    let (inner, out, most) = (300, 1100, 29);
    let (a, b) = (numbers(most * inner, 3), numbers(inner * out, 4));
    let upright: Vec<f32> = (0..out * inner).map(|i| b[i % inner * out + i / inner]).collect();
    for processor in processors() {
        let run = |rows: std::ops::Range<usize>, b: ArrayView2<'_, f32>| {
            let mut c = vec![0f32; rows.len() * out];
            let a = a[rows.start * inner..rows.end * inner].chunks_exact(inner);
            let mut rows: Vec<_> = a.zip(c.chunks_exact_mut(out)).collect();
            // Twice: products are added.
            float::add_product_on(processor, &mut rows, b);
            float::add_product_on(processor, &mut rows, b);
            c.iter().map(|c| c / 2.0).collect::<Vec<f32>>()
        };
        let b = ArrayView2::from_shape((inner, out), &b).unwrap();
        let all = run(0..most, b);
        let error = error(&all, &a, &upright, inner);
        assert!(error < 4e-7, "{processor:?}: {error}");
        // Whatever rows stand beside them, and however b lies in memory.
        assert_eq!(run(5..6, b), all[5 * out..6 * out], "{processor:?}");
        assert_eq!(run(3..most, ArrayView2::from_shape((out, inner), &upright).unwrap().reversed_axes()), all[3 * out..]);
        assert!(run(0..0, b).is_empty());
    }
    let b = ArrayView2::from_shape((inner, out), &b).unwrap();
    let (mut c, mut packed) = (vec![0f32; most * out], vec![0f32; most * out]);
    add_product(&mut a.chunks_exact(inner).zip(c.chunks_exact_mut(out)).collect::<Vec<_>>(), b);
    Packed::new(b).add_product(&mut a.chunks_exact(inner).zip(packed.chunks_exact_mut(out)).collect::<Vec<_>>());
    assert_eq!(c, packed);
}

#[test]
fn quadratic_forms_are_those_of_the_whole_matrix() {
    for n in [40, 600, 1300] {
        let (rows, noise) = (numbers(7 * n, 3), numbers(n * n, 4));
        let h = Array2::from_shape_fn((n, n), |(i, j)| noise[i.max(j) * n + i.min(j)] + if i == j { 8.0 } else { 0.0 });
        let upper = Array2::from_shape_fn((n, n), |(i, j)| if j / 512 >= i / 512 { h[[i, j]] } else { f32::NAN });
        let got = quadratic_forms(&rows.chunks_exact(n).collect::<Vec<_>>(), upper.view());
        for (row, got) in rows.chunks_exact(n).zip(got) {
            let row = Array1::from_iter(row.iter().map(|x| f64::from(*x)));
            let want = row.dot(&h.mapv(f64::from).dot(&row));
            assert!((got / want - 1.0).abs() < 1e-5, "{n}: {got} {want}");
        }
    }
}

#[test]
fn a_nan_among_activations_reaches_the_result() {
    let w = Weight::Blocks(Blocks::new(encoded(CodecId::Q4K)).unwrap());
    for bad in [f32::NAN, f32::INFINITY] {
        let mut x = numbers(3 * COLUMNS, 7);
        x[COLUMNS + 300] = bad;
        let x = ops::from_host(x, &[3, COLUMNS], &Device::Cpu).unwrap();
        for mode in [ComputeMode::F32, ComputeMode::Int8] {
            let y = w.product(&x, mode).unwrap().to_vec2::<f32>().unwrap();
            assert!(y[0].iter().chain(&y[2]).all(|v| v.is_finite()) && y[1].iter().all(|v| !v.is_finite()), "{mode:?} {bad}");
        }
    }
}

#[test]
fn results_do_not_depend_on_threads() {
    let x = ops::from_host(numbers(9 * COLUMNS, 7), &[9, COLUMNS], &Device::Cpu).unwrap();
    for codec in [CodecId::Q4_0, CodecId::Q5K, CodecId::BF16] {
        let w = Weight::Blocks(Blocks::new(encoded(codec)).unwrap());
        for (mode, rows) in [(ComputeMode::F32, 1), (ComputeMode::F32, 9), (ComputeMode::Int8, 1), (ComputeMode::Int8, 9)] {
            let x = x.narrow(0, 0, rows).unwrap();
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| w.product(&x, mode).unwrap().to_vec2::<f32>().unwrap())
            };
            assert_eq!(run(1), run(3), "{codec} {mode:?} {rows}");
        }
    }
}

#[test]
fn experts_and_embeddings_are_parts_of_the_rows() {
    let device = Device::Cpu;
    let w = encoded(CodecId::Q8_0);
    let values = w.decode();
    let rows = OUT / 3;
    let n = 3 * rows * COLUMNS;
    let three = EncodedTensor { shape: vec![3, rows, COLUMNS], bytes: w.bytes[..n / 32 * 34].to_vec(), ..w.clone() };
    let blocks = Weight::Blocks(Blocks::new(three).unwrap());
    let dense = Weight::Dense(ops::from_host(values[..n].to_vec(), &[3, rows, COLUMNS], &device).unwrap());
    for weight in [&blocks, &dense] {
        let expert = weight.expert(1).unwrap();
        assert_eq!(expert.dims(), [rows, COLUMNS]);
        assert_eq!(expert.host().unwrap(), values[n / 3..2 * n / 3]);
        assert!(weight.expert(3).is_err() && expert.expert(0).is_err());
        assert_eq!(weight.host().unwrap(), values[..n]);
    }
    let matrix = Weight::Blocks(Blocks::new(w).unwrap());
    let x = ops::from_host(numbers(COLUMNS - 32, 7), &[1, COLUMNS - 32], &device).unwrap();
    assert!(matrix.product(&x, ComputeMode::F32).is_err() && blocks.product(&x, ComputeMode::F32).is_err());
    let rows = matrix.embed(&[5, 0], &device).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(rows, [&values[5 * COLUMNS..6 * COLUMNS], &values[..COLUMNS]]);
    assert!(matrix.embed(&[OUT as u32], &device).is_err());
    assert_eq!(matrix.to_tensor(&device).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(), values);
}

#[test]
fn bytes_that_do_not_fill_the_shape_are_refused() {
    let w = encoded(CodecId::Q4_0);
    for shape in [vec![OUT, COLUMNS + 32], vec![OUT + 1, COLUMNS], vec![OUT, COLUMNS + 1], vec![OUT * COLUMNS], vec![0, COLUMNS]]
    {
        assert!(Blocks::new(EncodedTensor { shape, ..w.clone() }).is_err());
    }
}
