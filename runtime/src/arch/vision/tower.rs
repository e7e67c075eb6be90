//! The tensors of tower and projector: sorted out of a checkpoint, with their names in every container.

use super::{Beginning, Module, ModuleKind, Wrapper};
use crate::arch::ContainerKind;
use bitsmith_formats::{Error, Result};
use std::collections::BTreeMap;

/// What a tensor of GGUF's projector file holds of one of ours.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Piece {
    /// All of it.
    All,
    /// All of it, with this added to every value.
    Plus(f32),
    /// One of so many equal parts of its rows: the first number of the second.
    Rows(usize, usize),
    /// One frame of a convolution over several, `(out, in, frames, height, width)`.
    Frame(usize),
}

impl Piece {
    /// The piece's shape, of a tensor's.
    pub fn shape(self, shape: &[usize]) -> Result<Vec<usize>> {
        let unfit = || Error::corrupt(format!("shape {shape:?} cannot be cut as the projector file has it"));
        match (self, shape) {
            (Piece::All | Piece::Plus(_), _) => Ok(shape.to_vec()),
            (Piece::Rows(_, of), [rows, row @ ..]) if rows.is_multiple_of(of) => Ok([&[rows / of], row].concat()),
            (Piece::Frame(index), &[out, inputs, frames, height, width]) if index < frames => {
                Ok(vec![out, inputs, height, width])
            }
            _ => Err(unfit()),
        }
    }

    /// The piece's shape and values, of a tensor's.
    pub fn cut(self, shape: &[usize], data: &[f32]) -> Result<(Vec<usize>, Vec<f32>)> {
        let cut = self.shape(shape)?;
        let values = match self {
            Piece::All => data.to_vec(),
            Piece::Plus(offset) => data.iter().map(|v| v + offset).collect(),
            Piece::Rows(index, of) => {
                let each = data.len() / of;
                data[index * each..(index + 1) * each].to_vec()
            }
            Piece::Frame(index) => {
                let frame: usize = cut[2..].iter().product();
                data.chunks_exact(frame.max(1)).skip(index).step_by(shape[2]).flatten().copied().collect()
            }
        };
        Ok((cut, values))
    }
}

/// A tensor of tower or projector.
#[derive(Debug, Clone)]
pub struct TowerTensor {
    /// Its name in the checkpoint.
    pub name: String,
    beginning: &'static Beginning,
    module: &'static Module,
    layer: Option<usize>,
    /// `.weight`, `.bias`, or nothing for parameters.
    end: &'static str,
}

impl TowerTensor {
    /// Its name in a folder of this kind.
    pub fn folder_name(&self, kind: ContainerKind) -> String {
        let beginning = if kind == ContainerKind::Mlx { self.beginning.mlx } else { self.beginning.hf };
        format!("{beginning}{}{}", self.filled(self.module.name), self.end)
    }

    /// The tensors that GGUF's projector file has for it.
    pub fn gguf(&self) -> impl Iterator<Item = (String, Piece)> {
        self.module.gguf.iter().map(|(name, piece)| (format!("{}{}", self.filled(name), self.end), *piece))
    }

    /// The number of the tower's layer that it belongs to.
    pub fn layer(&self) -> Option<usize> {
        self.layer
    }

    /// Whether it belongs to the norm after the tower's last layer.
    pub fn is_final_norm(&self) -> bool {
        self.module.gguf.iter().any(|(name, _)| *name == "v.post_ln")
    }

    /// Whether it is the matrix of a linear layer.
    pub fn is_linear(&self) -> bool {
        self.module.kind == ModuleKind::Linear && self.end == ".weight"
    }

    /// Whether MLX has its inputs last.
    pub fn is_turned_in_mlx(&self) -> bool {
        // The bias of a convolution is a vector everywhere.
        self.module.kind == ModuleKind::Patches && self.end != ".bias"
    }

    fn filled(&self, name: &str) -> String {
        self.layer.map_or(name.to_string(), |layer| name.replacen("{}", &layer.to_string(), 1))
    }
}

/// Tower and projector of a checkpoint.
#[derive(Debug, Clone)]
pub struct Tower {
    /// The kind of model.
    pub wrapper: &'static Wrapper,
    /// All tensors, sorted by name.
    pub tensors: Vec<TowerTensor>,
}

/// The tensors of a wrapped checkpoint.
#[derive(Debug)]
pub struct Sorted {
    /// The text model's: as it has them by itself, and as the checkpoint has them.
    pub text: BTreeMap<String, String>,
    /// Tower and projector.
    pub tower: Tower,
    /// What carries nothing: stored positions.
    pub dropped: Vec<String>,
}

/// A buffer of position numbers, which older checkpoints have.
const SUPERFLUOUS: &[&str] = &[".position_ids"];

impl Wrapper {
    /// Sorts a checkpoint's tensors into those of the text model and those of tower and projector. An error names the first that is
    /// neither.
    pub fn sort<'a>(&'static self, names: impl IntoIterator<Item = &'a str>) -> Result<Sorted> {
        let mut text = BTreeMap::new();
        let (mut tensors, mut dropped, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
        for name in names {
            if let Some((beginning, rest)) = longest(self.text, self.tower, name) {
                text.insert(format!("{}{rest}", beginning.own), name.to_string());
            } else if SUPERFLUOUS.iter().any(|end| name.ends_with(end)) {
                dropped.push(name.to_string());
            } else if let Some(tensor) = self.tower_tensor(name) {
                tensors.push(tensor);
            } else {
                unknown.push(name.to_string());
            }
        }
        unknown.sort();
        if let Some(first) = unknown.first() {
            let message = format!("{} tensors have no place in a model of type `{}`: `{first}`", unknown.len(), self.name);
            return Err(Error::unsupported(format!("{message}{}", if unknown.len() > 1 { " and others" } else { "" }))
                .tensor(first)
                .hint("the model is a variant that is not supported yet"));
        }
        tensors.sort_by(|a: &TowerTensor, b| a.name.cmp(&b.name));
        Ok(Sorted { text, tower: Tower { wrapper: self, tensors }, dropped })
    }

