//! Groups of small floats with a scale of one byte: MXFP4 and MXFP8 (32 weights, a power of two), NVFP4 (16 weights, e4m3).
//!
//! A group's bytes here: the codes as a little-endian stream (of two 4-bit codes the first is the low half of a byte), then the
//! scale. The value of a code is its small float times the scale. The reference encoder is `mx.quantize` on CPU.
//!
//! MLX rounds intermediate results to the weights' own type, and the bytes depend on it: in BF16 a quotient just above a power of two
//! becomes that power, and the scale is half as large. The type is taken from the weights of a row, as the first of BF16, F16 and
//! F32 that holds all of them.

use super::bits;
use super::block::{largest, largest_of_each};
use super::fit;
use super::float::saturate_f16;
use super::gram::dot;
use super::minifloat::{
    E2M1, E2M1_MAX, E4M3, E4M3_MAX, E4M3_MAX_CODE, e8m0, from_e2m1, from_e4m3, to_e2m1, to_e2m1_fourfold, to_e4m3, to_e4m3_lanes,
};
use crate::codec::{BlockScales, Codec, CodecId, Float, Gram, Grid, Micro};
use crate::simd::{IntLanes, Kernel, Lanes, MAX_LANES, STEP, bytes_of, dispatch};

/// The longest group.
const MAX_LEN: usize = 32;

/// The codec of one of the formats.
pub(super) struct Group(pub Micro);

impl Micro {
    /// Weights that share a scale.
    pub fn group(self) -> usize {
        match self {
            Micro::Mxfp4 | Micro::Mxfp8 => 32,
            Micro::Nvfp4 => 16,
        }
    }
    /// Bits per code.
    pub fn bits(self) -> usize {
        match self {
            Micro::Mxfp4 | Micro::Nvfp4 => 4,
            Micro::Mxfp8 => 8,
        }
    }
    /// Bytes of a group's codes, before the byte of its scale.
    pub fn code_bytes(self) -> usize {
        self.group() * self.bits() / 8
    }
    /// The value of code 1.0 in a group with this scale byte.
    #[inline(always)]
    fn scale(self, byte: u8) -> f32 {
        match self {
            Micro::Mxfp4 | Micro::Mxfp8 => e8m0(byte),
            Micro::Nvfp4 => E4M3[byte as usize],
        }
    }
    /// Largest scale byte of a positive finite number.
    fn max_byte(self) -> u8 {
        match self {
            Micro::Mxfp4 | Micro::Mxfp8 => 254,
            Micro::Nvfp4 => E4M3_MAX_CODE,
        }
    }
    /// The scale byte nearest to a positive number, if `scale` is one.
    fn byte_near(self, scale: f64) -> Option<u8> {
        match self {
            _ if scale.is_nan() || scale <= 0.0 => None,
            Micro::Mxfp4 | Micro::Mxfp8 => Some((scale.log2().round() + 127.0).clamp(0.0, 254.0) as u8),
            Micro::Nvfp4 => Some(to_e4m3(scale as f32) as u8),
        }
    }
    /// Largest value under scale 1.
    fn max_value(self) -> f32 {
        match self {
            Micro::Mxfp4 | Micro::Nvfp4 => E2M1_MAX,
            Micro::Mxfp8 => E4M3_MAX,
        }
    }
    /// The value of a code under scale 1.
    #[inline(always)]
    fn level(self, code: u8) -> f32 {
        match self {
            Micro::Mxfp4 | Micro::Nvfp4 => E2M1[code as usize & 15],
            Micro::Mxfp8 => E4M3[code as usize],
        }
    }
    /// The code nearest to `y` under scale 1.
    #[inline(always)]
    fn code(self, y: f32) -> u32 {
        match self {
            Micro::Mxfp4 | Micro::Nvfp4 => to_e2m1(y),
            Micro::Mxfp8 => to_e4m3(y),
        }
    }
    /// The scale byte that MLX chooses for a group with this largest magnitude. Where MLX's exponent would leave the byte (all
    /// weights below 10⁻³⁷), it stays at the smallest here, while MLX's wraps around to the largest.
    #[inline(always)]
    fn byte_for(self, largest: f32, float: Float) -> u8 {
        let unit = largest / self.max_value();
        let unit = match float {
            Float::F32 => unit,
            Float::F16 => saturate_f16(unit),
            Float::BF16 => shorten::<16>(unit),
        };
        match self {
            Micro::Nvfp4 => to_e4m3(unit) as u8,
            Micro::Mxfp4 | Micro::Mxfp8 if unit == 0.0 => 127,
            Micro::Mxfp4 | Micro::Mxfp8 => (log2_up(unit) + 127).clamp(0, 254) as u8,
        }
    }
}

