//! The engine on a cluster: job arrays of Slurm that depend on one another.
//!
//! What is done is known from the store; Slurm is only asked what it still has. Each model has arrays of its own, so that the failure of
//! one does not keep others from being done. Small nodes of a model, and small models, are packed into one element of an array. An
//! element that left the queue without a record or a failure was killed: it is submitted again with twice the memory and time.

use super::local::Outcome;
use super::pack::{Array, pack};
use super::plan::Plan;
use super::record::Failure;
use super::status::{State, states};
use super::store::{Kind, Store};
use bitsmith_formats::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// An estimate times this is asked for.
const MEMORY_MARGIN: f64 = 1.3;
/// Least memory of an element, in bytes.
const LEAST_MEMORY: u64 = 512 << 20;
/// Estimates of time are rough, and what exceeds its time is lost.
const TIME_MARGIN: f64 = 6.0;
/// Least time of an element, in minutes.
const LEAST_MINUTES: u64 = 20;
/// Times that the memory of an element is doubled.
const DOUBLINGS: u32 = 4;

/// How tasks are submitted.
#[derive(Debug, Clone)]
pub struct Engine {
    /// The program, where every node of the cluster has it.
    pub program: PathBuf,
    /// Its global flags.
    pub flags: Vec<OsString>,
    /// Processors of an element.
    pub cpus: usize,
    /// Seconds of work that are packed into an element, at least, where there are so many.
    pub pack: f64,
    /// More arguments of `sbatch`: partition, account, ….
    pub sbatch: Vec<String>,
}

/// What was submitted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Submitted {
    /// The arrays.
    pub arrays: Vec<Job>,
}

/// An array that Slurm was given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Slurm's number.
    pub id: String,
    /// Nodes by element.
    pub elements: Vec<Vec<usize>>,
    /// How often its memory was doubled.
    pub doublings: u32,
}

/// How an element stands in the queue: state and reason, as Slurm calls them.
pub type Queue = BTreeMap<(String, usize), (String, String)>;

impl Submitted {
    /// What was submitted of this plan, if anything was.
    pub fn load(store: &Store, plan: &Plan) -> Result<Submitted> {
        let Some(json) = store.get(Kind::Run, &plan.key)? else { return Ok(Submitted::default()) };
        serde_json::from_slice(&json).map_err(|e| Error::corrupt(format!("the list of submitted jobs is damaged: {e}")))
    }

    fn save(&self, store: &Store, plan: &Plan) -> Result<()> {
        store.put(Kind::Run, &plan.key, &serde_json::to_vec(self).map_err(|e| Error::failed(e.to_string()))?)
    }

    /// Elements that are in the queue, by what they run.
    fn queued(&self, queue: &Queue) -> HashMap<usize, (String, usize)> {
        let mut found = HashMap::new();
        for job in &self.arrays {
            for (element, nodes) in job.elements.iter().enumerate() {
                let at = (job.id.clone(), element);
                if queue.contains_key(&at) {
                    found.extend(nodes.iter().map(|n| (*n, at.clone())));
                }
            }
        }
        found
    }

    /// How often the memory of the last attempt at a node was doubled, if there was one.
    fn doublings(&self, node: usize) -> Option<u32> {
        self.arrays.iter().rev().find(|j| j.elements.iter().any(|e| e.contains(&node))).map(|j| j.doublings)
    }
}

/// What came of submitting.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Round {
    /// Numbers of new arrays.
    pub submitted: Vec<String>,
    /// Nodes in them.
    pub nodes: usize,
    /// Nodes that are in the queue already.
    pub queued: usize,
    /// Nodes that were given up: killed again and again.
    pub given_up: Vec<usize>,
}

