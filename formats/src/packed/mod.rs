//! Checkpoint folders whose quantized weights are spread over several safetensors tensors ("planes"), as `config.json` says under
//! `quantization_config`. One file per layout; [`PackedStore`] offers each such weight as one tensor in one of our codecs.
//!
//! A new layout is a file here with a [`Layout`], and a line in [`LAYOUTS`].

mod bitsandbytes;
mod bytes;
mod compressed;
mod fp8;
mod micro;
mod modelopt;
mod mxfp4;
mod planes;
mod targets;

use crate::container::{Encoding, TensorInfo, TensorStore};
use crate::error::{Error, Result};
use crate::mlx::read_config;
use crate::safetensors::SafetensorsStore;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::ops::Range;
use std::path::Path;

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
const LAYOUTS: &[FromConfig] =
    &[bitsandbytes::from_config, compressed::from_config, fp8::from_config, modelopt::from_config, mxfp4::from_config];

/// Where ModelOpt describes a checkpoint, if not in `config.json`.
const MODELOPT_FILE: &str = "hf_quant_config.json";

/// The layout of a folder with this `config.json`; `None` if the checkpoint is not quantized, or in a way that is unknown here.
pub(crate) fn layout_of(folder: &Path, config: &Value) -> Result<Option<Box<dyn Layout>>> {
    let quantization = match config.get("quantization_config").filter(|q| q.is_object()) {
        Some(quantization) => quantization.clone(),
        None => match modelopt_config(&folder.join(MODELOPT_FILE))? {
            Some(quantization) => quantization,
            None => return Ok(None),
        },
    };
    for from_config in LAYOUTS {
        if let Some(layout) = from_config(&quantization)? {
            return Ok(Some(layout));
        }
    }
    Ok(None)
}

/// ModelOpt's own file in the form of a `quantization_config`; `None` if there is no such file.
fn modelopt_config(path: &Path) -> Result<Option<Value>> {
    if !path.is_file() {
        return Ok(None);
    }
    let json = std::fs::read(path).map_err(|e| Error::read(path, e))?;
    let mut config: Value =
        serde_json::from_slice(&json).map_err(|e| Error::corrupt(format!("not JSON: {e}")).file(path).with_source(e))?;
    match config.get_mut("quantization").and_then(Value::as_object_mut) {
        Some(quantization) if quantization.get("quant_algo").is_some_and(Value::is_string) => {
            quantization.insert("quant_method".into(), "modelopt".into());
            Ok(Some(Value::Object(std::mem::take(quantization))))
        }
        _ => Ok(None),
    }
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
        let (config_path, config) = read_config(folder.as_ref())?;
        let layout = layout_of(folder.as_ref(), &config).map_err(|e| e.file(&config_path))?.ok_or_else(|| {
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
