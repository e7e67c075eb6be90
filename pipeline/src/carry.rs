//! What becomes of weights that are quantized already: they keep their codes where the target has the same grid, are decoded where
//! it stores plain numbers, and are quantized a second time only if the user allows it. Whatever happens is counted and said.

use bitsmith_formats::regrid::{Regridded, may_regrid, regrid};
use bitsmith_formats::{CodecId, EncodedTensor, Encoding, Error, Float, Result};
use bitsmith_quantize::Plan;
use bitsmith_quantize::plan::PlanOptions;
use bitsmith_runtime::{Checkpoint, Role, WeightSource};
use std::collections::{BTreeMap, BTreeSet};

/// What a tensor of the source needs to become one of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// Its weights are plain numbers: they are encoded.
    Encode,
    /// It is quantized and the target stores plain numbers: it is decoded.
    Decode,
    /// It is quantized on a grid that the target may have too.
    Keep,
    /// It is quantized and has to be quantized again.
    Again,
}

/// Whether a tensor has been through a quantizer. FP8 has too, but models are released and meant to be quantized in it.
pub fn is_quantized(encoding: &Encoding) -> bool {
    match encoding {
        Encoding::Codec(codec) => codec.float().is_none() && !matches!(codec, CodecId::Fp8Group { .. }),
        Encoding::Decoded(name) => !name.starts_with("fp8"),
        Encoding::Opaque(_) => false,
    }
}

/// Whether any of a model's tensors is quantized already.
pub fn any_quantized(source: &dyn WeightSource) -> Result<bool> {
    let each = source.spec().roles().into_iter().map(|role| source.codec(role));
    Ok(each.collect::<Result<Vec<_>>>()?.iter().any(is_quantized))
}

/// Says what of a model was released in FP8 and is decoded like plain numbers.
pub fn released_in_fp8(source: &dyn WeightSource) -> Result<Option<String>> {
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    for role in source.spec().roles() {
        let from = source.codec(role)?;
        if !is_quantized(&from) && !matches!(&from, Encoding::Codec(codec) if codec.float().is_some()) {
            *found.entry(from.to_string()).or_default() += 1;
        }
    }
    let line = |(from, n): (&String, &usize)| format!("{n} tensors are decoded from {from}");
    Ok((!found.is_empty()).then(|| found.iter().map(line).collect::<Vec<_>>().join(", ")))
}

/// What `from` needs to become `to`.
pub fn treatment(from: &Encoding, to: CodecId) -> Treatment {
    match from {
        Encoding::Codec(from) if from.float().is_none() && may_regrid(*from, to) => Treatment::Keep,
        _ if !is_quantized(from) => Treatment::Encode,
        _ if to.float().is_some() => Treatment::Decode,
        _ => Treatment::Again,
    }
}

/// The type in which a checkpoint stores its matrices, or, if all are quantized, other things.
pub fn dense_type(checkpoint: &Checkpoint) -> Result<Float> {
    let mut plain = None;
    let first = first_linear(checkpoint)?;
    for role in checkpoint.spec().roles() {
        match checkpoint.codec(role)? {
            Encoding::Opaque(name) => {
                return Err(Error::unsupported(format!("tensors of type {name} cannot be decoded"))
                    .file(checkpoint.path())
                    .tensor(checkpoint.tensor_name(role)?)
                    .hint("start from the unquantized checkpoint"));
            }
            // Of several types, the layers' counts most.
            Encoding::Codec(codec) if role.part.is_matrix() && (plain.is_none() || role == first) => {
                plain = codec.float().or(plain);
            }
            _ => {}
        }
    }
    let norm = checkpoint.spec().roles().into_iter().find(|r| !r.part.is_matrix());
    let norm = match norm.map(|role| checkpoint.codec(role)).transpose()? {
        Some(Encoding::Codec(CodecId::F16)) => Float::F16,
        // GGUF has all norms in F32, which says nothing.
        _ => Float::BF16,
    };
    Ok(plain.or(scale_type(checkpoint)?).unwrap_or(norm))
}

