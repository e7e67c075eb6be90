//! Running nodes of a plan: idempotent, and all that an engine ever calls.

use super::inputs::{ReadFile, check_read};
use super::ops;
use super::plan::{Node, Op, Plan, SCHEMA, TOOL, Variant, hash};
use super::recipe::Settings;
use super::record::{Failure, Made, Record};
use super::store::{Bench, Kind, Store};
use crate::context::Context;
use crate::memory;
use crate::model::resolve;
use crate::opened::Opened;
use bitsmith_formats::{Error, ErrorKind, Result};
use serde::Serialize;
use serde_json::json;
use std::time::{Duration, Instant};

/// Attempts at a node that fails for a passing reason.
const ATTEMPTS: u32 = 3;
/// Time before the second attempt; it grows fourfold.
const PAUSE: Duration = Duration::from_secs(1);

/// What runs nodes.
pub struct Runner<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// Where what is made goes.
    pub store: &'a Store,
    /// Reads the flags in the plan.
    pub settings: &'a dyn Settings,
    /// Surroundings; the plan's seed counts.
    pub context: &'a Context,
}

/// How a node ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ran {
    /// Its number.
    pub index: usize,
    /// Its key.
    pub key: String,
    /// What it is.
    pub node: String,
    /// `made`, `there` (it was done before), `known` (its result was made under another key) or `failed`.
    pub state: &'static str,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
}

/// A node at work.
pub(super) struct Work<'a> {
    pub runner: &'a Runner<'a>,
    pub node: &'a Node,
    /// Records of the nodes that it needs, in their order.
    pub needs: Vec<Record>,
    /// Its folder.
    pub bench: Bench,
    /// Key of its result.
    result: String,
}

/// What is to be done about a node.
enum Begun<'a> {
    Over(&'static str),
    Work(Box<Work<'a>>),
}

impl Runner<'_> {
    /// Runs these nodes, each after those that it needs. Nodes that can share a pass over their model do. The failure of one does not
    /// keep others from being run.
    pub fn run(&self, indices: &[usize]) -> Result<Vec<Ran>> {
        let mut waiting = indices.to_vec();
        waiting.sort_unstable();
        waiting.dedup();
        if let Some(wrong) = waiting.iter().find(|i| **i >= self.plan.nodes.len()) {
            return Err(Error::usage(format!("--index {wrong}: the plan has {} nodes", self.plan.nodes.len())));
        }
        let mut ran = Vec::new();
        while let Some(&first) = waiting.first() {
            let of = |i: usize| (self.plan.nodes[i].pass, self.plan.nodes[i].model);
            let together: Vec<usize> = match of(first) {
                (Some(_), _) => waiting.iter().copied().filter(|i| of(*i) == of(first)).collect(),
                (None, _) => vec![first],
            };
            waiting.retain(|i| !together.contains(i));
            ran.extend(self.together(&together)?);
        }
        ran.sort_by_key(|r| r.index);
        Ok(ran)
    }

    fn together(&self, indices: &[usize]) -> Result<Vec<Ran>> {
        let mut ran = Vec::new();
        let mut works = Vec::new();
        for &index in indices {
            match self.begin(index) {
                Ok(Begun::Over(state)) => ran.push(self.ran(index, state, None)),
                Ok(Begun::Work(work)) => works.push((index, *work)),
                Err(e) => ran.push(self.failed(index, &e)?),
            }
        }
        if works.len() > 1 {
            let list: Vec<&Work> = works.iter().map(|(_, w)| w).collect();
            match attempt(|| ops::quantize::run(&list)) {
                Ok(all) => {
                    for ((index, work), (made, seconds, peak)) in works.into_iter().zip(all) {
                        ran.push(self.finish(index, work, made, seconds, peak)?);
                    }
                    return Ok(ran);
                }
                // One of them may have spoilt it for the others.
                Err(e) => self.context.progress.warn(&format!("{e}; one after the other, then")),
            }
        }
        for (index, work) in works {
            match attempt(|| one(&work)) {
                Ok((made, seconds, peak)) => ran.push(self.finish(index, work, made, seconds, peak)?),
                Err(e) => ran.push(self.failed(index, &e)?),
            }
        }
        Ok(ran)
    }

    /// Looks whether anything is to be done, and whether it can be.
    fn begin(&self, index: usize) -> Result<Begun<'_>> {
        let node = &self.plan.nodes[index];
        if Record::load(self.store, &node.key)?.is_some() {
            return Ok(Begun::Over("there"));
        }
        let mut needs = Vec::new();
        for &dep in &node.deps {
            let need = &self.plan.nodes[dep];
            needs.push(Record::load(self.store, &need.key)?.ok_or_else(|| {
                Error::missing(format!("`{need}`, which it needs, is not done")).hint(format!("run node {dep} first"))
            })?);
        }
        let contents: Vec<&str> = needs.iter().map(|n| n.content.as_str()).collect();
        let result = hash(&json!([SCHEMA, TOOL, node.op.name(), node.by, contents]));
        // A source is what it looks like until it is read, and an upload is not undone by the store.
        let made_anew = matches!(node.op, Op::Source | Op::Publish { .. });
        if let Some(known) = Record::known(self.store, &result)?.filter(|_| !made_anew) {
            Record { key: node.key.clone(), node: node.to_string(), ..known }.save(self.store)?;
            return Ok(Begun::Over("known"));
        }
        self.store.remove(Kind::Failure, &node.key)?;
        let bench = self.store.bench(&node.key)?;
        Ok(Begun::Work(Box::new(Work { runner: self, node, needs, bench, result })))
    }

    fn finish(&self, index: usize, work: Work<'_>, made: Made, seconds: f64, peak: u64) -> Result<Ran> {
        Record::new(work.node, work.result, made, seconds, peak).save(self.store)?;
        work.bench.clear()?;
        Ok(self.ran(index, "made", None))
    }

    fn failed(&self, index: usize, e: &Error) -> Result<Ran> {
        let node = &self.plan.nodes[index];
        let failure = Failure::new(node, e);
        // Where the disk is full, there may be no room for this either: the exit code says it.
        if let Err(e) = failure.save(self.store, &node.key) {
            self.context.progress.warn(&format!("the failure is not recorded: {e}"));
        }
        Ok(self.ran(index, "failed", Some(failure)))
    }

    fn ran(&self, index: usize, state: &'static str, error: Option<Failure>) -> Ran {
        let node = &self.plan.nodes[index];
        Ran { index, key: node.key.clone(), node: node.to_string(), state, error }
    }
}

