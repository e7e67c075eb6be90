//! One model in, one artifact per target out.

mod parts;
mod plans;
mod streamed;

use crate::artifact::{self, Output, Writing};
use crate::auto::{Allocated, AutoOptions};
use crate::calibration::{CalibrationOptions, Loaded};
use crate::carry::{self, Account, Tally};
use crate::companions::Companions;
use crate::context::Context;
use crate::encode::{Encoder, Evidence};
use crate::estimate::Estimate;
use crate::gather::gather;
use crate::manifest::{Companion, InputFile, Made, Manifest, Recipe, hash_inputs};
use crate::memory;
use crate::mtp::Mtp;
use crate::opened::Opened;
use crate::rewrite::rewritten;
use crate::share::Share;
use crate::spool::Spool;
use crate::target::Target;
use bitsmith_calibrate::Detail;
use bitsmith_convert::{ArtifactWriter, names};
use bitsmith_formats::{Error, Float, Result, instructions};
use bitsmith_quantize::Method;
use bitsmith_quantize::plan::{Plan, PlanOptions};
use bitsmith_runtime::{ModelSpec, Role, WeightSource, device};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Instant;

pub use parts::{Encoded, EncodedPart};

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
    /// Whether weights that are quantized already may be quantized a second time.
    pub allow_requantize: bool,
    /// What becomes of layers for multi-token prediction; what the target can carry if `None`.
    pub mtp: Option<Mtp>,
    /// How `auto` targets choose formats.
    pub auto: AutoOptions,
    /// Who publishes the artifacts.
    pub publisher: Option<String>,
    /// Tensors of the only target that were encoded before, part by part.
    pub encoded: Option<Encoded>,
    /// The flags behind these options, as a recipe file has them; for the manifest.
    pub command: Value,
}

/// A finished artifact.
#[derive(Debug, Clone, Serialize, Deserialize)]
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
    /// Files that lie beside it and belong to it: the projector of a model with a vision tower.
    pub companions: Vec<Companion>,
    /// Tensors of the source that are in no file of it.
    pub dropped: Vec<String>,
}

/// One target of a job, planned.
struct Work<'a> {
    target: Target,
    mtp: Mtp,
    /// The formats of all tensors.
    plan: &'a Plan,
    /// The tensors of the artifact itself and their formats.
    own: (ModelSpec, Plan),
    /// Those of the file beside it that has the layers for multi-token prediction.
    beside: Option<(ModelSpec, Plan)>,
    /// What the artifact is called.
    name: &'a Path,
    /// What it is opened by: the same, or the first file of a split set.
    path: PathBuf,
}

