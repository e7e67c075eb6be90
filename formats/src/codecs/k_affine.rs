//! What Q4_K and Q5_K share: 8 sub-blocks of 32 weights with 6-bit scales and minima, and ggml's encoder for both.
//!
//! Bytes 0–1 `d`, 2–3 `dmin`, 4–15 the 6-bit integers: of sub-blocks 0–3 the scales are the low six bits of bytes 0–3 and the
//! minima those of bytes 4–7; of sub-block j = 4–7 the low four bits are in byte j + 4 (scale low half, minimum high half) and
//! the upper two bits are the upper bits of bytes j − 4 (scale) and j (minimum).

use super::float::{self, saturate};
use super::search::{self, Ranges, WEIGHTED};
use super::side_by_side::Group;
use super::superblock::{Block, INTS, LEN, Layout};
use crate::codec::Float;
use crate::simd::{IntLanes, Lanes, MAX_LANES, Portable, nearest};

/// The longest sub-block, and the most sub-blocks.
const MAX_SUB: usize = 32;
const MAX_SUBS: usize = 16;

/// Weights per sub-block.
pub(super) const SUB: usize = 32;
/// Sub-blocks per super-block.
pub(super) const SUBS: usize = LEN / SUB;
/// Bytes before the codes.
pub(super) const HEADER: usize = 16;
/// Largest integer scale and minimum.
pub(super) const MAX_INT: i16 = 63;

/// Writes `d`, `dmin` and the integers to the first [`HEADER`] bytes.
pub(super) fn write_header(block: &Block, out: &mut [u8]) {
    float::write(Float::F16, block.d, out);
    float::write(Float::F16, block.dmin, &mut out[2..]);
    let out = &mut out[4..HEADER];
    for j in 0..SUBS {
        let (scale, min) = (block.ints[j] as u8, block.ints[SUBS + j] as u8);
        if j < 4 {
            out[j] = scale;
            out[j + 4] = min;
        } else {
            out[j + 4] = (scale & 15) | (min & 15) << 4;
            out[j - 4] |= scale >> 4 << 6;
            out[j] |= min >> 4 << 6;
        }
    }
}

