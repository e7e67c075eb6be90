//! Plans: graphs of nodes, in files and in stores.

use super::builder;
use super::cost::NodeCost;
use super::inputs::{Named, Origin};
use super::recipe::{Measure, Publish, Recipe};
use super::store::{Kind, Store};
use crate::context::Context;
use crate::share::Share;
use bitsmith_formats::hash::sha256_bytes;
use bitsmith_formats::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::path::{Path, PathBuf};

/// Version of plans, records and everything that keys are made of: others are not mixed with.
pub const SCHEMA: u32 = 2;
/// The tool and its version, on which results depend.
pub const TOOL: &str = concat!("bitsmith ", env!("CARGO_PKG_VERSION"));

/// A plan: what is to be done, in an order in which it can be done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Version of this layout.
    pub schema: u32,
    /// The tool that made it, which alone can run it.
    pub tool: String,
    /// Hash of all nodes: equal plans have equal keys.
    pub key: String,
    /// The folder that paths are relative to.
    pub dir: PathBuf,
    /// Where results go.
    pub out: PathBuf,
    /// Seed of everything random.
    pub seed: u64,
    /// The models.
    pub models: Vec<Model>,
    /// The ways of making artifacts of them.
    pub variants: Vec<Variant>,
    /// The nodes. Each comes after those that it needs.
    pub nodes: Vec<Node>,
}

/// A model of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// What opens it.
    pub argument: String,
    /// What its artifacts are named after.
    pub name: String,
    /// The folder of its results.
    pub folder: String,
    /// Where it comes from.
    pub origin: Origin,
}

/// A way of making artifacts: a job of the recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Variant {
    /// What its results are kept apart by, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The flags of `quantize`.
    pub settings: Value,
    /// How artifacts are measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measure: Option<Measure>,
    /// Conditions that artifacts must meet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<String>,
    /// Whether folders are made ready to be published.
    pub release: bool,
    /// Where they are published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish: Option<Publish>,
    /// Files that making artifacts reads, besides the model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<Named>,
    /// Files that measuring reads.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub texts: Vec<Named>,
    /// Files that tasks are made of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub questions: Vec<Named>,
}

/// A piece of work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Hash of everything that decides its result, as far as it is known without reading weights.
    pub key: String,
    /// What it does.
    #[serde(flatten)]
    pub op: Op,
    /// Hash of what decides its result besides what its needs give.
    pub by: String,
    /// Which model.
    pub model: usize,
    /// Which variant; of work that several variants share, the first one.
    pub variant: usize,
    /// Nodes that must be done before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deps: Vec<usize>,
    /// Nodes with the same number read their model in one pass, where they are run together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pass: Option<usize>,
    /// What it will cost.
    pub cost: NodeCost,
    /// For people.
    pub label: String,
}

/// A kind of work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    /// Gets the model and hashes all of it.
    Source,
    /// Runs a share of the text through it, for `Calibrate` to add up.
    Observe {
        /// As for `Calibrate`.
        gram: bool,
        /// Which windows.
        share: Share,
    },
    /// Runs text through it and keeps statistics of what its layers read.
    Calibrate {
        /// Whether of pairs of channels too, which solvers with error feedback need.
        gram: bool,
    },
    /// Keeps what it predicts of the evaluation texts.
    Reference,
    /// Encodes a share of an artifact's layers, for `Quantize` to put together.
    Encode {
        /// `container:encoding`.
        target: String,
        /// Which layers.
        share: Share,
    },
    /// Makes an artifact.
    Quantize {
        /// `container:encoding`.
        target: String,
    },
    /// Measures an artifact on a share of each text, for `Evaluate` to judge.
    Measure {
        /// `container:encoding`.
        target: String,
        /// Which windows.
        share: Share,
    },
    /// Measures an artifact.
    Evaluate {
        /// `container:encoding`.
        target: String,
    },
    /// Scores the source or an artifact on tasks, for `Release` to compare.
    Ask {
        /// `container:encoding`; none for the source.
        target: Option<String>,
        /// Which items.
        share: Share,
    },
    /// Puts everything about a model's artifacts beside them: report, card, checksums.
    Release,
    /// Uploads a folder.
    Publish {
        /// The folder, relative to the model's results.
        folder: String,
        /// `owner/name`.
        repo: String,
    },
}

impl Op {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Source => "source",
            Op::Observe { .. } => "observe",
            Op::Calibrate { .. } => "calibrate",
            Op::Reference => "reference",
            Op::Encode { .. } => "encode",
            Op::Quantize { .. } => "quantize",
            Op::Measure { .. } => "measure",
            Op::Evaluate { .. } => "evaluate",
            Op::Ask { .. } => "ask",
            Op::Release => "release",
            Op::Publish { .. } => "publish",
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

impl Plan {
    /// Plans a recipe.
    pub fn new(recipe: &Recipe, context: &Context) -> Result<Plan> {
        builder::plan(recipe, context)
    }

    /// Reads a plan file.
    pub fn read(path: &Path) -> Result<Plan> {
        let json = std::fs::read(path).map_err(|e| Error::read(path, e))?;
        Plan::parse(&json).map_err(|e| e.file(path))
    }

    /// A plan that was begun in this store.
    pub fn load(store: &Store, key: &str) -> Result<Option<Plan>> {
        store.get(Kind::Plan, key)?.map(|json| Plan::parse(&json)).transpose()
    }

    fn parse(json: &[u8]) -> Result<Plan> {
        let plan: Plan = serde_json::from_slice(json).map_err(|e| Error::corrupt(format!("this is no plan: {e}")))?;
        if plan.schema != SCHEMA || plan.tool != TOOL {
            return Err(Error::unsupported(format!("the plan was made by {}, this is {TOOL}", plan.tool))
                .hint("plan the recipe again: `bitsmith batch RECIPE.toml --plan`"));
        }
        let after = |(i, node): (usize, &Node)| node.deps.iter().all(|d| *d < i) && node.key.len() == 64;
        let fits = |n: &Node| n.model < plan.models.len() && n.variant < plan.variants.len();
        if !plan.nodes.iter().enumerate().all(after) || !plan.nodes.iter().all(fits) {
            return Err(Error::corrupt("the plan's nodes are not in order"));
        }
        Ok(plan)
    }

    /// The plan as a file has it.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        let mut json = serde_json::to_vec_pretty(self).map_err(|e| Error::failed(e.to_string()))?;
        json.push(b'\n');
        Ok(json)
    }

    /// Where the results of a model go, in one variant.
    pub fn folder(&self, node: &Node) -> PathBuf {
        let out = self.variants[node.variant].name.as_ref().map_or(self.out.clone(), |name| self.out.join(name));
        out.join(&self.models[node.model].folder)
    }

    /// The node of a model's content.
    pub fn source(&self, node: usize) -> usize {
        let mut at = node;
        while self.nodes[at].op != Op::Source {
            // Every chain of needs begins at a source.
            at = self.nodes[at].deps[0];
        }
        at
    }
}

/// sha256 of a value's JSON.
pub(super) fn hash(value: &Value) -> String {
    sha256_bytes(value.to_string().as_bytes())
}
