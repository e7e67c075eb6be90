//! Recipes of batches: TOML with the flags of `run` as keys, models, and where results go.

use super::job::JobArgs;
use super::run::MeasureArgs;
use super::task_args::TaskArgs;
use bitsmith_eval::Gate;
use bitsmith_formats::{Error, Result};
use bitsmith_pipeline::Opened;
use bitsmith_pipeline::artifact::Output;
use bitsmith_pipeline::batch::Recipe;
use bitsmith_pipeline::batch::recipe::{JobRecipe, Measure, Publish, Settings};
use bitsmith_pipeline::quantize::QuantizeOptions;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const DEFAULT_OUT: &str = "bitsmith-batch";

/// A recipe as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    /// Where results go.
    out: Option<PathBuf>,
    /// Where everything is kept that is made.
    store: Option<String>,
    /// Jobs; what they do not say, the file's own keys do.
    job: Vec<Job>,
    #[serde(flatten)]
    all: Job,
}

/// Models and what to make of them.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
struct Job {
    /// What its results are kept apart by.
    name: Option<String>,
    /// MODEL arguments.
    models: Vec<String>,
    /// Whether artifacts are measured.
    evaluate: Option<bool>,
    /// In how many parts, for as many machines, texts are observed and measured and layers are encoded.
    parts: Option<usize>,
    /// Whether folders are made ready to be published.
    release: Option<bool>,
    /// User or organisation on the hub that releases are published by.
    publish: Option<String>,
    /// Whether new repositories are private.
    private: Option<bool>,
    #[serde(flatten)]
    job: JobArgs,
    #[serde(flatten)]
    measure: MeasureArgs,
    #[serde(flatten)]
    tasks: TaskArgs,
    /// Keys that mean nothing. Must stand last, to get what the others leave.
    #[serde(flatten)]
    unknown: BTreeMap<String, toml::Value>,
}

/// What a recipe says, and where it says that things are kept.
pub struct Read {
    /// The recipe.
    pub recipe: Recipe,
    /// The store.
    pub store: Option<String>,
}

/// Reads a recipe. `out` wins over the recipe's own.
pub fn read(path: &Path, out: Option<&Path>) -> Result<Read> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::read(path, e))?;
    parse(&text, out).map_err(|e| if e.file.is_none() { e.file(path) } else { e })
}

fn parse(text: &str, out: Option<&Path>) -> Result<Read> {
    let bad = |message: String| Error::usage(message).hint("a recipe has models, to, and the flags of `run` as keys");
    let file: File = toml::from_str(text).map_err(|e| bad(e.to_string().trim().to_string()))?;
    let out = out.map(Path::to_path_buf).or(file.out).unwrap_or_else(|| DEFAULT_OUT.into());
    let mut jobs = match file.job.is_empty() {
        true => vec![file.all],
        false => file.job.iter().map(|job| job.clone().or(&file.all)).collect(),
    };
    if let Some(key) = file.job.iter().chain(&jobs).find_map(|j| j.unknown.keys().next()) {
        return Err(bad(format!("there is no key `{key}`")));
    }
    let mut names = BTreeSet::new();
    for job in &mut jobs {
        let name = job.name.as_deref().unwrap_or_default();
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) || name.starts_with('.') {
            return Err(bad(format!("`{name}`: a job's name has letters, digits, - _ and .")));
        }
        if !names.insert(name.to_string()) {
            return Err(bad("several jobs need a name each, so that their results are told apart".into()));
        }
    }
    let jobs = jobs.into_iter().map(|j| j.resolve(&out)).collect::<Result<_>>()?;
    Ok(Read { recipe: Recipe { out, jobs }, store: file.store })
}

