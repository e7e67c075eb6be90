//! Calibration windows and other evidence for solvers, from what the user named.

use crate::context::Context;
use crate::opened::Opened;
use bitsmith_calibrate::imatrix::{DEFAULT_CHUNK_SIZE, Imatrix};
use bitsmith_calibrate::{Stats, StatsMeta};
use bitsmith_datasets::{DataSpec, Encoder, Purpose, WindowSet, calibration_windows};
use bitsmith_formats::hash::sha256_file;
use bitsmith_formats::{Error, Result};
use bitsmith_quantize::Method;
use bitsmith_runtime::{ModelSpec, Role, WeightSource};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Windows of calibration text unless told otherwise.
pub const DEFAULT_SAMPLES: usize = 128;
/// Tokens per window unless told otherwise.
pub const DEFAULT_CTX: usize = 512;

/// What the user said about calibration.
#[derive(Debug, Clone)]
pub struct CalibrationOptions {
    /// DATA; the built-in text if a method needs calibration and none is named.
    pub data: Option<DataSpec>,
    /// Statistics gathered earlier.
    pub stats: Option<PathBuf>,
    /// Importance matrices, which are added up.
    pub imatrix: Vec<PathBuf>,
    /// Windows.
    pub samples: usize,
    /// Tokens per window.
    pub ctx: usize,
    /// Every layer sees the inputs that the dense model gives it, instead of those that the quantized layers before it give.
    pub independent: bool,
}

impl Default for CalibrationOptions {
    fn default() -> Self {
        CalibrationOptions {
            data: None,
            stats: None,
            imatrix: Vec::new(),
            samples: DEFAULT_SAMPLES,
            ctx: DEFAULT_CTX,
            independent: false,
        }
    }
}

/// Evidence loaded for a job.
pub enum Loaded {
    /// The method needs none and none was named.
    None,
    /// Statistics of a whole model.
    Stats(Stats),
    /// Importance per tensor.
    Importance(BTreeMap<Role, Vec<f32>>),
    /// Token windows.
    Windows(WindowSet),
}

impl CalibrationOptions {
    /// Loads what `method` will need. The second value describes it for the recipe: everything that can change a result.
    pub fn load(&self, method: &Method, model: &Opened, context: &Context) -> Result<(Loaded, Option<Value>)> {
        let spec = model.checkpoint.spec();
        let named = [self.data.is_some(), self.stats.is_some(), !self.imatrix.is_empty()].iter().filter(|n| **n).count();
        if named > 1 {
            return Err(Error::usage("--calib, --stats and --imatrix exclude each other"));
        }
        if let [first, ..] = &self.imatrix[..] {
            if method.needs_hessian() {
                return Err(Error::usage(format!("method {method} needs more than an importance matrix"))
                    .hint("use --method reference with --imatrix, or give --calib or --stats"));
            }
            let importance = Imatrix::read_all(&self.imatrix, DEFAULT_CHUNK_SIZE)?.importance(spec).map_err(|e| e.file(first))?;
            let hashes =
                self.imatrix.iter().map(|path| sha256_file(path).map(|(sha256, _)| sha256)).collect::<Result<Vec<_>>>()?;
            return Ok((Loaded::Importance(importance), Some(json!({"imatrix_sha256": hashes}))));
        }
        if let Some(path) = &self.stats {
            let stats = Stats::load(path)?;
            self.check_stats(&stats, path, spec, method)?;
            let (meta, sha256) = (&stats.meta, sha256_file(path)?.0);
            let recipe = json!({
                "data": meta.data, "sha256": meta.data_sha256, "samples": meta.samples, "ctx": meta.ctx, "stats_sha256": sha256,
            });
            return Ok((Loaded::Stats(stats), Some(recipe)));
        }
        if self.data.is_none() && !method.needs_calibration() {
            return Ok((Loaded::None, None));
        }
        let windows = self.windows(model)?;
        for note in &windows.notes {
            context.progress.note(note);
        }
        let recipe = json!({
            "data": windows.data, "sha256": windows.sha256, "samples": windows.windows.len(), "ctx": windows.ctx,
            "sequential": self.sequential(method),
        });
        Ok((Loaded::Windows(windows), Some(recipe)))
    }

    /// Sequential mode is for methods that compensate errors; importance is that of the dense model, as llama.cpp's imatrix is.
    pub fn sequential(&self, method: &Method) -> bool {
        !self.independent && (method.solver.needs_hessian() || method.asymmetric())
    }

    /// The token windows, from the data named or the built-in text.
    pub fn windows(&self, model: &Opened) -> Result<WindowSet> {
        let (tokenizer, spec) = (model.text_tokenizer()?, model.checkpoint.spec());
        if self.ctx > spec.context_length {
            return Err(Error::usage(format!(
                "windows of {} tokens exceed the model's context of {}",
                self.ctx, spec.context_length
            ))
            .hint("lower --ctx"));
        }
        let builtin;
        let data = match &self.data {
            Some(data) => data,
            None => {
                builtin = "builtin".parse()?;
                &builtin
            }
        };
        let corpus = data.load(Purpose::Calibration)?;
        let encode = |text: &str| tokenizer.encode(text, false);
        let encoder = Encoder { encode: &encode, bos: tokenizer.bos().filter(|_| tokenizer.adds_bos()) };
        calibration_windows(&corpus, &encoder, self.samples, self.ctx)
    }

    fn check_stats(&self, stats: &Stats, path: &PathBuf, spec: &ModelSpec, method: &Method) -> Result<()> {
        for role in spec.without_mtp().roles() {
            let Some(site) = role.site() else { continue };
            let width = *spec.shape(role.part).last().expect("tensors have dimensions");
            let fits = stats.sites.get(&site).is_some_and(|s| s.width() == width);
            if !fits {
                return Err(Error::corrupt(format!("no statistics of {width} channels at {site}"))
                    .file(path)
                    .tensor(role.to_string())
                    .hint("these statistics belong to another model"));
            }
            if method.needs_hessian() && stats.sites[&site].gram.is_none() {
                return Err(
                    Error::usage(format!("method {method} needs full Hessians, the file holds channel sums only")).file(path)
                );
            }
        }
        Ok(())
    }
}

/// Where statistics came from, for their file.
pub fn stats_meta(model: &str, windows: &WindowSet, peak: f32) -> StatsMeta {
    StatsMeta {
        model: model.to_string(),
        data: windows.data.clone(),
        data_sha256: windows.sha256.clone(),
        samples: windows.windows.len(),
        ctx: windows.ctx,
        peak,
    }
}