/// A job ready to run: everything read but the weights.
pub struct Job<'a> {
    pub(crate) model: &'a Opened,
    pub(crate) options: &'a QuantizeOptions,
    pub(crate) context: &'a Context,
    pub(crate) evidence: Loaded,
    pub(crate) calibration: Option<Value>,
    dense: Float,
    /// Known once the job runs: finding it may take running the model.
    mlx_dtype: OnceLock<Float>,
    /// What `auto` targets chose. Known once the job runs: until then a typical plan of the container stands in.
    allocated: OnceLock<Vec<(Target, Allocated)>>,
    companions: Companions<'a>,
    /// The model as the method rewrites it as a whole, if it does.
    rewritten: Option<Box<dyn WeightSource + 'a>>,
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
        if options.auto.plan_out.is_some() && options.targets.len() > 1 {
            return Err(Error::usage("--plan-out is for one target: there are several"));
        }
        let dense = carry::dense_type(&model.checkpoint)?;
        let rewritten = rewritten(model, options, context)?;
        let spec = rewritten.as_ref().map_or(model.checkpoint.spec(), |r| r.spec());
        for &target in &options.targets {
            Mtp::resolve(options.mtp, target, model.checkpoint.spec())?;
            if let Target::Auto(auto) = target
                && !options.auto.planned
            {
                auto.required_budget()?;
            }
            artifact::check(model, spec, target)?;
        }
        let method = &options.method;
        let quantizes =
            options.targets.iter().any(|t| t.is_quantized()) || options.plan.names_quantized() || !method.transforms.is_empty();
        let (evidence, calibration) = match quantizes {
            true => options.calibration.load(method, model, context)?,
            false => (Loaded::None, None),
        };
        let companions = Companions::new(model, context)?;
        Ok(Job {
            model,
            options,
            context,
            evidence,
            calibration,
            dense,
            mlx_dtype: OnceLock::new(),
            allocated: OnceLock::new(),
            companions,
            rewritten,
        })
    }

    /// What is encoded: the source, or what the method makes of it as a whole.
    fn source(&self) -> &dyn WeightSource {
        self.rewritten.as_deref().unwrap_or(&self.model.checkpoint)
    }

    /// What is not quantized in this target is stored in this type. Until the job runs the source's type stands in for MLX's,
    /// which is as wide unless it is set.
    fn dense_for(&self, target: Target) -> Float {
        let chosen = if target.has_mlx_scales() { self.mlx_dtype.get().copied() } else { None };
        let set = self.options.mlx_dtype.filter(|_| target.container() == "mlx" && target.is_quantized());
        chosen.or(set).unwrap_or(self.dense)
    }

    /// What becomes of layers for multi-token prediction.
    fn mtp(&self, target: Target) -> Result<Mtp> {
        Mtp::resolve(self.options.mtp, target, self.model.checkpoint.spec())
    }

    /// Whether importance guides the encoders.
    fn is_weighted(&self) -> bool {
        self.options.method.solver.name() != "rtn" && !matches!(self.evidence, Loaded::None)
    }

    fn has_importance(&self, role: Role) -> bool {
        match &self.evidence {
            Loaded::Importance(by_role) => self.is_weighted() && by_role.contains_key(&role),
            // Nothing is observed in layers that are not run.
            _ => self.is_weighted() && !role.layer.is_some_and(|l| self.model.checkpoint.spec().is_extra(l)),
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
            let (method, threads) = (&self.options.method, self.context.threads);
            let spec = self.mtp(target)?.whole(self.source().spec());
            let estimate = Estimate::new(&target.to_string(), &spec, &plan, method, tokens, eval_tokens, threads);
            let estimate = estimate.with_more(self.companions.bytes(target)?);
            Ok(match target {
                Target::Auto(auto) if self.allocated(target).is_none() && !self.options.auto.planned => {
                    estimate.undecided(auto.budget.and_then(|b| b.bytes(spec.n_weights())), spec.n_weights())
                }
                _ => estimate,
            })
        };
        self.options.targets.iter().map(estimate).collect()
    }

    /// Makes every target, one after the other. Those that an identical job made before are left as they are.
    pub fn run(&self) -> Result<Vec<Artifact>> {
        for estimate in self.estimates(0)? {
            estimate.check_ram(self.context.max_ram)?;
        }
        if let Some(line) = carry::released_in_fp8(&self.model.checkpoint)? {
            self.context.progress.note(&line);
        }
        for &target in &self.options.targets {
            self.companions.tell_dropped(target, self.mtp(target)?);
        }
        let paths = self.options.out.paths(self.model, &self.options.targets)?;
        self.settle_mlx_dtype()?;
        self.allocate()?;
        let plans = self.options.targets.iter().map(|&t| self.plan(t)).collect::<Result<Vec<_>>>()?;
        for (&target, plan) in self.options.targets.iter().zip(&plans) {
            plan.check_importance(|role| self.has_importance(role))?;
            self.write_plan(target, plan)?;
            if self.allocated(target).is_some() {
                self.plan_notes(target, plan).iter().for_each(|n| self.context.progress.note(&format!("{target}: {n}")));
            }
        }
        let mut works = Vec::new();
        for ((&target, plan), name) in self.options.targets.iter().zip(&plans).zip(&paths) {
            let mtp = self.mtp(target)?;
            let (own, beside) = mtp.files(target, self.source().spec());
            let with_plan = |spec: ModelSpec| {
                let plan = plan.restricted(&spec);
                (spec, plan)
            };
            let (own, beside) = (with_plan(own), beside.map(with_plan));
            let path = artifact::first_file(self.model, &own.0, target, &own.1, name, self.options.shard_size)?;
            works.push(Work { target, mtp, plan, own, beside, name, path });
        }
        if self.streams() {
            return self.stream(&works);
        }
        let inputs = hash_inputs(self.model.checkpoint.path())?;
        works.iter().map(|work| self.make(work, &inputs)).collect()
    }

    /// Opens the files of a target: the artifact, and that of layers for multi-token prediction if they have one.
    fn writers<'w>(&self, work: &'w Work<'_>) -> Result<Vec<(&'w Plan, Box<dyn ArtifactWriter>)>> {
        let open = |(spec, plan): &'w (ModelSpec, Plan), shard_size, path: &Path| {
            let dense = self.dense_for(work.target);
            let what = Writing { spec, plan, dense, shard_size, mtp_apart: work.mtp == Mtp::Split };
            Ok::<_, Error>((plan, artifact::start(self.model, work.target, &what, path)?))
        };
        let mut writers = vec![open(&work.own, self.options.shard_size, work.name)?];
        if let Some(beside) = &work.beside {
            writers.push(open(beside, None, &mtp_path(&work.path))?);
        }
        Ok(writers)
    }

    /// Says what became of quantized weights; the lines go to the manifest too.
    fn tell(&self, target: Target, account: &Account) -> Vec<String> {
        let said = account.lines().into_iter().map(|(loss, line)| {
            let text = format!("{target}: {line}");
            if loss {
                self.context.progress.warn(&text)
            } else {
                self.context.progress.note(&text)
            }
            line
        });
        said.collect()
    }

    /// What decides an artifact's bytes.
    fn recipe(&self, work: &Work<'_>, inputs: &[InputFile]) -> Result<Recipe> {
        Ok(Recipe {
            tool: concat!("bitsmith ", env!("CARGO_PKG_VERSION")).into(),
            inputs: inputs.to_vec(),
            target: work.target.to_string(),
            // Plain floating-point targets are stored as they are: no method applies unless a transform is asked for.
            method: self.options.method.to_string(),
            plan: serde_json::to_value(work.plan).map_err(|e| Error::failed(e.to_string()))?,
            calibration: self.calibration.clone(),
            shard_size: self.options.shard_size,
            mtp: (work.mtp == Mtp::Split).then(|| work.mtp.to_string()),
            seed: self.rewritten.as_ref().map(|_| self.context.seed),
            device: self.calibration.as_ref().and_then(|_| device::kind(&self.context.device)).map(String::from),
        })
    }

    /// The artifact, if an identical job made it before.
    fn reused(&self, work: &Work<'_>, recipe: &Recipe) -> Result<Option<Artifact>> {
        let Some(manifest) = Manifest::load(&work.path).filter(|m| m.proves(&work.path, recipe)) else { return Ok(None) };
        self.context.progress.note(&format!("{}: {} is there already and unchanged", work.target, work.path.display()));
        Spool::remove_left(&artifact::work_folder(&work.path), &recipe.key()?)?;
        Ok(Some(self.artifact(work.target, &work.path, manifest, 0, true)))
    }

    /// Writes the manifest of an artifact that has just been finished.
    fn record(&self, work: &Work<'_>, recipe: Recipe, start: Instant, notes: Vec<String>) -> Result<Artifact> {
        let (spec, plan) = &work.own;
        let bpw = plan.bytes(spec) as f64 * 8.0 / spec.n_weights() as f64;
        let stem = self.stem();
        let mut companions = self.companions.make(work.target, &work.path, &stem)?;
        if work.beside.is_some() {
            companions.push(Companion::of("mtp", &mtp_path(&work.path))?);
        }
        let mut manifest = Manifest::new(&work.path, recipe, bpw, start.elapsed().as_secs_f64(), notes)?;
        (manifest.companions, manifest.dropped) = (companions, self.companions.dropped(work.target, work.mtp));
        manifest.made = self.made();
        manifest.save(&work.path)?;
        Ok(self.artifact(work.target, &work.path, manifest, memory::peak_bytes(), false))
    }

    /// What the names of GGUF files begin with.
    pub(crate) fn stem(&self) -> String {
        let name = &self.model.about.name;
        match &self.options.out {
            Output::Folder(folder) | Output::Each(folder, _) => folder.stem(name, self.model.checkpoint.spec().n_weights()),
            Output::Exact(_) => name.clone(),
        }
    }

    fn made(&self) -> Made {
        Made {
            model: self.model.name.clone(),
            repo: self.model.about.repo.clone(),
            revision: self.model.about.revision.clone(),
            command: self.options.command.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            commit: self.context.commit.clone(),
            instructions: instructions().into(),
        }
    }

    fn make(&self, work: &Work<'_>, inputs: &[InputFile]) -> Result<Artifact> {
        let start = Instant::now();
        memory::reset_peak();
        let recipe = self.recipe(work, inputs)?;
        if let Some(artifact) = self.reused(work, &recipe)? {
            return Ok(artifact);
        }
        let Work { target, plan, path, .. } = work;
        let target = *target;
        for line in plan.fallbacks() {
            self.context.progress.warn(&format!("{target}: {line}"));
        }
        if !self.options.method.transforms.is_empty() && carry::any_quantized(&self.model.checkpoint)? {
            let line =
                "weights that are quantized already are transformed and quantized a second time, on top of the source's own loss";
            self.context.progress.warn(&format!("{target}: {line}"));
        }
        let spool = Spool::open(&artifact::work_folder(path), &recipe.key()?)?;
        let encoder = self.encoder(target, plan, &spool);
        let mut notes = self.plan_notes(target, plan);
        let mut found = Vec::new();
        if let Some(encoded) = &self.options.encoded {
            spool.adopt(&encoded.dir)?;
            found.clone_from(&encoded.notes);
        }
        found.extend(encoder.run()?);
        let mut tuned = encoder.tuned(&mut found)?;
        for note in &found {
            self.context.progress.note(&format!("{target}: {note}"));
        }
        notes.extend(found);
        self.context.progress.start("write", 1);
        let mut account = Account::default();
        let writers = self.writers(work)?;
        for entry in &plan.entries {
            let encoded = match tuned.remove(&entry.role) {
                Some(tensor) => tensor,
                None => encoder.encoded(entry.role)?,
            };
            for (_, writer) in writers.iter().filter(|(plan, _)| plan.codec(entry.role).is_some()) {
                writer.put(entry.role, &encoded)?;
            }
            let from = self.source().codec(entry.role)?;
            // Transforms change what the weights are, so that there is nothing to compare with.
            if carry::is_quantized(&from) && self.options.method.transforms.is_empty() {
                let weights = self.model.checkpoint.read(entry.role)?.data;
                account.add(entry.role, &from, entry.codec, &Tally::encoded(&weights, &encoded));
            }
        }
        for (_, writer) in writers {
            writer.finish()?;
        }
        self.context.progress.finish();
        notes.extend(self.tell(target, &account));
        let artifact = self.record(work, recipe, start, notes)?;
        spool.remove()?;
        Ok(artifact)
    }

    fn encoder<'e>(&'e self, target: Target, plan: &'e Plan, spool: &'e Spool) -> Encoder<'e> {
        Encoder {
            source: self.source(),
            plan,
            method: &self.options.method,
            vector_type: target.vector_type(self.dense_for(target)),
            evidence: self.evidence(),
            spool,
            share: Share::WHOLE,
            context: self.context,
        }
    }

    /// Decides what type quantized MLX folders' scales have.
    fn settle_mlx_dtype(&self) -> Result<()> {
        if self.mlx_dtype.get().is_none() {
            let found = mlx_dtype(self)?;
            self.mlx_dtype.get_or_init(|| found);
        }
        Ok(())
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
            companions: m.companions,
            dropped: m.dropped,
        }
    }
}

