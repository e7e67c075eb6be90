//! `container:encoding`: what `--to` names.

use crate::repack::KEEP;
use bitsmith_formats::{CodecId, Error, Float, Result};
use bitsmith_quantize::Plan;
use bitsmith_quantize::plan::PlanOptions;
use bitsmith_quantize::preset::GgufPreset;
use bitsmith_runtime::spec::ModelSpec;
use std::fmt;
use std::str::FromStr;

/// A container and an encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A GGUF file.
    Gguf(GgufPreset),
    /// An MLX folder of affine groups.
    Mlx {
        /// Bits per code.
        bits: u8,
        /// Weights per group.
        group: u16,
    },
    /// An MLX folder of plain floating-point tensors.
    MlxDense(Float),
}

/// Groups that MLX's affine kernels take.
const MLX_GROUPS: [u16; 3] = [32, 64, 128];

impl Target {
    /// Every target, default groups first.
    pub fn all() -> Vec<Target> {
        let mut all: Vec<Target> = GgufPreset::all().map(Target::Gguf).collect();
        for bits in [4, 8] {
            all.extend([64, 32, 128].map(|group| Target::Mlx { bits, group }));
        }
        all.extend([Float::BF16, Float::F16, Float::F32].map(Target::MlxDense));
        all
    }

    /// `gguf` or `mlx`.
    pub fn container(self) -> &'static str {
        match self {
            Target::Gguf(_) => "gguf",
            Target::Mlx { .. } | Target::MlxDense(_) => "mlx",
        }
    }

    /// The encoding's name, without the container.
    pub fn encoding(self) -> String {
        match self {
            Target::Gguf(preset) => preset.to_string(),
            Target::Mlx { bits, group: 64 } => format!("{bits}bit"),
            Target::Mlx { bits, group } => format!("{bits}bit-g{group}"),
            Target::MlxDense(float) => float.codec().to_string(),
        }
    }

    /// The base format of the target's matrices; `dense` is the source's storage type, which MLX keeps for scales.
    pub fn base(self, dense: Float) -> CodecId {
        match self {
            Target::Gguf(preset) => preset.base(),
            Target::Mlx { bits, group } => CodecId::MlxAffine { bits, group, scale: dense },
            Target::MlxDense(float) => float.codec(),
        }
    }

    /// Whether any matrix is stored in fewer bits than a floating-point number.
    pub fn is_quantized(self) -> bool {
        self.base(Float::BF16).float().is_none()
    }

    /// The type of norms and biases.
    pub fn vector_type(self, dense: Float) -> Float {
        match self {
            Target::Gguf(_) => Float::F32,
            Target::Mlx { .. } => dense,
            Target::MlxDense(float) => float,
        }
    }

    /// The format of every tensor.
    pub fn plan(self, spec: &ModelSpec, dense: Float, options: &PlanOptions) -> Result<Plan> {
        let plan = match self {
            Target::Gguf(preset) => Plan::gguf(spec, preset, options)?,
            Target::Mlx { .. } | Target::MlxDense(_) => {
                let scale = self.vector_type(dense);
                // MLX computes in the type of the scales, which is one type for the whole model.
                let scaled = |codec: &CodecId| match *codec {
                    CodecId::MlxAffine { bits, group, .. } => CodecId::MlxAffine { bits, group, scale },
                    other => other,
                };
                let options = PlanOptions {
                    overrides: options.overrides.iter().map(|(name, codec)| (name.clone(), scaled(codec))).collect(),
                    output_type: options.output_type.as_ref().map(scaled),
                    embedding_type: options.embedding_type.as_ref().map(scaled),
                    ..options.clone()
                };
                Plan::mlx(spec, self.base(dense), scale, &options)?
            }
        };
        // Only now, as a container may not have what the user wants for one tensor.
        match plan.pairs().into_iter().find(|(_, codec)| !self.can_hold(*codec)) {
            Some((role, codec)) => {
                let message = format!("{} has no format {codec}", self.container().to_uppercase());
                Err(Error::unsupported(message).tensor(role.to_string()).hint("choose a format of the target's container"))
            }
            None => Ok(plan),
        }
    }

    /// Whether tensors of the container can have this format.
    fn can_hold(self, codec: CodecId) -> bool {
        match codec {
            CodecId::MlxAffine { .. } => self.container() == "mlx",
            other => other.float().is_some() || self.container() == "gguf",
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.container(), self.encoding())
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let hint = "`bitsmith targets` lists the targets, for example gguf:q4_k_m and mlx:4bit";
        let Some((container, encoding)) = s.split_once(':') else {
            return Err(Error::usage(format!("target `{s}` is not of the form container:encoding")).hint(hint));
        };
        if encoding.contains('@') {
            return Err(Error::unsupported(format!("target `{s}`: size budgets are not available")).hint(hint));
        }
        if s == KEEP {
            return Err(Error::usage(format!(
                "{KEEP} copies a GGUF as it is, which is no work for this command or beside other targets"
            ))
            .hint("`bitsmith convert FILE.gguf --to gguf:keep`, with --shard-size to split it"));
        }
        let unknown = || Error::unsupported(format!("unknown target `{s}`")).hint(hint);
        match container {
            "gguf" => encoding.parse().map(Target::Gguf).map_err(|_| unknown()),
            "mlx" => {
                let dense = [Float::BF16, Float::F16, Float::F32].into_iter().find(|f| f.codec().to_string() == encoding);
                if let Some(float) = dense {
                    return Ok(Target::MlxDense(float));
                }
                let (bits, group) = encoding.split_once("-g").unwrap_or((encoding, "64"));
                let bits = bits.strip_suffix("bit").and_then(|b| b.parse().ok()).filter(|b| matches!(b, 4 | 8));
                let group = group.parse().ok().filter(|g| MLX_GROUPS.contains(g));
                let (Some(bits), Some(group)) = (bits, group) else { return Err(unknown()) };
                Ok(Target::Mlx { bits, group })
            }
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_hold_their_own_formats() {
        let (gguf, mlx): (Target, Target) = ("gguf:q4_k_m".parse().unwrap(), "mlx:4bit".parse().unwrap());
        let affine = CodecId::MlxAffine { bits: 8, group: 64, scale: Float::BF16 };
        assert!(gguf.can_hold(CodecId::Q6K) && gguf.can_hold(CodecId::F16) && !gguf.can_hold(affine));
        assert!(mlx.can_hold(affine) && mlx.can_hold(CodecId::F32) && !mlx.can_hold(CodecId::Q6K));
    }

    #[test]
    fn names_round_trip() {
        for target in Target::all() {
            assert_eq!(target.to_string().parse::<Target>().unwrap(), target);
        }
        assert_eq!("mlx:4bit-g64".parse::<Target>().unwrap().to_string(), "mlx:4bit");
        for bad in ["gguf", "gguf:q3", "mlx:3bit", "mlx:4bit-g16", "gptq:4bit", "gguf:auto@4.5bpw", ":"] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }
}
