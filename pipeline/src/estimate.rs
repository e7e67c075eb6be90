//! What a job will cost, from headers alone: `--dry-run`, and the check against `--max-ram` before work starts.

use bitsmith_datasets::EvalWindows;
use bitsmith_eval::perturb::{IN_MEMORY, TOGETHER};
use bitsmith_eval::working_bytes;
use bitsmith_formats::{Error, Result};
use bitsmith_quantize::{Method, Plan, PlanEntry};
use bitsmith_runtime::spec::ModelSpec;
use bitsmith_runtime::sweep::peak_bytes;
use bitsmith_runtime::{Input, Part};
use serde::Serialize;

/// Sustained f32 operations per second and core, a round figure of current machines. Estimates of time are within a factor of two or so.
const FLOPS_PER_CORE: f64 = 40e9;
/// Weights per second and core that scale fitting handles.
const FIT_PER_CORE: f64 = 0.4e6;

/// Bytes that the process takes besides weights, activations and statistics: code, tokenizer, buffers of the matrix products.
pub(crate) const OVERHEAD: u64 = 256 << 20;

/// The estimate for one target.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// `container:encoding`.
    pub target: String,
    /// Bytes of all tensors in the artifact; headers and tokenizer come on top.
    pub bytes: u64,
    /// Bits per weight over all tensors.
    pub bpw: f64,
    /// Peak memory in bytes.
    pub ram_bytes: u64,
    /// Disk space in bytes, the work folder included.
    pub disk_bytes: u64,
    /// Wall time in seconds on this many threads.
    pub seconds: f64,
    /// Tensors that cannot have the wanted format, and what they get.
    pub fallbacks: Vec<String>,
    /// The format of every tensor.
    pub plan: Vec<PlanEntry>,
}

impl Estimate {
    /// The cost of encoding `plan` with `method`, calibrated on `tokens` tokens, and of evaluating it on `eval_tokens`.
    pub fn new(
        target: &str,
        spec: &ModelSpec,
        plan: &Plan,
        method: &Method,
        tokens: usize,
        eval_tokens: usize,
        threads: usize,
    ) -> Estimate {
        let bytes = plan.bytes(spec);
        let n_weights = spec.n_weights() as f64;
        let layer = spec.largest_layer();
        let table = spec.numel(Part::TokenEmbd);
        let widest = widths(spec).into_iter().max().unwrap_or(0);
        let calibrated = method.needs_calibration() && tokens > 0;
        let hessians = if calibrated && method.needs_hessian() { widths(spec).iter().map(|w| w * w).sum::<usize>() } else { 0 };
        // With two streams, both are observed before each kind of matrix: about twice the work. Their cross moments come on top.
        let (streams, passes) = if calibrated && method.asymmetric() { (2, 2.0) } else { (1, 1.0) };
        // Layer and its copy, statistics of one layer, one factorisation in f64 (three matrices), hidden states twice.
        let solving = 8 * layer.max(table)
            + 4 * hessians
            + if hessians > 0 { 24 * widest * widest } else { 0 }
            + if streams > 1 { 4 * widest * widest } else { 0 }
            + streams * 8 * tokens * spec.hidden_size
            // What attention gives in both.
            + if streams > 1 { 8 * tokens * spec.q_width() } else { 0 };
        let evaluating = 4 * layer.max(table) + 8 * eval_tokens * spec.hidden_size;
        let ram_bytes = solving.max(evaluating) as u64 + OVERHEAD;

        let mut flops = 0.0;
        let mut fitted = 0.0;
        if calibrated {
            flops += passes * 2.0 * 2.0 * n_weights * tokens as f64;
            flops += streams as f64 * hessians as f64 * tokens as f64 * spec.n_layers as f64;
        }
        if calibrated && method.solver.needs_hessian() {
            // Error feedback twice, descent, refits and blocks solved anew: about sixteen products of W with H.
            flops += spec
                .roles()
                .iter()
                .filter(|r| r.site().is_some())
                .map(|r| 16.0 * spec.numel(r.part) as f64 * row(spec, r.part) as f64)
                .sum::<f64>();
            fitted += 2.0 * n_weights;
        }
        flops += 2.0 * 2.0 * n_weights * eval_tokens as f64;
        let cores = threads.max(1) as f64;
        let seconds = flops / (FLOPS_PER_CORE * cores) + fitted / (FIT_PER_CORE * cores);
        Estimate {
            target: target.to_string(),
            bytes,
            bpw: bytes as f64 * 8.0 / n_weights,
            ram_bytes,
            disk_bytes: 2 * bytes,
            seconds,
            fallbacks: plan.fallbacks(),
            plan: plan.entries.clone(),
        }
    }

    /// With so many more bytes of tensors that are written as they are.
    pub fn with_more(self, bytes: u64) -> Estimate {
        Estimate { bytes: self.bytes + bytes, disk_bytes: self.disk_bytes + bytes, ..self }
    }

    /// Of a plan that is not made yet, of which no more is known than the bytes it may take, if that.
    pub fn undecided(self, bytes: Option<u64>, n_weights: usize) -> Estimate {
        let bytes = bytes.unwrap_or(self.bytes);
        let bpw = bytes as f64 * 8.0 / n_weights as f64;
        Estimate { bytes, bpw, disk_bytes: 2 * bytes, fallbacks: Vec::new(), plan: Vec::new(), ..self }
    }

