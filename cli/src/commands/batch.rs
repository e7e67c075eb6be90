//! `bitsmith batch`.

use super::Status as Ended;
use super::batch_recipe::{self, Read};
use crate::app::App;
use crate::output::{human_bytes, table};
use bitsmith_formats::atomic::write_file;
use bitsmith_formats::{Error, ErrorKind, Result};
use bitsmith_pipeline::batch::export::{Exported, export};
use bitsmith_pipeline::batch::local::{self, Engine, Outcome};
use bitsmith_pipeline::batch::plan::Op;
use bitsmith_pipeline::batch::record::Failure;
use bitsmith_pipeline::batch::status::{State, Status, states, status};
use bitsmith_pipeline::batch::store::Kind;
use bitsmith_pipeline::batch::{Plan, Store, emit, ray, slurm};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  bitsmith batch recipe.toml                      everything that is not done yet, on this machine
  bitsmith batch recipe.toml --plan               what that is, and what it costs: recipe.plan.json
  bitsmith batch recipe.toml --status
  bitsmith batch recipe.toml --store /shared/batch --max-ram 32GiB
  bitsmith batch recipe.toml --store /shared/batch --engine slurm --threads 8 --sbatch=--partition=cpu

A recipe is a TOML file:
  models = [\"Qwen/Qwen2.5-0.5B\", \"./my-model\"]
  to = [\"gguf:q4_k_m\", \"gguf:q8_0\", \"mlx:4bit\"]
  out = \"releases\"
  method = \"reference\"          # and any other flag of `run`
  calib = \"notes.txt\"
  gate = [\"kld.mean<0.02\"]

Exit codes: 0 if all is done, 3 if a gate does not hold, or that of the first failure; everything else is done all the same.";

/// Arguments of `batch`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Recipe, or a plan that --plan wrote
    #[arg(value_name = "RECIPE.toml")]
    pub recipe: PathBuf,
    /// Where the work is done
    #[arg(long, value_enum, value_name = "ENGINE", default_value_t)]
    pub engine: EngineName,
    /// Where everything is kept that is made: a folder, or s3://bucket/prefix [default: `store` in the recipe, or in the output folder]
    #[arg(long, value_name = "URI")]
    pub store: Option<String>,
    /// Folder for results [default: `out` in the recipe, or bitsmith-batch]
    #[arg(short, long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Only write the plan, as JSON [default: beside the recipe]
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, group = "instead")]
    pub plan: Option<Option<PathBuf>>,
    /// Only say how far it is
    #[arg(long, group = "instead")]
    pub status: bool,
    /// Go on with a batch that was begun; an error if there is none
    #[arg(long)]
    pub resume: bool,
    /// Only say what it would cost in time, memory and disk
    #[arg(long, group = "instead")]
    pub dry_run: bool,
    /// Only print what is left in another system's words: a matrix for GitHub Actions, an Indexed Job for Kubernetes
    #[arg(long, value_enum, value_name = "SYSTEM", group = "instead")]
    pub emit: Option<System>,
    /// With --emit k8s: the image that has bitsmith
    #[arg(long, value_name = "IMAGE", default_value = concat!("bitsmith:", env!("CARGO_PKG_VERSION")), help_heading = "Clusters")]
    pub image: String,
    /// With --engine slurm or ray: wait until all is done; on Slurm, submit again what was killed
    #[arg(long, help_heading = "Clusters")]
    pub wait: bool,
    /// With --engine slurm: seconds of work that small nodes of a model, and small models, are packed to
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, help_heading = "Clusters")]
    pub pack: f64,
    /// With --engine slurm: another argument of sbatch, like --partition=main; can be given several times
    #[arg(long, value_name = "ARG", allow_hyphen_values = true, help_heading = "Clusters")]
    pub sbatch: Vec<String>,
    /// With --engine ray: where its dashboard answers
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8265", help_heading = "Clusters")]
    pub ray: String,
    /// With --engine ray: the Python that has Ray, on the head node
    #[arg(long, value_name = "PROGRAM", default_value = "python3", help_heading = "Clusters")]
    pub ray_python: String,
}

/// Where the work is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum EngineName {
    /// On this machine, within --max-ram, --threads and the disk
    #[default]
    Local,
    /// As job arrays of Slurm, with --threads processors each; the store must be one that all nodes reach
    Slurm,
    /// As a job of Ray, with --threads processors for each task; the store must be one that all nodes reach
    Ray,
}

