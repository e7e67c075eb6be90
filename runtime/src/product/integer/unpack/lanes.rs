//! Sixteen rows of blocks side by side: loops over them are what compilers turn into vector instructions.

use crate::product::integer::PANEL_ROWS;

/// A word of every row.
pub(super) type Lanes = [u32; PANEL_ROWS];
/// A number of every row.
pub(super) type Floats = [f32; PANEL_ROWS];

/// A block of every row, or what is left of the row.
pub(super) type Block<'a, B> = [&'a B; PANEL_ROWS];

/// Block `i` of every row.
#[inline(always)]
pub(super) fn block<'a, const BYTES: usize>(rows: &Block<'a, [u8]>, i: usize) -> Block<'a, [u8; BYTES]> {
    let mut block = [&[0; BYTES]; PANEL_ROWS];
    for (block, row) in block.iter_mut().zip(rows) {
        *block = row[i * BYTES..].first_chunk().unwrap_or(block);
    }
    block
}

/// The little-endian word at byte `at` of a block, short of bytes after its end.
#[inline(always)]
pub(in super::super) fn word(bytes: &[u8], at: usize) -> u32 {
    match bytes[at..].first_chunk() {
        Some(four) => u32::from_le_bytes(*four),
        None => bytes[at..].iter().rev().fold(0, |v, b| v << 8 | u32::from(*b)),
    }
}

/// [`word`] of every row.
#[inline(always)]
pub(super) fn words<B: AsRef<[u8]> + ?Sized>(b: &Block<'_, B>, at: usize) -> Lanes {
    let mut words = [0; PANEL_ROWS];
    for (word, b) in words.iter_mut().zip(b) {
        *word = self::word((*b).as_ref(), at);
    }
    words
}

/// What a function makes of every lane.
#[inline(always)]
pub(super) fn map<T: Copy, U: Copy + Default>(lanes: [T; PANEL_ROWS], f: impl Fn(T) -> U) -> [U; PANEL_ROWS] {
    let mut mapped = [U::default(); PANEL_ROWS];
    for (to, lane) in mapped.iter_mut().zip(lanes) {
        *to = f(lane);
    }
    mapped
}

/// What a function makes of two lanes.
#[inline(always)]
pub(super) fn zip(a: Lanes, b: Lanes, f: impl Fn(u32, u32) -> u32) -> Lanes {
    let mut zipped = [0; PANEL_ROWS];
    for ((to, a), b) in zipped.iter_mut().zip(a).zip(b) {
        *to = f(a, b);
    }
    zipped
}

/// The f16 in the low half of a word.
#[inline(always)]
pub(super) fn half(word: u32) -> f32 {
    // The exponent's bias changes by 112, by a multiplication, which is right for subnormal numbers too.
    let magnitude = f32::from_bits((word & 0x7fff) << 13) * f32::from_bits(239 << 23);
    let infinite = if word & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | infinite | (word & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_half() {
        for bits in 0..=u16::MAX {
            let (got, want) = (super::half(u32::from(bits) | 0xabcd_0000), half::f16::from_bits(bits).to_f32());
            assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "{bits:#x}: {got} {want}");
        }
    }
}
