//! What the K-quants share: super-blocks of 256 weights, in sub-blocks whose steps (and minima) are small integers times the
//! super-block's f16 scale (and minimum). The value of a code is
//!
//! ```text
//! (d · scale[s]) · (code − ZERO) − dmin · min[s]
//! ```

use super::fit;
use super::side_by_side::{Group, SideBySide, encode_rows};
use super::super_fit;
use super::super_refit;
use crate::codec::{BlockScales, Codec, CodecId, Gram, Grid};
use crate::simd::{IntLanes, Lanes, MAX_LANES, nearest};
use std::marker::PhantomData;

/// Weights per super-block.
pub(super) const LEN: usize = 256;
/// Integers per super-block: scales of all sub-blocks, then minima of all sub-blocks if the format has them.
pub(super) const INTS: usize = 32;

/// A super-block taken apart.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Block {
    /// Super-block scale, exact in f16.
    pub d: f32,
    /// Super-block minimum, exact in f16; 0 if the format has none.
    pub dmin: f32,
    /// Integer scales, then integer minima.
    pub ints: [i16; INTS],
    /// One code per weight.
    pub codes: [u8; LEN],
}

/// What one K-quant adds: shape, bytes, reference encoder.
pub(super) trait Layout: Send + Sync + 'static {
    const ID: CodecId;
    /// Bytes per super-block.
    const BYTES: usize;
    /// Weights per sub-block.
    const SUB: usize;
    /// The code whose value is −dmin · min.
    const ZERO: u8;
    /// Largest code.
    const MAX: u8;
    /// Smallest and largest integer scale.
    const SCALES: (i16, i16);
    /// Largest integer minimum; 0 if the format has no minima.
    const MAX_MIN: i16;

    /// Packs a super-block into its bytes.
    fn write(block: &Block, out: &mut [u8]);
    /// The inverse of [`Layout::write`].
    fn read(bytes: &[u8]) -> Block;
    /// ggml's encoder, for as many super-blocks as there are in the group; must be `#[inline(always)]`. Codes of sub-blocks whose
    /// step is not 0 need not be set: [`requantize`] does.
    fn reference<F: Lanes>(group: &Group<'_>, blocks: &mut [Block]);
}

/// ggml's last step: with the scales as they are stored, the code nearest to each weight. Sub-blocks with a step of 0 keep the
/// codes they have.
#[inline(always)]
fn requantize<F: Lanes, L: Layout>(block: &mut Block, x: &[f32]) {
    let scales = Scales::<L>::of(block);
    let zero = F::Int::splat(i32::from(L::ZERO));
    let (least, most) = (F::Int::splat(0) - zero, F::Int::splat(i32::from(L::MAX)) - zero);
    for s in 0..Scales::<L>::SUBS {
        let (step, min) = (scales.step(s), scales.min(s));
        if step == 0.0 {
            continue;
        }
        let (step, min) = (F::splat(step), F::splat(min));
        let codes = block.codes[s * L::SUB..][..L::SUB].chunks_exact_mut(F::N);
        for (codes, x) in codes.zip(x[s * L::SUB..].chunks_exact(F::N)) {
            let level = nearest((F::load(x) + min) / step).max(least).min(most);
            F::Int::store_bytes(&[level + zero], codes);
        }
    }
}

/// The codec of layout `L`.
pub(super) struct KQuant<L>(PhantomData<L>);

impl<L> KQuant<L> {
    pub(super) const fn new() -> Self {
        KQuant(PhantomData)
    }
}

impl<L: Layout> SideBySide for KQuant<L> {
    fn len(&self) -> usize {
        LEN
    }
    fn bytes(&self) -> usize {
        L::BYTES
    }
    const CHAINS: bool = Scales::<L>::MINS;
    #[inline(always)]
    fn encode<F: Lanes>(&self, group: &Group<'_>, out: &mut [u8]) {
        let mut blocks = [const { Block { d: 0.0, dmin: 0.0, ints: [0; INTS], codes: [0; LEN] } }; MAX_LANES];
        let blocks = &mut blocks[..group.used()];
        L::reference::<F>(group, blocks);
        for (lane, (block, out)) in blocks.iter_mut().zip(out.chunks_exact_mut(L::BYTES)).enumerate() {
            requantize::<F, L>(block, group.block(lane));
            L::write(block, out);
        }
    }
}

