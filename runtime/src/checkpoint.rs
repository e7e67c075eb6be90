//! A model on disk, in any container, as weights by role.

mod names;

use crate::arch::vision::{Tower, Wrapper};
use crate::arch::{ContainerKind, Place, TensorMap};
use crate::cache::CacheType;
use crate::ops;
use crate::product::{Blocks, ComputeMode, Weight};
use crate::role::{Part, Role};
use crate::spec::{ModelSpec, Pooling};
use bitsmith_formats::gguf::GgufStore;
use bitsmith_formats::mlx::MlxStore;
use bitsmith_formats::packed::PackedStore;
use bitsmith_formats::safetensors::SafetensorsStore;
use bitsmith_formats::store::Container;
use bitsmith_formats::torch::TorchStore;
use bitsmith_formats::{Encoding, Error, Result, TensorStore};
use candle_core::Device;
use names::{Names, with_extra_layers};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// A tensor on the host, row-major f32.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Values.
    pub data: Vec<f32>,
}

/// Weights by role: a checkpoint, or a model changed in memory. Rows are in Hugging Face's order whatever the container's.
pub trait WeightSource: Send + Sync {
    /// The model's hyperparameters.
    fn spec(&self) -> &ModelSpec;
    /// How the tensor is stored.
    fn codec(&self, role: Role) -> Result<Encoding>;
    /// The tensor decoded to f32, in the shape that the spec gives.
    fn read(&self, role: Role) -> Result<HostTensor>;
    /// The tensor as products take it: in blocks where it is stored in blocks, otherwise as f32. On another device than the CPU always as
    /// f32.
    fn weight(&self, role: Role, device: &Device) -> Result<Weight> {
        let host = self.read(role)?;
        Ok(Weight::Dense(ops::from_host(host.data, &host.shape, device)?))
    }
    /// How layers and heads loaded from this source are to compute their products.
    fn compute(&self) -> ComputeMode {
        ComputeMode::F32
    }
    /// How keys and values are rounded when layers loaded from this source read whole windows: as a cache of this type would store them.
    /// Sequences that are generated have caches of their own.
    fn cache(&self) -> CacheType {
        CacheType::F32
    }
}

impl<T: WeightSource + ?Sized> WeightSource for &T {
    fn spec(&self) -> &ModelSpec {
        (**self).spec()
    }
    fn codec(&self, role: Role) -> Result<Encoding> {
        (**self).codec(role)
    }
    fn read(&self, role: Role) -> Result<HostTensor> {
        (**self).read(role)
    }
    fn weight(&self, role: Role, device: &Device) -> Result<Weight> {
        (**self).weight(role, device)
    }
    fn compute(&self) -> ComputeMode {
        (**self).compute()
    }
    fn cache(&self) -> CacheType {
        (**self).cache()
    }
}

/// An opened container.
#[derive(Debug)]
pub enum Store {
    /// A GGUF file or set.
    Gguf(GgufStore),
    /// An MLX folder with quantized tensors.
    Mlx(MlxStore),
    /// A Hugging Face folder with packed weights: GPTQ, AWQ, ….
    Packed(PackedStore),
    /// A Hugging Face folder, a safetensors file or an index.
    Safetensors(SafetensorsStore),
    /// A PyTorch checkpoint.
    Torch(TorchStore),
}

impl Store {
    /// The container behind its common interface.
    pub fn as_dyn(&self) -> &dyn TensorStore {
        match self {
            Store::Gguf(s) => s,
            Store::Mlx(s) => s,
            Store::Packed(s) => s,
            Store::Safetensors(s) => s,
            Store::Torch(s) => s,
        }
    }
}

/// A model on disk.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    kind: ContainerKind,
    config: Option<Value>,
    store: Store,
    spec: ModelSpec,
    map: TensorMap,
    tower: Option<Tower>,
    compute: ComputeMode,
    cache: CacheType,
}

