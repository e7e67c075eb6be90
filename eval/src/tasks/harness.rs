//! Results as lm-evaluation-harness writes them: `results_DATE.json` and `samples_TASK_DATE.jsonl` in a folder of the model's name.

use super::prompt::Ask;
use super::score::Patterns;
use super::{Answer, Item, Metric, Scores, Task};
use crate::results::TaskResult;
use bitsmith_formats::atomic::write_file;
use bitsmith_formats::{Error, Result, sha256_bytes};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// One task's run.
#[derive(Debug)]
pub struct Run {
    /// The task.
    pub task: Task,
    /// What tells its questions from any others.
    pub digest: String,
    /// Examples before each question.
    pub shots: usize,
    /// Records that there are, of which `records` may be the first ones only.
    pub available: usize,
    /// The records.
    pub records: Vec<Value>,
    /// Their items.
    pub items: Vec<Item>,
    /// What was asked.
    pub asks: Vec<Vec<Ask>>,
    /// The answers.
    pub answers: Vec<Answer>,
    /// By each metric; none where programs were not run.
    pub scores: Vec<Scores>,
}

/// What results say about how they came about.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The model's name.
    pub model: String,
    /// `--limit`.
    pub limit: Option<usize>,
    /// Whether prompts were put in the chat template.
    pub chat: bool,
    /// Seconds since 1970 at the start.
    pub started: f64,
    /// Seconds that it took.
    pub seconds: f64,
}

/// Writes the folder and gives the path of the results.
pub fn write(folder: &Path, setting: &Setting, runs: &[Run], results: &[TaskResult]) -> Result<PathBuf> {
    let folder = folder.join(sanitized(&setting.model));
    std::fs::create_dir_all(&folder).map_err(|e| Error::write(&folder, e))?;
    let date = date(setting.started + setting.seconds);
    let mut hashes = Map::new();
    for run in runs {
        let samples = samples(run)?;
        let hash = |s: &Value| ["doc_hash", "prompt_hash", "target_hash"].map(|k| s[k].as_str().unwrap_or_default()).concat();
        hashes.insert(run.task.name.clone(), sha256_bytes(samples.iter().map(hash).collect::<String>().as_bytes()).into());
        let lines: String = samples.iter().map(|s| format!("{s}\n")).collect();
        write_file(folder.join(format!("samples_{}_{date}.jsonl", run.task.name)), lines.as_bytes())?;
    }
    let path = folder.join(format!("results_{date}.json"));
    let json = serde_json::to_vec_pretty(&document(setting, runs, results, hashes)).map_err(|e| Error::failed(e.to_string()))?;
    write_file(&path, &json)?;
    Ok(path)
}

fn document(setting: &Setting, runs: &[Run], results: &[TaskResult], hashes: Map<String, Value>) -> Value {
    let by_task = |f: &dyn Fn(&Run) -> Value| runs.iter().map(|r| (r.task.name.clone(), f(r))).collect::<Map<_, _>>();
    let names = super::groups(&runs.iter().map(|r| &r.task.groups[..]).collect::<Vec<_>>());
    let entry = |name: &str| {
        let mut entry = Map::from_iter([("alias".to_string(), Value::from(name))]);
        for r in results.iter().filter(|r| r.task == name) {
            let (key, filter) = r.metric.split_once(',').unwrap_or((&r.metric, default_filter(&r.metric)));
            entry.insert(format!("{key},{filter}"), r.value.into());
            entry.insert(format!("{key}_stderr,{filter}"), r.stderr.into());
        }
        (name.to_string(), Value::Object(entry))
    };
    let tasks = runs.iter().map(|r| r.task.name.as_str());
    let groups: Map<String, Value> = names.iter().map(|g| entry(g)).collect();
    let members = |group: &String| {
        let names = runs.iter().filter(|r| r.task.groups.contains(group)).map(|r| r.task.name.clone());
        (group.clone(), names.collect::<Vec<_>>().into())
    };
    json!({
        "results": tasks.map(entry).chain(groups.clone()).collect::<Map<_, _>>(),
        "groups": groups,
        "group_subtasks": runs.iter().map(|r| (r.task.name.clone(), json!([]))).chain(names.iter().map(members)).collect::<Map<_, _>>(),
        "configs": by_task(&config),
        "versions": by_task(&|_| 1.0.into()),
        "n-shot": by_task(&|r| r.shots.into()),
        "higher_is_better": by_task(&|r| {
            r.task.metrics.iter().map(|m| (m.key().to_string(), m.higher_is_better().into())).collect::<Map<_, _>>().into()
        }),
        "n-samples": by_task(&|r| json!({"original": r.available, "effective": r.records.len()})),
        "config": {
            "model": "bitsmith", "model_args": format!("pretrained={}", setting.model), "limit": setting.limit, "batch_size": null,
            "random_seed": 0, "fewshot_seed": 1234,
        },
        "git_hash": null,
        "date": setting.started,
        "bitsmith_version": env!("CARGO_PKG_VERSION"),
        "task_hashes": hashes,
        "model_source": "bitsmith",
        "model_name": setting.model,
        "model_name_sanitized": sanitized(&setting.model),
        "fewshot_as_multiturn": setting.chat,
        "total_evaluation_time_seconds": setting.seconds.to_string(),
    })
}

fn default_filter(metric: &str) -> &'static str {
    if metric == Metric::PassAt1.key() { "create_test" } else { "none" }
}