impl<L: Layout> Codec for KQuant<L> {
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
        encode_rows(self, row, row.len(), importance, out);
    }
    fn encode_rows(&self, rows: &[f32], row_len: usize, importance: Option<&[f32]>, out: &mut [u8]) {
        encode_rows(self, rows, row_len, importance, out);
    }
    fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len() / L::BYTES * LEN, out.len(), "output length");
        for (bytes, out) in bytes.chunks_exact(L::BYTES).zip(out.chunks_exact_mut(LEN)) {
            let block = L::read(bytes);
            let scales = Scales::<L>::of(&block);
            for (s, (out, codes)) in out.chunks_exact_mut(L::SUB).zip(block.codes.chunks_exact(L::SUB)).enumerate() {
                let (step, min) = (scales.step(s), scales.min(s));
                for (value, &code) in out.iter_mut().zip(codes) {
                    *value = step * (code as i32 - L::ZERO as i32) as f32 - min;
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
    /// Super-block minimum, exact in f16.
    pub dmin: f32,
    /// Integer scales, then integer minima.
    pub ints: [i16; INTS],
    layout: PhantomData<L>,
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
    /// Whether sub-blocks have minima.
    pub const MINS: bool = L::MAX_MIN > 0;

    pub fn new(d: f32, dmin: f32, ints: [i16; INTS]) -> Self {
        Scales { d, dmin, ints, layout: PhantomData }
    }
    pub fn of(block: &Block) -> Self {
        Self::new(block.d, block.dmin, block.ints)
    }
    /// The step of sub-block `s`.
    pub fn step(&self, s: usize) -> f32 {
        self.d * self.ints[s] as f32
    }
    /// What sub-block `s` subtracts.
    pub fn min(&self, s: usize) -> f32 {
        if Self::MINS { self.dmin * self.ints[Self::SUBS + s] as f32 } else { 0.0 }
    }
    /// Integer scale and minimum of sub-block `s`.
    pub fn get(&self, s: usize) -> (i16, i16) {
        (self.ints[s], if Self::MINS { self.ints[Self::SUBS + s] } else { 0 })
    }
    /// Sets them.
    pub fn set(&mut self, s: usize, (scale, min): (i16, i16)) {
        self.ints[s] = scale;
        if Self::MINS {
            self.ints[Self::SUBS + s] = min;
        }
    }

    fn from_block_scales(scales: &BlockScales) -> Self {
        let mut ints = [0; INTS];
        for (to, from) in ints.iter_mut().zip(&scales.ints) {
            *to = *from;
        }
        Self::new(scales.stored[0], scales.stored[1], ints)
    }
    fn to_block_scales(self) -> BlockScales {
        let step: Vec<f32> = (0..Self::SUBS).map(|s| self.step(s)).collect();
        // One of the two terms is zero in every format, so that the sum is exact.
        let offset = (0..Self::SUBS).map(|s| -(L::ZERO as f32) * step[s] - self.min(s)).collect();
        let ints = self.ints[..if Self::MINS { 2 * Self::SUBS } else { Self::SUBS }].to_vec();
        BlockScales { sub_len: L::SUB, step, offset, stored: [self.d, self.dmin], ints }
    }
}

impl<L: Layout> Grid for KQuant<L> {
    fn block_len(&self) -> usize {
        LEN
    }
    fn max_code(&self) -> u8 {
        L::MAX
    }
    fn fit(&self, weights: &[f32], importance: &[f32]) -> BlockScales {
        super_fit::fit::<L>(weights, importance).to_block_scales()
    }
    fn fit_near(&self, start: &BlockScales, weights: &[f32], importance: &[f32]) -> BlockScales {
        super_fit::fit_near::<L>(Scales::from_block_scales(start), weights, importance).to_block_scales()
    }
    fn round(&self, scales: &BlockScales, at: usize, x: &[f32], code: &mut [u8], value: &mut [f32]) {
        for (i, &x) in x.iter().enumerate() {
            let s = (at + i) / L::SUB;
            fit::round(scales.step[s], scales.offset[s], L::MAX, &[x], &mut code[i..=i], &mut value[i..=i]);
        }
    }
    fn descend(&self, scales: &mut BlockScales, codes: &[u8], gradient: &[f64], gram: Gram<'_>) -> bool {
        let start = Scales::<L>::from_block_scales(scales);
        match super_refit::refit(start, codes, gradient, gram) {
            Some(better) => {
                *scales = better.to_block_scales();
                true
            }
            None => false,
        }
    }
    fn pack(&self, scales: &BlockScales, codes: &[u8], out: &mut [u8]) {
        let Scales { d, dmin, ints, .. } = Scales::<L>::from_block_scales(scales);
        let mut block = Block { d, dmin, ints, codes: [0; LEN] };
        block.codes.copy_from_slice(codes);
        L::write(&block, out);
    }
    fn unpack(&self, bytes: &[u8], codes: &mut [u8]) -> BlockScales {
        let block = L::read(bytes);
        codes.copy_from_slice(&block.codes);
        Scales::<L>::of(&block).to_block_scales()
    }
}

#[cfg(test)]
mod tests {
    use super::super::side_by_side::tests::assert_twins_agree;
    use super::super::{q2_k::Q2K, q3_k::Q3K, q4_k::Q4K, q5_k::Q5K, q6_k::Q6K};
    use super::*;

    fn compare(rows: usize, seed: u64) {
        assert_twins_agree(&KQuant::<Q2K>::new(), rows, 3 * LEN, seed);
        assert_twins_agree(&KQuant::<Q3K>::new(), rows, 3 * LEN, seed);
        assert_twins_agree(&KQuant::<Q4K>::new(), rows, 3 * LEN, seed);
        assert_twins_agree(&KQuant::<Q5K>::new(), rows, 3 * LEN, seed);
        assert_twins_agree(&KQuant::<Q6K>::new(), rows, 3 * LEN, seed);
    }

    #[test]
    fn all_lanes_encode_alike() {
        compare(50, 1);
    }
}