/// Where layers for multi-token prediction go beside a GGUF.
fn mtp_path(artifact: &Path) -> PathBuf {
    artifact.with_file_name(names::mtp_file(&artifact.file_name().unwrap_or_default().to_string_lossy()))
}

/// The type of a quantized MLX folder's scales: the source's, as mlx-lm has it, unless F16 is as safe and better.
fn mlx_dtype(job: &Job<'_>) -> Result<Float> {
    let &Job { model, options, context, ref evidence, dense, .. } = job;
    if let Some(float) = options.mlx_dtype {
        return Ok(float);
    }
    // Scales of a quantized source lose nothing in their own type.
    if let Some(float) = carry::scale_type(&model.checkpoint)? {
        return Ok(float);
    }
    // Without a solver of our own, the folder is what mlx-lm would write.
    let ours = options.method.solver.needs_hessian() && options.targets.iter().any(|t| t.has_mlx_scales());
    if !ours || dense != Float::BF16 {
        return Ok(dense);
    }
    let peak = match evidence {
        Loaded::Windows(set) => {
            let step = set.windows.len().div_ceil(PEAK_WINDOWS);
            let sample: Vec<Vec<u32>> = set.windows.iter().step_by(step).cloned().collect();
            gather(job.source(), &sample, Detail::Channels, context)?.peak
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
