//! Blocks of one format as blocks of another whose grid has the same points: the codes are kept, and only their layout and the way
//! in which scales are stored change.
//!
//! | from | to | what is kept |
//! |---|---|---|
//! | any | the same format | the bytes |
//! | MXFP4, NVFP4 | the same in another layout | codes and scales |
//! | evenly spaced values (GPTQ, AWQ, MLX affine, ggml's Q and K formats) | formats with one scale per block and as many codes | codes, up to a shift; scales as far as the format can store them |
//!
//! Whether a block has a place in the other grid depends on its numbers too (a group with another zero point has none in Q4_0), so
//! that [`regrid`] tries, compares the values of both sides and reports each block.

use crate::codec::{BlockScales, CodecId, Grid, Micro};
use crate::error::{Error, Result};

/// How far values may move, in steps of their grid, when the other format stores scales less precisely. Beyond that the codes would
/// no longer be the best ones, and the block counts as one without a place.
pub const MOST_STEPS: f32 = 0.125;

/// Rows in their new format, and what that did to them.
#[derive(Debug, Clone, PartialEq)]
pub struct Regridded {
    /// The blocks, in the order of the weights. Those of `lost` are zeros.
    pub bytes: Vec<u8>,
    /// The blocks (by number) that have no place in the other grid.
    pub lost: Vec<usize>,
    /// The most that a value moved, in steps of its grid: 0 if all values are the same.
    pub steps: f32,
}

/// Whether blocks of `from` may have a place in the grid of `to`.
pub fn may_regrid(from: CodecId, to: CodecId) -> bool {
    same_bytes(from, to) || same_floats(from, to) || {
        let (Some(a), Some(b)) = (from.codec().grid(), to.codec().grid()) else { return false };
        a.is_linear() && b.is_linear() && b.max_code() >= a.max_code() && b.place(1.0, 0.0).is_some()
    }
}

/// Formats that differ only in what encoders aim at.
fn same_bytes(from: CodecId, to: CodecId) -> bool {
    let plain = |codec| match codec {
        CodecId::IntGroup { bits, group, scale, symmetric: true } => CodecId::IntGroup { bits, group, scale, symmetric: false },
        other => other,
    };
    from == to || plain(from) == to
}

/// The same small floats and scales in different layouts.
fn same_floats(from: CodecId, to: CodecId) -> bool {
    let family = |codec| match codec {
        CodecId::MXFP4 | CodecId::Micro(Micro::Mxfp4) => Some(Micro::Mxfp4),
        CodecId::NVFP4 | CodecId::Micro(Micro::Nvfp4) => Some(Micro::Nvfp4),
        _ => None,
    };
    family(from).is_some() && family(from) == family(to)
}

/// Rows of `row_len` weights in `from`, as blocks of `to`.
pub fn regrid(from: CodecId, to: CodecId, bytes: &[u8], row_len: usize) -> Result<Regridded> {
    let (from_row, to_row) = (from.row_bytes(row_len)?, to.row_bytes(row_len)?);
    if !may_regrid(from, to) {
        return Err(Error::unsupported(format!("{from} and {to} have different grids")));
    }
    if from_row == 0 || !bytes.len().is_multiple_of(from_row) {
        return Err(Error::failed(format!("{} bytes are not whole rows of {row_len} weights in {from}", bytes.len())));
    }
    if same_bytes(from, to) {
        return Ok(Regridded { bytes: bytes.to_vec(), lost: Vec::new(), steps: 0.0 });
    }
    let mut row = Row::new(from, to, row_len);
    let mut out = Regridded { bytes: vec![0; bytes.len() / from_row * to_row], lost: Vec::new(), steps: 0.0 };
    let per_row = row_len / to.codec().block_len();
    for (i, (bytes, new)) in bytes.chunks_exact(from_row).zip(out.bytes.chunks_exact_mut(to_row)).enumerate() {
        row.read(bytes);
        for (block, new) in new.chunks_exact_mut(to.codec().block_bytes()).enumerate() {
            match row.write(block, new) {
                Some(steps) if steps <= MOST_STEPS => out.steps = out.steps.max(steps),
                _ => {
                    new.fill(0);
                    out.lost.push(i * per_row + block);
                }
            }
        }
    }
    Ok(out)
}

/// One row taken apart.
struct Row {
    from: CodecId,
    to: CodecId,
    floats: bool,
    /// Weights that share a scale in `from`.
    sub_len: usize,
    codes: Vec<u8>,
    values: Vec<f32>,
    /// Step, offset and stored integer scale of each `sub_len` weights.
    lines: Vec<(f32, f32, i16)>,
    /// Room for a block of `to`.
    new_codes: Vec<u8>,
    new_values: Vec<f32>,
}

