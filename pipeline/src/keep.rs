//! `CONTAINER:keep`: for every tensor of a model the format of a container that holds it as it is.
//!
//! Quantized tensors get the narrowest format that has their grid, tried on their first rows; plain ones stay plain. What has no
//! place is decoded, as long as most of the model has one.

use crate::carry::{self, Treatment, treatment};
use crate::opened::Opened;
use crate::target::{TYPICAL_ROW, Target};
use bitsmith_formats::regrid::regrid;
use bitsmith_formats::{CodecId, Encoding, Error, Float, Result};
use bitsmith_runtime::{Checkpoint, Role, WeightSource};
use std::collections::BTreeMap;

/// The encoding's name on the command line.
const KEEP: &str = "keep";
/// Rows that a format is tried on.
const SAMPLE: usize = 8;

/// What holds a model as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// The target whose base format holds the most weights.
    pub target: Target,
    /// The format of every matrix, by name.
    pub formats: Vec<(String, CodecId)>,
    /// The type of scales in MLX folders.
    pub mlx_dtype: Option<Float>,
}

/// The container, if this target is one to keep everything in.
pub fn container(target: &str) -> Option<&'static str> {
    let (name, encoding) = target.split_once(':')?;
    let known = Target::all().into_iter().map(Target::container).find(|c| *c == name);
    known.filter(|_| encoding == KEEP)
}

/// Finds formats of a container for all tensors.
pub fn find(model: &Opened, container: &str) -> Result<Kept> {
    let source = &model.checkpoint;
    let dense = carry::dense_type(source)?;
    let scales = carry::scale_type(source)?.filter(|_| container == "mlx");
    let Some(scales) = scales else { return Homes::find(source, container, dense)?.kept(source, container, dense, None) };
    // The source's own type of scales is the safe choice. Another is tried because the scales may have had it before: that of the
    // dense tensors, or what most models have.
    let before = if dense == scales { Float::BF16 } else { dense };
    let first = Homes::find(source, container, before)?;
    match first.exact {
        true => first.kept(source, container, dense, Some(before)),
        false => Homes::find(source, container, scales)?.kept(source, container, dense, Some(scales)),
    }
}

/// The formats of all matrices, tried on their first rows.
struct Homes {
    /// Narrowest first, so that nothing grows without need.
    candidates: Vec<Target>,
    formats: Vec<(String, CodecId)>,
    /// Weights by the number of the candidate that holds them.
    weights: BTreeMap<usize, usize>,
    /// The first tensor without a place.
    homeless: Option<(Role, Encoding)>,
    /// Whether what has a place keeps its values.
    exact: bool,
}

impl Homes {
    fn find(source: &Checkpoint, container: &str, dense: Float) -> Result<Self> {
        let mut candidates: Vec<Target> = Target::all();
        candidates.retain(|t| t.container() == container && t.is_quantized());
        let width = |t: &Target| t.base(dense, TYPICAL_ROW).bits_per_weight();
        candidates.sort_by(|a, b| width(a).total_cmp(&width(b)));
        let mut homes = Homes { candidates, formats: Vec::new(), weights: BTreeMap::new(), homeless: None, exact: true };
        let spec = if container == "mlx" { source.spec().without_mtp() } else { source.spec().clone() };
        for role in spec.roles().into_iter().filter(|r| r.part.is_matrix()) {
            let codec = homes.add(source, role, container, dense)?;
            homes.formats.push((role.to_string(), codec));
        }
        Ok(homes)
    }

    fn add(&mut self, source: &Checkpoint, role: Role, container: &str, dense: Float) -> Result<CodecId> {
        let from = source.codec(role)?;
        let plain = match &from {
            Encoding::Codec(codec) => codec.float(),
            _ => None,
        };
        if plain.is_none() {
            if let Some((found, exact)) = self.home(source, role, &from, dense)? {
                let shape = source.spec().shape(role.part);
                *self.weights.entry(found).or_default() += shape.iter().product::<usize>();
                self.exact &= exact;
                return Ok(self.candidates[found].base(dense, *shape.last().unwrap_or(&1)));
            }
            // FP8 is decoded like plain numbers.
            if carry::is_quantized(&from) && self.homeless.is_none() {
                self.homeless = Some((role, from));
            }
        }
        Ok(match self.candidates.first() {
            // There every matrix has a type of its own; folders have one for all that is plain.
            _ if container == "gguf" => plain.unwrap_or(dense),
            Some(target) => target.vector_type(dense),
            None => dense,
        }
        .codec())
    }

    /// The first of the candidates that holds a tensor's first rows without loss, or else the first that keeps its codes; and
    /// whether it is without loss.
    fn home(&self, source: &Checkpoint, role: Role, from: &Encoding, dense: Float) -> Result<Option<(usize, bool)>> {
        let shape = source.spec().shape(role.part);
        // All experts' matrices of a stack make rows.
        let (Encoding::Codec(from), &[ref outer @ .., row_len]) = (from, &shape[..]) else { return Ok(None) };
        let n_rows = outer.iter().product::<usize>();
        let rows = source.read_blocks(role, 0..n_rows.min(SAMPLE.next_multiple_of(source.row_align(role))))?;
        let mut near = None;
        for (i, target) in self.candidates.iter().enumerate() {
            let to = target.base(dense, row_len);
            let fits = to.row_bytes(row_len).is_ok() && target.holds(role, to, &shape);
            if !fits || treatment(&Encoding::Codec(*from), to) != Treatment::Keep {
                continue;
            }
            let tried = regrid(*from, to, &rows.bytes, row_len)?;
            match (tried.lost.is_empty(), tried.steps) {
                (true, 0.0) => return Ok(Some((i, true))),
                (true, _) => near = near.or(Some((i, false))),
                (false, _) => {}
            }
        }
        Ok(near)
    }

    fn kept(self, source: &Checkpoint, container: &str, dense: Float, mlx_dtype: Option<Float>) -> Result<Kept> {
        let most = self.weights.iter().max_by_key(|&(found, n)| (n, std::cmp::Reverse(found)));
        let target = match (most, self.homeless) {
            (Some((&found, _)), _) => self.candidates[found],
            (None, None) => dense_target(container, dense)?,
            (None, Some((role, from))) => {
                let name = source.tensor_name(role)?;
                return Err(Error::unsupported(format!("{container} has no format with the grid of {from}"))
                    .file(source.store().file_of(name))
                    .tensor(name)
                    .hint("a target of plain numbers (`bitsmith targets`) decodes it; --allow-requantize quantizes it again"));
            }
        };
        Ok(Kept { target, formats: self.formats, mlx_dtype })
    }
}

/// The target of plain numbers, for a model without quantized tensors.
fn dense_target(container: &str, dense: Float) -> Result<Target> {
    format!("{container}:{}", dense.codec()).parse().map_err(|_| {
        Error::unsupported(format!("the model is not quantized, and {container} is for quantized ones"))
            .hint("`bitsmith targets` lists the formats")
    })
}
