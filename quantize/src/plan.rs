//! Which codec each tensor gets: a preset, overrides, and the fallbacks that row lengths force.

use crate::preset::{GgufPreset, block_len, fallback};
use bitsmith_formats::{CodecId, Error, Float, Result};
use bitsmith_runtime::role::{Part, Role};
use bitsmith_runtime::spec::ModelSpec;
use serde::Serialize;

/// The choice for one tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlanEntry {
    /// Which tensor.
    #[serde(serialize_with = "as_text")]
    pub role: Role,
    /// Its block format.
    pub codec: CodecId,
    /// What was wanted, where the row length did not allow it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instead_of: Option<CodecId>,
    /// Whether the result is useless without calibration or an imatrix, so that llama-quantize refuses to make it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub needs_importance: bool,
}

fn as_text<S: serde::Serializer>(role: &Role, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(role)
}

/// A choice for every tensor of a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// One entry per tensor, in GGUF's customary order.
    pub entries: Vec<PlanEntry>,
    /// Whether formats that may lean on a scale per tensor have one ([`CodecId::tensor_scale`]); linear layers that read the same input
    /// then share it, as servers fuse them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tensor_scales: bool,
}

/// What may change a preset's choices.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PlanOptions {
    /// Every matrix in the base format.
    pub pure: bool,
    /// Refuse instead of falling back to another format.
    pub no_fallback: bool,
    /// Formats by role: a part (`attn_v`) or one tensor (`blk.3.attn_v.weight`, also without `.weight`). Later ones win.
    pub overrides: Vec<(String, CodecId)>,
    /// Format of the output matrix, and of a tied embedding unless that has its own; wins over `overrides` for the output matrix.
    pub output_type: Option<CodecId>,
    /// Format of the token embedding; wins over everything else.
    pub embedding_type: Option<CodecId>,
    /// Whether importance will be used: llama-quantize chooses differently with an imatrix.
    pub importance: bool,
}

impl PlanOptions {
    /// Whether the format of this tensor was chosen by name.
    pub fn names(&self, role: Role) -> bool {
        self.overrides.iter().any(|(name, _)| names(name, role))
            || role.part == Part::Output && self.output_type.is_some()
            || role.part == Part::TokenEmbd && self.embedding_type.is_some()
    }

    /// Whether any tensor is wanted in a format that is not plain floating point.
    pub fn names_quantized(&self) -> bool {
        let named = self.overrides.iter().map(|(_, codec)| codec).chain(&self.output_type).chain(&self.embedding_type);
        named.into_iter().any(|codec| codec.float().is_none())
    }
}

impl Plan {
    /// llama-quantize's choices for a GGUF. Norms and biases are F32.
    pub fn gguf(spec: &ModelSpec, preset: GgufPreset, options: &PlanOptions) -> Result<Plan> {
        let wanted = |role: Role| {
            if !role.part.is_matrix() {
                CodecId::F32
            } else if extra(spec, role) {
                // Nobody knows which of their weights matter: no model runs them for calibration.
                let codec = if options.pure { preset.base() } else { preset.choose(spec, role, false) };
                if preset.needs_importance(role.part, codec) { CodecId::Q4K } else { codec }
            } else if options.pure {
                preset.base()
            } else {
                preset.choose(spec, role, options.importance)
            }
        };
        let mut plan = Self::build(spec, options, wanted, |_, _| true, fallback)?;
        for e in &mut plan.entries {
            e.needs_importance = preset.needs_importance(e.role.part, e.codec);
        }
        Ok(plan)
    }

    /// Every matrix in the MLX format that `choose` names, embedding and output included, as `mlx_lm.convert -q` does. Rows that
    /// are not whole groups stay dense in `dense`, as do norms and biases.
    pub fn mlx(spec: &ModelSpec, choose: impl Fn(Role) -> CodecId, dense: Float, options: &PlanOptions) -> Result<Plan> {
        let wanted = |role: Role| if role.part.is_matrix() { choose(role) } else { dense.codec() };
        Self::build(spec, options, wanted, |_, _| true, |_, _| dense.codec())
    }

    /// The layers' matrices in the format that `choose` names for them and their rows' length, where `fits` allows their rows and columns;
    /// embedding, output, norms and biases stay dense in `dense`. So are checkpoints for GPU servers.
    pub fn linears(
        spec: &ModelSpec,
        choose: impl Fn(Role, usize) -> CodecId,
        dense: Float,
        fits: impl Fn(CodecId, usize, usize) -> bool,
        options: &PlanOptions,
    ) -> Result<Plan> {
        let row = |role: Role| spec.shape(role.part).last().copied().unwrap_or(1);
        // Servers have the projection of layers for multi-token prediction dense, and these layers decide speed, not content.
        let packed = |role: Role| role.part.is_linear() && !extra(spec, role);
        let wanted = |role: Role| if packed(role) { choose(role, row(role)) } else { dense.codec() };
        let fits = |codec: CodecId, shape: &[usize]| codec.float().is_some() || matches!(shape, &[.., r, c] if fits(codec, r, c));
        Self::build(spec, options, wanted, fits, |_, _| dense.codec())
    }