impl Row {
    fn new(from: CodecId, to: CodecId, row_len: usize) -> Self {
        let len = to.codec().block_len();
        Row {
            from,
            to,
            floats: same_floats(from, to),
            sub_len: from.codec().block_len(),
            codes: vec![0; row_len],
            values: vec![0.0; row_len],
            lines: Vec::new(),
            new_codes: vec![0; len],
            new_values: vec![0.0; len],
        }
    }

    /// Takes a row of `from` apart.
    fn read(&mut self, bytes: &[u8]) {
        let codec = self.from.codec();
        let grid = grid(self.from);
        codec.decode(bytes, &mut self.values);
        self.lines.clear();
        let blocks = bytes.chunks_exact(codec.block_bytes()).zip(self.codes.chunks_exact_mut(codec.block_len()));
        for (bytes, codes) in blocks {
            let scales = grid.unpack(bytes, codes);
            self.sub_len = scales.sub_len;
            // Only the formats of small floats are told apart by integers, one per sub-block.
            let ints = scales.ints.iter().copied().chain(std::iter::repeat(0));
            self.lines.extend(scales.step.iter().zip(&scales.offset).zip(ints).map(|((&s, &o), int)| (s, o, int)));
        }
    }

    /// Writes a block of `to`; returns the most that a value moved, in steps, or `None` if the block has no place there.
    fn write(&mut self, block: usize, out: &mut [u8]) -> Option<f32> {
        let len = self.new_codes.len();
        let weights = block * len..(block + 1) * len;
        let lines = &self.lines[weights.start / self.sub_len..(weights.end - 1) / self.sub_len + 1];
        let grid = grid(self.to);
        let step = lines[0].0;
        let scales = match self.floats {
            true => {
                self.new_codes.copy_from_slice(&self.codes[weights.clone()]);
                let per_scale = self.sub_len.min(len);
                let ints = (0..len / per_scale).map(|i| self.lines[(weights.start + i * per_scale) / self.sub_len].2).collect();
                BlockScales { sub_len: per_scale, step: Vec::new(), offset: Vec::new(), stored: [0.0; 2], ints }
            }
            false if lines.iter().any(|line| line != &lines[0]) => return None,
            false => self.shift(grid, step, lines[0].1, weights.start)?,
        };
        grid.pack(&scales, &self.new_codes, out);
        self.to.codec().decode(out, &mut self.new_values);
        let most = |most: f32, (a, b): (&f32, &f32)| if a == b { most } else { most.max((a - b).abs()) };
        let moved = self.values[weights].iter().zip(&self.new_values).fold(0.0, most);
        // In formats of small floats only equality will do.
        match moved {
            0.0 => Some(0.0),
            _ if self.floats || !moved.is_finite() => None,
            _ => Some(moved / step.abs()),
        }
    }

    /// Puts codes that start at weight `start` on a line of the other grid.
    fn shift(&mut self, grid: &dyn Grid, step: f32, offset: f32, start: usize) -> Option<BlockScales> {
        let scales = grid.place(step, offset)?;
        let by = (offset - scales.offset[0]) / scales.step[0];
        // Under a scale of zero all codes are alike.
        let by = if by.is_finite() { by.round() as i32 } else { 0 };
        for (new, &code) in self.new_codes.iter_mut().zip(&self.codes[start..]) {
            *new = u8::try_from(i32::from(code).checked_add(by)?).ok().filter(|&c| c <= grid.max_code())?;
        }
        Some(scales)
    }
}

