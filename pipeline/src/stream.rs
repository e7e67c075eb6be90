//! One pass over the source for all targets whose tensors depend on nothing but themselves: conversions, and quantization with
//! the formats' own encoders.
//!
//! Every tensor is cut into parts of whole rows. A thread reads and decodes a part once, encodes it for every target and writes
//! it to its place, so memory follows the number of threads and not the model.

use crate::carry::{self, Account, Tally, Treatment};
use crate::context::Context;
use bitsmith_convert::ArtifactWriter;
use bitsmith_formats::{CodecId, EncodedTensor, Encoding, Error, Float, Result, encode_rows_scaled};
use bitsmith_quantize::Plan;
use bitsmith_runtime::{Checkpoint, Role, WeightSource};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

/// Weights of a part, unless its rows belong together: enough for vector lanes to fill and system calls not to matter.
const PART: usize = 1 << 19;

/// Importance of the columns of each matrix, of stacked ones one after the other.
pub type Importance = BTreeMap<Role, Vec<f32>>;

/// Scales of whole tensors.
pub type Scales = BTreeMap<Role, f32>;

/// One target of a pass.
pub struct Output<'a> {
    /// The format of every tensor.
    pub plan: &'a Plan,
    /// What [`scales`] gave for the plan.
    pub scales: Scales,
    /// Where the tensors go.
    pub writer: Box<dyn ArtifactWriter>,
    /// Whether weights that are quantized already may be quantized a second time.
    pub allow_requantize: bool,
}

/// Rows of a tensor that are worked on together.
struct Part {
    role: Role,
    rows: Range<usize>,
    row_len: usize,
}

/// Reads every tensor of `source` once and writes it to all `outputs`, in their formats. Says of each output what became of weights
/// that were quantized already.
pub fn run(source: &Checkpoint, outputs: &[Output<'_>], importance: &Importance, context: &Context) -> Result<Vec<Account>> {
    let parts = parts(source, outputs);
    context.progress.start("convert", parts.len() as u64);
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    let tallies: Vec<OnceLock<Tallies>> = parts.iter().map(|_| OnceLock::new()).collect();
    rayon::broadcast(|_| {
        let mut weights = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(part) = parts.get(i) else { break };
            match convert(source, part, outputs, importance, &mut weights) {
                Ok(found) => drop(tallies[i].set(found)),
                Err(e) => {
                    let mut failed = failed.lock().expect("no thread panics while it holds the lock");
                    // Of several errors the first in file order is reported, whichever thread was faster.
                    if failed.as_ref().is_none_or(|(earlier, _)| i < *earlier) {
                        *failed = Some((i, e));
                    }
                    next.store(parts.len(), Ordering::Relaxed);
                    break;
                }
            }
            context.progress.advance(1);
        }
    });
    context.progress.finish();
    if let Some((_, error)) = failed.into_inner().expect("no thread panics while it holds the lock") {
        return Err(error);
    }
    // In file order, so that the sums do not depend on which thread was faster.
    let mut accounts: Vec<Account> = outputs.iter().map(|_| Account::default()).collect();
    for (part, found) in parts.iter().zip(&tallies) {
        for (from, codec, output, tally) in found.get().into_iter().flatten() {
            accounts[*output].add(part.role, from, *codec, tally);
        }
    }
    Ok(accounts)
}

/// What became of a part that was quantized already: its format, the new one, the number of the output.
type Tallies = Vec<(Encoding, CodecId, usize, Tally)>;

