//! Checkpoint folders whose quantized weights are spread over several safetensors tensors ("planes"), as `config.json` says under
//! `quantization_config`. One file per layout; [`PackedStore`] offers each such weight as one tensor in one of our codecs.
//!
//! A new layout is a file here with a `Layout`, and a line in `LAYOUTS`.

mod awq;
mod bitsandbytes;
mod bytes;
mod compressed;
mod compressed_write;
mod fp8;
mod gptq;
mod int_planes;
mod micro;
mod modelopt;
mod mxfp4;
mod planes;
mod targets;
mod writer;

pub use compressed_write::{Described, quantization_config as compressed_tensors_config};
pub use gptq::ZeroPoints;
pub use modelopt::quantization_config as modelopt_config;
pub use writer::{PackedFormat, PackedWriter};

use crate::container::{Encoding, TensorInfo, TensorStore};
use crate::error::{Error, Result};
use crate::mlx::read_config;
use crate::safetensors::SafetensorsStore;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::ops::Range;
use std::path::{Path, PathBuf};

const WEIGHT: &str = ".weight";

/// How one kind of checkpoint spreads a quantized weight over tensors.
pub(crate) trait Layout: Debug + Send + Sync {
    /// Its name for messages and `inspect`: `gptq`, `awq`, …
    fn name(&self) -> &'static str;
    /// All weights that this layout packs, found by their planes' names and held against the configuration. Tensors that are no
    /// plane of any weight stay as they are.
    fn weights(&self, store: &SafetensorsStore) -> Result<Vec<Weight>>;
    /// Some rows of a weight in its encoding: blocks of the codec, or f32 for [`Encoding::Decoded`].
    fn rows(&self, store: &SafetensorsStore, weight: &Weight, rows: Range<usize>) -> Result<Vec<u8>>;
}

/// A packed weight.
#[derive(Debug, Clone)]
pub(crate) struct Weight {
    /// The entry that callers see, named as the dense weight would be (`….weight`), with its logical shape.
    pub info: TensorInfo,
    /// The tensors that hold it.
    pub planes: Vec<String>,
}

/// Makes a layout from `quantization_config`; `None` if that names another one.
type FromConfig = fn(&Value) -> Result<Option<Box<dyn Layout>>>;

/// All layouts.
const LAYOUTS: &[FromConfig] = &[
    awq::from_config,
    bitsandbytes::from_config,
    compressed::from_config,
    fp8::from_config,
    gptq::from_config,
    modelopt::from_config,
    mxfp4::from_config,
];

/// Files beside a `config.json` that knows nothing of the quantization: AutoGPTQ's own, as older checkpoints have it, and ModelOpt's.
/// Each with the method that it belongs to and where in it the description lies.
const OTHER_CONFIGS: [(&str, &str, &str); 2] =
    [("quantize_config.json", "gptq", ""), ("hf_quant_config.json", "modelopt", "/quantization")];

/// Path and contents of a folder's `config.json`, with the `quantization_config` that some checkpoints keep in a file of its own.
pub(crate) fn config_of(folder: &Path) -> Result<(PathBuf, Value)> {
    let (path, mut config) = read_config(folder)?;
    if !config.is_object() || config.get("quantization_config").is_some_and(|q| !q.is_null()) {
        return Ok((path, config));
    }
    for (file, method, pointer) in OTHER_CONFIGS {
        let other = folder.join(file);
        if !other.is_file() {
            continue;
        }
        let json = std::fs::read(&other).map_err(|e| Error::read(&other, e))?;
        let mut whole: Value =
            serde_json::from_slice(&json).map_err(|e| Error::corrupt(format!("not JSON: {e}")).file(&other).with_source(e))?;
        if let Some(Value::Object(block)) = whole.pointer_mut(pointer) {
            block.entry("quant_method").or_insert(method.into());
            config["quantization_config"] = Value::Object(std::mem::take(block));
            break;
        }
    }
    Ok((path, config))
}

/// The layout that a `config.json` asks for; `None` if the checkpoint is not quantized, or in a way that is unknown here.
pub(crate) fn layout_of(config: &Value) -> Result<Option<Box<dyn Layout>>> {
    let Some(quantization) = config.get("quantization_config").filter(|q| q.is_object()) else { return Ok(None) };
    for from_config in LAYOUTS {
        if let Some(layout) = from_config(quantization)? {
            return Ok(Some(layout));
        }
    }
    Ok(None)
}

