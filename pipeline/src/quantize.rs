//! One dense model in, one artifact per target out.

use crate::artifact::{self, Output};
use crate::calibration::{CalibrationOptions, Loaded};
use crate::context::Context;
use crate::encode::{Encoder, Evidence, gather};
use crate::estimate::Estimate;
use crate::manifest::{InputFile, Manifest, Recipe, hash_inputs};
use crate::memory;
use crate::opened::Opened;
use crate::spool::Spool;
use crate::target::Target;
use bitsmith_calibrate::Detail;
use bitsmith_formats::{Encoding, Error, Float, Result};
use bitsmith_quantize::Method;
use bitsmith_quantize::plan::{Plan, PlanOptions};
use bitsmith_runtime::{Checkpoint, Part, Role, WeightSource};
use serde::Serialize;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Instant;

/// What to make of a model, and how.
#[derive(Debug, Clone)]
pub struct QuantizeOptions {
    /// What to write.
    pub targets: Vec<Target>,
    /// Transforms and solver.
    pub method: Method,
    /// Calibration.
    pub calibration: CalibrationOptions,
    /// Overrides of the presets' choices.
    pub plan: PlanOptions,
    /// Where to.
    pub out: Output,
    /// The type of scales, norms and activations in quantized MLX folders; chosen from the calibration if `None`.
    pub mlx_dtype: Option<Float>,
    /// Largest file of a set in bytes, for containers that are written in several files.
    pub shard_size: Option<u64>,
}

/// A finished artifact.
#[derive(Debug, Clone, Serialize)]
pub struct Artifact {
    /// `container:encoding`.
    pub target: String,
    /// The file or folder; of a split set, the first file.
    pub path: PathBuf,
    /// Size in bytes, all files together.
    pub bytes: u64,
    /// sha256 of the file; for a folder or a split set, of its `sha256  name` lines sorted by name.
    pub sha256: String,
    /// Bits per weight over all tensors, scales included.
    pub bpw: f64,
    /// Wall time in seconds of making it.
    pub seconds: f64,
    /// Peak memory in bytes of making it; 0 for an artifact that was there already.
    pub peak_rss_bytes: u64,
    /// Transforms and solver.
    pub method: String,
    /// Whether an identical job had made it before.
    pub reused: bool,
    /// What transforms, solvers and fallbacks reported.
    pub notes: Vec<String>,
}

/// A job ready to run: everything read but the weights.
pub struct Job<'a> {
    model: &'a Opened,
    options: &'a QuantizeOptions,
    context: &'a Context,
    evidence: Loaded,
    calibration: Option<Value>,
    dense: Float,
    /// Known once the job runs: finding it may take running the model.
    mlx_dtype: OnceLock<Float>,
}

/// MLX computes in the type of the scales. F16 resolves eight times finer than BF16 in the same space, but ends at 65504: it is
/// chosen when the largest activation seen in calibration stays 8 times below that. The largest ones are the model's own, on its
/// first tokens, and hardly depend on the text.
const F16_PEAK: f32 = 8192.0;
/// Calibration windows that are run to see how large activations grow.
const PEAK_WINDOWS: usize = 16;

impl<'a> Job<'a> {
    /// Checks the job and loads its calibration text.
    pub fn new(model: &'a Opened, options: &'a QuantizeOptions, context: &'a Context) -> Result<Self> {
        if options.targets.is_empty() {
            return Err(Error::usage("no target is given").hint("for example --to gguf:q4_k_m"));
        }
        let dense = dense_type(&model.checkpoint)?;
        for &target in &options.targets {
            artifact::check(model, target)?;
        }
        let method = &options.method;
        let quantizes =
            options.targets.iter().any(|t| t.is_quantized()) || options.plan.names_quantized() || !method.transforms.is_empty();
        let (evidence, calibration) = match quantizes {
            true => options.calibration.load(method, model, context)?,
            false => (Loaded::None, None),
        };
        Ok(Job { model, options, context, evidence, calibration, dense, mlx_dtype: OnceLock::new() })
    }