/// A system that runs tasks by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum System {
    /// A matrix as JSON
    Github,
    /// An Indexed Job as YAML
    K8s,
}

/// Runs a batch.
pub fn run(args: &Arguments, app: &App) -> Result<Ended> {
    let (plan, named) = planned(args, app)?;
    if let Some(file) = &args.plan {
        let file = file.clone().unwrap_or_else(|| args.recipe.with_extension("plan.json"));
        write_file(&file, &plan.to_json()?)?;
        let mut document = summary(&plan);
        document["plan"] = json!(file);
        return app.output.result(&document, |_| format!("{}{}\n", costs(&plan), file.display())).map(|()| Ended::Done);
    }
    if args.dry_run {
        return app.output.result(&summary(&plan), |_| costs(&plan)).map(|()| Ended::Done);
    }
    let uri = args.store.clone().or(named).unwrap_or_else(|| plan.out.join(".store").display().to_string());
    let store = Store::open(&uri)?;
    let begun = store.get(Kind::Plan, &plan.key)?.is_some();
    if args.status {
        let mut status = status(&plan, &store)?;
        if args.engine == EngineName::Slurm {
            status.queue = Some(slurm::in_queue(&plan, &store)?);
        }
        return app.output.result(&status, |s| status_text(s, begun)).map(|()| Ended::Done);
    }
    if let Some(system) = args.emit {
        return emitted(system, &plan, &store, args, app).map(|()| Ended::Done);
    }
    if args.resume && !begun {
        return Err(Error::missing("this batch was never begun, or its recipe or a source has changed since")
            .file(&args.recipe)
            .hint("without --resume it is begun; what is unchanged is not made again"));
    }
    store.put(Kind::Plan, &plan.key, &plan.to_json()?)?;
    let outcome = match args.engine {
        EngineName::Local => local::run(&plan, &store, &engine(app)?, app.context.progress.as_ref())?,
        EngineName::Slurm | EngineName::Ray => match on_cluster(&plan, &store, args, app)? {
            Some(outcome) => outcome,
            None => return Ok(Ended::Done),
        },
    };
    let exported = export(&plan, &store)?;
    let (done, results) = (store.keys(Kind::Record)?, store.keys(Kind::Result)?);
    store.tidy(&|key| done.contains(key) || results.contains(key) || plan.key == key)?;
    finish(&plan, &outcome, &exported, app)
}

/// The plan, and the store that the recipe names.
fn planned(args: &Arguments, app: &App) -> Result<(Plan, Option<String>)> {
    if args.recipe.extension().is_some_and(|e| e == "json") {
        let mut plan = Plan::read(&args.recipe)?;
        if let Some(out) = &args.out {
            plan.out = plan.dir.join(out);
        }
        return Ok((plan, None));
    }
    let Read { recipe, store } = batch_recipe::read(&args.recipe, args.out.as_deref())?;
    Ok((Plan::new(&recipe, &app.context)?, store))
}

/// How this machine runs tasks.
fn engine(app: &App) -> Result<Engine> {
    Ok(Engine { cores: app.context.threads, max_ram: app.context.max_ram, program: program()?, flags: app.flags.clone() })
}

fn program() -> Result<PathBuf> {
    std::env::current_exe().map_err(|e| Error::failed(format!("the program is not found: {e}")))
}

