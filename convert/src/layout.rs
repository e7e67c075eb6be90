//! Which tensors an artifact has, in which codec, under which name.

use bitsmith_formats::{CodecId, EncodedTensor, Error, Float, Result};
use bitsmith_runtime::arch::vision::Wrapper;
use bitsmith_runtime::arch::{Order, Place};
use bitsmith_runtime::{ContainerKind, ModelSpec, Role};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// One tensor of an artifact.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedTensor {
    /// Its place in the model.
    pub role: Role,
    /// The first row of the role that it holds: not 0 only where a role is spread over several tensors.
    pub first_row: usize,
    /// How its rows differ from the role's.
    pub order: Order,
    /// Its name in the container.
    pub name: String,
    /// Dimensions in the container, outermost first.
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

    /// Rows of the role that it holds.
    fn role_rows(&self) -> usize {
        match self.order {
            Order::Transposed => self.shape[1],
            _ => self.n_rows(),
        }
    }
}

/// Consecutive rows of one tensor as the container has them.
pub(crate) struct Piece<'a> {
    pub tensor: &'a PlannedTensor,
    pub first_row: usize,
    pub rows: Cow<'a, EncodedTensor>,
}

/// All tensors of an artifact, in the order of [`ModelSpec::roles`].
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub tensors: Vec<PlannedTensor>,
    /// Shape and tensors of each role.
    by_role: HashMap<Role, (Vec<usize>, Range<usize>)>,
    /// The tensor that holds a role together with others, and where.
    joint: HashMap<Role, (usize, Vec<Place>)>,
    /// The roles in order.
    pub roles: Vec<Role>,
}

impl Layout {
    /// Every matrix must be in `codecs`; norms and biases are stored as `vectors`.
    pub fn new(spec: &ModelSpec, kind: ContainerKind, codecs: &[(Role, CodecId)], vectors: Float) -> Result<Self> {
        let mut chosen: BTreeMap<Role, CodecId> = BTreeMap::new();
        for (role, codec) in codecs {
            if !spec.has_role(*role) {
                return Err(Error::failed("the model has no such tensor").tensor(role.to_string()));
            }
            if chosen.insert(*role, *codec).is_some() {
                return Err(Error::failed("is planned twice").tensor(role.to_string()));
            }
        }
        let mut layout = Layout { tensors: Vec::new(), by_role: HashMap::new(), joint: HashMap::new(), roles: spec.roles() };
        for role in spec.roles() {
            let codec = match (role.part.is_matrix(), chosen.get(&role)) {
                (false, _) => vectors.codec(),
                (true, Some(codec)) => *codec,
                (true, None) => return Err(Error::failed("no codec is planned for this tensor").tensor(role.to_string())),
            };
            let places = spec.arch.places(spec, kind, role).ok_or_else(|| {
                Error::unsupported(format!("architecture `{}` has no name for this tensor in {}", spec.arch.name, kind.name()))
                    .tensor(role.to_string())
            })?;
            if places.iter().any(|p| p.within.is_some()) {
                let index = layout.joint_tensor(role, &places[0], codec)?;
                layout.by_role.insert(role, (spec.shape(role.part), index..index + 1));
                layout.joint.insert(role, (index, places));
                continue;
            }
            let (start, mut first_row) = (layout.tensors.len(), 0);
            for place in places {
                let shape = place.tensor_shape();
                if place.order == Order::Transposed && codec.float().is_none() {
                    let message = format!("the container has this matrix transposed, which {codec} has no way to say");
                    return Err(Error::unsupported(message).tensor(&place.name).hint("choose a GGUF or MLX target"));
                }
                let row_len = *shape.last().unwrap_or(&1);
                let row_bytes = codec.row_bytes(row_len).map_err(|e| e.tensor(&place.name))?;
                let bytes = shape.iter().product::<usize>() / row_len.max(1) * row_bytes;
                let rows = place.n_rows();
                layout.tensors.push(PlannedTensor { role, first_row, order: place.order, name: place.name, shape, codec, bytes });
                first_row += rows;
            }
            layout.by_role.insert(role, (spec.shape(role.part), start..layout.tensors.len()));
        }
        Ok(layout)
    }