/// The first matrix of a decoder layer, which stands for all others.
fn first_linear(checkpoint: &Checkpoint) -> Result<Role> {
    let linear = checkpoint.spec().roles().into_iter().find(|r| r.part.is_linear());
    linear.ok_or_else(|| Error::corrupt("the model has no layers").file(checkpoint.path()))
}

/// The type of a quantized checkpoint's scales, if they have a floating-point type of two or four bytes.
pub fn scale_type(checkpoint: &Checkpoint) -> Result<Option<Float>> {
    Ok(match checkpoint.codec(first_linear(checkpoint)?)? {
        Encoding::Codec(CodecId::MlxAffine { scale, .. } | CodecId::IntGroup { scale, .. }) => Some(scale),
        Encoding::Codec(CodecId::MXFP4 | CodecId::NVFP4) => None,
        Encoding::Codec(codec) if CodecId::GGML.contains(&codec) => Some(Float::F16),
        _ => None,
    })
}

/// Where a preset gives a quantized tensor another grid than the target's base format, and that one has the tensor's own grid, the
/// base format it is: more bits would not bring back what is lost. Formats that the user named stay.
pub fn settle(plan: &mut Plan, base: impl Fn(usize) -> CodecId, source: &dyn WeightSource, options: &PlanOptions) -> Result<()> {
    for entry in &mut plan.entries {
        let from = source.codec(entry.role)?;
        let row_len = source.spec().shape(entry.role.part).last().copied().unwrap_or(1);
        let base = base(row_len);
        let better = treatment(&from, entry.codec) == Treatment::Again && treatment(&from, base) == Treatment::Keep;
        if better && base.row_bytes(row_len).is_ok() && !options.names(entry.role) {
            (entry.codec, entry.instead_of) = (base, None);
        }
        // Codes that are kept are not weighed.
        entry.needs_importance &= treatment(&from, entry.codec) != Treatment::Keep;
    }
    Ok(())
}

/// An error if a tensor would be quantized a second time. `solved`: by a method that chooses codes anew for every tensor.
pub fn check(plan: &Plan, source: &Checkpoint, target: &str, solved: bool) -> Result<()> {
    // An output matrix that was the embedding is looked at as the embedding.
    for entry in plan.entries.iter().filter(|e| source.spec().has_role(e.role)) {
        let from = source.codec(entry.role)?;
        let again = match treatment(&from, entry.codec) {
            Treatment::Encode | Treatment::Decode => false,
            Treatment::Keep => solved,
            Treatment::Again => true,
        };
        if again {
            let name = source.tensor_name(entry.role)?;
            let message = format!("{target}: is {from} already, and would be quantized a second time, to {}", entry.codec);
            let e = Error::unsupported(message).file(source.store().file_of(name)).tensor(name);
            return Err(e.hint(match solved {
                true => {
                    "start from the unquantized checkpoint, or accept more loss with --allow-requantize; \
                         `bitsmith convert` keeps codes where a target has the same grid"
                }
                false => {
                    "start from the unquantized checkpoint, or accept more loss with --allow-requantize; \
                          `bitsmith convert --to CONTAINER:keep` finds formats that hold what is there"
                }
            }));
        }
    }
    Ok(())
}

/// Rows that keep their codes, as far as they can. `again` encodes the rows for blocks that have no place in the format `to`;
/// without it they are an error.
pub fn keep(
    rows: &EncodedTensor,
    weights: &[f32],
    to: CodecId,
    again: Option<&dyn Fn() -> Result<EncodedTensor>>,
) -> Result<(EncodedTensor, Tally)> {
    let row_len = *rows.shape.last().unwrap_or(&1);
    let Regridded { bytes, lost, steps } = regrid(rows.codec, to, &rows.bytes, row_len)?;
    let mut kept = EncodedTensor { shape: rows.shape.clone(), codec: to, bytes, scale: rows.scale };
    let mut tally = Tally { weights: weights.len() as u64, steps, ..Tally::default() };
    if let Some(&first) = lost.first() {
        let Some(again) = again else {
            let (len, at) = (to.codec().block_len(), first * to.codec().block_len());
            let (from, end) = (at % row_len, at % row_len + len);
            let what = format!("{} has groups (weights {from} to {end} of a row) that have no place in {to}", rows.codec);
            return Err(Error::unsupported(what).hint(
                "`bitsmith convert --to CONTAINER:keep` finds a format that holds them; --allow-requantize accepts the loss",
            ));
        };
        let (size, anew) = (to.codec().block_bytes(), again()?);
        // Blocks of one tensor share its scale.
        if anew.scale != rows.scale {
            let what = format!("some blocks of {} under the scale {} have no place in {to}", rows.codec, rows.scale);
            return Err(Error::unsupported(what).hint("choose a target of plain numbers (`bitsmith targets`), which decodes it"));
        }
        for &block in &lost {
            let at = block * size..(block + 1) * size;
            kept.bytes[at.clone()].copy_from_slice(&anew.bytes[at]);
        }
        tally.again = (lost.len() * to.codec().block_len()) as u64;
    }
    if steps > 0.0 || !lost.is_empty() {
        tally.compare(weights, &kept);
    }
    Ok((kept, tally))
}

