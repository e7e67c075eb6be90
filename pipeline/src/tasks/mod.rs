//! Tasks for models: records and questions are made once, any number of models answer them, and results compare models in pairs.

mod data;
mod journal;
mod scored;

pub use data::TaskData;
pub use scored::{Scored, join, results, same_questions};

use crate::context::Context;
use crate::estimate::{Cost, check_ram};
use crate::opened::Opened;
use crate::remember::Memory;
use crate::share::Share;
use crate::text::load;
use bitsmith_eval::TaskResult;
use bitsmith_eval::tasks::answer::{Likely, PASS_TOKENS, SLOTS, write};
use bitsmith_eval::tasks::harness::{self, Run, Setting};
use bitsmith_eval::tasks::prompt::{Ask, Chat, asks};
use bitsmith_eval::tasks::sandbox::Sandbox;
use bitsmith_eval::tasks::{Answer, Item, Task};
use bitsmith_formats::{Error, Result, sha256_bytes};
use bitsmith_runtime::sweep::peak_bytes;
use bitsmith_runtime::{ChatMessage, Tokenizer, WeightSource};
use data::Records;
use journal::Journal;
pub(crate) use journal::Line;
use rayon::prelude::*;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// What to ask, and how.
#[derive(Debug, Clone, Default)]
pub struct TaskOptions {
    /// The tasks.
    pub tasks: Vec<Task>,
    /// Local files of records.
    pub data: Vec<TaskData>,
    /// Examples before each question, if not the task's own number.
    pub shots: Option<usize>,
    /// The first so many records of each task only.
    pub limit: Option<usize>,
    /// Whether to put prompts in the model's chat template.
    pub chat: bool,
    /// Most tokens of a written answer, if not the task's own number.
    pub max_tokens: Option<usize>,
    /// Whether programs that the model writes may be run.
    pub run_code: bool,
    /// Where to write results as lm-evaluation-harness does.
    pub results: Option<PathBuf>,
}

/// A task with its items.
#[derive(Debug)]
struct Prepared {
    task: Task,
    shots: usize,
    available: usize,
    records: Vec<Value>,
    items: Vec<Item>,
    /// What examples are taken from.
    pool: Vec<Item>,
    /// Whether these are the items themselves, and others beyond the limit.
    own_pool: bool,
    digest: String,
}

/// Tasks ready to be asked.
#[derive(Debug)]
pub struct Tasks {
    options: TaskOptions,
    prepared: Vec<Prepared>,
    sandbox: Option<Sandbox>,
}

/// A model's answers and scores, by task.
#[derive(Debug)]
pub struct Answered {
    /// The model's name.
    pub model: String,
    runs: Vec<Run>,
}

impl TaskOptions {
    /// The user's files that questions are made of: definitions, records, examples.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for task in &self.tasks {
            let (records, shots) = data::files(task, &self.data)?;
            files.extend(records);
            files.extend(shots.filter(|_| self.shots.unwrap_or(task.shots) > 0));
        }
        Ok(files)
    }
}

impl Tasks {
    /// Finds the records and makes questions of them.
    pub fn new(options: TaskOptions, context: &Context) -> Result<Self> {
        let (mut prepared, mut missing) = (Vec::new(), Vec::new());
        for task in &options.tasks {
            let shots = options.shots.unwrap_or(task.shots);
            match data::load(task, &options.data, shots > 0, context)? {
                Some(records) => prepared.push(prepare(task, records, shots, &options, context)?),
                None => missing.push(task),
            }
        }
        let found = |group: &String| prepared.iter().any(|p| p.task.groups.contains(group));
        if let Some(task) = missing.iter().find(|t| !t.groups.iter().any(found)) {
            return Err(Error::missing(format!("--task-data has no file with the records of {}", task.name))
                .hint(format!("name the file {}.jsonl, or give --task-data {}=FILE", task.name, task.name)));
        }
        if !missing.is_empty() {
            let names = missing.iter().map(|t| t.name.as_str()).collect::<Vec<_>>().join(", ");
            context.progress.warn(&format!(
                "{} of {} tasks of a group have no file in --task-data and are left out: {names}",
                missing.len(),
                options.tasks.len()
            ));
        }
        let runs_code = options.run_code && prepared.iter().any(|p| p.task.runs_code());
        let sandbox = runs_code.then(Sandbox::new).transpose()?;
        Ok(Tasks { options, prepared, sandbox })
    }

