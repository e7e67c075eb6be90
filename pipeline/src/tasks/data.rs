//! Records of tasks: local files, or the hub's Parquet copies of its datasets.

use crate::context::Context;
use crate::pull::{PullOptions, Selection, pull_dataset};
use bitsmith_datasets::table;
use bitsmith_eval::tasks::{Source, Task};
use bitsmith_formats::{Error, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where the hub keeps every dataset as Parquet, whatever its own files are.
const PARQUET: &str = "refs/convert/parquet";
/// What comes after a task's name in files of examples.
const SHOTS: [&str; 4] = ["train", "dev", "fewshot", "shots"];

/// A `--task-data` argument: a folder, `task=file`, or `task.shots=file`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskData {
    /// Holds a file per task, of the task's name.
    Folder(PathBuf),
    /// The records of one task.
    Records(String, PathBuf),
    /// The examples of one task.
    Shots(String, PathBuf),
}

impl FromStr for TaskData {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() && !name.contains(['/', '\\']) => {
                Ok(match name.strip_suffix(".shots") {
                    Some(task) => TaskData::Shots(task.to_string(), path.into()),
                    None => TaskData::Records(name.to_string(), path.into()),
                })
            }
            _ if text.is_empty() => Err(Error::usage("--task-data names nothing")),
            _ => Ok(TaskData::Folder(text.into())),
        }
    }
}

/// The records of a task.
#[derive(Debug)]
pub struct Records {
    /// Those that are scored.
    pub records: Vec<Value>,
    /// Those that examples are taken from, if they are others.
    pub shots: Option<Vec<Value>>,
    /// The file of those that are scored, if it is the user's.
    pub file: Option<PathBuf>,
}

/// Reads a task's records, and examples if any are wanted. Nothing if folders were given that have no file for it.
pub fn load(task: &Task, data: &[TaskData], shots: bool, context: &Context) -> Result<Option<Records>> {
    let (records, examples) = files(task, data)?;
    if let Some(path) = records {
        let shots = examples.filter(|_| shots).map(|p| table::read(&p)).transpose()?;
        return Ok(Some(Records { records: table::read(&path)?, shots, file: Some(path) }));
    }
    match &task.source {
        Source::Hub { repo, config, split, shots: from } if !data.iter().any(|d| matches!(d, TaskData::Folder(_))) => {
            let of = |split: &str| from_hub(repo, config, split, context);
            let shots = from.as_ref().filter(|_| shots).map(|s| of(s)).transpose()?;
            Ok(Some(Records { records: of(split)?, shots, file: None }))
        }
        _ => Ok(None),
    }
}

/// The user's files of a task's records and of its examples, if there are any.
pub fn files(task: &Task, data: &[TaskData]) -> Result<(Option<PathBuf>, Option<PathBuf>)> {
    let named = |d: &TaskData, wanted: bool| match d {
        TaskData::Records(name, path) if *name == task.name && !wanted => Some(path.clone()),
        TaskData::Shots(name, path) if *name == task.name && wanted => Some(path.clone()),
        _ => None,
    };
    let folders: Vec<&Path> =
        data.iter().filter_map(|d| if let TaskData::Folder(path) = d { Some(path.as_path()) } else { None }).collect();
    let (mut records, mut examples) = (data.iter().find_map(|d| named(d, false)), data.iter().find_map(|d| named(d, true)));
    for folder in &folders {
        if records.is_none() {
            records = in_folder(task, folder, false)?;
        }
        if examples.is_none() {
            examples = in_folder(task, folder, true)?;
        }
    }
    if let (None, Source::Files { data, shots }) = (&records, &task.source) {
        records = Some(data.clone());
        examples = examples.or_else(|| shots.clone());
    }
    Ok((records, examples))
}

