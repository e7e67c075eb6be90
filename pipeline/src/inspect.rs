//! What a model is, from its headers: architecture, tensors, types, bits per weight, metadata. Reads no weights.

use crate::model::Located;
use bitsmith_formats::gguf::GgufStore;
use bitsmith_formats::store::{Container, open_store};
use bitsmith_formats::{Error, ErrorKind, Result, TensorInfo, TensorStore};
use bitsmith_runtime::{Checkpoint, Role, WeightSource};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Arrays longer than this are left out of a short description of the metadata.
const LONG_ARRAY: usize = 32;

/// A model's description.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// What the user called it.
    pub model: String,
    /// `gguf`, `mlx` or `safetensors`.
    pub container: &'static str,
    /// Our name of the architecture, or the file's own if it is not one that we know.
    pub architecture: Option<String>,
    /// Whether the architecture can be run and quantized.
    pub supported: bool,
    /// Weights in all tensors.
    pub params: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Bits per weight over all tensors.
    pub bpw: Option<f64>,
    /// Bits per weight over the linear layers of the decoder; absent for an unknown architecture.
    pub bpw_linear: Option<f64>,
    /// The tensors, in file order.
    pub tensors: Vec<InspectedTensor>,
    /// GGUF's metadata, or `config.json`.
    pub metadata: Value,
}

/// A tensor's description.
#[derive(Debug, Clone, Serialize)]
pub struct InspectedTensor {
    /// Name in the container.
    pub name: String,
    /// What it is for (`blk.0.attn_q.weight`); absent for an unknown architecture and for tensors without a part in the model.
    pub role: Option<String>,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Block format, or the container's name of a type that we carry without decoding.
    pub codec: String,
    /// Bytes in the file.
    pub bytes: u64,
}

/// Describes a model. Long metadata arrays (vocabularies) are given only by their length unless `full_metadata`.
///
/// An architecture that is not supported is described all the same, without roles.
pub fn inspect(located: &Located, full_metadata: bool) -> Result<Inspection> {
    match Checkpoint::open(&located.path) {
        Ok(checkpoint) => {
            let roles: BTreeMap<&str, Role> = checkpoint.map().by_name();
            let metadata = match checkpoint.gguf() {
                Some(store) => gguf_metadata(store, full_metadata),
                None => shorten(checkpoint.config().cloned().unwrap_or(Value::Null), full_metadata),
            };
            let container = Container::detect(&located.path)?.name();
            Ok(describe(located, container, Some(checkpoint.spec().arch.name.into()), checkpoint.store(), &roles, metadata))
        }
        Err(e) if e.kind == ErrorKind::Unsupported => unsupported(located, full_metadata, e),
        Err(e) => Err(e),
    }
}

fn unsupported(located: &Located, full_metadata: bool, reason: Error) -> Result<Inspection> {
    let path = &located.path;
    let container = Container::detect(path)?;
    let none = BTreeMap::new();
    if container == Container::Gguf {
        let store = GgufStore::open(path)?;
        let metadata = gguf_metadata(&store, full_metadata);
        let architecture = metadata["general.architecture"].as_str().map(String::from);
        return Ok(describe(located, container.name(), architecture, &store, &none, metadata));
    }
    let store = open_store(path)?;
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
    // The checkpoint was opened far enough to read its configuration, or there would be another error.
    let Some(config) =
        std::fs::read(folder.join("config.json")).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok())
    else {
        return Err(reason);
    };
    let architecture = config["model_type"].as_str().map(String::from);
    Ok(describe(located, container.name(), architecture, store.as_ref(), &none, shorten(config, full_metadata)))
}

fn describe(
    located: &Located,
    container: &'static str,
    architecture: Option<String>,
    store: &dyn TensorStore,
    roles: &BTreeMap<&str, Role>,
    metadata: Value,
) -> Inspection {
    let linear = |t: &&TensorInfo| roles.get(t.name.as_str()).is_some_and(|r| r.part.is_linear());
    let tensors = store.tensors();
    let bpw = |bytes: u64, params: u64| (params > 0).then(|| bytes as f64 * 8.0 / params as f64);
    let sums = |list: &mut dyn Iterator<Item = &TensorInfo>| {
        list.fold((0, 0), |(bytes, params), t| (bytes + t.n_bytes as u64, params + t.n_weights() as u64))
    };
    let (bytes, params) = sums(&mut tensors.iter());
    let (linear_bytes, linear_params) = sums(&mut tensors.iter().filter(linear));
    let one = |t: &TensorInfo| InspectedTensor {
        name: t.name.clone(),
        role: roles.get(t.name.as_str()).map(Role::to_string),
        shape: t.shape.clone(),
        codec: t.encoding.to_string(),
        bytes: t.n_bytes as u64,
    };
    Inspection {
        model: located.name.clone(),
        container,
        architecture,
        supported: !roles.is_empty(),
        params,
        bytes,
        bpw: bpw(bytes, params),
        bpw_linear: bpw(linear_bytes, linear_params),
        tensors: tensors.iter().map(one).collect(),
        metadata,
    }
}

impl Inspection {
    /// Tensors, weights and bytes by block format, the largest first.
    pub fn by_codec(&self) -> Vec<(String, usize, u64, u64)> {
        let mut sums: BTreeMap<&str, (usize, u64, u64)> = BTreeMap::new();
        for t in &self.tensors {
            let sum = sums.entry(&t.codec).or_default();
            *sum = (sum.0 + 1, sum.1 + t.shape.iter().product::<usize>() as u64, sum.2 + t.bytes);
        }
        let mut list: Vec<_> =
            sums.into_iter().map(|(codec, (n, params, bytes))| (codec.to_string(), n, params, bytes)).collect();
        list.sort_by(|a, b| b.3.cmp(&a.3).then_with(|| a.0.cmp(&b.0)));
        list
    }
}

fn gguf_metadata(store: &GgufStore, full: bool) -> Value {
    let pairs = store.metadata().iter().map(|(key, value)| {
        let long = value.as_array().map(|a| a.len()).filter(|n| !full && *n > LONG_ARRAY);
        (key.to_string(), long.map_or_else(|| value.to_json(), |n| json!({ "array_length": n })))
    });
    Value::Object(pairs.collect::<Map<_, _>>())
}

/// Replaces long arrays by their length.
fn shorten(value: Value, full: bool) -> Value {
    match value {
        Value::Array(list) if !full && list.len() > LONG_ARRAY => json!({ "array_length": list.len() }),
        Value::Object(map) => Value::Object(map.into_iter().map(|(k, v)| (k, shorten(v, full))).collect()),
        other => other,
    }
}
