//! A model on disk, in any container, as weights by role.

use crate::arch::{ContainerKind, TensorMap, gguf_row_order};
use crate::role::{Part, Role};
use crate::spec::ModelSpec;
use bitsmith_formats::gguf::GgufStore;
use bitsmith_formats::mlx::MlxStore;
use bitsmith_formats::safetensors::SafetensorsStore;
use bitsmith_formats::store::Container;
use bitsmith_formats::{Encoding, Error, Result, TensorStore};
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
}

/// An opened container.
#[derive(Debug)]
pub enum Store {
    /// A GGUF file or set.
    Gguf(GgufStore),
    /// An MLX folder with quantized tensors.
    Mlx(MlxStore),
    /// A Hugging Face folder, a safetensors file or an index.
    Safetensors(SafetensorsStore),
}

impl Store {
    /// The container behind its common interface.
    pub fn as_dyn(&self) -> &dyn TensorStore {
        match self {
            Store::Gguf(s) => s,
            Store::Mlx(s) => s,
            Store::Safetensors(s) => s,
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
}

impl Checkpoint {
    /// Opens a Hugging Face folder, an MLX folder or a GGUF file (the first of a set). Reads the configuration and the headers and
    /// checks that every tensor of the model is there in its shape and that there is none without a place; reads no weights.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (kind, config, store, spec) = match Container::detect(path)? {
            Container::Gguf => {
                let store = GgufStore::open(path)?;
                let spec = ModelSpec::from_gguf(&scalars(&store), &store).map_err(|e| e.file(path))?;
                (ContainerKind::Gguf, None, Store::Gguf(store), spec)
            }
            container => {
                let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
                let file = folder.join("config.json");
                let config = read_json(&file)?.ok_or_else(|| {
                    Error::missing("no such file")
                        .file(&file)
                        .hint("a checkpoint folder needs its config.json beside the safetensors")
                })?;
                if config.get("quantization").is_none()
                    && let Some(method) = config.pointer("/quantization_config/quant_method").and_then(Value::as_str)
                {
                    return Err(Error::unsupported(format!("the checkpoint is already quantized with `{method}`"))
                        .file(&file)
                        .hint("start from the unquantized checkpoint"));
                }
                let mut spec = ModelSpec::from_config(&config).map_err(|e| e.file(&file))?;
                let (kind, store) = match container {
                    Container::Mlx => (ContainerKind::Mlx, Store::Mlx(MlxStore::open(path)?)),
                    _ => (ContainerKind::Hf, Store::Safetensors(SafetensorsStore::open(path)?)),
                };
                // Writers differ on the meaning of an absent key, but not on whether there is an output matrix.
                let head = spec.arch.hf_name(Role::global(Part::Output));
                if config.get("tie_word_embeddings").is_none() && head.is_some_and(|n| store.as_dyn().find(&n).is_none()) {
                    spec.tied = true;
                }
                read_generation_config(folder, &mut spec)?;
                (kind, Some(config), store, spec)
            }
        };
        let names = store.as_dyn().tensors().iter().map(|t| t.name.as_str());
        let map = spec.arch.map_tensors(&spec, kind, names).map_err(|e| e.file(path))?;
        let checkpoint = Checkpoint { path: path.to_path_buf(), kind, config, store, spec, map };
        for (role, name) in &checkpoint.map.roles {
            if let Some(info) = checkpoint.store().find(name) {
                check_shape(&checkpoint.spec, *role, &info.shape).map_err(|e| {
                    e.file(checkpoint.file_of(name)).tensor(name).hint("the weights and the configuration do not belong together")
                })?;
            }
        }
        Ok(checkpoint)
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
    /// The name of a role's tensor in this container.
    pub fn tensor_name(&self, role: Role) -> Result<&str> {
        self.map
            .roles
            .get(&role)
            .map(String::as_str)
            .ok_or_else(|| Error::missing("the checkpoint lacks this tensor").file(&self.path).tensor(role.to_string()))
    }

    /// The file that holds a tensor, for messages.
    fn file_of(&self, name: &str) -> &Path {
        match &self.store {
            Store::Safetensors(s) => s.file_of(name).unwrap_or(&self.path),
            _ => &self.path,
        }
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
        let name = self.tensor_name(role)?;
        let (shape, mut data) = self.store().read_f32(name).map_err(|e| e.file(self.file_of(name)).tensor(name))?;
        check_shape(&self.spec, role, &shape).map_err(|e| e.file(self.file_of(name)).tensor(name))?;
        if self.kind == ContainerKind::Gguf && self.spec.arch.gguf_permutes_qk {
            let heads = match role.part {
                Part::AttnQ | Part::AttnQBias => Some(self.spec.n_heads),
                Part::AttnK | Part::AttnKBias => Some(self.spec.n_kv_heads),
                _ => None,
            };
            if let Some(heads) = heads {
                data = unpermute(&data, &gguf_row_order(heads, self.spec.head_dim));
            }
        }
        Ok(HostTensor { shape, data })
    }
}

/// Puts row `i` of `data` at `order[i]`.
fn unpermute(data: &[f32], order: &[usize]) -> Vec<f32> {
    let row_len = data.len() / order.len().max(1);
    let mut out = vec![0f32; data.len()];
    for (row, at) in data.chunks_exact(row_len.max(1)).zip(order) {
        out[at * row_len..(at + 1) * row_len].copy_from_slice(row);
    }
    out
}

/// Checks a tensor's shape against the model.
pub(crate) fn check_shape(spec: &ModelSpec, role: Role, shape: &[usize]) -> Result<()> {
    let want = spec.shape(role.part);
    if shape == want { Ok(()) } else { Err(Error::corrupt(format!("shape {shape:?}, expected {want:?}"))) }
}

/// GGUF metadata without its arrays (vocabularies).
fn scalars(store: &GgufStore) -> Value {
    let small = store.metadata().iter().filter(|(_, v)| v.as_array().is_none());
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
