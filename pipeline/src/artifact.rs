//! Where artifacts go, and writing them.

use crate::manifest::IN_FOLDER;
use crate::opened::Opened;
use crate::spool::Spool;
use crate::target::Target;
use bitsmith_convert::{ArtifactWriter, FolderPlan, GgufPlan, MmprojPlan, names};
use bitsmith_formats::gguf::set_paths;
use bitsmith_formats::{Error, ErrorKind, Float, Result};
use bitsmith_quantize::Plan;
use bitsmith_runtime::tokenizer::{PROBES, verify_roundtrip};
use bitsmith_runtime::{ModelSpec, Tokenizer, WeightSource};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Tensors of a GGUF begin at multiples of this.
const ALIGNMENT: u64 = 32;

/// Where the user wants artifacts.
#[derive(Debug, Clone)]
pub enum Output {
    /// Exactly here: one target only.
    Exact(PathBuf),
    /// In a folder, named after model and encoding.
    Folder(Folder),
    /// Exactly here, one for each target, with names as in that folder.
    Each(Folder, Vec<PathBuf>),
}

/// A folder of artifacts, and how they are named and laid out in it.
#[derive(Debug, Clone, Default)]
pub struct Folder {
    /// The folder.
    pub dir: PathBuf,
    /// How GGUF files are named.
    pub naming: Naming,
    /// LM Studio's layout, `PUBLISHER/MODEL/FILE`, with this publisher; otherwise artifacts lie in the folder itself.
    pub lm_studio: Option<String>,
}

/// How GGUF files are named.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Naming {
    /// After the model, as on the hub: `Llama-3.2-1B-Instruct-Q4_K_M.gguf`.
    #[default]
    Hub,
    /// By GGUF's naming convention: `Llama-3-2-1B-Instruct-v1.0-Q4_K_M.gguf`.
    Spec,
}

impl FromStr for Naming {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "hub" => Ok(Naming::Hub),
            "spec" => Ok(Naming::Spec),
            _ => Err(Error::usage(format!("`{text}` is no way of naming files")).hint("--naming hub or --naming spec")),
        }
    }
}

impl From<PathBuf> for Folder {
    fn from(dir: PathBuf) -> Self {
        Folder { dir, ..Folder::default() }
    }
}

impl Folder {
    /// What the names of a model's GGUF files begin with.
    pub fn stem(&self, model: &str, n_weights: usize) -> String {
        match self.naming {
            Naming::Hub => model.to_string(),
            Naming::Spec => names::spec_name(model, n_weights),
        }
    }

    /// Where a model's GGUF files lie.
    pub fn gguf_dir(&self, model: &str) -> PathBuf {
        match &self.lm_studio {
            Some(publisher) => self.dir.join(publisher).join(format!("{model}-GGUF")),
            None => self.dir.clone(),
        }
    }

    /// Where the artifact of a target goes.
    pub(crate) fn path(&self, model: &str, n_weights: usize, target: Target) -> PathBuf {
        let encoding = target.encoding();
        let name = match target.container() {
            "gguf" => return self.gguf_dir(model).join(names::gguf_file(&self.stem(model, n_weights), &encoding)),
            "mlx" => names::mlx_folder(model, &encoding),
            other => names::folder(model, other, &encoding),
        };
        self.lm_studio.as_ref().map_or(self.dir.clone(), |publisher| self.dir.join(publisher)).join(name)
    }
}

impl Output {
    /// What `-o` means for these targets: the name of one artifact, or a folder of artifacts where there are several, where the
    /// name ends in `/`, or where one GGUF is to go to a name that does not end in `.gguf`.
    pub fn from_argument(out: &Path, targets: &[Target]) -> Output {
        let folder = match targets {
            [one] if one.container() == "gguf" => !out.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")),
            [_] => out.as_os_str().to_string_lossy().ends_with('/'),
            _ => true,
        };
        if folder { Output::Folder(out.to_path_buf().into()) } else { Output::Exact(out.to_path_buf()) }
    }

