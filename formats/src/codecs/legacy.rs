//! ggml's Q4_0, Q4_1, Q5_0 and Q5_1: 32 weights with an f16 scale and, in the `_1` formats, an f16 minimum.
//!
//! A block's bytes: scale; minimum if there is one (the value of code 0; without it zero has the middle code); in the 5-bit
//! formats the codes' fifth bits as a u32 (bit i for code i); 16 bytes of which byte j holds the low four bits of codes j (low
//! half) and j + 16 (high half).

use super::block::{extreme, inverse, low_byte, range, read_half, write_half};
use super::flat::{Layout, Shape};
use super::float::limit;
use super::search::{self, Found};
use super::side_by_side::{self, Group, SideBySide};
use crate::codec::{CodecId, Float};
use crate::simd::{IntLanes, Lanes, MAX_LANES};

const LEN: usize = 32;

/// The format with codes of `BITS` bits, with a minimum or not.
pub(super) struct Legacy<const BITS: u32, const MIN: bool>;

impl<const BITS: u32, const MIN: bool> Legacy<BITS, MIN> {
    const MAX: u8 = (1 << BITS) - 1;
    const ZERO: u8 = 1 << (BITS - 1);
    /// Where the fifth bits are, and where the low bits are.
    const HIGH: usize = if MIN { 4 } else { 2 };
    const LOW: usize = Self::HIGH + if BITS == 5 { 4 } else { 0 };
}

impl<const BITS: u32, const MIN: bool> Layout for Legacy<BITS, MIN> {
    fn id(&self) -> CodecId {
        match (BITS, MIN) {
            (4, false) => CodecId::Q4_0,
            (4, true) => CodecId::Q4_1,
            (_, false) => CodecId::Q5_0,
            (_, true) => CodecId::Q5_1,
        }
    }
    #[inline(always)]
    fn shape(&self) -> Shape {
        Shape { max: Self::MAX, zero: (!MIN).then_some(Self::ZERO), float: Float::F16 }
    }
    #[inline(always)]
    fn len(&self) -> usize {
        LEN
    }
    #[inline(always)]
    fn bytes(&self) -> usize {
        Self::LOW + LEN / 2
    }

    #[inline(always)]
    fn write(&self, stored: [f32; 2], codes: &[u8], out: &mut [u8]) {
        write_half(stored[0], 0, out);
        if MIN {
            write_half(stored[1], 1, out);
        }
        if BITS == 5 {
            for (out, codes) in out[Self::HIGH..Self::LOW].iter_mut().zip(codes.as_chunks::<8>().0) {
                // Byte i's bit goes to bit i of the product's top byte.
                let bits = u64::from_le_bytes(*codes) >> 4 & 0x0101_0101_0101_0101;
                *out = (bits.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
            }
        }
        let (low, high) = codes.split_at(LEN / 2);
        for ((out, low), high) in out[Self::LOW..].iter_mut().zip(low).zip(high) {
            *out = (low & 15) | high << 4;
        }
    }
    #[inline(always)]
    fn read(&self, bytes: &[u8], codes: &mut [u8]) -> [f32; 2] {
        let (low, high) = codes.split_at_mut(LEN / 2);
        for ((low, high), b) in low.iter_mut().zip(high).zip(&bytes[Self::LOW..]) {
            *low = b & 15;
            *high = b >> 4;
        }
        if BITS == 5 {
            let bits = &bytes[Self::HIGH..Self::LOW];
            for (i, c) in codes.iter_mut().enumerate() {
                *c |= (bits[i / 8] >> (i % 8) & 1) << 4;
            }
        }
        [read_half(bytes, 0), if MIN { read_half(bytes, 1) } else { 0.0 }]
    }

    /// The extreme gets code 0 where zero has a code; otherwise the codes span the block's range.
    #[inline(always)]
    fn reference(&self, x: &[f32], codes: &mut [u8]) -> [f32; 2] {
        if MIN {
            let (min, max) = range(x, -f32::MAX, f32::MAX);
            let d = (max - min) / Self::MAX as f32;
            truncate::<MIN>(x, min, inverse(d), 0.5, Self::MAX, codes);
            [d, min]
        } else {
            let d = extreme(x) / -(Self::ZERO as f32);
            truncate::<MIN>(x, 0.0, inverse(d), Self::ZERO as f32 + 0.5, Self::MAX, codes);
            [d, 0.0]
        }
    }
    fn encode_weighted(&self, rows: &[f32], row_len: usize, importance: &[f32], out: &mut [u8]) {
        side_by_side::encode_rows(self, rows, row_len, Some(importance), out);
    }
}

/// Codes (x − min) · inverse + shift, rounded towards zero. ggml's quotients by a scale too small for that give code 0.
#[inline(always)]
fn truncate<const MIN: bool>(x: &[f32], min: f32, inverse: f32, shift: f32, largest: u8, codes: &mut [u8]) {
    let largest = largest as f32;
    for (code, &x) in codes.iter_mut().zip(x) {
        let t = if MIN { (x - min) * inverse } else { x * inverse };
        let t = (t + shift).trunc();
        let t = if t > 0.0 { t } else { 0.0 };
        *code = low_byte(if t < largest { t } else { largest });
    }
    if !inverse.is_finite() {
        codes.fill(0);
    }
}

/// ggml's encoder with importance.
impl<const BITS: u32, const MIN: bool> SideBySide for Legacy<BITS, MIN> {
    fn len(&self) -> usize {
        LEN
    }
    fn bytes(&self) -> usize {
        Layout::bytes(self)
    }
    fn needs_row_squares(&self) -> bool {
        true
    }
    #[inline(always)]
    fn encode<F: Lanes>(&self, group: &Group<'_>, out: &mut [u8]) {
        let (mut x, mut weights) = ([F::zero(); LEN], [F::zero(); LEN]);
        group.weights(0, &mut x);
        if let Some(importance) = &group.importance {
            Group::importance(importance, 0, &mut weights);
        }
        let sigma2 = F::load(&group.row_mean_squares);
        for (w, &x) in weights.iter_mut().zip(&x) {
            *w = *w * (sigma2 + x * x).sqrt();
        }
        let found = match MIN {
            true => search::affine(&x, &weights, Self::MAX as i32, search::WEIGHTED),
            false => search::symmetric(&x, &weights, Self::ZERO as f32),
        };

        let [mut scales, mut mins, mut inverses, mut origins] = [[0f32; MAX_LANES]; 4];
        found.scale.store(&mut scales);
        found.min.store(&mut mins);
        found.inverse.store(&mut inverses);
        found.origin.store(&mut origins);
        for (lane, out) in out.chunks_exact_mut(Layout::bytes(self)).enumerate() {
            // From here on the lanes are weights of one block.
            let found = Found { inverse: F::splat(inverses[lane]), origin: F::splat(origins[lane]), ..found };
            let (mut ints, mut codes) = ([0i32; LEN], [0u8; LEN]);
            for (x, ints) in group.block(lane).chunks_exact(F::N).zip(ints.chunks_exact_mut(F::N)) {
                let x = F::load(x);
                match MIN {
                    true => search::affine_code(found.inverse, found.origin, x, Self::MAX as i32),
                    false => search::symmetric_codes(&found, x, Self::ZERO as i32),
                }
                .store(ints);
            }
            codes.iter_mut().zip(ints).for_each(|(code, int)| *code = int as u8);
            self.write([scales[lane], mins[lane]].map(|s| limit(Float::F16, s)), &codes, out);
        }
    }
}