impl Checkpoint {
    /// Opens a Hugging Face folder, an MLX folder or a GGUF file (the first of a set). Reads the configuration and the headers and
    /// checks that every tensor of the model is there in its shape and that there is none without a place; reads no weights. Of a
    /// model with a vision tower, the model is the text model; see [`Checkpoint::tower`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (kind, config, store, spec, names) = match Container::detect(path)? {
            Container::Gguf => {
                let store = GgufStore::open(path)?;
                let spec = ModelSpec::from_gguf(&scalars(&store), &store).map_err(|e| e.file(path))?;
                let store = Store::Gguf(store);
                let names = Names::of(store.as_dyn(), None)?;
                (ContainerKind::Gguf, None, store, spec, names)
            }
            container => {
                let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
                let file = folder.join("config.json");
                let config = read_json(&file)?.ok_or_else(|| {
                    Error::missing("no such file")
                        .file(&file)
                        .hint("a checkpoint folder needs its config.json beside the weights")
                })?;
                if matches!(container, Container::Safetensors | Container::Torch)
                    && let Some(method) = config.pointer("/quantization_config/quant_method").and_then(Value::as_str)
                {
                    return Err(Error::unsupported(format!("checkpoints quantized with `{method}` cannot be read"))
                        .file(&file)
                        .hint("start from the unquantized checkpoint"));
                }
                let mut spec = ModelSpec::from_config(&config).map_err(|e| e.file(&file))?;
                let (kind, store) = match container {
                    Container::Mlx => (ContainerKind::Mlx, Store::Mlx(MlxStore::open(path)?)),
                    Container::Packed => (ContainerKind::Hf, Store::Packed(PackedStore::open(path)?)),
                    Container::Torch => (ContainerKind::Hf, Store::Torch(TorchStore::open(path)?)),
                    _ => (ContainerKind::Hf, Store::Safetensors(SafetensorsStore::open(path)?)),
                };
                // Writers differ on the meaning of an absent key, but not on whether there is an output matrix.
                let wrapper = Wrapper::of(&config);
                let names = Names::of(store.as_dyn(), wrapper).map_err(|e| e.file(path))?;
                let head = spec.arch.hf_name(Part::Output);
                // The configurations of a wrapped model and of its text model may say one and the other.
                let unsure = wrapper.is_some() || config.get("tie_word_embeddings").is_none();
                if unsure && head.is_some_and(|n| !names.text.contains_key(n)) {
                    spec.tied = true;
                    spec.remove(&[Part::Output]);
                }
                read_generation_config(folder, &mut spec)?;
                read_pooling(folder, &mut spec)?;
                (kind, Some(config), store, spec, names)
            }
        };
        let kind = match kind {
            ContainerKind::Hf if spec.arch.has_mlx_names(spec.n_layers, |n| names.text.contains_key(n)) => ContainerKind::Mlx,
            kind => kind,
        };
        let Names { text, tower, dropped } = names;
        let (spec, mut map) = with_extra_layers(spec, kind, &text).map_err(|e| e.file(path))?;
        map.rename(&text);
        map.dropped.extend(dropped);
        let (compute, cache) = (ComputeMode::F32, CacheType::F32);
        let checkpoint = Checkpoint { path: path.to_path_buf(), kind, config, store, spec, map, tower, compute, cache };
        for place in checkpoint.map.roles.values().flatten() {
            let (name, want) = (&place.name, place.tensor_shape());
            if let Some(info) = checkpoint.store().find(name)
                && info.shape != want
                // A vector may be one row.
                && info.shape.strip_prefix(&[1]) != Some(&want)
            {
                return Err(Error::corrupt(format!("shape {:?}, expected {want:?}", info.shape))
                    .file(checkpoint.store().file_of(name))
                    .tensor(name)
                    .hint("the weights and the configuration do not belong together"));
            }
        }
        Ok(checkpoint)
    }

    /// The same checkpoint, to be run in this mode.
    pub fn with_compute(self, compute: ComputeMode) -> Self {
        Checkpoint { compute, ..self }
    }
    /// The same checkpoint, whose keys and values are to be rounded as this type of cache stores them; an error if the model's heads
    /// cannot be stored so.
    pub fn with_cache(self, cache: CacheType) -> Result<Self> {
        cache.bytes_per_token(&self.spec)?;
        Ok(Checkpoint { cache, ..self })
    }
    /// Bytes of memory that all weights take together: matrices in blocks as stored, other tensors in f32.
    pub fn weight_bytes(&self) -> u64 {
        let bytes = |role: &Role| {
            let shape = self.spec.shape(role.part);
            let (n, row_len) = (shape.iter().product::<usize>(), shape.last().copied().unwrap_or(1));
            let stored = match self.codec(*role) {
                Ok(Encoding::Codec(codec)) if role.part.is_matrix() && self.in_blocks(*role).unwrap_or(false) => {
                    codec.row_bytes(row_len).ok().map(|row| n / row_len * row)
                }
                _ => None,
            };
            stored.unwrap_or(4 * n) as u64
        };
        self.map.roles.keys().map(bytes).sum()
    }
    /// What was opened: a folder or a file.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// The folder that holds the checkpoint's files.
    pub fn folder(&self) -> &Path {
        if self.path.is_dir() { &self.path } else { self.path.parent().unwrap_or(&self.path) }
    }
    /// The kind of container.
    pub fn kind(&self) -> ContainerKind {
        self.kind
    }
    /// `config.json`; `None` for GGUF.
    pub fn config(&self) -> Option<&Value> {
        self.config.as_ref()
    }
    /// The tensors as the container has them.
    pub fn store(&self) -> &dyn TensorStore {
        self.store.as_dyn()
    }
    /// The GGUF file, if it is one, for its metadata.
    pub fn gguf(&self) -> Option<&GgufStore> {
        match &self.store {
            Store::Gguf(s) => Some(s),
            _ => None,
        }
    }
    /// The container itself.
    pub fn container(&self) -> &Store {
        &self.store
    }
    /// Which tensor has which role.
    pub fn map(&self) -> &TensorMap {
        &self.map
    }
    /// Vision tower and projector, which are carried and not run; `None` for models that are text models.
    pub fn tower(&self) -> Option<&Tower> {
        self.tower.as_ref()
    }
    /// The tensors that hold a role in this container, in the order of its rows; never none.
    pub fn places(&self, role: Role) -> Result<&[Place]> {
        self.map
            .roles
            .get(&role)
            .map(Vec::as_slice)
            .ok_or_else(|| Error::missing("the checkpoint lacks this tensor").file(&self.path).tensor(role.to_string()))
    }
    /// The name of a role's tensor in this container, or of the first of several.
    pub fn tensor_name(&self, role: Role) -> Result<&str> {
        Ok(&self.places(role)?[0].name)
    }
}