/// log₂ of a positive number, rounded to f32 and then up: a number that exceeds a power of two by too little for f32's logarithm
/// counts as that power.
#[inline(always)]
fn log2_up(x: f32) -> i32 {
    let (exponent, mantissa) = ((x.to_bits() >> 23) as i32, x.to_bits() & 0x7f_ffff);
    match (exponent, mantissa) {
        (1.., 0) => exponent - 127,
        // 2⁷ of the last places are more than any logarithm's rounding.
        (1.., 0x80..) => exponent - 126,
        _ => careful_log2_up(x),
    }
}

#[cold]
#[inline(never)]
fn careful_log2_up(x: f32) -> i32 {
    ((x as f64).log2() as f32).ceil() as i32
}

/// The first of BF16, F16 and F32 that has all these values.
fn storage_type(row: &[f32]) -> Float {
    // Most rows that lack a type show it soon.
    let head = &row[..row.len().min(64)];
    if low_bits(head) == 0 && low_bits(row) == 0 {
        Float::BF16
    } else if are_halves(head) && are_halves(row) {
        Float::F16
    } else {
        Float::F32
    }
}

/// Rounds to a mantissa that is `DROP` bits shorter, ties to even. (Numbers too small for a type's full mantissa are no concern
/// here: they are far below the smallest code.)
#[inline(always)]
fn shorten<const DROP: u32>(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(bits.wrapping_add((1 << (DROP - 1)) - 1 + (bits >> DROP & 1)) & (u32::MAX << DROP))
}

/// MLX's encoder, of whole groups with weights of type `float`. Lanes are weights.
struct Encode<'a> {
    format: Micro,
    float: Float,
    x: &'a [f32],
    out: &'a mut [u8],
}

impl Kernel for Encode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<F: Lanes>(self) {
        match self.format {
            Micro::Mxfp4 => encode_groups::<F, 32, 17>(Micro::Mxfp4, self),
            Micro::Mxfp8 => encode_groups::<F, 32, 33>(Micro::Mxfp8, self),
            Micro::Nvfp4 => encode_groups::<F, 16, 9>(Micro::Nvfp4, self),
        }
    }
}

/// Groups of `LEN` weights to `BYTES` bytes.
#[inline(always)]
fn encode_groups<F: Lanes, const LEN: usize, const BYTES: usize>(format: Micro, task: Encode<'_>) {
    let Encode { float, x, out, .. } = task;
    for (x, out) in x.chunks(MAX_LANES * LEN).zip(out.chunks_mut(MAX_LANES * BYTES)) {
        let largest = largest_of_each::<F>(x, LEN);
        for ((x, out), largest) in x.as_chunks::<LEN>().0.iter().zip(out.as_chunks_mut::<BYTES>().0).zip(largest) {
            let byte = format.byte_for(largest.min(f32::MAX), float);
            out[BYTES - 1] = byte;
            encode_group::<F>(format, float, x, byte, &mut out[..BYTES - 1]);
        }
    }
}

