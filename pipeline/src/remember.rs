//! Evaluations that were done before, by the content of everything that decides a result.
//!
//! They are in a database in the cache folder, which any number of runs may share.

mod database;

use crate::context::Context;
use crate::manifest::hash_inputs;
use crate::opened::Opened;
use bitsmith_datasets::EvalWindows;
use bitsmith_eval::{EvalResult, Kld, Perplexity};
use bitsmith_formats::hash::sha256_bytes;
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::{CacheType, WeightSource};
use database::{Columns, Database};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// Results of other versions may differ, and are not taken for this one's.
const TOOL: &str = concat!("bitsmith ", env!("CARGO_PKG_VERSION"));

/// The database of remembered results; without one, nothing is remembered.
pub struct Memory {
    database: Option<Database>,
    /// Hashes of models that were asked for, as large ones take their time.
    contents: RefCell<BTreeMap<PathBuf, String>>,
}

/// What a model scores on a text, and against a reference if it was compared with one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Its perplexity.
    pub perplexity: Perplexity,
    /// Its divergence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kld: Option<Kld>,
}

/// What is kept of an evaluation.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// Seconds since 1970.
    at: u64,
    tool: String,
    model: String,
    bytes: u64,
    bpw: f64,
    kv: CacheType,
    scores: Scores,
}

impl Memory {
    /// What is remembered in the cache folder.
    pub fn open(context: &Context) -> Memory {
        Memory { database: Some(Database::of(&context.cache_dir)), contents: RefCell::default() }
    }

    /// A memory that is empty and stays so.
    pub fn none() -> Memory {
        Memory { database: None, contents: RefCell::default() }
    }

    /// What was found before for this model, reference and windows; or else what `compute` finds, which is remembered. A database
    /// that cannot be read or written is a warning.
    pub fn scores(
        &self,
        model: &Opened,
        against: Option<&Opened>,
        windows: &EvalWindows,
        context: &Context,
        compute: impl FnOnce() -> Result<Scores>,
    ) -> Result<Scores> {
        let Some(database) = &self.database else { return compute() };
        let key = self.key(model, against, windows, context)?;
        let known = database.get::<Record>(&key).unwrap_or_else(|e| {
            context.progress.warn(&format!("no result is remembered: {e}"));
            None
        });
        if let Some(known) = known {
            context.progress.note(&format!("{} on {}: remembered", model.name, windows.set.data));
            return Ok(known.scores);
        }
        let scores = compute()?;
        let (bytes, bpw) = model.size();
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let kv = model.checkpoint.cache();
        let record = Record { at, tool: TOOL.into(), model: model.name.clone(), bytes, bpw, kv, scores };
        if let Err(e) = database.put(&key, &record.columns(), &record) {
            context.progress.warn(&format!("the result is not remembered: {e}"));
        }
        Ok(record.scores)
    }

    /// A hash of all that decides a result, names that occur in it included.
    fn key(&self, model: &Opened, against: Option<&Opened>, windows: &EvalWindows, context: &Context) -> Result<String> {
        let of = |m: &Opened| -> Result<_> {
            Ok(json!([m.name, self.content(m)?, format!("{:?}", m.checkpoint.compute()), m.checkpoint.cache().to_string()]))
        };
        let set = &windows.set;
        let tokens: Vec<u8> = set.windows.iter().flatten().flat_map(|t| t.to_le_bytes()).collect();
        let text = json!([set.data, set.sha256, set.ctx, set.domains, set.domain_of, sha256_bytes(&tokens), windows.style]);
        let device = format!("{:?}", context.device.location());
        let all = json!([TOOL, of(model)?, against.map(of).transpose()?, text, device]);
        Ok(sha256_bytes(all.to_string().as_bytes()))
    }

    fn content(&self, model: &Opened) -> Result<String> {
        let path = model.checkpoint.path();
        if let Some(known) = self.contents.borrow().get(path) {
            return Ok(known.clone());
        }
        let lines: String = hash_inputs(path)?.iter().map(|i| format!("{}  {}\n", i.sha256, i.name)).collect();
        let hash = sha256_bytes(lines.as_bytes());
        self.contents.borrow_mut().insert(path.to_path_buf(), hash.clone());
        Ok(hash)
    }
}

impl Record {
    fn columns(&self) -> Columns {
        let p = &self.scores.perplexity;
        Columns {
            at: self.at,
            tool: self.tool.clone(),
            model: self.model.clone(),
            bytes: self.bytes,
            bpw: self.bpw,
            kv: self.kv.to_string(),
            data: p.data.clone(),
            ctx: p.ctx,
            style: p.style.to_string(),
            perplexity: [p.ppl, p.stderr],
            kld: self.scores.kld.as_ref().map(|k| (k.against.clone(), [k.summary.mean, k.summary.mean_stderr])),
        }
    }
}

/// All results of models whose name contains `word`, as `eval` would give them: of each model, kind of cache and text the latest.
pub fn recall(word: &str, context: &Context) -> Result<Vec<EvalResult>> {
    let database = Database::of(&context.cache_dir);
    let records: Vec<Record> = database.of_models(word)?;
    if records.is_empty() {
        return Err(Error::missing(format!("no evaluation of a model with `{word}` in its name is remembered"))
            .file(database.path())
            .hint("`bitsmith eval` and `bitsmith run` remember theirs"));
    }
    let mut found: Vec<EvalResult> = Vec::new();
    for record in records {
        let Record { model, bytes, bpw, kv, scores, .. } = record;
        let at = found.iter().position(|r| (&r.model, r.kv, r.bytes) == (&model, kv, Some(bytes)));
        let at = at.unwrap_or_else(|| {
            found.push(EvalResult { model, bytes: Some(bytes), bpw: Some(bpw), kv, ..EvalResult::default() });
            found.len() - 1
        });
        add(&mut found[at], scores);
    }
    Ok(found)
}

/// Adds what a result does not have yet.
fn add(result: &mut EvalResult, scores: Scores) {
    let text = |p: &Perplexity| (p.data.clone(), p.sha256.clone(), p.ctx, p.style, p.windows);
    if !result.perplexity.iter().any(|p| text(p) == text(&scores.perplexity)) {
        result.perplexity.push(scores.perplexity);
    }
    let text = |k: &Kld| (k.data.clone(), k.sha256.clone(), k.against.clone(), k.ctx, k.style, k.windows.len());
    if let Some(kld) = scores.kld.filter(|k| !result.kld.iter().any(|o| text(o) == text(k))) {
        result.kld.push(kld);
    }
}
