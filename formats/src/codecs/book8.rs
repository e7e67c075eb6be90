//! What the formats with eight-wide codebooks share: super-blocks of 256 weights, in 32 groups of eight. A group is a point of the
//! [`Codebook`] and eight bits that mark its weights: with a sign each in the 2-bit formats; in the ternary ones all alike, for a
//! shift of the levels. A sub-block's step is an odd multiple of the super-block's scale:
//!
//! ```text
//! 2 bits:   value = (d · (0.5 + scale)) · 0.25 · ±{8, 25, 43}
//! ternary:  value = (d · (2 · scale + 1)) · ({−1, 0, 1} ± 0.125)
//! ```
//!
//! As a grid, the code of a weight is its level plus 3 if it is marked.

use super::book8_fit::{Fit, Round, Start};
use super::book8_refit;
use super::codebook8::{Codebook, WIDTH};
use super::float::{self, saturate};
use crate::codec::{BlockScales, Codec, CodecId, Float, Gram, Grid};
use crate::simd::{Portable, dispatch};
use std::marker::PhantomData;
use std::sync::LazyLock;

/// Weights per super-block.
pub(super) const LEN: usize = 256;
/// Groups per super-block.
pub(super) const GROUPS: usize = LEN / WIDTH;
/// The most sub-blocks per super-block.
pub(super) const SCALES: usize = 16;
/// By how much ternary levels are shifted.
pub(super) const SHIFT: f32 = 0.125;
/// The mark of a group that is shifted down.
pub(super) const DOWN: u8 = 0xff;
/// Levels of a coordinate.
pub(super) const LEVELS: u8 = 3;

/// A super-block taken apart.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Block {
    /// Super-block scale, as it will be rounded to f16.
    pub d: f32,
    /// Integer scales of the sub-blocks.
    pub scales: [u8; SCALES],
    /// Index of each group's point.
    pub points: [u16; GROUPS],
    /// Marks of each group's weights, the first lowest.
    pub marks: [u8; GROUPS],
}

impl Block {
    /// All bytes zero.
    pub const ZERO: Block = Block { d: 0.0, scales: [0; SCALES], points: [0; GROUPS], marks: [0; GROUPS] };
}

/// What marks mean, and which there can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marks {
    /// A negative sign, freely.
    Signs,
    /// A negative sign; an even number in each group.
    EvenSigns,
    /// Levels shifted down, each group by itself.
    Shift,
    /// Levels shifted down, all groups of a sub-block together.
    SharedShift,
}

/// What a format's blocks are made of.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    /// The points.
    pub book: &'static LazyLock<Codebook>,
    pub marks: Marks,
    /// Weights per sub-block.
    pub sub: usize,
}

/// What one format adds: shape, bytes, reference encoder.
pub(super) trait Layout: Send + Sync + 'static {
    const ID: CodecId;
    /// Bytes per super-block.
    const BYTES: usize;
    const SHAPE: Shape;

    /// ggml's encoder for consecutive super-blocks of a row.
    fn reference(x: &[f32], importance: Option<&[f32]>, blocks: &mut [Block]);
    /// Packs a super-block into its bytes.
    fn write(block: &Block, out: &mut [u8]);
    /// The inverse of [`Layout::write`].
    fn read(bytes: &[u8]) -> Block;
}

impl Shape {
    /// Sub-blocks per super-block.
    pub fn subs(&self) -> usize {
        LEN / self.sub
    }
    /// The value of each code, as a multiple of the step.
    pub const fn relative(&self) -> [f32; 2 * LEVELS as usize] {
        match self.marks {
            Marks::Signs | Marks::EvenSigns => [8.0, 25.0, 43.0, -8.0, -25.0, -43.0],
            Marks::Shift | Marks::SharedShift => [-1.0 + SHIFT, SHIFT, 1.0 + SHIFT, -1.0 - SHIFT, -SHIFT, 1.0 - SHIFT],
        }
    }
    /// Largest integer scale.
    pub const fn max_scale(&self) -> u8 {
        match self.marks {
            Marks::Signs | Marks::EvenSigns => 15,
            Marks::Shift | Marks::SharedShift => 7,
        }
    }
    /// The step for an integer scale, with the roundings of ggml's decoder.
    pub fn step(&self, d: f32, scale: u8) -> f32 {
        match self.marks {
            Marks::Signs | Marks::EvenSigns => d * (0.5 + f32::from(scale)) * 0.25,
            Marks::Shift | Marks::SharedShift => d * f32::from(2 * scale + 1),
        }
    }
}

/// For each byte of marks, the sign bits to flip.
static SIGN_BITS: [[u32; WIDTH]; 256] = {
    let mut table = [[0; WIDTH]; 256];
    let mut marks = 0;
    while marks < 256 {
        let mut i = 0;
        while i < WIDTH {
            table[marks][i] = (marks as u32 >> i & 1) << 31;
            i += 1;
        }
        marks += 1;
    }
    table
};

/// The codec of layout `L`.
pub(super) struct Book8<L>(PhantomData<L>);

