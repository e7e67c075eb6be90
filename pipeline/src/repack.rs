//! `gguf:keep`: a GGUF's tensors and metadata as they are, in one file or as a split set.
//!
//! Nothing is decoded, so that this works for any architecture and any tensor type; memory does not grow with the model.

use crate::artifact::refuse_source;
use crate::context::Context;
use crate::estimate::{Estimate, OVERHEAD};
use crate::manifest::hash_artifact;
use crate::memory;
use crate::quantize::Artifact;
use bitsmith_formats::gguf::{GgufSetWriter, GgufStore, SPLIT_KEYS, SetPlan, TensorPlan, set_paths};
use bitsmith_formats::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The target's name.
pub const KEEP: &str = "gguf:keep";

/// Bytes per second that a disk copies, for estimates.
const COPIED_PER_SECOND: f64 = 5e8;
/// Bytes that are copied at a time.
const CHUNK: usize = 8 << 20;

/// A copy of a GGUF that is to be made.
pub struct Repack {
    store: GgufStore,
    plan: SetPlan,
    /// What the copy is called.
    path: PathBuf,
}

impl Repack {
    /// Plans a copy of the file or set at `source` in files of at most `max_bytes` of tensor data. `out` is the copy's name, or, if
    /// it does not end in `.gguf`, the folder for a copy of the same name.
    pub fn new(source: &Path, out: &Path, max_bytes: Option<u64>) -> Result<Self> {
        if !source.is_file() {
            return Err(Error::unsupported(format!("{KEEP} copies GGUF files, and this is none")).file(source));
        }
        let store = GgufStore::open(source)?;
        let mut metadata = store.metadata().clone();
        SPLIT_KEYS.iter().for_each(|key| drop(metadata.remove(key)));
        let plans = store.stored().map(|t| TensorPlan::of_type(&t.entry.name, t.entry.ty, &t.entry.shape));
        let plan = SetPlan::new(&metadata, plans.collect::<Result<_>>().map_err(|e| e.file(source))?, max_bytes)?;
        let path = match out.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            true => out.to_path_buf(),
            false => out.join(whole_name(source)),
        };
        Ok(Repack { store, plan, path })
    }

    fn bytes(&self) -> Result<u64> {
        Ok(self.plan.bytes()?.iter().sum())
    }

    fn bpw(&self) -> f64 {
        let (bytes, weights) =
            self.store.stored().fold((0, 0), |(b, w), t| (b + t.bytes.len(), w + t.entry.shape.iter().product::<usize>()));
        bytes as f64 * 8.0 / weights.max(1) as f64
    }

    /// What the copy will cost.
    pub fn estimate(&self) -> Result<Estimate> {
        let bytes = self.bytes()?;
        Ok(Estimate {
            target: KEEP.into(),
            bytes,
            bpw: self.bpw(),
            ram_bytes: OVERHEAD,
            disk_bytes: bytes,
            seconds: bytes as f64 / COPIED_PER_SECOND,
            fallbacks: Vec::new(),
            plan: Vec::new(),
        })
    }

    /// Writes the copy.
    pub fn run(self, context: &Context) -> Result<Artifact> {
        let start = Instant::now();
        memory::reset_peak();
        let (bytes, bpw) = (self.bytes()?, self.bpw());
        let source: Vec<PathBuf> = self.store.files().map(Path::to_path_buf).collect();
        refuse_source(&self.plan.paths(&self.path), &source)?;
        if let Some(parent) = self.path.parent().filter(|p| !p.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent).map_err(|e| Error::write(parent, e))?;
        }
        let writer = GgufSetWriter::create(&self.path, self.plan)?;
        context.progress.start("copy", self.store.stored().count() as u64);
        for tensor in self.store.stored() {
            for (i, chunk) in tensor.bytes.chunks(CHUNK).enumerate() {
                writer.write_at(&tensor.entry.name, (i * CHUNK) as u64, chunk)?;
            }
            context.progress.advance(1);
        }
        let path = writer.finish()?.remove(0);
        context.progress.finish();
        Ok(Artifact {
            target: KEEP.into(),
            bytes,
            sha256: hash_artifact(&path)?.0,
            bpw,
            seconds: start.elapsed().as_secs_f64(),
            peak_rss_bytes: memory::peak_bytes(),
            method: "copy".into(),
            reused: false,
            notes: Vec::new(),
            companions: Vec::new(),
            dropped: Vec::new(),
            path,
        })
    }
}

/// The name of a file, without the number if it is the first of a set.
fn whole_name(source: &Path) -> String {
    let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match set_paths(source).len() {
        1 => name,
        n => name.replace(&format!("-00001-of-{n:05}.gguf"), ".gguf"),
    }
}
