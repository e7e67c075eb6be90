//! ggml's Q1_0: 128 weights of one bit. Bytes 0–1 scale, 2–17 bits, first weight in the lowest; a set bit is plus the scale, a
//! clear one minus the scale.

use super::block::{read_half, store_half, write_half};
use super::fit;
use super::float::{limits, neighbours, saturate};
use super::gram::dot;
use super::side_by_side::{self, Group, SideBySide};
use crate::codec::{BlockScales, Codec, CodecId, Float, Gram, Grid};
use crate::simd::{COLUMNS, Lanes, MAX_LANES, MaskLanes};

pub(super) struct Q1_0;

const LEN: usize = 128;
const BYTES: usize = 18;

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
        side_by_side::encode_rows(self, row, row.len(), None, out);
    }
    fn encode_rows(&self, rows: &[f32], row_len: usize, _importance: Option<&[f32]>, out: &mut [u8]) {
        side_by_side::encode_rows(self, rows, row_len, None, out);
    }
    fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len() / BYTES * LEN, out.len(), "output length");
        decode(bytes, out);
    }
    fn grid(&self) -> Option<&dyn Grid> {
        Some(self)
    }
}

/// ggml's encoder: the scale is the mean magnitude, summed in index order; bits are signs.
impl SideBySide for Q1_0 {
    fn len(&self) -> usize {
        LEN
    }
    fn bytes(&self) -> usize {
        BYTES
    }
    #[inline(always)]
    fn encode<F: Lanes>(&self, group: &Group<'_>, out: &mut [u8]) {
        let mut sum = F::zero();
        for at in (0..LEN).step_by(COLUMNS) {
            let mut columns = [F::zero(); COLUMNS];
            group.weights(at, &mut columns);
            for x in columns {
                sum = sum + x.abs();
            }
        }
        let mut scales = [0f32; MAX_LANES];
        limits(Float::F16, sum / F::splat(LEN as f32)).store(&mut scales);
        for (lane, out) in out.as_chunks_mut::<BYTES>().0.iter_mut().enumerate() {
            store_half::<F>(scales[lane], 0, out);
            // From here on the lanes are weights of one block.
            let mut bits = 0u128;
            for (i, x) in group.block(lane).chunks_exact(F::N).enumerate() {
                bits |= u128::from(F::zero().le(F::load(x)).bits()) << (i * F::N);
            }
            out[2..].copy_from_slice(&bits.to_le_bytes());
        }
    }
}

crate::dispatched! {
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
    use crate::codecs::side_by_side::Rows;
    use crate::simd::{Kernel, Portable};

    #[test]
    fn wide_registers_give_the_same_bytes() {
        // Not a whole number of groups.
        let x = weights(LEN * 75);
        let (mut wide, mut narrow) = (vec![0x11; x.len() / LEN * BYTES], vec![0x22; x.len() / LEN * BYTES]);
        Codec::encode(&Q1_0, &x, None, &mut wide);
        Rows { encoder: &Q1_0, rows: &x, row_len: x.len(), importance: None, out: &mut narrow }.run::<Portable<1>>();
        assert_eq!(wide, narrow);
        // A block alone gives what it gives among others.
        for (x, out) in x.chunks(LEN).zip(wide.chunks(BYTES)) {
            Codec::encode(&Q1_0, x, None, &mut narrow[..BYTES]);
            assert_eq!(&narrow[..BYTES], out);
        }
        let (mut values, mut again) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
        decode(&wide, &mut values);
        portable::decode(&wide, &mut again);
        assert_eq!(values, again);
    }
}