    fn tower_tensor(&self, name: &str) -> Option<TowerTensor> {
        let (beginning, rest) = longest(self.tower, &[], name)?;
        let (_, modules) = self.modules.iter().find(|(own, _)| *own == beginning.own)?;
        let found = modules.iter().find_map(|module| {
            let ends: &[&'static str] = if module.single { &[""] } else { &[".weight", ".bias"] };
            ends.iter().find_map(|end| Some((module, layer_in(module.name, rest.strip_suffix(end)?)?, *end)))
        });
        found.map(|(module, layer, end)| TowerTensor { name: name.to_string(), beginning, module, layer, end })
    }

    /// The name of a text model's tensor in a folder of this kind.
    pub fn text_name(&self, kind: ContainerKind, own: &str) -> String {
        self.renamed(own, |b| if kind == ContainerKind::Mlx { b.mlx } else { b.hf })
    }

    /// The name of a text model's tensor or module in the model that transformers makes.
    pub fn module_name(&self, own: &str) -> String {
        self.renamed(own, |b| b.module)
    }

    fn renamed(&self, own: &str, to: impl Fn(&Beginning) -> &'static str) -> String {
        let found = self.text.iter().find_map(|b| Some((b, own.strip_prefix(b.own)?)));
        found.map_or(own.to_string(), |(b, rest)| format!("{}{rest}", to(b)))
    }

    /// The modules that hold tower and projector: `vision_tower`, `multi_modal_projector`.
    pub fn roots(&self) -> Vec<&'static str> {
        let root = |b: &Beginning| b.hf.trim_start_matches("model.").split('.').next().unwrap_or(b.hf);
        self.tower.iter().map(root).collect()
    }
}

/// The group with the longest beginning that a name has, unless one of `others` has a longer; and the rest of the name.
fn longest<'a>(
    groups: &'static [Beginning],
    others: &'static [Beginning],
    name: &'a str,
) -> Option<(&'static Beginning, &'a str)> {
    let all = |groups: &'static [Beginning]| {
        let each =
            |b: &'static Beginning| [b.hf, b.mlx, b.module].into_iter().chain(b.others.iter().copied()).map(move |n| (b, n));
        groups.iter().flat_map(each).filter(|(_, begin)| name.starts_with(begin)).max_by_key(|(_, begin)| begin.len())
    };
    let (found, begin) = all(groups)?;
    let longer = all(others).is_some_and(|(_, other)| other.len() > begin.len());
    (!longer).then(|| (found, &name[begin.len()..]))
}

/// Whether a name has this pattern, and the layer that stands in it.
fn layer_in(pattern: &str, name: &str) -> Option<Option<usize>> {
    match pattern.split_once("{}") {
        None => (pattern == name).then_some(None),
        Some((before, after)) => {
            let number = name.strip_prefix(before)?.strip_suffix(after)?;
            number.bytes().all(|b| b.is_ascii_digit()).then(|| number.parse().ok().map(Some)).flatten()
        }
    }
}

use Piece::All;

/// Encoders in the manner of CLIP and SigLIP.
pub(super) const CLIP: &[Module] = &[
    Module::other("embeddings.class_embedding", &[("v.class_embd", All)]).single(),
    Module::patches("embeddings.patch_embedding", &[("v.patch_embd", All)]),
    Module::other("embeddings.position_embedding", &[("v.position_embd", All)]),
    // The name is spelt so.
    Module::other("pre_layrnorm", &[("v.pre_ln", All)]),
    Module::other("post_layernorm", &[("v.post_ln", All)]),
    Module::other("encoder.layers.{}.layer_norm1", &[("v.blk.{}.ln1", All)]),
    Module::other("encoder.layers.{}.layer_norm2", &[("v.blk.{}.ln2", All)]),
    Module::linear("encoder.layers.{}.self_attn.q_proj", &[("v.blk.{}.attn_q", All)]),
    Module::linear("encoder.layers.{}.self_attn.k_proj", &[("v.blk.{}.attn_k", All)]),
    Module::linear("encoder.layers.{}.self_attn.v_proj", &[("v.blk.{}.attn_v", All)]),
    Module::linear("encoder.layers.{}.self_attn.out_proj", &[("v.blk.{}.attn_out", All)]),
    Module::linear("encoder.layers.{}.mlp.fc1", &[("v.blk.{}.ffn_up", All)]),
    Module::linear("encoder.layers.{}.mlp.fc2", &[("v.blk.{}.ffn_down", All)]),
    // SigLIP's pooling, which some checkpoints have though nothing reads it.
    Module::other("head.probe", &[]).single(),
    Module::other("head.attention.in_proj_weight", &[]).single(),
    Module::other("head.attention.in_proj_bias", &[]).single(),
    Module::linear("head.attention.out_proj", &[]),
    Module::other("head.layernorm", &[]),
    Module::linear("head.mlp.fc1", &[]),
    Module::linear("head.mlp.fc2", &[]),
];
