//! What IQ3_XXS and IQ3_S share: super-blocks of 256 weights in eight sub-blocks; four weights' magnitudes are one point of a
//! codebook, signs stand apart.

use super::codebook::{self, Codebook, MAX_LEVEL, WIDTH, odd};
use super::codebook_nearest::Nearest;
use super::float::saturate;
use super::search::nearest;
use super::tabled::{self, Scales};
use crate::codec::{CodecId, Float};
use std::marker::PhantomData;

/// Weights per super-block.
pub(super) const LEN: usize = 256;
/// Weights per sub-block.
pub(super) const SUB: usize = 32;
/// Sub-blocks per super-block.
pub(super) const SUBS: usize = LEN / SUB;
/// Points per sub-block.
const GROUPS: usize = SUB / WIDTH;

/// A super-block taken apart.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Block {
    /// Super-block scale, exact in f16.
    pub d: f32,
    /// Integer scales of the sub-blocks, 0 to 15.
    pub ints: [u8; SUBS],
    /// The points of the codebook.
    pub points: [u16; LEN / WIDTH],
    /// Signs, a bit per weight.
    pub signs: [u8; LEN / 8],
}

impl Block {
    const ZERO: Block = Block { d: 0.0, ints: [0; SUBS], points: [0; LEN / WIDTH], signs: [0; LEN / 8] };
}

/// What one of the formats adds.
pub(super) trait Layout: Send + Sync + 'static {
    const ID: CodecId;
    /// Bytes per super-block.
    const BYTES: usize;
    /// The values of the eight levels.
    const VALUES: [f32; 8];
    /// Whether each eight weights have an even number of minus signs.
    const EVEN: bool;
    /// ggml tries this many scales on either side of the one that puts the largest weight on the largest level.
    const TRIES: i32;
    /// Sub-blocks without a larger magnitude count as zero.
    const ALL_ZERO: f32;
    /// Whether points that the best trial found without a search are kept.
    const KEEP: bool;
    /// What ggml multiplies the super-block scale by before storing it.
    const FUDGE: f32;
    /// Whether ggml's encoder lets a sub-block of zeros take up no room, so that the points and signs of those after it come one
    /// place too early (the ninth bits of points do not), and leaves points and signs in a super-block whose scales all vanish.
    const SLIPS: bool;

    fn book() -> &'static Codebook;
    /// The codebook prepared for finding nearest points.
    fn nearest() -> &'static Nearest;
    /// What the super-block scale is multiplied by for this integer.
    fn factor(int: u8) -> f32;
    /// Packs a super-block.
    fn write(block: &Block, out: &mut [u8]);
    /// The inverse of [`Layout::write`].
    fn read(bytes: &[u8]) -> Block;
}

/// A sub-block as the search sees it.
struct Sub {
    /// Weights with their signs taken off.
    x: [f32; SUB],
    /// Weights of the squared errors, and their roots, by which neighbours are compared.
    w: [f32; SUB],
    root: [f32; SUB],
    signs: [u8; SUB / 8],
}

impl Sub {
    fn new<L: Layout>(x: &[f32], sigma2: f32, importance: Option<&[f32]>) -> Self {
        let w: [f32; SUB] = match importance {
            Some(q) => std::array::from_fn(|i| q[i] * (sigma2 + x[i] * x[i]).sqrt()),
            None => std::array::from_fn(|i| x[i] * x[i]),
        };
        let mut sub = Sub { x: [0.0; SUB], w, root: w.map(f32::sqrt), signs: [0; SUB / 8] };
        for (i, &x) in x.iter().enumerate() {
            let negative = !(x >= 0.0);
            sub.x[i] = if negative { -x } else { x };
            sub.signs[i / 8] |= (negative as u8) << (i % 8);
        }
        if L::EVEN {
            for (k, signs) in sub.signs.iter_mut().enumerate().filter(|(_, s)| s.count_ones() % 2 == 1) {
                // The sign that matters least is wrong.
                let cost = |i: usize| w[8 * k + i] * x[8 * k + i] * x[8 * k + i];
                let (mut least, mut at) = (cost(0), 0);
                for i in 1..8 {
                    if cost(i) < least {
                        (least, at) = (cost(i), i);
                    }
                }
                sub.x[8 * k + at] = -sub.x[8 * k + at];
                *signs ^= 1 << at;
            }
        }
        sub
    }