impl<L> Book8<L> {
    pub(super) const fn new() -> Self {
        Book8(PhantomData)
    }
}

/// Super-blocks that are encoded at a time.
const BATCH: usize = 16;

impl<L: Layout> Codec for Book8<L> {
    fn id(&self) -> CodecId {
        L::ID
    }
    fn block_len(&self) -> usize {
        LEN
    }
    fn block_bytes(&self) -> usize {
        L::BYTES
    }
    fn encode(&self, row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
        self.encode_rows(row, row.len(), importance, out);
    }
    fn encode_rows(&self, rows: &[f32], row_len: usize, importance: Option<&[f32]>, out: &mut [u8]) {
        assert_eq!(rows.len() / LEN * L::BYTES, out.len(), "output length");
        let mut blocks = [Block::ZERO; BATCH];
        for (row, out) in rows.chunks_exact(row_len.max(1)).zip(out.chunks_exact_mut((row_len / LEN * L::BYTES).max(1))) {
            for (i, (x, out)) in row.chunks(BATCH * LEN).zip(out.chunks_mut(BATCH * L::BYTES)).enumerate() {
                let blocks = &mut blocks[..x.len() / LEN];
                L::reference(x, importance.map(|q| &q[i * BATCH * LEN..][..x.len()]), blocks);
                for (block, out) in blocks.iter().zip(out.chunks_exact_mut(L::BYTES)) {
                    L::write(block, out);
                }
            }
        }
    }
    fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len() / L::BYTES * LEN, out.len(), "output length");
        let book = &**L::SHAPE.book;
        for (bytes, out) in bytes.chunks_exact(L::BYTES).zip(out.chunks_exact_mut(LEN)) {
            let block = L::read(bytes);
            let groups = block.points.iter().zip(&block.marks);
            for (g, ((&point, &marks), out)) in groups.zip(out.chunks_exact_mut(WIDTH)).enumerate() {
                let step = L::SHAPE.step(block.d, block.scales[g * WIDTH / L::SHAPE.sub]);
                let values = book.values(point);
                if matches!(L::SHAPE.marks, Marks::Shift | Marks::SharedShift) {
                    let shift = if marks == 0 { SHIFT } else { -SHIFT };
                    for (out, value) in out.iter_mut().zip(values) {
                        *out = step * (value + shift);
                    }
                } else {
                    for ((out, value), flip) in out.iter_mut().zip(values).zip(&SIGN_BITS[marks as usize]) {
                        *out = f32::from_bits((step * value).to_bits() ^ flip);
                    }
                }
            }
        }
    }
    fn grid(&self) -> Option<&dyn Grid> {
        Some(self)
    }
}

/// The stored scales of a super-block.
#[derive(Clone, Copy)]
pub(super) struct Scales {
    pub shape: Shape,
    /// Super-block scale, exact in f16.
    pub d: f32,
    /// Integer scales of the sub-blocks.
    pub ints: [u8; SCALES],
    /// Whether each sub-block is shifted down, where that is theirs to say.
    pub down: [bool; SCALES],
}

impl Scales {
    /// Scales of a block, its own rounded to what is stored.
    pub fn of(shape: Shape, block: &Block) -> Self {
        let shared = shape.marks == Marks::SharedShift;
        let down = std::array::from_fn(|s| shared && s < shape.subs() && block.marks[s * shape.sub / WIDTH] != 0);
        Scales { shape, d: saturate(Float::F16, block.d), ints: block.scales, down }
    }
    /// The step of sub-block `s`.
    pub fn step(&self, s: usize) -> f32 {
        self.shape.step(self.d, self.ints[s])
    }
    fn from_block_scales(shape: Shape, scales: &BlockScales) -> Self {
        let mut own = Scales { shape, d: scales.stored[0], ints: [0; SCALES], down: [false; SCALES] };
        for s in 0..shape.subs() {
            own.ints[s] = scales.ints[s] as u8;
            own.down[s] = shape.marks == Marks::SharedShift && scales.offset[s] < 0.0;
        }
        own
    }
    /// `offset` is the shift, where it is the sub-block's.
    fn to_block_scales(self) -> BlockScales {
        let subs = self.shape.subs();
        let offset = |s: usize| match (self.shape.marks, self.down[s]) {
            (Marks::SharedShift, false) => SHIFT,
            (Marks::SharedShift, true) => -SHIFT,
            _ => 0.0,
        };
        BlockScales {
            sub_len: self.shape.sub,
            step: (0..subs).map(|s| self.step(s)).collect(),
            offset: (0..subs).map(offset).collect(),
            stored: [self.d, 0.0],
            ints: self.ints[..subs].iter().map(|&i| i16::from(i)).collect(),
        }
    }
}

