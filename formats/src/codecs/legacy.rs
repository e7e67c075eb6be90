//! ggml's Q4_0, Q4_1, Q5_0 and Q5_1: 32 weights with an f16 scale and, in the `_1` formats, an f16 minimum.
//!
//! A block's bytes: scale; minimum if there is one (the value of code 0; without it zero has the middle code); in the 5-bit
//! formats the codes' fifth bits as a u32 (bit i for code i); 16 bytes of which byte j holds the low four bits of codes j (low
//! half) and j + 16 (high half).

use super::block::{extreme, first_zero, inverses, range, read_half, store_half};
use super::flat::{Layout, Lines, Shape};
use super::float::limit;
use super::search::{self, Found};
use super::side_by_side::{self, Group, SideBySide};
use crate::codec::{CodecId, Float};
use crate::simd::{Lanes, MAX_LANES, MaskLanes, bytes_of};

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
    fn write<F: Lanes>(&self, stored: [f32; 2], codes: &[u8], out: &mut [u8]) {
        store_half::<F>(stored[0], 0, out);
        if MIN {
            store_half::<F>(stored[1], 1, out);
        }
        if BITS == 5 {
            let mut high = [0u8; LEN];
            high.iter_mut().zip(codes).for_each(|(high, code)| *high = code << 3);
            out[Self::HIGH..Self::LOW].copy_from_slice(&F::high_bits(&high).to_le_bytes());
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

    #[inline(always)]
    fn extremes<F: Lanes>(&self, x: &[f32]) -> (F, F) {
        if MIN { range(x, -f32::MAX, f32::MAX) } else { range(x, 0.0, 0.0) }
    }
    /// The extreme gets code 0 where zero has a code; otherwise the codes span the block's range.
    #[inline(always)]
    fn lines<F: Lanes>(&self, blocks: &[f32], low: F, high: F) -> Lines<F> {
        let (scale, bias) = if MIN {
            let low = correct(low.eq(F::zero()), low, blocks, first_zero);
            ((high - low) / F::splat(Self::MAX as f32), low)
        } else {
            let below = F::zero() - low;
            let most = F::select(below.gt(high), low, high);
            (correct(below.eq(high), most, blocks, extreme) * F::splat(-1.0 / Self::ZERO as f32), F::zero())
        };
        Lines { scale, bias, origin: bias, factor: inverses(scale) }
    }
    /// (x − origin) · factor, rounded towards zero once a half is added. Quotients by a scale too small for that give code 0, as in
    /// ggml.
    #[inline(always)]
    fn codes<F: Lanes>(&self, x: &[f32], line: [f32; 2], codes: &mut [u8]) {
        let (origin, factor) = (F::splat(line[0]), F::splat(line[1]));
        let shift = F::splat(if MIN { 0.5 } else { Self::ZERO as f32 + 0.5 });
        for (x, codes) in x.as_chunks().0.iter().zip(codes.as_chunks_mut().0) {
            bytes_of::<F>(x, codes, |_, x| {
                let t = if MIN { (x - origin) * factor } else { x * factor };
                (t + shift).truncate()
            });
        }
        for code in codes {
            *code = (*code).min(Self::MAX);
        }
    }
    fn encode_weighted(&self, rows: &[f32], row_len: usize, importance: &[f32], out: &mut [u8]) {
        side_by_side::encode_rows(self, rows, row_len, Some(importance), out);
    }
}

/// `values`, but in the lanes of the mask `value` of their blocks.
#[inline(always)]
fn correct<F: Lanes>(mask: F::Mask, values: F, blocks: &[f32], value: fn(&[f32]) -> f32) -> F {
    if !mask.any() {
        return values;
    }
    let mut lanes = [0f32; MAX_LANES];
    values.store(&mut lanes);
    for (i, (lane, x)) in lanes.iter_mut().zip(blocks.chunks_exact(LEN)).enumerate() {
        if mask.bits() >> i & 1 == 1 {
            *lane = value(x);
        }
    }
    F::load(&lanes)
}

/// ggml's encoder with importance.
impl<const BITS: u32, const MIN: bool> SideBySide for Legacy<BITS, MIN> {
    const CHAINS: bool = MIN;

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
            let mut codes = [0u8; LEN];
            for x in group.block(lane).as_chunks().0 {
                bytes_of::<F>(x, &mut codes, |_, x| match MIN {
                    true => search::affine_code(found.inverse, found.origin, x, Self::MAX as i32),
                    false => search::symmetric_codes(&found, x, Self::ZERO as i32),
                });
            }
            self.write::<F>([scales[lane], mins[lane]].map(|s| limit(Float::F16, s)), &codes, out);
        }
    }
}
