//! GGUF files: a model's hyperparameters, tokenizer and tensors as llama.cpp expects them.

use crate::about::ModelAbout;
use crate::layout::{Layout, PlannedTensor};
use crate::{Artifact, ArtifactWriter, check, names};
use bitsmith_formats::gguf::{GgufStore, GgufWriter, Metadata, TensorPlan, Value, planned_bytes};
use bitsmith_formats::{CodecId, EncodedTensor, Error, Float, Result};
use bitsmith_runtime::arch::gguf_row_order;
use bitsmith_runtime::tokenizer::GgufVocab;
use bitsmith_runtime::{ContainerKind, ModelSpec, Part, Role, RopeScaling};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The divisors of the rope frequencies, where each has its own.
const ROPE_FREQS: &str = "rope_freqs.weight";

/// A GGUF file to be written.
#[derive(Debug, Clone)]
pub struct GgufPlan {
    metadata: Metadata,
    layout: Layout,
    rope_freqs: Option<Vec<f32>>,
    /// Row orders of q and k, if the architecture permutes them.
    orders: BTreeMap<Part, Vec<usize>>,
    head_dim: usize,
}

impl GgufPlan {
    /// Plans a file. `codecs` must name every matrix of the model; norms and biases become F32. `encoding` is the preset's name
    /// (`q4_k_m`), from which `general.file_type` follows; for names that are no preset, the commonest codec decides.
    pub fn new(
        spec: &ModelSpec,
        vocab: &GgufVocab,
        about: &ModelAbout,
        encoding: &str,
        codecs: &[(Role, CodecId)],
    ) -> Result<Self> {
        let layout = Layout::new(spec, ContainerKind::Gguf, codecs, Float::F32)?;
        if vocab.tokens.len() != spec.vocab_size {
            let message =
                format!("the vocabulary has {} tokens, the model's embedding {} rows", vocab.tokens.len(), spec.vocab_size);
            return Err(Error::failed(message));
        }
        let mut metadata = Metadata::new();
        general(&mut metadata, spec, about);
        hyperparameters(&mut metadata, spec);
        metadata.set("general.file_type", file_type(encoding).unwrap_or_else(|| common_file_type(&layout.tensors)));
        metadata.set("general.quantization_version", 2u32);
        vocab.write(&mut metadata);
        let mut orders = BTreeMap::new();
        if spec.arch.gguf_permutes_qk {
            for (parts, heads) in
                [([Part::AttnQ, Part::AttnQBias], spec.n_heads), ([Part::AttnK, Part::AttnKBias], spec.n_kv_heads)]
            {
                orders.extend(parts.map(|part| (part, gguf_row_order(heads, spec.head_dim))));
            }
        }
        let plan = GgufPlan { metadata, layout, rope_freqs: spec.rope.factors(spec.head_dim), orders, head_dim: spec.head_dim };
        plan.tensor_plans()?;
        Ok(plan)
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The metadata, to add keys of one's own (`quantize.imatrix.file`, …).
    pub fn metadata_mut(&mut self) -> &mut Metadata {
        &mut self.metadata
    }

    /// The model's tensors in file order.
    pub fn tensors(&self) -> &[PlannedTensor] {
        &self.layout.tensors
    }

    /// Bits per weight: of all tensors, and of the linear layers alone.
    pub fn bits_per_weight(&self) -> (f64, f64) {
        self.layout.bits_per_weight()
    }

    /// The file's size.
    pub fn bytes(&self) -> Result<u64> {
        planned_bytes(&self.metadata, &self.tensor_plans()?)
    }

    fn tensor_plans(&self) -> Result<Vec<TensorPlan>> {
        let rope = self.rope_freqs.iter().map(|f| TensorPlan::new(ROPE_FREQS, CodecId::F32, &[f.len()]));
        rope.chain(self.layout.tensors.iter().map(|t| TensorPlan::new(&t.name, t.codec, &t.shape))).collect()
    }

    /// Claims the file's disk space and starts writing. The file appears as `path` on [`ArtifactWriter::finish`].
    pub fn start(self, path: impl AsRef<Path>) -> Result<Box<dyn ArtifactWriter>> {
        let path = path.as_ref().to_path_buf();
        let file = GgufWriter::create(&path, &self.metadata, self.tensor_plans()?)?;
        if let Some(factors) = &self.rope_freqs {
            file.write_tensor(ROPE_FREQS, &EncodedTensor::encode(CodecId::F32, &[factors.len()], factors, None)?)?;
        }
        Ok(Box::new(Writing { plan: self, file, path }))
    }

    /// Writes the whole file, asking for one tensor after the other.
    pub fn write(self, path: impl AsRef<Path>, tensor: impl FnMut(Role) -> Result<EncodedTensor>) -> Result<Artifact> {
        let roles: Vec<Role> = self.layout.tensors.iter().map(|t| t.role).collect();
        crate::put_all(self.start(path)?, &roles, tensor)
    }
}

struct Writing {
    plan: GgufPlan,
    file: GgufWriter,
    path: PathBuf,
}

impl ArtifactWriter for Writing {
    fn put(&self, role: Role, tensor: &EncodedTensor) -> Result<()> {
        self.plan.layout.check_whole(role, tensor).map_err(|e| e.file(&self.path))?;
        self.put_rows(role, 0, tensor)
    }

