//! ggml's Q1_0: 128 weights of one bit. Bytes 0–1 scale, 2–17 bits, first weight in the lowest; a set bit is plus the scale, a
//! clear one minus the scale.

use super::block::{read_half, write_half};
use super::fit;
use super::float::{limit, neighbours, saturate};
use super::gram::dot;
use crate::codec::{BlockScales, Codec, CodecId, Float, Gram, Grid};

pub(super) struct Q1_0;

const LEN: usize = 128;
const BYTES: usize = 18;
/// Blocks encoded side by side.
const ABREAST: usize = 8;

impl Codec for Q1_0 {
    fn id(&self) -> CodecId {
        CodecId::Q1_0
    }
    fn block_len(&self) -> usize {
        LEN
    }
    fn block_bytes(&self) -> usize {
        BYTES
    }
    fn encode(&self, row: &[f32], _importance: Option<&[f32]>, out: &mut [u8]) {
        assert_eq!(row.len() / LEN * BYTES, out.len(), "output length");
        encode(row, out);
    }
    fn encode_rows(&self, rows: &[f32], _row_len: usize, _importance: Option<&[f32]>, out: &mut [u8]) {
        self.encode(rows, None, out);
    }
    fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len() / BYTES * LEN, out.len(), "output length");
        decode(bytes, out);
    }
    fn grid(&self) -> Option<&dyn Grid> {
        Some(self)
    }
}

crate::dispatched! {
    /// ggml's encoder: the scale is the mean magnitude, summed in index order; bits are signs.
    fn encode(x: &[f32], out: &mut [u8]) {
        let sizes = (ABREAST * LEN, ABREAST * BYTES);
        for (x, out) in x.chunks(sizes.0).zip(out.chunks_mut(sizes.1)) {
            let blocks = x.as_chunks::<LEN>().0;
            let mut sums = [0f32; ABREAST];
            match <&[[f32; LEN]; ABREAST]>::try_from(blocks) {
                Ok(blocks) => for i in 0..LEN {
                    for (sum, x) in sums.iter_mut().zip(blocks) {
                        *sum += x[i].abs();
                    }
                },
                Err(_) => for (sum, x) in sums.iter_mut().zip(blocks) {
                    *sum = x.iter().fold(0.0, |sum, x| sum + x.abs());
                },
            }
            for ((x, out), sum) in blocks.iter().zip(out.as_chunks_mut::<BYTES>().0).zip(sums) {
                write_half(limit(Float::F16, sum / LEN as f32), 0, out);
                for (out, x) in out[2..].iter_mut().zip(x.as_chunks::<8>().0) {
                    *out = (0..8).fold(0, |bits, i| bits | ((x[i] >= 0.0) as u8) << i);
                }
            }
        }
    }

    /// The inverse.
    fn decode(bytes: &[u8], out: &mut [f32]) {
        for (bytes, out) in bytes.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<LEN>().0) {
            let d = read_half(bytes, 0);
            for (out, byte) in out.as_chunks_mut::<8>().0.iter_mut().zip(&bytes[2..]) {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = if byte >> i & 1 == 1 { d } else { -d };
                }
            }
        }
    }
}

/// The scales of a block whose stored scale is `d`.
fn scales(d: f32) -> BlockScales {
    BlockScales { sub_len: LEN, step: vec![2.0 * d], offset: vec![-d], stored: [d, 0.0], ints: Vec::new() }
}

impl Grid for Q1_0 {
    fn block_len(&self) -> usize {
        LEN
    }
    fn max_code(&self) -> u8 {
        1
    }
    /// Signs do not depend on the scale, and the error is a parabola in it: its lowest point is the weighted mean magnitude.
    fn fit(&self, weights: &[f32], importance: &[f32]) -> BlockScales {
        let (mut x, mut w) = ([0f32; LEN], [0f32; LEN]);
        let (x, w) = fit::prepare(weights, importance, &mut x, &mut w);
        let sum = |of: fn(f32, f32) -> f32| x.iter().zip(w).map(|(&x, &w)| of(x, w) as f64).sum::<f64>();
        scales(saturate(Float::F16, (sum(|x, w| w * x.abs()) / sum(|_, w| w)) as f32))
    }
    fn fit_near(&self, _start: &BlockScales, weights: &[f32], importance: &[f32]) -> BlockScales {
        self.fit(weights, importance)
    }
    fn round(&self, scales: &BlockScales, _at: usize, x: &[f32], code: &mut [u8], value: &mut [f32]) {
        fit::round(scales.step[0], scales.offset[0], 1, x, code, value);
    }
    fn descend(&self, block: &mut BlockScales, codes: &[u8], gradient: &[f64], gram: Gram<'_>) -> bool {
        let d = block.stored[0];
        let signs: Vec<f64> = codes.iter().map(|&c| 2.0 * c as f64 - 1.0).collect();
        let mut curved = vec![0.0; LEN];
        gram.apply(&signs, 0, &mut curved);
        let (slope, curvature) = (dot(&signs, gradient), dot(&signs, &curved));
        // Codes that are all zero, or a form that is not positive.
        if curvature <= 0.0 || curvature.is_nan() {
            return false;
        }
        let ideal = saturate(Float::F16, (d as f64 - slope / curvature) as f32);
        let [below, above] = neighbours(Float::F16, ideal);
        let mut best = (0.0, d);
        for candidate in [ideal, below, above] {
            let by = candidate as f64 - d as f64;
            let change = 2.0 * by * slope + by * by * curvature;
            if change < best.0 {
                best = (change, candidate);
            }
        }
        *block = scales(best.1);
        best.0 < 0.0
    }
    fn pack(&self, scales: &BlockScales, codes: &[u8], out: &mut [u8]) {
        write_half(scales.stored[0], 0, out);
        for (out, codes) in out[2..].iter_mut().zip(codes.chunks_exact(8)) {
            *out = codes.iter().enumerate().fold(0, |bits, (i, c)| bits | (c & 1) << i);
        }
    }
    fn unpack(&self, bytes: &[u8], codes: &mut [u8]) -> BlockScales {
        for (i, code) in codes.iter_mut().enumerate() {
            *code = bytes[2 + i / 8] >> (i % 8) & 1;
        }
        scales(read_half(bytes, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codecs::block::tests::weights;

    #[test]
    fn wide_registers_give_the_same_bytes() {
        // Not a whole number of groups.
        let x = weights(LEN * (ABREAST * 9 + 3));
        let (mut wide, mut narrow) = (vec![0x11; x.len() / LEN * BYTES], vec![0x22; x.len() / LEN * BYTES]);
        encode(&x, &mut wide);
        portable::encode(&x, &mut narrow);
        assert_eq!(wide, narrow);
        // A block alone gives what it gives among others.
        for (x, out) in x.chunks(LEN).zip(wide.chunks(BYTES)) {
            encode(x, &mut narrow[..BYTES]);
            assert_eq!(&narrow[..BYTES], out);
        }
        let (mut values, mut again) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
        decode(&wide, &mut values);
        portable::decode(&wide, &mut again);
        assert_eq!(values, again);
    }
}
