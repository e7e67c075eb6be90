//! Plain Hugging Face folders: one safetensors tensor per weight, as transformers and everything after it loads.

use crate::about::ModelAbout;
use crate::card::Kind;
use crate::files::FolderFiles;
use crate::folder::{self, FolderPlan, Scheme};
use crate::layout::Layout;
use bitsmith_formats::{CodecId, Error, Float, Result};
use bitsmith_runtime::{ContainerKind, ModelSpec, Role};

impl FolderPlan {
    /// Plans a plain folder. `codecs` must name every matrix of the model, with floats only: `dense` for most. Norms and biases are
    /// stored as `dense`.
    pub fn hf(
        spec: &ModelSpec,
        files: &FolderFiles,
        about: &ModelAbout,
        dense: Float,
        codecs: &[(Role, CodecId)],
    ) -> Result<Self> {
        let layout = Layout::new(spec, ContainerKind::Hf, codecs, dense)?.wrapped(files.wrapper(), ContainerKind::Hf);
        if let Some(t) = layout.tensors.iter().find(|t| t.codec.float().is_none()) {
            return Err(Error::unsupported(format!("a plain folder has no codec {}", t.codec)).tensor(&t.name));
        }
        let mut config = files.config();
        folder::set_untied(&mut config, spec);
        folder::set_dtype(&mut config, dense);
        folder::set_mtp(&mut config, spec);
        Ok(FolderPlan::new(files, about, config, layout, Scheme::Plain, Kind::hf()).carrying(ContainerKind::Hf, Some(dense)))
    }
}
