//! A model on disk, in any container, as weights by role.

use crate::arch::vision::{Tower, Wrapper};
use crate::arch::{ContainerKind, Place, TensorMap};
use crate::ops;
use crate::product::{Blocks, ComputeMode, Weight};
use crate::role::{Part, Role};
use crate::sorting::{Names, with_extra_layers};
use crate::spec::{ModelSpec, Pooling};
use bitsmith_formats::gguf::GgufStore;
use bitsmith_formats::mlx::MlxStore;
use bitsmith_formats::packed::PackedStore;
use bitsmith_formats::safetensors::SafetensorsStore;
use bitsmith_formats::store::Container;
use bitsmith_formats::torch::TorchStore;
use bitsmith_formats::{Encoding, Error, Result, TensorStore};
use candle_core::Device;
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
        let checkpoint =
            Checkpoint { path: path.to_path_buf(), kind, config, store, spec, map, tower, compute: ComputeMode::F32 };
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
mod tests {
    use super::*;
    use crate::arch::Order;
    use crate::memory::MemoryWeights;
    use crate::spec::RopeScaling;
    use crate::testing::{config, model};
    use bitsmith_formats::gguf::{Metadata, write_gguf};
    use bitsmith_formats::safetensors::{SafetensorsWriter, TensorPlan};
    use bitsmith_formats::{CodecId, EncodedTensor, ErrorKind};
    use serde_json::json;
    use std::collections::BTreeMap;

    type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

    fn hf_tensors(source: &MemoryWeights) -> Tensors {
        let named = |role: Role| {
            let t = source.read(role).unwrap();
            let places = source.spec().arch.places(source.spec(), ContainerKind::Hf, role).unwrap();
            (places[0].name.clone(), (t.shape, t.data))
        };
        source.spec().roles().into_iter().map(named).collect()
    }

    fn write_hf(folder: &Path, config: &Value, tensors: &Tensors) {
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        let plans = tensors.iter().map(|(n, (s, _))| TensorPlan::float(n, CodecId::F32, s).unwrap()).collect();
        let file = SafetensorsWriter::create(folder.join("model.safetensors"), plans, &BTreeMap::new()).unwrap();
        for (name, (_, data)) in tensors {
            let bytes: Vec<u8> = data.iter().flat_map(|v| v.to_le_bytes()).collect();
            file.write(name, &bytes).unwrap();
        }
        file.finish().unwrap();
    }

    /// Writes a GGUF as a converter does, with q and k interleaved where the architecture asks for it.
    fn write_model_gguf(path: &Path, source: &MemoryWeights, extra: &[(String, EncodedTensor)], change: impl Fn(&mut Metadata)) {
        let spec = source.spec();
        let mut meta = Metadata::new();
        meta.set("general.architecture", spec.arch.gguf);
        spec.gguf_metadata().unwrap().into_iter().for_each(|(key, value)| meta.set(key, value));
        meta.set("tokenizer.ggml.bos_token_id", 1u32);
        meta.set("tokenizer.ggml.eos_token_id", 2u32);
        change(&mut meta);
        let tensor = |role: Role| {
            let t = source.read(role).unwrap();
            let [place] = &spec.arch.places(spec, ContainerKind::Gguf, role).unwrap()[..] else { panic!("one tensor each") };
            let mut data = place.order.apply(&t.data, if t.shape.len() > 1 { t.shape[1] } else { 1 });
            if let Order::Plus(offset) = place.order {
                data.iter_mut().for_each(|v| *v += offset);
            }
            (role.to_string(), EncodedTensor::encode(CodecId::F32, &t.shape, &data, None).unwrap())
        };
        let mut tensors: Vec<_> = spec.roles().into_iter().map(tensor).collect();
        tensors.extend_from_slice(extra);
        write_gguf(path, &meta, &tensors).unwrap();
    }

    fn assert_same(a: &dyn WeightSource, b: &dyn WeightSource) {
        assert_eq!(a.spec().roles(), b.spec().roles());
        for role in a.spec().roles() {
            assert_eq!(a.read(role).unwrap(), b.read(role).unwrap(), "{role}");
        }
    }

