//! How far a plan is, from the records in the store alone.

use super::plan::{Op, Plan};
use super::record::Failure;
use super::store::{Kind, Store};
use bitsmith_formats::Result;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};

/// Failures that a status quotes.
const QUOTED: usize = 20;

/// How a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Its record is there.
    Done,
    /// Somebody works on it.
    Running,
    /// All that it needs is there.
    Ready,
    /// It needs what is not done yet.
    Waiting,
    /// It failed.
    Failed,
    /// It needs what failed.
    Blocked,
}

impl State {
    /// All, in the order in which they are shown.
    pub const ALL: [State; 6] = [State::Done, State::Running, State::Ready, State::Waiting, State::Failed, State::Blocked];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            State::Done => "done",
            State::Running => "running",
            State::Ready => "ready",
            State::Waiting => "waiting",
            State::Failed => "failed",
            State::Blocked => "blocked",
        }
    }
}

/// How far a plan is.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The plan's key.
    pub plan: String,
    /// Number of nodes.
    pub nodes: usize,
    /// Numbers of nodes by state, in the order of [`State::ALL`].
    pub states: Vec<(&'static str, usize)>,
    /// Estimated seconds of one core, of all nodes.
    pub cpu_seconds: f64,
    /// Of those that are not done.
    pub cpu_seconds_left: f64,
    /// By model.
    pub models: Vec<ModelStatus>,
    /// The first failures.
    pub failures: Vec<NodeFailure>,
    /// What a cluster has in its queue, by its own words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<BTreeMap<String, usize>>,
}

/// How far a model is.
#[derive(Debug, Clone, Serialize)]
pub struct ModelStatus {
    /// What its artifacts are named after.
    pub model: String,
    /// Artifacts to be made.
    pub artifacts: usize,
    /// Artifacts that are made.
    pub made: usize,
    /// Nodes that are not done.
    pub left: usize,
    /// Nodes that failed.
    pub failed: usize,
}

/// A failure.
#[derive(Debug, Clone, Serialize)]
pub struct NodeFailure {
    /// The node's number.
    pub index: usize,
    /// What happened.
    #[serde(flatten)]
    pub failure: Failure,
}

/// The state of every node.
pub fn states(plan: &Plan, store: &Store) -> Result<Vec<State>> {
    let (done, failed) = (store.keys(Kind::Record)?, store.keys(Kind::Failure)?);
    let running = running(store);
    let mut states: Vec<State> = Vec::with_capacity(plan.nodes.len());
    for node in &plan.nodes {
        let needs = |of: &[State]| node.deps.iter().any(|d| of.contains(&states[*d]));
        states.push(match () {
            () if done.contains(&node.key) => State::Done,
            () if running.contains(&node.key) => State::Running,
            () if failed.contains(&node.key) => State::Failed,
            () if needs(&[State::Failed, State::Blocked]) => State::Blocked,
            () if node.deps.iter().all(|d| states[*d] == State::Done) => State::Ready,
            () => State::Waiting,
        });
    }
    Ok(states)
}

/// Nodes whose folder somebody holds, as far as this machine sees it.
fn running(store: &Store) -> BTreeSet<String> {
    let entries = std::fs::read_dir(store.work()).into_iter().flatten().filter_map(|e| Some(e.ok()?.path()));
    let held = |path: &std::path::PathBuf| File::open(path).is_ok_and(|f| matches!(f.try_lock(), Err(TryLockError::WouldBlock)));
    let locks = entries.filter(|p| p.extension().is_some_and(|e| e == "lock")).filter(held);
    locks.filter_map(|p| Some(p.file_stem()?.to_str()?.to_string())).collect()
}

/// How far a plan is.
pub fn status(plan: &Plan, store: &Store) -> Result<Status> {
    let states = states(plan, store)?;
    let count = |state: State| states.iter().filter(|s| **s == state).count();
    let mut models: Vec<ModelStatus> =
        plan.models.iter().map(|m| ModelStatus { model: m.name.clone(), artifacts: 0, made: 0, left: 0, failed: 0 }).collect();
    let (mut all, mut left) = (0.0, 0.0);
    let mut failures = Vec::new();
    for (index, (node, state)) in plan.nodes.iter().zip(&states).enumerate() {
        let model = &mut models[node.model];
        let is_done = *state == State::Done;
        if matches!(node.op, Op::Quantize { .. }) {
            model.artifacts += 1;
            model.made += usize::from(is_done);
        }
        model.left += usize::from(!is_done);
        model.failed += usize::from(*state == State::Failed);
        all += node.cost.cpu_seconds;
        left += if is_done { 0.0 } else { node.cost.cpu_seconds };
        if *state == State::Failed && failures.len() < QUOTED {
            failures.extend(Failure::load(store, &node.key)?.map(|failure| NodeFailure { index, failure }));
        }
    }
    Ok(Status {
        plan: plan.key.clone(),
        nodes: plan.nodes.len(),
        states: State::ALL.into_iter().map(|s| (s.name(), count(s))).collect(),
        cpu_seconds: all,
        cpu_seconds_left: left,
        models,
        failures,
        queue: None,
    })
}