    /// What is not quantized in this target is stored in this type. Until the job runs the source's type stands in for MLX's,
    /// which is as wide unless it is set.
    fn dense_for(&self, target: Target) -> Float {
        let mlx = || self.mlx_dtype.get().copied().or(self.options.mlx_dtype).unwrap_or(self.dense);
        if matches!(target, Target::Mlx { .. }) { mlx() } else { self.dense }
    }

    /// The format of every tensor of a target.
    pub fn plan(&self, target: Target) -> Result<Plan> {
        let options = PlanOptions { importance: self.is_weighted(), ..self.options.plan.clone() };
        target.plan(self.model.checkpoint.spec(), self.dense_for(target), &options)
    }

    /// Whether importance guides the encoders.
    fn is_weighted(&self) -> bool {
        self.options.method.solver.name() != "rtn" && !matches!(self.evidence, Loaded::None)
    }

    fn has_importance(&self, role: Role) -> bool {
        match &self.evidence {
            Loaded::Importance(by_role) => self.is_weighted() && by_role.contains_key(&role),
            _ => self.is_weighted(),
        }
    }

    /// What each target will cost; `eval_tokens` are evaluated afterwards.
    pub fn estimates(&self, eval_tokens: usize) -> Result<Vec<Estimate>> {
        let tokens = match &self.evidence {
            Loaded::Windows(set) => set.n_tokens(),
            _ => 0,
        };
        let estimate = |&target: &Target| {
            let plan = self.plan(target)?;
            let (spec, method, threads) = (self.model.checkpoint.spec(), &self.options.method, self.context.threads);
            Ok(Estimate::new(&target.to_string(), spec, &plan, method, tokens, eval_tokens, threads))
        };
        self.options.targets.iter().map(estimate).collect()
    }

    /// Makes every target, one after the other. Those that an identical job made before are left as they are.
    pub fn run(&self) -> Result<Vec<Artifact>> {
        for estimate in self.estimates(0)? {
            estimate.check_ram(self.context.max_ram)?;
        }
        let paths = self.options.out.paths(&self.model.about.name, &self.options.targets, self.model.checkpoint.path())?;
        if self.mlx_dtype.get().is_none() {
            let found = mlx_dtype(self.model, self.options, &self.evidence, self.dense, self.context)?;
            self.mlx_dtype.get_or_init(|| found);
        }
        let plans = self.options.targets.iter().map(|&t| self.plan(t)).collect::<Result<Vec<_>>>()?;
        for plan in &plans {
            plan.check_importance(|role| self.has_importance(role))?;
        }
        let inputs = hash_inputs(self.model.checkpoint.path())?;
        let mut artifacts = Vec::new();
        for ((&target, plan), path) in self.options.targets.iter().zip(&plans).zip(&paths) {
            artifacts.push(self.make(target, plan, path, &inputs)?);
        }
        Ok(artifacts)
    }

    fn make(&self, target: Target, plan: &Plan, name: &Path, inputs: &[InputFile]) -> Result<Artifact> {
        let start = Instant::now();
        let path = &artifact::first_file(self.model, target, plan, name, self.options.shard_size)?;
        memory::reset_peak();
        // Plain floating-point targets are stored as they are: no method applies unless a transform is asked for.
        let method = &self.options.method;
        let recipe = Recipe {
            tool: concat!("bitsmith ", env!("CARGO_PKG_VERSION")).into(),
            inputs: inputs.to_vec(),
            target: target.to_string(),
            method: method.to_string(),
            plan: serde_json::to_value(plan).map_err(|e| Error::failed(e.to_string()))?,
            calibration: self.calibration.clone(),
            shard_size: self.options.shard_size,
        };
        let key = recipe.key()?;
        if let Some(m) = Manifest::load(path).filter(|m| m.proves(path, &recipe)) {
            self.context.progress.note(&format!("{target}: {} is there already and unchanged", path.display()));
            return Ok(self.artifact(target, path, m, 0, true));
        }
        for line in plan.fallbacks() {
            self.context.progress.warn(&format!("{target}: {line}"));
        }
        let spool_dir = artifact::work_folder(path);
        let spool = Spool::open(&spool_dir, &key)?;
        let encoder = Encoder {
            source: &self.model.checkpoint,
            plan,
            method,
            vector_type: target.vector_type(self.dense_for(target)),
            evidence: self.evidence(),
            spool: &spool,
            context: self.context,
        };
        let mut notes = plan.fallbacks();
        let found = encoder.run()?;
        for note in &found {
            self.context.progress.note(&format!("{target}: {note}"));
        }
        notes.extend(found);
        self.context.progress.start("write", 1);
        artifact::write(self.model, target, plan, self.dense_for(target), name, self.options.shard_size, &|role| {
            encoder.encoded(role)
        })?;
        self.context.progress.finish();
        let bpw = plan.bytes(self.model.checkpoint.spec()) as f64 * 8.0 / self.model.checkpoint.spec().n_weights() as f64;
        let manifest = Manifest::new(path, recipe, bpw, start.elapsed().as_secs_f64(), notes)?;
        manifest.save(path)?;
        spool.remove()?;
        Ok(self.artifact(target, path, manifest, memory::peak_bytes(), false))
    }

