//! Tasks: questions with right answers, as lm-evaluation-harness asks and scores them.
//!
//! A task is a file here and a line in [`REGISTRY`], or a TOML file of the user's ([`custom`]). It makes [`Item`]s of records;
//! [`prompt`] turns items into texts with examples before them, `score` turns what the model says into numbers, [`harness`] writes
//! results as the harness does.

pub mod answer;
mod arc;
mod boolq;
mod commonsense_qa;
pub mod custom;
mod gsm8k;
pub mod harness;
mod hellaswag;
mod humaneval;
mod item;
mod lambada;
mod mmlu;
mod openbookqa;
mod piqa;
pub mod prompt;
pub mod sandbox;
mod score;
mod shots;
mod truthfulqa;
mod winogrande;

pub use item::Item;
pub use score::{Answer, Comparison, Scores, chosen, lengths};

use bitsmith_formats::{Error, Result, sha256_bytes};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// The tasks of each file.
pub const REGISTRY: &[fn() -> Vec<Task>] = &[
    hellaswag::tasks,
    arc::tasks,
    piqa::tasks,
    winogrande::tasks,
    openbookqa::tasks,
    boolq::tasks,
    commonsense_qa::tasks,
    lambada::tasks,
    truthfulqa::tasks,
    gsm8k::tasks,
    humaneval::tasks,
    mmlu::tasks,
];

/// Makes an item of a record.
pub type Reader = Arc<dyn Fn(&Value) -> Result<Item> + Send + Sync>;

/// Where records come from if no local files are given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A dataset on the hub, as the hub's own Parquet copies have it.
    Hub {
        /// `org/name`.
        repo: String,
        /// The dataset's configuration.
        config: String,
        /// The records that are scored.
        split: String,
        /// The records that examples are taken from.
        shots: Option<String>,
    },
    /// Files.
    Files {
        /// The records that are scored.
        data: PathBuf,
        /// The records that examples are taken from.
        shots: Option<PathBuf>,
    },
}

impl Source {
    fn hub(repo: &str, config: &str, split: &str, shots: Option<&str>) -> Self {
        Source::Hub { repo: repo.into(), config: config.into(), split: split.into(), shots: shots.map(String::from) }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Hub { repo, config, split, .. } => write!(f, "{repo} ({config}, {split})"),
            Source::Files { data, .. } => write!(f, "{}", data.display()),
        }
    }
}

/// How texts are generated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Generation {
    /// Strings that end the text and are no part of it.
    pub until: Vec<String>,
    /// Most tokens.
    pub max_tokens: usize,
}

/// What is taken out of a generated text before it is compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extract {
    /// A regular expression; its first group that matches, or all of it.
    pub pattern: String,
    /// Whether the last match counts, not the first.
    pub last: bool,
}

/// How a generated text is compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Match {
    /// The harness's name for the way of extraction.
    pub filter: String,
    /// What counts of the text; all of it if `None`.
    pub extract: Option<Extract>,
    /// Regular expressions that are removed from both sides.
    pub ignore: Vec<String>,
    /// Whether upper and lower case are alike.
    pub ignore_case: bool,
}

/// What a task is scored by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Whether the likeliest choice is right; of continuations, whether each token is the likeliest.
    Acc,
    /// The same with log-likelihoods divided by the choices' lengths in characters.
    AccNorm,
    /// The share of right choices in the probability of all, which the harness calls `acc` too.
    Mass,
    /// `exp` of the mean negative log-likelihood of continuations.
    Perplexity,
    /// Whether a generated text is the answer.
    ExactMatch(Match),
    /// Whether a generated program passes its tests.
    PassAt1,
}

impl Metric {
    /// The harness's name, without the filter.
    pub fn key(&self) -> &'static str {
        match self {
            Metric::Acc | Metric::Mass => "acc",
            Metric::AccNorm => "acc_norm",
            Metric::Perplexity => "perplexity",
            Metric::ExactMatch(_) => "exact_match",
            Metric::PassAt1 => "pass@1",
        }
    }
    /// The harness's name for what is done to answers first.
    pub fn filter(&self) -> &str {
        match self {
            Metric::ExactMatch(m) => &m.filter,
            Metric::PassAt1 => "create_test",
            _ => "none",
        }
    }
    /// The name in results: with the filter where there is one.
    pub fn name(&self) -> String {
        match self {
            Metric::ExactMatch(m) if m.filter != "none" => format!("exact_match,{}", m.filter),
            _ => self.key().to_string(),
        }
    }
    /// Whether more is better.
    pub fn higher_is_better(&self) -> bool {
        *self != Metric::Perplexity
    }
}

/// A task.
#[derive(Clone)]
pub struct Task {
    /// The name in `--tasks`.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// Where its records are.
    pub source: Source,
    /// Names of groups that it belongs to.
    pub groups: Vec<String>,
    /// Names that a local file of its records may have, besides its own name.
    pub files: Vec<String>,
    /// What it is scored by, the one that counts first.
    pub metrics: Vec<Metric>,
    /// Text before the examples.
    pub header: String,
    /// Examples before each question, unless others are asked for.
    pub shots: usize,
    /// Whether examples are the first ones of their split; otherwise they are drawn as the harness draws them.
    pub first_shots: bool,
    /// Between question and answer.
    pub delimiter: String,
    /// How texts are generated, where they are.
    pub generation: Option<Generation>,
    /// What of the definition the fields above do not show; part of what makes two runs the same.
    pub definition: String,
    reader: Reader,
}