impl Job {
    /// Fills what is not said from what the file says for all jobs.
    fn or(self, all: &Job) -> Job {
        let all = all.clone();
        Job {
            name: self.name,
            models: if self.models.is_empty() { all.models } else { self.models },
            evaluate: self.evaluate.or(all.evaluate),
            parts: self.parts.or(all.parts),
            release: self.release.or(all.release),
            publish: self.publish.or(all.publish),
            private: self.private.or(all.private),
            job: self.job.or(all.job),
            measure: self.measure.or(all.measure),
            tasks: self.tasks.or(all.tasks),
            unknown: all.unknown,
        }
    }

    fn resolve(self, out: &Path) -> Result<JobRecipe> {
        let what = self.name.as_ref().map_or("the recipe".into(), |n| format!("job `{n}`"));
        if self.models.is_empty() {
            return Err(Error::usage(format!("{what} names no models")).hint("models = [\"org/name\", \"./folder\"]"));
        }
        if self.job.to.is_empty() {
            return Err(Error::usage(format!("{what} names no targets")).hint("to = [\"gguf:q4_k_m\", \"mlx:4bit\"]"));
        }
        if self.job.plan_out.is_some() {
            return Err(Error::usage("`plan-out` names one file, and a batch has many plans").hint("use `bitsmith quantize`"));
        }
        let gates = self.measure.gate.iter().map(|g| g.parse()).collect::<Result<Vec<Gate>>>()?;
        if let Some(gate) = gates.iter().find(|g| g.needs_tasks()).filter(|_| self.tasks.tasks.is_empty()) {
            return Err(Error::usage(format!("gate `{gate}`: no tasks are measured")).hint("name them: tasks = [\"piqa\"]"));
        }
        if self.tasks.results_dir.is_some() {
            return Err(Error::usage("`results-dir` names one folder, and a batch has many models").hint("use `bitsmith run`"));
        }
        if self.tasks.tasks.is_empty() && self.tasks != TaskArgs::default() {
            return Err(Error::usage("options of tasks are given, and no tasks").hint("name them: tasks = [\"piqa\"]"));
        }
        let measures = self.evaluate.unwrap_or(true);
        if let Some(gate) = gates.iter().find(|g| !measures && (g.needs_kld() || g.needs_perplexity() || g.needs_tasks())) {
            return Err(Error::usage(format!("gate `{gate}`: with `evaluate = false` nothing is measured")));
        }
        let release = self.release.unwrap_or(true);
        if self.publish.is_some() && !release {
            return Err(Error::usage("`publish` needs a release: leave out `release = false`"));
        }
        let options = self.job.resolve(Output::Folder(out.to_path_buf().into()))?;
        let measure = measures.then(|| self.measure.measure(&self.tasks)).transpose()?;
        let mut settings = self.job.given()?;
        if let Some(map) = settings.as_object_mut() {
            map.remove("to");
        }
        Ok(JobRecipe {
            name: self.name,
            models: self.models,
            settings,
            options,
            measure,
            gates,
            parts: super::job::positive("parts", self.parts, 1)?,
            release,
            publish: self.publish.map(|owner| Publish { owner, private: self.private.unwrap_or(false) }),
        })
    }
}

impl MeasureArgs {
    /// As plans have it.
    fn measure(&self, tasks: &TaskArgs) -> Result<Measure> {
        let mut data: Vec<String> = Vec::new();
        for name in &self.data {
            if !data.contains(name) {
                data.push(name.clone());
            }
        }
        if data.is_empty() {
            data.push("builtin".into());
        }
        let measure = Measure {
            data,
            style: self.style.clone().unwrap_or_else(|| "llama.cpp".into()),
            ctx: self.eval_ctx,
            limit: self.limit,
            questions: (!tasks.tasks.is_empty()).then(|| tasks.questions()).transpose()?,
        };
        for (key, value) in [("eval-ctx", measure.ctx), ("limit", measure.limit)] {
            super::job::positive(key, value, 1)?;
        }
        // What is wrong shows now, and not in the middle of the work.
        measure.data()?;
        measure.options()?;
        measure.asks()?;
        Ok(measure)
    }
}

/// Reads the flags that plans carry.
pub struct Flags;