/// Rows with a scale for the whole tensor, for a target that has no place for it.
pub fn rescale(
    rows: &EncodedTensor,
    weights: &[f32],
    to: CodecId,
    again: Option<&dyn Fn() -> Result<EncodedTensor>>,
) -> Result<(EncodedTensor, Tally)> {
    let Some(again) = again else {
        let what = format!("{} with the scale {} for the whole tensor has no place in {to} here", rows.codec, rows.scale);
        return Err(Error::unsupported(what).hint("--allow-requantize accepts the loss of doing without it"));
    };
    let encoded = again()?;
    let tally = Tally::encoded(weights, &encoded);
    Ok((encoded, tally))
}

/// What happened to some weights.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Tally {
    /// Weights.
    pub weights: u64,
    /// Of them, those whose codes were chosen anew.
    pub again: u64,
    /// The most that a value moved that kept its code, in steps of its grid.
    pub steps: f32,
    /// Sums of squared errors and of squared weights, for the relative error.
    error: f64,
    norm: f64,
}

impl Tally {
    /// For weights that were all encoded anew.
    pub fn encoded(weights: &[f32], encoded: &EncodedTensor) -> Self {
        let n = weights.len() as u64;
        let mut tally = Tally { weights: n, again: n, ..Tally::default() };
        tally.compare(weights, encoded);
        tally
    }

    fn compare(&mut self, weights: &[f32], encoded: &EncodedTensor) {
        for (&w, v) in weights.iter().zip(encoded.decode()) {
            let (w, v) = (f64::from(w), f64::from(v));
            self.error += (v - w) * (v - w);
            self.norm += w * w;
        }
    }

    fn add(&mut self, other: &Tally) {
        self.weights += other.weights;
        self.again += other.again;
        self.steps = self.steps.max(other.steps);
        self.error += other.error;
        self.norm += other.norm;
    }

    /// ‖ŵ − w‖ / ‖w‖.
    fn relative_error(&self) -> f64 {
        if self.norm > 0.0 { (self.error / self.norm).sqrt() } else { 0.0 }
    }
}

/// What happened to all tensors of one target.
#[derive(Debug, Default)]
pub struct Account(BTreeMap<(String, CodecId), (BTreeSet<Role>, Tally)>);

impl Account {
    /// Adds rows of a tensor.
    pub fn add(&mut self, role: Role, from: &Encoding, to: CodecId, tally: &Tally) {
        let (roles, sum) = self.0.entry((from.to_string(), to)).or_default();
        roles.insert(role);
        sum.add(tally);
    }

    /// What to tell the user: lines, each with whether it is a loss to look into.
    pub fn lines(&self) -> Vec<(bool, String)> {
        let line = |((from, to), (roles, t)): (&(String, CodecId), &(BTreeSet<Role>, Tally))| {
            let decoded = to.float().is_some();
            let tensors = match roles.len() {
                1 => format!("{}: ", roles.first().expect("there is one")),
                n => format!("{n} tensors: "),
            };
            let error = percent(t.relative_error());
            let text = match (t.again, t.steps) {
                _ if decoded && t.error == 0.0 => format!("decoded from {from} to {to} without loss"),
                _ if decoded => format!("decoded from {from} to {to}, rounding error {error}"),
                (0, 0.0) => format!("{from} kept without loss as {to}"),
                (0, steps) => {
                    format!(
                        "codes of {from} kept as {to}; its scales are stored less precisely, which moves values by up to {steps:.4} of a step (relative error {error})"
                    )
                }
                (again, _) if again < t.weights => {
                    let share = percent(again as f64 / t.weights as f64);
                    format!(
                        "{share} of the weights in {from} have no place in {to} and were quantized a second time: relative error {error}, on top of the source's own"
                    )
                }
                _ => format!("quantized a second time, from {from} to {to}: relative error {error}, on top of the source's own"),
            };
            (t.again > 0 && !decoded, tensors + &text)
        };
        self.0.iter().map(line).collect()
    }
}

