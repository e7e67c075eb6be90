//! MLX folders: the source's configuration and tokenizer with weights packed for mlx-lm.

use crate::about::ModelAbout;
use crate::folder::{self, Kind, read_json};
use crate::layout::{Layout, PlannedTensor};
use crate::{Artifact, ArtifactWriter, check};
use bitsmith_formats::atomic::AtomicDir;
use bitsmith_formats::mlx::{CONFIG_FILE, MAX_SHARD_BYTES, MlxStore, MlxWriter, Scheme, quantization_block};
use bitsmith_formats::safetensors::SafetensorsStore;
use bitsmith_formats::{CodecId, EncodedTensor, Error, Float, Result, TensorStore};
use bitsmith_runtime::{ContainerKind, ModelSpec, Role, RopeScaling};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// An MLX folder to be written.
#[derive(Debug, Clone)]
pub struct MlxPlan {
    source: PathBuf,
    config: Value,
    card: String,
    layout: Layout,
    max_shard_bytes: u64,
}

impl MlxPlan {
    /// Plans a folder for the checkpoint folder `source`. `codecs` must name every matrix of the model: MLX codecs, or floats for
    /// those that stay dense (all of them, for a dense folder). Norms and biases are stored as `dense`.
    pub fn new(spec: &ModelSpec, source: &Path, about: &ModelAbout, dense: Float, codecs: &[(Role, CodecId)]) -> Result<Self> {
        folder::check_source(source, "an MLX")?;
        let layout = Layout::new(spec, ContainerKind::Mlx, codecs, dense)?;
        if let Some(t) = layout.tensors.iter().find(|t| t.codec.float().is_none() && Scheme::of(t.codec).is_none()) {
            return Err(Error::unsupported(format!("MLX has no codec {}", t.codec)).tensor(&t.name));
        }
        let config = config(spec, source, dense, &layout.tensors)?;
        let commands = "pip install mlx-lm\nmlx_lm.generate --model <this folder> --prompt \"hello\"";
        let card = folder::card(about, &layout, &Kind { library: "mlx", tag: "mlx", format: "MLX", commands });
        Ok(MlxPlan { source: source.to_path_buf(), config, card, layout, max_shard_bytes: MAX_SHARD_BYTES })
    }

    /// Sets the most bytes of tensor data in one file (5 GiB otherwise).
    pub fn shard_bytes(mut self, bytes: u64) -> Self {
        self.max_shard_bytes = bytes;
        self
    }

    /// The `config.json` to be written.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The model's tensors.
    pub fn tensors(&self) -> &[PlannedTensor] {
        &self.layout.tensors
    }

    /// Bits per weight: of all tensors, and of the linear layers alone.
    pub fn bits_per_weight(&self) -> (f64, f64) {
        self.layout.bits_per_weight()
    }

    /// Bytes of the tensors, which is the folder's size but for headers and small files.
    pub fn bytes(&self) -> u64 {
        self.layout.tensors.iter().map(|t| t.bytes as u64).sum()
    }

    /// Claims the disk space and starts writing. The folder appears as `path` on [`ArtifactWriter::finish`] and replaces whatever
    /// folder has that name.
    pub fn start(self, path: impl AsRef<Path>) -> Result<Box<dyn ArtifactWriter>> {
        let dir = AtomicDir::create(path)?;
        let tensors: Vec<_> = self.layout.tensors.iter().map(|t| (t.name.clone(), t.codec, t.shape.clone())).collect();
        let weights = MlxWriter::create(dir.path(), &tensors, self.max_shard_bytes)?;
        Ok(Box::new(Writing { plan: self, weights, dir }))
    }

    /// Writes the whole folder, asking for one tensor after the other.
    pub fn write(self, path: impl AsRef<Path>, tensor: impl FnMut(Role) -> Result<EncodedTensor>) -> Result<Artifact> {
        let roles: Vec<Role> = self.layout.tensors.iter().map(|t| t.role).collect();
        crate::put_all(self.start(path)?, &roles, tensor)
    }
}

struct Writing {
    plan: MlxPlan,
    // Before the folder, so that an abandoned writer removes its partial files first.
    weights: MlxWriter,
    dir: AtomicDir,
}

impl ArtifactWriter for Writing {
    fn put(&self, role: Role, tensor: &EncodedTensor) -> Result<()> {
        self.plan.layout.check_whole(role, tensor).map_err(|e| e.file(self.dir.target()))?;
        self.put_rows(role, 0, tensor)
    }