impl<L: Layout> Grid for Book8<L> {
    fn block_len(&self) -> usize {
        LEN
    }
    fn max_code(&self) -> u8 {
        2 * LEVELS - 1
    }
    fn step(&self) -> usize {
        WIDTH
    }
    fn is_linear(&self) -> bool {
        false
    }
    fn value(&self, scales: &BlockScales, at: usize, code: u8) -> f32 {
        scales.step[at / L::SHAPE.sub] * L::SHAPE.relative()[code as usize]
    }
    fn fit(&self, weights: &[f32], importance: &[f32]) -> BlockScales {
        let mut reference = [Block::ZERO];
        L::reference(weights, Some(importance), &mut reference);
        dispatch(Fit { x: weights, importance, start: Start::Around(Scales::of(L::SHAPE, &reference[0])) }).to_block_scales()
    }
    fn fit_near(&self, start: &BlockScales, weights: &[f32], importance: &[f32]) -> BlockScales {
        let start = Start::Near(Scales::from_block_scales(L::SHAPE, start));
        dispatch(Fit { x: weights, importance, start }).to_block_scales()
    }
    fn round(&self, scales: &BlockScales, at: usize, x: &[f32], code: &mut [u8], value: &mut [f32]) {
        let groups = x.chunks_exact(WIDTH).zip(code.chunks_exact_mut(WIDTH)).zip(value.chunks_exact_mut(WIDTH));
        for (g, ((x, code), value)) in groups.enumerate() {
            let s = (at + WIDTH * g) / L::SHAPE.sub;
            let step = scales.step[s];
            let (levels, marks) = dispatch(Round { shape: L::SHAPE, x, step, down: scales.offset[s] < 0.0 });
            for i in 0..WIDTH {
                code[i] = (levels >> (2 * i) & 3) as u8 + LEVELS * (marks >> i & 1);
                value[i] = step * L::SHAPE.relative()[code[i] as usize];
            }
        }
    }
    fn descend(&self, scales: &mut BlockScales, codes: &[u8], gradient: &[f64], gram: Gram<'_>) -> bool {
        match book8_refit::refit(Scales::from_block_scales(L::SHAPE, scales), codes, gradient, gram) {
            Some(better) => {
                *scales = better.to_block_scales();
                true
            }
            None => false,
        }
    }
    /// Codes as [`Grid::round`] gives them. Levels that are not in the codebook become the nearest that are.
    fn pack(&self, scales: &BlockScales, codes: &[u8], out: &mut [u8]) {
        let scales = Scales::from_block_scales(L::SHAPE, scales);
        let mut block = Block { d: scales.d, scales: scales.ints, ..Block::ZERO };
        for (g, codes) in codes.chunks_exact(WIDTH).enumerate() {
            let levels = codes.iter().rev().fold(0, |levels, c| levels << 2 | u16::from(c % LEVELS));
            let marks = codes.iter().rev().fold(0, |marks, c| (marks << 1) | (c / LEVELS));
            block.marks[g] = match L::SHAPE.marks {
                Marks::Signs | Marks::EvenSigns => marks,
                Marks::Shift => DOWN * (marks & 1),
                Marks::SharedShift => DOWN * u8::from(scales.down[g * WIDTH / L::SHAPE.sub]),
            };
            let book = &**L::SHAPE.book;
            block.points[g] = book.index(levels).unwrap_or_else(|| {
                let distance = |i: usize| ((levels >> (i / 4 * 2) & 3) as f32 - (i % 4) as f32).powi(2);
                let (_, levels) = book.closest::<Portable<8>>(&std::array::from_fn(distance), None);
                book.index(levels).unwrap_or(0)
            });
        }
        L::write(&block, out);
    }
    fn unpack(&self, bytes: &[u8], codes: &mut [u8]) -> BlockScales {
        let block = L::read(bytes);
        for (g, codes) in codes.chunks_exact_mut(WIDTH).enumerate() {
            let levels = L::SHAPE.book.levels(block.points[g]);
            for (i, code) in codes.iter_mut().enumerate() {
                *code = (levels >> (2 * i) & 3) as u8 + LEVELS * (block.marks[g] >> i & 1);
            }
        }
        let mut scales = Scales::of(L::SHAPE, &block);
        scales.d = block.d; // Bytes that no encoder wrote may hold no number.
        scales.to_block_scales()
    }
}

/// The f16 scale at the start of a block.
pub(super) fn read_scale(bytes: &[u8]) -> f32 {
    float::read(Float::F16, bytes)
}

/// Two 4-bit integers to a byte, the first lower.
pub(super) fn write_nibbles(ints: &[u8; SCALES], out: &mut [u8]) {
    for (out, pair) in out.iter_mut().zip(ints.chunks_exact(2)) {
        *out = pair[0] | pair[1] << 4;
    }
}

/// The inverse of [`write_nibbles`].
pub(super) fn read_nibbles(bytes: &[u8]) -> [u8; SCALES] {
    std::array::from_fn(|s| bytes[s / 2] >> (4 * (s % 2)) & 15)
}

/// Seven signs, which say what the eighth is where their number is even.
pub(super) fn with_eighth(signs: u8) -> u8 {
    signs | (signs.count_ones() as u8 & 1) << 7
}