/// Tries again what may succeed another time.
fn attempt<T>(work: impl Fn() -> Result<T>) -> Result<T> {
    let mut pause = PAUSE;
    for _ in 1..ATTEMPTS {
        match work() {
            Err(e) if e.kind == ErrorKind::Transient => std::thread::sleep(pause),
            other => return other,
        }
        pause *= 4;
    }
    work()
}

fn one(work: &Work<'_>) -> Result<(Made, f64, u64)> {
    let start = Instant::now();
    memory::reset_peak();
    let made = match &work.node.op {
        Op::Source => ops::source::run(work)?,
        Op::Observe { gram, share } => ops::calibrate::observe(work, *gram, *share)?,
        Op::Calibrate { gram } => ops::calibrate::run(work, *gram)?,
        Op::Encode { target, share } => ops::encode::run(work, target, *share)?,
        Op::Reference => ops::reference::run(work)?,
        Op::Quantize { .. } => {
            let all = ops::quantize::run(&[work])?;
            return all.into_iter().next().ok_or_else(|| Error::failed("nothing was made"));
        }
        Op::Measure { share, .. } => ops::measure::run(work, *share)?,
        Op::Evaluate { .. } => ops::evaluate::run(work)?,
        Op::Ask { target, share } => ops::ask::run(work, target.is_some(), *share)?,
        Op::Release => ops::release::run(work)?,
        Op::Publish { folder, repo } => ops::publish::run(work, folder, repo)?,
    };
    Ok((made, start.elapsed().as_secs_f64(), memory::peak_bytes()))
}

impl<'a> Work<'a> {
    /// The variant that the node is of.
    pub fn variant(&self) -> &'a Variant {
        &self.runner.plan.variants[self.node.variant]
    }

    pub fn context(&self) -> &'a Context {
        self.runner.context
    }

    pub fn store(&self) -> &'a Store {
        self.runner.store
    }

    /// The number of the node among all.
    fn index(&self) -> usize {
        self.runner.plan.nodes.iter().position(|n| n.key == self.node.key).expect("a node of the plan")
    }

    /// Files of the source, as they were read.
    pub fn inputs(&self) -> Result<Vec<ReadFile>> {
        let source = &self.runner.plan.nodes[self.runner.plan.source(self.index())];
        let record = Record::load(self.store(), &source.key)?;
        record.ok_or_else(|| Error::missing(format!("`{source}` is not done")))?.detail("inputs")
    }

    /// The source, which is still what was read.
    pub fn source(&self) -> Result<Opened> {
        let model = &self.runner.plan.models[self.node.model];
        let located = resolve(&model.argument, self.context())?;
        check_read(&located.path, &self.inputs()?)?;
        let mut opened = Opened::open(located)?;
        self.runner.settings.describe(&self.variant().settings, &mut opened)?;
        Ok(opened)
    }

    /// Whether the source is still the same after the work.
    pub fn check_source(&self, model: &Opened) -> Result<()> {
        check_read(model.checkpoint.path(), &self.inputs()?)
    }

    /// The record that a kind of need left, if the node has one.
    pub fn need(&self, of: impl Fn(&Op) -> bool) -> Option<&Record> {
        let at = self.node.deps.iter().position(|d| of(&self.runner.plan.nodes[*d].op))?;
        Some(&self.needs[at])
    }

    /// The records that a kind of need left, in the plan's order.
    pub fn needs(&self, of: impl Fn(&Op) -> bool) -> impl Iterator<Item = &Record> {
        let deps = self.node.deps.iter().zip(&self.needs);
        deps.filter(move |(d, _)| of(&self.runner.plan.nodes[**d].op)).map(|(_, record)| record)
    }
}