fn config(run: &Run) -> Value {
    let task = &run.task;
    let output = match run.items.first() {
        Some(Item::Continuation { .. }) => "loglikelihood",
        Some(Item::Writing { .. }) => "generate_until",
        _ => "multiple_choice",
    };
    let metric = |m: &Metric| json!({"metric": m.key(), "aggregation": "mean", "higher_is_better": m.higher_is_better()});
    let mut config = json!({
        "task": task.name, "description": task.header, "dataset": task.source, "output_type": output, "num_fewshot": run.shots,
        "target_delimiter": task.delimiter, "fewshot_delimiter": "\n\n", "repeats": 1,
        "metric_list": task.metrics.iter().map(metric).collect::<Vec<_>>(),
    });
    if let Some(g) = &task.generation {
        config["generation_kwargs"] =
            json!({"until": g.until, "max_gen_toks": g.max_tokens, "do_sample": false, "temperature": 0.0});
    }
    config
}

/// A line per item; with several filters, one per filter.
fn samples(run: &Run) -> Result<Vec<Value>> {
    let mut filters: Vec<&str> = Vec::new();
    for metric in &run.task.metrics {
        if !filters.contains(&metric.filter()) {
            filters.push(metric.filter());
        }
    }
    let mut lines = Vec::new();
    for filter in filters {
        let metrics: Vec<&Metric> = run.task.metrics.iter().filter(|m| m.filter() == filter).collect();
        let patterns = match metrics.first() {
            Some(Metric::ExactMatch(rule)) => Some(Patterns::new(rule)?),
            _ => None,
        };
        for i in 0..run.records.len() {
            lines.push(sample(run, i, filter, &metrics, patterns.as_ref()));
        }
    }
    Ok(lines)
}

fn sample(run: &Run, i: usize, filter: &str, metrics: &[&Metric], patterns: Option<&Patterns<'_>>) -> Value {
    let (item, answer) = (&run.items[i], &run.answers[i]);
    let target = match item {
        Item::Choices { right, .. } => right[0].to_string(),
        Item::Beginnings { rest, .. } => rest.clone(),
        Item::Continuation { answer, .. } | Item::Writing { answer, .. } => answer.clone(),
    };
    let argument = |(n, ask): (usize, &Ask)| {
        let (a, b) = match ask {
            Ask::Likelihood { context, continuation } => (context, Value::from(continuation.as_str())),
            Ask::Writing { prompt } => {
                let g = run.task.generation.as_ref();
                (prompt, json!({"until": g.map(|g| &g.until), "max_gen_toks": g.map(|g| g.max_tokens), "do_sample": false}))
            }
        };
        (format!("gen_args_{n}"), json!({"arg_0": a, "arg_1": b}))
    };
    let (resps, filtered) = match answer {
        // The harness writes numbers and truth values as text.
        Answer::Likelihoods(l) => {
            let pair = |(log, greedy): &(f64, bool)| json!([log.to_string(), if *greedy { "True" } else { "False" }]);
            (l.iter().map(|l| json!([pair(l)])).collect::<Vec<_>>(), l.iter().map(pair).collect::<Vec<_>>())
        }
        Answer::Text(text) => (vec![json!([text])], vec![patterns.map_or_else(|| text.clone(), |p| p.extract(text)).into()]),
        Answer::Program(text, _) => {
            let query = match item {
                Item::Writing { query, .. } => query.as_str(),
                _ => "",
            };
            (vec![json!([text])], vec![json!([format!("{query}{text}")])])
        }
    };
    let hash = |text: &str| sha256_bytes(text.as_bytes());
    let prompt = match run.asks[i].first() {
        Some(Ask::Likelihood { context, .. }) => context.as_str(),
        Some(Ask::Writing { prompt }) => prompt,
        None => "",
    };
    let mut line = json!({
        "doc_id": i,
        "doc": run.records[i],
        "target": target,
        "arguments": run.asks[i].iter().enumerate().map(argument).collect::<Map<_, _>>(),
        "resps": resps,
        "filtered_resps": filtered,
        "filter": filter,
        "metrics": metrics.iter().map(|m| m.key()).collect::<Vec<_>>(),
        "doc_hash": hash(&serde_json::to_string_pretty(&run.records[i]).unwrap_or_default()),
        "prompt_hash": hash(prompt),
        "target_hash": hash(&target),
    });
    for metric in metrics {
        if let Some(scores) = run.scores.iter().find(|s| s.metric == **metric) {
            line[metric.key()] = scores.values[i].into();
        }
    }
    line
}

/// A model's name as a folder's.
fn sanitized(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        match "\"<>:/|\\?*[]".contains(c) {
            false => out.push(c),
            // A run of such characters becomes one mark.
            true if !out.ends_with("__") => out.push_str("__"),
            true => {}
        }
    }
    out
}

/// `2026-01-31T12-30-59.123456`, UTC, of seconds since 1970 (Hinnant's civil_from_days).
fn date(seconds: f64) -> String {
    let micros = (seconds * 1e6) as u64;
    let (days, rest) = ((micros / 86_400_000_000) as i64, micros % 86_400_000_000);
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    let s = rest / 1_000_000;
    format!("{year:04}-{month:02}-{day:02}T{:02}-{:02}-{:02}.{:06}", s / 3600, s / 60 % 60, s % 60, rest % 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_dates() {
        assert_eq!(sanitized("org/name: x"), "org__name__ x");
        assert_eq!(date(0.0), "1970-01-01T00-00-00.000000");
        assert_eq!(date(1_709_210_096.25), "2024-02-29T12-34-56.250000");
    }
}
