//! The command line. Each command's own arguments stand in its file under `commands`.

use crate::commands::{
    archs, batch, calibrate, check, compare, completions, convert, datasets, doctor, embed, eval, generate, imatrix, inspect,
    logits, man, map, methods, publish, pull, quantize, reproduce, run, serve, targets, task, tasks, tokenize, verify,
};
use bitsmith_formats::{Error, Result};
use bitsmith_pipeline::context::parse_size;
use bitsmith_runtime::{CacheType, ComputeMode, Device};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  bitsmith                          the whole job on the built-in demo model
  bitsmith run Qwen/Qwen2.5-0.5B --to gguf:q4_k_m,mlx:4bit
  bitsmith quantize ./model --to gguf:q4_k_m -o model-q4_k_m.gguf
  bitsmith inspect model.gguf --tensors

A MODEL is a hub id (org/name[@revision]), a checkpoint folder, a .gguf file, or `demo`.
`bitsmith COMMAND --help` explains a command.";

/// Turns checkpoints into quantized models, and shows where the quality went.
#[derive(Debug, Parser)]
#[command(name = "bitsmith", version, after_help = EXAMPLES, max_term_width = 120, disable_help_subcommand = true, args_override_self = true)]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do; `run` on the demo model if nothing is given.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Flags of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Print one JSON document on standard output; everything for people goes to standard error.
    #[arg(long, global = true)]
    pub json: bool,
    /// How messages on standard error look.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// Say more.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Say less: warnings and errors only; twice: errors only.
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "verbose")]
    pub quiet: u8,
    /// Threads to use [default: all cores].
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,
    /// Refuse jobs that are estimated to need more memory, for example 8GiB.
    #[arg(long, global = true, value_name = "SIZE", value_parser = size)]
    pub max_ram: Option<u64>,
    /// Where downloads and other reusable files go [default: the hub's cache and ~/.cache/bitsmith].
    #[arg(long, global = true, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Use no network: models come from the cache only.
    #[arg(long, global = true)]
    pub offline: bool,
    /// Where models run and solvers multiply: cpu, cuda, cuda:N or metal, if this build has them.
    #[arg(long, global = true, value_name = "DEVICE", default_value = "cpu")]
    pub device: String,
    /// Whether to colour messages. NO_COLOR counts as `never` unless this is given.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    pub color: ColorWhen,
    /// Seed of everything random.
    #[arg(long, global = true, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// How messages look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people, with progress bars on a terminal.
    #[default]
    Text,
    /// One JSON object per line.
    Jsonl,
}

/// When to colour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ColorWhen {
    /// On a terminal.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Global {
    /// Above 0: say more; below: say less.
    pub fn verbosity(&self) -> i16 {
        i16::from(self.verbose) - i16::from(self.quiet)
    }

    /// Starts the thread pool that everything shares.
    pub fn start_threads(&self) -> Result<()> {
        let from_env = || std::env::var("RAYON_NUM_THREADS").ok()?.parse().ok().filter(|n| *n > 0);
        let all = || std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads = self.threads.map(|n| n as usize).or_else(from_env).unwrap_or_else(all);
        limit_tensor_library(threads);
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build_global()
            .map_err(|e| Error::failed(format!("cannot start {threads} threads: {e}")))
    }
}