    #[test]
    fn folder_and_gguf_give_the_same_weights() {
        let dir = tempfile::tempdir().unwrap();
        for (model_type, changes) in [
            ("llama", json!({"attention_bias": true, "tie_word_embeddings": true})),
            ("mistral", json!({})),
            ("qwen2", json!({})),
            ("qwen3", json!({"head_dim": 12})),
        ] {
            let source = model(model_type, changes.clone());
            let config = config(model_type, changes);
            write_hf(dir.path(), &config, &hf_tensors(&source));
            let hf = Checkpoint::open(dir.path()).unwrap();
            assert_eq!((hf.kind(), hf.config()), (ContainerKind::Hf, Some(&config)));
            assert_same(&hf, &source);
            let file = dir.path().join(format!("{model_type}.gguf"));
            write_model_gguf(&file, &source, &[], |_| {});
            let gguf = Checkpoint::open(&file).unwrap();
            assert_eq!(gguf.kind(), ContainerKind::Gguf);
            assert_same(&gguf, &source);
            for role in source.spec().roles() {
                let whole = source.read(role).unwrap();
                let row_len = *whole.shape.last().unwrap();
                for row in 0..whole.data.len() / row_len {
                    let want = &whole.data[row * row_len..(row + 1) * row_len];
                    assert_eq!(gguf.read_rows(role, row..row + 1).unwrap(), want, "{role} row {row}");
                }
            }
            let (a, b) = (gguf.spec(), source.spec());
            assert_eq!(
                (a.vocab_size, a.head_dim, a.norm.eps, a.rope.theta),
                (b.vocab_size, b.head_dim, b.norm.eps, b.rope.theta)
            );
            assert_eq!((a.context_length, a.bos, &a.eos), (b.context_length, b.bos, &b.eos));
            assert_eq!(gguf.codec(Role::layer(0, Part::AttnQ)).unwrap(), Encoding::Codec(CodecId::F32));
        }
    }