/// The codes of one group.
#[inline(always)]
fn encode_group<F: Lanes>(format: Micro, float: Float, x: &[f32], byte: u8, out: &mut [u8]) {
    // Groups of 16 are made like longer ones that end in zeros.
    let mut padded = [0f32; STEP];
    let x = match x.first_chunk() {
        Some(x) => x,
        None => {
            padded[..x.len()].copy_from_slice(x);
            &padded
        }
    };
    let mut codes = [0u8; STEP];
    match format {
        Micro::Mxfp8 => {
            let inverse = F::splat(e8m0(254 - byte));
            for codes in out.as_chunks_mut().0 {
                bytes_of(x, codes, |_, x: F| to_e4m3_lanes(x * inverse));
            }
            return;
        }
        Micro::Mxfp4 => {
            let inverse = F::splat(e8m0(254 - byte));
            // Quotients by a power of two need no rounding.
            to_e2m1_fourfold(x, &mut codes, |_, x: F| x * inverse * F::splat(4.0));
        }
        Micro::Nvfp4 => {
            let scale = E4M3[byte as usize];
            // Under scale 0 all weights are too small for any code.
            let divisor = F::splat(if scale == 0.0 { f32::INFINITY } else { scale });
            to_e2m1_fourfold(x, &mut codes, |_, x: F| {
                let y = x / divisor;
                F::splat(4.0)
                    * match float {
                        Float::BF16 => shorten_lanes::<F, 16>(y),
                        Float::F16 => shorten_lanes::<F, 13>(y),
                        Float::F32 => y,
                    }
            });
        }
    }
    bits::pack::<4>(&codes[..2 * out.len()], out);
}

/// [`shorten`] in each lane.
#[inline(always)]
fn shorten_lanes<F: Lanes, const DROP: u32>(x: F) -> F {
    let bits = x.to_bits();
    let even = bits.shr::<DROP>() & F::Int::splat(1);
    F::from_bits((bits + F::Int::splat((1 << (DROP - 1)) - 1) + even) & F::Int::splat(-(1 << DROP)))
}

/// The inverse of [`encode_groups`]; `decode` makes values of codes and scale.
#[inline(always)]
fn decode_groups<const LEN: usize, const BYTES: usize>(
    format: Micro,
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8], &mut [f32], f32),
) {
    for (bytes, out) in bytes.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<LEN>().0) {
        decode(&bytes[..BYTES - 1], out, format.scale(bytes[BYTES - 1]));
    }
}

crate::dispatched! {
    /// The bits that BF16 does not have, of all values together.
    fn low_bits(row: &[f32]) -> u32 {
        row.iter().fold(0, |all, x| all | x.to_bits() & 0xffff)
    }

    /// Whether all values are F16 numbers.
    fn are_halves(row: &[f32]) -> bool {
        row.iter().fold(true, |all, x| {
            let a = x.abs();
            // Below 2⁻¹⁴ they are multiples of 2⁻²⁴; adding 1.5 · 2²³ leaves integers alone.
            let small = a * 16_777_216.0;
            let multiple = (small + 12_582_912.0) - 12_582_912.0 == small;
            let normal = a.to_bits() & 0x1fff == 0 && a < 65536.0;
            all & if a < 6.103_515_6e-5 { multiple } else { normal }
        })
    }

    /// The values of whole groups.
    fn decode(format: Micro, bytes: &[u8], out: &mut [f32]) {
        let fours = |codes: &[u8], out: &mut [f32], scale: f32| {
            for (pair, &byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
                pair[0] = from_e2m1(byte as u32 & 15) * scale;
                pair[1] = from_e2m1(byte as u32 >> 4) * scale;
            }
        };
        match format {
            Micro::Mxfp4 => decode_groups::<32, 17>(format, bytes, out, fours),
            Micro::Nvfp4 => decode_groups::<16, 9>(format, bytes, out, fours),
            Micro::Mxfp8 => decode_groups::<32, 33>(format, bytes, out, |codes, out, scale| {
                out.iter_mut().zip(codes).for_each(|(value, &code)| *value = from_e4m3(code as u32) * scale)
            }),
        }
    }

    /// Σ w (x − v)², v being the value nearest to x under `scale`.
    fn error_e2m1(x: &[f32], w: &[f32], scale: f32) -> f32 {
        let mut sums = [0f32; 8];
        for (x, w) in x.as_chunks::<8>().0.iter().zip(w.as_chunks::<8>().0) {
            for i in 0..8 {
                let r = x[i] - from_e2m1(to_e2m1(x[i] / scale)) * scale;
                sums[i] += w[i] * (r * r);
            }
        }
        sums.iter().sum()
    }

    /// The same for e4m3 codes.
    fn error_e4m3(x: &[f32], w: &[f32], scale: f32) -> f32 {
        let mut sums = [0f32; 8];
        for (x, w) in x.as_chunks::<8>().0.iter().zip(w.as_chunks::<8>().0) {
            for i in 0..8 {
                let r = x[i] - from_e4m3(to_e4m3(x[i] / scale)) * scale;
                sums[i] += w[i] * (r * r);
            }
        }
        sums.iter().sum()
    }
}