    /// What asking a model costs at most. Common beginnings are counted as often as they occur, but for the question of several answers.
    pub fn cost(&self, model: &Opened, context: &Context) -> Result<Cost> {
        let tokenizer = model.tokenizer()?;
        let spec = model.checkpoint.spec();
        let mut cost = Cost { tokens: 0, ram_bytes: 0, disk_bytes: 0, seconds: 0.0 };
        for prepared in &self.prepared {
            let length = |text: &str| tokenizer.encode(text, true).map(|t| t.len());
            let of = |asks: &Vec<Ask>| -> Result<usize> {
                let mut n = 0;
                for (i, ask) in asks.iter().enumerate() {
                    n += match ask {
                        Ask::Likelihood { context, continuation } => {
                            length(continuation)? + if i == 0 { length(context)? } else { 0 }
                        }
                        Ask::Writing { prompt } => {
                            length(prompt)? + prepared.task.generation.as_ref().map_or(0, |g| g.max_tokens)
                        }
                    };
                }
                Ok(n)
            };
            let counts: Vec<usize> = self.asks(prepared, &tokenizer)?.par_iter().map(of).collect::<Result<_>>()?;
            let longest = counts.iter().max().copied().unwrap_or(0).min(spec.context_length);
            cost = cost.then(Cost::of_passes(spec, counts.iter().sum(), PASS_TOKENS, longest, context.threads));
        }
        Ok(cost)
    }

    fn asks(&self, prepared: &Prepared, tokenizer: &Tokenizer) -> Result<Vec<Vec<Ask>>> {
        let render = |messages: &[ChatMessage]| tokenizer.apply_chat(messages, true);
        let chat: Option<Chat<'_>> = if self.options.chat { Some(&render) } else { None };
        asks(&prepared.task, &prepared.items, &prepared.pool, prepared.own_pool, prepared.shots, chat)
    }

    /// Asks a model what is not remembered of it. Writes a folder of results, if one is wanted.
    pub fn answer(&self, model: &Opened, memory: &Memory, context: &Context) -> Result<Answered> {
        self.answer_share(model, Share::WHOLE, memory, context)
    }

    /// A model's scores of a share of each task's items, for [`join`] to put together.
    pub fn score(&self, model: &Opened, share: Share, context: &Context) -> Result<Vec<Scored>> {
        Ok(self.answer_share(model, share, &Memory::none(), context)?.scored())
    }

    fn answer_share(&self, model: &Opened, share: Share, memory: &Memory, context: &Context) -> Result<Answered> {
        model.checkpoint.spec().require_head()?;
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        let clock = Instant::now();
        let tokenizer = model.tokenizer()?;
        let runs = self.prepared.iter().map(|p| self.run(p, share, model, &tokenizer, memory, context)).collect::<Result<_>>()?;
        let answered = Answered { model: model.name.clone(), runs };
        for task in answered.unscored() {
            context.progress.warn(&format!(
                "{task}: what {} wrote was not run and has no score; --allow-code-execution runs it in a sandbox, --results-dir writes it down",
                model.name
            ));
        }
        if let Some(folder) = &self.options.results {
            let setting = Setting {
                model: model.name.clone(),
                limit: self.options.limit,
                chat: self.options.chat,
                started,
                seconds: clock.elapsed().as_secs_f64(),
            };
            let path = harness::write(folder, &setting, &answered.runs, &answered.results(None))?;
            context.progress.note(&format!("results as lm-evaluation-harness writes them: {}", path.display()));
        }
        Ok(answered)
    }