/// A checkpoint folder with packed weights.
#[derive(Debug)]
pub struct PackedStore {
    inner: SafetensorsStore,
    layout: Box<dyn Layout>,
    tensors: Vec<TensorInfo>,
    packed: HashMap<String, Weight>,
    by_name: HashMap<String, usize>,
}

impl PackedStore {
    /// Opens a folder whose `config.json` has a `quantization_config`. Headers are read and checked, no data.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let (config_path, config) = config_of(folder.as_ref())?;
        let layout = layout_of(&config).map_err(|e| e.file(&config_path))?.ok_or_else(|| {
            let method = config.pointer("/quantization_config/quant_method").map_or("?".into(), Value::to_string);
            Error::unsupported(format!("checkpoints quantized with {method} cannot be read"))
                .file(&config_path)
                .hint("start from the unquantized checkpoint")
        })?;
        let inner = SafetensorsStore::open(folder)?;
        let packed: HashMap<String, Weight> = layout.weights(&inner)?.into_iter().map(|w| (w.info.name.clone(), w)).collect();
        // A weight stands where its first plane stood; the others are no tensors of their own.
        let mut first: HashMap<&str, &Weight> = HashMap::new();
        let mut planes: HashSet<&str> = HashSet::new();
        for weight in packed.values() {
            first.extend(weight.planes.first().map(|p| (p.as_str(), weight)));
            planes.extend(weight.planes.iter().map(String::as_str));
        }
        let mut tensors = Vec::new();
        for info in inner.tensors() {
            match first.get(info.name.as_str()) {
                Some(weight) => tensors.push(weight.info.clone()),
                None if planes.contains(info.name.as_str()) => {}
                None => tensors.push(info.clone()),
            }
        }
        let by_name = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(PackedStore { inner, layout, tensors, packed, by_name })
    }

    /// The layout's name.
    pub fn layout(&self) -> &'static str {
        self.layout.name()
    }

    /// The files that hold the tensors.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.inner.files()
    }
}

impl TensorStore for PackedStore {
    fn path(&self) -> &Path {
        self.inner.path()
    }
    fn file_of(&self, name: &str) -> &Path {
        let plane = self.packed.get(name).and_then(|w| w.planes.first());
        self.inner.file_of(plane.map_or(name, String::as_str))
    }
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        match self.packed.get(name) {
            Some(weight) => self.row_bytes(name, 0..weight.info.n_rows()),
            None => self.inner.bytes(name),
        }
    }
    fn row_bytes(&self, name: &str, rows: Range<usize>) -> Result<Cow<'_, [u8]>> {
        match self.packed.get(name) {
            Some(weight) => {
                let bytes = self.layout.rows(&self.inner, weight, rows);
                bytes.map(Cow::Owned).map_err(|e| e.file(self.file_of(name)).tensor(name))
            }
            None => self.inner.row_bytes(name, rows),
        }
    }
    fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }
}

/// The module that a packed weight belongs to.
fn module_of(weight: &Weight) -> &str {
    weight.info.name.strip_suffix(WEIGHT).unwrap_or(&weight.info.name)
}

/// The module of a weight to be written.
fn module_name(name: &str) -> Result<&str> {
    name.strip_suffix(WEIGHT).ok_or_else(|| Error::failed("only tensors named `….weight` can be packed").tensor(name))
}

/// A plane of `module` that must be there.
pub(crate) fn plane<'a>(store: &'a SafetensorsStore, module: &str, name: &str) -> Result<&'a TensorInfo> {
    let full = format!("{module}.{name}");
    store.find(&full).ok_or_else(|| {
        Error::missing("this part of a quantized weight is missing")
            .file(store.path())
            .tensor(full)
            .hint("the checkpoint is incomplete, or config.json describes another one")
    })
}

/// The dtype of a plane as its container names it: `I32`, `F8_E4M3`, `f16`, ….
pub(crate) fn dtype(info: &TensorInfo) -> String {
    match &info.encoding {
        Encoding::Codec(codec) => codec.to_string(),
        Encoding::Opaque(name) | Encoding::Decoded(name) => name.clone(),
    }
}
