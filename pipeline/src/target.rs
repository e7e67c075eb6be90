//! `container:encoding`: what `--to` names.

use crate::budget::{Auto, Home};
use crate::compressed::Compressed;
use crate::keep;
use bitsmith_formats::mlx::Scheme;
use bitsmith_formats::packed::{PackedFormat, ZeroPoints};
use bitsmith_formats::{CodecId, Error, Float, Micro, Result};
use bitsmith_quantize::Plan;
use bitsmith_quantize::plan::PlanOptions;
use bitsmith_quantize::preset::GgufPreset;
use bitsmith_quantize::recipe::MlxRecipe;
use bitsmith_runtime::ContainerKind;
use bitsmith_runtime::role::{Part, Role};
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
    /// An MLX folder of affine groups, with more bits where mlx-lm's recipe gives them.
    MlxRecipe(MlxRecipe),
    /// An MLX folder of small floats.
    MlxMicro(Micro),
    /// An MLX folder of plain floating-point tensors.
    MlxDense(Float),
    /// A plain Hugging Face folder of floating-point tensors.
    Hf(Float),
    /// A GPTQ folder.
    Gptq {
        /// Bits per code.
        bits: u8,
        /// Weights per group.
        group: u16,
        /// Whether the zero point is always in the middle, as GPTQ's tools have it by default.
        symmetric: bool,
    },
    /// An AWQ folder, 4 bits.
    Awq {
        /// Weights per group.
        group: u16,
    },
    /// A folder in the layout of compressed-tensors.
    Compressed(Compressed),
    /// A folder in ModelOpt's layout, NVFP4.
    ModelOpt,
    /// A container whose tensors have the formats that lose least within a budget.
    Auto(Auto),
}

/// Types of dense targets.
const FLOATS: [Float; 3] = [Float::BF16, Float::F16, Float::F32];
/// Name of ModelOpt's encoding.
const MODELOPT: &str = "nvfp4";

/// Bits and groups that MLX's affine kernels take.
const MLX_BITS: [u8; 6] = [2, 3, 4, 5, 6, 8];
const MLX_GROUPS: [u16; 3] = [32, 64, 128];
/// Groups of GPTQ and AWQ.
const PACKED_GROUPS: [u16; 3] = [128, 64, 32];
/// Widths of GPTQ.
const GPTQ_BITS: [u8; 4] = [4, 8, 3, 2];
/// A row for questions whose answer does not depend on it.
pub const TYPICAL_ROW: usize = 4096;
/// Targets of small floats.
const MLX_MICRO: [(&str, Micro); 3] = [("mxfp4", Micro::Mxfp4), ("mxfp8", Micro::Mxfp8), ("nvfp4", Micro::Nvfp4)];

impl Target {
    /// Every target, default groups first.
    pub fn all() -> Vec<Target> {
        let mut all: Vec<Target> = GgufPreset::all().map(Target::Gguf).collect();
        for bits in MLX_BITS {
            all.extend([64, 32, 128].map(|group| Target::Mlx { bits, group }));
        }
        all.extend(MLX_MICRO.map(|(_, format)| Target::MlxMicro(format)));
        all.extend(MlxRecipe::ALL.map(Target::MlxRecipe));
        all.extend(FLOATS.map(Target::MlxDense));
        all.extend(FLOATS.map(Target::Hf));
        for symmetric in [true, false] {
            let gptq = |bits| PACKED_GROUPS.map(|group| Target::Gptq { bits, group, symmetric });
            all.extend(GPTQ_BITS.into_iter().flat_map(gptq));
        }
        all.extend(PACKED_GROUPS.map(|group| Target::Awq { group }));
        all.extend(Compressed::all().map(Target::Compressed));
        all.push(Target::ModelOpt);
        all
    }

