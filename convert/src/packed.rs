//! GPTQ, AWQ, compressed-tensors and ModelOpt folders: the source's configuration and tokenizer with the layers' matrices packed as
//! vLLM, transformers and GPTQModel read them.
//!
//! Embedding, output matrix, norms and biases stay dense. Matrices of another width or group than the rest, and such as stay
//! dense, are named in the configuration: GPTQ has rules per module (`dynamic`), compressed-tensors groups of modules, AWQ and
//! ModelOpt a list of modules that stay dense.

use crate::about::ModelAbout;
use crate::folder::{self, Kind};
use crate::layout::{Layout, PlannedTensor};
use crate::{Artifact, ArtifactWriter, check};
use bitsmith_formats::atomic::AtomicDir;
use bitsmith_formats::mlx::{CONFIG_FILE, MAX_SHARD_BYTES};
use bitsmith_formats::packed::{
    Described, PackedFormat, PackedStore, PackedWriter, ZeroPoints, compressed_tensors_config, modelopt_config,
};
use bitsmith_formats::{CodecId, EncodedTensor, Error, Float, Result};
use bitsmith_runtime::{ContainerKind, ModelSpec, Part, Role};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// A folder with packed weights to be written.
#[derive(Debug, Clone)]
pub struct PackedPlan {
    source: PathBuf,
    format: PackedFormat,
    config: Value,
    /// ModelOpt's own file, beside `config.json`.
    own_config: Option<Value>,
    card: String,
    layout: Layout,
    max_shard_bytes: u64,
}

/// Where ModelOpt looks for its configuration.
const MODELOPT_FILE: &str = "hf_quant_config.json";

impl PackedPlan {
    /// Plans a folder for the checkpoint folder `source`. `codecs` must name every matrix of the model: what `format` can hold for
    /// the layers' matrices, `default` for most of them, or floats for those that stay dense. Norms and biases are stored as
    /// `dense`.
    pub fn new(
        spec: &ModelSpec,
        source: &Path,
        about: &ModelAbout,
        format: PackedFormat,
        default: CodecId,
        dense: Float,
        codecs: &[(Role, CodecId)],
    ) -> Result<Self> {
        let name = format.method().to_uppercase();
        folder::check_source(source, &format!("a {name}"))?;
        let layout = Layout::new(spec, ContainerKind::Hf, codecs, dense)?;
        for t in &layout.tensors {
            format.plan_planes(&t.name, t.codec, &t.shape)?;
            let packed = t.codec.float().is_none();
            if packed && t.role.layer.is_none() {
                let message = format!("{name} keeps embedding and output matrix dense, but this one is to be {}", t.codec);
                return Err(Error::unsupported(message).tensor(&t.name));
            }
            if packed && format == PackedFormat::Awq && t.codec != default {
                return Err(Error::unsupported(format!("AWQ has one format for all: {default}, not {}", t.codec)).tensor(&t.name));
            }
        }
        // Loaders make an output matrix of a tied embedding, and would look for its planes.
        let tied = spec.tied.then(|| spec.arch.tensor_name(ContainerKind::Hf, Role::global(Part::Output))).flatten();
        let config = config(source, format, default, dense, &layout.tensors, tied.as_deref())?;
        let dense_modules = || dense_modules(&layout.tensors, tied.as_deref());
        let own_config = (format == PackedFormat::ModelOpt).then(|| modelopt_config(&dense_modules()).1);
        let commands = "pip install vllm\nvllm serve <this folder>";
        let kind = Kind { library: "transformers", tag: format.method(), format: &name, commands };
        let card = folder::card(about, &layout, &kind);
        let source = source.to_path_buf();
        Ok(PackedPlan { source, format, config, own_config, card, layout, max_shard_bytes: MAX_SHARD_BYTES })
    }

    /// Sets the most bytes of tensor data in one file (5 GiB otherwise).
    pub fn shard_bytes(mut self, bytes: u64) -> Self {
        self.max_shard_bytes = bytes;
        self
    }

    /// Claims the disk space and starts writing. The folder appears as `path` on [`ArtifactWriter::finish`] and replaces whatever
    /// folder has that name.
    pub fn start(self, path: impl AsRef<Path>) -> Result<Box<dyn ArtifactWriter>> {
        let dir = AtomicDir::create(path)?;
        let tensors: Vec<_> = self.layout.tensors.iter().map(|t| (t.name.clone(), t.codec, t.shape.clone())).collect();
        let weights = PackedWriter::create(dir.path(), self.format, &tensors, self.max_shard_bytes)?;
        Ok(Box::new(Writing { plan: self, weights, dir }))
    }

    /// Writes the whole folder, asking for one tensor after the other.
    pub fn write(self, path: impl AsRef<Path>, tensor: impl FnMut(Role) -> Result<EncodedTensor>) -> Result<Artifact> {
        let roles: Vec<Role> = self.layout.tensors.iter().map(|t| t.role).collect();
        crate::put_all(self.start(path)?, &roles, tensor)
    }

    /// A tensor as a reader of the folder finds it: its format, and the bytes of its planes.
    fn read_back(&self, t: &PlannedTensor) -> Result<(CodecId, usize)> {
        let codec = match t.codec {
            CodecId::IntGroup { bits, group, scale, .. } if matches!(self.format, PackedFormat::Gptq(_) | PackedFormat::Awq) => {
                CodecId::IntGroup { bits, group, scale, symmetric: false }
            }
            other => other,
        };
        let planes = self.format.plan_planes(&t.name, t.codec, &t.shape)?;
        Ok((codec, planes.iter().map(|p| p.n_bytes()).sum()))
    }
}