impl Task {
    fn new(
        name: &str,
        description: &str,
        metrics: &[Metric],
        reader: impl Fn(&Value) -> Result<Item> + Send + Sync + 'static,
    ) -> Self {
        Task {
            name: name.to_string(),
            description: description.to_string(),
            source: Source::Files { data: PathBuf::new(), shots: None },
            groups: Vec::new(),
            files: Vec::new(),
            metrics: metrics.to_vec(),
            header: String::new(),
            shots: 0,
            first_shots: false,
            delimiter: " ".into(),
            generation: None,
            definition: String::new(),
            reader: Arc::new(reader),
        }
    }

    /// The items of these records. Errors name the record, counted from 1.
    pub fn items(&self, records: &[Value]) -> Result<Vec<Item>> {
        let item = |(i, r): (usize, &Value)| {
            (self.reader)(r).map_err(|mut e| {
                e.message = format!("{}, record {}: {}", self.name, i + 1, e.message);
                e
            })
        };
        records.iter().enumerate().map(item).collect()
    }

    /// Whether a generated program has to be run to score it.
    pub fn runs_code(&self) -> bool {
        self.metrics.contains(&Metric::PassAt1)
    }

    /// A digest of the definition and of records, by which results of the same questions are known.
    pub fn digest(&self, records: &[Value], shots: &[Value]) -> String {
        let json = serde_json::json!({
            "name": self.name, "metrics": self.metrics, "header": self.header, "first_shots": self.first_shots,
            "delimiter": self.delimiter, "generation": self.generation, "definition": self.definition,
            "records": records, "shots": shots,
        });
        sha256_bytes(json.to_string().as_bytes())
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("name", &self.name).field("source", &self.source).finish_non_exhaustive()
    }
}

/// All built-in tasks.
pub fn all() -> Vec<Task> {
    REGISTRY.iter().flat_map(|tasks| tasks()).collect()
}

/// The tasks that `--tasks` names: tasks, groups, and TOML files, joined by commas.
pub fn find(names: &str) -> Result<Vec<Task>> {
    let all = all();
    let mut found: Vec<Task> = Vec::new();
    for name in names.split(',').map(str::trim) {
        let chosen: Vec<Task> = match name.ends_with(".toml") {
            true => vec![custom::read(name.as_ref())?],
            false => all.iter().filter(|t| t.name == name || t.groups.iter().any(|g| g == name)).cloned().collect(),
        };
        if chosen.is_empty() {
            return Err(Error::usage(format!("there is no task `{name}`"))
                .hint("`bitsmith tasks` lists them; a task of your own is a .toml file"));
        }
        for task in chosen {
            if !found.iter().any(|t| t.name == task.name) {
                found.push(task);
            }
        }
    }
    Ok(found)
}

/// Names of all groups, given each task's, the smallest first.
pub fn groups(tasks: &[&[String]]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for depth in 0..tasks.iter().map(|t| t.len()).max().unwrap_or(0) {
        for group in tasks.iter().filter_map(|t| t.get(depth)) {
            if !names.contains(group) {
                names.push(group.clone());
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_groups_and_nonsense() {
        let names: Vec<String> = all().into_iter().map(|t| t.name).collect();
        let mut distinct = names.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), names.len());
        for name in [
            "hellaswag",
            "arc_easy",
            "arc_challenge",
            "piqa",
            "winogrande",
            "openbookqa",
            "boolq",
            "commonsense_qa",
            "lambada_openai",
            "truthfulqa_mc1",
            "truthfulqa_mc2",
            "gsm8k",
            "humaneval",
            "mmlu_virology",
        ] {
            assert_eq!(find(name).unwrap().len(), 1, "{name}");
        }
        assert_eq!(find("mmlu").unwrap().len(), 57);
        let stem = find("mmlu_stem,mmlu_anatomy, piqa").unwrap();
        assert_eq!(stem.len(), 20);
        assert_eq!(groups(&stem.iter().map(|t| &t.groups[..]).collect::<Vec<_>>()), ["mmlu_stem", "mmlu"]);
        assert_eq!(find("none").unwrap_err().kind, bitsmith_formats::ErrorKind::Usage);
    }

    #[test]
    fn a_bad_record_is_named() {
        let task = &find("piqa").unwrap()[0];
        let good = serde_json::json!({"goal": "g", "sol1": "a", "sol2": "b", "label": 1});
        let e = task.items(&[good.clone(), serde_json::json!({"goal": "g", "sol1": "a", "label": 0})]).unwrap_err();
        assert!(e.message.contains("piqa, record 2: no field `sol2`; there are goal, sol1, label"), "{e}");
        let [Item::Choices { query, right, .. }] = &task.items(&[good]).unwrap()[..] else { panic!() };
        assert_eq!((query.as_str(), right.as_slice()), ("Question: g\nAnswer:", &[1][..]));
    }
}
