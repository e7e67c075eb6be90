//! llama.cpp's importance matrix in its GGUF layout: per weight tensor `NAME.in_sum2`, Σ x² per input channel, `(1, in)`, and
//! `NAME.counts`, the tokens seen, `(1, 1)`.

use crate::stats::Stats;
use bitsmith_formats::gguf::{GgufStore, Metadata, Value, write_gguf};
use bitsmith_formats::{CodecId, EncodedTensor, Error, Result, TensorStore};
use bitsmith_runtime::Role;
use bitsmith_runtime::spec::ModelSpec;
use std::collections::BTreeMap;
use std::path::Path;

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// Writes the channel sums of `stats` for every linear layer of the model.
pub fn write(stats: &Stats, spec: &ModelSpec, path: &Path) -> Result<()> {
    let mut metadata = Metadata::new();
    metadata.set("general.type", Value::String("imatrix".into()));
    metadata.set("imatrix.datasets", Value::from(vec![stats.meta.data.clone()]));
    metadata.set("imatrix.chunk_count", Value::U32(stats.meta.samples as u32));
    metadata.set("imatrix.chunk_size", Value::U32(stats.meta.ctx as u32));
    let mut tensors = Vec::new();
    for role in spec.roles() {
        // The tied output matrix is the embedding, whose name llama.cpp's file does not carry either: nothing to weigh a table by.
        let Some(site) = role.site().and_then(|site| stats.sites.get(&site)) else { continue };
        let sums: Vec<f32> = site.sum_sq.iter().map(|&s| s as f32).collect();
        let plain = |shape: &[usize], values: &[f32]| EncodedTensor::encode(CodecId::F32, shape, values, None);
        tensors.push((format!("{role}{SUMS}"), plain(&[1, sums.len()], &sums)?));
        tensors.push((format!("{role}{COUNTS}"), plain(&[1, 1], &[site.tokens as f32])?));
    }
    if tensors.is_empty() {
        return Err(Error::failed("there are no statistics to write").file(path));
    }
    write_gguf(path, &metadata, &tensors)
}

/// Reads importance, E(x²) per input channel, for every linear layer that the file names. Tensors that the model does not
/// have are an error: the file belongs to another model.
pub fn read(path: &Path, spec: &ModelSpec) -> Result<BTreeMap<Role, Vec<f32>>> {
    let store = GgufStore::open(path)?;
    if store.metadata().get("general.type").and_then(Value::as_str) != Some("imatrix") {
        return Err(Error::corrupt("not an importance matrix: `general.type` is not `imatrix`")
            .file(path)
            .hint("give a file written by `bitsmith calibrate --imatrix` or by llama-imatrix (GGUF layout)"));
    }
    let by_name: BTreeMap<String, Role> = spec.roles().into_iter().map(|r| (r.to_string(), r)).collect();
    let mut importance = BTreeMap::new();
    for info in store.tensors() {
        let Some(name) = info.name.strip_suffix(SUMS) else { continue };
        let bad = |what: String| Error::corrupt(what).file(path).tensor(&info.name);
        let Some(&role) = by_name.get(name) else {
            return Err(bad("the model has no such tensor".into()).hint("this importance matrix belongs to another model"));
        };
        let (_, sums) = store.read_f32(&info.name)?;
        let (_, counts) = store.read_f32(&format!("{name}{COUNTS}"))?;
        let width = *spec.shape(role.part).last().expect("tensors have dimensions");
        if sums.len() != width || counts.len() != 1 {
            return Err(bad(format!("{} sums and {} counts, expected {width} and 1", sums.len(), counts.len())));
        }
        if sums.iter().any(|s| *s < 0.0) || counts[0] < 0.0 {
            return Err(bad("negative sums".into()));
        }
        if counts[0] > 0.0 {
            importance.insert(role, sums.iter().map(|s| s / counts[0]).collect());
        }
    }
    Ok(importance)
}