/// All parts, in the source's order of tensors.
fn parts(source: &Checkpoint, outputs: &[Output<'_>]) -> Vec<Part> {
    let mut parts = Vec::new();
    for role in source.spec().roles().into_iter().filter(|r| outputs.iter().any(|o| o.plan.codec(*r).is_some())) {
        let shape = source.spec().shape(role.part);
        let row_len = shape.last().copied().unwrap_or(1);
        let n_rows = shape[..shape.len().saturating_sub(1)].iter().product::<usize>();
        // Rows that any side rearranges among themselves stay together.
        let align = outputs.iter().fold(source.row_align(role), |align, o| lcm(align, o.writer.row_align(role)));
        let step = (PART / row_len.max(1)).max(1).next_multiple_of(align).min(n_rows.max(1));
        parts.extend((0..n_rows).step_by(step).map(|first| Part { role, rows: first..(first + step).min(n_rows), row_len }));
    }
    parts
}

fn lcm(a: usize, b: usize) -> usize {
    let gcd = |mut a: usize, mut b: usize| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    if a == b { a } else { a / gcd(a, b) * b }
}

/// Reads a part into `weights`, a buffer that is used again, encodes it for every output and writes it.
fn convert(
    source: &Checkpoint,
    part: &Part,
    outputs: &[Output<'_>],
    importance: &Importance,
    weights: &mut Vec<f32>,
) -> Result<Tallies> {
    let Part { role, rows, row_len } = part;
    let from = source.codec(*role)?;
    source.read_rows_into(*role, rows.clone(), weights)?;
    let weights: &[f32] = weights;
    let of_role = source.spec().numel(role.part) / (*row_len).max(1);
    let mut tallies = Tallies::new();
    for (number, output) in outputs.iter().enumerate() {
        let Some(codec) = output.plan.codec(*role) else { continue };
        if let Some(float) = codec.float() {
            check_range(*role, float, weights).map_err(|e| match source.tensor_name(*role) {
                Ok(name) => e.file(source.store().file_of(name)),
                Err(_) => e,
            })?;
        }
        let scale = output.scales.get(role).copied().unwrap_or(1.0);
        let anew = || encode(*role, codec, weights, *row_len, (rows.start, of_role), importance, scale);
        let (encoded, tally) = match carry::treatment(&from, codec) {
            Treatment::Encode => (anew()?, None),
            Treatment::Keep => {
                let blocks = source.read_blocks(*role, rows.clone())?;
                let again = output.allow_requantize.then_some(&anew as &dyn Fn() -> Result<EncodedTensor>);
                let whole = blocks.scale == 1.0 || output.writer.holds_scale(*role);
                let kept = if whole {
                    carry::keep(&blocks, weights, codec, again)
                } else {
                    carry::rescale(&blocks, weights, codec, again)
                };
                let (kept, tally) = kept.map_err(|e| match source.tensor_name(*role) {
                    Ok(name) => e.file(source.store().file_of(name)).tensor(name),
                    Err(_) => e,
                })?;
                (kept, Some(tally))
            }
            Treatment::Decode | Treatment::Again => {
                let encoded = anew()?;
                let tally = Tally::encoded(weights, &encoded);
                (encoded, Some(tally))
            }
        };
        output.writer.put_rows(*role, rows.start, &encoded)?;
        tallies.extend(tally.map(|tally| (from.clone(), codec, number, tally)));
    }
    Ok(tallies)
}

fn encode(
    role: Role,
    codec: CodecId,
    weights: &[f32],
    row_len: usize,
    (first_row, of_role): (usize, usize),
    importance: &Importance,
    scale: f32,
) -> Result<EncodedTensor> {
    let n_rows = weights.len() / row_len.max(1);
    let row_bytes = codec.row_bytes(row_len).map_err(|e| e.tensor(role.to_string()))?;
    let mut bytes = vec![0u8; n_rows * row_bytes];
    match importance.get(&role) {
        // Stacked matrices have an importance each.
        Some(all) if all.len() > row_len => {
            let each = of_role / (all.len() / row_len);
            let mut row = 0;
            while row < n_rows {
                let matrix = (first_row + row) / each;
                let end = ((matrix + 1) * each - first_row).min(n_rows);
                let own = &all[matrix * row_len..(matrix + 1) * row_len];
                let rows = &weights[row * row_len..end * row_len];
                encode_rows_scaled(codec, rows, row_len, Some(own), scale, &mut bytes[row * row_bytes..end * row_bytes]);
                row = end;
            }
        }
        all => encode_rows_scaled(codec, weights, row_len, all.map(Vec::as_slice), scale, &mut bytes),
    }
    Ok(EncodedTensor { scale, ..EncodedTensor::new(&[n_rows, row_len], codec, bytes) })
}

/// The scales that a plan's tensors have as a whole, from the largest weight among the layers that share each input: a pass over
/// these tensors alone.
pub fn scales(source: &Checkpoint, plan: &Plan, context: &Context) -> Result<Scales> {
    let roles: Vec<Role> = source.spec().roles().into_iter().filter(|&r| plan.has_scale(r)).collect();
    if roles.is_empty() {
        return Ok(Scales::new());
    }
    context.progress.start("scales", roles.len() as u64);
    let largest = |&role: &Role| -> Result<(Role, f32)> {
        let shape = source.spec().shape(role.part);
        let row_len = shape.last().copied().unwrap_or(1);
        let n_rows = shape.iter().product::<usize>() / row_len.max(1);
        let step = (PART / row_len.max(1)).max(1).next_multiple_of(source.row_align(role));
        let mut largest = 0f32;
        for first in (0..n_rows).step_by(step) {
            let weights = source.read_rows(role, first..(first + step).min(n_rows))?;
            largest = weights.iter().fold(largest, |most, w| most.max(w.abs()));
        }
        context.progress.advance(1);
        Ok((role, largest))
    };
    let found: Scales = roles.par_iter().map(largest).collect::<Result<_>>()?;
    context.progress.finish();
    Ok(shared_scales(plan, &found))
}

/// The scale of each tensor by its largest magnitude, the largest of all that read the same input.
pub fn shared_scales(plan: &Plan, largest: &BTreeMap<Role, f32>) -> Scales {
    let together = |role: Role| largest.iter().filter(move |(r, _)| r.site() == role.site()).fold(0f32, |m, (_, v)| m.max(*v));
    let scale = |&role: &Role| Some((role, plan.codec(role)?.tensor_scale(together(role))));
    largest.keys().filter_map(scale).collect()
}

/// F16 ends at 65504: a weight beyond it must not become infinity without a word.
pub fn check_range(role: Role, float: Float, weights: &[f32]) -> Result<()> {
    if float == Float::F32 {
        return Ok(());
    }
    let most = weights.iter().fold(0f32, |most, w| f32::max(most, w.abs()));
    if float.round(most).is_finite() {
        return Ok(());
    }
    let n = weights.iter().filter(|w| !float.round(**w).is_finite()).count();
    let what = if n == 1 { "1 weight does".to_string() } else { format!("{n} of {} weights do", weights.len()) };
    Err(Error::corrupt(format!("{what} not fit into {}; the largest is {most}", float.codec()))
        .tensor(role.to_string())
        .hint("choose bf16 or f32 for this tensor, with --tensor-type"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_formats::Micro;
    use bitsmith_quantize::PlanEntry;
    use bitsmith_runtime::role::Part;

    #[test]
    fn layers_with_one_input_share_a_scale() {
        let entry = |role, codec| PlanEntry { role, codec, instead_of: None, needs_importance: false };
        let (q, k, v) = (Part::AttnQ, Part::AttnK, Part::AttnV);
        let codec = CodecId::Micro(Micro::Nvfp4);
        let mut entries = vec![entry(Role::layer(0, v), CodecId::BF16)];
        let at = [(0, q), (0, k), (0, Part::AttnOutput), (1, q)].map(|(layer, part)| Role::layer(layer, part));
        entries.extend(at.map(|role| entry(role, codec)));
        let plan = Plan { entries, tensor_scales: true };
        assert!(at.iter().all(|&role| plan.has_scale(role)) && !plan.has_scale(Role::layer(0, v)));
        let found = shared_scales(&plan, &at.into_iter().zip([0.5, 2.0, 0.25, 1.0]).collect());
        let expected = [2.0, 2.0, 0.25, 1.0].map(|largest| codec.tensor_scale(largest));
        assert_eq!(at.map(|role| found[&role]), expected);
        let without = Plan { tensor_scales: false, ..plan };
        assert!(!without.has_scale(at[0]));
    }
}
