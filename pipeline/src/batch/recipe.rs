//! What a batch is to make, as a recipe file says it.

use crate::artifact::Output;
use crate::evaluate::EvalOptions;
use crate::opened::Opened;
use crate::quantize::QuantizeOptions;
use crate::tasks::TaskOptions;
use bitsmith_datasets::DataSpec;
use bitsmith_eval::Gate;
use bitsmith_eval::tasks::find;
use bitsmith_formats::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::PathBuf;

/// A recipe, read and checked.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Where results go.
    pub out: PathBuf,
    /// Its jobs; files are named relative to the folder that the program was called in.
    pub jobs: Vec<JobRecipe>,
}

/// Models, targets, and how to get from one to the other.
#[derive(Debug, Clone)]
pub struct JobRecipe {
    /// What its results are kept apart by, where there are several jobs.
    pub name: Option<String>,
    /// MODEL arguments.
    pub models: Vec<String>,
    /// The flags of `quantize` as a recipe has them, without targets: what [`Settings`] reads.
    pub settings: Value,
    /// What these flags mean. The output is of no account.
    pub options: QuantizeOptions,
    /// How artifacts are measured, if they are.
    pub measure: Option<Measure>,
    /// Conditions that every artifact must meet.
    pub gates: Vec<Gate>,
    /// In how many parts texts are observed and measured, and layers are encoded where they can be apart.
    pub parts: usize,
    /// Whether folders are made ready to be published.
    pub release: bool,
    /// Where they are published, if they are.
    pub publish: Option<Publish>,
}

/// How artifacts are measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// DATA arguments.
    pub data: Vec<String>,
    /// How text is cut and scored.
    pub style: String,
    /// Tokens per window, if not the style's own number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ctx: Option<usize>,
    /// The first so many windows, and items of each task, only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Tasks that source and artifacts are scored on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub questions: Option<Questions>,
}

/// Tasks, and how they are asked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Questions {
    /// Names of tasks and groups, or TOML files.
    pub tasks: Vec<String>,
    /// Where their records are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<String>,
    /// Examples before each question, if not the task's own number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shots: Option<usize>,
    /// Whether prompts are in the model's chat template.
    pub chat: bool,
    /// Most tokens of a written answer, if not the task's own number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// Whether programs that the model writes are run.
    pub run_code: bool,
}

impl Questions {
    /// What to ask: of each task, the first `limit` items.
    pub fn options(&self, limit: Option<usize>) -> Result<TaskOptions> {
        Ok(TaskOptions {
            tasks: find(&self.tasks.join(","))?,
            data: self.data.iter().map(|d| d.parse()).collect::<Result<_>>()?,
            shots: self.shots,
            limit,
            chat: self.chat,
            max_tokens: self.max_tokens,
            run_code: self.run_code,
            results: None,
        })
    }

    /// The user's files that questions are made of.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let definitions = self.tasks.iter().flat_map(|t| t.split(',')).map(str::trim).filter(|t| t.ends_with(".toml"));
        let mut files: Vec<PathBuf> = definitions.map(PathBuf::from).collect();
        files.extend(self.options(None)?.files()?);
        Ok(files)
    }
}

impl Measure {
    /// The texts.
    pub fn data(&self) -> Result<Vec<DataSpec>> {
        self.data.iter().map(|d| d.parse()).collect()
    }

    /// What decides how texts are measured.
    pub fn of_texts(&self) -> Measure {
        Measure { questions: None, ..self.clone() }
    }

    /// What source and artifacts are asked.
    pub fn asks(&self) -> Result<Option<TaskOptions>> {
        self.questions.as_ref().map(|q| q.options(self.limit)).transpose()
    }

    /// How they are evaluated.
    pub fn options(&self) -> Result<EvalOptions> {
        Ok(EvalOptions { style: self.style.parse()?, ctx: self.ctx, limit: self.limit })
    }
}

/// Where releases are published.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Publish {
    /// The user or organisation on the hub. Repositories are named after model and format.
    pub owner: String,
    /// Whether new repositories are private.
    pub private: bool,
}

/// Turns the flags that a plan carries into options. The command line knows them, not we.
pub trait Settings: Sync {
    /// The options for these targets.
    fn options(&self, settings: &Value, targets: &[String], out: Output) -> Result<QuantizeOptions>;
    /// Adds what the flags say of the model itself.
    fn describe(&self, settings: &Value, model: &mut Opened) -> Result<()>;
}
