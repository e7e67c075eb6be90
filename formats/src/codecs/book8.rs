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

use super::book8_fit;
use super::codebook8::{Codebook, WIDTH};
use super::float::{self, saturate};
use crate::codec::{BlockScales, Codec, CodecId, Float, Gram, Grid};
use crate::simd::{Kernel, Lanes, Portable, dispatch};
use std::marker::PhantomData;

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

/// What one format adds: shape, bytes, codebook, reference encoder.
pub(super) trait Layout: Send + Sync + 'static {
    const ID: CodecId;
    /// Bytes per super-block.
    const BYTES: usize;
    /// Weights per sub-block.
    const SUB: usize;
    const MARKS: Marks;

    /// The points.
    fn book() -> &'static Codebook;
    /// ggml's encoder for one super-block; must be `#[inline(always)]`.
    fn reference<F: Lanes>(x: &[f32], importance: Option<&[f32]>) -> Block;
    /// Packs a super-block into its bytes.
    fn write(block: &Block, out: &mut [u8]);
    /// The inverse of [`Layout::write`].
    fn read(bytes: &[u8]) -> Block;
}

/// The value of each code, as a multiple of the step.
pub(super) const fn relative(marks: Marks) -> [f32; 2 * LEVELS as usize] {
    match marks {
        Marks::Signs | Marks::EvenSigns => [8.0, 25.0, 43.0, -8.0, -25.0, -43.0],
        Marks::Shift | Marks::SharedShift => [-1.0 + SHIFT, SHIFT, 1.0 + SHIFT, -1.0 - SHIFT, -SHIFT, 1.0 - SHIFT],
    }
}

/// Largest integer scale.
pub(super) const fn max_scale(marks: Marks) -> u8 {
    match marks {
        Marks::Signs | Marks::EvenSigns => 15,
        Marks::Shift | Marks::SharedShift => 7,
    }
}