impl Flags {
    fn job(settings: &Value) -> Result<JobArgs> {
        serde_json::from_value(settings.clone()).map_err(|e| Error::corrupt(format!("the plan's flags cannot be read: {e}")))
    }
}

impl Settings for Flags {
    fn options(&self, settings: &Value, targets: &[String], out: Output) -> Result<QuantizeOptions> {
        let mut job = Flags::job(settings)?;
        job.to = targets.to_vec();
        // Targets of plans carry their budgets.
        if targets.iter().any(|t| t.contains('@')) || targets.is_empty() {
            (job.bpw, job.size, job.max_kld) = (None, None, None);
        }
        job.resolve(out)
    }

    fn describe(&self, settings: &Value, model: &mut Opened) -> Result<()> {
        Flags::job(settings)?.describe(model);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> u8 {
        parse(text, None).err().map_or(0, |e| e.kind.exit_code())
    }

    #[test]
    fn jobs_take_what_the_file_says() {
        let text = "out = 'o'\nstore = 's'\nmodels = ['demo']\nto = ['gguf:q8_0']\nmethod = 'rtn'\nlimit = 2\n\
                    [[job]]\nname = 'a'\n[[job]]\nname = 'b'\nto = ['mlx:4bit', 'gguf:q4_0']\nmethod = 'reference'\nevaluate = false";
        let Read { recipe, store } = parse(text, None).unwrap();
        assert_eq!((recipe.out, store.as_deref()), (PathBuf::from("o"), Some("s")));
        let [a, b] = &recipe.jobs[..] else { panic!("{:?}", recipe.jobs) };
        assert_eq!((a.name.as_deref(), &a.models, a.options.targets.len()), (Some("a"), &vec!["demo".to_string()], 1));
        assert_eq!((a.measure.as_ref().unwrap().limit, &b.measure, b.options.targets.len()), (Some(2), &None, 2));
        assert_eq!((a.settings["method"].as_str(), b.settings["method"].as_str()), (Some("rtn"), Some("reference")));
        assert!(a.settings.get("to").is_none());
        assert_eq!(parse(text, Some(Path::new("x"))).unwrap().recipe.out, PathBuf::from("x"));
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        let base = "models = ['demo']\nto = ['gguf:q8_0']\n";
        assert_eq!(code(base), 0);
        for more in [
            "colour = 'blue'",
            "tasks = ['no-such-task']",
            "fewshot = 2",
            "tasks = ['piqa']\nresults-dir = 'r'",
            "tasks = ['piqa']\nevaluate = false\ngate = ['tasks.piqa.value>0']",
            "samples = 'many'",
            "plan-out = 'p.toml'",
            "gate = ['tasks.piqa.value>0']",
            "evaluate = false\ngate = ['kld.mean<1']",
            "release = false\npublish = 'me'",
            "[[job]]\n[[job]]",
            "[[job]]\nname = '../x'",
            "[[job]]\ncolour = 'blue'",
            "limit = 0",
            "style = 'loud'",
            "data = ['nowhere']",
        ] {
            assert_eq!(code(&format!("{base}{more}")), 2, "{more}");
        }
        assert_eq!(code("to = ['gguf:q8_0']"), 2);
        assert_eq!(code("models = ['demo']"), 2);
        assert_eq!(code("models = ['demo']\nto = ['gguf:q9']"), 69);
    }

    #[test]
    fn flags_come_back() {
        let text = "models = ['demo']\nto = ['gguf:auto']\nbpw = 4.5\nsamples = 3\nlicense = 'mit'";
        let job = parse(text, None).unwrap().recipe.jobs.remove(0);
        let target = job.options.targets[0].to_string();
        assert_eq!(target, "gguf:auto@4.5bpw");
        let options = Flags.options(&job.settings, &[target], Output::Folder(PathBuf::from("o").into())).unwrap();
        assert_eq!((options.targets, options.calibration.samples), (job.options.targets, 3));
    }
}
