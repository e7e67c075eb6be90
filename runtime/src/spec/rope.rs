//! Rotary position embeddings and their changes for long contexts.

use bitsmith_formats::{Error, Result};

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base frequency.
    pub theta: f64,
    /// Leading dimensions of a head that are rotated; 0: none. In latent attention, of the shared key.
    pub dims: usize,
    /// Whether neighbours are paired (0 with 1, 2 with 3, …) and not halves (0 with `dims / 2`, …).
    pub interleaved: bool,
    /// Change of the frequencies for long contexts.
    pub scaling: RopeScaling,
}

impl Rope {
    /// No rotation.
    pub const NONE: Rope = Rope { theta: 10_000.0, dims: 0, interleaved: false, scaling: RopeScaling::None };
}

/// Rope frequency scaling.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Beyond the original context, the base grows with the length of the text (dynamic NTK).
    Dynamic {
        /// How fast.
        factor: f64,
        /// Context length before scaling, in tokens.
        original_context: usize,
    },
    /// Llama 3's: long wavelengths divided by `factor`, short ones kept, a smooth ramp between.
    Llama3 {
        /// The divisor of long wavelengths.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Context length before scaling, in tokens.
        original_context: usize,
    },
    /// YaRN (Peng et al., 2023): as Llama 3's with a ramp over dimensions, and larger attention scores.
    Yarn(Yarn),
    /// LongRoPE (Ding et al., 2024): one divisor per frequency, others for texts longer than the original context.
    Long(LongRope),
    /// So many frequencies turn by the position in time, so many by height and by width in an image (M-RoPE). In text all three are the
    /// position of the token.
    Sections([usize; 3]),
    /// One divisor per frequency, as GGUF's `rope_freqs.weight` gives them, `dims / 2` values.
    Factors(Vec<f32>),
}

/// YaRN's parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Yarn {
    /// The divisor of long wavelengths.
    pub factor: f64,
    /// Context length before scaling, in tokens.
    pub original_context: usize,
    /// Turns within the original context above which a frequency is kept.
    pub beta_fast: f64,
    /// Turns within the original context below which a frequency is divided.
    pub beta_slow: f64,
    /// Factor of cosines and sines.
    pub attention_factor: f64,
    /// Whether the ramp begins and ends at whole dimensions.
    pub truncate: bool,
    /// DeepSeek's: attention scores are further multiplied by the square of `1 + 0.1 m ln factor` with this `m`.
    pub mscale_all_dim: f64,
}

/// LongRoPE's parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct LongRope {
    /// Divisors for texts within the original context, `dims / 2` values.
    pub short: Vec<f32>,
    /// Divisors for longer texts.
    pub long: Vec<f32>,
    /// Context length before scaling, in tokens.
    pub original_context: usize,
    /// Factor of cosines and sines.
    pub attention_factor: f64,
}

impl RopeScaling {
    /// The context length before scaling, in tokens, where the scaling has one.
    pub fn original_context(&self) -> Option<usize> {
        match self {
            RopeScaling::Dynamic { original_context, .. } | RopeScaling::Llama3 { original_context, .. } => {
                Some(*original_context)
            }
            RopeScaling::Yarn(y) => Some(y.original_context),
            RopeScaling::Long(l) => Some(l.original_context),
            RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Sections(_) | RopeScaling::Factors(_) => None,
        }
    }
}

impl Rope {
    /// Refuses parameters that no model can have.
    pub(super) fn validate(&self) -> Result<()> {
        let positive = |name: &str, v: f64| {
            let ok = v.is_finite() && v > 0.0;
            if ok { Ok(()) } else { Err(Error::corrupt(format!("{name} is {v}, not a positive number"))) }
        };
        let divisors = |values: &[f32], tensor: &str| {
            if values.len() != self.dims / 2 {
                let (got, want) = (values.len(), self.dims / 2);
                return Err(Error::corrupt(format!("{got} values, expected {want}")).tensor(tensor));
            }
            values.iter().try_for_each(|d| positive("rope divisor", f64::from(*d)).map_err(|e| e.tensor(tensor)))
        };
        positive("rope base frequency", self.theta)?;
        match &self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Sections(sections) if sections.iter().fold(0usize, |sum, n| sum.saturating_add(*n)) == self.dims / 2 => {
                Ok(())
            }
            RopeScaling::Sections(sections) => Err(Error::corrupt(format!(
                "sections {sections:?} of the rotary embedding, which has {} frequencies",
                self.dims / 2
            ))),
            RopeScaling::Linear { factor } => positive("rope scaling factor", *factor),
            RopeScaling::Dynamic { factor, original_context } => {
                positive("rope scaling factor", *factor)?;
                positive("original context of the rope scaling", *original_context as f64)
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                positive("rope scaling factor", *factor)?;
                positive("low_freq_factor", *low_freq_factor)?;
                positive("original context of the rope scaling", *original_context as f64)?;
                if high_freq_factor.is_nan() || high_freq_factor <= low_freq_factor {
                    return Err(Error::corrupt(format!(
                        "high_freq_factor {high_freq_factor} is not above low_freq_factor {low_freq_factor}"
                    )));
                }
                Ok(())
            }
            RopeScaling::Yarn(y) => {
                positive("rope scaling factor", y.factor)?;
                positive("original context of the rope scaling", y.original_context as f64)?;
                positive("beta_fast", y.beta_fast)?;
                positive("beta_slow", y.beta_slow)?;
                positive("attention_factor", y.attention_factor)
            }
            RopeScaling::Long(l) => {
                positive("original context of the rope scaling", l.original_context as f64)?;
                positive("attention_factor", l.attention_factor)?;
                divisors(&l.short, "rope_factors_short.weight")?;
                divisors(&l.long, "rope_factors_long.weight")
            }
            RopeScaling::Factors(values) => divisors(values, "rope_freqs.weight"),
        }
    }
}