/// Submits all nodes that are neither done nor in the queue. Failed ones are only with `failed_too`.
pub fn submit(plan: &Plan, store: &Store, engine: &Engine, failed_too: bool) -> Result<Round> {
    let states = states(plan, store)?;
    let mut submitted = Submitted::load(store, plan)?;
    let queued = submitted.queued(&queue()?);
    let mut round = Round { queued: queued.len(), ..Round::default() };
    let stuck = |s: State| matches!(s, State::Failed | State::Blocked) && !failed_too;
    // What left the queue and left nothing behind was killed.
    let mut doublings: HashMap<usize, u32> = HashMap::new();
    let mut todo: BTreeSet<usize> = BTreeSet::new();
    for (i, state) in states.iter().enumerate().filter(|(i, s)| **s != State::Done && !stuck(**s) && !queued.contains_key(i)) {
        let ready = plan.nodes[i].deps.iter().all(|d| states[*d] == State::Done);
        match (submitted.doublings(i), *state) {
            // It never got so far: what it needs was killed.
            (Some(n), State::Waiting | State::Running | State::Ready) if ready && n >= DOUBLINGS => round.given_up.push(i),
            (Some(n), State::Running | State::Ready) if ready => {
                doublings.insert(i, n + 1);
                todo.insert(i);
            }
            _ => drop(todo.insert(i)),
        }
    }
    // What needs what is given up waits in vain.
    let mut without: BTreeSet<usize> = round.given_up.iter().copied().collect();
    for i in 0..plan.nodes.len() {
        let hopeless = |d: &usize| without.contains(d) || stuck(states[*d]);
        if plan.nodes[i].deps.iter().any(hopeless) {
            without.insert(i);
        }
    }
    todo.retain(|i| !without.contains(i));
    let mut placed: HashMap<usize, (String, usize)> = queued;
    for array in pack(plan, &todo, engine.cpus, engine.pack, &doublings) {
        let dependencies = dependencies(plan, &array, &placed);
        let id = sbatch(plan, store, engine, &array, &dependencies)?;
        for (element, nodes) in array.elements.iter().enumerate() {
            round.nodes += nodes.len();
            placed.extend(nodes.iter().map(|n| (*n, (id.clone(), element))));
        }
        submitted.arrays.push(Job { id: id.clone(), elements: array.elements, doublings: array.doublings });
        // At once: what Slurm has must never be unknown to us.
        submitted.save(store, plan)?;
        round.submitted.push(id);
    }
    Ok(round)
}

/// What became of a plan that nothing is left to be done of.
pub fn outcome(plan: &Plan, store: &Store, round: &Round) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for (i, state) in states(plan, store)?.into_iter().enumerate() {
        match state {
            State::Done => outcome.done += 1,
            State::Failed => outcome.failed.extend(Failure::load(store, &plan.nodes[i].key)?.map(|f| (i, f))),
            _ if round.given_up.contains(&i) => {
                let e =
                    Error::failed("killed again and again, even with more memory").hint("its log is in the store's work folder");
                outcome.failed.push((i, Failure::new(&plan.nodes[i], &e)));
            }
            _ => outcome.blocked += 1,
        }
    }
    Ok(outcome)
}

/// What Slurm must wait for: element by element where they correspond, for all of them otherwise.
fn dependencies(plan: &Plan, array: &Array, placed: &HashMap<usize, (String, usize)>) -> Vec<String> {
    let mut needed: BTreeMap<&str, Vec<BTreeSet<usize>>> = BTreeMap::new();
    for (element, nodes) in array.elements.iter().enumerate() {
        for dep in nodes.iter().flat_map(|n| &plan.nodes[*n].deps).filter(|d| !nodes.contains(d)) {
            if let Some((id, theirs)) = placed.get(dep) {
                let by_element = needed.entry(id).or_insert_with(|| vec![BTreeSet::new(); array.elements.len()]);
                by_element[element].insert(*theirs);
            }
        }
    }
    let mut list = Vec::new();
    for (id, by_element) in needed {
        let corresponds = by_element.iter().enumerate().all(|(i, theirs)| theirs.len() == 1 && theirs.contains(&i));
        let all: BTreeSet<usize> = by_element.iter().flatten().copied().collect();
        match corresponds && by_element.len() > 1 {
            true => list.push(format!("aftercorr:{id}")),
            false => list.extend(all.iter().map(|e| format!("afterok:{id}_{e}"))),
        }
    }
    list
}