/// The tensor library sizes its work by this variable; without it, it counts the processors anew for every matrix product.
#[expect(unsafe_code, reason = "no safe way to tell the tensor library exists")]
fn limit_tensor_library(threads: usize) {
    // SAFETY: called before any other thread is started, so nobody reads the environment at the same time.
    unsafe { std::env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
}

/// A size for clap.
pub fn size(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|e| e.to_string())
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The whole job: pull, calibrate, quantize, write, load back, measure, report
    Run(Box<run::Arguments>),
    /// Make quantized artifacts of a model, one per target
    Quantize(Box<quantize::Arguments>),
    /// Change the container or the floating-point type; nothing is calibrated
    Convert(convert::Arguments),
    /// Gather activation statistics, for reuse and as llama.cpp's imatrix
    Calibrate(calibrate::Arguments),
    /// Measure perplexity, KL divergence and tasks
    Eval(Box<eval::Arguments>),
    /// Show where quality goes: what quantizing each tensor alone costs, by format and domain
    Map(map::Arguments),
    /// Put results side by side: tables, paired tests, the Pareto front
    Compare(compare::Arguments),
    /// Continue a text
    Generate(generate::Arguments),
    /// Serve a model over HTTP, as OpenAI's API
    Serve(serve::Arguments),
    /// Describe a model: architecture, tensors, types, bits per weight, metadata
    Inspect(inspect::Arguments),
    /// Say from headers alone, in seconds, whether a model can be read, run and written to each target
    Check(check::Arguments),
    /// Prove an artifact sound: structure, checksums, finite values, error against its source
    Verify(verify::Arguments),
    /// Many models and targets from a recipe: here, or on a cluster
    Batch(Box<batch::Arguments>),
    /// Run single nodes of a batch's plan: what engines call
    Task(task::Arguments),
    /// Make a release's artifacts again, and compare them with what it records
    Reproduce(reproduce::Arguments),
    /// Find known faults of GGUF files and checkpoint folders, and mend those of the metadata
    Doctor(doctor::Arguments),
    /// Show what importance matrices cover; merge and convert them
    Imatrix(imatrix::Arguments),
    /// Download and verify a checkpoint
    Pull(pull::Arguments),
    /// Upload a release to the hub
    Publish(publish::Arguments),
    /// Turn text into token ids
    Tokenize(tokenize::Arguments),
    /// Print next-token distributions
    Logits(logits::Arguments),
    /// Print hidden states and, of encoders, embeddings of texts
    #[command(hide = true)]
    Embed(embed::Arguments),
    /// List the targets
    Targets(targets::Arguments),
    /// List the methods: transforms and solvers
    Methods(methods::Arguments),
    /// List the datasets
    Datasets(datasets::Arguments),
    /// List the tasks
    Tasks(tasks::Arguments),
    /// List the architectures
    Archs(archs::Arguments),
    /// Print a completion script for a shell
    Completions(completions::Arguments),
    /// Print manual pages
    Man(man::Arguments),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("bitsmith").chain(line.split_whitespace()))
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_a_help_with_an_example() {
        for command in Cli::command().get_subcommands() {
            let help = command.clone().render_long_help().to_string();
            assert!(help.contains("Example"), "{}", command.get_name());
            assert!(help.contains(&format!("bitsmith {}", command.get_name())), "{}", command.get_name());
        }
    }

    #[test]
    fn global_flags_stand_anywhere() {
        for line in ["--json --threads 2 targets", "targets --json --threads 2"] {
            let cli = parse(line).unwrap();
            assert!(cli.global.json);
            assert_eq!(cli.global.threads, Some(2));
        }
        let cli = parse("inspect m --max-ram 2GiB --seed 7 -vv").unwrap();
        assert_eq!((cli.global.max_ram, cli.global.seed, cli.global.verbosity()), (Some(2 << 30), 7, 2));
        assert_eq!(parse("-qq targets").unwrap().global.verbosity(), -2);
        for bad in
            ["--threads 0 targets", "--max-ram lots targets", "-v -q targets", "--color pink targets", "frobnicate", "pull"]
        {
            assert_eq!(parse(bad).unwrap_err().exit_code(), 2, "{bad}");
        }
    }

    #[test]
    fn no_arguments_is_the_demo_run() {
        assert!(parse("").unwrap().command.is_none());
        let Some(Command::Run(args)) = parse("run").unwrap().command else { panic!("run") };
        assert_eq!(*args, run::Arguments::default());
    }

    #[test]
    fn products_on_devices() {
        let cpu = |given| Compute::mode(given, Compute::Int8, &Device::Cpu).unwrap();
        assert_eq!((cpu(None), cpu(Some(Compute::F32))), (ComputeMode::Int8, ComputeMode::F32));
    }
}

/// How matrix products are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Compute {
    /// f32 activations times decoded weights
    F32,
    /// Activations rounded to 8 bits in blocks, as llama.cpp rounds them
    Int8,
}

impl Compute {
    /// The mode that was asked for, or the default; on other devices than the CPU there is only f32.
    pub fn mode(given: Option<Compute>, default: Compute, device: &Device) -> Result<ComputeMode> {
        match (given, device.is_cpu()) {
            (Some(Compute::Int8), false) => {
                Err(Error::unsupported("products with 8-bit activations are computed on the CPU only")
                    .hint("use --compute f32 or --device cpu"))
            }
            (_, false) => Ok(ComputeMode::F32),
            (given, true) => Ok(match given.unwrap_or(default) {
                Compute::F32 => ComputeMode::F32,
                Compute::Int8 => ComputeMode::Int8,
            }),
        }
    }
}

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Kv {
    /// Exact
    #[default]
    F32,
    /// Half precision: 16 bits per value
    F16,
    /// ggml's blocks of 32, 8.5 bits per value; for heads that 32 divides
    #[value(name = "q8_0")]
    Q8_0,
    /// ggml's blocks of 32, 4.5 bits per value; for heads that 32 divides
    #[value(name = "q4_0")]
    Q4_0,
    /// e4m3 with a scale per head and token: 8.1 to 8.5 bits per value
    Fp8,
}

impl From<Kv> for CacheType {
    fn from(kv: Kv) -> Self {
        match kv {
            Kv::F32 => CacheType::F32,
            Kv::F16 => CacheType::F16,
            Kv::Q8_0 => CacheType::Q8_0,
            Kv::Q4_0 => CacheType::Q4_0,
            Kv::Fp8 => CacheType::Fp8,
        }
    }
}
