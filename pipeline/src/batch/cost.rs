//! What nodes will cost, from headers and the sizes of texts: rough, but enough to fit work into a machine and to say how far it is.

use super::recipe::{JobRecipe, Measure};
use crate::carry;
use crate::estimate::{Cost, Estimate, OVERHEAD};
use crate::mtp::Mtp;
use crate::opened::Opened;
use crate::quantize::QuantizeOptions;
use crate::target::Target;
use bitsmith_datasets::{DataSpec, Purpose};
use bitsmith_eval::tasks::Task;
use bitsmith_formats::Result;
use bitsmith_quantize::plan::PlanOptions;
use bitsmith_runtime::{ModelSpec, WeightSource};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Bytes of text that make a token, a round figure for prose.
const BYTES_PER_TOKEN: u64 = 4;
/// Tokens of a task's question, and items of a task, in round figures.
const QUESTION: usize = 100;
const ITEMS: usize = 1000;
/// Tokens that a question with its examples has, for estimates of memory.
const PROMPT: usize = 1024;
/// Bytes per second and core that are read and hashed.
const HASH: f64 = 1e9;
/// Bytes per second that a download brings.
const NETWORK: f64 = 50e6;
/// Weights per second and core that the formats' own encoders handle.
const ENCODE: f64 = 20e6;
/// Seconds that opening a model and its tokenizer takes.
const START: f64 = 0.2;
/// Bytes that the stored predictions of a token take, at most.
const STORED: u64 = 512;

/// The cost of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeCost {
    /// Seconds of one core.
    pub cpu_seconds: f64,
    /// Peak memory in bytes.
    pub ram_bytes: u64,
    /// Disk space in bytes, while it runs.
    pub disk_bytes: u64,
}

impl NodeCost {
    fn of(cost: Cost) -> NodeCost {
        NodeCost { cpu_seconds: START + cost.seconds, ram_bytes: cost.ram_bytes, disk_bytes: cost.disk_bytes }
    }
}

/// How much text a job reads, in tokens.
#[derive(Debug, Clone, Copy)]
pub struct Texts {
    /// For calibration.
    pub calibration: usize,
    /// For evaluation.
    pub evaluation: usize,
    /// Of questions, with the examples before them and what is written after.
    pub questions: usize,
    ctx: usize,
}

impl Texts {
    /// Looks at the sizes of a job's texts.
    pub fn of(job: &JobRecipe) -> Result<Texts> {
        let options = &job.options.calibration;
        let wanted = options.samples * options.ctx;
        let builtin: DataSpec = "builtin".parse()?;
        let there = tokens(options.data.as_ref().unwrap_or(&builtin), Purpose::Calibration)?;
        let mut texts = Texts { calibration: wanted.min(there), evaluation: 0, questions: 0, ctx: 0 };
        if let Some(measure) = &job.measure {
            let eval = measure.options()?;
            texts.ctx = eval.ctx.unwrap_or_else(|| eval.style.default_ctx());
            let limit = measure.limit.map_or(usize::MAX, |n| n.saturating_mul(texts.ctx));
            texts.evaluation =
                Measure::data(measure)?.iter().map(|d| Ok(tokens(d, Purpose::Evaluation)?.min(limit))).sum::<Result<_>>()?;
            if let Some(asked) = measure.asks()? {
                let of = |task: &Task| {
                    let written = task.generation.as_ref().map_or(0, |g| asked.max_tokens.unwrap_or(g.max_tokens));
                    QUESTION * (1 + asked.shots.unwrap_or(task.shots)) + written
                };
                texts.questions = asked.tasks.iter().map(of).sum::<usize>() * asked.limit.unwrap_or(ITEMS);
            }
        }
        Ok(texts)
    }

    /// Tokens per window of evaluation text, for a model with a context of this length.
    pub fn window(&self, context_length: usize) -> usize {
        self.ctx.min(context_length).max(1)
    }
}

fn tokens(data: &DataSpec, purpose: Purpose) -> Result<usize> {
    let size = |p: &Path| std::fs::metadata(p).map(|m| m.len()).map_err(|e| bitsmith_formats::Error::read(p, e));
    let files: u64 = data.files().map(size).sum::<Result<u64>>()?;
    let bytes = if files > 0 { files } else { data.load(purpose)?.bytes() };
    Ok((bytes / BYTES_PER_TOKEN) as usize)
}