    fn put_rows(&self, role: Role, first_row: usize, rows: &EncodedTensor) -> Result<()> {
        let (planned, rows) = self.plan.layout.accept_rows(role, first_row, rows).map_err(|e| e.file(self.dir.target()))?;
        self.weights.write_rows(&planned.name, first_row, &rows)
    }

    fn row_align(&self, _: Role) -> usize {
        1
    }

    fn finish(self: Box<Self>) -> Result<Artifact> {
        let Writing { plan, weights, dir } = *self;
        weights.finish()?;
        folder::finish(&plan.source, dir, &plan.card, &plan.config, |folder| {
            let store: Box<dyn TensorStore> = match plan.config.get("quantization") {
                Some(_) => Box::new(MlxStore::open(folder)?),
                None => Box::new(SafetensorsStore::open(folder)?),
            };
            check::tensors(&*store, &plan.layout.tensors, 0)
        })
    }
}

/// The source's configuration with the `quantization` block, keys sorted as mlx-lm sorts them.
fn config(spec: &ModelSpec, source: &Path, dense: Float, tensors: &[PlannedTensor]) -> Result<Value> {
    let mut config: BTreeMap<String, Value> = read_json(&source.join(CONFIG_FILE))?.into_iter().collect();
    for key in ["_name_or_path", "quantization", "quantization_config"] {
        config.remove(key);
    }
    complete(&mut config, spec);
    let dtype = folder::dtype(dense);
    // mlx-lm reads the older key only.
    config.insert("torch_dtype".into(), dtype.into());
    if let Some(newer) = config.get_mut("dtype") {
        *newer = dtype.into();
    }
    let generation = source.join("generation_config.json");
    if generation.is_file()
        && let Some(eos) = read_json(&generation)?.remove("eos_token_id").filter(|v| !v.is_null())
    {
        config.insert("eos_token_id".into(), eos);
    }
    if let Some(block) = quantization(tensors)? {
        config.insert("quantization".into(), block.clone());
        config.insert("quantization_config".into(), block);
    }
    Ok(Value::Object(config.into_iter().collect()))
}

/// Spells out what mlx-lm requires, or has other defaults for than transformers, and what it does not find where transformers 5
/// puts it: for most architectures it ignores `rope_parameters`.
fn complete(config: &mut BTreeMap<String, Value>, spec: &ModelSpec) {
    let missing = |config: &BTreeMap<String, Value>, key: &str| config.get(key).is_none_or(Value::is_null);
    for (key, value) in [
        ("head_dim", Value::from(spec.head_dim)),
        ("num_key_value_heads", spec.n_kv_heads.into()),
        ("rms_norm_eps", spec.rms_eps.into()),
        ("rope_theta", spec.rope.theta.into()),
        ("tie_word_embeddings", spec.tied.into()),
    ] {
        if missing(config, key) {
            config.insert(key.into(), value);
        }
    }
    if missing(config, "rope_scaling")
        && spec.rope.scaling != RopeScaling::None
        && let Some(Value::Object(parameters)) = config.get("rope_parameters")
    {
        let scaling: Map<String, Value> =
            parameters.iter().filter(|(k, _)| *k != "rope_theta").map(|(k, v)| (k.clone(), v.clone())).collect();
        config.insert("rope_scaling".into(), scaling.into());
    }
}

/// The `quantization` block: the codec with the most weights is the default, modules in another have their own entry, and
/// matrices that stay dense have `false`.
fn quantization(tensors: &[PlannedTensor]) -> Result<Option<Value>> {
    let mut weights: BTreeMap<Scheme, (usize, CodecId)> = BTreeMap::new();
    for t in tensors {
        if let Some(scheme) = Scheme::of(t.codec) {
            weights.entry(scheme).or_insert((0, t.codec)).0 += t.n_weights();
        }
    }
    let Some((_, default)) = weights.into_values().max_by_key(|(n, _)| *n) else { return Ok(None) };
    let mut block = quantization_block(default, tensors.iter().map(|t| (t.name.as_str(), t.codec)))?;
    if let Value::Object(entries) = &mut block {
        for t in tensors.iter().filter(|t| t.role.part.is_matrix() && t.codec.float().is_some()) {
            entries.insert(t.name.trim_end_matches(".weight").to_string(), false.into());
        }
        *entries = std::mem::take(entries).into_iter().collect::<BTreeMap<_, _>>().into_iter().collect();
    }
    Ok(Some(block))
}
