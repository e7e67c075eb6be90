//! Checkpoint folders: safetensors beside configuration, tokenizer and card. What differs between kinds of folder is the
//! configuration and how a weight is spread over tensors; see [`FolderPlan::hf`], [`FolderPlan::mlx`] and [`FolderPlan::packed`].

use crate::about::ModelAbout;
use crate::card::{Card, Kind};
use crate::files::FolderFiles;
use crate::joint::Joints;
use crate::layout::{Layout, PlannedTensor, n_rows};
use crate::tower::CarriedTensor;
use crate::{Artifact, ArtifactWriter, check};
use bitsmith_formats::atomic::AtomicDir;
use bitsmith_formats::mlx::{CONFIG_FILE, MAX_SHARD_BYTES, MlxStore, MlxWriter};
use bitsmith_formats::packed::{PackedFormat, PackedStore, PackedWriter};
use bitsmith_formats::safetensors::{SafetensorsStore, ShardedWriter, TensorPlan, plan_shards};
use bitsmith_formats::{CodecId, EncodedTensor, Error, Float, Micro, Result, TensorStore};
use bitsmith_runtime::arch::vision::TowerTensor;
use bitsmith_runtime::{ContainerKind, HostTensor, ModelSpec, Part, Role};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

/// A checkpoint folder to be written.
#[derive(Debug, Clone)]
pub struct FolderPlan {
    files: FolderFiles,
    config: Value,
    /// Files that a layout has beside `config.json`.
    more: Vec<(&'static str, Value)>,
    card: String,
    layout: Layout,
    /// Vision tower and projector.
    carried: Vec<CarriedTensor>,
    scheme: Scheme,
    max_shard_bytes: u64,
    /// Tensors that go to [`MTP_FILE`].
    apart: HashSet<String>,
}

/// The file of layers for multi-token prediction that do not stand among the others.
const MTP_FILE: &str = "mtp.safetensors";

/// How weights are spread over tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// One tensor each.
    Plain,
    /// MLX's planes.
    Mlx,
    /// A packed layout's planes.
    Packed(PackedFormat),
}

impl FolderPlan {
    pub(crate) fn new(
        files: &FolderFiles,
        about: &ModelAbout,
        config: Map<String, Value>,
        layout: Layout,
        scheme: Scheme,
        kind: Kind,
    ) -> Self {
        let card = Card {
            about,
            sees: files.tower().is_some(),
            quantized: layout.tensors.iter().any(|t| t.codec.float().is_none()),
            publisher: None,
            tags: &[],
        };
        let card = card.render(&kind, &card.introduction(&kind, layout.bits_per_weight().0));
        let (files, config) = (files.clone(), config.into());
        FolderPlan {
            files,
            config,
            more: Vec::new(),
            card,
            layout,
            carried: Vec::new(),
            scheme,
            max_shard_bytes: MAX_SHARD_BYTES,
            apart: HashSet::new(),
        }
    }

    /// Adds vision tower and projector, where the source has them: in `dense`, or, for a quantized folder, in their own 16-bit type.
    pub(crate) fn carrying(mut self, kind: ContainerKind, dense: Option<Float>) -> Self {
        self.carried = self.files.tower().map(|tower| tower.plan(kind, dense)).unwrap_or_default();
        self
    }

    /// Adds a JSON file of this name.
    pub(crate) fn beside(mut self, name: &'static str, contents: Value) -> Self {
        self.more.push((name, contents));
        self
    }

    /// Sets the most bytes of tensor data in one file. `None`: 5 GiB.
    pub fn shard_bytes(mut self, bytes: Option<u64>) -> Self {
        self.max_shard_bytes = bytes.unwrap_or(MAX_SHARD_BYTES);
        self
    }

    /// Puts the layers after the last into a safetensors file of their own, which the index lists.
    pub fn mtp_apart(mut self, spec: &ModelSpec) -> Self {
        let extra = self.layout.tensors.iter().filter(|t| t.role.layer.is_some_and(|l| spec.is_extra(l)));
        self.apart = extra.map(|t| t.name.clone()).collect();
        self
    }

    /// The `config.json` to be written.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Claims the disk space and starts writing. The folder appears as `path` on [`ArtifactWriter::finish`] and replaces whatever
    /// folder has that name.
    pub fn start(self, path: impl AsRef<Path>) -> Result<Box<dyn ArtifactWriter>> {
        let dir = AtomicDir::create(path)?;
        let weights = Weights::create(dir.path(), &self)?;
        Ok(Box::new(Writing { plan: self, weights, joints: Joints::default(), dir }))
    }

    /// Writes the whole folder, asking for one tensor after the other.
    pub fn write(self, path: impl AsRef<Path>, tensor: impl FnMut(Role) -> Result<EncodedTensor>) -> Result<Artifact> {
        let roles = self.layout.roles.clone();
        crate::put_all(self.start(path)?, &roles, tensor)
    }