    fn evidence(&self) -> Evidence<'_> {
        match &self.evidence {
            Loaded::None => Evidence::None,
            Loaded::Stats(stats) => Evidence::Stats(stats),
            Loaded::Importance(map) => Evidence::Importance(map),
            Loaded::Windows(set) => {
                Evidence::Windows { windows: &set.windows, sequential: self.options.calibration.sequential(&self.options.method) }
            }
        }
    }

    fn artifact(&self, target: Target, path: &Path, m: Manifest, peak_rss_bytes: u64, reused: bool) -> Artifact {
        Artifact {
            target: target.to_string(),
            path: path.to_path_buf(),
            bytes: m.bytes,
            sha256: m.sha256,
            bpw: m.bpw,
            seconds: m.seconds,
            peak_rss_bytes,
            method: m.recipe.method,
            reused,
            notes: m.notes,
        }
    }
}

/// The type of a quantized MLX folder's scales: the source's, as mlx-lm has it, unless F16 is as safe and better.
fn mlx_dtype(model: &Opened, options: &QuantizeOptions, evidence: &Loaded, dense: Float, context: &Context) -> Result<Float> {
    if let Some(float) = options.mlx_dtype {
        return Ok(float);
    }
    // Without a solver of our own, the folder is what mlx-lm would write.
    let ours = options.method.solver.needs_hessian() && options.targets.iter().any(|t| matches!(t, Target::Mlx { .. }));
    if !ours || dense != Float::BF16 {
        return Ok(dense);
    }
    let peak = match evidence {
        Loaded::Windows(set) => {
            let step = set.windows.len().div_ceil(PEAK_WINDOWS);
            let sample: Vec<Vec<u32>> = set.windows.iter().step_by(step).cloned().collect();
            gather(&model.checkpoint, &sample, Detail::Channels, context)?.peak
        }
        Loaded::Stats(stats) => stats.meta.peak,
        Loaded::Importance(_) | Loaded::None => return Ok(dense),
    };
    if peak < F16_PEAK {
        return Ok(Float::F16);
    }
    context.progress.note(&format!("mlx: activations reach {peak:.0}, too large for f16: scales stay bf16"));
    Ok(dense)
}

/// The type in which a dense checkpoint stores its matrices; an error if they are quantized already.
pub fn dense_type(checkpoint: &Checkpoint) -> Result<Float> {
    let mut found = None;
    for role in checkpoint.spec().roles() {
        let name = checkpoint.tensor_name(role)?;
        let float = match checkpoint.codec(role)? {
            Encoding::Codec(codec) if codec.float().is_some() => codec.float().expect("just checked"),
            other => {
                return Err(Error::unsupported(format!("is not a plain floating-point tensor but {other}"))
                    .file(checkpoint.path())
                    .tensor(name)
                    .hint("start from the unquantized checkpoint"));
            }
        };
        if role == Role::layer(0, Part::AttnQ) {
            found = Some(float);
        }
    }
    found.ok_or_else(|| Error::corrupt("the model has no layers").file(checkpoint.path()))
}
