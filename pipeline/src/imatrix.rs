//! Importance matrices on their own: what they cover, several made one, one layout turned into the other.

use bitsmith_calibrate::imatrix::{Coverage, Imatrix, Layout};
pub use bitsmith_calibrate::imatrix::{DEFAULT_CHUNK_SIZE, TensorCoverage};
use bitsmith_formats::{Error, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What [`imatrix`] found and wrote.
#[derive(Debug, Clone, Serialize)]
pub struct ImatrixReport {
    /// The files that were read.
    pub files: Vec<PathBuf>,
    /// What they cover together.
    #[serde(flatten)]
    pub coverage: Coverage,
    /// The file that was written.
    pub out: Option<PathBuf>,
}

/// Reads the files as one matrix, describes it, and writes it to `out` in the layout that its extension names (`.gguf`, `.dat`).
/// `chunk_size`: tokens that one call of a `.dat` file stands for.
pub fn imatrix(files: &[PathBuf], out: Option<&Path>, chunk_size: u32) -> Result<ImatrixReport> {
    let layout = match out {
        None => None,
        Some(path) => Some(Layout::of(path).ok_or_else(|| {
            Error::usage("the file's extension must say the layout").file(path).hint("end its name in .gguf or .dat")
        })?),
    };
    let all = Imatrix::read_all(files, chunk_size)?;
    if let (Some(path), Some(layout)) = (out, layout) {
        all.write(path, layout)?;
    }
    Ok(ImatrixReport { files: files.to_vec(), coverage: all.coverage(), out: out.map(Path::to_path_buf) })
}