    /// `gguf`, `mlx`, `hf`, `gptq`, `awq`, `compressed` or `modelopt`.
    pub fn container(self) -> &'static str {
        match self {
            Target::Gguf(_) => "gguf",
            Target::Mlx { .. } | Target::MlxRecipe(_) | Target::MlxMicro(_) | Target::MlxDense(_) => "mlx",
            Target::Hf(_) => "hf",
            Target::Gptq { .. } => "gptq",
            Target::Awq { .. } => "awq",
            Target::Compressed(_) => "compressed",
            Target::ModelOpt => "modelopt",
            Target::Auto(auto) => auto.home.container(),
        }
    }

    /// The encoding's name, without the container.
    pub fn encoding(self) -> String {
        match self {
            Target::Gguf(preset) => preset.to_string(),
            Target::Mlx { bits, group: 64 } => format!("{bits}bit"),
            Target::Mlx { bits, group } => format!("{bits}bit-g{group}"),
            Target::MlxRecipe(recipe) => recipe.to_string(),
            Target::MlxMicro(format) => {
                let name = MLX_MICRO.into_iter().find(|(_, f)| *f == format).map(|(name, _)| name);
                name.expect("every format has a name").to_string()
            }
            Target::MlxDense(float) | Target::Hf(float) => float.codec().to_string(),
            Target::Gptq { bits, group, symmetric } => format!("{bits}bit-g{group}{}", if symmetric { "" } else { "-asym" }),
            Target::Awq { group } => format!("4bit-g{group}"),
            Target::Compressed(encoding) => encoding.to_string(),
            Target::ModelOpt => MODELOPT.into(),
            Target::Auto(auto) => auto.encoding(),
        }
    }

    /// How packed weights are spread over tensors; `None` for containers that have none. GPTQ's first version cannot store zero
    /// point 0, which symmetric groups never have.
    pub fn packed(self) -> Option<PackedFormat> {
        match self {
            Target::Gptq { symmetric: true, .. } => Some(PackedFormat::Gptq(ZeroPoints::MinusOne)),
            Target::Gptq { symmetric: false, .. } => Some(PackedFormat::Gptq(ZeroPoints::AsTheyAre)),
            Target::Awq { .. } => Some(PackedFormat::Awq),
            Target::Compressed(_) => Some(PackedFormat::CompressedTensors),
            Target::ModelOpt => Some(PackedFormat::ModelOpt),
            Target::Auto(auto) => auto.home.typical().packed(),
            _ => None,
        }
    }

    /// The base format of the target's matrices with rows of `row` weights, which share a scale in some formats; `dense` is the source's
    /// storage type, which MLX and compressed-tensors keep for scales.
    pub fn base(self, dense: Float, row: usize) -> CodecId {
        match self {
            Target::Gguf(preset) => preset.base(),
            Target::Mlx { bits, group } => CodecId::MlxAffine { bits, group, scale: dense },
            Target::MlxRecipe(recipe) => CodecId::MlxAffine { bits: recipe.base(), group: MlxRecipe::GROUP, scale: dense },
            Target::MlxMicro(format) => CodecId::Micro(format),
            Target::MlxDense(float) | Target::Hf(float) => float.codec(),
            // The tools keep scales in F16 whatever the rest is stored in.
            Target::Gptq { bits, group, symmetric } => {
                CodecId::IntGroup { bits, group: group.into(), scale: Float::F16, symmetric }
            }
            Target::Awq { group } => CodecId::IntGroup { bits: 4, group: group.into(), scale: Float::F16, symmetric: false },
            Target::Compressed(encoding) => encoding.codec(row, dense),
            Target::ModelOpt => CodecId::Micro(Micro::Nvfp4),
            Target::Auto(auto) => auto.home.typical().base(dense, row),
        }
    }

    /// Whether any matrix is stored in fewer bits than a floating-point number.
    pub fn is_quantized(self) -> bool {
        self.base(Float::BF16, TYPICAL_ROW).float().is_none()
    }

    /// Whether the target has floating-point scales, for which the best type is worth a search.
    pub fn has_mlx_scales(self) -> bool {
        matches!(self, Target::Mlx { .. } | Target::MlxRecipe(_) | Target::Auto(Auto { home: Home::Mlx, .. }))
    }

    /// The type of norms and biases.
    pub fn vector_type(self, dense: Float) -> Float {
        match self {
            Target::Gguf(_) => Float::F32,
            Target::Mlx { .. } | Target::MlxRecipe(_) | Target::MlxMicro(_) => dense,
            Target::Compressed(_) | Target::ModelOpt => dense,
            Target::MlxDense(float) | Target::Hf(float) => float,
            // Their kernels compute in 16 bits, AWQ's in F16.
            Target::Gptq { .. } if dense != Float::F32 => dense,
            Target::Gptq { .. } | Target::Awq { .. } => Float::F16,
            Target::Auto(auto) => auto.home.typical().vector_type(dense),
        }
    }

    /// The format of every tensor.
    pub fn plan(self, spec: &ModelSpec, dense: Float, options: &PlanOptions) -> Result<Plan> {
        if let Target::Auto(auto) = self {
            return auto.home.typical().plan(spec, dense, options);
        }
        let kind = match self {
            Target::Gguf(_) => ContainerKind::Gguf,
            _ if self.container() == "mlx" => ContainerKind::Mlx,
            _ => ContainerKind::Hf,
        };
        // Parts that share a tensor, or are turned around in it, have no place for anything but plain numbers.
        let plain = |role: Role| spec.arch.is_joint(spec, kind, role.part);
        let plan = match self {
            Target::Gguf(preset) => Plan::gguf(spec, preset, options)?,
            Target::Gptq { .. } | Target::Awq { .. } | Target::Compressed(_) | Target::ModelOpt => {
                let format = self.packed().expect("these targets are packed");
                // What the container has no format for is refused below, by that reason.
                let fits = |codec, rows, columns| !self.can_hold(codec) || format.fits(codec, rows, columns);
                if let Some(role) = spec.roles().into_iter().find(|r| r.part == Part::FfnGateExps && plain(*r)) {
                    let what =
                        format!("architecture `{}` has all experts in one tensor, which {self} cannot pack", spec.arch.name);
                    let e = Error::unsupported(what).tensor(role.to_string());
                    return Err(e.hint("a GGUF or MLX target packs them"));
                }
                let float = self.vector_type(dense);
                let choose = |role: Role, row| if plain(role) { float.codec() } else { self.base(dense, row) };
                let plan = Plan::linears(spec, choose, float, fits, options)?;
                Plan { tensor_scales: matches!(self, Target::Compressed(_) | Target::ModelOpt), ..plan }
            }
            Target::Mlx { .. } | Target::MlxRecipe(_) | Target::MlxMicro(_) | Target::MlxDense(_) | Target::Hf(_) => {
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
                let choose = |role: Role| match (self, self.base(dense, TYPICAL_ROW)) {
                    _ if plain(role) => scale.codec(),
                    (Target::MlxRecipe(recipe), CodecId::MlxAffine { group, scale, .. }) if !options.pure => {
                        CodecId::MlxAffine { bits: recipe.bits(spec, role), group, scale }
                    }
                    (_, base) => base,
                };
                Plan::mlx(spec, choose, scale, &options)?
            }
            Target::Auto(_) => unreachable!("returned above"),
        };
        // Only now, as a container may not have what the user wants for one tensor.
        let container = self.container().to_uppercase();
        for (role, codec) in plan.pairs() {
            let refused = match (self.packed(), codec.float()) {
                _ if !self.can_hold(codec) => format!("{container} has no format {codec}"),
                (Some(_), None) if role.layer.is_none() => format!("{container} keeps embedding and output matrix dense"),
                _ => continue,
            };
            return Err(Error::unsupported(refused).tensor(role.to_string()).hint("choose a format of the target's container"));
        }
        if self.packed().is_some() && plan.entries.iter().all(|e| e.codec.float().is_some()) {
            let message = format!("no matrix of this model can be {}", self.base(dense, spec.hidden_size));
            return Err(Error::unsupported(message).hint("choose a smaller group, or another format"));
        }
        Ok(plan)
    }

    /// Whether this tensor can have this format in the container, which its dimensions decide too.
    pub(crate) fn holds(self, role: Role, codec: CodecId, shape: &[usize]) -> bool {
        let packed = self.packed().is_none_or(|format| {
            role.layer.is_some() && matches!(shape, &[.., rows, columns] if format.fits(codec, rows, columns))
        });
        packed && self.can_hold(codec)
    }

    /// Whether tensors of the container can have this format.
    fn can_hold(self, codec: CodecId) -> bool {
        if let Target::Auto(auto) = self {
            return auto.home.typical().can_hold(codec);
        }
        match codec {
            // What the loaders take for granted does not differ between modules: the type of scales, and all of it in AWQ.
            CodecId::IntGroup { scale, symmetric, .. } => match self {
                Target::Gptq { symmetric: all, .. } => scale == Float::F16 && symmetric == all,
                Target::Awq { .. } => codec == self.base(Float::F16, TYPICAL_ROW),
                Target::Compressed(_) => true,
                _ => false,
            },
            CodecId::Fp8Group { .. } => matches!(self, Target::Compressed(_)),
            CodecId::Nf4 { .. } => false,
            other if other.float().is_some() => true,
            CodecId::Micro(_) if matches!(self, Target::Compressed(_)) => true,
            CodecId::Micro(Micro::Nvfp4) if self == Target::ModelOpt => true,
            other if Scheme::of(other).is_some() => self.container() == "mlx",
            _ => self.container() == "gguf",
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
        if let Some(auto) = Auto::parse(container, encoding)? {
            return Ok(Target::Auto(auto));
        }
        if keep::container(s).is_some() {
            return Err(Error::usage(format!(
                "{s} keeps a model as it is, which is no work for this command or beside other targets"
            ))
            .hint("`bitsmith convert MODEL --to gguf:keep`, with --shard-size to split a GGUF"));
        }
        let unknown = || Error::unsupported(format!("unknown target `{s}`")).hint(hint);
        let dense = || FLOATS.into_iter().find(|f| f.codec().to_string() == encoding);
        match container {
            "hf" => dense().map(Target::Hf).ok_or_else(unknown),
            "gguf" => encoding.parse().map(Target::Gguf).map_err(|_| unknown()),
            "mlx" => {
                if let Some(float) = dense() {
                    return Ok(Target::MlxDense(float));
                }
                if let Some((_, format)) = MLX_MICRO.into_iter().find(|(name, _)| *name == encoding) {
                    return Ok(Target::MlxMicro(format));
                }
                if let Some(recipe) = MlxRecipe::ALL.into_iter().find(|r| r.to_string() == encoding) {
                    return Ok(Target::MlxRecipe(recipe));
                }
                let (bits, group) = encoding.split_once("-g").unwrap_or((encoding, "64"));
                let bits = bits.strip_suffix("bit").and_then(|b| b.parse().ok()).filter(|b| MLX_BITS.contains(b));
                let group = group.parse().ok().filter(|g| MLX_GROUPS.contains(g));
                let (Some(bits), Some(group)) = (bits, group) else { return Err(unknown()) };
                Ok(Target::Mlx { bits, group })
            }
            "gptq" | "awq" => {
                let mut parts = encoding.split('-');
                let bits = parts.next().and_then(|b| b.strip_suffix("bit")?.parse::<u8>().ok());
                let mut next = parts.next();
                let group = match next.and_then(|g| g.strip_prefix('g')) {
                    Some(group) => {
                        next = parts.next();
                        group.parse().ok().filter(|g| PACKED_GROUPS.contains(g))
                    }
                    None => Some(PACKED_GROUPS[0]),
                };
                match (container, bits, group, next, parts.next()) {
                    ("gptq", Some(bits), Some(group), None | Some("sym" | "asym"), None) if GPTQ_BITS.contains(&bits) => {
                        Ok(Target::Gptq { bits, group, symmetric: next != Some("asym") })
                    }
                    ("awq", Some(4), Some(group), None, None) => Ok(Target::Awq { group }),
                    _ => Err(unknown()),
                }
            }
            "compressed" => encoding.parse().map(Target::Compressed).map_err(|_| unknown()),
            "modelopt" if encoding == MODELOPT => Ok(Target::ModelOpt),
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
        let int = |scale, symmetric| CodecId::IntGroup { bits: 4, group: 64, scale, symmetric };
        let (gptq, awq): (Target, Target) = ("gptq:8bit".parse().unwrap(), "awq:4bit-g64".parse().unwrap());
        assert!(gptq.can_hold(int(Float::F16, true)) && !gptq.can_hold(int(Float::F16, false)) && gptq.can_hold(CodecId::BF16));
        assert!(
            awq.can_hold(int(Float::F16, false))
                && !awq.can_hold(int(Float::BF16, false))
                && !mlx.can_hold(int(Float::F16, true))
        );
        assert!(mlx.can_hold(affine) && mlx.can_hold(CodecId::F32) && !mlx.can_hold(CodecId::Q6K));
        let hf: Target = "hf:bf16".parse().unwrap();
        assert!(hf.can_hold(CodecId::F16) && !hf.can_hold(CodecId::Q8_0) && !hf.can_hold(affine) && !hf.is_quantized());
        let small = CodecId::Micro(Micro::Mxfp4);
        assert!(mlx.can_hold(small) && !gguf.can_hold(small) && gguf.can_hold(CodecId::MXFP4) && !mlx.can_hold(CodecId::MXFP4));
        let (compressed, modelopt): (Target, Target) = ("compressed:fp8".parse().unwrap(), "modelopt:nvfp4".parse().unwrap());
        let (fp8, nvfp4) = (CodecId::Fp8Group { group: 64, scale: Float::BF16 }, CodecId::Micro(Micro::Nvfp4));
        for codec in [fp8, nvfp4, small, int(Float::BF16, false), CodecId::F16] {
            assert!(compressed.can_hold(codec), "{codec}");
            assert_eq!(modelopt.can_hold(codec), [nvfp4, CodecId::F16].contains(&codec), "{codec}");
        }
        assert!(
            !compressed.can_hold(CodecId::NVFP4) && !compressed.can_hold(affine) && !gptq.can_hold(fp8) && !mlx.can_hold(fp8)
        );
        let int = CodecId::IntGroup { bits: 4, group: 128, scale: Float::F16, symmetric: true };
        assert!(!mlx.can_hold(int) && !gguf.can_hold(int));
    }

    #[test]
    fn names_round_trip() {
        for target in Target::all() {
            assert_eq!(target.to_string().parse::<Target>().unwrap(), target);
        }
        for auto in
            ["gguf:auto", "gguf:auto@4.5bpw", "mlx:auto@3.2GiB", "gptq:auto@5bpw", "gguf:auto@0.02kld", "mlx:auto@1000001B"]
        {
            assert_eq!(auto.parse::<Target>().unwrap().to_string(), auto);
        }
        assert_eq!("mlx:4bit-g64".parse::<Target>().unwrap().to_string(), "mlx:4bit");
        let packed = |s: &str| s.parse::<Target>().unwrap().to_string();
        assert_eq!(
            ["gptq:4bit", "gptq:3bit-g64-sym", "gptq:2bit-asym", "awq:4bit"].map(packed),
            ["gptq:4bit-g128", "gptq:3bit-g64", "gptq:2bit-g128-asym", "awq:4bit-g128",]
        );
        assert_eq!(
            ["compressed:int4", "compressed:int4-asym", "compressed:int8", "modelopt:nvfp4"].map(packed),
            ["compressed:int4-g128", "compressed:int4-g128-asym", "compressed:int8", "modelopt:nvfp4"]
        );
        for bad in [
            "gguf",
            "gguf:q3",
            "mlx:7bit",
            "mlx:mxfp4-g32",
            "mlx:mixed_2_4",
            "mlx:4bit-g16",
            "gptq:5bit",
            "gptq:4bit-g16",
            "gptq:4bit-sym-g32",
            "awq:8bit",
            "awq:4bit-sym",
            "compressed:int4-g16",
            "compressed:int8-asym",
            "compressed:int4-g128-sym",
            "compressed:nvfp4-g16",
            "modelopt:fp8",
            "gguf:auto@4.5",
            "gguf:auto@0bpw",
            "gguf:q4_k_m@4.5bpw",
            "awq:auto@4.5bpw",
            "hf:4bit",
            ":",
        ] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }
}