    fn run(
        &self,
        prepared: &Prepared,
        share: Share,
        model: &Opened,
        tokenizer: &Tokenizer,
        memory: &Memory,
        context: &Context,
    ) -> Result<Run> {
        let task = &prepared.task;
        let range = share.of(prepared.items.len());
        let asks = self.asks(prepared, tokenizer)?[range.clone()].to_vec();
        let (items, records) = (prepared.items[range.clone()].to_vec(), prepared.records[range].to_vec());
        let key = serde_json::json!([
            prepared.digest,
            prepared.shots,
            self.options.chat,
            task.generation,
            model.checkpoint.cache().name(),
            format!("{:?}", model.checkpoint.compute()),
            context.device.is_cpu(),
            // Prompts, as the chat template makes them.
            sha256_bytes(format!("{asks:?}").as_bytes()),
        ]);
        let remembered = memory.answers(model, &key, context)?.filter(|a| a.len() == asks.len());
        let known = remembered.is_some();
        let mut answers = match remembered {
            Some(answers) => {
                context.progress.note(&format!("{}: {} of {}: remembered", task.name, answers.len(), model.name));
                answers
            }
            None => self.ask(prepared, &asks, &key, model, tokenizer, context)?,
        };
        if let (Some(sandbox), true) = (&self.sandbox, task.runs_code()) {
            answers = run_programs(sandbox, &items, answers)?;
        }
        let scores = match task.runs_code() && self.sandbox.is_none() {
            true => Vec::new(),
            false => task.score(&items, &answers)?,
        };
        let (task, digest) = (task.clone(), prepared.digest.clone());
        let run =
            Run { task, digest, shots: prepared.shots, available: prepared.available, records, items, asks, answers, scores };
        if !known {
            memory.keep_answers(model, &key, &run, context)?;
        }
        Ok(run)
    }

    /// A model's answers, from where an interrupted run has left.
    fn ask(
        &self,
        prepared: &Prepared,
        asks: &[Vec<Ask>],
        key: &Value,
        model: &Opened,
        tokenizer: &Tokenizer,
        context: &Context,
    ) -> Result<Vec<Answer>> {
        let task = &prepared.task;
        let key = serde_json::json!([key, identity(model)?, env!("CARGO_PKG_VERSION")]);
        let mut journal = Journal::open(&context.cache_dir.join("tasks"), &sha256_bytes(key.to_string().as_bytes()))?;
        let rest: Vec<usize> = (0..asks.len()).filter(|i| !journal.answers.contains_key(i)).collect();
        if rest.len() < asks.len() {
            context.progress.note(&format!(
                "{}: {} answers are there from an interrupted run",
                task.name,
                asks.len() - rest.len()
            ));
        }
        context.progress.start(&format!("{} {}", task.name, model.name), rest.len() as u64);
        let mut each = |id, answer| {
            context.progress.advance(1);
            journal.add(id, answer)
        };
        if !rest.is_empty() {
            ask_model(task, asks, &rest, model, tokenizer, context, &mut each)?;
        }
        context.progress.finish();
        journal.finish()
    }
}

fn prepare(task: &Task, records: Records, shots: usize, options: &TaskOptions, context: &Context) -> Result<Prepared> {
    let Records { mut records, shots: examples, file } = records;
    let at = |e: Error| match &file {
        Some(file) => e.file(file),
        None => e,
    };
    let available = records.len();
    if records.is_empty() {
        return Err(at(Error::corrupt(format!("{} has no records", task.name))));
    }
    if shots > 0 && examples.is_none() {
        context
            .progress
            .warn(&format!("{}: examples are taken from the records that are scored, as there are no others", task.name));
    }
    let pool = match (&examples, shots) {
        (Some(examples), 1..) => task.items(examples)?,
        // Those beyond the limit too, so that the limit does not change what is asked.
        (None, 1..) => task.items(&records).map_err(at)?,
        (_, 0) => Vec::new(),
    };
    let own_pool = examples.is_none();
    let drawn_from = examples.unwrap_or_else(|| if shots > 0 { records.clone() } else { Vec::new() });
    records.truncate(options.limit.unwrap_or(available));
    let mut task = task.clone();
    if let (Some(generation), Some(max)) = (&mut task.generation, options.max_tokens) {
        generation.max_tokens = max;
    }
    let digest = task.digest(&records, &drawn_from);
    let items = task.items(&records).map_err(at)?;
    Ok(Prepared { task, shots, available, records, items, pool, own_pool, digest })
}

