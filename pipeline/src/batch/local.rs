//! The engine on this machine: as many nodes at a time as cores, memory and disk allow, each in a process of its own.
//!
//! A process that dies takes nothing with it, and memory that one node took is there for the next. Results do not depend on the
//! number of threads, so that each process gets as many as help the whole.

use super::plan::{Op, Plan};
use super::record::{Failure, Record};
use super::status::{State, states};
use super::store::Store;
use crate::progress::Progress;
use bitsmith_formats::{Error, ErrorKind, Result};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};

/// Attempts at a node whose process is killed.
const ATTEMPTS: u32 = 3;

/// What this machine may spend, and how a task is started.
#[derive(Debug, Clone)]
pub struct Engine {
    /// Cores.
    pub cores: usize,
    /// Memory in bytes; what is free if `None` and the system tells.
    pub max_ram: Option<u64>,
    /// The program.
    pub program: PathBuf,
    /// Its global flags.
    pub flags: Vec<OsString>,
}

/// What became of a plan.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Nodes that were done before.
    pub there: usize,
    /// Nodes that were done now.
    pub done: usize,
    /// Nodes that failed, and why.
    pub failed: Vec<(usize, Failure)>,
    /// Nodes that need what failed.
    pub blocked: usize,
}

/// A process under way.
struct Running {
    nodes: Vec<usize>,
    cores: usize,
    ram: u64,
    disk: u64,
}

/// What is known of the nodes while they are run.
struct Batch<'a> {
    plan: &'a Plan,
    store: &'a Store,
    engine: &'a Engine,
    progress: &'a dyn Progress,
    states: Vec<State>,
    /// Processes that were killed at a node.
    killed: HashMap<usize, u32>,
    running: HashMap<u64, Running>,
    started: u64,
    ram: u64,
    outcome: Outcome,
    sender: Sender<(u64, std::io::Result<ExitStatus>)>,
}

/// Runs all nodes of a plan that are not done.
pub fn run(plan: &Plan, store: &Store, engine: &Engine, progress: &dyn Progress) -> Result<Outcome> {
    let (sender, receiver) = channel();
    let ram = engine.max_ram.or_else(free_ram).unwrap_or(u64::MAX);
    let mut states = states(plan, store)?;
    let there = states.iter().filter(|s| **s == State::Done).count();
    // Nodes that another process holds, and those that failed, are begun anew.
    states.iter_mut().filter(|s| **s != State::Done).for_each(|s| *s = State::Waiting);
    let outcome = Outcome { there, ..Outcome::default() };
    let killed = HashMap::new();
    let running = HashMap::new();
    let mut batch = Batch { plan, store, engine, progress, states, killed, running, started: 0, ram, outcome, sender };
    batch.check_ram()?;
    batch.run(&receiver)?;
    Ok(batch.outcome)
}