/// The inverse of [`write_header`], with all codes 0.
pub(super) fn read_header(bytes: &[u8]) -> Block {
    let d = float::read(Float::F16, bytes);
    let dmin = float::read(Float::F16, &bytes[2..]);
    let packed = &bytes[4..HEADER];
    let mut ints = [0i16; INTS];
    for j in 0..SUBS {
        let (scale, min) = if j < 4 {
            (packed[j] & 63, packed[j + 4] & 63)
        } else {
            ((packed[j + 4] & 15) | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
        };
        ints[j] = scale as i16;
        ints[SUBS + j] = min as i16;
    }
    Block { d, dmin, ints, codes: [0; LEN] }
}

/// Weights of the search without importance: the root mean square of the sub-block and each weight's own magnitude.
#[inline(always)]
fn spread<F: Lanes>(x: &[F], weights: &mut [F]) {
    let root_mean_square = (sum_of_squares(x) / F::splat(x.len() as f32)).sqrt();
    for (w, &x) in weights.iter_mut().zip(x) {
        *w = root_mean_square + x.abs();
    }
}

/// ggml's encoder for super-blocks with scales and minima. Without importance it tries `ranges` under the weights |x|, or those of
/// [`spread`]; with importance the weight is importance · √(`sigma` · mean square + x²).
#[inline(always)]
pub(super) fn reference<F: Lanes, L: Layout>(group: &Group<'_>, ranges: Ranges, sigma: f32, blocks: &mut [Block]) {
    let levels = i32::from(L::MAX);
    let max_int = i32::from(L::MAX_MIN);
    let subs = LEN / L::SUB;
    let mut x = [F::zero(); LEN];
    group.weights(0, &mut x);
    let sigma2 = F::splat(sigma) * sum_of_squares(&x) / F::splat(LEN as f32);

    let mut weights = [F::zero(); MAX_SUB];
    let weights = &mut weights[..L::SUB];
    let (mut scales, mut mins, mut sums) = ([F::zero(); MAX_SUBS], [F::zero(); MAX_SUBS], [F::zero(); MAX_SUBS]);
    let (mut inverses, mut origins) = ([[0f32; MAX_LANES]; MAX_SUBS], [[0f32; MAX_LANES]; MAX_SUBS]);
    for j in 0..subs {
        let x = &x[j * L::SUB..][..L::SUB];
        let found = match &group.importance {
            Some(importance) => {
                Group::importance(importance, j * L::SUB, weights);
                for (w, &x) in weights.iter_mut().zip(x) {
                    *w = *w * (sigma2 + x * x).sqrt();
                    sums[j] = sums[j] + *w;
                }
                search::affine(x, weights, levels, WEIGHTED)
            }
            None => {
                match ranges.absolute {
                    true => weights.iter_mut().zip(x).for_each(|(w, x)| *w = x.abs()),
                    false => spread(x, weights),
                }
                search::affine(x, weights, levels, ranges)
            }
        };
        (scales[j], mins[j]) = (found.scale, F::zero() - found.min);
        found.inverse.store(&mut inverses[j]);
        found.origin.store(&mut origins[j]);
    }

    let (mut int_scales, mut int_mins) = ([F::Int::splat(0); MAX_SUBS], [F::Int::splat(0); MAX_SUBS]);
    let (scales, mins, sums) = (&scales[..subs], &mins[..subs], &sums[..subs]);
    let (d, dmin) = match group.importance {
        Some(_) => (
            search::positive(scales, sums, max_int, &mut int_scales[..subs]),
            search::positive(mins, sums, max_int, &mut int_mins[..subs]),
        ),
        None => (largest(scales, max_int, &mut int_scales), largest(mins, max_int, &mut int_mins)),
    };
    let (mut ds, mut dmins) = ([0f32; MAX_LANES], [0f32; MAX_LANES]);
    d.store(&mut ds);
    dmin.store(&mut dmins);
    for (lane, block) in blocks.iter_mut().enumerate() {
        (block.d, block.dmin) = (saturate(Float::F16, ds[lane]), saturate(Float::F16, dmins[lane]));
    }
    for j in 0..subs {
        for (ints, at) in [(int_scales[j], j), (int_mins[j], subs + j)] {
            let mut lanes = [0i32; MAX_LANES];
            ints.min(F::Int::splat(max_int)).store(&mut lanes);
            for (block, int) in blocks.iter_mut().zip(lanes) {
                block.ints[at] = int as i16;
            }
        }
        for (lane, block) in blocks.iter_mut().enumerate() {
            if block.d * f32::from(block.ints[j]) == 0.0 {
                let (inverse, origin) = (inverses[j][lane], origins[j][lane]);
                for (code, &x) in block.codes[j * L::SUB..][..L::SUB].iter_mut().zip(&group.block(lane)[j * L::SUB..]) {
                    let mut found = [0];
                    search::affine_code(Portable::<1>::splat(inverse), Portable::splat(origin), Portable::splat(x), levels)
                        .store(&mut found);
                    *code = found[0] as u8;
                }
            }
        }
    }
}

/// Integers for the scales (or minima) of the sub-blocks, the largest at the limit.
#[inline(always)]
fn largest<F: Lanes>(values: &[F], max_int: i32, ints: &mut [F::Int]) -> F {
    let mut max = F::zero();
    for &v in values {
        max = v.max(max);
    }
    let limit = F::splat(max_int as f32);
    let inverse = F::select(max.gt(F::zero()), limit / max, F::zero());
    for (int, &v) in ints.iter_mut().zip(values) {
        *int = nearest(inverse * v);
    }
    max / limit
}

#[inline(always)]
fn sum_of_squares<F: Lanes>(x: &[F]) -> F {
    let mut sum = F::zero();
    for &x in x {
        sum = sum + x * x;
    }
    sum
}