    fn build(
        spec: &ModelSpec,
        options: &PlanOptions,
        wanted: impl Fn(Role) -> CodecId,
        fits: impl Fn(CodecId, &[usize]) -> bool,
        fall_back: impl Fn(CodecId, usize) -> CodecId,
    ) -> Result<Plan> {
        let mut used = vec![false; options.overrides.len()];
        let mut entries = Vec::new();
        for role in spec.roles() {
            let shape = spec.shape(role.part);
            let row = *shape.last().expect("tensors have dimensions");
            let mut want = match options.output_type {
                Some(codec) if spec.tied && role.part == Part::TokenEmbd => codec,
                _ => wanted(role),
            };
            for (i, (name, codec)) in options.overrides.iter().enumerate() {
                if names(name, role) {
                    if !role.part.is_matrix() && codec.float().is_none() {
                        return Err(Error::usage(format!("{role} is not a matrix and cannot be {codec}")));
                    }
                    (want, used[i]) = (*codec, true);
                }
            }
            want = match role.part {
                Part::Output => options.output_type.unwrap_or(want),
                Part::TokenEmbd => options.embedding_type.unwrap_or(want),
                _ => want,
            };
            if row.is_multiple_of(block_len(want)) && fits(want, &shape) {
                entries.push(PlanEntry { role, codec: want, instead_of: None, needs_importance: false });
                continue;
            }
            let codec = fall_back(want, row);
            if options.no_fallback {
                return Err(Error::unsupported(format!("a tensor of {shape:?} cannot be {want}; it would become {codec}"))
                    .tensor(role.to_string())
                    .hint("leave out --no-fallback, or choose a format that its dimensions allow"));
            }
            entries.push(PlanEntry { role, codec, instead_of: Some(want), needs_importance: false });
        }
        if let Some(i) = used.iter().position(|u| !u) {
            let name = &options.overrides[i].0;
            return Err(Error::usage(format!("--tensor-type {name}: the model has no such tensor")));
        }
        Ok(Plan { entries, tensor_scales: false })
    }

    /// The choices for the tensors that this model has.
    pub fn restricted(&self, spec: &ModelSpec) -> Plan {
        let entries = self.entries.iter().filter(|e| spec.has_role(e.role)).cloned().collect();
        Plan { entries, ..*self }
    }

    /// The codec of one tensor.
    pub fn codec(&self, role: Role) -> Option<CodecId> {
        self.entries.iter().find(|e| e.role == role).map(|e| e.codec)
    }

    /// Whether a tensor has a scale of its own beside its blocks.
    pub fn has_scale(&self, role: Role) -> bool {
        // Any magnitude but that of scale 1 tells.
        self.tensor_scales && self.codec(role).is_some_and(|codec| codec.tensor_scale(1.0) != 1.0)
    }

    /// The choices in the form that converters take.
    pub fn pairs(&self) -> Vec<(Role, CodecId)> {
        self.entries.iter().map(|e| (e.role, e.codec)).collect()
    }

    /// Tensors that cannot do without importance; `has` says which have it.
    pub fn check_importance(&self, has: impl Fn(Role) -> bool) -> Result<()> {
        match self.entries.iter().find(|e| e.needs_importance && !has(e.role)) {
            Some(e) => Err(Error::usage(format!("{} needs to know which weights matter: without that it is useless", e.codec))
                .tensor(e.role.to_string())
                .hint("`bitsmith quantize` with --calib takes calibration text, with --imatrix an importance matrix that covers this tensor")),
            None => Ok(()),
        }
    }

    /// Bytes of all tensors.
    pub fn bytes(&self, spec: &ModelSpec) -> u64 {
        let bytes = |e: &PlanEntry| {
            let shape = spec.shape(e.role.part);
            let row = *shape.last().expect("tensors have dimensions");
            let rows: usize = shape[..shape.len() - 1].iter().product();
            (e.codec.row_bytes(row).unwrap_or(0) * rows) as u64
        };
        self.entries.iter().map(bytes).sum()
    }

    /// One line per kind of fallback, for the user.
    pub fn fallbacks(&self) -> Vec<String> {
        let mut kinds: Vec<(Part, CodecId, CodecId, usize)> = Vec::new();
        for e in &self.entries {
            let Some(want) = e.instead_of else { continue };
            match kinds.iter_mut().find(|k| (k.0, k.1, k.2) == (e.role.part, want, e.codec)) {
                Some(k) => k.3 += 1,
                None => kinds.push((e.role.part, want, e.codec, 1)),
            }
        }
        let line = |(part, want, got, n): (Part, CodecId, CodecId, usize)| {
            let count = if n > 1 { format!(" ({n} tensors)") } else { String::new() };
            format!("{part}{count}: {got} instead of {want}, which its dimensions do not allow")
        };
        kinds.into_iter().map(line).collect()
    }
}

/// Whether a tensor belongs to a layer after the last (MTP).
fn extra(spec: &ModelSpec, role: Role) -> bool {
    role.layer.is_some_and(|layer| spec.is_extra(layer))
}

fn names(name: &str, role: Role) -> bool {
    let full = role.to_string();
    name == role.part.name() || name == full || full.strip_suffix(".weight") == Some(name)
}