    /// The path of each target's artifact. Parent folders are created; nothing that is not an artifact of ours, and nothing
    /// that belongs to the source, may be overwritten.
    pub fn paths(&self, model: &Opened, targets: &[Target]) -> Result<Vec<PathBuf>> {
        let (name, n_weights) = (&model.about.name, model.checkpoint.spec().n_weights());
        let paths: Vec<PathBuf> = match self {
            Output::Exact(path) => vec![path.clone()],
            Output::Each(_, paths) => paths.clone(),
            Output::Folder(folder) => targets.iter().map(|t| folder.path(name, n_weights, *t)).collect(),
        };
        for (path, target) in paths.iter().zip(targets) {
            if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
                std::fs::create_dir_all(parent).map_err(|e| Error::write(parent, e))?;
            }
            refuse_clobber(path, target, model.checkpoint.path())?;
        }
        Ok(paths)
    }
}

fn refuse_clobber(path: &Path, target: &Target, source: &Path) -> Result<()> {
    let refuse = |what: &str| Err(Error::new(ErrorKind::CannotWrite, what).file(path).hint("choose another output with -o"));
    let real = |p: &Path| p.canonicalize().ok();
    if let (Some(out), Some(input)) = (real(path), real(source))
        && (out == input || input.starts_with(&out))
    {
        return refuse("the output would replace the source model");
    }
    match target.container() {
        "gguf" if path.is_dir() => refuse("a folder of this name exists"),
        "gguf" => Ok(()),
        _ if path.is_file() => refuse("a file of this name exists"),
        _ if path.is_dir() && !is_replaceable(path) => refuse("the folder exists and is not an artifact that bitsmith wrote"),
        _ => Ok(()),
    }
}

/// A folder that holds nothing, or a manifest of ours, or that a run of ours had just finished when it was killed, before the
/// manifest: then its work folder is still there.
fn is_replaceable(dir: &Path) -> bool {
    // That of a release stands among files that are not an artifact's.
    dir.join(IN_FOLDER).is_file() && !crate::release::is_at(dir)
        || Spool::is_at(&work_folder(dir))
        || std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

/// The folder beside an artifact that holds its tensors while it is made.
pub fn work_folder(artifact: &Path) -> PathBuf {
    let name = artifact.file_name().unwrap_or_default().to_string_lossy();
    artifact.with_file_name(format!(".{name}.work"))
}

/// Containers and tokenizers that a target cannot carry are found before any work is done. `spec` is the model to be written.
pub fn check(model: &Opened, spec: &ModelSpec, target: Target) -> Result<()> {
    match target.container() {
        "gguf" => {
            spec.gguf_metadata().map_err(|e| e.file(model.checkpoint.path()))?;
            MmprojPlan::new(&model.checkpoint, &model.about)?;
            // What llama.cpp will make of the vocabulary must be what the source's tokenizer does.
            let rebuilt = Tokenizer::from_vocab(&model.vocab()?, model.checkpoint.path())?;
            verify_roundtrip(&model.tokenizer()?, &rebuilt, PROBES).map(|_| ())
        }
        // Out of a GGUF, configuration and tokenizer must have a form that other tools read.
        _ => model.folder_files().map(|_| ()),
    }
}

/// The name under which an artifact called `name` can be opened: that itself, or the first file of a split set. Nothing of the
/// source may be overwritten.
pub fn first_file(
    model: &Opened,
    spec: &ModelSpec,
    target: Target,
    plan: &Plan,
    name: &Path,
    shard_size: Option<u64>,
) -> Result<PathBuf> {
    if target.container() != "gguf" || shard_size.is_none() {
        return Ok(name.to_path_buf());
    }
    let files = gguf_plan(model, spec, target, plan, shard_size)?.paths(name)?;
    refuse_source(&files, &set_paths(model.checkpoint.path()))?;
    Ok(files[0].clone())
}

/// Refuses to overwrite a file of the source.
pub fn refuse_source(files: &[PathBuf], source: &[PathBuf]) -> Result<()> {
    let real = |p: &PathBuf| p.canonicalize().ok();
    let source: Vec<PathBuf> = source.iter().filter_map(real).collect();
    match files.iter().find(|file| real(file).is_some_and(|file| source.contains(&file))) {
        Some(file) => Err(Error::new(ErrorKind::CannotWrite, "the output would replace the source model")
            .file(file)
            .hint("choose another output with -o")),
        None => Ok(()),
    }
}

/// Bytes that the files of an artifact have besides the blocks of its tensors, at most.
pub fn overhead(model: &Opened, spec: &ModelSpec, target: Target, plan: &Plan, shard_size: Option<u64>) -> Result<u64> {
    // Between blocks, whatever their format.
    let padding = ALIGNMENT * plan.entries.len() as u64;
    match target.container() {
        "gguf" => Ok(gguf_plan(model, spec, target, plan, shard_size)?.bytes()? - plan.bytes(spec) + padding),
        _ => folder_overhead(model, plan.entries.len()),
    }
}

fn gguf_plan(model: &Opened, spec: &ModelSpec, target: Target, plan: &Plan, shard_size: Option<u64>) -> Result<GgufPlan> {
    let vocab = model.vocab()?;
    Ok(GgufPlan::new(spec, &vocab, &model.about, &target.encoding(), &plan.pairs())?.shard_bytes(shard_size))
}

/// Bytes of a folder's files besides its tensors are not known before they are written; this is more.
fn folder_overhead(model: &Opened, n_tensors: usize) -> Result<u64> {
    const CARD: u64 = 16 << 10;
    const HEADER_PER_TENSOR: u64 = 1 << 10;
    let folder: &Path = model.checkpoint.folder();
    let weights = ["safetensors", "bin", "pt", "pth", "gguf", "json5"];
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).map_err(|e| Error::read(folder, e))? {
        let entry = entry.map_err(|e| Error::read(folder, e))?;
        let is_weight = entry.path().extension().is_some_and(|e| weights.iter().any(|w| e == *w));
        let meta = entry.metadata().map_err(|e| Error::read(entry.path(), e))?;
        bytes += if meta.is_file() && !is_weight { meta.len() } else { 0 };
    }
    Ok(bytes + CARD + HEADER_PER_TENSOR * n_tensors as u64)
}

