//! llama-quantize's presets: which block format each tensor of a GGUF gets.

use bitsmith_formats::{CodecId, Error, Result};
use bitsmith_runtime::role::{Part, Role};
use bitsmith_runtime::spec::ModelSpec;
use std::fmt;
use std::str::FromStr;

/// A named mix of formats, or one plain format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GgufPreset {
    base: CodecId,
    size: Size,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    /// One format throughout, with the output matrix at Q6_K as llama-quantize keeps it.
    Plain,
    Small,
    Medium,
}

/// Name, base format and size.
const PRESETS: [(&str, CodecId, Size); 14] = [
    ("f32", CodecId::F32, Size::Plain),
    ("f16", CodecId::F16, Size::Plain),
    ("bf16", CodecId::BF16, Size::Plain),
    ("q4_0", CodecId::Q4_0, Size::Plain),
    ("q4_1", CodecId::Q4_1, Size::Plain),
    ("q5_0", CodecId::Q5_0, Size::Plain),
    ("q5_1", CodecId::Q5_1, Size::Plain),
    ("q8_0", CodecId::Q8_0, Size::Plain),
    ("q4_k_s", CodecId::Q4K, Size::Small),
    ("q4_k_m", CodecId::Q4K, Size::Medium),
    ("q5_k_s", CodecId::Q5K, Size::Small),
    ("q5_k_m", CodecId::Q5K, Size::Medium),
    ("q6_k", CodecId::Q6K, Size::Plain),
    // As llama-quantize: the bare K-quant names mean the medium mixes.
    ("q4_k", CodecId::Q4K, Size::Medium),
];

impl GgufPreset {
    /// All presets, each with its name.
    pub fn all() -> impl Iterator<Item = (&'static str, GgufPreset)> {
        PRESETS.iter().map(|&(name, base, size)| (name, GgufPreset { base, size }))
    }
    /// The format of most matrices, and of all with `--pure`.
    pub fn base(self) -> CodecId {
        self.base
    }
    /// The format of one matrix before any fallback. `importance`: whether an imatrix or calibration guides the encoder.
    pub(crate) fn choose(self, spec: &ModelSpec, role: Role, importance: bool) -> CodecId {
        if self.base.float().is_some() {
            return self.base;
        }
        let n = spec.n_layers;
        let is_head = role.part == spec.head_part();
        if is_head {
            return if self.base == CodecId::Q8_0 || !spec.hidden_size.is_multiple_of(256) {
                CodecId::Q8_0
            } else {
                CodecId::Q6K
            };
        }
        let Some(i) = role.layer else { return self.base };
        let first_eighth = i < n / 8;
        match (role.part, self.base, self.size) {
            (Part::AttnV, CodecId::Q4K | CodecId::Q5K, Size::Medium) if more_bits(i, n) => CodecId::Q6K,
            (Part::AttnV, CodecId::Q4K, Size::Small) if i < 4 => CodecId::Q5K,
            // Llama 2 and 3 at 70B share each value head between eight query heads.
            (Part::AttnV, CodecId::Q4K, _) if spec.arch.gguf == "llama" && n == 80 && spec.n_heads != spec.n_kv_heads => {
                CodecId::Q5K
            }
            (Part::FfnDown, CodecId::Q4K | CodecId::Q5K, Size::Medium) if more_bits(i, n) => CodecId::Q6K,
            (Part::FfnDown, CodecId::Q4K, Size::Small) if first_eighth => CodecId::Q5K,
            (Part::FfnDown, CodecId::Q4_0, _) if importance && first_eighth => CodecId::Q4_1,
            (Part::FfnDown, CodecId::Q5_0, _) if importance && first_eighth => CodecId::Q5_1,
            _ => self.base,
        }
    }
}

/// The layers that the medium mixes give more bits: the first and last eighth, and every third between.
pub(crate) fn more_bits(i: usize, n: usize) -> bool {
    i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2
}

/// What llama-quantize takes instead when rows of `row` weights are not whole blocks of `codec`.
pub(crate) fn fallback(codec: CodecId, row: usize) -> CodecId {
    let next = match codec {
        CodecId::Q4K => CodecId::Q5_0,
        CodecId::Q5K => CodecId::Q5_1,
        CodecId::Q6K => CodecId::Q8_0,
        _ => CodecId::F16,
    };
    if row.is_multiple_of(next.codec().block_len()) { next } else { CodecId::F16 }
}

impl fmt::Display for GgufPreset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = PRESETS.iter().find(|p| (p.1, p.2) == (self.base, self.size)).map_or("?", |p| p.0);
        f.write_str(name)
    }
}

impl FromStr for GgufPreset {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        let lower = s.to_ascii_lowercase();
        let found = match lower.as_str() {
            "q5_k" => Some(GgufPreset { base: CodecId::Q5K, size: Size::Medium }),
            _ => GgufPreset::all().find(|(name, _)| *name == lower).map(|(_, p)| p),
        };
        found.ok_or_else(|| Error::unsupported(format!("no GGUF encoding `{s}`")).hint("`bitsmith targets` lists them"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_bits_are_where_llama_quantize_puts_them() {
        let chosen: Vec<usize> = (0..32).filter(|&i| more_bits(i, 32)).collect();
        assert_eq!(chosen, [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]);
        assert_eq!((0..4).filter(|&i| more_bits(i, 4)).collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn names() {
        assert!(GgufPreset::all().all(|(name, preset)| name.to_uppercase().parse::<GgufPreset>().unwrap() == preset));
        assert_eq!("Q5_K".parse::<GgufPreset>().unwrap().to_string(), "q5_k_m");
        assert_eq!("q4_k".parse::<GgufPreset>().unwrap().to_string(), "q4_k_m");
        assert!("q9".parse::<GgufPreset>().is_err());
    }

    #[test]
    fn fallbacks_follow_the_row_length() {
        assert_eq!(fallback(CodecId::Q4K, 64), CodecId::Q5_0);
        assert_eq!(fallback(CodecId::Q6K, 96), CodecId::Q8_0);
        assert_eq!(fallback(CodecId::Q5K, 32), CodecId::Q5_1);
        assert_eq!(fallback(CodecId::Q4K, 172), CodecId::F16);
        assert_eq!(fallback(CodecId::Q8_0, 172), CodecId::F16);
    }
}