/// The file of a task in a folder: named as the task, or that and something more (`hellaswag_1000.jsonl`).
fn in_folder(task: &Task, folder: &Path, shots: bool) -> Result<Option<PathBuf>> {
    for name in std::iter::once(&task.name).chain(&task.files) {
        let (sub, name) = name.rsplit_once('/').unwrap_or(("", name));
        let folder = folder.join(sub);
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(_) if !sub.is_empty() => continue,
            Err(e) => return Err(Error::read(&folder, e)),
        };
        let mut found: Vec<(bool, PathBuf)> = Vec::new();
        for entry in entries {
            let path = entry.map_err(|e| Error::read(&folder, e))?.path();
            let Some(stem) = table::stem(&path).map(str::to_ascii_lowercase) else { continue };
            let Some(more) = stem.strip_prefix(&name.to_ascii_lowercase()) else { continue };
            let is_shots = SHOTS.iter().any(|s| more.strip_prefix(['_', '-', '.']) == Some(s));
            let is_records = more.is_empty() || more.starts_with(['_', '-', '.']) && !is_shots;
            if if shots { is_shots } else { is_records } {
                found.push((!more.is_empty(), path));
            }
        }
        found.sort();
        match found.as_slice() {
            [] => {}
            // The plain name goes before others.
            [(_, path)] | [(false, path), (true, _), ..] => return Ok(Some(path.clone())),
            many => {
                let names = many.iter().map(|(_, p)| p.display().to_string()).collect::<Vec<_>>().join(", ");
                return Err(Error::usage(format!("several files may hold the records of {}: {names}", task.name))
                    .hint(format!("say which with --task-data {}=FILE", task.name)));
            }
        }
    }
    Ok(None)
}

fn from_hub(repo: &str, config: &str, split: &str, context: &Context) -> Result<Vec<Value>> {
    let mut options = PullOptions::new(context.hub.clone());
    options.progress = context.progress.clone();
    options.revision = Some(PARQUET.to_string());
    options.selection = Selection { include: vec![format!("{config}/{split}/*.parquet")], exclude: Vec::new() };
    let pulled = pull_dataset(repo, &options).map_err(|e| match e.hint {
        None => e.hint("give a local file with --task-data"),
        Some(_) => e,
    })?;
    let mut records = Vec::new();
    for file in &pulled.files {
        records.extend(table::read(&pulled.path.join(&file.name))?);
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_eval::tasks::find;

    #[test]
    fn files_are_found_by_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("mmlu")).unwrap();
        for name in [
            "hellaswag_1000.jsonl",
            "HumanEval.jsonl.gz",
            "TruthfulQA.csv",
            "mmlu/anatomy.csv",
            "mmlu/anatomy_dev.csv",
            "arc_easy.jsonl",
            "arc_easy_train.jsonl",
            "arc_easy_small.jsonl",
            "piqa_a.jsonl",
            "piqa_b.jsonl",
            "README.md",
        ] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let file = |task: &str, shots| {
            let path = in_folder(&find(task).unwrap()[0], dir.path(), shots).unwrap();
            path.map(|p| p.strip_prefix(dir.path()).unwrap().display().to_string())
        };
        assert_eq!(file("hellaswag", false).unwrap(), "hellaswag_1000.jsonl");
        assert_eq!(file("hellaswag", true), None);
        assert_eq!(file("humaneval", false).unwrap(), "HumanEval.jsonl.gz");
        assert_eq!(file("truthfulqa_mc2", false).unwrap(), "TruthfulQA.csv");
        assert_eq!(file("mmlu_anatomy", false).unwrap(), "mmlu/anatomy.csv");
        assert_eq!(file("mmlu_anatomy", true).unwrap(), "mmlu/anatomy_dev.csv");
        assert_eq!(
            (file("arc_easy", false).unwrap().as_str(), file("arc_easy", true).unwrap().as_str()),
            ("arc_easy.jsonl", "arc_easy_train.jsonl")
        );
        assert_eq!(file("boolq", false), None);
        let e = in_folder(&find("piqa").unwrap()[0], dir.path(), false).unwrap_err();
        assert!(e.message.contains("piqa_a.jsonl, ") && e.hint.unwrap().contains("piqa=FILE"));
    }

    #[test]
    fn arguments() {
        assert_eq!("dir".parse::<TaskData>().unwrap(), TaskData::Folder("dir".into()));
        assert_eq!("piqa=a.jsonl".parse::<TaskData>().unwrap(), TaskData::Records("piqa".into(), "a.jsonl".into()));
        assert_eq!("piqa.shots=b.csv".parse::<TaskData>().unwrap(), TaskData::Shots("piqa".into(), "b.csv".into()));
        assert_eq!("./a=b/c".parse::<TaskData>().unwrap(), TaskData::Folder("./a=b/c".into()));
        assert!("".parse::<TaskData>().is_err());
    }
}
