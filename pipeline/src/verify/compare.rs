//! Tensors against the dense source.
//!
//! A method with transforms changes weights without changing the function: AWQ multiplies the columns of a matrix and divides the norm
//! or the rows that make its input. Where the artifact shows that (its norms differ from the source's, or its manifest says so), a
//! matrix is held against the source with the scales undone: columns behind a norm by the ratio of the norms, others and rows by
//! least squares. Norms themselves and biases then have no error of their own. Where the manifest says that the model was rewritten as
//! a whole, the rewritten source takes the source's place, and where it says that channels changed places, the source in the artifact's order.

use super::reordered::{Reordered, orders};
use super::{Verified, row_chunks};
use crate::manifest::Manifest;
use bitsmith_formats::{CodecId, Encoding, Error, Float, Micro, Result};
use bitsmith_quantize::Method;
use bitsmith_runtime::role::Input;
use bitsmith_runtime::{Checkpoint, Part, Role, WeightSource};
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;

/// Norms that differ by more have been folded into; types of less precision change them by less.
const FOLDED: f64 = 0.01;
/// The limit for formats of very few bits: other weights altogether have an error of at least 1.
const MAX_LIMIT: f64 = 0.9;

/// Adds every tensor's error and its limit, and sorts the largest first.
pub(super) fn verify(artifact: &Checkpoint, source: &Checkpoint, max_error: Option<f64>, verified: &mut Verified) -> Result<()> {
    let (spec, other) = (artifact.spec(), source.spec());
    let shapes = |a: &Checkpoint| -> Vec<(Role, Vec<usize>)> {
        let spec = a.spec().without_mtp();
        spec.roles().into_iter().filter(|r| r.part != Part::Output).map(|r| (r, spec.shape(r.part))).collect()
    };
    // By shapes: containers call the same architecture by different names.
    if shapes(artifact) != shapes(source) || spec.tied && !other.tied {
        let message = format!("the source is another model: {} of {} layers", other.arch.name, other.n_layers);
        verified.problems.push(Error::corrupt(message).file(source.path()).into());
        return Ok(());
    }
    let recipe = Manifest::load(artifact.path()).map(|m| m.recipe);
    let method: Option<Method> = recipe.as_ref().and_then(|r| r.method.parse().ok());
    let seed = recipe.and_then(|r| r.seed).unwrap_or(0);
    let rewritten = method.as_ref().map(|m| m.rewrite(source, seed)).transpose()?.flatten();
    let pair = Pair { artifact, source, rewritten, folded: false };
    let transformed = method.as_ref().is_some_and(|m| m.transforms.iter().any(|t| !t.rewrites()));
    let folded = transformed || pair.norms_differ();
    let mut pair = Pair { folded, ..pair };
    let reordered = match &method {
        Some(method) => method.transforms.iter().any(|t| t.reorders()),
        // A file without its manifest shows it by rows that are not the source's.
        None => {
            let up = Role::layer(0, Part::FfnUp);
            spec.has_role(up) && other.has_role(up) && pair.error(up).is_ok_and(|e| e > MAX_LIMIT)
        }
    };
    if reordered {
        let columns = |role: Role| pair.columns(role, spec.shape(role.part).last().copied().unwrap_or(1));
        let orders = orders(artifact, pair.dense(), columns)?;
        let source = pair.rewritten.take().unwrap_or_else(|| Box::new(source));
        pair.rewritten = Some(Box::new(Reordered { source, orders }));
    }
    for role in spec.roles().into_iter().filter(|r| other.has_role(*r) || !r.part.per_layer()) {
        let name = artifact.tensor_name(role)?;
        // A tensor with values that cannot be read is reported already.
        if verified.problems.iter().any(|p| p.tensor.as_deref() == Some(name)) || pair.folded && !role.part.is_matrix() {
            continue;
        }
        let error = match pair.error(role) {
            Ok(error) => error,
            Err(e) => {
                verified.problems.push(e.into());
                continue;
            }
        };
        let encoding = artifact.codec(role)?;
        let limit = max_error.unwrap_or_else(|| limit(&encoding));
        if error.is_nan() || error > limit {
            let message =
                format!("its error against the source is {error:.4} of the weights' root mean square, more than {limit:.4}");
            verified.problems.push(Error::corrupt(message).file(artifact.store().file_of(name)).tensor(name).into());
        }
        // One for each expert, or one that holds other roles too, of which the worst counts.
        let names: HashSet<&str> = artifact.places(role)?.iter().map(|p| p.name.as_str()).collect();
        for t in verified.tensors.iter_mut().filter(|t| names.contains(t.name.as_str())) {
            (t.rel_rmse, t.limit) = (Some(error.max(t.rel_rmse.unwrap_or(0.0))), Some(limit));
        }
    }
    let worst = |t: &super::VerifiedTensor| t.rel_rmse.unwrap_or(-1.0);
    verified.tensors.sort_by(|a, b| worst(b).total_cmp(&worst(a)));
    Ok(())
}

