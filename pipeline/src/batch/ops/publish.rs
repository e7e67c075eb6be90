//! Uploads one folder of a model's results, if all gates held.

use super::super::record::{Made, Record};
use super::super::task::Work;
use crate::batch::plan::Op;
use crate::publish::{PublishOptions, publish};
use bitsmith_eval::GateOutcome;
use bitsmith_formats::{Error, ErrorKind, Result};
use serde_json::json;

pub fn run(work: &Work<'_>, folder: &str, repo: &str) -> Result<Made> {
    let (plan, store) = (work.runner.plan, work.store());
    let (Some(release), Some(publishing)) = (work.need(|op| matches!(op, Op::Release)), &work.variant().publish) else {
        return Err(Error::failed("the plan does not say what to publish"));
    };
    let gates: Vec<(String, GateOutcome)> = release.detail("gates")?;
    if let Some((target, gate)) = gates.iter().find(|(_, g)| !g.held) {
        let message = format!("{repo} is not published: gate `{}` does not hold for {target}", gate.gate);
        return Err(Error::new(ErrorKind::Gate, message));
    }
    let dir = work.bench.dir.join("release");
    let mut records = vec![release.clone()];
    for need in &plan.nodes[work.node.deps[0]].deps {
        if matches!(plan.nodes[*need].op, Op::Quantize { .. }) {
            records.extend(Record::load(store, &plan.nodes[*need].key)?);
        }
    }
    // What SHA256SUMS does not list is not uploaded; other artifacts' folders need not even be here.
    let inside = |name: &str| folder.is_empty() || name.starts_with(&format!("{folder}/"));
    for output in records.iter().flat_map(|r| &r.outputs).filter(|o| inside(&o.name)) {
        let path = dir.join(&output.name);
        let _ = std::fs::remove_file(&path);
        store.fetch(&output.sha256, &path)?;
    }
    let options = PublishOptions {
        hub: work.context().hub.clone(),
        repo: repo.to_string(),
        private: publishing.private,
        dry_run: false,
        progress: work.context().progress.clone(),
    };
    let published = publish(&dir.join(folder), &options)?;
    Ok(Made { outputs: Vec::new(), content: None, details: json!({ "published": published }) })
}
