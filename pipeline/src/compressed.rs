//! Encodings of compressed-tensors, by their names after `compressed:`.

use bitsmith_formats::{CodecId, Error, Float, Micro, Result};
use std::fmt;
use std::str::FromStr;

/// An encoding of compressed-tensors, as llm-compressor's presets have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compressed {
    /// Integers: `W4A16`, `W4A16_ASYM`, `W8A16`.
    Int {
        /// Bits per code.
        bits: u8,
        /// Weights that share a scale; `None` for a scale per row (output channel).
        group: Option<u16>,
        /// Whether zero points are in the middle and not stored.
        symmetric: bool,
    },
    /// e2m1 codes with e4m3 scales and a scale per tensor: `NVFP4A16`.
    Nvfp4,
    /// e4m3 codes with a scale per row, multiplied with activations in e4m3: `FP8_DYNAMIC`.
    Fp8,
}

/// The most weights that share a scale.
const LONGEST: u32 = 1 << 20;
/// Groups, the default first.
const GROUPS: [u16; 3] = [128, 64, 32];

impl Compressed {
    /// Every encoding, default groups first.
    pub fn all() -> impl Iterator<Item = Compressed> {
        let int = |bits, group, symmetric| Compressed::Int { bits, group, symmetric };
        let grouped = move |bits, symmetric| GROUPS.map(|group| int(bits, Some(group), symmetric));
        let integers = grouped(4, true).into_iter().chain(grouped(4, false)).chain([int(8, None, true)]).chain(grouped(8, true));
        integers.chain([Compressed::Nvfp4, Compressed::Fp8])
    }

    /// The format of rows of `row` weights, with scales of type `scale` where they are of no type of their own. Rows that no scale can
    /// span are not whole blocks of it.
    pub fn codec(self, row: usize, scale: Float) -> CodecId {
        let row = u32::try_from(row).unwrap_or(u32::MAX).clamp(8, LONGEST).next_multiple_of(8);
        match self {
            Compressed::Int { bits, group, symmetric } => {
                CodecId::IntGroup { bits, group: group.map_or(row, u32::from), scale, symmetric }
            }
            Compressed::Nvfp4 => CodecId::Micro(Micro::Nvfp4),
            Compressed::Fp8 => CodecId::Fp8Group { group: row, scale },
        }
    }
}

impl fmt::Display for Compressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Compressed::Int { bits, group, symmetric } => {
                write!(f, "int{bits}")?;
                if let Some(group) = group {
                    write!(f, "-g{group}")?;
                }
                f.write_str(if *symmetric { "" } else { "-asym" })
            }
            Compressed::Nvfp4 => f.write_str("nvfp4"),
            Compressed::Fp8 => f.write_str("fp8"),
        }
    }
}

impl FromStr for Compressed {
    type Err = Error;

    /// A name of [`Compressed::all`]; for 4 bits the group may be left out.
    fn from_str(s: &str) -> Result<Self> {
        let whole = match s {
            "int4" | "int4-asym" => s.replacen("int4", &format!("int4-g{}", GROUPS[0]), 1),
            _ => s.to_string(),
        };
        let found = Compressed::all().find(|c| c.to_string() == whole);
        found.ok_or_else(|| Error::unsupported(format!("compressed-tensors has no encoding `{s}` here")))
    }
}