/// The step for an integer scale, with the roundings of ggml's decoder.
pub(super) fn step(marks: Marks, d: f32, scale: u8) -> f32 {
    match marks {
        Marks::Signs | Marks::EvenSigns => d * (0.5 + f32::from(scale)) * 0.25,
        Marks::Shift | Marks::SharedShift => d * f32::from(2 * scale + 1),
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

/// Rows to encode, and where to.
struct Encode<'a, L> {
    rows: &'a [f32],
    row_len: usize,
    importance: Option<&'a [f32]>,
    out: &'a mut [u8],
    layout: PhantomData<L>,
}

impl<L: Layout> Kernel for Encode<'_, L> {
    type Output = ();

    #[inline(always)]
    fn run<F: Lanes>(self) {
        for (b, (x, out)) in self.rows.chunks_exact(LEN).zip(self.out.chunks_exact_mut(L::BYTES)).enumerate() {
            let importance = self.importance.map(|q| &q[b * LEN % self.row_len..][..LEN]);
            L::write(&L::reference::<F>(x, importance), out);
        }
    }
}

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
        dispatch(Encode { rows, row_len, importance, out, layout: PhantomData::<L> });
    }
    fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len() / L::BYTES * LEN, out.len(), "output length");
        let book = L::book();
        for (bytes, out) in bytes.chunks_exact(L::BYTES).zip(out.chunks_exact_mut(LEN)) {
            let block = L::read(bytes);
            let groups = block.points.iter().zip(&block.marks);
            for (g, ((&point, &marks), out)) in groups.zip(out.chunks_exact_mut(WIDTH)).enumerate() {
                let step = step(L::MARKS, block.d, block.scales[g * WIDTH / L::SUB]);
                let values = book.values(point);
                if matches!(L::MARKS, Marks::Shift | Marks::SharedShift) {
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
pub(super) struct Scales<L> {
    /// Super-block scale, exact in f16.
    pub d: f32,
    /// Integer scales of the sub-blocks.
    pub ints: [u8; SCALES],
    /// Whether each sub-block is shifted down, where that is theirs to say.
    pub down: [bool; SCALES],
    pub layout: PhantomData<L>,
}

impl<L> Clone for Scales<L> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<L> Copy for Scales<L> {}

impl<L: Layout> Scales<L> {
    /// Sub-blocks per super-block.
    pub const SUBS: usize = LEN / L::SUB;

    /// Scales of a block, its own rounded to what is stored.
    pub fn of(block: &Block) -> Self {
        let down = std::array::from_fn(|s| {
            L::MARKS == Marks::SharedShift && s < Self::SUBS && block.marks[s * L::SUB / WIDTH] != 0
        });
        Scales { d: saturate(Float::F16, block.d), ints: block.scales, down, layout: PhantomData }
    }
    /// The step of sub-block `s`.
    pub fn step(&self, s: usize) -> f32 {
        step(L::MARKS, self.d, self.ints[s])
    }
    pub fn from_block_scales(scales: &BlockScales) -> Self {
        let mut own = Scales { d: scales.stored[0], ints: [0; SCALES], down: [false; SCALES], layout: PhantomData };
        for s in 0..Self::SUBS {
            own.ints[s] = scales.ints[s] as u8;
            own.down[s] = L::MARKS == Marks::SharedShift && scales.offset[s] < 0.0;
        }
        own
    }
    /// `offset` is the shift, where it is the sub-block's.
    pub fn to_block_scales(self) -> BlockScales {
        let shift = |down: bool| if down { -SHIFT } else { SHIFT };
        let shared = L::MARKS == Marks::SharedShift;
        BlockScales {
            sub_len: L::SUB,
            step: (0..Self::SUBS).map(|s| self.step(s)).collect(),
            offset: (0..Self::SUBS).map(|s| if shared { shift(self.down[s]) } else { 0.0 }).collect(),
            stored: [self.d, 0.0],
            ints: self.ints[..Self::SUBS].iter().map(|&i| i16::from(i)).collect(),
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
        scales.step[at / L::SUB] * relative(L::MARKS)[code as usize]
    }
    fn fit(&self, weights: &[f32], importance: &[f32]) -> BlockScales {
        dispatch(book8_fit::Fit::<L>::new(weights, importance, None)).to_block_scales()
    }
    fn fit_near(&self, start: &BlockScales, weights: &[f32], importance: &[f32]) -> BlockScales {
        let start = Scales::from_block_scales(start);
        dispatch(book8_fit::Fit::<L>::new(weights, importance, Some(start))).to_block_scales()
    }
    fn round(&self, scales: &BlockScales, at: usize, x: &[f32], code: &mut [u8], value: &mut [f32]) {
        let groups = x.chunks_exact(WIDTH).zip(code.chunks_exact_mut(WIDTH)).zip(value.chunks_exact_mut(WIDTH));
        for (g, ((x, code), value)) in groups.enumerate() {
            let s = (at + WIDTH * g) / L::SUB;
            let step = scales.step[s];
            let (levels, marks) = dispatch(book8_fit::Round::<L>::new(x, step, scales.offset[s] < 0.0));
            for i in 0..WIDTH {
                code[i] = (levels >> (2 * i) & 3) as u8 + LEVELS * (marks >> i & 1);
                value[i] = step * relative(L::MARKS)[code[i] as usize];
            }
        }
    }
    fn descend(&self, scales: &mut BlockScales, codes: &[u8], gradient: &[f64], gram: Gram<'_>) -> bool {
        match super::book8_refit::refit(Scales::<L>::from_block_scales(scales), codes, gradient, gram) {
            Some(better) => {
                *scales = better.to_block_scales();
                true
            }
            None => false,
        }
    }
    /// Codes as [`Grid::round`] gives them. Levels that are not in the codebook become the nearest that are.
    fn pack(&self, scales: &BlockScales, codes: &[u8], out: &mut [u8]) {
        let scales = Scales::<L>::from_block_scales(scales);
        let mut block = Block { d: scales.d, scales: scales.ints, ..Block::ZERO };
        for (g, codes) in codes.chunks_exact(WIDTH).enumerate() {
            let levels = codes.iter().rev().fold(0, |levels, c| levels << 2 | u16::from(c % LEVELS));
            let marks = codes.iter().rev().fold(0, |marks, c| marks << 1 | c / LEVELS);
            block.marks[g] = match L::MARKS {
                Marks::Signs | Marks::EvenSigns => marks,
                Marks::Shift => DOWN * (marks & 1),
                Marks::SharedShift => DOWN * u8::from(scales.down[g * WIDTH / L::SUB]),
            };
            let book = L::book();
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
            let levels = L::book().levels(block.points[g]);
            for (i, code) in codes.iter_mut().enumerate() {
                *code = (levels >> (2 * i) & 3) as u8 + LEVELS * (block.marks[g] >> i & 1);
            }
        }
        let mut scales = Scales::<L>::of(&block);
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
