//! Layers after the last, by which a model was trained to predict several tokens at once (multi-token prediction, NextN): whether an
//! artifact has them, and where.

use crate::target::Target;
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::ModelSpec;
use std::fmt;
use std::str::FromStr;

/// What becomes of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mtp {
    /// They stand where the format has them, after the others.
    Keep,
    /// They go to a file of their own.
    Split,
    /// They are left out.
    Drop,
}

impl FromStr for Mtp {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "keep" => Mtp::Keep,
            "split" => Mtp::Split,
            "drop" => Mtp::Drop,
            other => return Err(Error::usage(format!("--mtp {other}: the choices are keep, split and drop"))),
        })
    }
}

impl fmt::Display for Mtp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mtp::Keep => "keep",
            Mtp::Split => "split",
            Mtp::Drop => "drop",
        })
    }
}

impl Mtp {
    /// What becomes of them in a target, if this was asked for. An error says that the target has no place for them, or that there is
    /// nothing to put there.
    pub fn resolve(asked: Option<Mtp>, target: Target, spec: &ModelSpec) -> Result<Mtp> {
        let none = spec.mtp_layers == 0;
        match asked {
            Some(Mtp::Split) if none => {
                Err(Error::usage("--mtp split: the model has no layers for multi-token prediction").hint("leave out --mtp"))
            }
            _ if none => Ok(Mtp::Drop),
            // mlx-lm has no such layers in its models and loads no folder with tensors that it does not know.
            Some(asked @ (Mtp::Keep | Mtp::Split)) if target.container() == "mlx" => {
                Err(Error::unsupported(format!("--mtp {asked}: mlx-lm has no multi-token prediction in `{}`", spec.arch.name))
                    .hint("--mtp drop leaves the layers out; GGUF and Hugging Face targets carry them"))
            }
            None if target.container() == "mlx" => Ok(Mtp::Drop),
            asked => Ok(asked.unwrap_or(Mtp::Keep)),
        }
    }

    /// The tensors that all files of an artifact have together.
    pub fn whole(self, spec: &ModelSpec) -> ModelSpec {
        if self == Mtp::Drop { spec.without_mtp() } else { spec.clone() }
    }

    /// The tensors of the artifact itself, and those of a second file beside it.
    pub fn files(self, target: Target, spec: &ModelSpec) -> (ModelSpec, Option<ModelSpec>) {
        match (self, target.container()) {
            (Mtp::Split, "gguf") => (spec.without_mtp(), Some(ModelSpec { mtp_only: true, ..spec.clone() })),
            _ => (self.whole(spec), None),
        }
    }
}
