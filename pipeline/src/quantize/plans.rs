//! The format of every tensor of every target: presets, overrides, and budgets that are shared out.

use super::Job;
use crate::auto::{self, Allocated, Subject};
use crate::target::Target;
use crate::{artifact, carry, plan_file};
use bitsmith_formats::Result;
use bitsmith_quantize::plan::{Plan, PlanOptions};

impl Job<'_> {
    /// The format of every tensor of a target.
    pub fn plan(&self, target: Target) -> Result<Plan> {
        let chosen = self.allocated(target).map_or(&[][..], |a| &a.overrides);
        let options = PlanOptions {
            importance: self.is_weighted(),
            // What the user names wins.
            overrides: chosen.iter().chain(&self.options.plan.overrides).cloned().collect(),
            ..self.options.plan.clone()
        };
        let (source, dense) = (self.source(), self.dense_for(target));
        let mut plan = target.plan(&self.mtp(target)?.whole(source.spec()), dense, &options)?;
        carry::settle(&mut plan, |row_len| target.base(dense, row_len), source, &options)?;
        if !self.options.allow_requantize {
            carry::check(&plan, &self.model.checkpoint, &target.to_string(), !self.streams())?;
        }
        Ok(plan)
    }

    pub(super) fn allocated(&self, target: Target) -> Option<&Allocated> {
        self.allocated.get()?.iter().find(|(t, _)| *t == target).map(|(_, allocated)| allocated)
    }

    /// Chooses the formats of every `auto` target's tensors.
    pub(super) fn allocate(&self) -> Result<()> {
        let mut all = Vec::new();
        for &target in &self.options.targets {
            let Target::Auto(auto) = target else { continue };
            if self.options.auto.planned {
                auto::check_named(&self.plan(target)?, &self.options.plan)?;
                continue;
            }
            let spec = self.mtp(target)?.whole(self.source().spec());
            let (dense, subject) = (self.dense_for(target), Subject { model: self.model, source: self.source() });
            let overhead = artifact::overhead(self.model, &spec, target, &self.plan(target)?, self.options.shard_size)?;
            let overhead = overhead + self.companions.bytes(target)?;
            all.push((target, auto::plan_for(subject, auto, &spec, dense, overhead, self.options, self.context)?));
        }
        self.allocated.get_or_init(|| all);
        Ok(())
    }

    /// Writes the plan where the user wants it.
    pub(super) fn write_plan(&self, target: Target, plan: &Plan) -> Result<()> {
        let Some(path) = &self.options.auto.plan_out else { return Ok(()) };
        let spec = self.mtp(target)?.whole(self.source().spec());
        let predicted = self.allocated(target).map(|a| (a.predicted, &a.parts));
        plan_file::write(path, &target.to_string(), &spec, plan, predicted)
    }

    /// What is to be said of a plan: its fallbacks, and the divergence that an allocation predicts.
    pub(super) fn plan_notes(&self, target: Target, plan: &Plan) -> Vec<String> {
        let predicted = self.allocated(target).map(|a| {
            let stderr = a.stderr.map_or(String::new(), |stderr| format!(" ± {stderr:.6}"));
            format!("predicted divergence: {:.6}{stderr}, on {}", a.predicted, a.data)
        });
        plan.fallbacks().into_iter().chain(predicted).collect()
    }
}