    /// Refuses work that needs more memory than allowed.
    pub fn check_ram(&self, max_ram: Option<u64>) -> Result<()> {
        check_ram(&self.target, self.ram_bytes, max_ram)
    }
}

/// The cost of work that makes no artifact.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cost {
    /// Tokens that are run, by all models together.
    pub tokens: usize,
    /// Peak memory in bytes.
    pub ram_bytes: u64,
    /// Disk space in bytes.
    pub disk_bytes: u64,
    /// Wall time in seconds.
    pub seconds: f64,
}

impl Cost {
    /// Gathering statistics of `tokens` tokens in windows of `ctx`, with Gram matrices or channel sums alone.
    pub fn of_calibration(spec: &ModelSpec, tokens: usize, ctx: usize, gram: bool, threads: usize) -> Cost {
        let matrices =
            if gram { spec.n_layers * widths(spec).iter().map(|w| w * w).sum::<usize>() + spec.hidden_size.pow(2) } else { 0 };
        let flops = 2.0 * spec.n_weights() as f64 * tokens as f64 + matrices as f64 * tokens as f64;
        Cost {
            tokens,
            ram_bytes: peak_bytes(spec, tokens, ctx, threads) + 4 * matrices as u64 + OVERHEAD,
            // Lower triangles; channel sums are small beside them.
            disk_bytes: 2 * matrices as u64,
            seconds: flops / (FLOPS_PER_CORE * threads.max(1) as f64),
        }
    }

    /// Pushing `tokens` tokens through a model, in passes over its weights of at most `pass` tokens in texts of at most `longest`.
    pub fn of_passes(spec: &ModelSpec, tokens: usize, pass: usize, longest: usize, threads: usize) -> Cost {
        Cost {
            tokens,
            ram_bytes: peak_bytes(spec, tokens.min(pass), longest, threads) + OVERHEAD,
            disk_bytes: 0,
            seconds: 2.0 * spec.n_weights() as f64 * tokens as f64 / (FLOPS_PER_CORE * threads.max(1) as f64),
        }
    }

    /// One after the other.
    pub fn then(self, next: Cost) -> Cost {
        Cost {
            tokens: self.tokens + next.tokens,
            ram_bytes: self.ram_bytes.max(next.ram_bytes),
            disk_bytes: self.disk_bytes + next.disk_bytes,
            seconds: self.seconds + next.seconds,
        }
    }

    /// Running `models` models over the windows and comparing them.
    pub fn of_evaluation(spec: &ModelSpec, windows: &[EvalWindows], models: usize, threads: usize) -> Cost {
        let tokens = models * windows.iter().map(|w| w.set.n_tokens()).sum::<usize>();
        let flops = 2.0 * spec.n_weights() as f64 * tokens as f64;
        Cost {
            tokens,
            ram_bytes: windows.iter().map(|w| working_bytes(spec, w)).max().unwrap_or(0) + OVERHEAD,
            disk_bytes: 0,
            seconds: flops / (FLOPS_PER_CORE * threads.max(1) as f64),
        }
    }

    /// Measuring `changes` changes of a model, each in a layer of its own, on these windows, with candidates of `bytes` on the disk.
    pub fn of_changes(spec: &ModelSpec, eval: &EvalWindows, changes: usize, bytes: u64, threads: usize) -> Cost {
        let tokens = changes * eval.set.n_tokens();
        // A change in the middle re-runs half of the layers, and all of them the output matrix.
        let weights = (spec.n_weights() + spec.numel(spec.head_part())) as f64 / 2.0;
        let states = 4 * (eval.set.n_tokens() * spec.hidden_size * (spec.n_layers + 1)) as u64;
        let in_memory = states <= IN_MEMORY;
        Cost {
            tokens,
            ram_bytes: working_bytes(spec, eval) + TOGETHER + if in_memory { states } else { 0 } + OVERHEAD,
            disk_bytes: bytes + if in_memory { 0 } else { states },
            seconds: 2.0 * weights * tokens as f64 / (FLOPS_PER_CORE * threads.max(1) as f64),
        }
    }

    /// Refuses work that needs more memory than allowed.
    pub fn check_ram(&self, what: &str, max_ram: Option<u64>) -> Result<()> {
        check_ram(what, self.ram_bytes, max_ram)
    }
}

/// Refuses work that needs more memory than allowed.
pub fn check_ram(what: &str, bytes: u64, max_ram: Option<u64>) -> Result<()> {
    match max_ram {
        Some(max) if bytes > max => {
            let mib = |b: u64| b.div_ceil(1 << 20);
            let message = format!("{what} needs about {} MiB of memory, --max-ram allows {} MiB", mib(bytes), mib(max));
            Err(Error::usage(message).hint("take fewer or shorter windows of text, or allow more memory"))
        }
        _ => Ok(()),
    }
}

fn row(spec: &ModelSpec, part: Part) -> usize {
    spec.shape(part).last().copied().unwrap_or(1)
}

/// Widths of the inputs of a decoder layer.
fn widths(spec: &ModelSpec) -> Vec<usize> {
    let reader = |i: &Input| i.readers().iter().copied().find(|p| p.per_layer() && spec.has(*p));
    Input::ALL.iter().filter_map(reader).map(|part| row(spec, part)).collect()
}
