//! A target's tensors encoded part by part, elsewhere and at any time, and put together afterwards: the same bytes as in one go.

use super::Job;
use crate::calibration::Loaded;
use crate::encode::Encoder;
use crate::share::Share;
use crate::spool::Spool;
use bitsmith_formats::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Tensors that were encoded by [`Job::encode`].
#[derive(Debug, Clone, Default)]
pub struct Encoded {
    /// The folder of all parts' files.
    pub dir: PathBuf,
    /// What the parts' solvers reported.
    pub notes: Vec<String>,
}

/// What encoding a part left.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EncodedPart {
    /// The names of its files.
    pub files: Vec<String>,
    /// What solvers reported.
    pub notes: Vec<String>,
}

impl Job<'_> {
    /// Encodes a share of the only target's layers into a folder, the embedding with the first and the output matrix with the last share.
    /// Statistics must be given, as layers that were not quantized here tell nothing of what the next ones read.
    pub fn encode(&self, share: Share, dir: &Path) -> Result<EncodedPart> {
        let &[target] = self.options.targets.as_slice() else { return Err(Error::failed("parts are of one target")) };
        if !self.options.method.transforms.is_empty() || matches!(self.evidence, Loaded::Windows(_)) {
            return Err(Error::failed("this method does not encode layers apart"));
        }
        self.settle_mlx_dtype()?;
        let plan = self.plan(target)?;
        plan.check_importance(|role| self.has_importance(role))?;
        let spool = Spool::open(dir, &format!("part {share}"))?;
        let encoder = Encoder { share, ..self.encoder(target, &plan, &spool) };
        let notes = encoder.run()?;
        Ok(EncodedPart { files: spool.names()?, notes })
    }
}
