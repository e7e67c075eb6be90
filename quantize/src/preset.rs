//! llama-quantize's presets: which block format each tensor of a GGUF gets.
//!
//! A preset is a base format and the exceptions in `RULES`; the output matrix has rules of its own (`GgufPreset::head`).

use CodecId::*;
use Part::*;
use When::*;
use bitsmith_formats::codecs;
use bitsmith_formats::gguf::GgmlType;
use bitsmith_formats::{CodecId, Error, Result};
use bitsmith_runtime::role::{Part, Role};
use bitsmith_runtime::spec::ModelSpec;
use std::fmt;
use std::str::FromStr;

/// A named mix of formats, or one plain format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GgufPreset(&'static Entry);

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    name: &'static str,
    base: CodecId,
    /// The preset whose rules apply.
    mix: &'static str,
    /// What embedding and output matrix get, whatever the rules say.
    tables: Option<CodecId>,
}

const fn own(name: &'static str, base: CodecId) -> Entry {
    Entry { name, base, mix: name, tables: None }
}

const fn large(name: &'static str, base: CodecId, mix: &'static str) -> Entry {
    Entry { name, base, mix, tables: Some(Q8_0) }
}

static PRESETS: &[Entry] = &[
    own("f32", F32),
    own("f16", F16),
    own("bf16", BF16),
    own("q8_0", Q8_0),
    own("q6_k", Q6K),
    own("q5_0", Q5_0),
    own("q5_1", Q5_1),
    own("q5_k_s", Q5K),
    own("q5_k_m", Q5K),
    own("q4_0", Q4_0),
    own("q4_1", Q4_1),
    own("q4_k_s", Q4K),
    own("q4_k_m", Q4K),
    own("iq4_nl", IQ4NL),
    own("iq4_xs", IQ4XS),
    own("q3_k_s", Q3K),
    own("q3_k_m", Q3K),
    own("q3_k_l", Q3K),
    own("iq3_xxs", IQ3XXS),
    own("iq3_xs", IQ3S),
    own("iq3_s", IQ3S),
    own("iq3_m", IQ3S),
    own("q2_k", Q2K),
    own("q2_k_s", Q2K),
    own("iq2_xxs", IQ2XXS),
    own("iq2_xs", IQ2XS),
    own("iq2_s", IQ2XS),
    own("iq2_m", IQ2S),
    own("iq1_s", IQ1S),
    own("iq1_m", IQ1M),
    own("tq1_0", TQ1_0),
    own("tq2_0", TQ2_0),
    own("q2_0", Q2_0),
    own("q1_0", Q1_0),
    own("mxfp4_moe", MXFP4),
    // Not among llama-quantize's: the linear layers in 4 bits, the tables in 8.
    Entry { name: "mxfp4", base: MXFP4, mix: "mxfp4", tables: Some(Q8_0) },
    Entry { name: "nvfp4", base: NVFP4, mix: "nvfp4", tables: Some(Q8_0) },
    // Mixes with embedding and output at 8 bits, under the names that publishers of GGUFs use.
    large("q6_k_l", Q6K, "q6_k"),
    large("q5_k_l", Q5K, "q5_k_m"),
    large("q4_k_l", Q4K, "q4_k_m"),
    large("q3_k_xl", Q3K, "q3_k_l"),
    large("q2_k_l", Q2K, "q2_k"),
];

/// As llama-quantize: the bare names of K-quants mean the medium mixes.
const ALIASES: [(&str, &str); 3] = [("q5_k", "q5_k_m"), ("q4_k", "q4_k_m"), ("q3_k", "q3_k_m")];

/// A condition on a tensor's layer `i` of `n`, on the model, or on the evidence.
#[derive(Debug, Clone, Copy)]
enum When {
    /// `i < n / 8`.
    FirstEighth,
    /// `i < n / 16`.
    FirstSixteenth,
    /// `n / 8 ≤ i < 7 n / 8`.
    Middle,
    /// The first and last eighth, and every third layer between.
    More,
    /// `i` is below this number.
    Below(usize),
    /// At least four query heads share each key and value head.
    Grouped,
    /// An imatrix or calibration guides the encoder.
    Guided,
    /// Nothing does.
    Unguided,
}

impl When {
    fn holds(self, spec: &ModelSpec, layer: Option<usize>, importance: bool) -> bool {
        let n = spec.n_layers;
        let layer_is = |f: fn(usize, usize) -> bool| layer.is_some_and(|i| f(i, n));
        match self {
            FirstEighth => layer_is(|i, n| i < n / 8),
            FirstSixteenth => layer_is(|i, n| i < n / 16),
            Middle => layer_is(|i, n| i >= n / 8 && i < 7 * n / 8),
            More => layer_is(more_bits),
            Below(end) => layer.is_some_and(|i| i < end),
            Grouped => spec.n_heads / spec.n_kv_heads.max(1) >= 4,
            Guided => importance,
            Unguided => !importance,
        }
    }
}