impl Batch<'_> {
    /// What can never be run is said before anything is.
    fn check_ram(&self) -> Result<()> {
        let Some(max) = self.engine.max_ram else { return Ok(()) };
        let todo = self.plan.nodes.iter().zip(&self.states).filter(|(_, s)| **s != State::Done);
        let largest = todo.map(|(n, _)| n).max_by_key(|n| n.cost.ram_bytes);
        largest.map_or(Ok(()), |n| crate::estimate::check_ram(&n.label, n.cost.ram_bytes, Some(max)))
    }

    fn run(&mut self, receiver: &Receiver<(u64, std::io::Result<ExitStatus>)>) -> Result<()> {
        // By work, not by nodes, so that a bar moves evenly.
        let total = self.cpu_seconds(|s| s != State::Done).max(f64::MIN_POSITIVE);
        self.progress.start("batch, per cent", 100);
        let mut shown = 0;
        loop {
            self.start_all()?;
            if self.running.is_empty() {
                break;
            }
            let (id, ended) = receiver.recv().map_err(|e| Error::failed(e.to_string()))?;
            let process = self.running.remove(&id).ok_or_else(|| Error::failed("a process ended that was not begun"))?;
            self.end(&process, ended)?;
            let left = self.cpu_seconds(|s| matches!(s, State::Waiting | State::Running));
            let done = (100.0 * (1.0 - left / total)).round() as u64;
            self.progress.advance(done.saturating_sub(shown));
            shown = shown.max(done);
        }
        self.progress.finish();
        self.outcome.blocked = self.states.iter().filter(|s| **s == State::Waiting).count();
        Ok(())
    }

    /// Estimated work of nodes in these states.
    fn cpu_seconds(&self, of: impl Fn(State) -> bool) -> f64 {
        let some = self.plan.nodes.iter().zip(&self.states).filter(|(_, s)| of(**s));
        some.map(|(n, _)| n.cost.cpu_seconds).sum()
    }

    /// Nodes that could start now, in the plan's order, those of one pass together.
    fn ready(&self) -> Vec<Vec<usize>> {
        let nodes = &self.plan.nodes;
        let is_ready =
            |i: &usize| self.states[*i] == State::Waiting && nodes[*i].deps.iter().all(|d| self.states[*d] == State::Done);
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut at: HashMap<(usize, usize), usize> = HashMap::new();
        for i in (0..nodes.len()).filter(is_ready) {
            match nodes[i].pass {
                // One whose process was killed is run by itself.
                Some(pass) if !self.killed.contains_key(&i) => {
                    let group = *at.entry((nodes[i].model, pass)).or_insert_with(|| {
                        groups.push(Vec::new());
                        groups.len() - 1
                    });
                    groups[group].push(i);
                }
                _ => groups.push(vec![i]),
            }
        }
        groups
    }

    /// Starts all that fits.
    fn start_all(&mut self) -> Result<()> {
        let ready = self.ready();
        let mut left = ready.len();
        for nodes in ready {
            let (cores, ram, disk): (usize, u64, u64) =
                self.running.values().fold((0, 0, 0), |(c, r, d), p| (c + p.cores, r.saturating_add(p.ram), d + p.disk));
            let free = self.engine.cores.saturating_sub(cores);
            if free == 0 {
                break;
            }
            let needs = self.ram_of(&nodes);
            let own: u64 = nodes.iter().map(|i| self.plan.nodes[*i].cost.disk_bytes).sum();
            let (ram_free, room) = (self.ram.saturating_sub(ram), self.store.free_bytes());
            let no_room = room.is_some_and(|r| r < own.saturating_add(disk));
            if needs > ram_free || no_room {
                left -= 1;
                if self.running.is_empty() && no_room {
                    let message = format!(
                        "{} needs about {own} bytes of disk, and there are {}",
                        self.plan.nodes[nodes[0]],
                        room.unwrap_or(0)
                    );
                    return Err(Error::new(ErrorKind::Io, message)
                        .file(self.store.work())
                        .hint("make room, or choose another --store"));
                }
                // With nothing else under way the estimate is only that: try it.
                if !self.running.is_empty() {
                    continue;
                }
            }
            // As many threads as are left when everything else that fits has one.
            let beside = (ram_free / needs.max(1)).clamp(1, left.max(1) as u64) as usize;
            let process = Running { cores: free.div_ceil(beside).max(1), ram: needs, disk: own, nodes };
            self.start(process)?;
            left = left.saturating_sub(1);
        }
        Ok(())
    }

    /// Memory of nodes that are run in one process, one after the other or in one pass. Each kill of a process doubles it.
    fn ram_of(&self, nodes: &[usize]) -> u64 {
        let of = |i: &usize| self.plan.nodes[*i].cost.ram_bytes << self.killed.get(i).copied().unwrap_or(0).min(16);
        nodes.iter().map(of).max().unwrap_or(0).min(self.ram)
    }

    fn log(&self, node: usize) -> PathBuf {
        self.store.work().join(format!("{}.log", self.plan.nodes[node].key))
    }

    fn start(&mut self, process: Running) -> Result<()> {
        let path = self.log(process.nodes[0]);
        let log = File::create(&path).map_err(|e| Error::write(&path, e))?;
        let indices: Vec<String> = process.nodes.iter().map(usize::to_string).collect();
        let mut command = Command::new(&self.engine.program);
        command
            .args(&self.engine.flags)
            .args(["--threads", &process.cores.to_string(), "task", "run", "--leash", "--plan", &self.plan.key])
            .args(["--index", &indices.join(","), "--store", self.store.uri()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log);
        let mut child = command.spawn().map_err(|e| Error::read(&self.engine.program, e))?;
        // As long as this end is open, the process runs: it ends with us, however we end.
        let leash = child.stdin.take();
        let (id, sender) = (self.started, self.sender.clone());
        let wait = move || {
            let ended = child.wait();
            drop(leash);
            // Nobody listens any more once the batch has failed.
            let _ = sender.send((id, ended));
        };
        std::thread::Builder::new().name("task".into()).spawn(wait).map_err(|e| Error::failed(e.to_string()))?;
        process.nodes.iter().for_each(|i| self.states[*i] = State::Running);
        self.running.insert(id, process);
        self.started += 1;
        self.progress.file(&self.under_way(), 0, 0);
        Ok(())
    }

    fn under_way(&self) -> String {
        let mut first: Vec<usize> = self.running.values().map(|p| p.nodes[0]).collect();
        first.sort_unstable();
        first.iter().map(|i| self.plan.nodes[*i].label.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// Looks what a process has done.
    fn end(&mut self, process: &Running, ended: std::io::Result<ExitStatus>) -> Result<()> {
        let code = ended.as_ref().ok().and_then(ExitStatus::code);
        for &index in &process.nodes {
            let node = &self.plan.nodes[index];
            if Record::load(self.store, &node.key)?.is_some() {
                self.states[index] = State::Done;
                self.outcome.done += 1;
                if matches!(node.op, Op::Quantize { .. } | Op::Publish { .. }) {
                    self.progress.note(&node.label);
                }
                continue;
            }
            // 137 is a shell's word for a process that was killed.
            let was_killed = code.is_none_or(|c| c == 137);
            let kills = self.killed.entry(index).or_default();
            if was_killed && *kills + 1 < ATTEMPTS {
                *kills += 1;
                self.states[index] = State::Waiting;
                self.progress.warn(&format!("{node}: its process was killed, perhaps for want of memory; again with more"));
                continue;
            }
            let failure = match Failure::load(self.store, &node.key)? {
                Some(failure) if !was_killed => failure,
                _ => self.unrecorded(index, code),
            };
            self.progress.warn(&failure.error().to_string());
            self.states[index] = State::Failed;
            self.outcome.failed.push((index, failure));
        }
        self.progress.file(&self.under_way(), 0, 0);
        Ok(())
    }

    /// Of a process that could not say why it ended.
    fn unrecorded(&self, index: usize, code: Option<i32>) -> Failure {
        let kinds = [ErrorKind::Io, ErrorKind::CannotWrite, ErrorKind::Corrupt, ErrorKind::Missing, ErrorKind::Interrupted];
        let kind = kinds.into_iter().find(|k| Some(i32::from(k.exit_code())) == code).unwrap_or(ErrorKind::Failed);
        let how = code.map_or_else(|| "was killed".into(), |c| format!("ended with exit code {c}"));
        let e = Error::new(kind, format!("its process {how}")).file(self.log(index)).hint("the file says more");
        Failure::new(&self.plan.nodes[index], &e)
    }
}

/// Memory that is free, in bytes, as Linux counts it.
fn free_ram() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
