//! Recipe files: TOML with the flags of `run` and `quantize` as keys.

use super::job::JobArgs;
use super::run::MeasureArgs;
use super::task_args::TaskArgs;
use bitsmith_formats::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a recipe says.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Recipe {
    /// MODEL.
    pub model: Option<String>,
    /// Where results go.
    pub out: Option<PathBuf>,
    /// What to make, and how.
    #[serde(flatten)]
    pub job: JobArgs,
    /// How to evaluate.
    #[serde(flatten)]
    pub measure: MeasureArgs,
    /// Tasks.
    #[serde(flatten)]
    pub tasks: TaskArgs,
    /// Keys that mean nothing. Must stand last, to get what the others leave.
    #[serde(flatten)]
    unknown: BTreeMap<String, toml::Value>,
}

impl Recipe {
    /// Reads a file; without one, a recipe that says nothing.
    pub fn read(path: Option<&Path>) -> Result<Recipe> {
        let Some(path) = path else { return Ok(Recipe::default()) };
        let text = std::fs::read_to_string(path).map_err(|e| Error::read(path, e))?;
        Self::parse(&text).map_err(|e| e.file(path))
    }

    fn parse(text: &str) -> Result<Recipe> {
        let bad = |message: String| Error::usage(message).hint("a recipe has the command's flags as keys: method = \"gptq\"");
        let recipe: Recipe = toml::from_str(text).map_err(|e| bad(e.to_string().trim().to_string()))?;
        match recipe.unknown.keys().next() {
            Some(key) => Err(bad(format!("there is no flag `{key}`"))),
            None => Ok(recipe),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_flags() {
        let recipe = Recipe::parse(
            "model = 'demo'\nout = 'x'\nto = ['gguf:q4_k_m']\nno-fallback = true\ntensor-type = ['attn_v=q6_k']\neval-ctx = 64\ngate = ['kld.mean<1']",
        )
        .unwrap();
        assert_eq!((recipe.model.as_deref(), recipe.out), (Some("demo"), Some("x".into())));
        assert_eq!(
            (recipe.job.to, recipe.job.no_fallback, recipe.measure.eval_ctx),
            (vec!["gguf:q4_k_m".into()], true, Some(64))
        );
        assert_eq!(recipe.measure.gate, ["kld.mean<1"]);
        assert_eq!(Recipe::parse("").unwrap(), Recipe::default());
        for bad in ["colour = 'blue'", "samples = 'many'", "to = "] {
            assert_eq!(Recipe::parse(bad).unwrap_err().kind.exit_code(), 2, "{bad}");
        }
    }
}