/// The grid of a format of which [`may_regrid`] has found that it has one.
fn grid(codec: CodecId) -> &'static dyn Grid {
    codec.codec().grid().expect("both formats have grids")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{EncodedTensor, Float};
    use CodecId::*;

    const ROW: usize = 512;

    fn int(bits: u8, group: u32, symmetric: bool) -> CodecId {
        IntGroup { bits, group, scale: Float::F16, symmetric }
    }
    fn mlx(bits: u8, group: u16, scale: Float) -> CodecId {
        MlxAffine { bits, group, scale }
    }
    fn rows() -> Vec<f32> {
        (0..6 * ROW)
            .map(|i| (i as f32 * 12.9898).sin() * 43758.547 % 1.0 * 0.02 + if i % 96 < 32 { 0.003 } else { 0.0 })
            .collect()
    }
    fn encoded(codec: CodecId) -> EncodedTensor {
        EncodedTensor::encode(codec, &[6, ROW], &rows(), None).unwrap()
    }
    /// What becomes of `tensor`, whose codec `from` may also name in the way that readers do.
    fn moved(from: CodecId, tensor: &EncodedTensor, to: CodecId) -> (EncodedTensor, Regridded) {
        let done = regrid(from, to, &tensor.bytes, ROW).unwrap();
        (EncodedTensor::new(&tensor.shape, to, done.bytes.clone()), done)
    }

    #[test]
    fn coinciding_grids_give_the_same_values_and_come_back() {
        for (from, to) in [
            (int(4, 32, true), Q4_0),
            (int(4, 128, true), Q4_0),
            (int(8, 64, true), Q8_0),
            (int(3, 64, true), Q4_0),
            (int(4, 64, true), mlx(4, 64, Float::F16)),
            (int(8, 64, true), mlx(8, 64, Float::F16)),
            (int(4, 128, false), mlx(4, 128, Float::F32)),
            (mlx(4, 64, Float::F16), Q4_1),
            (mlx(4, 32, Float::BF16), Q4_1),
            (mlx(5, 32, Float::F16), Q5_1),
            (mlx(2, 32, Float::F16), Q4_1),
            (Q4_0, mlx(4, 32, Float::BF16)),
            (Q4_0, int(4, 32, true)),
            (Q4_0, Q4_1),
            (Q4_0, Q8_0),
            (Q5_0, mlx(5, 32, Float::F16)),
            (Q8_0, int(8, 32, true)),
            (MXFP4, Micro(super::Micro::Mxfp4)),
            (NVFP4, Micro(super::Micro::Nvfp4)),
            (Q4K, Q4K),
        ] {
            assert!(may_regrid(from, to), "{from} to {to}");
            let tensor = encoded(from);
            let (there, done) = moved(from, &tensor, to);
            if from == Q4_0 && to == mlx(4, 32, Float::BF16) {
                // F16 scales are more than BF16 can hold, but near enough for the codes.
                assert!(done.lost.is_empty() && done.steps > 0.0 && done.steps < 0.1, "{done:?}");
                continue;
            }
            assert_eq!((done.lost.len(), done.steps), (0, 0.0), "{from} to {to}");
            assert_eq!(there.decode(), tensor.decode(), "{from} to {to}");
            // Narrower codes are kept only while the format is at least as wide.
            if may_regrid(to, from) {
                let (back, done) = moved(to, &there, from);
                assert_eq!((back.bytes, done.steps, done.lost.len()), (tensor.bytes, 0.0, 0), "{to} to {from}");
            }
        }
    }

    #[test]
    fn rounded_scales_are_reported() {
        // Zero points times scales are more than F16 holds.
        let tensor = encoded(int(4, 128, false));
        let (there, done) = moved(tensor.codec, &tensor, mlx(4, 128, Float::F16));
        assert!(done.lost.is_empty() && done.steps > 0.0 && done.steps < 0.005, "{}", done.steps);
        let worst = there.decode().iter().zip(tensor.decode()).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(worst > 0.0 && worst < 0.005 * 0.04 / 15.0);
        // So are the products of two scales that K-quants have.
        let tensor = encoded(Q4K);
        let (_, done) = moved(Q4K, &tensor, mlx(4, 32, Float::F16));
        assert!(done.lost.is_empty() && done.steps > 0.0 && done.steps < 0.02, "{}", done.steps);
    }

    #[test]
    fn blocks_without_a_place_are_named() {
        // A zero point that is not in the middle moves codes beyond the end.
        let tensor = encoded(int(4, 32, false));
        let (there, done) = moved(tensor.codec, &tensor, Q4_0);
        let (old, new) = (tensor.decode(), there.decode());
        assert!(!done.lost.is_empty());
        for block in 0..old.len() / 32 {
            let at = block * 32..(block + 1) * 32;
            match done.lost.contains(&block) {
                true => assert!(new[at].iter().all(|&v| v == 0.0)),
                false => assert_eq!(new[at.clone()], old[at]),
            }
        }
        // Groups with scales of their own have no place in longer ones.
        let (_, done) = moved(Q4_0, &encoded(Q4_0), mlx(4, 64, Float::F16));
        assert!(done.lost.len() > 6 * ROW / 64 * 3 / 4);
    }

    #[test]
    fn other_grids_are_refused() {
        for (from, to) in [
            (Q8_0, Q4_0),
            (Q4_0, Q4K),
            (Q4_0, IQ4NL),
            (IQ4NL, Q4_0),
            (MXFP4, Q4_0),
            (Q4_0, BF16),
            (BF16, Q4_0),
            (NVFP4, Micro(super::Micro::Mxfp4)),
            (Micro(super::Micro::Mxfp8), MXFP4),
            (Nf4 { group: 64 }, Q4_0),
        ] {
            assert!(!may_regrid(from, to), "{from} to {to}");
            assert!(regrid(from, to, &encoded(from).bytes, ROW).is_err());
        }
        assert!(regrid(Q4_0, Q4_1, &[0; 17], ROW).is_err());
        assert!(regrid(Q4_0, Q4_1, &[0; 18], 31).is_err());
    }
}
