//! Formats whose values come from a table: a code names one of sixteen values, which is multiplied by its sub-block's step,
//!
//! ```text
//! (d · factor(int[s])) · VALUES[code]
//! ```
//!
//! IQ4_NL and IQ4_XS have a table of uneven values and every code anywhere. In IQ3_XXS and IQ3_S a code is a level (three
//! bits) with a sign (the fourth), and the codes of neighbouring weights must together name a point of the codebook.

use super::float::saturate;
use super::tabled_fit::{self, Problem};
use crate::codec::{BlockScales, Codec, CodecId, Float, Gram, Grid};
use std::marker::PhantomData;

/// The longest block.
pub(super) const MAX_LEN: usize = 256;
/// Weights per step.
pub(super) const SUB: usize = 32;
/// The most steps per block.
pub(super) const MAX_SUBS: usize = MAX_LEN / SUB;

/// The stored scales of a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scales {
    /// The block's scale, exact in f16.
    pub d: f32,
    /// Integers of the sub-blocks.
    pub ints: [i16; MAX_SUBS],
}

/// What one format adds.
pub(super) trait Layout: Send + Sync + 'static {
    const ID: CodecId;
    /// Weights and bytes per block.
    const LEN: usize;
    const BYTES: usize;
    /// The values of the codes.
    const VALUES: [f32; 16];
    /// Consecutive weights whose codes are chosen together.
    const STEP: usize;
    /// Smallest and largest integer.
    const INTS: (i16, i16);

    /// What `d` is multiplied by for this integer.
    fn factor(int: i16) -> f32;
    /// The codes whose values are nearest to `x`, [`Layout::STEP`] of them.
    fn nearest(x: &[f32], codes: &mut [u8]);
    /// The values, before scaling, of the codes that a sub-block's weights are rounded to.
    fn entries(step: f32, x: &[f32], entries: &mut [f32]) {
        let mut codes = [0u8; MAX_LEN];
        let groups = x.chunks_exact(Self::STEP).zip(codes.chunks_exact_mut(Self::STEP)).zip(entries.chunks_exact_mut(Self::STEP));
        for ((x, codes), entries) in groups {
            tabled_fit::nearest::<Self>(step, x, codes, entries);
            entries.iter_mut().zip(codes).for_each(|(t, &mut code)| *t = Self::VALUES[code as usize]);
        }
    }
    /// Packs a block.
    fn write(scales: &Scales, codes: &[u8], out: &mut [u8]);
    /// The inverse of [`Layout::write`].
    fn read(bytes: &[u8], codes: &mut [u8]) -> Scales;
    /// ggml's encoder, for rows of `row_len` weights.
    fn encode(rows: &[f32], row_len: usize, importance: Option<&[f32]>, out: &mut [u8]);
}

/// Sub-blocks of a block.
pub(super) const fn subs<L: Layout>() -> usize {
    L::LEN / SUB
}

impl Scales {
    /// The step of sub-block `s`.
    pub fn step<L: Layout>(&self, s: usize) -> f32 {
        self.d * L::factor(self.ints[s])
    }
    /// `d` rounded to what can be stored.
    pub fn set_d(&mut self, d: f64) {
        self.d = saturate(Float::F16, d as f32);
    }

    fn of(scales: &BlockScales) -> Self {
        let mut ints = [0; MAX_SUBS];
        ints[..scales.ints.len()].copy_from_slice(&scales.ints);
        Scales { d: scales.stored[0], ints }
    }
    fn to_block_scales<L: Layout>(self) -> BlockScales {
        BlockScales {
            sub_len: SUB,
            step: (0..subs::<L>()).map(|s| self.step::<L>(s)).collect(),
            offset: vec![0.0; subs::<L>()],
            stored: [self.d, 0.0],
            ints: if L::INTS.0 < L::INTS.1 { self.ints[..subs::<L>()].to_vec() } else { Vec::new() },
        }
    }
}

/// The codec of layout `L`.
pub(super) struct Tabled<L>(PhantomData<L>);