/// Getting and hashing a model.
pub fn source(bytes: u64, fetched: bool) -> NodeCost {
    let network = if fetched { bytes as f64 / NETWORK } else { 0.0 };
    let disk_bytes = if fetched { bytes } else { 0 };
    NodeCost { cpu_seconds: START + bytes as f64 / HASH + network, ram_bytes: OVERHEAD, disk_bytes }
}

/// Gathering statistics.
pub fn calibrate(spec: &ModelSpec, tokens: usize, ctx: usize, gram: bool) -> NodeCost {
    NodeCost::of(Cost::of_calibration(spec, tokens, ctx, gram, 1))
}

/// Running the source over the evaluation texts.
pub fn reference(spec: &ModelSpec, tokens: usize, window: usize) -> NodeCost {
    let cost = evaluate(spec, tokens, window);
    NodeCost { disk_bytes: STORED * tokens as u64, ..cost }
}

/// Running an artifact over them.
pub fn evaluate(spec: &ModelSpec, tokens: usize, window: usize) -> NodeCost {
    let head = 2.0 * spec.numel(spec.head_part()) as f64 * tokens as f64 / 40e9;
    let cost = NodeCost::of(Cost::of_passes(spec, tokens, tokens, window, 1));
    NodeCost { cpu_seconds: cost.cpu_seconds + head, ..cost }
}

/// Asking a model questions of so many tokens.
pub fn ask(spec: &ModelSpec, tokens: usize) -> NodeCost {
    evaluate(spec, tokens, PROMPT.min(spec.context_length))
}

/// Making an artifact of a model, calibrating on `tokens` tokens. What stands against it shows here.
pub fn quantize(
    model: &Opened,
    source: &dyn WeightSource,
    target: Target,
    options: &QuantizeOptions,
    tokens: usize,
) -> Result<NodeCost> {
    let checkpoint = &model.checkpoint;
    let dense = options.mlx_dtype.filter(|_| target.container() == "mlx" && target.is_quantized());
    let dense = dense.map_or_else(|| carry::dense_type(checkpoint), Ok)?;
    let spec = Mtp::resolve(options.mtp, target, checkpoint.spec())?.whole(source.spec());
    if let Target::Auto(auto) = target
        && !options.auto.planned
    {
        auto.required_budget()?;
    }
    let importance = options.method.solver.name() != "rtn" && (tokens > 0 || options.method.needs_calibration());
    let choice = PlanOptions { importance, ..options.plan.clone() };
    let mut plan = target.plan(&spec, dense, &choice)?;
    carry::settle(&mut plan, |row_len| target.base(dense, row_len), source, &choice)?;
    if !options.allow_requantize {
        let solved = !options.method.transforms.is_empty() || options.method.solver.needs_hessian();
        carry::check(&plan, checkpoint, &target.to_string(), solved)?;
    }
    let estimate = Estimate::new(&target.to_string(), &spec, &plan, &options.method, tokens, 0, 1);
    let encoding = spec.n_weights() as f64 / if target.is_quantized() { ENCODE } else { 10.0 * ENCODE };
    Ok(NodeCost {
        cpu_seconds: START + estimate.seconds + encoding,
        ram_bytes: estimate.ram_bytes,
        disk_bytes: estimate.disk_bytes,
    })
}

/// A share of work that is cut into as many parts. Each of them has the whole model's memory, at most.
pub fn part(whole: &NodeCost, parts: usize) -> NodeCost {
    NodeCost { cpu_seconds: START + whole.cpu_seconds / parts as f64, ..*whole }
}

/// Putting together what the parts of such work gave: as much is read and hashed as it writes.
pub fn gather(whole: &NodeCost) -> NodeCost {
    NodeCost { cpu_seconds: START + 2.0 * whole.disk_bytes as f64 / HASH, ..*whole }
}

/// Writing what stands beside artifacts.
pub fn release() -> NodeCost {
    NodeCost { cpu_seconds: 2.0 * START, ram_bytes: OVERHEAD, disk_bytes: 1 << 20 }
}

/// Uploading.
pub fn publish(bytes: u64) -> NodeCost {
    NodeCost { cpu_seconds: START + bytes as f64 / NETWORK, ram_bytes: OVERHEAD, disk_bytes: 0 }
}