/// What to write.
pub struct Writing<'a> {
    /// The tensors.
    pub spec: &'a ModelSpec,
    /// Their formats.
    pub plan: &'a Plan,
    /// The type of what is not quantized, where the target leaves a choice.
    pub dense: Float,
    /// Largest file of a set in bytes.
    pub shard_size: Option<u64>,
    /// Whether a folder has layers after the last in a file of their own.
    pub mtp_apart: bool,
}

/// Plans the artifact, claims its disk space and opens it for its tensors. It appears under its name when it is whole.
pub fn start(model: &Opened, target: Target, what: &Writing<'_>, path: &Path) -> Result<Box<dyn ArtifactWriter>> {
    let &Writing { spec, plan, dense, shard_size, mtp_apart } = what;
    if target.container() == "gguf" {
        return gguf_plan(model, spec, target, plan, shard_size)?.start(path);
    }
    let (about, files, codecs) = (&model.about, model.folder_files()?, plan.pairs());
    let vectors = target.vector_type(dense);
    let folder = match (target, target.packed()) {
        (_, Some(format)) => {
            FolderPlan::packed(spec, &files, about, format, target.base(dense, spec.hidden_size), vectors, &codecs)?
        }
        (Target::Hf(_), _) => FolderPlan::hf(spec, &files, about, vectors, &codecs)?,
        _ => FolderPlan::mlx(spec, &files, about, vectors, &codecs)?,
    };
    let folder = if mtp_apart { folder.mtp_apart(spec) } else { folder };
    let writer = folder.shard_bytes(shard_size).start(path)?;
    for tensor in model.checkpoint.tower().into_iter().flat_map(|t| &t.tensors) {
        writer.put_tower(tensor, &model.checkpoint.read_tower(tensor)?)?;
    }
    Ok(writer)
}
