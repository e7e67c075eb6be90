//! `auto` targets: containers whose tensors have whatever formats lose least within a budget.

use crate::context::parse_size;
use crate::target::Target;
use bitsmith_formats::{Error, Result};
use bitsmith_quantize::preset::GgufPreset;
use std::fmt;
use std::str::FromStr;

/// An `auto` target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Auto {
    /// The container.
    pub home: Home,
    /// What the tensors may take; a plan that is given needs none.
    pub budget: Option<Budget>,
}

/// Containers in which tensors may differ in format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// A GGUF file.
    Gguf,
    /// An MLX folder, with overrides per layer in its configuration.
    Mlx,
    /// A GPTQ folder, with GPTQModel's rules per module.
    Gptq,
}

/// What an allocation must keep to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// At most so many bits per weight, over all tensors, scales included.
    Bpw(Number),
    /// At most so many bytes, all files together.
    Bytes(u64),
    /// The fewest bytes whose predicted mean divergence is at most this, nats per token.
    MaxKld(Number),
}

/// A positive, finite number. Equality is that of its bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Number(u64);

impl Number {
    /// `None` for what is not positive and finite.
    pub fn new(value: f64) -> Option<Number> {
        (value.is_finite() && value > 0.0).then(|| Number(value.to_bits()))
    }
    /// The number.
    pub fn get(self) -> f64 {
        f64::from_bits(self.0)
    }
}

/// How fast the formats must be to decode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SpeedClass {
    /// Formats that runtimes decode with shifts and masks: GGUF's legacy formats and K-quants, MLX groups of 64, GPTQ's widths of 4 and 8.
    #[default]
    Fast,
    /// All formats: GGUF's I-quants too, which look points up in tables, MLX groups of 32 too, all widths of GPTQ.
    All,
}

impl Home {
    /// The name before the colon.
    pub fn container(self) -> &'static str {
        match self {
            Home::Gguf => "gguf",
            Home::Mlx => "mlx",
            Home::Gptq => "gptq",
        }
    }

    /// A target in the same container whose tensors have one format: what an `auto` target is like in all that formats do not decide.
    pub fn typical(self) -> Target {
        match self {
            Home::Gguf => gguf("q4_k_s"),
            Home::Mlx => Target::Mlx { bits: 4, group: 64 },
            Home::Gptq => Target::Gptq { bits: 4, group: 128, symmetric: true },
        }
    }

    /// Targets with one format each, among which tensors may choose.
    pub fn candidates(self, speed: SpeedClass) -> Vec<Target> {
        let all = speed == SpeedClass::All;
        match self {
            Home::Gguf => {
                let tables = ["iq2_xxs", "iq2_xs", "iq2_m", "iq3_xxs", "iq3_s", "iq4_xs"];
                let plain = ["q2_k", "q3_k_s", "q4_k_s", "q5_k_s", "q6_k", "q8_0"];
                tables.into_iter().filter(|_| all).chain(plain).map(gguf).collect()
            }
            Home::Mlx => {
                let groups = if all { vec![64, 32] } else { vec![64] };
                groups.into_iter().flat_map(|group| [2, 3, 4, 5, 6, 8].map(|bits| Target::Mlx { bits, group })).collect()
            }
            Home::Gptq => {
                let bits = if all { vec![2, 3, 4, 8] } else { vec![4, 8] };
                bits.into_iter().map(|bits| Target::Gptq { bits, group: 128, symmetric: true }).collect()
            }
        }
    }

    /// Whether layers that read the same input must have one format: servers fuse them.
    pub fn fuses(self) -> bool {
        self == Home::Gptq
    }
}

fn gguf(name: &str) -> Target {
    Target::Gguf(name.parse::<GgufPreset>().expect("a preset of ours"))
}

impl Auto {
    /// Understands `auto` and `auto@BUDGET`; `None` for any other encoding.
    pub fn parse(container: &str, encoding: &str) -> Result<Option<Auto>> {
        let (name, budget) = encoding.split_once('@').map_or((encoding, None), |(name, budget)| (name, Some(budget)));
        if name != "auto" {
            return match budget {
                Some(_) => Err(Error::usage(format!("`{container}:{encoding}`: only `auto` takes a budget"))
                    .hint("for example gguf:auto@4.5bpw")),
                None => Ok(None),
            };
        }
        let Some(home) = [Home::Gguf, Home::Mlx, Home::Gptq].into_iter().find(|h| h.container() == container) else {
            let message = format!("{container}:auto: tensors of this container all have one format");
            return Err(Error::unsupported(message).hint("gguf:auto, mlx:auto and gptq:auto choose formats tensor by tensor"));
        };
        Ok(Some(Auto { home, budget: budget.map(str::parse).transpose()? }))
    }

    /// What the tensors may take, or an error that says how to say it.
    pub fn required_budget(self) -> Result<Budget> {
        self.budget.ok_or_else(|| {
            Error::usage(format!("{}:auto needs a budget or a plan", self.home.container()))
                .hint("for example --to gguf:auto@4.5bpw, or --bpw, --size, --max-kld, or --plan FILE")
        })
    }

    /// `auto@4.5bpw`.
    pub fn encoding(self) -> String {
        self.budget.map_or("auto".into(), |budget| format!("auto@{budget}"))
    }
}

impl Budget {
    /// The bytes that it allows for a model of so many weights, if it is about bytes.
    pub fn bytes(self, n_weights: usize) -> Option<u64> {
        match self {
            Budget::Bpw(bits) => Some((bits.get() * n_weights as f64 / 8.0).floor() as u64),
            Budget::Bytes(bytes) => Some(bytes),
            Budget::MaxKld(_) => None,
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Budget::Bpw(bits) => write!(f, "{}bpw", bits.get()),
            Budget::MaxKld(kld) => write!(f, "{}kld", kld.get()),
            Budget::Bytes(bytes) => {
                // As a person would write it, if that is the same size.
                let written = ["GiB", "MiB", "KiB"].into_iter().zip([30, 20, 10]).find_map(|(unit, shift)| {
                    let hundredths = (*bytes as f64 * 100.0 / f64::from(1u32 << shift)).round();
                    let text = format!("{}{unit}", hundredths / 100.0);
                    (hundredths >= 100.0 && parse_size(&text).ok() == Some(*bytes)).then_some(text)
                });
                f.write_str(&written.unwrap_or_else(|| format!("{bytes}B")))
            }
        }
    }
}

impl FromStr for Budget {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let number = |text: &str| text.trim().parse().ok().and_then(Number::new);
        let bad = || Error::usage(format!("`{s}` is no budget")).hint("budgets are like 4.5bpw, 3.2GiB or 0.01kld");
        if let Some(bits) = s.strip_suffix("bpw") {
            return number(bits).map(Budget::Bpw).ok_or_else(bad);
        }
        if let Some(kld) = s.strip_suffix("kld") {
            return number(kld).map(Budget::MaxKld).ok_or_else(bad);
        }
        match parse_size(s) {
            Ok(bytes) if bytes > 0 && !s.ends_with(|c: char| c.is_ascii_digit()) => Ok(Budget::Bytes(bytes)),
            _ => Err(bad()),
        }
    }
}

impl FromStr for SpeedClass {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "fast" => Ok(SpeedClass::Fast),
            "all" => Ok(SpeedClass::All),
            _ => Err(Error::usage(format!("unknown speed class `{s}`")).hint("the classes are fast and all")),
        }
    }
}
