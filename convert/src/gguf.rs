//! GGUF files: a model's hyperparameters, tokenizer and tensors as llama.cpp expects them.

use crate::about::ModelAbout;
use crate::layout::{Layout, PlannedTensor};
use crate::{Artifact, ArtifactWriter, check, names};
use bitsmith_formats::gguf::{GgufSetWriter, GgufStore, Metadata, SetPlan, TensorPlan};
use bitsmith_formats::{CodecId, EncodedTensor, Error, Float, Result};
use bitsmith_runtime::tokenizer::GgufVocab;
use bitsmith_runtime::{ContainerKind, ModelSpec, Part, Role};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A GGUF file or split set to be written.
#[derive(Debug, Clone)]
pub struct GgufPlan {
    metadata: Metadata,
    layout: Layout,
    /// Divisors of the rope frequencies, by the tensors' names.
    rope: Vec<(&'static str, Vec<f32>)>,
    max_shard_bytes: Option<u64>,
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
        general(&mut metadata, (spec.arch.gguf, "model"), about, spec.n_weights());
        spec.gguf_metadata()?.into_iter().for_each(|(key, value)| metadata.set(key, value));
        metadata.set("general.file_type", file_type(encoding).unwrap_or_else(|| common_file_type(&layout.tensors)));
        metadata.set("general.quantization_version", 2u32);
        vocab.write(&mut metadata);
        let plan = GgufPlan { metadata, layout, rope: spec.gguf_rope_tensors(), max_shard_bytes: None };
        plan.tensor_plans()?;
        Ok(plan)
    }

    /// Sets the most bytes of tensor data in one file; what does not fit becomes a split set. `None`: one file.
    pub fn shard_bytes(mut self, bytes: Option<u64>) -> Self {
        self.max_shard_bytes = bytes;
        self
    }

    /// The files that are written if the model is called `path`: that itself, or `NAME-00001-of-0000N.gguf` and so on.
    pub fn paths(&self, path: &Path) -> Result<Vec<PathBuf>> {
        Ok(self.set_plan()?.paths(path))
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

    /// Size of all files together.
    pub fn bytes(&self) -> Result<u64> {
        Ok(self.set_plan()?.bytes()?.iter().sum())
    }

    fn set_plan(&self) -> Result<SetPlan> {
        SetPlan::new(&self.metadata, self.tensor_plans()?, self.max_shard_bytes)
    }

    fn tensor_plans(&self) -> Result<Vec<TensorPlan>> {
        let rope = self.rope.iter().map(|(name, f)| TensorPlan::new(*name, CodecId::F32, &[f.len()]));
        let tensors = self.layout.tensors.iter().flat_map(|t| {
            let scale = scale_name(t).map(|name| TensorPlan::new(name, CodecId::F32, &[1]));
            scale.into_iter().chain([TensorPlan::new(&t.name, t.codec, &t.shape)])
        });
        rope.chain(tensors).collect()
    }

    /// Claims the disk space and starts writing. The files appear under the names of [`GgufPlan::paths`] on [`ArtifactWriter::finish`].
    pub fn start(self, path: impl AsRef<Path>) -> Result<Box<dyn ArtifactWriter>> {
        let path = path.as_ref().to_path_buf();
        let set = self.set_plan()?;
        let metadata = set.metadata().clone();
        let file = GgufSetWriter::create(&path, set)?;
        for (name, factors) in &self.rope {
            file.write_tensor(name, &EncodedTensor::encode(CodecId::F32, &[factors.len()], factors, None)?)?;
        }
        Ok(Box::new(Writing { plan: self, metadata, file, path, scales: Mutex::default() }))
    }

    /// Writes the whole file, asking for one tensor after the other.
    pub fn write(self, path: impl AsRef<Path>, tensor: impl FnMut(Role) -> Result<EncodedTensor>) -> Result<Artifact> {
        let roles = self.layout.roles.clone();
        crate::put_all(self.start(path)?, &roles, tensor)
    }
}

/// Where the scale of a tensor goes whose format has one. llama.cpp multiplies products by it, and has none for rows of an
/// embedding.
pub(crate) fn scale_name(t: &PlannedTensor) -> Option<String> {
    let scaled = t.codec == CodecId::NVFP4 && t.role.part != Part::TokenEmbd;
    scaled.then(|| t.name.strip_suffix(".weight")).flatten().map(|module| format!("{module}.scale"))
}

struct Writing {
    plan: GgufPlan,
    /// As the first file has them.
    metadata: Metadata,
    file: GgufSetWriter,
    path: PathBuf,
    /// Scales that were written, as all parts of a tensor must have the same.
    scales: Mutex<BTreeMap<Role, f32>>,
}

impl Writing {
    fn put_scale(&self, planned: &PlannedTensor, scale: f32) -> Result<()> {
        let fail = |message: String| Err(Error::failed(message).file(&self.path).tensor(&planned.name));
        let Some(name) = scale_name(planned) else {
            return if scale == 1.0 { Ok(()) } else { fail(format!("has the scale {scale}, for which there is no place")) };
        };
        let earlier = self.scales.lock().unwrap_or_else(PoisonError::into_inner).insert(planned.role, scale);
        match earlier {
            None => self.file.write_tensor(&name, &EncodedTensor::encode(CodecId::F32, &[1], &[scale], None)?),
            Some(earlier) if earlier == scale => Ok(()),
            Some(earlier) => fail(format!("has the scale {scale} in one part and {earlier} in another")),
        }
    }
}

impl ArtifactWriter for Writing {
    fn put(&self, role: Role, tensor: &EncodedTensor) -> Result<()> {
        self.plan.layout.check_whole(role, tensor).map_err(|e| e.file(&self.path))?;
        self.put_rows(role, 0, tensor)
    }

