//! Tensor names per container, and the order of rows where a container has its own.

use super::Architecture;
use crate::role::{Part, Role};
use crate::spec::ModelSpec;
use bitsmith_formats::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Kinds of checkpoint container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerKind {
    /// A Hugging Face folder of safetensors.
    Hf,
    /// A GGUF file or set.
    Gguf,
    /// An MLX folder: Hugging Face's names, with quantized triples.
    Mlx,
}

impl ContainerKind {
    /// `hf`, `gguf` or `mlx`.
    pub fn name(self) -> &'static str {
        match self {
            ContainerKind::Hf => "hf",
            ContainerKind::Gguf => "gguf",
            ContainerKind::Mlx => "mlx",
        }
    }
}

/// A checkpoint's tensors, sorted into roles.
#[derive(Debug, Clone, Default)]
pub struct TensorMap {
    /// Tensor names by role.
    pub roles: BTreeMap<Role, String>,
    /// Tensors that carry nothing the model needs: stored rope frequencies, a copy of the tied embedding.
    pub dropped: Vec<String>,
}

impl Architecture {
    /// The name of a role's tensor in Hugging Face and MLX checkpoints.
    pub fn hf_name(&self, role: Role) -> Option<String> {
        let pattern = self.hf_names.iter().find(|(p, _)| *p == role.part)?.1;
        Some(match role.layer {
            Some(layer) => pattern.replace("{}", &layer.to_string()),
            None => pattern.to_string(),
        })
    }

    /// The name of a role's tensor in a container; `None` if the architecture has no such part there.
    pub fn tensor_name(&self, kind: ContainerKind, role: Role) -> Option<String> {
        match kind {
            ContainerKind::Gguf => Some(role.to_string()),
            ContainerKind::Hf | ContainerKind::Mlx => self.hf_name(role),
        }
    }

    /// Sorts a checkpoint's tensors into roles. Every tensor must have a role in `spec` or be known to be superfluous, and every
    /// role must have its tensor.
    pub fn map_tensors<'a>(
        &self,
        spec: &ModelSpec,
        kind: ContainerKind,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<TensorMap> {
        let known: BTreeMap<String, Role> =
            Role::all(spec.n_layers).filter_map(|r| Some((self.tensor_name(kind, r)?, r))).collect();
        let mut map = TensorMap::default();
        let mut unmapped = Vec::new();
        for name in names {
            match known.get(name) {
                Some(role) if spec.has(role.part) => {
                    map.roles.insert(*role, name.to_string());
                }
                Some(role) if role.part == Part::Output && spec.tied => map.dropped.push(name.to_string()),
                None if superfluous(kind, name) => map.dropped.push(name.to_string()),
                _ => unmapped.push(name),
            }
        }
        if let Some(first) = unmapped.first() {
            const SHOWN: usize = 8;
            let more = unmapped.len().saturating_sub(SHOWN);
            let list = unmapped.iter().take(SHOWN).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
            let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
            return Err(Error::unsupported(format!(
                "{} tensors have no place in architecture `{}`: {list}{tail}",
                unmapped.len(),
                self.name
            ))
            .tensor(*first)
            .hint("the config does not describe these weights, or the model is a variant that is not supported yet"));
        }
        for role in spec.roles() {
            if !map.roles.contains_key(&role) {
                let name = self.tensor_name(kind, role).unwrap_or_else(|| role.to_string());
                return Err(Error::missing("the checkpoint lacks this tensor")
                    .tensor(name)
                    .hint("download the checkpoint again; a shard may be missing"));
            }
        }
        Ok(map)
    }
}

fn superfluous(kind: ContainerKind, name: &str) -> bool {
    match kind {
        // Read as the rope's divisors.
        ContainerKind::Gguf => name == "rope_freqs.weight",
        ContainerKind::Hf | ContainerKind::Mlx => name.ends_with("rotary_emb.inv_freq"),
    }
}

/// The row of Hugging Face's q or k projection that stands in each row of GGUF's, where GGUF interleaves the halves of every head
/// ([`Architecture::gguf_permutes_qk`]): `result[gguf_row] = hf_row`.
pub fn gguf_row_order(n_heads: usize, head_dim: usize) -> Vec<usize> {
    let half = head_dim / 2;
    (0..n_heads).flat_map(|h| (0..half).flat_map(move |i| [h * head_dim + i, h * head_dim + half + i])).collect()
}