/// The layers that the medium mixes give more bits: the first and last eighth, and every third between.
pub(crate) fn more_bits(i: usize, n: usize) -> bool {
    i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2
}

/// Presets, parts, conditions that must all hold, format.
type Rule = (&'static [&'static str], &'static [Part], &'static [When], CodecId);

/// Presets around two bits and below, which share most choices.
const LOWEST: [&str; 6] = ["iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m"];

/// Exceptions from the base format; the first that fits decides. Those for `TokenEmbd` are for an embedding that is only a table.
#[rustfmt::skip]
const RULES: &[Rule] = &[
    (&["iq1_s", "iq1_m", "iq2_xxs", "iq2_xs"], &[TokenEmbd], &[], Q2K),
    (&["iq2_s", "iq2_m", "iq3_xxs"], &[TokenEmbd], &[], IQ3S),
    (&["tq1_0", "tq2_0", "q2_0"], &[TokenEmbd], &[], Q4K),

    (&LOWEST, &[AttnV], &[Grouped], Q4K),
    (&["iq2_s", "iq2_m"], &[AttnV], &[], IQ3S),
    (&["iq2_s", "iq2_m"], &[FfnDown], &[FirstEighth], IQ3S),
    (&["iq2_s", "iq2_m"], &[AttnOutput], &[], IQ3S),
    (&LOWEST, &[AttnV], &[], Q2K),
    (&LOWEST, &[FfnDown], &[FirstEighth], Q2K),
    (&["iq1_s", "iq1_m"], &[AttnOutput], &[], IQ2XXS),

    (&["q2_k", "q2_k_s"], &[AttnV], &[Grouped], Q4K),
    (&["q2_k"], &[AttnV, AttnOutput, FfnDown], &[], Q3K),
    (&["q2_k_s"], &[FfnDown], &[FirstEighth], Q4K),

    (&["iq3_xxs", "iq3_xs", "iq3_s"], &[AttnV], &[Grouped], Q4K),
    (&["iq3_xxs"], &[AttnV], &[Unguided], IQ3S),
    (&["iq3_xxs"], &[AttnQ, AttnK], &[], IQ2S),
    (&["iq3_xxs"], &[AttnOutput], &[], IQ3S),
    (&["iq3_xxs"], &[FfnDown], &[Unguided, FirstEighth], Q4K),
    (&["iq3_xxs"], &[FfnDown], &[Unguided], Q3K),
    (&["iq3_xs"], &[AttnQ, AttnK], &[], IQ3XXS),
    (&["iq3_xs"], &[FfnGate, FfnUp], &[Middle], IQ3XXS),
    (&["iq3_m"], &[AttnV, AttnOutput], &[], Q4K),
    (&["iq3_m"], &[FfnDown], &[FirstEighth], Q4K),

    (&["q3_k_m"], &[AttnV], &[Below(2)], Q5K),
    (&["q3_k_m"], &[FfnDown], &[FirstSixteenth], Q5K),
    (&["q3_k_m"], &[AttnV, AttnOutput, FfnDown], &[], Q4K),
    (&["q3_k_l"], &[AttnV, AttnOutput, FfnDown], &[], Q5K),

    (&["iq4_nl", "iq4_xs"], &[AttnV], &[Grouped], Q5K),
    (&["iq4_nl", "iq4_xs"], &[FfnDown], &[Unguided, FirstEighth], Q5K),
    (&["q4_0"], &[FfnDown], &[Guided, FirstEighth], Q4_1),
    (&["q5_0"], &[FfnDown], &[Guided, FirstEighth], Q5_1),
    (&["q4_k_s"], &[AttnV], &[Below(4)], Q5K),
    (&["q4_k_s"], &[FfnDown], &[FirstEighth], Q5K),
    (&["q4_k_m", "q5_k_m"], &[AttnV, FfnDown], &[More], Q6K),

    // 4 bits are for stacked experts alone.
    (&["mxfp4_moe"], &[TokenEmbd, AttnQ, AttnK, AttnV, AttnOutput, FfnGate, FfnUp, FfnDown], &[], Q8_0),
];

impl GgufPreset {
    /// All presets whose formats exist.
    pub fn all() -> impl Iterator<Item = GgufPreset> {
        Self::known().filter(|preset| preset.is_available())
    }

