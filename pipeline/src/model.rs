//! What MODEL means on the command line: a path, a model on the hub, or the built-in demo.

use crate::context::Context;
use crate::pull::{HubId, PullOptions, Pulled, pull};
use bitsmith_datasets::demo;
use bitsmith_formats::{Error, Result};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The word for the built-in demo model.
pub const DEMO: &str = "demo";

/// A MODEL argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelRef {
    /// The built-in demo model. A folder of that name is written `./demo`.
    Demo,
    /// A checkpoint folder or a file.
    Local(PathBuf),
    /// A model on the hub.
    Hub(HubId),
}

/// A model that is on this machine.
#[derive(Debug, Clone)]
pub struct Located {
    /// The folder or file.
    pub path: PathBuf,
    /// How to call the model in results: what the user wrote, with the commit if it came from the hub.
    pub name: String,
    /// What the hub said, if it came from there.
    pub pulled: Option<Pulled>,
}

impl FromStr for ModelRef {
    type Err = Error;

    /// The demo's name first; then whatever exists on disk; then a hub id.
    fn from_str(text: &str) -> Result<Self> {
        if text == DEMO {
            return Ok(ModelRef::Demo);
        }
        let path = Path::new(text);
        if path.exists() {
            return Ok(ModelRef::Local(path.to_path_buf()));
        }
        let is_file_name = [".gguf", ".safetensors", ".json", ".bin", ".pt", ".pth"].iter().any(|e| text.ends_with(e));
        match text.parse() {
            Ok(id) if !is_file_name => Ok(ModelRef::Hub(id)),
            _ => Err(Error::missing("no such file or folder")
                .file(path)
                .hint("a model is a checkpoint folder, a .gguf file, a hub id (org/name[@revision]), or `demo`")),
        }
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelRef::Demo => f.write_str(DEMO),
            ModelRef::Local(path) => write!(f, "{}", path.display()),
            ModelRef::Hub(id) => write!(f, "{id}"),
        }
    }
}

/// Brings the model onto this machine, if it is not there: unpacks the demo, or downloads what is missing.
pub fn resolve(model: &str, context: &Context) -> Result<Located> {
    match model.parse()? {
        ModelRef::Demo => {
            let path = demo::materialise(context.cache_dir.join(demo::NAME))?;
            Ok(Located { path, name: DEMO.to_string(), pulled: None })
        }
        ModelRef::Local(path) => Ok(Located { path, name: model.to_string(), pulled: None }),
        ModelRef::Hub(id) => {
            let mut options = PullOptions::new(context.hub.clone());
            options.progress = context.progress.clone();
            options.check_config = true;
            let pulled = pull(&id.to_string(), &options)?;
            Ok(Located { path: pulled.path.clone(), name: format!("{}@{}", pulled.model, pulled.commit), pulled: Some(pulled) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_formats::ErrorKind;

    #[test]
    fn what_a_model_argument_means() {
        assert_eq!("demo".parse::<ModelRef>().unwrap(), ModelRef::Demo);
        assert!(matches!("src".parse().unwrap(), ModelRef::Local(_)));
        assert!(matches!("org/name@v1".parse().unwrap(), ModelRef::Hub(_)));
        for missing in ["nowhere", "org/model.gguf", "/no/such/folder", "a/b/c"] {
            assert_eq!(missing.parse::<ModelRef>().unwrap_err().kind, ErrorKind::Missing, "{missing}");
        }
    }

    #[test]
    fn the_demo_is_unpacked_into_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let mut context = Context::from_env();
        context.set_cache_dir(dir.path().to_path_buf());
        let located = resolve("demo", &context).unwrap();
        assert!(located.path.starts_with(dir.path()) && located.path.join("model.safetensors").is_file());
        assert_eq!(located.name, "demo");
    }
}