    /// The same, with the names that the text model's tensors have in a wrapper's folders.
    pub fn wrapped(mut self, wrapper: Option<&Wrapper>, kind: ContainerKind) -> Self {
        if let Some(wrapper) = wrapper {
            self.tensors.iter_mut().for_each(|t| t.name = wrapper.text_name(kind, &t.name));
        }
        self
    }

    /// The tensor that holds a place, planned now if it is the first in it.
    fn joint_tensor(&mut self, role: Role, place: &Place, codec: CodecId) -> Result<usize> {
        let (name, shape) = (&place.name, place.tensor_shape());
        if codec.float().is_none() {
            let message = format!("the container has this matrix inside a larger tensor, which {codec} has no way to say");
            return Err(Error::unsupported(message).tensor(name).hint("choose a GGUF or MLX target"));
        }
        match self.tensors.iter().position(|t| t.name == *name) {
            Some(index) if self.tensors[index].codec == codec => Ok(index),
            Some(index) => {
                let message = format!("would be {codec} in part, but {} in another", self.tensors[index].codec);
                Err(Error::unsupported(message).tensor(name).hint("choose one type for all that the tensor holds"))
            }
            None => {
                let bytes = shape.iter().product::<usize>() * codec.row_bytes(1).map_err(|e| e.tensor(name))?;
                let name = name.clone();
                self.tensors.push(PlannedTensor { role, first_row: 0, order: Order::Same, name, shape, codec, bytes });
                Ok(self.tensors.len() - 1)
            }
        }
    }

    /// The index of the tensor that holds a role together with others, and the role's places in it.
    pub fn joint(&self, role: Role) -> Option<(usize, &[Place])> {
        self.joint.get(&role).map(|(index, places)| (*index, places.as_slice()))
    }

    fn entry(&self, role: Role) -> Result<(&[usize], &[PlannedTensor])> {
        let (shape, tensors) =
            self.by_role.get(&role).ok_or_else(|| Error::failed("is not in the plan").tensor(role.to_string()))?;
        Ok((shape, &self.tensors[tensors.clone()]))
    }

    /// The tensors of a role, in the order of its rows; never none.
    pub fn find(&self, role: Role) -> Result<&[PlannedTensor]> {
        Ok(self.entry(role)?.1)
    }

    /// Rows of a role that must come together, because the container rearranges them.
    pub fn row_align(&self, role: Role) -> usize {
        match self.entry(role) {
            Ok((shape, tensors)) if shape.len() > 1 => tensors[0].order.align(tensors[0].role_rows()),
            _ => 1,
        }
    }

    /// Bits per weight: of all tensors, and of the linear layers alone.
    pub fn bits_per_weight(&self) -> (f64, f64) {
        let of = |linear: bool| {
            let chosen = self.tensors.iter().filter(|t| !linear || t.role.part.is_linear());
            let (bytes, weights) = chosen.fold((0, 0), |(b, w), t| (b + t.bytes, w + t.n_weights()));
            if weights == 0 { 0.0 } else { bytes as f64 * 8.0 / weights as f64 }
        };
        (of(false), of(true))
    }

    /// Holds a whole tensor against the plan.
    pub fn check_whole(&self, role: Role, tensor: &EncodedTensor) -> Result<()> {
        let (shape, planned) = self.entry(role)?;
        if tensor.shape == shape {
            return Ok(());
        }
        Err(Error::failed(format!("has shape {:?}, the plan says {shape:?}", tensor.shape)).tensor(&planned[0].name))
    }

