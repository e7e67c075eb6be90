//! The quality map: what quantizing each tensor alone adds, measured or estimated.

use crate::artifact::work_folder;
use crate::budget::SpeedClass;
use crate::calibration::CalibrationOptions;
use crate::candidates::{Candidates, Column, Kept};
use crate::carry;
use crate::context::Context;
use crate::estimate::Cost;
use crate::evaluate::{EvalOptions, watch};
use crate::manifest::hash_inputs;
use crate::opened::Opened;
use crate::sealed;
use crate::sensitivity::{probe, thinned};
use crate::target::Target;
use bitsmith_datasets::{DataSpec, EvalWindows};
use bitsmith_eval::map::{Agreement, Depth, MapData, MapEntry, Measured, PlanCheck, QualityMap};
use bitsmith_eval::stats::{mean, spearman};
use bitsmith_eval::{Change, Kld, Landing, Perturber};
use bitsmith_formats::hash::sha256_bytes;
use bitsmith_formats::{Error, Result};
use bitsmith_quantize::Method;
use bitsmith_quantize::plan::PlanOptions;
use bitsmith_runtime::{Role, WeightSource};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Windows of text unless told otherwise, over all domains.
pub const DEFAULT_WINDOWS: usize = 32;

/// What to map, and how.
#[derive(Debug, Clone)]
pub struct MapOptions {
    /// The targets whose base formats are compared.
    pub targets: Vec<Target>,
    /// Its solver chooses the codes; transforms change several tensors at once and are left out.
    pub method: Method,
    /// Text for the solver.
    pub calibration: CalibrationOptions,
    /// Text to measure on.
    pub data: DataSpec,
    /// How it is cut.
    pub eval: EvalOptions,
    /// Estimates alone.
    pub quick: bool,
    /// The map's file. Work that an interruption must not lose is kept in a folder beside it.
    pub out: PathBuf,
}

/// A finished measurement, as the work folder keeps it.
#[derive(Serialize, Deserialize)]
struct Finished {
    role: Role,
    column: usize,
    measured: Vec<Measured>,
}

/// The base formats of targets, each once.
pub fn columns(model: &Opened, targets: &[Target]) -> Result<Vec<Column>> {
    let dense = carry::dense_type(&model.checkpoint)?;
    let spec = model.checkpoint.spec().without_mtp();
    let mut columns: Vec<Column> = Vec::new();
    // What `auto` targets choose from.
    let each = targets.iter().flat_map(|target| match target {
        Target::Auto(auto) => auto.home.candidates(SpeedClass::Fast),
        one => vec![*one],
    });
    for target in each {
        if !target.is_quantized() {
            return Err(Error::usage(format!("{target} quantizes nothing: there is nothing to map")));
        }
        let codec = target.base(dense, spec.hidden_size);
        if columns.iter().all(|c| c.codec != codec) {
            let plan = target.plan(&spec, dense, &PlanOptions { pure: true, ..PlanOptions::default() })?;
            columns.push(Column { codec, plan });
        }
    }
    Ok(columns)
}

/// What [`map`] will cost.
pub fn cost(model: &Opened, options: &MapOptions, context: &Context) -> Result<Cost> {
    let columns = columns(model, &options.targets)?;
    let eval = options.eval.windows(&options.data, model, &model.text_tokenizer()?)?;
    let spec = model.checkpoint.spec().without_mtp();
    let matrices = spec.roles().into_iter().filter(|r| r.part.is_matrix()).count();
    // Estimates take the probes, one for each tensor or fewer, on an eighth of the text, and each format as a whole.
    let changes = if options.quick { matrices / 8 + columns.len() } else { matrices * columns.len() };
    let bytes = columns.iter().map(|c| c.plan.bytes(&spec)).sum();
    Ok(Cost::of_changes(&spec, &eval, changes, bytes, context.threads))
}