/// Submits what is left, and waits for it if that is asked for. Nothing if it is under way.
fn on_cluster(plan: &Plan, store: &Store, args: &Arguments, app: &App) -> Result<Option<Outcome>> {
    const POLL: Duration = Duration::from_secs(2);
    /// Polls in a row that a controller may miss while it is restarted: ten minutes.
    const MISSED: u32 = 300;
    let cpus = app.threads.unwrap_or(1);
    let flags = app.flags.clone();
    let program = program()?;
    let submit: Box<dyn Fn(bool) -> Result<slurm::Round>> = if args.engine == EngineName::Ray {
        let (address, python) = (args.ray.clone(), args.ray_python.clone());
        let engine = ray::Engine { address, python, program, flags, cpus };
        Box::new(move |failed_too| ray::submit(plan, store, &engine, failed_too))
    } else {
        let engine = slurm::Engine { program, flags, cpus, pack: args.pack, sbatch: args.sbatch.clone() };
        Box::new(move |failed_too| slurm::submit(plan, store, &engine, failed_too))
    };
    let (mut first, mut missed) = (true, 0);
    loop {
        // Failures of before are tried again once; what fails now has failed.
        let round = match submit(first) {
            Err(e) if args.wait && e.kind == ErrorKind::Transient && missed < MISSED => {
                if missed == 0 {
                    app.context.progress.warn(&format!("{e}; still waiting"));
                }
                missed += 1;
                std::thread::sleep(POLL);
                continue;
            }
            round => round?,
        };
        (first, missed) = (false, 0);
        for index in &round.given_up {
            app.context.progress.warn(&format!("{}: killed again and again, even with more memory", plan.nodes[*index]));
        }
        if !round.submitted.is_empty() {
            app.context.progress.note(&format!("submitted {} nodes as {}", round.nodes, round.submitted.join(", ")));
        }
        if round.nodes == 0 && round.queued == 0 {
            return slurm::outcome(plan, store, &round).map(Some);
        }
        if !args.wait {
            let text =
                format!("{} nodes submitted, {} in the queue; --status tells how far they are\n", round.nodes, round.queued);
            app.output.result(&json!({ "plan": plan.key, "submitted": round }), |_| text)?;
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

/// Prints what is left for another system, which finds the plan in the store.
fn emitted(system: System, plan: &Plan, store: &Store, args: &Arguments, app: &App) -> Result<()> {
    store.put(Kind::Plan, &plan.key, &plan.to_json()?)?;
    let states = states(plan, store)?;
    if states.iter().all(|s| *s == State::Done) {
        app.context.progress.note("nothing is left to be done");
    }
    match system {
        System::Github => app.output.text(&format!("{}\n", emit::github(plan, &states))),
        System::K8s if store.root().is_some() => {
            Err(Error::usage("pods share no file system: the store must be object storage").hint("--store s3://bucket/prefix"))
        }
        System::K8s => {
            let pods = emit::Pods { image: &args.image, store: store.uri(), cpus: app.threads.unwrap_or(1) };
            app.output.text(&emit::k8s(plan, &states, &pods))
        }
    }
}

/// Cost by kind of work.
fn by_kind(plan: &Plan) -> Vec<(&'static str, usize, f64, u64, u64)> {
    let mut kinds: Vec<(&'static str, usize, f64, u64, u64)> = Vec::new();
    for node in &plan.nodes {
        let at = kinds.iter().position(|k| k.0 == node.op.name()).unwrap_or_else(|| {
            kinds.push((node.op.name(), 0, 0.0, 0, 0));
            kinds.len() - 1
        });
        let kind = &mut kinds[at];
        kind.1 += 1;
        kind.2 += node.cost.cpu_seconds;
        kind.3 = kind.3.max(node.cost.ram_bytes);
        kind.4 += node.cost.disk_bytes;
    }
    kinds
}

fn summary(plan: &Plan) -> Value {
    let kinds: Vec<Value> = by_kind(plan)
        .into_iter()
        .map(|(op, nodes, cpu_seconds, ram_bytes, disk_bytes)| {
            json!({ "op": op, "nodes": nodes, "cpu_seconds": cpu_seconds, "ram_bytes": ram_bytes, "disk_bytes": disk_bytes })
        })
        .collect();
    let artifacts = plan.nodes.iter().filter(|n| matches!(n.op, Op::Quantize { .. })).count();
    json!({
        "key": plan.key, "models": plan.models.len(), "artifacts": artifacts, "nodes": plan.nodes.len(), "work": kinds,
    })
}

fn costs(plan: &Plan) -> String {
    let mut rows = vec![["work", "nodes", "core hours", "memory", "disk"].map(String::from).to_vec()];
    for (op, nodes, seconds, ram, disk) in by_kind(plan) {
        rows.push(vec![op.into(), nodes.to_string(), format!("{:.3}", seconds / 3600.0), human_bytes(ram), human_bytes(disk)]);
    }
    let total: f64 = plan.nodes.iter().map(|n| n.cost.cpu_seconds).sum();
    let models = plan.models.len();
    format!("{}{models} models, about {:.2} core hours\n", table(&rows, &[1, 2, 3, 4]), total / 3600.0)
}

fn status_text(status: &Status, begun: bool) -> String {
    let mut rows = vec![["model", "artifacts", "nodes left", "failed"].map(String::from).to_vec()];
    for m in status.models.iter().filter(|m| m.left > 0) {
        rows.push(vec![m.model.clone(), format!("{}/{}", m.made, m.artifacts), m.left.to_string(), m.failed.to_string()]);
    }
    let states: Vec<String> = status.states.iter().filter(|s| s.1 > 0).map(|(name, n)| format!("{n} {name}")).collect();
    let mut text = if rows.len() > 1 { table(&rows, &[1, 2, 3]) } else { String::new() };
    for f in &status.failures {
        text.push_str(&format!("{}: {}\n", f.index, f.failure.error()));
    }
    let left = status.cpu_seconds_left / 3600.0;
    text.push_str(&format!("{} nodes: {}; about {left:.2} core hours left\n", status.nodes, states.join(", ")));
    for (state, n) in status.queue.iter().flatten() {
        text.push_str(&format!("slurm: {n} {state}\n"));
    }
    if !begun {
        text.push_str("not begun with this recipe and these sources\n");
    }
    text
}

/// Says what came of it.
fn finish(plan: &Plan, outcome: &Outcome, exported: &Exported, app: &App) -> Result<Ended> {
    let failed: Vec<Value> = outcome.failed.iter().map(|(i, f)| json!({ "index": i, "failure": f })).collect();
    let document = json!({
        "plan": plan.key, "out": plan.out, "artifacts": exported.artifacts, "gates": exported.gates,
        "nodes": { "there": outcome.there, "done": outcome.done, "failed": outcome.failed.len(), "blocked": outcome.blocked },
        "failed": failed,
    });
    app.output.result(&document, |_| text(plan, outcome, exported))?;
    if let Some((_, failure)) = first_cause(&outcome.failed) {
        return Ok(Ended::Found(failure.error()));
    }
    let broken = exported.gates.iter().filter(|(_, _, g)| !g.held);
    let broken: Vec<String> =
        broken.map(|(m, t, g)| format!("{m} {t}: {} is {}", g.gate, super::run::measured(g.value))).collect();
    Ok(if broken.is_empty() { Ended::Done } else { Ended::GatesFailed(broken) })
}

/// The first failure, of those that are not a gate's if there are others.
fn first_cause(failed: &[(usize, Failure)]) -> Option<&(usize, Failure)> {
    failed.iter().find(|(_, f)| f.kind != "gate").or_else(|| failed.first())
}

fn text(plan: &Plan, outcome: &Outcome, exported: &Exported) -> String {
    let mut rows = vec![["model", "target", "size", "bpw", "time", "path"].map(String::from).to_vec()];
    for a in &exported.artifacts {
        let (name, one) = (a.job.as_ref().map_or(a.model.clone(), |j| format!("{} ({j})", a.model)), &a.artifact);
        let path = one.path.strip_prefix(&plan.dir).unwrap_or(&one.path).display().to_string();
        let time = format!("{:.1} s", one.seconds);
        rows.push(vec![name, one.target.clone(), human_bytes(one.bytes), format!("{:.3}", one.bpw), time, path]);
    }
    let Outcome { there, done, failed, blocked } = outcome;
    let mut text = table(&rows, &[2, 3, 4]);
    text.push_str(&format!("{done} nodes done, {there} were done before"));
    if !failed.is_empty() {
        text.push_str(&format!(", {} failed, {blocked} need what failed", failed.len()));
    }
    text + "\n"
}

/// Global flags that tasks are to have too, as this program was given them.
pub fn task_flags(global: &crate::args::Global) -> Vec<OsString> {
    let mut flags: Vec<OsString> = vec!["--device".into(), global.device.clone().into()];
    if global.offline {
        flags.push("--offline".into());
    }
    let absolute = |dir: &Path| std::path::absolute(dir).unwrap_or_else(|_| dir.to_path_buf());
    if let Some(dir) = &global.cache_dir {
        flags.extend(["--cache-dir".into(), absolute(dir).into_os_string()]);
    }
    if let Some(bytes) = global.max_ram {
        flags.extend(["--max-ram".into(), bytes.to_string().into()]);
    }
    flags
}
