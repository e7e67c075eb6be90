//! One model description, many containers: names, metadata and tokenizers carried between them.
//!
//! This crate knows what a container wants to be told about a model and under which names its tensors go; the tensors
//! themselves come encoded from the caller, one at a time and in any order. A plan ([`GgufPlan`], [`FolderPlan`]) says what will be
//! written; its writer takes [`EncodedTensor`]s by [`Role`], in Hugging Face's row order, and the
//! artifact appears under its final name when it is whole.

mod about;
pub mod card;
mod check;
mod files;
mod folder;
pub mod gguf;
mod hf;
mod joint;
mod layout;
mod mlx;
mod mmproj;
pub mod names;
pub mod ollama;
mod packed;
mod sidecars;
mod tower;

pub use about::{ModelAbout, yaml};
pub use files::FolderFiles;
pub use folder::FolderPlan;
pub use gguf::GgufPlan;
pub use layout::PlannedTensor;
pub use mmproj::MmprojPlan;
pub use sidecars::licenses;
pub use tower::TowerFiles;

use bitsmith_formats::{EncodedTensor, Error, Result};
use bitsmith_runtime::arch::vision::TowerTensor;
use bitsmith_runtime::{HostTensor, Role};
use std::path::PathBuf;

/// An artifact that is being written.
pub trait ArtifactWriter: Send + Sync {
    /// Writes one planned tensor, exactly once, in any order and from any thread. Rows are in Hugging Face's order; a norm or
    /// bias may come in any float type.
    fn put(&self, role: Role, tensor: &EncodedTensor) -> Result<()>;
    /// Writes consecutive rows of one planned tensor from row `first_row` on, for tensors that come in parts: in any order, from
    /// any thread, each row exactly once, in Hugging Face's order. `rows` has the shape (rows, columns); of tensors with more
    /// dimensions, all but the last make rows. A vector is one row. Parts start at multiples of [`ArtifactWriter::row_align`] and
    /// end there or at the tensor's end.
    fn put_rows(&self, role: Role, first_row: usize, rows: &EncodedTensor) -> Result<()>;
    /// Rows that this container rearranges together, so that [`ArtifactWriter::put_rows`] needs them in one part: 1 for most tensors.
    fn row_align(&self, role: Role) -> usize;
    /// Whether there is a place for a scale that multiplies all of this tensor ([`EncodedTensor::scale`]).
    fn holds_scale(&self, role: Role) -> bool {
        let _ = role;
        false
    }
    /// Writes a tensor of the vision tower or projector, which folders carry beside the text model's tensors; each exactly once.
    fn put_tower(&self, tensor: &TowerTensor, values: &HostTensor) -> Result<()> {
        let _ = values;
        Err(Error::failed("the artifact has no place for a vision tower").tensor(&tensor.name))
    }
    /// Completes the artifact: checks that nothing is missing, writes what belongs beside the tensors, reads the headers back, and
    /// gives it its final name.
    fn finish(self: Box<Self>) -> Result<Artifact>;
}

/// Writes every tensor, asking for one after the other, and completes the artifact.
fn put_all(
    writer: Box<dyn ArtifactWriter>,
    roles: &[Role],
    mut tensor: impl FnMut(Role) -> Result<EncodedTensor>,
) -> Result<Artifact> {
    for &role in roles {
        writer.put(role, &tensor(role)?)?;
    }
    writer.finish()
}

/// An artifact that was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Artifact {
    /// The file or folder.
    pub path: PathBuf,
    /// Its files with their sizes in bytes, by name.
    pub files: Vec<(PathBuf, u64)>,
}

impl Artifact {
    /// Bytes of all files together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, bytes)| bytes).sum()
    }
}

#[cfg(test)]
mod tests;