/// Submits an array; gives Slurm's number.
fn sbatch(plan: &Plan, store: &Store, engine: &Engine, array: &Array, dependencies: &[String]) -> Result<String> {
    let scale = f64::from(2u32.pow(array.doublings));
    let memory = (array.ram_bytes as f64 * MEMORY_MARGIN).max(LEAST_MEMORY as f64) * scale;
    let minutes = ((array.seconds * TIME_MARGIN * scale / 60.0).ceil() as u64).max(LEAST_MINUTES);
    let log = store.work().join("slurm-%A_%a.log");
    let mut command = Command::new("sbatch");
    command
        .args(["--parsable", "--requeue", "--kill-on-invalid-dep=yes", "--open-mode=append"])
        .arg(format!("--array=0-{}", array.elements.len() - 1))
        .arg(format!("--job-name=bitsmith-{}", array.name))
        .arg(format!("--mem={}M", (memory / (1u64 << 20) as f64).ceil()))
        .arg(format!("--time={minutes}"))
        .arg(format!("--cpus-per-task={}", engine.cpus))
        .arg(format!("--output={}", log.display()));
    if !dependencies.is_empty() {
        command.arg(format!("--dependency={}", dependencies.join(",")));
    }
    command.args(&engine.sbatch).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| absent("sbatch", e))?;
    let script = script(plan, store, engine, array);
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes()).map_err(|e| Error::failed(format!("sbatch does not take the script: {e}")))?;
    }
    let output = child.wait_with_output().map_err(|e| absent("sbatch", e))?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
    if !output.status.success() {
        let why = said(&output.stderr);
        if ["contact", "connect", "timed out"].iter().any(|w| why.contains(w)) {
            return Err(Error::new(ErrorKind::Transient, format!("sbatch does not reach Slurm: {why}")));
        }
        return Err(Error::failed(format!("sbatch refuses {}: {why}", array.name))
            .hint("--sbatch passes arguments on, for example --sbatch=--partition=main; --threads sets processors"));
    }
    // With clusters, `number;cluster`.
    let id = said(&output.stdout).split(';').next().unwrap_or_default().to_string();
    match id.is_empty() || !id.bytes().all(|b| b.is_ascii_digit()) {
        true => Err(Error::failed(format!("sbatch gave no job number: {}", said(&output.stdout)))),
        false => Ok(id),
    }
}

/// The script of an array: which nodes are whose.
fn script(plan: &Plan, store: &Store, engine: &Engine, array: &Array) -> String {
    let mut text = String::from("#!/bin/bash\nnodes=(");
    for nodes in &array.elements {
        let list: Vec<String> = nodes.iter().map(usize::to_string).collect();
        let _ = write!(text, " {}", list.join(","));
    }
    text.push_str(" )\nexec ");
    let words = std::iter::once(engine.program.as_os_str()).chain(engine.flags.iter().map(OsString::as_os_str));
    words.for_each(|w| text.push_str(&format!("{} ", quoted(&w.to_string_lossy()))));
    let threads = engine.cpus;
    let (key, uri) = (&plan.key, quoted(store.uri()));
    let _ =
        writeln!(text, "--threads {threads} task run --plan {key} --index \"${{nodes[$SLURM_ARRAY_TASK_ID]}}\" --store {uri}");
    text
}

/// A word for the shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// What Slurm has of this user's arrays.
pub fn queue() -> Result<Queue> {
    let output =
        Command::new("squeue").args(["--me", "-h", "-r", "-o", "%F|%K|%T|%r"]).output().map_err(|e| absent("squeue", e))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
        return Err(Error::new(ErrorKind::Transient, format!("squeue does not answer: {said}")));
    }
    let mut queue = Queue::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let fields: Vec<&str> = line.split('|').collect();
        if let [id, element, state, reason] = fields[..]
            && let Ok(element) = element.parse()
        {
            queue.insert((id.to_string(), element), (state.to_string(), reason.to_string()));
        }
    }
    Ok(queue)
}

/// How many elements of a plan are in which state, by Slurm's words.
pub fn in_queue(plan: &Plan, store: &Store) -> Result<BTreeMap<String, usize>> {
    let submitted = Submitted::load(store, plan)?;
    let queue = queue()?;
    let ours = |id: &str| submitted.arrays.iter().any(|j| j.id == id);
    let mut counts = BTreeMap::new();
    for ((id, _), (state, _)) in &queue {
        if ours(id) {
            *counts.entry(state.to_lowercase()).or_default() += 1;
        }
    }
    Ok(counts)
}

fn absent(program: &str, e: std::io::Error) -> Error {
    Error::missing(format!("`{program}` cannot be run: {e}"))
        .hint("run this where Slurm's commands are, a login node for example")
}
