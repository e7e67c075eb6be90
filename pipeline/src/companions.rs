//! What goes beside the text model's tensors: a vision tower's projector file, and the account of tensors that go nowhere.

use crate::context::Context;
use crate::manifest::Companion;
use crate::mtp::Mtp;
use crate::opened::Opened;
use crate::target::Target;
use bitsmith_convert::MmprojPlan;
use bitsmith_formats::Result;
use bitsmith_runtime::WeightSource;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The files beside a job's artifacts. Those of several artifacts in one folder are one.
pub struct Companions<'a> {
    model: &'a Opened,
    context: &'a Context,
    /// Planned for GGUF targets, if the model has a tower that llama.cpp knows.
    mmproj: Option<MmprojPlan<'a>>,
    made: Mutex<BTreeMap<PathBuf, Companion>>,
}

impl<'a> Companions<'a> {
    /// Plans them.
    pub fn new(model: &'a Opened, context: &'a Context) -> Result<Self> {
        // A tower without a form in GGUF is an error of GGUF targets, which are checked before.
        let mmproj = MmprojPlan::new(&model.checkpoint, &model.about).unwrap_or(None);
        Ok(Companions { model, context, mmproj, made: Mutex::default() })
    }

    fn mmproj(&self, target: Target) -> Option<&MmprojPlan<'a>> {
        self.mmproj.as_ref().filter(|_| target.container() == "gguf")
    }

    /// Bytes of tensors that a target has beside the text model's: in the projector file, or in the folder itself.
    pub fn bytes(&self, target: Target) -> Result<u64> {
        if let Some(plan) = self.mmproj(target) {
            return plan.bytes();
        }
        let source = &self.model.checkpoint;
        let mut bytes = 0;
        for tensor in source.tower().into_iter().flat_map(|t| &t.tensors) {
            bytes += 2 * source.tower_info(tensor)?.n_weights() as u64;
        }
        Ok(bytes)
    }

    /// Tensors of the source that are in no file of a target.
    pub fn dropped(&self, target: Target, mtp: Mtp) -> Vec<String> {
        let source = &self.model.checkpoint;
        let left_out = self.mmproj(target).map(|plan| plan.left_out()).unwrap_or_default();
        let mut all = [&source.map().dropped, left_out].concat();
        if mtp == Mtp::Drop {
            let extra = source.map().roles.iter().filter(|(role, _)| role.layer.is_some_and(|l| source.spec().is_extra(l)));
            all.extend(extra.flat_map(|(_, places)| places).map(|p| p.name.clone()));
        }
        all.sort();
        all.dedup();
        all
    }

    /// Says which tensors are dropped.
    pub fn tell_dropped(&self, target: Target, mtp: Mtp) {
        const SHOWN: usize = 4;
        let all = self.dropped(target, mtp);
        if let Some(more) = all.len().checked_sub(1) {
            let names = all.iter().take(SHOWN).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
            let rest =
                if more >= SHOWN { format!(" and {} more, which the manifest names", all.len() - SHOWN) } else { String::new() };
            self.context.progress.note(&format!("{target}: {} tensors of the source are dropped: {names}{rest}", all.len()));
        }
    }

    /// Makes the files that belong to the artifact at `path`, unless another artifact of the job has them already. Their names go on with
    /// `stem`.
    pub fn make(&self, target: Target, path: &Path, stem: &str) -> Result<Vec<Companion>> {
        let Some(plan) = self.mmproj(target) else { return Ok(Vec::new()) };
        let path = path.with_file_name(plan.file_name(stem));
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(companion) = made.get(&path) {
            return Ok(vec![companion.clone()]);
        }
        let companion = Companion::of("mmproj", &plan.write(&path)?)?;
        made.insert(path, companion.clone());
        Ok(vec![companion])
    }
}