    fn max(&self) -> f32 {
        let mut max = self.x[0];
        for &x in &self.x[1..] {
            max = if max > x { max } else { x };
        }
        max
    }

    /// The level of each weight of group `k` by itself.
    fn cell(&self, k: usize, inverse: f32) -> usize {
        codebook::cell(std::array::from_fn(|i| {
            nearest(0.5 * (inverse * self.x[WIDTH * k + i] - 1.0)).clamp(0, MAX_LEVEL) as u8
        }))
    }
    /// The point for group `k`, and whether it is at the group's own cell.
    fn point(&self, book: &Codebook, k: usize, inverse: f32, scale: f32) -> (u16, bool) {
        let cell = self.cell(k, inverse);
        match book.at(cell) {
            Some(point) => (point, true),
            None => {
                let at = WIDTH * k..WIDTH * (k + 1);
                (book.nearest_neighbour(cell, scale, &self.x[at.clone()], &self.root[at]), false)
            }
        }
    }
    /// Σ w x q and Σ w q².
    fn sums(&self, book: &Codebook, points: &[u16; GROUPS]) -> (f32, f32) {
        let (mut qx, mut q2) = (0f32, 0f32);
        for (i, l) in points.iter().flat_map(|&p| book.levels(p)).enumerate() {
            let q = odd(l);
            qx += self.w[i] * self.x[i] * q;
            q2 += self.w[i] * q * q;
        }
        (qx, q2)
    }

    /// ggml's scale and points of the sub-block.
    fn search<L: Layout>(&self, max: f32) -> (f32, [u16; GROUPS]) {
        let book = L::book();
        let top = odd(MAX_LEVEL as u8);
        let (mut best, mut scale) = (0f32, max / top);
        let (mut points, mut kept) = ([0u16; GROUPS], [L::KEEP; GROUPS]);
        for step in -L::TRIES..=L::TRIES {
            let inverse = (top + step as f32 * 0.2) / max;
            let found: [(u16, bool); GROUPS] = std::array::from_fn(|k| self.point(book, k, inverse, 1.0 / inverse));
            let trial = found.map(|f| f.0);
            let (qx, q2) = self.sums(book, &trial);
            if q2 > 0.0 && qx * qx > best * q2 {
                scale = qx / q2;
                best = scale * qx;
                (points, kept) = (trial, found.map(|f| f.1));
            }
        }
        if kept.contains(&false) && scale > 0.0 {
            let inverse = 1.0 / scale;
            for (k, point) in points.iter_mut().enumerate() {
                if !(L::KEEP && kept[k]) {
                    *point = self.point(book, k, inverse, scale).0;
                }
            }
            let (qx, q2) = self.sums(book, &points);
            if q2 > 0.0 {
                scale = qx / q2;
            }
        }
        (scale, points)
    }
}

/// ggml's encoder.
pub(super) fn reference<L: Layout>(x: &[f32], importance: Option<&[f32]>) -> Block {
    let sigma2 = 2.0 * x.iter().fold(0f32, |sum, &x| sum + x * x) / LEN as f32;
    let mut block = Block::ZERO;
    let mut scales = [0f32; SUBS];
    let mut place = 0;
    for (s, scale) in scales.iter_mut().enumerate() {
        let at = s * SUB..(s + 1) * SUB;
        let sub = Sub::new::<L>(&x[at.clone()], sigma2, importance.map(|q| &q[at]));
        let max = sub.max();
        if max < L::ALL_ZERO || max == 0.0 {
            place += !L::SLIPS as usize;
            continue;
        }
        let (found, points) = sub.search::<L>(max);
        // A negative scale has its sign moved to the weights; it takes numbers at the ends of f32's range.
        let flip = if found < 0.0 { 0xff } else { 0 };
        *scale = found.abs();
        for (k, &point) in points.iter().enumerate() {
            block.points[GROUPS * place + k] |= point & 0xff;
            block.points[GROUPS * s + k] |= point & 0xff00;
        }
        for (k, signs) in sub.signs.iter().enumerate() {
            block.signs[SUB / 8 * place + k] = signs ^ flip;
        }
        place += 1;
    }
    let max = scales.iter().fold(0f32, |max, &s| if max > s { max } else { s });
    if max == 0.0 {
        return if L::SLIPS { block } else { Block::ZERO };
    }
    let d = max / 31.0;
    block.d = saturate(Float::F16, d * L::FUDGE);
    let inverse = 1.0 / d;
    block.ints = scales.map(|s| nearest(0.5 * (inverse * s - 1.0)).clamp(0, 15) as u8);
    block
}

