//! All targets in one pass over the source, where every tensor can be encoded by itself.

use super::{Artifact, Job, Work};
use crate::artifact;
use crate::calibration::Loaded;
use crate::encode::importance;
use crate::manifest::{Manifest, hash_inputs};
use crate::spool::Spool;
use crate::{memory, stream};
use bitsmith_formats::Result;
use bitsmith_runtime::{Role, WeightSource};
use std::time::Instant;

impl Job<'_> {
    /// Whether every tensor can be encoded by itself, as soon as it is read.
    pub(super) fn streams(&self) -> bool {
        let method = &self.options.method;
        self.options.encoded.is_none()
            && method.transforms.is_empty()
            && !method.solver.needs_hessian()
            && !matches!(self.evidence, Loaded::Windows(_))
    }

    /// All targets in one pass over the source.
    pub(super) fn stream(&self, works: &[Work<'_>]) -> Result<Vec<Artifact>> {
        let start = Instant::now();
        memory::reset_peak();
        let model = self.model.checkpoint.path();
        // Hashing the source means reading it: beforehand only where an artifact may turn out to be finished, and otherwise beside
        // the pass that reads it anyway.
        let known = match works.iter().any(|w| Manifest::load(&w.path).is_some()) {
            true => Some(hash_inputs(model)?),
            false => None,
        };
        let mut finished: Vec<Option<Artifact>> = Vec::new();
        for work in works {
            finished.push(match &known {
                Some(inputs) => self.reused(work, &self.recipe(work, inputs)?)?,
                None => None,
            });
        }
        let todo: Vec<&Work> = works.iter().zip(&finished).filter(|(_, f)| f.is_none()).map(|(w, _)| w).collect();
        if todo.is_empty() {
            return Ok(finished.into_iter().flatten().collect());
        }
        let mut outputs = Vec::new();
        for work in &todo {
            for line in work.plan.fallbacks() {
                self.context.progress.warn(&format!("{}: {line}", work.target));
            }
            for (plan, writer) in self.writers(work)? {
                let scales = stream::scales(&self.model.checkpoint, plan, self.context)?;
                outputs.push(stream::Output { plan, scales, writer, allow_requantize: self.options.allow_requantize });
            }
        }
        let (inputs, passed) = std::thread::scope(|scope| {
            let hashing = scope.spawn(|| known.map_or_else(|| hash_inputs(model), Ok));
            let passed = stream::run(&self.model.checkpoint, &outputs, &self.given_importance(), self.context);
            (hashing.join().expect("hashing does not panic"), passed)
        });
        let accounts = passed?;
        let inputs = inputs?;
        let mut made = Vec::new();
        let mut written = outputs.into_iter().zip(accounts);
        for work in &todo {
            let mut notes = self.plan_notes(work.target, work.plan);
            let mut finish = || -> Result<()> {
                for (output, account) in written.by_ref().take(1 + usize::from(work.beside.is_some())) {
                    output.writer.finish()?;
                    notes.extend(self.tell(work.target, &account));
                }
                Ok(())
            };
            let recipe = self.recipe(work, &inputs)?;
            // A run that is killed before the manifest is there leaves a folder, of which only this says that it may be replaced.
            let claim = Spool::open(&artifact::work_folder(&work.path), &recipe.key()?)?;
            if let Err(e) = finish() {
                claim.remove()?;
                return Err(e);
            }
            made.push(self.record(work, recipe, start, notes)?);
            claim.remove()?;
        }
        let mut made = made.into_iter();
        Ok(finished.into_iter().filter_map(|f| f.or_else(|| made.next())).collect())
    }

    /// Importance that was given, if the solver weighs by it.
    pub(super) fn given_importance(&self) -> stream::Importance {
        let roles = self.model.checkpoint.spec().roles();
        match &self.evidence {
            _ if self.options.method.solver.name() == "rtn" => stream::Importance::new(),
            Loaded::Importance(map) => map.clone(),
            Loaded::Stats(stats) => {
                let spec = self.model.checkpoint.spec();
                let of = |role: Role| Some((role, importance(stats.sites.get(&role.site()?)?, spec, role.part)));
                roles.into_iter().filter_map(of).collect()
            }
            Loaded::None | Loaded::Windows(_) => stream::Importance::new(),
        }
    }
}
