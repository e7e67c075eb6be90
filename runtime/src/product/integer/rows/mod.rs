//! Products of single rows of weights with single rows of activations, straight from the blocks: for one or two rows of activations,
//! where a panel would cost more than it saves. For the commonest formats only; the others go through panels.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod scalar;

use super::activations::Activations;
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
}

/// Whether [`dot`] has a loop for this format.
pub(crate) fn has(codec: CodecId) -> bool {
    matches!(codec, CodecId::Q4_0 | CodecId::Q8_0 | CodecId::Q4K | CodecId::Q5K | CodecId::Q6K)
}

/// The product of a row of blocks with row `row` of the activations. The format must be one that [`has`] has, and the blocks a whole row
/// of as many columns.
pub(crate) fn dot(processor: Processor, codec: CodecId, blocks: &[u8], x: &Activations, row: usize) -> f32 {
    let (columns, per_row, sums) = (x.columns, x.columns / x.block, x.columns / super::activations::SUM);
    let x = Row {
        codes: &x.codes[row * columns..][..columns],
        scales: &x.scales[row * per_row..][..per_row],
        sums: &x.sums[row * sums..][..sums],
    };
    let c = codec.codec();
    assert_eq!(blocks.len() / c.block_bytes() * c.block_len(), columns, "columns of a row");
    match processor {
        #[cfg(target_arch = "x86_64")]
        Processor::Avx2 | Processor::Avx512 => avx2::dot(codec, blocks, x),
        _ => scalar::dot(codec, blocks, x),
    }
}
