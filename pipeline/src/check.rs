//! Whether a model can be read, run and written to each target, from its configuration and headers alone.

use crate::artifact;
use crate::carry;
use crate::context::Context;
use crate::model::{Located, ModelRef, resolve};
use crate::mtp::Mtp;
use crate::opened::Opened;
use crate::problem::Problem;
use crate::pull::{Peeked, peek};
use crate::target::Target;
use bitsmith_formats::store::Container;
use bitsmith_formats::{Error, Float, Result};
use bitsmith_quantize::plan::PlanOptions;
use bitsmith_runtime::WeightSource;
use serde::Serialize;
use std::collections::BTreeMap;

/// The verdict on a model.
#[derive(Debug, Clone, Serialize)]
pub struct Checked {
    /// What the user called it, with the commit if it is on the hub.
    pub model: String,
    /// `gguf`, `safetensors`, …; absent if that cannot be told.
    pub container: Option<&'static str>,
    /// Our name of the architecture; absent if the model cannot be read.
    pub architecture: Option<&'static str>,
    /// Weights in all tensors that the architecture uses.
    pub params: Option<u64>,
    /// Bytes of all tensors.
    pub bytes: Option<u64>,
    /// Bits per weight over all tensors.
    pub bpw: Option<f64>,
    /// Why it cannot be read.
    pub read: Option<Problem>,
    /// Why it cannot be run: it cannot be read, or it lacks a tokenizer that we understand.
    pub run: Option<Problem>,
    /// Tensors that are there, but that no artifact carries: stored rope frequencies, a copy of the tied embedding.
    pub dropped: Vec<String>,
    /// Per target.
    pub targets: Vec<TargetCheck>,
    /// Bytes that came over the network, for a model on the hub.
    pub downloaded_bytes: Option<u64>,
    /// Whether the model can be read and run, and written to every target that was asked for.
    pub ok: bool,
}

/// The verdict on one target.
#[derive(Debug, Clone, Serialize)]
pub struct TargetCheck {
    /// `container:encoding`.
    pub target: String,
    /// Whether it can be written.
    pub ok: bool,
    /// Bytes of all tensors; headers and tokenizer come on top.
    pub bytes: Option<u64>,
    /// Bits per weight over all tensors.
    pub bpw: Option<f64>,
    /// Tensors that cannot have the wanted format, and what they get.
    pub fallbacks: Vec<String>,
    /// Why it cannot be written.
    pub problem: Option<Problem>,
}

/// Checks a model against targets; against all of them if none is named, in which case none has to be possible. Of a model on the hub
/// only headers are fetched; `file` chooses among several GGUF files there. An error means that the model could not be looked at.
pub fn check(model: &str, targets: &[Target], file: Option<&str>, context: &Context) -> Result<Checked> {
    let peeked = match model.parse()? {
        ModelRef::Hub(id) if !context.hub.offline => Some(peek(&id, &context.hub, file, context.progress.as_ref())?),
        _ if file.is_some() => return Err(Error::usage("--file chooses among the files of a model on the hub")),
        _ => None,
    };
    let located = match &peeked {
        Some(p) => Located { path: p.path.clone(), name: p.name.clone(), pulled: None },
        None => resolve(model, context)?,
    };
    let asked = !targets.is_empty();
    let all;
    let targets = if asked {
        targets
    } else {
        all = Target::all();
        &all
    };
    let mut checked = Checked {
        model: located.name.clone(),
        container: Container::detect(&located.path).ok().map(Container::name),
        architecture: None,
        params: None,
        bytes: None,
        bpw: None,
        read: None,
        run: None,
        dropped: Vec::new(),
        targets: Vec::new(),
        downloaded_bytes: peeked.as_ref().map(|p| p.downloaded_bytes),
        ok: false,
    };
    let problem = |e: Error| Problem::from(rename(peeked.as_ref(), e));
    match Opened::open(located) {
        Err(e) => {
            let found = problem(e);
            let not = |t: &Target| TargetCheck::impossible(*t, found.clone());
            checked.targets = if asked { targets.iter().map(not).collect() } else { Vec::new() };
            (checked.read, checked.run) = (Some(found.clone()), Some(found));
        }
        Ok(opened) => {
            describe(&opened, &mut checked);
            checked.run = opened.tokenizer().err().map(problem);
            checked.targets = check_targets(&opened, targets, &problem);
        }
    }
    checked.ok = checked.read.is_none() && checked.run.is_none() && (!asked || checked.targets.iter().all(|t| t.ok));
    Ok(checked)
}

fn rename(peeked: Option<&Peeked>, e: Error) -> Error {
    match peeked {
        Some(p) => p.rename(e),
        None => e,
    }
}

fn describe(opened: &Opened, checked: &mut Checked) {
    let checkpoint = &opened.checkpoint;
    let tensors = checkpoint.store().tensors();
    let bytes: u64 = tensors.iter().map(|t| t.n_bytes as u64).sum();
    let stored: u64 = tensors.iter().map(|t| t.n_weights() as u64).sum();
    checked.architecture = Some(checkpoint.spec().arch.name);
    checked.params = Some(checkpoint.spec().n_weights() as u64);
    checked.bytes = Some(bytes);
    checked.bpw = Some(bytes as f64 * 8.0 / stored.max(1) as f64);
    checked.dropped = checkpoint.map().dropped.clone();
}

fn check_targets(opened: &Opened, targets: &[Target], problem: &dyn Fn(Error) -> Problem) -> Vec<TargetCheck> {
    let dense = carry::dense_type(&opened.checkpoint).map_err(problem);
    // Tokenizer and container matter alike to all encodings of a container, and rebuilding a tokenizer takes a while.
    let mut carried: BTreeMap<&str, Result<(), Problem>> = BTreeMap::new();
    let check = |target: &Target| {
        let fits = carried
            .entry(target.container())
            .or_insert_with(|| artifact::check(opened, opened.checkpoint.spec(), *target).map_err(problem));
        match dense.clone().and_then(|dense| fits.clone().map(|()| dense)) {
            Ok(dense) => sized(opened, *target, dense).unwrap_or_else(|e| TargetCheck::impossible(*target, problem(e))),
            Err(found) => TargetCheck::impossible(*target, found),
        }
    };
    targets.iter().map(check).collect()
}

fn sized(opened: &Opened, target: Target, dense: Float) -> Result<TargetCheck> {
    let spec = &Mtp::resolve(None, target, opened.checkpoint.spec())?.whole(opened.checkpoint.spec());
    // As the default method has it.
    let options = PlanOptions { importance: true, ..PlanOptions::default() };
    let mut plan = target.plan(spec, dense, &options)?;
    carry::settle(&mut plan, |row_len| target.base(dense, row_len), &opened.checkpoint, &options)?;
    carry::check(&plan, &opened.checkpoint, &target.to_string(), false)?;
    let bytes = plan.bytes(spec);
    Ok(TargetCheck {
        target: target.to_string(),
        ok: true,
        bytes: Some(bytes),
        bpw: Some(bytes as f64 * 8.0 / spec.n_weights() as f64),
        fallbacks: plan.fallbacks(),
        problem: None,
    })
}

impl TargetCheck {
    fn impossible(target: Target, problem: Problem) -> Self {
        TargetCheck {
            target: target.to_string(),
            ok: false,
            bytes: None,
            bpw: None,
            fallbacks: Vec::new(),
            problem: Some(problem),
        }
    }
}