impl Codec for Group {
    fn id(&self) -> CodecId {
        CodecId::Micro(self.0)
    }
    fn block_len(&self) -> usize {
        self.0.group()
    }
    fn block_bytes(&self) -> usize {
        self.0.code_bytes() + 1
    }
    fn encode(&self, row: &[f32], _importance: Option<&[f32]>, out: &mut [u8]) {
        assert_eq!(row.len() / self.0.group() * self.block_bytes(), out.len(), "output length");
        dispatch(Encode { format: self.0, float: storage_type(row), x: row, out });
    }
    fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len() / self.block_bytes() * self.0.group(), out.len(), "output length");
        decode(self.0, bytes, out);
    }
    fn grid(&self) -> Option<&dyn Grid> {
        Some(self)
    }
}

impl Group {
    fn scales(&self, byte: u8) -> BlockScales {
        let scale = self.0.scale(byte);
        BlockScales {
            sub_len: self.0.group(),
            step: vec![scale],
            offset: vec![0.0],
            stored: [scale, 0.0],
            ints: vec![byte.into()],
        }
    }

    /// Of the scale bytes from `below` under to `above` over `start`, the one with the least error; of equals, the nearest to `start`.
    fn best(&self, start: u8, below: u8, above: u8, weights: &[f32], importance: &[f32]) -> BlockScales {
        let len = self.0.group();
        let (mut x, mut w) = ([0f32; MAX_LEN], [0f32; MAX_LEN]);
        let (x, w) = fit::prepare(weights, importance, &mut x[..len], &mut w[..len]);
        let error = |byte: u8| match (self.0, self.0.scale(byte)) {
            (_, 0.0) => x.iter().zip(w).map(|(x, w)| w * (x * x)).sum(),
            (Micro::Mxfp4 | Micro::Nvfp4, scale) => error_e2m1(x, w, scale),
            (Micro::Mxfp8, scale) => error_e4m3(x, w, scale),
        };
        let mut best = (error(start), start);
        let candidates = start.saturating_sub(below)..=start.saturating_add(above).min(self.0.max_byte());
        for byte in candidates.filter(|&byte| byte != start) {
            let e = error(byte);
            if e < best.0 || (e == best.0 && byte.abs_diff(start) < best.1.abs_diff(start)) {
                best = (e, byte);
            }
        }
        self.scales(best.1)
    }
}

impl Grid for Group {
    fn block_len(&self) -> usize {
        self.0.group()
    }
    fn max_code(&self) -> u8 {
        ((1u32 << self.0.bits()) - 1) as u8
    }
    fn is_linear(&self) -> bool {
        false
    }
    fn value(&self, scales: &BlockScales, _at: usize, code: u8) -> f32 {
        self.0.level(code) * scales.step[0]
    }