fn ask_model(
    task: &Task,
    asks: &[Vec<Ask>],
    ids: &[usize],
    model: &Opened,
    tokenizer: &Tokenizer,
    context: &Context,
    each: &mut dyn FnMut(usize, Answer) -> Result<()>,
) -> Result<()> {
    let (source, spec, device) = (&model.checkpoint, model.checkpoint.spec(), &context.device);
    match &task.generation {
        Some(generation) => {
            let cache = source.cache();
            let loaded = load(model, cache, SLOTS * spec.context_length.min(2048), context)?;
            write(&loaded, tokenizer, cache, generation, asks, ids, each)
        }
        None => {
            check_ram(
                &task.name,
                peak_bytes(spec, PASS_TOKENS, spec.context_length.min(4096), context.threads),
                context.max_ram,
            )?;
            Likely { source, tokenizer, device }.answer(asks, ids, each, &|_, _| Ok(()))
        }
    }
}

/// Runs what was written, together with its tests.
fn run_programs(sandbox: &Sandbox, items: &[Item], answers: Vec<Answer>) -> Result<Vec<Answer>> {
    let run = |(item, answer): (&Item, Answer)| -> Result<Answer> {
        match (item, answer) {
            (Item::Writing { query, answer: tests }, Answer::Text(text)) => {
                let passed = sandbox.passes(&format!("{query}{text}\n{tests}"))?;
                Ok(Answer::Program(text, passed))
            }
            (_, answer) => Ok(answer),
        }
    };
    items.par_iter().zip(answers).map(run).collect()
}

/// What tells this model's files from any others without reading them: their names, sizes and times.
fn identity(model: &Opened) -> Result<Vec<(String, u64, u128)>> {
    let path = model.checkpoint.path();
    let folder = model.checkpoint.folder();
    let mut files: Vec<PathBuf> = vec![path.to_path_buf()];
    if path.is_dir() {
        let entries = std::fs::read_dir(folder).map_err(|e| Error::read(folder, e))?;
        files = entries.map(|e| e.map(|e| e.path()).map_err(|e| Error::read(folder, e))).collect::<Result<_>>()?;
        files.sort();
    }
    let of = |file: &PathBuf| -> Result<(String, u64, u128)> {
        let file: &Path = file;
        let meta = std::fs::metadata(file).map_err(|e| Error::read(file, e))?;
        let time = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or(0, |d| d.as_nanos());
        let name = file.canonicalize().map_err(|e| Error::read(file, e))?;
        Ok((name.display().to_string(), meta.len(), time))
    };
    files.iter().filter(|f| f.is_file()).map(of).collect()
}

impl Answered {
    /// The results of every task and group; with another model's answers to the same tasks, compared item by item.
    pub fn results(&self, against: Option<&Answered>) -> Vec<TaskResult> {
        let theirs = against.map(|a| (a.model.as_str(), a.scored()));
        results(&self.scored(), theirs.as_ref().map(|(model, scored)| (*model, &scored[..])))
    }

    /// The scores of every task.
    fn scored(&self) -> Vec<Scored> {
        self.runs.iter().map(Scored::of).collect()
    }

    /// Tasks whose answers were only written down.
    pub fn unscored(&self) -> impl Iterator<Item = &str> {
        self.runs.iter().filter(|r| r.scores.is_empty()).map(|r| r.task.name.as_str())
    }
}