/// A share with two significant digits.
fn percent(share: f64) -> String {
    let digits = match share * 100.0 {
        p if p >= 10.0 => 0,
        p if p >= 1.0 => 1,
        p if p >= 0.1 => 2,
        p if p >= 0.01 => 3,
        _ => 5,
    };
    format!("{:.digits$} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_runtime::Part;

    const GPTQ: CodecId = CodecId::IntGroup { bits: 4, group: 32, scale: Float::F16, symmetric: false };

    #[test]
    fn treatments() {
        let of = |from, to| treatment(&Encoding::Codec(from), to);
        assert_eq!(of(CodecId::BF16, CodecId::Q4K), Treatment::Encode);
        assert_eq!(of(CodecId::Fp8Group { group: 128, scale: Float::F32 }, CodecId::Q4K), Treatment::Encode);
        let fp8 = CodecId::Fp8Group { group: 64, scale: Float::BF16 };
        assert_eq!(of(fp8, fp8), Treatment::Keep);
        assert_eq!(of(CodecId::Q4K, CodecId::BF16), Treatment::Decode);
        assert_eq!(of(GPTQ, CodecId::Q4_0), Treatment::Keep);
        assert_eq!(of(GPTQ, CodecId::Q4K), Treatment::Again);
        assert_eq!(treatment(&Encoding::Decoded("gptq 4 bits".into()), CodecId::Q4_0), Treatment::Again);
        assert_eq!(treatment(&Encoding::Decoded("gptq 4 bits".into()), CodecId::F16), Treatment::Decode);
    }

    #[test]
    fn lost_blocks_are_an_error_or_encoded_anew() {
        // The second group's zero point is not in the middle, and its codes use both ends.
        let weights: Vec<f32> = (0..64).map(|i| if i < 32 { (i % 16) as f32 - 8.0 } else { (i % 16) as f32 - 3.0 }).collect();
        let rows = EncodedTensor::encode(GPTQ, &[1, 64], &weights, None).unwrap();
        let weights = rows.decode();
        let e = keep(&rows, &weights, CodecId::Q4_0, None).unwrap_err();
        assert!(e.message.contains("weights 32 to 64") && e.hint.unwrap().contains("--allow-requantize"), "{}", e.message);
        let again = || EncodedTensor::encode(CodecId::Q4_0, &[1, 64], &weights, None);
        let (kept, tally) = keep(&rows, &weights, CodecId::Q4_0, Some(&again)).unwrap();
        assert_eq!(kept.decode()[..32], weights[..32]);
        assert_eq!(kept.bytes[18..], again().unwrap().bytes[18..]);
        assert_eq!((tally.weights, tally.again), (64, 32));
        // Bytes under one scale mean something else under another.
        let scaled = || Ok(EncodedTensor { scale: 2.0, ..again()? });
        assert!(keep(&rows, &weights, CodecId::Q4_0, Some(&scaled)).is_err());
        let mut account = Account::default();
        account.add(Role::layer(0, Part::AttnQ), &Encoding::Codec(GPTQ), CodecId::Q4_0, &tally);
        let [(true, line)] = &account.lines()[..] else { panic!("{:?}", account.lines()) };
        assert!(line.starts_with("blk.0.attn_q.weight: 50 % of the weights in int4-g32-f16"), "{line}");
    }

    #[test]
    fn shares_have_two_digits() {
        assert_eq!([0.5, 0.0567, 0.001234, 0.00012, 0.0000004].map(percent), ["50 %", "5.7 %", "0.12 %", "0.012 %", "0.00004 %"]);
    }
}