    /// Tries all scales that may pay: down to where a third of the range is cut off, up to where the largest weight lies on the second
    /// largest code.
    fn fit(&self, weights: &[f32], importance: &[f32]) -> BlockScales {
        let (below, above) = match self.0 {
            Micro::Mxfp4 | Micro::Mxfp8 => (2, 1),
            Micro::Nvfp4 => (12, 6),
        };
        let mut x = [0f32; MAX_LEN];
        let finite = weights.iter().map(|x| if x.is_nan() { 0.0 } else { x.clamp(-fit::LIMIT, fit::LIMIT) });
        x.iter_mut().zip(finite).for_each(|(x, v)| *x = v);
        let start = self.0.byte_for(largest(&x).min(f32::MAX), storage_type(weights));
        self.best(start, below, above, weights, importance)
    }
    fn fit_near(&self, start: &BlockScales, weights: &[f32], importance: &[f32]) -> BlockScales {
        let reach = if self.0 == Micro::Nvfp4 { 3 } else { 1 };
        self.best(start.ints[0] as u8, reach, reach, weights, importance)
    }
    fn round(&self, scales: &BlockScales, _at: usize, x: &[f32], code: &mut [u8], value: &mut [f32]) {
        let scale = scales.step[0];
        for ((&x, code), value) in x.iter().zip(code).zip(value) {
            let nearest = if scale == 0.0 { 0 } else { self.0.code(x / scale) as u8 };
            // One zero is enough.
            *code = if self.0.level(nearest) == 0.0 { 0 } else { nearest };
            *value = self.0.level(*code) * scale;
        }
    }

    fn descend(&self, scales: &mut BlockScales, codes: &[u8], gradient: &[f64], gram: Gram<'_>) -> bool {
        let len = codes.len();
        let (mut along, mut h_along) = ([0f64; MAX_LEN], [0f64; MAX_LEN]);
        let (along, h_along) = (&mut along[..len], &mut h_along[..len]);
        along.iter_mut().zip(codes).for_each(|(a, &code)| *a = self.0.level(code) as f64);
        gram.apply(along, 0, h_along);
        let (slope, curvature) = (dot(along, gradient), dot(along, h_along));
        let scale = scales.step[0] as f64;
        // Values are exact products of level and scale, so that this is the exact change.
        let change = |byte: u8| {
            let p = self.0.scale(byte) as f64 - scale;
            2.0 * p * slope + p * p * curvature
        };
        let Some(near) = self.0.byte_near(scale - slope / curvature) else { return false };
        let candidates = near.saturating_sub(1)..=near.saturating_add(1).min(self.0.max_byte());
        let best = candidates.map(|byte| (change(byte), byte)).min_by(|a, b| a.0.total_cmp(&b.0));
        match best {
            Some((change, byte)) if change < 0.0 => {
                *scales = self.scales(byte);
                true
            }
            _ => false,
        }
    }