    /// All presets, also those with formats that no codec here can write.
    pub(crate) fn known() -> impl Iterator<Item = GgufPreset> {
        PRESETS.iter().map(GgufPreset)
    }

    /// Whether there are codecs for everything that this preset may choose.
    fn is_available(self) -> bool {
        let rules = RULES.iter().filter(|rule| rule.0.contains(&self.0.mix)).map(|rule| rule.3);
        let chosen = rules.chain([self.base()]).flat_map(|codec| [codec, fallback(codec, 32)]);
        chosen.into_iter().all(|codec| codecs::find(codec).is_some())
    }

    /// The format of most matrices, and of all with `--pure`.
    pub fn base(self) -> CodecId {
        self.0.base
    }

    /// The format of one matrix before any fallback. `importance`: whether an imatrix or calibration guides the encoder.
    pub(crate) fn choose(self, spec: &ModelSpec, role: Role, importance: bool) -> CodecId {
        if self.base().float().is_some() {
            return self.base();
        }
        if matches!(role.part, TokenEmbd | Output)
            && let Some(codec) = self.0.tables
        {
            return codec;
        }
        if role.part == spec.head_part() {
            return self.head(spec.hidden_size);
        }
        // A joint projection of queries, keys and values counts as one of values.
        let part = if role.part == AttnQkv { AttnV } else { role.part };
        let fits = |rule: &&Rule| {
            let (presets, parts, when, _) = rule;
            presets.contains(&self.0.mix) && parts.contains(&part) && when.iter().all(|w| w.holds(spec, role.layer, importance))
        };
        let chosen = RULES.iter().find(fits).map_or(self.base(), |rule| rule.3);
        // Models that llama.cpp counts as 70B share each value head between eight query heads, so that more bits cost little.
        let dear = part == AttnV && is_70b(spec) && !LOWEST.contains(&self.0.mix);
        if dear && matches!(chosen, Q3K | Q4K) { Q5K } else { chosen }
    }

    /// The output matrix, and an embedding that stands for it; `row` is its width.
    fn head(self, row: usize) -> CodecId {
        if self.0.mix == "mxfp4_moe" || self.base() == Q8_0 || !row.is_multiple_of(block_len(self.base())) {
            Q8_0
        } else if LOWEST.contains(&self.0.mix) || self.0.mix == "iq3_xxs" {
            Q5K
        } else {
            Q6K
        }
    }

    /// Whether llama-quantize refuses to write this tensor without an importance matrix, as the result would be useless.
    pub(crate) fn needs_importance(self, part: Part, codec: CodecId) -> bool {
        let lowest = matches!(codec, IQ3XXS | IQ2XXS | IQ2XS | IQ2S | IQ1M | IQ1S) || codec == Q2K && self.0.mix == "q2_k_s";
        lowest && !matches!(part, TokenEmbd | Output)
    }
}

fn is_70b(spec: &ModelSpec) -> bool {
    spec.n_layers == 80 && (spec.arch.gguf == "llama" && spec.n_heads != spec.n_kv_heads || spec.arch.gguf == "qwen2")
}

/// Weights per block, also of ggml's formats that have no codec here.
pub(crate) fn block_len(codec: CodecId) -> usize {
    match GgmlType::from_codec(codec).and_then(GgmlType::block) {
        Some((len, _)) => len,
        None => codec.codec().block_len(),
    }
}

/// What llama-quantize takes instead when rows of `row` weights are not whole blocks of `codec`. (For Q1_0 and NVFP4 it takes
/// nothing and fails; here they are treated like their neighbours.)
pub(crate) fn fallback(codec: CodecId, row: usize) -> CodecId {
    let next = match codec {
        IQ1S | IQ1M | IQ2XXS | IQ2XS | IQ2S | IQ3XXS | IQ3S | IQ4XS => IQ4NL,
        Q1_0 | Q2_0 | NVFP4 | Q2K | Q3K | TQ1_0 | TQ2_0 => Q4_0,
        Q4K => Q5_0,
        Q5K => Q5_1,
        Q6K => Q8_0,
        _ => F16,
    };
    if row.is_multiple_of(block_len(next)) { next } else { F16 }
}

impl fmt::Display for GgufPreset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

impl FromStr for GgufPreset {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        let lower = s.to_ascii_lowercase();
        let name = ALIASES.iter().find(|(alias, _)| *alias == lower).map_or(lower.as_str(), |(_, name)| name);
        let found = GgufPreset::all().find(|preset| preset.0.name == name);
        found.ok_or_else(|| Error::unsupported(format!("no GGUF encoding `{s}`")).hint("`bitsmith targets` lists them"))
    }
}

#[cfg(test)]
#[path = "preset_tests.rs"]
mod tests;
