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
    // Narrowest first, so that nothing grows without need.
    let mut candidates: Vec<Target> = Target::all();
    candidates.retain(|t| t.container() == container && t.is_quantized());
    let width = |t: &Target| t.base(dense, TYPICAL_ROW).bits_per_weight();
    candidates.sort_by(|a, b| width(a).total_cmp(&width(b)));
    let mut formats = Vec::new();
    let mut weights: BTreeMap<usize, usize> = BTreeMap::new();
    let mut homeless: Option<(Role, Encoding)> = None;
    for role in source.spec().roles().into_iter().filter(|r| r.part.is_matrix()) {
        let from = source.codec(role)?;
        let mut codec = match (&from, candidates.first()) {
            // There every matrix has a type of its own; folders have one for all that is plain.
            (Encoding::Codec(codec), _) if container == "gguf" => codec.float().unwrap_or(dense),
            (_, Some(target)) if container != "gguf" => target.vector_type(dense),
            _ => dense,
        }
        .codec();
        if !matches!(&from, Encoding::Codec(codec) if codec.float().is_some()) {
            match home(source, role, &from, &candidates, dense)? {
                Some(found) => {
                    let shape = source.spec().shape(role.part);
                    codec = candidates[found].base(dense, *shape.last().unwrap_or(&1));
                    *weights.entry(found).or_default() += shape.iter().product::<usize>();
                }
                None if carry::is_quantized(&from) => homeless = homeless.or(Some((role, from))),
                // FP8 is decoded like plain numbers.
                None => {}
            }
        }
        formats.push((role.to_string(), codec));
    }
    let most = weights.into_iter().max_by_key(|&(found, n)| (n, std::cmp::Reverse(found)));
    let target = match (most, homeless) {
        (Some((found, _)), _) => candidates[found],
        (None, None) => dense_target(container, dense)?,
        (None, Some((role, from))) => {
            let name = source.tensor_name(role)?;
            return Err(Error::unsupported(format!("{container} has no format with the grid of {from}"))
                .file(source.store().file_of(name))
                .tensor(name)
                .hint("a target of plain numbers (`bitsmith targets`) decodes it; --allow-requantize quantizes it again"));
        }
    };
    Ok(Kept { target, formats })
}

/// The target of plain numbers, for a model without quantized tensors.
fn dense_target(container: &str, dense: Float) -> Result<Target> {
    format!("{container}:{}", dense.codec()).parse().map_err(|_| {
        Error::unsupported(format!("the model is not quantized, and {container} is for quantized ones"))
            .hint("`bitsmith targets` lists the formats")
    })
}

/// The first of the candidates that holds a tensor's first rows without loss, or else the first that keeps its codes.
fn home(source: &Checkpoint, role: Role, from: &Encoding, candidates: &[Target], dense: Float) -> Result<Option<usize>> {
    let shape = source.spec().shape(role.part);
    let (Encoding::Codec(from), &[n_rows, row_len]) = (from, &shape[..]) else { return Ok(None) };
    let rows = source.read_blocks(role, 0..n_rows.min(SAMPLE.next_multiple_of(source.row_align(role))))?;
    let mut near = None;
    for (i, target) in candidates.iter().enumerate() {
        let to = target.base(dense, row_len);
        let fits = to.row_bytes(row_len).is_ok() && target.holds(role, to, &shape);
        if !fits || treatment(&Encoding::Codec(*from), to) != Treatment::Keep {
            continue;
        }
        let tried = regrid(*from, to, &rows.bytes, row_len)?;
        match (tried.lost.is_empty(), tried.steps) {
            (true, 0.0) => return Ok(Some(i)),
            (true, _) => near = near.or(Some(i)),
            (false, _) => {}
        }
    }
    Ok(near)
}