    fn put_rows(&self, role: Role, first_row: usize, rows: &EncodedTensor) -> Result<()> {
        let (planned, rows) = self.plan.layout.accept_rows(role, first_row, rows).map_err(|e| e.file(&self.path))?;
        let Some(order) = self.plan.orders.get(&role.part) else {
            return self.file.write_rows(&planned.name, first_row, &rows.bytes);
        };
        // Rows move only within their head, so the order of whole heads is that of the tensor, counted from the first row. The
        // elements of a bias are the rows of this order, and a bias comes whole.
        let n = rows.shape[0];
        let align = self.row_align(role);
        if !first_row.is_multiple_of(align) || !n.is_multiple_of(align) {
            let message = format!("rows {first_row} to {} are not whole heads of {align}", first_row + n);
            return Err(Error::failed(message).file(&self.path).tensor(&planned.name));
        }
        let local: Vec<usize> = order[first_row..first_row + n].iter().map(|row| row - first_row).collect();
        self.file.write_rows(&planned.name, first_row, &permute_rows(&rows, &local)?.bytes)
    }

    fn row_align(&self, role: Role) -> usize {
        if role.part.is_matrix() && self.plan.orders.contains_key(&role.part) { self.plan.head_dim } else { 1 }
    }

    fn finish(self: Box<Self>) -> Result<Artifact> {
        self.file.finish()?;
        let check = || -> Result<u64> {
            let store = GgufStore::open(&self.path)?;
            check::tensors(&store, &self.plan.layout.tensors, usize::from(self.plan.rope_freqs.is_some()))?;
            if *store.metadata() != self.plan.metadata {
                return Err(Error::corrupt("read back after writing: the metadata differ").file(&self.path));
            }
            Ok(std::fs::metadata(&self.path).map_err(|e| Error::read(&self.path, e))?.len())
        };
        match check() {
            Ok(bytes) => Ok(Artifact { files: vec![(self.path.clone(), bytes)], path: self.path }),
            Err(e) => {
                // Nothing that failed its check may stand under the final name; the check's error is the one to report.
                let _ = std::fs::remove_file(&self.path);
                Err(e)
            }
        }
    }
}

/// Reorders whole encoded rows, whatever their codec: row `i` of the result is row `order[i]` of the tensor. A vector's
/// elements count as rows.
pub fn permute_rows(tensor: &EncodedTensor, order: &[usize]) -> Result<EncodedTensor> {
    let n = tensor.shape.first().copied().unwrap_or(0);
    if order.len() != n || n == 0 || !tensor.bytes.len().is_multiple_of(n) {
        return Err(Error::failed(format!("a row order of {} does not fit a tensor of shape {:?}", order.len(), tensor.shape)));
    }
    let row = tensor.bytes.len() / n;
    let mut bytes = Vec::with_capacity(tensor.bytes.len());
    for &from in order {
        let source = tensor.bytes.get(from * row..(from + 1) * row);
        bytes.extend_from_slice(source.ok_or_else(|| Error::failed(format!("the row order names row {from} of {n}")))?);
    }
    Ok(EncodedTensor { shape: tensor.shape.clone(), codec: tensor.codec, bytes, scale: tensor.scale })
}

fn general(m: &mut Metadata, spec: &ModelSpec, about: &ModelAbout) {
    let parts = names::name_parts(&about.name);
    m.set("general.architecture", spec.arch.gguf);
    m.set("general.type", "model");
    m.set("general.name", about.name.as_str());
    let optional = [("version", parts.version), ("finetune", parts.finetune), ("basename", parts.basename)];
    for (key, value) in optional {
        if let Some(value) = value {
            m.set(format!("general.{key}"), value);
        }
    }
    m.set("general.quantized_by", concat!("bitsmith ", env!("CARGO_PKG_VERSION")));
    m.set("general.size_label", parts.size_label.unwrap_or_else(|| names::size_label(spec.n_weights())));
    let licence = [("license", &about.license), ("license.name", &about.license_name), ("license.link", &about.license_link)];
    for (key, value) in licence {
        if let Some(value) = value {
            m.set(format!("general.{key}"), value.as_str());
        }
    }
    if let Some(repo) = &about.repo {
        m.set("general.source.url", hub_url(repo));
        m.set("general.source.huggingface.repository", repo.as_str());
        if let Some(revision) = &about.revision {
            m.set("general.source.huggingface.revision", revision.as_str());
        }
    }
    let parents = about.parents();
    if !parents.is_empty() {
        m.set("general.base_model.count", parents.len() as u32);
    }
    for (i, parent) in parents.iter().enumerate() {
        let key = |name: &str| format!("general.base_model.{i}.{name}");
        let (organization, name) = parent.rsplit_once('/').unwrap_or(("", parent));
        m.set(key("name"), name);
        if !organization.is_empty() {
            m.set(key("organization"), organization);
            m.set(key("repo_url"), hub_url(parent));
        }
    }
    for (key, list) in [("tags", &about.tags), ("languages", &about.languages)] {
        if !list.is_empty() {
            m.set(format!("general.{key}"), list.clone());
        }
    }
}

fn hub_url(repo: &str) -> String {
    format!("https://huggingface.co/{repo}")
}

fn hyperparameters(m: &mut Metadata, spec: &ModelSpec) {
    let key = |name: &str| format!("{}.{name}", spec.arch.gguf);
    let mut number = |name: &str, value: usize| m.set(key(name), Value::U32(value as u32));
    number("block_count", spec.n_layers);
    number("context_length", spec.context_length);
    number("embedding_length", spec.hidden_size);
    number("feed_forward_length", spec.ffn_size);
    number("attention.head_count", spec.n_heads);
    number("attention.head_count_kv", spec.n_kv_heads);
    number("attention.key_length", spec.head_dim);
    number("attention.value_length", spec.head_dim);
    number("rope.dimension_count", spec.head_dim);
    number("vocab_size", spec.vocab_size);
    if let Some(window) = spec.sliding_window {
        number("attention.sliding_window", window.min(u32::MAX as usize));
    }
    m.set(key("rope.freq_base"), spec.rope.theta as f32);
    m.set(key("attention.layer_norm_rms_epsilon"), spec.rms_eps as f32);
    if let RopeScaling::Linear { factor } = spec.rope.scaling {
        m.set(key("rope.scaling.type"), "linear");
        m.set(key("rope.scaling.factor"), factor as f32);
    }
}

/// llama.cpp's number for a preset or single type, by name.
pub fn file_type(encoding: &str) -> Option<u32> {
    Some(match encoding.to_ascii_lowercase().as_str() {
        "f32" => 0,
        "f16" => 1,
        "q4_0" => 2,
        "q8_0" => 7,
        "q5_0" => 8,
        "q4_k_s" => 14,
        "q4_k_m" => 15,
        "q5_k_s" => 16,
        "q5_k_m" => 17,
        "q6_k" => 18,
        "bf16" => 32,
        _ => return None,
    })
}

/// The number for the codec that holds the most weights.
fn common_file_type(tensors: &[PlannedTensor]) -> u32 {
    let mut weights: BTreeMap<u32, usize> = BTreeMap::new();
    for t in tensors {
        let name = match t.codec {
            CodecId::Q4K => "q4_k_s".to_string(),
            CodecId::Q5K => "q5_k_s".to_string(),
            other => other.to_string(),
        };
        if let Some(number) = file_type(&name) {
            *weights.entry(number).or_default() += t.n_weights();
        }
    }
    weights.into_iter().max_by_key(|(_, n)| *n).map_or(0, |(number, _)| number)
}