/// The error that a format makes likely, with room for outliers, and for solvers that trade it for a smaller loss: on evenly spread
/// weights reference encoders make 1.5 to 2.2 times 2^-bits, and error feedback up to twice that.
fn limit(stored: &Encoding) -> f64 {
    let Encoding::Codec(codec) = stored else { return MAX_LIMIT };
    match (codec.float(), codec) {
        (Some(Float::F32), _) => 1e-5,
        (Some(Float::F16), _) => 2e-3,
        (Some(Float::BF16), _) => 8e-3,
        // Exponents of their own cost bits that do not make the steps finer.
        (None, CodecId::Fp8Group { .. } | CodecId::Micro(Micro::Mxfp8)) => 0.08,
        (None, codec) => (6.0 * 2f64.powf(-codec.bits_per_weight())).min(MAX_LIMIT),
    }
}

struct Pair<'a> {
    artifact: &'a Checkpoint,
    source: &'a Checkpoint,
    /// The source as the artifact's method rewrote it as a whole, if it did.
    rewritten: Option<Box<dyn WeightSource + 'a>>,
    folded: bool,
}

impl Pair<'_> {
    /// The source's tensor for a role: of a source with tied embeddings, the embedding is the output matrix as well.
    fn source_role(&self, role: Role) -> Role {
        let tied = role.part == Part::Output && self.source.spec().tied;
        if tied { Role::global(Part::TokenEmbd) } else { role }
    }

    /// What the artifact was made of.
    fn dense(&self) -> &dyn WeightSource {
        self.rewritten.as_deref().unwrap_or(self.source)
    }

    fn norms_differ(&self) -> bool {
        let norms = [Part::AttnNorm, Part::FfnNorm, Part::OutputNorm];
        let roles = self.artifact.spec().roles().into_iter().filter(|r| norms.contains(&r.part));
        roles.into_iter().any(|r| self.error(r).is_ok_and(|e| e > FOLDED))
    }

    /// Σ over all rows of what `of` makes of corresponding rows, in a fixed order.
    fn fold<T: Send>(&self, role: Role, of: impl Fn(Range<usize>, &[f32], &[f32]) -> T + Sync) -> Result<Vec<T>> {
        let shape = self.artifact.spec().shape(role.part);
        let row_len = shape.last().copied().unwrap_or(1);
        let n_rows = shape.iter().product::<usize>() / row_len.max(1);
        // Rewriting takes whole tensors.
        let whole = self.rewritten.as_ref().map(|source| source.read(role)).transpose()?;
        let part = |rows: Range<usize>| {
            let stored = self.artifact.read_rows(role, rows.clone())?;
            let dense = match &whole {
                Some(whole) => Cow::Borrowed(&whole.data[rows.start * row_len..rows.end * row_len]),
                None => Cow::Owned(self.source.read_rows(self.source_role(role), rows.clone())?),
            };
            Ok(of(rows, &stored, &dense))
        };
        row_chunks(n_rows, row_len).into_par_iter().map(part).collect()
    }

    /// Root mean square of the error over that of the source's weights.
    fn error(&self, role: Role) -> Result<f64> {
        let row_len = self.artifact.spec().shape(role.part).last().copied().unwrap_or(1);
        let columns = if self.folded { self.columns(role, row_len)? } else { None };
        let rows_move = self.folded && matches!(role.part, Part::AttnV | Part::FfnUp);
        let sums = self.fold(role, |_, stored, dense| {
            let (mut error, mut power) = (0f64, 0f64);
            let mut want = vec![0f64; row_len];
            for (stored, dense) in stored.chunks(row_len).zip(dense.chunks(row_len)) {
                for (c, (want, d)) in want.iter_mut().zip(dense).enumerate() {
                    *want = f64::from(*d) * columns.as_ref().map_or(1.0, |s| s[c]);
                }
                let scale = if rows_move { ratio(stored, &want) } else { 1.0 };
                for (want, s) in want.iter().zip(stored) {
                    error += (scale * want - f64::from(*s)).powi(2);
                    power += (scale * want).powi(2);
                }
            }
            (error, power)
        })?;
        let (error, power) = sums.into_iter().fold((0.0, 0.0), |(e, p), (de, dp)| (e + de, p + dp));
        Ok(if error == 0.0 { 0.0 } else { (error / power).sqrt() })
    }

    /// What each column was multiplied by: `None` for tensors whose columns no fold touches.
    fn columns(&self, role: Role, row_len: usize) -> Result<Option<Vec<f64>>> {
        let norm = match role.site().map(|site| site.input) {
            Some(Input::AttnIn) => Role { part: Part::AttnNorm, ..role },
            Some(Input::FfnIn) => Role { part: Part::FfnNorm, ..role },
            Some(Input::Head) => Role::global(Part::OutputNorm),
            Some(Input::AttnOut | Input::FfnOut) => return self.fitted_columns(role, row_len).map(Some),
            _ => return Ok(None),
        };
        if !self.artifact.spec().has(norm.part) {
            return Ok(None);
        }
        let offset = self.artifact.spec().norm.offset;
        let (stored, dense) = (self.artifact.read(norm)?.data, self.dense().read(norm)?.data);
        let undo = |(s, d): (&f32, &f32)| match s + offset {
            0.0 => 1.0,
            s => f64::from(d + offset) / f64::from(s),
        };
        Ok(Some(stored.iter().zip(&dense).map(undo).collect()))
    }

    /// The multiples of the source's columns that are nearest to the artifact's.
    fn fitted_columns(&self, role: Role, row_len: usize) -> Result<Vec<f64>> {
        let sums = self.fold(role, |_, stored, dense| {
            let mut sums = vec![(0f64, 0f64); row_len];
            for (stored, dense) in stored.chunks(row_len).zip(dense.chunks(row_len)) {
                for ((product, square), (s, d)) in sums.iter_mut().zip(stored.iter().zip(dense)) {
                    *product += f64::from(*s) * f64::from(*d);
                    *square += f64::from(*d).powi(2);
                }
            }
            sums
        })?;
        let mut total = vec![(0f64, 0f64); row_len];
        for part in sums {
            total.iter_mut().zip(part).for_each(|(t, p)| *t = (t.0 + p.0, t.1 + p.1));
        }
        Ok(total.into_iter().map(|(product, square)| if square > 0.0 { product / square } else { 1.0 }).collect())
    }
}

/// The multiple of `want` that is nearest to `stored`.
fn ratio(stored: &[f32], want: &[f64]) -> f64 {
    let (product, square) = stored.iter().zip(want).fold((0.0, 0.0), |(p, s), (a, w)| (p + f64::from(*a) * w, s + w * w));
    if square > 0.0 { product / square } else { 1.0 }
}
