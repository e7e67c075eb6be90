//! What is fuzzed: for every parser a function that takes bytes from a stranger, seeds to begin with, and perhaps a mutation that knows the
//! structure. The fuzzer runs them, and so does `cargo test`, over the seeds, some mutations of them, and all inputs that ever crashed.

mod configs;
mod data;
mod files;
mod gguf;
mod packed;
mod request;
mod safetensors;
mod statistics;
mod text;
mod torch;

use std::cell::RefCell;
use std::path::{Path, PathBuf};

/// A mutation: buffer, bytes that are used of it, most that may be, a seed; gives how many are used afterwards.
pub type Mutate = fn(&mut [u8], usize, usize, u32) -> usize;

/// A parser to be fuzzed.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    pub seeds: fn() -> Vec<Vec<u8>>,
    pub mutate: Option<Mutate>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "gguf", run: gguf::run, seeds: gguf::seeds, mutate: Some(gguf::mutate) },
    Target { name: "safetensors", run: safetensors::run, seeds: safetensors::seeds, mutate: Some(safetensors::mutate) },
    Target { name: "index", run: safetensors::run_index, seeds: safetensors::index_seeds, mutate: None },
    Target { name: "packed", run: packed::run, seeds: packed::seeds, mutate: None },
    Target { name: "imatrix", run: statistics::run_imatrix, seeds: statistics::imatrix_seeds, mutate: Some(gguf::mutate) },
    Target { name: "stats", run: statistics::run_stats, seeds: statistics::stats_seeds, mutate: None },
    Target { name: "tokenizer", run: text::run_tokenizer, seeds: text::tokenizer_seeds, mutate: None },
    Target { name: "vocabulary", run: gguf::run_vocabulary, seeds: gguf::vocabulary_seeds, mutate: Some(gguf::mutate) },
    Target { name: "template", run: text::run_template, seeds: text::template_seeds, mutate: None },
    Target { name: "torch", run: torch::run, seeds: torch::seeds, mutate: None },
    Target { name: "pickle", run: torch::run_pickle, seeds: torch::pickle_seeds, mutate: None },
    Target { name: "config", run: configs::run, seeds: configs::seeds, mutate: None },
    Target { name: "plan", run: configs::run_plan, seeds: configs::plan_seeds, mutate: None },
    Target { name: "task", run: data::run_task, seeds: data::task_seeds, mutate: None },
    Target { name: "results", run: data::run_results, seeds: data::results_seeds, mutate: None },
    Target { name: "records", run: data::run_records, seeds: data::records_seeds, mutate: None },
    Target { name: "request", run: request::run, seeds: request::seeds, mutate: None },
    Target { name: "reference", run: data::run_reference, seeds: data::reference_seeds, mutate: None },
];

/// The target of this name.
#[allow(dead_code, reason = "tests run all of them")]
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|t| t.name == name)
}

/// Libraries that panic over damage are guarded where they are called; what they say is of no interest.
#[allow(dead_code, reason = "only the fuzzer has a hook that ends the process")]
pub fn quiet_guarded_panics() {
    let abort = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let from = info.location().map_or("", |l| l.file());
        if !["/tokenizers-", "/fancy-regex-", "/parquet-", "/spm_precompiled-"].iter().any(|library| from.contains(library)) {
            abort(info);
        }
    }));
}

/// The source tree's folder of this path.
fn tree(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// A folder in memory, one per thread, for parsers that open files.
fn with_folder<T>(call: impl FnOnce(&Path) -> T) -> T {
    thread_local! {
        static FOLDER: RefCell<Option<tempfile::TempDir>> = const { RefCell::new(None) };
    }
    FOLDER.with_borrow_mut(|folder| {
        let folder = folder.get_or_insert_with(|| {
            let memory = Path::new("/dev/shm");
            let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
            made.expect("a temporary folder can be made")
        });
        call(folder.path())
    })
}

/// Calls with a file of this name that has these bytes.
fn with_file<T>(name: &str, bytes: &[u8], call: impl FnOnce(&Path) -> T) -> T {
    with_folder(|folder| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).expect("a file in a temporary folder can be written");
        call(&path)
    })
}

/// Small pseudo-random numbers (xorshift).
struct Random(u32);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0
    }
    /// Below `n`.
    fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n.max(1)
    }
}