impl<L> Tabled<L> {
    pub(super) const fn new() -> Self {
        Tabled(PhantomData)
    }
}

impl<L: Layout> Codec for Tabled<L> {
    fn id(&self) -> CodecId {
        L::ID
    }
    fn block_len(&self) -> usize {
        L::LEN
    }
    fn block_bytes(&self) -> usize {
        L::BYTES
    }
    fn encode(&self, row: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
        self.encode_rows(row, row.len(), importance, out);
    }
    fn encode_rows(&self, rows: &[f32], row_len: usize, importance: Option<&[f32]>, out: &mut [u8]) {
        assert!(row_len.is_multiple_of(L::LEN) && rows.len().is_multiple_of(row_len.max(1)), "whole blocks and rows");
        assert_eq!(rows.len() / L::LEN * L::BYTES, out.len(), "output length");
        L::encode(rows, row_len, importance, out);
    }
    fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len() / L::BYTES * L::LEN, out.len(), "output length");
        let mut codes = [0u8; MAX_LEN];
        for (bytes, out) in bytes.chunks_exact(L::BYTES).zip(out.chunks_exact_mut(L::LEN)) {
            let scales = L::read(bytes, &mut codes);
            for (s, (out, codes)) in out.chunks_exact_mut(SUB).zip(codes.chunks_exact(SUB)).enumerate() {
                let step = scales.step::<L>(s);
                for (value, &code) in out.iter_mut().zip(codes) {
                    *value = step * L::VALUES[code as usize & 15];
                }
            }
        }
    }
    fn grid(&self) -> Option<&dyn Grid> {
        Some(self)
    }
}

impl<L: Layout> Grid for Tabled<L> {
    fn block_len(&self) -> usize {
        L::LEN
    }
    fn max_code(&self) -> u8 {
        15
    }
    fn step(&self) -> usize {
        L::STEP
    }
    fn is_linear(&self) -> bool {
        false
    }
    fn value(&self, scales: &BlockScales, at: usize, code: u8) -> f32 {
        scales.step[at / SUB] * L::VALUES[code as usize & 15]
    }
    fn fit(&self, weights: &[f32], importance: &[f32]) -> BlockScales {
        let mut bytes = [0u8; MAX_LEN];
        let bytes = &mut bytes[..L::BYTES];
        L::encode(weights, L::LEN, Some(importance), bytes);
        let reference = L::read(bytes, &mut [0; MAX_LEN]);
        Problem::<L>::new(weights, importance).fit(reference).to_block_scales::<L>()
    }
    fn fit_near(&self, start: &BlockScales, weights: &[f32], importance: &[f32]) -> BlockScales {
        Problem::<L>::new(weights, importance).fit_near(Scales::of(start)).to_block_scales::<L>()
    }
    fn round(&self, scales: &BlockScales, at: usize, x: &[f32], code: &mut [u8], value: &mut [f32]) {
        let groups = x.chunks_exact(L::STEP).zip(code.chunks_exact_mut(L::STEP)).zip(value.chunks_exact_mut(L::STEP));
        for (g, ((x, code), value)) in groups.enumerate() {
            let step = scales.step[(at + g * L::STEP) / SUB];
            tabled_fit::round::<L>(step, x, code, value);
        }
    }
    fn descend(&self, scales: &mut BlockScales, codes: &[u8], gradient: &[f64], gram: Gram<'_>) -> bool {
        let better = tabled_fit::refit::<L>(Scales::of(scales), codes, gradient, gram);
        if let Some(better) = better {
            *scales = better.to_block_scales::<L>();
        }
        better.is_some()
    }
    fn pack(&self, scales: &BlockScales, codes: &[u8], out: &mut [u8]) {
        L::write(&Scales::of(scales), codes, out);
    }
    fn unpack(&self, bytes: &[u8], codes: &mut [u8]) -> BlockScales {
        let mut all = [0; MAX_LEN];
        let scales = L::read(bytes, &mut all);
        codes.copy_from_slice(&all[..L::LEN]);
        scales.to_block_scales::<L>()
    }
}