    /// Holds consecutive rows of a role against the plan and gives them as the container has them; vectors are converted to the planned
    /// float type.
    pub fn accept_rows<'a>(&'a self, role: Role, first_row: usize, rows: &'a EncodedTensor) -> Result<Vec<Piece<'a>>> {
        let (shape, tensors) = self.entry(role)?;
        let planned = &tensors[0];
        let fail = |message: String| Err(Error::failed(message).tensor(&planned.name));
        let (n, of) = (n_rows(&rows.shape), n_rows(shape));
        if n == 0 || rows.shape.last() != shape.last() || first_row.checked_add(n).is_none_or(|end| end > of) {
            return fail(format!("has shape {:?} from row {first_row}, the plan says {shape:?}", rows.shape));
        }
        let rows = if rows.codec == planned.codec {
            let bytes = planned.codec.row_bytes(*shape.last().unwrap_or(&1))? * n;
            if rows.bytes.len() != bytes {
                return fail(format!("has {} bytes, the plan says {bytes}", rows.bytes.len()));
            }
            Cow::Borrowed(rows)
        } else if role.part.is_matrix() || rows.codec.float().is_none() {
            return fail(format!("is in {}, the plan says {}", rows.codec, planned.codec));
        } else {
            Cow::Owned(EncodedTensor::encode(planned.codec, &rows.shape, &rows.decode(), None)?)
        };
        if let ([tensor], Order::Same) = (tensors, &planned.order) {
            // Of a joint tensor, the role's own rows.
            return Ok(vec![Piece { tensor, first_row, rows }]);
        }
        let end = first_row + n;
        let overlapping = tensors.iter().filter(|t| t.first_row < end && t.first_row + t.role_rows() > first_row);
        overlapping.map(|t| piece(t, first_row, &rows)).collect()
    }
}

/// What a tensor holds of rows that begin at row `first` of its role.
fn piece<'a>(tensor: &'a PlannedTensor, first: usize, rows: &EncodedTensor) -> Result<Piece<'a>> {
    let fail = |message: String| Err(Error::failed(message).tensor(&tensor.name));
    let n = n_rows(&rows.shape);
    let (from, to) = (first.max(tensor.first_row), (first + n).min(tensor.first_row + tensor.role_rows()));
    let (first_row, count) = (from - tensor.first_row, to - from);
    let row_bytes = rows.bytes.len() / n;
    let bytes = &rows.bytes[(from - first) * row_bytes..(to - first) * row_bytes];
    let vector = tensor.shape.len() < 2;
    let row_len = *rows.shape.last().unwrap_or(&1);
    let mut shape = if vector { tensor.shape.clone() } else { vec![count, row_len] };
    let bytes = match &tensor.order {
        Order::Same => bytes.to_vec(),
        // Blocks stay whole: only floats are vectors.
        Order::Rows(_) if vector => tensor.order.apply(bytes, bytes.len() / row_len),
        Order::Rows(chunk) if first_row.is_multiple_of(chunk.len()) && count.is_multiple_of(chunk.len()) => {
            tensor.order.apply(bytes, row_bytes)
        }
        Order::Plus(offset) => {
            let part = EncodedTensor { shape: shape.clone(), codec: rows.codec, bytes: bytes.to_vec(), scale: rows.scale };
            let values: Vec<f32> = part.decode().iter().map(|v| v + offset).collect();
            EncodedTensor::encode(rows.codec, &shape, &values, None)?.bytes
        }
        Order::Transposed if first_row == 0 && count == tensor.role_rows() => {
            shape = vec![row_len, count];
            let value = row_bytes / row_len;
            let cells = (0..row_len).flat_map(|c| (0..count).map(move |r| r * row_bytes + c * value));
            cells.flat_map(|at| bytes[at..at + value].to_vec()).collect()
        }
        Order::Rows(_) | Order::Transposed => {
            return fail(format!("rows {first_row} to {} are not what the container keeps together", first_row + count));
        }
    };
    let rows = Cow::Owned(EncodedTensor { shape, codec: rows.codec, bytes, scale: rows.scale });
    Ok(Piece { tensor, first_row, rows })
}

/// Rows of a tensor: all dimensions but the last, multiplied.
pub(crate) fn n_rows(shape: &[usize]) -> usize {
    shape.split_last().map_or(1, |(_, outer)| outer.iter().product())
}
