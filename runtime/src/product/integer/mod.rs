//! Products with activations rounded to 8 bits, in integers.
//!
//! A format with an integer form ([`Form`]) has weights `step · (scale · code) − min · m`: unsigned codes, a small integer scale per
//! run of columns and an f32 step per *segment*, the columns that share one. Panels ([`panel::Panel`]) of 16 rows hold the codes
//! interleaved for multiply-add instructions; [`activations::Activations`] hold the inputs as llama.cpp rounds them. [`tile`] has the
//! inner loop over both, once per kind of processor; [`rows`] has loops without panels, for few rows of activations.

mod activations;
mod panel;
mod rows;
mod tile;
mod unpack;
mod whole;

use crate::product::processor::Processor;
#[cfg(test)]
pub(crate) use activations::Activations;
use bitsmith_formats::{CodecId, Micro};
pub(crate) use whole::product;

/// Rows of weights in a panel: one AVX-512 register of four-byte columns, or two of AVX2.
pub(crate) const PANEL_ROWS: usize = 16;

/// Panels that are multiplied together.
pub(crate) const PANELS: usize = 2;

/// Columns that a panel holds at most, unless one block has more: 16 KiB of codes or less, which stay in the first-level cache.
const PANEL_COLUMNS: usize = 512;

/// How a format's weights are integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    /// The format.
    pub codec: CodecId,
    /// Activations that share a scale: 32 (llama.cpp's Q8_0) or 256 (its Q8_K).
    pub block: usize,
    /// Columns that share an f32 step: 16, 32 or 256.
    pub segment: usize,
    /// Columns that share an integer scale: 16 or 32.
    pub group: usize,
    /// Bits of a code: sums of 16-bit products hold so many of them.
    pub bits: u32,
    /// What is subtracted.
    pub offset: Offset,
    /// Whether the processor sums products of bytes in 32 bits at once, so that no sum can overflow.
    pub wide: bool,
}

/// What is subtracted from a segment's sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offset {
    /// The code that means zero, the same in all blocks.
    Zero(i16),
    /// Integers times an f32 minimum.
    Min,
}

impl Form {
    /// The integer form of a format for rows of `row_len` weights, if it has one. Formats of floating-point codes (plain floats, FP8, NF4)
    /// have none.
    pub fn of(codec: CodecId, row_len: usize) -> Option<Form> {
        use CodecId::*;
        use Offset::*;
        let flat = |bits, offset| Form { codec, block: 32, segment: 32, group: 32, bits, offset, wide: false };
        let nested = |group, bits, offset| Form { codec, block: 256, segment: 256, group, bits, offset, wide: false };
        let per_group = |group, bits, zero| Form { segment: group, offset: Zero(zero), ..nested(group, bits, Min) };
        let form = match codec {
            Q4_0 => flat(4, Zero(8)),
            Q4_1 => flat(4, Min),
            Q5_0 => flat(5, Zero(16)),
            Q5_1 => flat(5, Min),
            Q8_0 | IQ4NL => flat(8, Zero(128)),
            // Values in halves, from −12 to 12.
            MXFP4 | Micro(self::Micro::Mxfp4) => flat(5, Zero(12)),
            NVFP4 | Micro(self::Micro::Nvfp4) => Form { segment: 16, group: 16, ..flat(5, Zero(12)) },
            Q4K => nested(32, 4, Min),
            Q5K => nested(32, 5, Min),
            Q6K => nested(16, 6, Zero(32)),
            Q2K => nested(16, 2, Min),
            Q3K => nested(16, 3, Zero(4)),
            IQ4XS => per_group(32, 8, 128),
            IQ3S | IQ3XXS | IQ2XXS => per_group(32, 7, 64),
            IQ2S | IQ2XS => per_group(16, 7, 64),
            // Values in eighths, from −9 to 9.
            IQ1S => per_group(32, 5, 9),
            IQ1M => per_group(16, 5, 9),
            TQ1_0 | TQ2_0 => per_group(32, 2, 1),
            Q1_0 | Q2_0 => flat(2, Zero(1)),
            MlxAffine { bits, .. } => flat(u32::from(bits), Min),
            IntGroup { bits, group, .. } if group.is_multiple_of(32) => flat(u32::from(bits), Min),
            _ => return None,
        };
        let whole = row_len.is_multiple_of(form.block) && row_len.is_multiple_of(codec.codec().block_len());
        whole.then_some(form)
    }

    /// The same form as this processor's kernels have it.
    pub fn on(self, processor: Processor) -> Form {
        Form { wide: processor == Processor::Avx512, ..self }
    }

    /// Columns of four that are summed before they are scaled: with 16-bit sums, so many that these of products cannot overflow, 2 · 127 · (2^bits − 1)
    /// each.
    pub fn steps(&self) -> usize {
        let most = match self.bits {
            _ if self.wide => 8,
            0..=4 => 8,
            5 => 4,
            6 => 2,
            // Numbers of 16 bits, whose products are summed in 32.
            _ => 8,
        };
        most.min(self.group / 4)
    }
    /// Words for four columns: one of bytes; where sums of 16 bits would not hold a product, two of 16-bit numbers.
    pub fn words(&self) -> usize {
        if self.bits > 6 && !self.wide { 2 } else { 1 }
    }
    /// Runs in a segment: columns summed before they are scaled.
    pub fn runs(&self) -> usize {
        self.segment / (4 * self.steps())
    }
    /// The code that means zero; 0 if there are minima instead.
    pub fn zero(&self) -> i16 {
        match self.offset {
            Offset::Zero(zero) => zero,
            Offset::Min => 0,
        }
    }
    /// Pairs of offsets in a segment.
    pub fn pairs(&self) -> usize {
        if self.offset == Offset::Min { self.segment / self.pair_span() } else { 0 }
    }
    /// Columns that one pair of activation sums covers.
    pub fn pair_span(&self) -> usize {
        match self.segment {
            256 => 2 * self.group,
            segment => segment,
        }
    }
    /// Columns of a panel.
    pub fn panel_columns(&self) -> usize {
        let unit = self.codec.codec().block_len().max(self.block);
        unit * (PANEL_COLUMNS / unit).max(1)
    }
}
