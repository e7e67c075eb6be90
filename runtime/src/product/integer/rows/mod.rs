//! Products of single rows of weights with few rows of activations, straight from the blocks, where a panel would cost more than it
//! saves. For the commonest formats only; the others go through panels.

mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::Form;
use super::activations::{Activations, SUM};
use crate::product::processor::Processor;
use bitsmith_formats::CodecId;

/// A row of 8-bit activations.
#[derive(Debug, Clone, Copy)]
struct Row<'a> {
    codes: &'a [i8],
    /// One per 32 or 256 columns.
    scales: &'a [f32],
    /// One per 16 columns.
    sums: &'a [i16],
    /// Eight per block of 32, what sums of products start with: less the code that means zero for each four activations.
    starts: &'a [[i32; 8]],
}

/// Most rows of activations for which this is worth it.
pub(crate) const FEW: usize = 4;

/// Whether there is a loop for this format.
pub(crate) fn has(codec: CodecId) -> bool {
    matches!(codec, CodecId::Q4_0 | CodecId::Q5_0 | CodecId::Q8_0 | CodecId::Q4K | CodecId::Q5K | CodecId::Q6K)
}

/// Rows of activations for products with rows of weights.
#[derive(Debug)]
pub(crate) struct Rows<'a> {
    codec: CodecId,
    x: &'a Activations,
    /// As [`Row::starts`], row by row.
    starts: Vec<[i32; 8]>,
    /// How many of them a row has, and how many scales; known beforehand, as there are many rows of weights.
    starts_per_row: usize,
    scales_per_row: usize,
    /// Bytes of a row of weights.
    row_bytes: usize,
}

impl<'a> Rows<'a> {
    /// For weights of a format that [`has`] has, at most [`FEW`] rows.
    pub fn new(form: &Form, x: &'a Activations) -> Self {
        let zero = i32::from(form.zero());
        let four = |x: &[i8; 4]| -zero * x.iter().map(|x| i32::from(*x)).sum::<i32>();
        let starts = match form.block {
            32 => x.codes.as_chunks::<4>().0.as_chunks::<8>().0.iter().map(|x| x.each_ref().map(four)).collect(),
            _ => Vec::new(),
        };
        let (starts_per_row, scales_per_row) = (starts.len() / x.rows.max(1), x.columns / x.block);
        let codec = form.codec.codec();
        let row_bytes = x.columns / codec.block_len() * codec.block_bytes();
        Rows { codec: form.codec, x, starts, starts_per_row, scales_per_row, row_bytes }
    }

    /// The products of a row of weights with all of them; those beyond are 0.
    pub fn dot(&self, processor: Processor, blocks: &[u8]) -> [f32; FEW] {
        assert_eq!(blocks.len(), self.row_bytes, "bytes of a row");
        let mut products = [0f32; FEW];
        match self.x.rows {
            1 => products[..1].copy_from_slice(&self.some::<1>(processor, blocks)),
            2 => products[..2].copy_from_slice(&self.some::<2>(processor, blocks)),
            3 => products[..3].copy_from_slice(&self.some::<3>(processor, blocks)),
            _ => products = self.some(processor, blocks),
        }
        products
    }

    fn some<const N: usize>(&self, processor: Processor, blocks: &[u8]) -> [f32; N] {
        let rows = std::array::from_fn(|i| self.row(i));
        match processor {
            // SAFETY: the processor has these instructions wherever it is said to be `Processor::Avx512`.
            #[cfg(target_arch = "x86_64")]
            Processor::Avx512 => unsafe { x86::vnni::dot(self.codec, blocks, rows) },
            // SAFETY: likewise.
            #[cfg(target_arch = "x86_64")]
            Processor::Avx2 => unsafe { x86::avx2::dot(self.codec, blocks, rows) },
            _ => rows.map(|row| scalar::dot(self.codec, blocks, row)),
        }
    }

    #[inline]
    fn row(&self, index: usize) -> Row<'_> {
        fn part<T>(all: &[T], index: usize, len: usize) -> &[T] {
            &all[index * len..][..len]
        }
        let x = self.x;
        Row {
            codes: part(&x.codes, index, x.columns),
            scales: part(&x.scales, index, self.scales_per_row),
            sums: part(&x.sums, index, x.columns / SUM),
            starts: part(&self.starts, index, self.starts_per_row),
        }
    }
}
