//! The worked example of the book's chapter on codecs: 32 weights of 4 bits under one F16 scale. Bytes 0–1 scale, 2–17 codes, first
//! weight in the lowest bits. Code q is worth (q − 8) · scale, and the encoder's scale is a seventh of the largest magnitude.

use super::bits;
use super::block::{inverses, magnitudes, read_half, store_half};
use super::flat::{Flat, Layout, Lines, Shape};
use crate::codec::{Codec, CodecId, Float, Gram};
use crate::simd::{IntLanes, Lanes, bytes_of};

/// The format. Everything else is what `Flat` makes of it.
struct Worked;

impl Layout for Worked {
    fn id(&self) -> CodecId {
        // A real format has an id of its own.
        CodecId::Q4_0
    }
    #[inline(always)]
    fn shape(&self) -> Shape {
        Shape { max: 15, zero: Some(8), float: Float::F16 }
    }
    #[inline(always)]
    fn len(&self) -> usize {
        32
    }
    #[inline(always)]
    fn bytes(&self) -> usize {
        18
    }

    // A block's bytes, from its scale and codes and back.
    #[inline(always)]
    fn write<F: Lanes>(&self, stored: [f32; 2], codes: &[u8], out: &mut [u8]) {
        store_half::<F>(stored[0], 0, out);
        bits::pack::<4>(codes, &mut out[2..]);
    }
    #[inline(always)]
    fn read(&self, bytes: &[u8], codes: &mut [u8]) -> [f32; 2] {
        bits::unpack::<4>(&bytes[2..], codes);
        [read_half(bytes, 0), 0.0]
    }

    // The reference encoder, in three steps: what of the weights decides the scale, the scale, the codes. `F` is a vector register of
    // weights or of blocks.
    #[inline(always)]
    fn extremes<F: Lanes>(&self, x: &[f32]) -> (F, F) {
        (F::zero(), magnitudes(x))
    }
    #[inline(always)]
    fn lines<F: Lanes>(&self, _blocks: &[f32], _low: F, high: F) -> Lines<F> {
        let scale = high / F::splat(7.0);
        Lines { scale, bias: F::zero(), origin: F::zero(), factor: inverses(scale) }
    }
    #[inline(always)]
    fn codes<F: Lanes>(&self, x: &[f32], line: [f32; 2], codes: &mut [u8]) {
        for (x, codes) in x.as_chunks().0.iter().zip(codes.as_chunks_mut().0) {
            bytes_of::<F>(x, codes, |_, x| {
                let t = x * F::splat(line[1]);
                (t + F::splat(0.499_999_97).with_sign(t)).truncate() + F::Int::splat(8)
            });
        }
        if !line[1].is_finite() {
            codes.fill(8);
        }
    }
}

/// What a format is held to. A real one is also held to its reference encoder's bytes, in `tests/golden`.
#[test]
fn the_format_keeps_its_promises() {
    let codec = Flat(Worked);
    let weights: Vec<f32> = (0..64).map(|i| ((i * 37 % 64) as f32 - 31.5) * if i < 32 { 0.01 } else { 3.0 }).collect();
    let (mut bytes, mut decoded) = (vec![0; 36], vec![0.0; 64]);
    codec.encode(&weights, None, &mut bytes);
    codec.decode(&bytes, &mut decoded);
    let loss = |values: &[f32]| values.iter().zip(&weights[..32]).map(|(v, w)| (v - w).powi(2)).sum::<f32>();
    for (block, values) in weights.chunks(32).zip(decoded.chunks(32)) {
        // F16 has the scale to 1 in 2048, so that the largest weight may be off by a little.
        let step = block.iter().fold(0f32, |m, w| m.max(w.abs())) / 7.0;
        assert!(block.iter().zip(values).all(|(w, v)| (w - v).abs() <= 0.505 * step), "{block:?} {values:?}");
    }

    // The grid, as a solver walks it: fit scales, round a weight at a time, refit, pack. No worse than the encoder.
    let grid = codec.grid().unwrap();
    let importance = [1.0; 32];
    let mut scales = grid.fit(&weights[..32], &importance);
    let (mut codes, mut values) = ([0; 32], [0.0; 32]);
    for i in 0..32 {
        grid.round(&scales, i, &weights[i..=i], &mut codes[i..=i], &mut values[i..=i]);
    }
    assert!(loss(&values) <= loss(&decoded[..32]));
    grid.refit(&mut scales, &codes, &weights[..32], Gram::Diagonal(&importance));
    let mut packed = [0; 18];
    grid.pack(&scales, &codes, &mut packed);
    codec.decode(&packed, &mut decoded[..32]);
    let promised: Vec<f32> = codes.iter().enumerate().map(|(i, c)| grid.value(&scales, i, *c)).collect();
    assert_eq!(decoded[..32], promised, "a solver sees what a runtime will");
    let mut again = [0; 32];
    assert_eq!((grid.unpack(&packed, &mut again).step, again), (scales.step, codes));
}