    fn put_rows(&self, role: Role, first_row: usize, rows: &EncodedTensor) -> Result<()> {
        for piece in self.plan.layout.accept_rows(role, first_row, rows).map_err(|e| e.file(&self.path))? {
            self.put_scale(piece.tensor, piece.rows.scale)?;
            self.file.write_rows(&piece.tensor.name, piece.first_row, &piece.rows.bytes)?;
        }
        Ok(())
    }

    fn row_align(&self, role: Role) -> usize {
        self.plan.layout.row_align(role)
    }

    fn holds_scale(&self, role: Role) -> bool {
        self.plan.layout.find(role).is_ok_and(|t| scale_name(&t[0]).is_some())
    }

    fn finish(self: Box<Self>) -> Result<Artifact> {
        let paths = self.file.finish()?;
        let check = || -> Result<Vec<(PathBuf, u64)>> {
            let store = GgufStore::open(&paths[0])?;
            check::tensors(&store, &self.plan.layout.tensors, self.plan.rope.len())?;
            if *store.metadata() != self.metadata {
                return Err(Error::corrupt("read back after writing: the metadata differ").file(&paths[0]));
            }
            let size = |path: &PathBuf| Ok((path.clone(), std::fs::metadata(path).map_err(|e| Error::read(path, e))?.len()));
            paths.iter().map(size).collect()
        };
        match check() {
            Ok(files) => Ok(Artifact { files, path: paths[0].clone() }),
            Err(e) => {
                // Nothing that failed its check may stand under the final name; the check's error is the one to report.
                paths.iter().for_each(|path| drop(std::fs::remove_file(path)));
                Err(e)
            }
        }
    }
}

/// The keys that every file has, of this architecture and type.
pub(crate) fn general(m: &mut Metadata, (architecture, kind): (&str, &str), about: &ModelAbout, n_weights: usize) {
    let parts = names::name_parts(&about.name);
    m.set("general.architecture", architecture);
    m.set("general.type", kind);
    m.set("general.name", about.name.as_str());
    let optional = [("version", parts.version), ("finetune", parts.finetune), ("basename", parts.basename)];
    for (key, value) in optional {
        if let Some(value) = value {
            m.set(format!("general.{key}"), value);
        }
    }
    m.set("general.quantized_by", concat!("bitsmith ", env!("CARGO_PKG_VERSION")));
    m.set("general.size_label", parts.size_label.unwrap_or_else(|| names::size_label(n_weights)));
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

/// llama.cpp's number for a preset or single type, by name.
pub fn file_type(encoding: &str) -> Option<u32> {
    Some(match encoding.to_ascii_lowercase().as_str() {
        "f32" => 0,
        "f16" => 1,
        "q4_0" => 2,
        "q4_1" => 3,
        "q8_0" => 7,
        "q5_0" => 8,
        "q5_1" => 9,
        "q2_k" | "q2_k_l" => 10,
        "q3_k_s" => 11,
        "q3_k_m" => 12,
        "q3_k_l" | "q3_k_xl" => 13,
        "q4_k_s" => 14,
        "q4_k_m" | "q4_k_l" => 15,
        "q5_k_s" => 16,
        "q5_k_m" | "q5_k_l" => 17,
        "q6_k" | "q6_k_l" => 18,
        "iq2_xxs" => 19,
        "iq2_xs" => 20,
        "q2_k_s" => 21,
        "iq3_xs" => 22,
        "iq3_xxs" => 23,
        "iq1_s" => 24,
        "iq4_nl" => 25,
        "iq3_s" => 26,
        "iq3_m" => 27,
        "iq2_s" => 28,
        "iq2_m" => 29,
        "iq4_xs" => 30,
        "iq1_m" => 31,
        "bf16" => 32,
        "tq1_0" => 36,
        "tq2_0" => 37,
        "mxfp4" | "mxfp4_moe" => 38,
        "nvfp4" => 39,
        "q1_0" => 40,
        "q2_0" => 41,
        _ => return None,
    })
}

/// The number for the codec that holds the most weights.
fn common_file_type(tensors: &[PlannedTensor]) -> u32 {
    let mut weights: BTreeMap<u32, usize> = BTreeMap::new();
    for t in tensors {
        let name = match t.codec {
            CodecId::Q3K => "q3_k_s".to_string(),
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
