//! What is wrong with a model or an artifact, as commands that look at them report it.

use bitsmith_formats::Error;
use serde::Serialize;
use std::path::PathBuf;

/// An error that is a finding, not the end of the work.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Problem {
    /// The stable name of its kind.
    pub kind: &'static str,
    /// What is wrong.
    pub message: String,
    /// The file concerned.
    pub file: Option<PathBuf>,
    /// The tensor concerned.
    pub tensor: Option<String>,
    /// What the user can do.
    pub hint: Option<String>,
}

impl From<Error> for Problem {
    fn from(e: Error) -> Self {
        let hint = e.remedy().map(String::from);
        Problem { kind: e.kind.name(), message: e.message, file: e.file, tensor: e.tensor, hint }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}: ", file.display())?;
        }
        if let Some(tensor) = &self.tensor {
            write!(f, "tensor `{tensor}`: ")?;
        }
        f.write_str(&self.message)
    }
}