    /// A tensor as a reader of the folder finds it: its format, and the bytes of its planes.
    fn read_back(&self, t: &PlannedTensor) -> Result<PlannedTensor> {
        let Scheme::Packed(format) = self.scheme else { return Ok(t.clone()) };
        let codec = match t.codec {
            CodecId::IntGroup { bits, group, scale, .. } if matches!(format, PackedFormat::Gptq(_) | PackedFormat::Awq) => {
                CodecId::IntGroup { bits, group, scale, symmetric: false }
            }
            other => other,
        };
        let planes = format.plan_planes(&t.name, t.codec, &t.shape)?;
        Ok(PlannedTensor { codec, bytes: planes.iter().map(TensorPlan::n_bytes).sum(), ..t.clone() })
    }

    /// Opens a written folder and holds its headers against the plan.
    fn check(&self, folder: &Path) -> Result<()> {
        let store: Box<dyn TensorStore> = match self.scheme {
            Scheme::Mlx if self.config.get("quantization").is_some() => Box::new(MlxStore::open(folder)?),
            Scheme::Packed(_) => Box::new(PackedStore::open(folder)?),
            Scheme::Plain | Scheme::Mlx => Box::new(SafetensorsStore::open(folder)?),
        };
        let expected = self.layout.tensors.iter().map(|t| self.read_back(t)).collect::<Result<Vec<_>>>()?;
        check::tensors(&*store, &expected, self.carried.len())?;
        for t in &self.carried {
            let shape = store.find(&t.name).map(|found| &found.shape);
            if shape != Some(&t.shape) {
                let message = format!("read back after writing: is {shape:?} instead of {:?}", t.shape);
                return Err(Error::corrupt(message).file(folder).tensor(&t.name));
            }
        }
        Ok(())
    }
}

/// The safetensors files of a folder that is being written.
enum Weights {
    Plain(ShardedWriter),
    Mlx(MlxWriter),
    Packed(PackedWriter),
}

impl Weights {
    fn create(folder: &Path, plan: &FolderPlan) -> Result<Self> {
        let mut tensors: Vec<_> = plan.layout.tensors.iter().map(|t| (t.name.clone(), t.codec, t.shape.clone())).collect();
        tensors.extend(plan.carried.iter().map(|t| (t.name.clone(), t.codec, t.shape.clone())));
        let max = plan.max_shard_bytes;
        Ok(match plan.scheme {
            Scheme::Mlx => Weights::Mlx(MlxWriter::create(folder, &tensors, max)?),
            Scheme::Packed(format) => {
                let apart = (MTP_FILE, &plan.apart);
                Weights::Packed(PackedWriter::create(folder, format, &tensors, max, Some(apart))?)
            }
            Scheme::Plain => {
                let (apart, tensors): (Vec<_>, Vec<_>) = tensors.iter().partition(|(name, ..)| plan.apart.contains(name));
                let plans = |list: Vec<&(String, CodecId, Vec<usize>)>| -> Result<Vec<TensorPlan>> {
                    list.into_iter().map(|(name, codec, shape)| TensorPlan::float(name, *codec, shape)).collect()
                };
                // Transformers loads no file that does not name its framework.
                let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
                let mut shards = plan_shards(plans(tensors)?, max, &metadata, None, false)?;
                if !apart.is_empty() {
                    shards = shards.with_file(MTP_FILE, plans(apart)?, &metadata)?;
                }
                Weights::Plain(ShardedWriter::create(folder, shards)?)
            }
        })
    }

    fn write_rows(&self, name: &str, first_row: usize, rows: &EncodedTensor) -> Result<()> {
        match self {
            Weights::Plain(w) => {
                let at = rows.bytes.len() / n_rows(&rows.shape).max(1) * first_row;
                w.write_at(name, at as u64, &rows.bytes)
            }
            Weights::Mlx(w) => w.write_rows(name, first_row, rows),
            Weights::Packed(w) => w.write_rows(name, first_row, rows),
        }
    }

    fn finish(self) -> Result<()> {
        match self {
            Weights::Plain(w) => w.finish(),
            Weights::Mlx(w) => w.finish(),
            Weights::Packed(w) => w.finish(),
        }
    }
}

struct Writing {
    plan: FolderPlan,
    // Before the folder, so that an abandoned writer removes its partial files first.
    weights: Weights,
    joints: Joints,
    dir: AtomicDir,
}

impl ArtifactWriter for Writing {
    fn put(&self, role: Role, tensor: &EncodedTensor) -> Result<()> {
        self.plan.layout.check_whole(role, tensor).map_err(|e| e.file(self.dir.target()))?;
        self.put_rows(role, 0, tensor)
    }

    fn put_rows(&self, role: Role, first_row: usize, rows: &EncodedTensor) -> Result<()> {
        let pieces = self.plan.layout.accept_rows(role, first_row, rows).map_err(|e| e.file(self.dir.target()))?;
        if self.plan.layout.joint(role).is_none() {
            return pieces.iter().try_for_each(|p| self.weights.write_rows(&p.tensor.name, p.first_row, &p.rows));
        }
        for piece in &pieces {
            if let Some((index, bytes)) = self.joints.add(&self.plan.layout, role, first_row, &piece.rows)? {
                let planned = &self.plan.layout.tensors[index];
                let whole = EncodedTensor::new(&planned.shape, planned.codec, bytes);
                self.weights.write_rows(&planned.name, 0, &whole)?;
            }
        }
        Ok(())
    }