/// Makes the map and writes it.
pub fn map(model: &Opened, options: &MapOptions, context: &Context) -> Result<QualityMap> {
    let source = &model.checkpoint;
    source.spec().require_head()?;
    cost(model, options, context)?.check_ram("the map", context.max_ram)?;
    let dense = carry::dense_type(source)?;
    let columns = columns(model, &options.targets)?;
    let windows = options.calibration.windows(model)?;
    let eval = options.eval.windows(&options.data, model, &model.text_tokenizer()?)?;
    eval.set.notes.iter().for_each(|note| context.progress.note(note));
    let inputs = hash_inputs(source.path())?;
    let key = json!({
        "tool": concat!("bitsmith ", env!("CARGO_PKG_VERSION")), "inputs": inputs,
        "plans": columns.iter().map(|c| &c.plan).collect::<Vec<_>>(), "method": options.method.solver.name(),
        "calibration": [&windows.sha256, &windows.windows.len().to_string(), &windows.ctx.to_string()],
        "data": [&eval.set.sha256, &eval.set.windows.len().to_string(), &eval.set.ctx.to_string(), &eval.style.to_string()],
    });
    let key = sha256_bytes(key.to_string().as_bytes());
    let work = Work::open(&work_folder(&options.out), &key)?;
    let vectors = options.targets[0].vector_type(dense);
    let kept = Kept { folder: &work.folder, key: &key };
    let candidates = Candidates::encode(source, &columns, &options.method, vectors, &windows.windows, kept, context)?;
    let roles = candidates.roles();

    let mut probes =
        Perturber::new(source, thinned(&eval), &work.folder.join("probes"), &context.device, &watch(context, "probes"))?;
    let factors = probe(&mut probes, &candidates, middle(&columns), context)?;
    let estimate_work = probes.work();
    drop(probes);
    let estimate = |role: Role, column: usize| factors.get(&role).map(|f| f * candidates.errors(role)[column]);

    let mut perturber = Perturber::new(source, eval, &work.folder, &context.device, &watch(context, &model.name))?;
    let measured = match options.quick {
        true => BTreeMap::new(),
        false => measure_all(&mut perturber, &candidates, &roles, columns.len(), &work, context)?,
    };
    let measured_work = perturber.work();
    let entry = |role: Role, column: usize| -> Result<MapEntry> {
        let (codec, plan) = (columns[column].codec, &columns[column].plan);
        let own = plan.codec(role).unwrap_or(codec);
        let spec = source.spec();
        let shape = spec.shape(role.part);
        let row = shape.last().copied().unwrap_or(1);
        let bytes = own.row_bytes(row)? * (spec.numel(role.part) / row.max(1));
        Ok(MapEntry {
            role: short(role),
            part: role.part.name().into(),
            layer: role.layer,
            codec: codec.to_string(),
            instead: (own != codec).then(|| own.to_string()),
            bytes: bytes as u64,
            bpw: bytes as f64 * 8.0 / spec.numel(role.part) as f64,
            error: candidates.errors(role)[column],
            estimate: estimate(role, column),
            measured: measured.get(&(role, column)).cloned().unwrap_or_default(),
        })
    };
    let pairs = roles.iter().flat_map(|r| (0..columns.len()).map(move |c| (*r, c)));
    let entries = pairs.map(|(role, column)| entry(role, column)).collect::<Result<Vec<_>>>()?;

    let (mut depth, mut plan_check) = (Vec::new(), Vec::new());
    let tokenizer = model.text_tokenizer()?;
    context.progress.start("whole", columns.len() as u64);
    for (number, column) in columns.iter().enumerate() {
        let all = Change { roles: roles.clone(), values: Box::new(|role| candidates.decoded(role, number)) };
        let effect = perturber.measure_depth(all)?;
        let of: Vec<&MapEntry> = entries.iter().skip(number).step_by(columns.len()).collect();
        let mut kld = Kld::from_positions(perturber.eval(), &model.name, &effect.windows);
        kld.landing = Some(Landing::of(perturber.eval(), &effect.windows, &tokenizer));
        plan_check.push(PlanCheck {
            codec: column.codec.to_string(),
            bytes: of.iter().map(|e| e.bytes).sum(),
            predicted: of.iter().filter_map(|e| e.kld().or(e.estimate)).sum(),
            measured: mean(&perturber.by_domain(&effect).iter().map(|m| m.kld).collect::<Vec<_>>()),
            kld: Some(kld),
        });
        let mut layers = effect.depth;
        let embedding = if layers.is_empty() { 0.0 } else { layers.remove(0) };
        depth.push(Depth { codec: column.codec.to_string(), embedding, layers });
        context.progress.advance(1);
    }
    context.progress.finish();
    let map = QualityMap {
        model: model.name.clone(),
        source_sha256: Some(match &inputs[..] {
            [one] => one.sha256.clone(),
            all => sha256_bytes(all.iter().map(|f| format!("{}  {}\n", f.sha256, f.name)).collect::<String>().as_bytes()),
        }),
        method: options.method.solver.name().into(),
        data: domains(perturber.eval()),
        codecs: columns.iter().map(|c| c.codec.to_string()).collect(),
        baseline: perturber.baseline()?,
        agreement: (!options.quick).then(|| agreement(&entries, estimate_work as f64 / measured_work as f64)),
        entries,
        depth,
        plan_check,
    };
    let mut document = serde_json::to_vec_pretty(&map).map_err(|e| Error::failed(e.to_string()))?;
    document.push(b'\n');
    bitsmith_formats::atomic::write_file(&options.out, &document)?;
    drop(perturber);
    drop(candidates);
    work.remove()?;
    Ok(map)
}