    fn pack(&self, scales: &BlockScales, codes: &[u8], out: &mut [u8]) {
        let (packed, byte) = out.split_at_mut(self.0.code_bytes());
        match self.0.bits() {
            8 => packed.copy_from_slice(codes),
            _ => packed.iter_mut().zip(codes.as_chunks::<2>().0).for_each(|(out, pair)| *out = (pair[0] & 15) | pair[1] << 4),
        }
        byte[0] = scales.ints[0] as u8;
    }
    fn unpack(&self, bytes: &[u8], codes: &mut [u8]) -> BlockScales {
        let (packed, byte) = bytes.split_at(self.0.code_bytes());
        match self.0.bits() {
            8 => codes.copy_from_slice(packed),
            _ => codes.as_chunks_mut::<2>().0.iter_mut().zip(packed).for_each(|(pair, byte)| *pair = [byte & 15, byte >> 4]),
        }
        self.scales(byte[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Portable;

    const ALL: [Group; 3] = [Group(Micro::Mxfp4), Group(Micro::Mxfp8), Group(Micro::Nvfp4)];

    fn bell(n: usize) -> Vec<f32> {
        (0..n).map(|i| (0..6).map(|k| ((i * 6 + k) as f32 * 12.9898).sin() * 43758.547 % 1.0).sum::<f32>() * 0.01).collect()
    }

    #[test]
    fn the_weights_own_type_is_found() {
        for float in [Float::F32, Float::F16, Float::BF16] {
            let mut row: Vec<f32> = bell(64).iter().map(|&x| float.round(x)).collect();
            row.extend([0.0, -0.0, float.round(3e-6), 60000.0f32.min(float.round(60000.0))]);
            assert_eq!(storage_type(&row), float);
        }
        assert!(!are_halves(&[70000.0]) && !are_halves(&[1e-9]) && !are_halves(&[f32::NAN]) && are_halves(&[5.9604645e-8]));
    }

    #[test]
    fn shortening_is_rounding_to_the_type() {
        for x in bell(1000).into_iter().map(|x| x * 100.0) {
            assert_eq!(shorten::<16>(x), Float::BF16.round(x));
            if x.abs() > 1e-4 {
                assert_eq!(shorten::<13>(x), Float::F16.round(x));
            }
        }
    }

    #[test]
    fn the_type_decides_the_scale_next_to_a_power_of_two() {
        // 6.02 / 6 is 1.0033: in BF16 it is 1.
        let byte = |float| Micro::Mxfp4.byte_for(6.02, float);
        assert_eq!((byte(Float::BF16), byte(Float::F16), byte(Float::F32)), (127, 128, 128));
    }

    #[test]
    fn wide_registers_give_the_same_bits() {
        let (x, w) = (bell(32), bell(32).iter().map(|w| w.abs()).collect::<Vec<_>>());
        for Group(format) in ALL {
            for float in [Float::F32, Float::F16, Float::BF16] {
                let (mut a, mut b) = ([0u8; 33], [1u8; 33]);
                let bytes = 32 / format.group() * (format.code_bytes() + 1);
                dispatch(Encode { format, float, x: &x, out: &mut a[..bytes] });
                Encode { format, float, x: &x, out: &mut b[..bytes] }.run::<Portable<1>>();
                assert_eq!(a[..bytes], b[..bytes]);
                let (mut x, mut y) = ([0f32; 32], [1f32; 32]);
                decode(format, &a[..bytes], &mut x);
                portable::decode(format, &a[..bytes], &mut y);
                assert_eq!(x, y);
            }
        }
        for scale in [0.003, 2f32.powi(-9), 0.01] {
            assert_eq!(error_e2m1(&x, &w, scale).to_bits(), portable::error_e2m1(&x, &w, scale).to_bits());
            assert_eq!(error_e4m3(&x, &w, scale).to_bits(), portable::error_e4m3(&x, &w, scale).to_bits());
        }
    }

    #[test]
    fn a_refit_mends_a_scale_that_is_twice_too_large() {
        for group in ALL {
            let len = group.0.group();
            let x = bell(len);
            let right = group.fit(&x, &[1.0; 32][..len]);
            let (mut codes, mut values) = ([0; 32], [0.0; 32]);
            group.round(&right, 0, &x, &mut codes[..len], &mut values[..len]);
            let byte = group.0.byte_near(right.step[0] as f64 * 2.0).unwrap();
            let mut scales = group.scales(byte);
            assert!(group.refit(&mut scales, &codes[..len], &x, Gram::Diagonal(&[1.0; 32][..len])));
            assert!((scales.step[0] / right.step[0] - 1.0).abs() < 0.15, "{}", group.id());
        }
    }

    #[test]
    fn logarithms_are_those_of_f32() {
        for k in -126..128 {
            let power = 2f32.powi(k);
            for places in [0, 1, 2, 3, 20, 127, 128, 129, 70_000, 0x7f_ffff] {
                let x = f32::from_bits(power.to_bits() + places);
                assert_eq!(log2_up(x), ((x as f64).log2() as f32).ceil() as i32, "2^{k} and {places} places");
            }
        }
        assert_eq!((log2_up(1e-45), log2_up(f32::from_bits(2f32.powi(100).to_bits() + 1))), (-149, 100));
    }

    #[test]
    fn groups_too_small_for_their_format_stay_small() {
        for group in ALL {
            let x = vec![-1e-41; group.0.group()];
            let mut bytes = vec![0xaa; group.block_bytes()];
            group.encode(&x, None, &mut bytes);
            let mut values = vec![1.0; x.len()];
            group.decode(&bytes, &mut values);
            assert!(values.iter().all(|v| v.abs() < 1e-37), "{}: {values:?}", group.id());
        }
    }
}