    fn put_tower(&self, tensor: &TowerTensor, values: &HostTensor) -> Result<()> {
        let planned = self.plan.carried.iter().find(|t| t.is(tensor));
        let planned = planned.ok_or_else(|| Error::failed("is not in the plan").file(self.dir.target()).tensor(&tensor.name))?;
        self.weights.write_rows(&planned.name, 0, &planned.encode(values)?)
    }

    /// Packed planes mix rows: such tensors come whole.
    fn row_align(&self, role: Role) -> usize {
        match (self.plan.scheme, self.plan.layout.find(role)) {
            (Scheme::Packed(_), Ok([t, ..])) if t.codec.float().is_none() => t.n_rows(),
            _ => self.plan.layout.row_align(role),
        }
    }

    fn holds_scale(&self, role: Role) -> bool {
        let nvfp4 = CodecId::Micro(Micro::Nvfp4);
        matches!(self.plan.scheme, Scheme::Packed(_)) && self.plan.layout.find(role).is_ok_and(|t| t[0].codec == nvfp4)
    }

    /// Completes the weights, adds the other files, reads all back, and gives the folder its name.
    fn finish(self: Box<Self>) -> Result<Artifact> {
        let Writing { plan, weights, dir, .. } = *self;
        weights.finish()?;
        plan.files.write(dir.path())?;
        let readme = dir.path().join("README.md");
        std::fs::write(&readme, &plan.card).map_err(|e| Error::write(readme, e))?;
        write_json(dir.path(), CONFIG_FILE, &plan.config)?;
        for (name, contents) in &plan.more {
            write_json(dir.path(), name, contents)?;
        }
        plan.check(dir.path())?;
        let path = dir.target().to_path_buf();
        dir.commit()?;
        let mut files = Vec::new();
        sizes(&path, &mut files)?;
        files.sort();
        Ok(Artifact { path, files })
    }
}

/// Names the type of the tensors in a configuration, under the key that it has for it: transformers 5 writes `dtype`, and
/// everything reads `torch_dtype`.
pub(crate) fn set_dtype(config: &mut Map<String, Value>, float: Float) {
    let newer = config.contains_key("dtype");
    if newer {
        config.insert("dtype".into(), dtype(float).into());
    }
    if !newer || config.contains_key("torch_dtype") {
        config.insert("torch_dtype".into(), dtype(float).into());
    }
    for part in ["text_config", "vision_config"] {
        let Some(Value::Object(part)) = config.get_mut(part) else { continue };
        for key in ["dtype", "torch_dtype"] {
            if let Some(value) = part.get_mut(key) {
                *value = dtype(float).into();
            }
        }
    }
}

/// Says how many layers for multi-token prediction the folder has, where the configuration says so.
pub(crate) fn set_mtp(config: &mut Map<String, Value>, spec: &ModelSpec) {
    if let Some(layers) = config.get_mut("num_nextn_predict_layers") {
        *layers = spec.mtp_layers.into();
    }
}

/// Says that the output matrix is not the embedding, where it is not: loaders differ in what they take for granted.
pub(crate) fn set_untied(config: &mut Map<String, Value>, spec: &ModelSpec) {
    const KEY: &str = "tie_word_embeddings";
    let part_of_another = config.contains_key("text_config");
    if !spec.tied && spec.has(Part::Output) && !part_of_another {
        config.insert(KEY.into(), false.into());
    }
}

/// The name of a type in `config.json`.
pub(crate) fn dtype(float: Float) -> &'static str {
    match float {
        Float::F32 => "float32",
        Float::F16 => "float16",
        Float::BF16 => "bfloat16",
    }
}

/// A JSON object from a file.
pub(crate) fn read_json(path: &Path) -> Result<Map<String, Value>> {
    let bytes = std::fs::read(path).map_err(|e| Error::read(path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::corrupt(format!("not a JSON object: {e}")).file(path).with_source(e))
}

/// JSON with four spaces of indentation, as Python's `json.dump(indent=4)` writes it.
pub(crate) fn pretty(value: &Value) -> Result<String> {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, serde_json::ser::PrettyFormatter::with_indent(b"    "));
    value.serialize(&mut serializer).map_err(|e| Error::failed(e.to_string()).with_source(e))?;
    String::from_utf8(out).map_err(|e| Error::failed(e.to_string()).with_source(e))
}

/// Writes a JSON file into a folder.
pub(crate) fn write_json(folder: &Path, name: &str, value: &Value) -> Result<()> {
    let path = folder.join(name);
    std::fs::write(&path, pretty(value)?).map_err(|e| Error::write(path, e))
}

fn sizes(folder: &Path, out: &mut Vec<(PathBuf, u64)>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(|e| Error::read(folder, e))? {
        let path = entry.map_err(|e| Error::read(folder, e))?.path();
        let meta = std::fs::metadata(&path).map_err(|e| Error::read(&path, e))?;
        if meta.is_dir() {
            sizes(&path, out)?;
        } else {
            out.push((path, meta.len()));
        }
    }
    Ok(())
}
