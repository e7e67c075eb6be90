//! ggml's tensor types: ids, names, block sizes, and which of them are our codecs.

use crate::codec::CodecId;
use crate::container::Encoding;
use crate::error::{Error, Result};
use std::fmt;

/// A ggml tensor type by its id in files. Ids that we do not know are carried as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GgmlType(pub u32);

/// id, name, weights per block, bytes per block (0: the size is no longer documented).
type Row = (u32, &'static str, usize, usize);

/// Every id that ggml has given out, also the retired ones.
#[rustfmt::skip]
const TYPES: &[Row] = &[
    (0, "F32", 1, 4), (1, "F16", 1, 2), (2, "Q4_0", 32, 18), (3, "Q4_1", 32, 20), (4, "Q4_2", 0, 0), (5, "Q4_3", 0, 0),
    (6, "Q5_0", 32, 22), (7, "Q5_1", 32, 24), (8, "Q8_0", 32, 34), (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84), (11, "Q3_K", 256, 110), (12, "Q4_K", 256, 144), (13, "Q5_K", 256, 176), (14, "Q6_K", 256, 210), (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66), (17, "IQ2_XS", 256, 74), (18, "IQ3_XXS", 256, 98), (19, "IQ1_S", 256, 50), (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110), (22, "IQ2_S", 256, 82), (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1), (25, "I16", 1, 2), (26, "I32", 1, 4), (27, "I64", 1, 8), (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56), (30, "BF16", 1, 2),
    (31, "Q4_0_4_4", 32, 18), (32, "Q4_0_4_8", 32, 18), (33, "Q4_0_8_8", 32, 18),
    (34, "TQ1_0", 256, 54), (35, "TQ2_0", 256, 66),
    (36, "IQ4_NL_4_4", 32, 18), (37, "IQ4_NL_4_8", 32, 18), (38, "IQ4_NL_8_8", 32, 18),
    (39, "MXFP4", 32, 17), (40, "NVFP4", 64, 36), (41, "Q1_0", 128, 18), (42, "Q2_0", 64, 18),
];

impl GgmlType {
    fn row(self) -> Option<&'static Row> {
        TYPES.iter().find(|r| r.0 == self.0)
    }

    /// The type that stores this codec, if ggml has one: our names of ggml's formats are ggml's own.
    pub fn from_codec(codec: CodecId) -> Option<Self> {
        Self::from_name(&codec.to_string())
    }

    /// The type of this name (`Q4_K`), in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        TYPES.iter().find(|r| r.1.eq_ignore_ascii_case(name)).map(|r| GgmlType(r.0))
    }

    /// The codec that reads this type, if we have one.
    pub fn codec(self) -> Option<CodecId> {
        self.row()?.1.parse().ok()
    }

    /// The codec, or the type's name to carry along.
    pub fn encoding(self) -> Encoding {
        self.codec().map_or_else(|| Encoding::Opaque(self.to_string()), Encoding::Codec)
    }

    /// Weights and bytes per block, if known.
    pub fn block(self) -> Option<(usize, usize)> {
        self.row().filter(|r| r.2 > 0).map(|r| (r.2, r.3))
    }

    /// Bytes of a tensor of this shape (outermost first); `None` if the type's size is not known.
    pub fn n_bytes(self, shape: &[usize]) -> Result<Option<usize>> {
        let Some((len, bytes)) = self.block() else { return Ok(None) };
        let row_len = shape.last().copied().unwrap_or(1);
        if row_len % len != 0 {
            return Err(Error::corrupt(format!("rows of {row_len} weights are not whole blocks of {len} in {self}")));
        }
        let n = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        match n.and_then(|n| (n / len).checked_mul(bytes)) {
            Some(n) => Ok(Some(n)),
            None => Err(Error::corrupt(format!("shape {shape:?} has more weights than any file can hold"))),
        }
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.row() {
            Some(row) => f.write_str(row.1),
            None => write!(f, "ggml type {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_are_unique() {
        for (i, a) in TYPES.iter().enumerate() {
            assert_eq!(a.0 as usize, i);
            assert_eq!(GgmlType::from_name(a.1), Some(GgmlType(a.0)));
        }
    }

    #[test]
    fn sizes_agree_with_the_codecs() {
        for codec in [CodecId::F32, CodecId::F16, CodecId::BF16].into_iter().chain(CodecId::GGML) {
            let ty = GgmlType::from_codec(codec).unwrap();
            assert_eq!(ty.codec(), Some(codec));
            assert_eq!(ty.to_string().to_lowercase(), codec.to_string());
            assert_eq!(ty.block(), Some((codec.codec().block_len(), codec.codec().block_bytes())), "{codec}");
        }
    }

    #[test]
    fn unknown_types_are_carried() {
        let ty = GgmlType(999);
        assert_eq!(ty.encoding(), Encoding::Opaque("ggml type 999".into()));
        assert_eq!(ty.n_bytes(&[3, 5]).unwrap(), None);
        assert_eq!(GgmlType(9).encoding(), Encoding::Opaque("Q8_1".into()));
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!(GgmlType(12).n_bytes(&[2, 512]).unwrap(), Some(2 * 288));
        assert!(GgmlType(12).n_bytes(&[2, 128]).is_err());
        assert!(GgmlType(0).n_bytes(&[usize::MAX, 2]).is_err());
        assert!(GgmlType(0).n_bytes(&[usize::MAX]).is_err());
    }
}