/// The format as one whose values come from a table.
pub(super) struct Tabled<L>(PhantomData<L>);

impl<L: Layout> tabled::Layout for Tabled<L> {
    const ID: CodecId = L::ID;
    const LEN: usize = LEN;
    const BYTES: usize = L::BYTES;
    const VALUES: [f32; 16] = signed(L::VALUES);
    const STEP: usize = if L::EVEN { 8 } else { WIDTH };
    const INTS: (i16, i16) = (0, 15);

    fn factor(int: i16) -> f32 {
        L::factor(int as u8)
    }
    fn nearest(x: &[f32], codes: &mut [u8]) {
        let book = L::nearest();
        let mut magnitudes = [0f32; 8];
        for ((m, code), &x) in magnitudes.iter_mut().zip(codes.iter_mut()).zip(x) {
            *code = if x < 0.0 { MINUS } else { 0 };
            *m = x.abs();
        }
        let group = |m: &[f32; 8], g: usize| book.find(std::array::from_fn(|i| m[WIDTH * g + i]));
        let mut found = [group(&magnitudes, 0), if L::EVEN { group(&magnitudes, 1) } else { Default::default() }];
        if L::EVEN && codes.iter().filter(|&&c| c == MINUS).count() % 2 == 1 {
            // One sign must be wrong: the one that costs least.
            let mut best = (f32::INFINITY, 0, found[0]);
            for at in 0..8 {
                let mut m = magnitudes;
                m[at] = -m[at];
                let other = group(&m, at / WIDTH);
                let cost = other.1 - found[at / WIDTH].1;
                if cost < best.0 {
                    best = (cost, at, other);
                }
            }
            codes[best.1] ^= MINUS;
            found[best.1 / WIDTH] = best.2;
        }
        for (code, level) in codes.iter_mut().zip(found.iter().flat_map(|f| f.0)) {
            *code |= level;
        }
    }
    fn write(scales: &Scales, codes: &[u8], out: &mut [u8]) {
        let book = L::book();
        let mut block = Block { d: scales.d, ints: scales.ints.map(|i| i as u8), ..Block::ZERO };
        for (point, codes) in block.points.iter_mut().zip(codes.chunks_exact(WIDTH)) {
            let cell = codebook::cell(std::array::from_fn(|i| codes[i] & 7));
            // Codes that name no point are none of a grid's; the nearest one stands in.
            *point = book.at(cell).unwrap_or_else(|| book.neighbours(cell)[0]);
        }
        for (signs, codes) in block.signs.iter_mut().zip(codes.chunks_exact(8)) {
            *signs = codes.iter().rev().fold(0, |signs, code| signs << 1 | code >> 3 & 1);
        }
        L::write(&block, out);
    }
    fn read(bytes: &[u8], codes: &mut [u8]) -> Scales {
        let (book, block) = (L::book(), L::read(bytes));
        for (g, (codes, &point)) in codes.chunks_exact_mut(WIDTH).zip(&block.points).enumerate() {
            let signs = block.signs[g / 2] >> (WIDTH * (g % 2));
            for (i, (code, level)) in codes.iter_mut().zip(book.levels(point)).enumerate() {
                *code = level | (signs >> i & 1) << 3;
            }
        }
        Scales { d: block.d, ints: block.ints.map(i16::from) }
    }
    fn encode(rows: &[f32], row_len: usize, importance: Option<&[f32]>, out: &mut [u8]) {
        for (i, (x, out)) in rows.chunks_exact(LEN).zip(out.chunks_exact_mut(L::BYTES)).enumerate() {
            L::write(&reference::<L>(x, importance.map(|q| &q[i * LEN % row_len..][..LEN])), out);
        }
    }
}

/// The bit of a code that says minus.
const MINUS: u8 = 8;

/// The values of levels with plus, then with minus.
const fn signed(values: [f32; 8]) -> [f32; 16] {
    let mut signed = [0.0; 16];
    let mut i = 0;
    while i < 8 {
        signed[i] = values[i];
        signed[8 + i] = -values[i];
        i += 1;
    }
    signed
}
