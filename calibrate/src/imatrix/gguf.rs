//! The GGUF layout: per weight tensor `NAME.in_sum2`, Σ x² per input channel, `(matrices, in)`, and `NAME.counts`, the tokens seen,
//! `(matrices, 1)`, both F32.

use super::{Entry, Imatrix};
use bitsmith_formats::gguf::{GgufStore, MAGIC, Metadata, Value, write_gguf};
use bitsmith_formats::{CodecId, EncodedTensor, Error, Result, TensorStore};
use std::fs::File;
use std::io::Read;
use std::path::Path;

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// Whether the file starts as GGUF does.
pub(super) fn is_gguf(path: &Path) -> Result<bool> {
    let mut start = Vec::new();
    let file = File::open(path).map_err(|e| Error::read(path, e))?;
    file.take(MAGIC.len() as u64).read_to_end(&mut start).map_err(|e| Error::read(path, e))?;
    Ok(start == MAGIC)
}

pub(super) fn read(path: &Path) -> Result<Imatrix> {
    let store = GgufStore::open(path)?;
    let meta = store.metadata();
    if meta.get("general.type").and_then(Value::as_str) != Some("imatrix") {
        return Err(Error::corrupt("not an importance matrix: `general.type` is not `imatrix`")
            .hint("give a file written by `bitsmith calibrate --imatrix` or by llama-imatrix"));
    }
    let number = |key| meta.optional(key, Metadata::u64).map(|n| n.unwrap_or(0).min(u32::MAX.into()) as u32);
    let mut imatrix = Imatrix {
        datasets: meta.optional("imatrix.datasets", Metadata::strings)?.unwrap_or_default().to_vec(),
        chunk_count: number("imatrix.chunk_count")?,
        chunk_size: number("imatrix.chunk_size")?,
        ..Imatrix::default()
    };
    for info in store.tensors() {
        let Some(name) = info.name.strip_suffix(SUMS) else { continue };
        let (_, sums) = store.read_f32(&info.name)?;
        let (_, counts) = store.read_f32(&format!("{name}{COUNTS}"))?;
        if let Some(bad) = counts.iter().find(|c| c.is_nan() || **c < 0.0) {
            return Err(Error::corrupt(format!("a count of {bad}")).tensor(name));
        }
        let counts = counts.iter().map(|c| c.round() as u64).collect();
        imatrix.entries.insert(name.to_string(), Entry { sums: sums.into_iter().map(f64::from).collect(), counts });
    }
    Ok(imatrix)
}

pub(super) fn write(imatrix: &Imatrix, path: &Path) -> Result<()> {
    let mut metadata = Metadata::new();
    metadata.set("general.type", Value::String("imatrix".into()));
    metadata.set("imatrix.datasets", Value::from(imatrix.datasets.clone()));
    metadata.set("imatrix.chunk_count", Value::U32(imatrix.chunk_count));
    metadata.set("imatrix.chunk_size", Value::U32(imatrix.chunk_size));
    let mut tensors = Vec::new();
    for (name, entry) in &imatrix.entries {
        let plain = |columns: usize, values: &[f32]| {
            EncodedTensor::encode(CodecId::F32, &[entry.counts.len(), columns], values, None).map_err(|e| e.tensor(name))
        };
        let sums: Vec<f32> = entry.sums.iter().map(|s| *s as f32).collect();
        let counts: Vec<f32> = entry.counts.iter().map(|c| *c as f32).collect();
        tensors.push((format!("{name}{SUMS}"), plain(entry.width(), &sums)?));
        tensors.push((format!("{name}{COUNTS}"), plain(1, &counts)?));
    }
    write_gguf(path, &metadata, &tensors)
}
