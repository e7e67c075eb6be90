//! What commands that measure tasks have in common.

use super::job::positive;
use crate::output::table;
use bitsmith_eval::{GateOutcome, TaskResult};
use bitsmith_formats::{Error, Result};
use bitsmith_pipeline::Context;
use bitsmith_pipeline::batch::recipe::Questions;
use bitsmith_pipeline::tasks::{TaskOptions, Tasks};
use clap::Args;
use serde::Deserialize;
use std::path::PathBuf;

/// Tasks and how they are asked.
#[derive(Debug, Clone, Default, PartialEq, Args, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
#[command(next_help_heading = "Tasks")]
pub struct TaskArgs {
    /// Score on these tasks, joined by commas: names and groups from `bitsmith tasks`, or TOML files
    #[arg(long, value_name = "LIST")]
    pub tasks: Vec<String>,
    /// Where tasks' records are, instead of the hub: a folder with a file per task, TASK=FILE, or TASK.shots=FILE for examples
    #[arg(long, value_name = "DIR|TASK=FILE", requires = "tasks")]
    pub task_data: Vec<String>,
    /// Examples before each question [default: the task's own number]
    #[arg(long, value_name = "N", requires = "tasks")]
    pub fewshot: Option<usize>,
    /// Put prompts in the model's chat template
    #[arg(long, requires = "tasks")]
    pub chat: bool,
    /// Most tokens of an answer that is written [default: the task's own number]
    #[arg(long, value_name = "N", requires = "tasks")]
    pub max_gen_tokens: Option<usize>,
    /// Run the programs that the model writes, in a sandbox without network (Linux)
    #[arg(long, requires = "tasks")]
    pub allow_code_execution: bool,
    /// Write results_*.json and samples_*.jsonl to this folder, as lm-evaluation-harness does
    #[arg(long, value_name = "DIR", requires = "tasks")]
    pub results_dir: Option<PathBuf>,
}

impl TaskArgs {
    /// With what is not given taken from a recipe.
    pub fn or(self, recipe: TaskArgs) -> TaskArgs {
        TaskArgs {
            tasks: if self.tasks.is_empty() { recipe.tasks } else { self.tasks },
            task_data: if self.task_data.is_empty() { recipe.task_data } else { self.task_data },
            fewshot: self.fewshot.or(recipe.fewshot),
            chat: self.chat || recipe.chat,
            max_gen_tokens: self.max_gen_tokens.or(recipe.max_gen_tokens),
            allow_code_execution: self.allow_code_execution || recipe.allow_code_execution,
            results_dir: self.results_dir.or(recipe.results_dir),
        }
    }

    /// The tasks with their questions, if there are any. `limit` is the number of items of each.
    pub fn prepare(&self, limit: Option<usize>, context: &Context) -> Result<Option<Tasks>> {
        if self.tasks.is_empty() {
            return match *self == TaskArgs::default() {
                true => Ok(None),
                false => Err(Error::usage("options of tasks are given, and no tasks").hint("name them with --tasks")),
            };
        }
        let options = TaskOptions { results: self.results_dir.clone(), ..self.questions()?.options(limit)? };
        Tasks::new(options, context).map(Some)
    }

    /// As plans have it.
    pub fn questions(&self) -> Result<Questions> {
        Ok(Questions {
            tasks: self.tasks.clone(),
            data: self.task_data.clone(),
            shots: self.fewshot,
            chat: self.chat,
            max_tokens: self.max_gen_tokens.map(|n| positive("--max-gen-tokens", Some(n), n)).transpose()?,
            run_code: self.allow_code_execution,
        })
    }
}

/// Task scores for people.
pub fn task_table(results: &[TaskResult]) -> String {
    if results.is_empty() {
        return String::new();
    }
    let paired = results.iter().any(|r| r.paired.is_some());
    let mut header: Vec<&str> = vec!["task", "metric", "n", "value", "±"];
    if paired {
        header.extend(["delta", "95 % interval", "gained", "lost", "p", "against the reference"]);
    }
    let mut rows = vec![header.into_iter().map(String::from).collect::<Vec<_>>()];
    for r in results {
        let mut row =
            vec![r.task.clone(), r.metric.clone(), r.n.to_string(), format!("{:.4}", r.value), format!("{:.4}", r.stderr)];
        if let Some(p) = &r.paired {
            let [low, high] = p.interval.unwrap_or([p.delta; 2]);
            row.extend([
                format!("{:+.4}", p.delta),
                format!("{low:+.4} to {high:+.4}"),
                p.gained.to_string(),
                p.lost.to_string(),
                format!("{:.3}", p.p_value),
                p.verdict.clone(),
            ]);
        }
        rows.push(row);
    }
    table(&rows, &[2, 3, 4, 5, 6, 7, 8, 9])
}

/// Gates that did not hold, each with its bound and the value.
pub fn failed_gates(outcomes: impl Iterator<Item = GateOutcome>) -> Vec<String> {
    let value = |v: Option<f64>| v.map_or_else(|| "is not measured".into(), |v| format!("is not met by {v}"));
    outcomes.filter(|g| !g.held).map(|g| format!("{} {}", g.gate, value(g.value))).collect()
}