    #[test]
    fn gguf_rope_variants() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m.gguf");
        let source = model("llama", json!({}));
        let factors = EncodedTensor::encode(CodecId::F32, &[4], &[1.0, 2.0, 4.0, 8.0], None).unwrap();
        write_model_gguf(&file, &source, &[("rope_freqs.weight".into(), factors.clone())], |_| {});
        let c = Checkpoint::open(&file).unwrap();
        assert_eq!(c.spec().rope.scaling, RopeScaling::Factors(vec![1.0, 2.0, 4.0, 8.0]));
        assert_eq!(c.map().dropped, ["rope_freqs.weight"]);
        write_model_gguf(&file, &source, &[], |m| {
            m.set("llama.rope.scaling.type", "linear");
            m.set("llama.rope.scaling.factor", 4f32);
        });
        assert_eq!(Checkpoint::open(&file).unwrap().spec().rope.scaling, RopeScaling::Linear { factor: 4.0 });
        write_model_gguf(&file, &source, &[], |m| m.set("llama.rope.scaling.type", "telescope"));
        assert_eq!(Checkpoint::open(&file).unwrap_err().kind, ErrorKind::Unsupported);
        write_model_gguf(&file, &source, &[], |m| m.set("general.architecture", "mamba"));
        let e = Checkpoint::open(&file).unwrap_err();
        assert_eq!((e.kind, e.file.as_deref()), (ErrorKind::Unsupported, Some(file.as_path())));
        write_model_gguf(&file, &source, &[], |m| m.set("llama.attention.head_count", 5u32));
        assert_eq!(Checkpoint::open(&file).unwrap_err().kind, ErrorKind::Corrupt);
        write_model_gguf(&file, &source, &[], |m| {
            m.remove("llama.block_count");
        });
        assert!(Checkpoint::open(&file).unwrap_err().message.contains("llama.block_count"));
        let short = EncodedTensor::new(&[2], factors.codec, factors.bytes[..8].to_vec());
        write_model_gguf(&file, &source, &[("rope_freqs.weight".into(), short)], |_| {});
        assert_eq!(Checkpoint::open(&file).unwrap_err().kind, ErrorKind::Corrupt);
    }

    #[test]
    fn a_missing_key_for_tied_embeddings_is_settled_by_the_tensors() {
        let dir = tempfile::tempdir().unwrap();
        let source = model("llama", json!({}));
        let config = config("llama", json!({"tie_word_embeddings": null}));
        let mut tensors = hf_tensors(&source);
        write_hf(dir.path(), &json!({"tie": 0}), &tensors);
        let mut without_key = config.clone();
        without_key.as_object_mut().unwrap().remove("tie_word_embeddings");
        write_hf(dir.path(), &without_key, &tensors);
        assert!(!Checkpoint::open(dir.path()).unwrap().spec().tied);
        tensors.remove("lm_head.weight");
        write_hf(dir.path(), &without_key, &tensors);
        assert!(Checkpoint::open(dir.path()).unwrap().spec().tied);
    }

    #[test]
    fn generation_config_decides_on_eos() {
        let dir = tempfile::tempdir().unwrap();
        write_hf(dir.path(), &config("llama", json!({})), &hf_tensors(&model("llama", json!({}))));
        std::fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [9, 8]}"#).unwrap();
        assert_eq!(Checkpoint::open(dir.path()).unwrap().spec().eos, [9, 8]);
        std::fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": "x"}"#).unwrap();
        let e = Checkpoint::open(dir.path()).unwrap_err();
        assert!(e.kind == ErrorKind::Corrupt && e.file.unwrap().ends_with("generation_config.json"));
    }

    #[test]
    fn bad_checkpoints_name_file_and_tensor() {
        let dir = tempfile::tempdir().unwrap();
        let good = config("llama", json!({}));
        let tensors = hf_tensors(&model("llama", json!({})));
        let open = || Checkpoint::open(dir.path()).unwrap_err();
        let q = "model.layers.1.self_attn.q_proj.weight";

        let mut bad = tensors.clone();
        bad.insert(q.into(), (vec![16, 32], vec![0.0; 512]));
        write_hf(dir.path(), &good, &bad);
        let e = open();
        assert_eq!((e.kind, e.tensor.as_deref()), (ErrorKind::Corrupt, Some(q)));
        assert!(e.file.unwrap().ends_with("model.safetensors") && e.message.contains("[16, 32], expected [32, 32]"));

        bad.remove(q);
        write_hf(dir.path(), &good, &bad);
        let e = open();
        assert_eq!((e.kind, e.tensor.as_deref()), (ErrorKind::Missing, Some(q)));

        let mut nan = tensors.clone();
        nan.get_mut(q).unwrap().1[70] = f32::NAN;
        write_hf(dir.path(), &good, &nan);
        let e = Checkpoint::open(dir.path()).unwrap().read(Role::layer(1, Part::AttnQ)).unwrap_err();
        assert_eq!((e.kind, e.tensor.as_deref()), (ErrorKind::Corrupt, Some(q)));

        write_hf(dir.path(), &config("llama", json!({"hidden_size": null})), &tensors);
        let e = open();
        assert!(e.kind == ErrorKind::Corrupt && e.file.unwrap().ends_with("config.json") && e.message.contains("hidden_size"));

        let unknown = config("llama", json!({"quantization_config": {"quant_method": "aqlm", "bits": 4}}));
        write_hf(dir.path(), &unknown, &tensors);
        let e = open();
        assert!(e.kind == ErrorKind::Unsupported && e.message.contains("aqlm"));

        std::fs::write(dir.path().join("config.json"), "{").unwrap();
        assert_eq!(open().kind, ErrorKind::Corrupt);
        std::fs::remove_file(dir.path().join("config.json")).unwrap();
        let e = open();
        assert!(e.kind == ErrorKind::Missing && e.file.unwrap().ends_with("config.json"));
        assert_eq!(Checkpoint::open(dir.path().join("absent")).unwrap_err().kind, ErrorKind::Missing);
    }
}