struct Writing {
    plan: PackedPlan,
    // Before the folder, so that an abandoned writer removes its partial files first.
    weights: PackedWriter,
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

    fn row_align(&self, role: Role) -> usize {
        self.plan.layout.find(role).ok().filter(|t| t.codec.float().is_none()).map_or(1, PlannedTensor::n_rows)
    }

    fn finish(self: Box<Self>) -> Result<Artifact> {
        let Writing { plan, weights, dir } = *self;
        weights.finish()?;
        if let Some(config) = &plan.own_config {
            folder::write_json(dir.path(), MODELOPT_FILE, config)?;
        }
        folder::finish(&plan.source, dir, &plan.card, &plan.config, |folder| {
            let expected = plan.layout.tensors.iter().map(|t| {
                let (codec, bytes) = plan.read_back(t)?;
                Ok(PlannedTensor { codec, bytes, ..t.clone() })
            });
            check::tensors(&PackedStore::open(folder)?, &expected.collect::<Result<Vec<_>>>()?, 0)
        })
    }
}

/// The source's configuration with the `quantization_config` block. `tied` is the output matrix that is no tensor of its own.
fn config(
    source: &Path,
    format: PackedFormat,
    default: CodecId,
    dense: Float,
    tensors: &[PlannedTensor],
    tied: Option<&str>,
) -> Result<Value> {
    let mut config = folder::read_json(&source.join(CONFIG_FILE))?;
    config.remove("_name_or_path");
    config.remove("quantization");
    // transformers 5 has the shorter name, older ones and vLLM know the longer.
    let key = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    config.insert(key.into(), folder::dtype(dense).into());
    if tensors.iter().all(|t| t.codec.float().is_some()) {
        let message = format!("no matrix of this model can be {default}");
        return Err(Error::unsupported(message).file(source).hint("choose a smaller group, or another format"));
    }
    let integers = || match default {
        CodecId::IntGroup { bits, group, symmetric, .. } => Ok((bits, group, symmetric)),
        other => Err(Error::failed(format!("{} has no format {other}", format.method().to_uppercase()))),
    };
    let block = match format {
        PackedFormat::Gptq(zeros) => {
            let (bits, group, symmetric) = integers()?;
            let mut block = json!({
                "bits": bits,
                "checkpoint_format": if zeros == ZeroPoints::MinusOne { "gptq" } else { "gptq_v2" },
                "desc_act": false,
                "group_size": group,
                "lm_head": false,
                "meta": { "quantizer": [concat!("bitsmith:", env!("CARGO_PKG_VERSION"))] },
                "pack_dtype": "int32",
                "quant_method": "gptq",
                "sym": symmetric,
            });
            let rules = rules(default, tensors);
            if !rules.is_empty() {
                block["dynamic"] = rules.into();
            }
            block
        }
        PackedFormat::Awq => {
            let (bits, group, _) = integers()?;
            let dense: Vec<&str> = linears(tensors).filter(|t| t.codec.float().is_some()).map(module).collect();
            json!({
                "bits": bits,
                "group_size": group,
                "modules_to_not_convert": if dense.is_empty() { Value::Null } else { dense.into() },
                "quant_method": "awq",
                "version": "gemm",
                "zero_point": true,
            })
        }
        PackedFormat::CompressedTensors => {
            let linear = |t: &PlannedTensor| t.role.part.is_matrix() && t.role.part != Part::TokenEmbd;
            let described: Vec<Described> = tensors
                .iter()
                .map(|t| Described { name: &t.name, codec: t.codec, row_len: *t.shape.last().unwrap_or(&1), linear: linear(t) })
                .chain(tied.map(|name| Described { name, codec: dense.codec(), row_len: 1, linear: true }))
                .collect();
            compressed_tensors_config(&described)?
        }
        PackedFormat::ModelOpt => modelopt_config(&dense_modules(tensors, tied)).0,
    };
    config.insert("quantization_config".into(), block);
    Ok(Value::Object(config))
}

/// The layers' matrices, which a reader takes for packed unless it is told otherwise.
fn linears(tensors: &[PlannedTensor]) -> impl Iterator<Item = &PlannedTensor> {
    tensors.iter().filter(|t| t.role.layer.is_some() && t.role.part.is_matrix())
}

/// Linear layers that are not packed, the output matrix among them.
fn dense_modules<'a>(tensors: &'a [PlannedTensor], tied: Option<&'a str>) -> Vec<&'a str> {
    let linear = tensors.iter().filter(|t| t.role.part.is_matrix() && t.role.part != Part::TokenEmbd);
    let dense = linear.filter(|t| t.codec.float().is_some());
    dense.map(module).chain(tied.map(module_of)).collect()
}

fn module(tensor: &PlannedTensor) -> &str {
    module_of(&tensor.name)
}

fn module_of(name: &str) -> &str {
    name.trim_end_matches(".weight")
}

/// GPTQModel's `dynamic`: what differs from the default, by patterns of whole names.
fn rules(default: CodecId, tensors: &[PlannedTensor]) -> Map<String, Value> {
    let rule = |t: &PlannedTensor| {
        let pattern = format!("^{}$", module(t).replace('.', "\\."));
        match t.codec {
            CodecId::IntGroup { bits, group, symmetric, .. } => {
                (format!("+:{pattern}"), json!({ "bits": bits, "group_size": group, "sym": symmetric }))
            }
            _ => (format!("-:{pattern}"), json!({})),
        }
    };
    linears(tensors).filter(|t| t.codec != default).map(rule).collect()
}
