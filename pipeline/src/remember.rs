//! Evaluations that were done before, by the content of everything that decides a result.
//!
//! They are in a database in the cache folder, which any number of runs may share.

mod database;

use crate::context::Context;
use crate::manifest::hash_inputs;
use crate::opened::Opened;
use crate::tasks::Line;
use bitsmith_datasets::EvalWindows;
use bitsmith_eval::tasks::Answer;
use bitsmith_eval::tasks::harness::Run;
use bitsmith_eval::{EvalResult, Kld, Perplexity, TaskResult};
use bitsmith_formats::hash::sha256_bytes;
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::{CacheType, WeightSource};
use database::{Columns, Database, Table};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
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

/// What was evaluated, when, and with what.
#[derive(Debug, Serialize, Deserialize)]
struct Of {
    /// Seconds since 1970.
    at: u64,
    tool: String,
    model: String,
    bytes: u64,
    bpw: f64,
    kv: CacheType,
}

/// What is kept of scores on a text.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    of: Of,
    scores: Scores,
}

/// What is kept of a task.
#[derive(Serialize, Deserialize)]
struct Asked {
    #[serde(flatten)]
    of: Of,
    task: String,
    shots: usize,
    results: Vec<TaskResult>,
    answers: Vec<Line>,
}

impl Of {
    fn new(model: &Opened) -> Of {
        let (bytes, bpw) = model.size();
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Of { at, tool: TOOL.into(), model: model.name.clone(), bytes, bpw, kv: model.checkpoint.cache() }
    }

    fn columns(&self) -> Columns {
        vec![
            ("at", (self.at as i64).into()),
            ("tool", self.tool.clone().into()),
            ("model", self.model.clone().into()),
            ("bytes", (self.bytes as i64).into()),
            ("bpw", self.bpw.into()),
            ("kv", self.kv.to_string().into()),
        ]
    }
}

impl Record {
    fn columns(&self) -> Columns {
        let (p, mut columns) = (&self.scores.perplexity, self.of.columns());
        columns.extend([
            ("data", p.data.clone().into()),
            ("ctx", (p.ctx as i64).into()),
            ("style", p.style.to_string().into()),
            ("perplexity", p.ppl.into()),
            ("perplexity_stderr", p.stderr.into()),
        ]);
        if let Some(k) = &self.scores.kld {
            columns.extend([
                ("against", k.against.clone().into()),
                ("kld", k.summary.mean.into()),
                ("kld_stderr", k.summary.mean_stderr.into()),
            ]);
        }
        columns
    }
}

impl Asked {
    fn columns(&self) -> Columns {
        let mut columns = self.of.columns();
        columns.extend([
            ("task", self.task.clone().into()),
            ("shots", (self.shots as i64).into()),
            ("items", (self.answers.len() as i64).into()),
        ]);
        if let Some(first) = self.results.first() {
            columns.extend([
                ("metric", first.metric.clone().into()),
                ("value", first.value.into()),
                ("stderr", first.stderr.into()),
            ]);
        }
        columns
    }
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
        let known = database.get::<Record>(Table::Texts, &key).unwrap_or_else(|e| {
            context.progress.warn(&format!("no result is remembered: {e}"));
            None
        });
        if let Some(known) = known {
            context.progress.note(&format!("{} on {}: remembered", model.name, windows.set.data));
            return Ok(known.scores);
        }
        let record = Record { of: Of::new(model), scores: compute()? };
        if let Err(e) = database.put(Table::Texts, &key, record.columns(), &record) {
            context.progress.warn(&format!("the result is not remembered: {e}"));
        }
        Ok(record.scores)
    }

    /// What this model answered before to the task with this key, which says all that decides the answers but for the model.
    pub(crate) fn answers(&self, model: &Opened, key: &Value, context: &Context) -> Result<Option<Vec<Answer>>> {
        let Some(database) = &self.database else { return Ok(None) };
        let known = database.get::<Asked>(Table::Tasks, &self.task_key(model, key)?).unwrap_or_else(|e| {
            context.progress.warn(&format!("no answer is remembered: {e}"));
            None
        });
        Ok(known.and_then(|known| known.answers.into_iter().map(Line::answer).map(|a| Some(a?.1)).collect()))
    }

    /// Remembers a model's answers, and what they scored.
    pub(crate) fn keep_answers(&self, model: &Opened, key: &Value, run: &Run, context: &Context) -> Result<()> {
        let Some(database) = &self.database else { return Ok(()) };
        let results = run.scores.iter().map(|s| s.result(&run.task.name, run.shots, None)).collect();
        let answers = run.answers.iter().enumerate().map(|(i, answer)| Line::new(i, answer)).collect();
        let asked = Asked { of: Of::new(model), task: run.task.name.clone(), shots: run.shots, results, answers };
        if let Err(e) = database.put(Table::Tasks, &self.task_key(model, key)?, asked.columns(), &asked) {
            context.progress.warn(&format!("the answers are not remembered: {e}"));
        }
        Ok(())
    }

    fn task_key(&self, model: &Opened, key: &Value) -> Result<String> {
        Ok(sha256_bytes(json!([TOOL, self.content(model)?, key]).to_string().as_bytes()))
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

/// All results of models whose name contains `word`, as `eval` would give them: of each model, kind of cache, text and task the latest.
pub fn recall(word: &str, context: &Context) -> Result<Vec<EvalResult>> {
    let database = Database::of(&context.cache_dir);
    let texts: Vec<Record> = database.of_models(Table::Texts, word)?;
    let tasks: Vec<Asked> = database.of_models(Table::Tasks, word)?;
    if texts.is_empty() && tasks.is_empty() {
        return Err(Error::missing(format!("no evaluation of a model with `{word}` in its name is remembered"))
            .file(database.path())
            .hint("`bitsmith eval` and `bitsmith run` remember theirs"));
    }
    let mut found = Vec::new();
    for record in texts {
        add(result_of(&mut found, &record.of), record.scores);
    }
    for asked in tasks {
        let result = result_of(&mut found, &asked.of);
        let is_new =
            |t: &TaskResult| !result.tasks.iter().any(|o| (&o.task, o.shots, &o.metric) == (&t.task, t.shots, &t.metric));
        let new: Vec<TaskResult> = asked.results.into_iter().filter(is_new).collect();
        result.tasks.extend(new);
    }
    found.sort_by(|a, b| a.model.cmp(&b.model));
    Ok(found)
}

/// The result of a model with a kind of cache, which is added if there is none.
fn result_of<'a>(found: &'a mut Vec<EvalResult>, of: &Of) -> &'a mut EvalResult {
    let at = found.iter().position(|r| (&r.model, r.kv, r.bytes) == (&of.model, of.kv, Some(of.bytes)));
    let at = at.unwrap_or_else(|| {
        let (bytes, bpw) = (Some(of.bytes), Some(of.bpw));
        found.push(EvalResult { model: of.model.clone(), bytes, bpw, kv: of.kv, ..EvalResult::default() });
        found.len() - 1
    });
    &mut found[at]
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