/// The format of middle size, in which errors are neither lost in rounding nor so large that they no longer add up.
pub fn middle(columns: &[Column]) -> usize {
    let mut order: Vec<usize> = (0..columns.len()).collect();
    order.sort_by(|a, b| columns[*a].codec.bits_per_weight().total_cmp(&columns[*b].codec.bits_per_weight()));
    order[(order.len() - 1) / 2]
}

/// A tensor's name in maps: without `.weight`.
pub fn short(role: Role) -> String {
    let name = role.to_string();
    name.strip_suffix(".weight").map(String::from).unwrap_or(name)
}

fn domains(eval: &EvalWindows) -> Vec<MapData> {
    let counts = eval.set.windows_per_domain();
    let of = |(domain, windows): (&String, usize)| MapData {
        data: eval.set.data.clone(),
        domain: domain.clone(),
        tokens: windows * eval.scored().len(),
        windows,
    };
    eval.set.domains.iter().zip(counts).filter(|(_, n)| *n > 0).map(of).collect()
}

fn agreement(entries: &[MapEntry], cost: f64) -> Agreement {
    let both: Vec<(f64, f64)> = entries.iter().filter_map(|e| Some((e.estimate?, e.kld()?))).collect();
    let (estimates, measured): (Vec<f64>, Vec<f64>) = both.into_iter().unzip();
    Agreement { spearman: spearman(&estimates, &measured), cost }
}

/// Every tensor in every column, layer by layer.
fn measure_all(
    perturber: &mut Perturber<'_>,
    candidates: &Candidates<'_>,
    roles: &[Role],
    columns: usize,
    work: &Work,
    context: &Context,
) -> Result<BTreeMap<(Role, usize), Vec<Measured>>> {
    let mut measured = work.finished()?;
    let mut todo: Vec<(Role, usize)> =
        roles.iter().flat_map(|r| (0..columns).map(move |c| (*r, c))).filter(|pair| !measured.contains_key(pair)).collect();
    // Changes of one layer share its way.
    todo.sort_by_key(|(role, column)| (role.layer, role.part, *column));
    context.progress.start("map", (roles.len() * columns) as u64);
    context.progress.advance(measured.len() as u64);
    let together = perturber.together();
    let of_one_layer = todo.chunk_by(|a, b| a.0.layer == b.0.layer);
    for some in of_one_layer.flat_map(|layer| layer.chunks(together)) {
        let change = |&(role, column): &(Role, usize)| Change {
            roles: vec![role],
            values: Box::new(move |role| candidates.decoded(role, column)),
        };
        let effects = perturber.measure(&some.iter().map(change).collect::<Vec<_>>())?;
        for (&(role, column), effect) in some.iter().zip(effects) {
            let found = perturber.by_domain(&effect);
            work.keep(&Finished { role, column, measured: found.clone() })?;
            measured.insert((role, column), found);
        }
        context.progress.advance(some.len() as u64);
    }
    context.progress.finish();
    Ok(measured)
}

/// The folder beside the map that keeps what is finished.
struct Work {
    folder: PathBuf,
}

const KEY: &str = "key";
const MEASURED: &str = "measured.jsonl";

impl Work {
    /// Another job's folder is emptied.
    fn open(folder: &Path, key: &str) -> Result<Work> {
        let work = Work { folder: folder.to_path_buf() };
        if fs::read_to_string(folder.join(KEY)).ok().as_deref() != Some(key) {
            work.remove_if_there()?;
            fs::create_dir_all(folder).map_err(|e| Error::write(folder, e))?;
            bitsmith_formats::atomic::write_file(folder.join(KEY), key.as_bytes())?;
        }
        Ok(work)
    }

    /// What earlier runs measured. A line that was being written when a run was killed is no line.
    fn finished(&self) -> Result<BTreeMap<(Role, usize), Vec<Measured>>> {
        let path = self.folder.join(MEASURED);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(e) => return Err(Error::read(path, e)),
        };
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        // What follows is overwritten, not appended to.
        if whole.len() < text.len() {
            bitsmith_formats::atomic::write_file(&path, whole.as_bytes())?;
        }
        let lines = whole.lines().filter_map(|line| sealed::open::<Finished>(line.as_bytes()));
        Ok(lines.map(|f| ((f.role, f.column), f.measured)).collect())
    }

    fn keep(&self, finished: &Finished) -> Result<()> {
        let path = self.folder.join(MEASURED);
        let mut line = sealed::seal(finished)?;
        line.push('\n');
        let mut file = OpenOptions::new().create(true).append(true).open(&path).map_err(|e| Error::write(&path, e))?;
        file.write_all(line.as_bytes()).map_err(|e| Error::write(&path, e))
    }

    fn remove_if_there(&self) -> Result<()> {
        match fs::remove_dir_all(&self.folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::write(&self.folder, e)),
            _ => Ok(()),
        }
    }

    fn remove(self) -> Result<()> {
        self.remove_if_there()
    }
}