impl WeightSource for Checkpoint {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn codec(&self, role: Role) -> Result<Encoding> {
        let name = self.tensor_name(role)?;
        match self.store().find(name) {
            Some(info) => Ok(info.encoding.clone()),
            None => Err(Error::missing("no such tensor").file(&self.path).tensor(name)),
        }
    }

    fn read(&self, role: Role) -> Result<HostTensor> {
        let shape = self.spec.shape(role.part);
        let rows = self.places(role)?.iter().map(Place::n_rows).sum();
        Ok(HostTensor { data: self.read_rows(role, 0..rows)?, shape })
    }

    fn weight(&self, role: Role, device: &Device) -> Result<Weight> {
        if device.is_cpu() && role.part.is_matrix() && self.in_blocks(role)? {
            return Ok(Weight::Blocks(Blocks::new(self.read_checked_blocks(role)?)?));
        }
        let host = self.read(role)?;
        Ok(Weight::Dense(ops::from_host(host.data, &host.shape, device)?))
    }

    fn compute(&self) -> ComputeMode {
        self.compute
    }

    fn cache(&self) -> CacheType {
        self.cache
    }
}

/// Checks a tensor's shape against the model.
pub(crate) fn check_shape(spec: &ModelSpec, role: Role, shape: &[usize]) -> Result<()> {
    let want = spec.shape(role.part);
    if shape == want { Ok(()) } else { Err(Error::corrupt(format!("shape {shape:?}, expected {want:?}"))) }
}

/// GGUF metadata without its large arrays (vocabularies): some arrays have a value per layer.
fn scalars(store: &GgufStore) -> Value {
    const LARGEST: usize = 1 << 14;
    let small = store.metadata().iter().filter(|(_, v)| v.as_array().is_none_or(|a| a.len() <= LARGEST));
    Value::Object(small.map(|(k, v)| (k.to_string(), v.to_json())).collect::<Map<_, _>>())
}

/// Reads a JSON object; `None` if the file does not exist.
fn read_json(file: &Path) -> Result<Option<Value>> {
    let text = match std::fs::read(file) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::read(file, e)),
    };
    let value: Value = serde_json::from_slice(&text)
        .map_err(|e| Error::corrupt(format!("not valid JSON: {e}")).file(file).hint("download the file again"))?;
    if !value.is_object() {
        return Err(Error::corrupt("not a JSON object").file(file));
    }
    Ok(Some(value))
}

/// `generation_config.json` knows better than `config.json` where a text ends.
fn read_generation_config(folder: &Path, spec: &mut ModelSpec) -> Result<()> {
    let file = folder.join("generation_config.json");
    let Some(config) = read_json(&file)? else { return Ok(()) };
    let (bos, eos) = crate::arch::special_tokens(&config).map_err(|e| e.file(&file))?;
    if !eos.is_empty() {
        spec.eos = eos;
    }
    spec.bos = spec.bos.or(bos);
    Ok(())
}

/// How sentence-transformers pools an encoder's states: `modules.json` names the folder of the module that does.
fn read_pooling(folder: &Path, spec: &mut ModelSpec) -> Result<()> {
    let file = folder.join("modules.json");
    if spec.causal || !file.is_file() {
        return Ok(());
    }
    let text = std::fs::read(&file).map_err(|e| Error::read(&file, e))?;
    let modules: Vec<Value> =
        serde_json::from_slice(&text).map_err(|e| Error::corrupt(format!("not a list of modules: {e}")).file(&file))?;
    let is_pooling = |m: &&Value| m["type"].as_str().is_some_and(|t| t.ends_with("Pooling"));
    let Some(path) = modules.iter().find(is_pooling).and_then(|m| m["path"].as_str()) else { return Ok(()) };
    let file = folder.join(path).join("config.json");
    let Some(config) = read_json(&file)? else { return Err(Error::missing("no such file").file(&file)) };
    let on = |key: &str| config[key].as_bool() == Some(true);
    spec.pooling = match config["pooling_mode"].as_str() {
        _ if on("pooling_mode_mean_tokens") => Pooling::Mean,
        _ if on("pooling_mode_cls_token") => Pooling::Cls,
        Some("mean") => Pooling::Mean,
        Some("cls") => Pooling::Cls,
        _ => return Err(Error::unsupported("pooling other than the mean or the first token is not supported").file(&file)),
    };
    Ok(())
}

#[cfg(test)]
mod tests;
