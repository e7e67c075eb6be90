//! Which tensors an artifact has, in which codec, under which name.

use bitsmith_formats::{CodecId, EncodedTensor, Error, Float, Result};
use bitsmith_runtime::{ContainerKind, ModelSpec, Role};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

/// One tensor of an artifact.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedTensor {
    /// Its place in the model.
    pub role: Role,
    /// Its name in the container.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Block format.
    pub codec: CodecId,
    /// Bytes of its blocks.
    pub bytes: usize,
}

impl PlannedTensor {
    /// Number of weights.
    pub fn n_weights(&self) -> usize {
        self.shape.iter().product()
    }

    /// Rows: all dimensions but the last, multiplied.
    pub fn n_rows(&self) -> usize {
        n_rows(&self.shape)
    }
}

/// All tensors of an artifact, in the order of [`ModelSpec::roles`].
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub tensors: Vec<PlannedTensor>,
    by_role: HashMap<Role, usize>,
}

impl Layout {
    /// Every matrix must be in `codecs`; norms and biases are stored as `vectors`.
    pub fn new(spec: &ModelSpec, kind: ContainerKind, codecs: &[(Role, CodecId)], vectors: Float) -> Result<Self> {
        let mut chosen: BTreeMap<Role, CodecId> = BTreeMap::new();
        for (role, codec) in codecs {
            if role.part.per_layer() != role.layer.is_some_and(|l| l < spec.n_layers) || !spec.has(role.part) {
                return Err(Error::failed("the model has no such tensor").tensor(role.to_string()));
            }
            if chosen.insert(*role, *codec).is_some() {
                return Err(Error::failed("is planned twice").tensor(role.to_string()));
            }
        }
        let mut layout = Layout { tensors: Vec::new(), by_role: HashMap::new() };
        for role in spec.roles() {
            let codec = match (role.part.is_matrix(), chosen.get(&role)) {
                (false, _) => vectors.codec(),
                (true, Some(codec)) => *codec,
                (true, None) => return Err(Error::failed("no codec is planned for this tensor").tensor(role.to_string())),
            };
            let name = spec.arch.tensor_name(kind, role).ok_or_else(|| {
                Error::unsupported(format!("architecture `{}` has no name for this tensor in {}", spec.arch.name, kind.name()))
                    .tensor(role.to_string())
            })?;
            let shape = spec.shape(role.part);
            let row_len = *shape.last().unwrap_or(&1);
            let row_bytes = codec.row_bytes(row_len).map_err(|e| e.tensor(&name))?;
            let bytes = shape.iter().product::<usize>() / row_len.max(1) * row_bytes;
            layout.by_role.insert(role, layout.tensors.len());
            layout.tensors.push(PlannedTensor { role, name, shape, codec, bytes });
        }
        Ok(layout)
    }

    /// The entry of a role.
    pub fn find(&self, role: Role) -> Result<&PlannedTensor> {
        let i = self.by_role.get(&role).ok_or_else(|| Error::failed("is not in the plan").tensor(role.to_string()))?;
        Ok(&self.tensors[*i])
    }

    /// Bits per weight: of all tensors, and of the linear layers alone.
    pub fn bits_per_weight(&self) -> (f64, f64) {
        let of = |linear: bool| {
            let chosen = self.tensors.iter().filter(|t| !linear || t.role.part.is_matrix() && t.role.layer.is_some());
            let (bytes, weights) = chosen.fold((0, 0), |(b, w), t| (b + t.bytes, w + t.n_weights()));
            if weights == 0 { 0.0 } else { bytes as f64 * 8.0 / weights as f64 }
        };
        (of(false), of(true))
    }

    /// Holds a whole tensor against the plan.
    pub fn check_whole(&self, role: Role, tensor: &EncodedTensor) -> Result<()> {
        let planned = self.find(role)?;
        if tensor.shape == planned.shape {
            return Ok(());
        }
        Err(Error::failed(format!("has shape {:?}, the plan says {:?}", tensor.shape, planned.shape)).tensor(&planned.name))
    }

    /// Holds consecutive rows of a tensor against the plan; vectors are converted to the planned float type.
    pub fn accept_rows<'a>(
        &self,
        role: Role,
        first_row: usize,
        rows: &'a EncodedTensor,
    ) -> Result<(&PlannedTensor, Cow<'a, EncodedTensor>)> {
        let planned = self.find(role)?;
        let fail = |message: String| Err(Error::failed(message).tensor(&planned.name));
        let (n, of) = (n_rows(&rows.shape), planned.n_rows());
        if n == 0 || rows.shape.last() != planned.shape.last() || first_row.checked_add(n).is_none_or(|end| end > of) {
            return fail(format!("has shape {:?} from row {first_row}, the plan says {:?}", rows.shape, planned.shape));
        }
        if rows.codec == planned.codec {
            let bytes = planned.bytes / of * n;
            if rows.bytes.len() != bytes {
                return fail(format!("has {} bytes, the plan says {bytes}", rows.bytes.len()));
            }
            return Ok((planned, Cow::Borrowed(rows)));
        }
        if role.part.is_matrix() || rows.codec.float().is_none() {
            return fail(format!("is in {}, the plan says {}", rows.codec, planned.codec));
        }
        let converted = EncodedTensor::encode(planned.codec, &rows.shape, &rows.decode(), None)?;
        Ok((planned, Cow::Owned(converted)))
    }
}

/// Rows of a tensor: all dimensions but the last, multiplied.
pub(crate) fn n_rows(shape: &[usize]) -> usize {
    shape.split_last().map_or(1, |(_, outer)| outer.iter().product())
}
