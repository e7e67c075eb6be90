//! Tensor names per container, and the order of rows where a container has its own.

use super::Architecture;
use crate::role::{Part, Role};
use crate::spec::{Experts, ModelSpec};
use bitsmith_formats::{Error, Result, in_large_pages};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

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

/// How a container's tensor differs from the rows of the part that it holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// Not at all.
    Same,
    /// Rows (of a vector, elements) change places within chunks of this many: row `i` of the container's chunk is row `chunk[i]` of
    /// ours.
    Rows(Arc<[usize]>),
    /// Inputs and outputs change places: `(in, out)`.
    Transposed,
    /// This is added to every value.
    Plus(f32),
}

impl Order {
    /// Rows of a projection into `n` heads of queries or keys where the halves of each head, which are rotated together, stand
    /// interleaved, as in GGUFs of Llama.
    pub fn interleaved(head_dim: usize) -> Order {
        let half = head_dim / 2;
        Order::Rows((0..half).flat_map(|i| [i, half + i]).collect())
    }

    /// The part's values from those of the container. `of` are the values of one row (of a vector, 1).
    pub(crate) fn undo<T: Copy + Default>(&self, data: Vec<T>, of: usize) -> Vec<T> {
        let Order::Rows(chunk) = self else { return data };
        let mut out = in_large_pages(vec![T::default(); data.len()]);
        for (out, data) in out.chunks_mut(chunk.len() * of).zip(data.chunks(chunk.len() * of)) {
            for (row, at) in data.chunks_exact(of).zip(chunk.iter()) {
                out[at * of..(at + 1) * of].copy_from_slice(row);
            }
        }
        out
    }

    /// The container's values from those of the part.
    pub fn apply<T: Copy>(&self, data: &[T], of: usize) -> Vec<T> {
        let Order::Rows(chunk) = self else { return data.to_vec() };
        let rows = |data: &[T]| -> Vec<T> { chunk.iter().flat_map(|at| data[at * of..(at + 1) * of].to_vec()).collect() };
        data.chunks(chunk.len() * of).flat_map(rows).collect()
    }

    /// Rows that must be read or written together.
    pub fn align(&self, rows: usize) -> usize {
        match self {
            Order::Same | Order::Plus(_) => 1,
            Order::Rows(chunk) => chunk.len(),
            Order::Transposed => rows,
        }
    }
}

/// A tensor of a container that holds a part, or consecutive rows of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// The tensor's name.
    pub name: String,
    /// The shape of what it holds, as we have it.
    pub shape: Vec<usize>,
    /// How the tensor differs from that.
    pub order: Order,
    /// Where in the tensor it is, if the tensor holds other things besides.
    pub within: Option<Within>,
}

/// The place of a matrix or vector inside a larger tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Within {
    /// The tensor's own shape.
    pub shape: Vec<usize>,
    /// The tensor's first row of ours. A vector is part of that row.
    pub first: usize,
    /// Of a vector or a transposed matrix: the first of the tensor's columns that is ours.
    pub start: usize,
    /// Steps between our rows in the tensor; where these are its columns, between columns; in a vector, between elements.
    pub stride: usize,
}

/// A tensor in which a container has several parts, or the matrices of one, one after the other.
#[derive(Debug, Clone, PartialEq)]
pub struct Joint {
    /// Its name, `{}` standing for the layer.
    pub name: &'static str,
    /// The tensor's own shape.
    pub shape: Vec<usize>,
    /// Rows of the tensor from one matrix of the part to the next.
    pub each: usize,
    /// The tensor's first row of the first matrix.
    pub first: usize,
    /// As [`Within::start`].
    pub start: usize,
    /// As [`Within::stride`].
    pub stride: usize,
    /// Whether our rows are the tensor's columns.
    pub transposed: bool,
}

impl Joint {
    /// Gate (`index` 0) and up (1) of all experts in one tensor, `(experts, 2 × ffn, hidden)`: one after the other, or row by row
    /// in turn.
    pub fn gate_up(name: &'static str, index: usize, experts: &Experts, hidden: usize, in_turn: bool) -> Joint {
        let (n, f) = (experts.count, experts.ffn_size);
        let (first, stride) = if in_turn { (index, 2) } else { (index * f, 1) };
        Joint { name, shape: vec![n, 2 * f, hidden], each: 2 * f, first, start: 0, stride, transposed: false }
    }
    /// As [`Joint::gate_up`], with every matrix transposed: `(experts, hidden, 2 × ffn)`.
    pub fn gate_up_transposed(name: &'static str, index: usize, experts: &Experts, hidden: usize, in_turn: bool) -> Joint {
        let (n, f) = (experts.count, experts.ffn_size);
        let (start, stride) = if in_turn { (index, 2) } else { (index * f, 1) };
        Joint { name, shape: vec![n, hidden, 2 * f], each: hidden, first: 0, start, stride, transposed: true }
    }
    /// The experts' down projections, `(experts, hidden, ffn)`.
    pub fn down(name: &'static str, experts: &Experts, hidden: usize) -> Joint {
        let shape = vec![experts.count, hidden, experts.ffn_size];
        Joint { name, shape, each: hidden, first: 0, start: 0, stride: 1, transposed: false }
    }
    /// The experts' down projections, each transposed: `(experts, ffn, hidden)`.
    pub fn down_transposed(name: &'static str, experts: &Experts, hidden: usize) -> Joint {
        let shape = vec![experts.count, experts.ffn_size, hidden];
        Joint { name, shape, each: experts.ffn_size, first: 0, start: 0, stride: 1, transposed: true }
    }

    /// Where the matrices of a part of this shape are: `(matrices, out, in)`, or `(vectors, width)`.
    fn places(&self, layer: Option<usize>, shape: &[usize]) -> Vec<Place> {
        let name = layer.map_or(self.name.to_string(), |l| self.name.replacen("{}", &l.to_string(), 1));
        let each = |i: usize| Place {
            name: name.clone(),
            shape: shape[1..].to_vec(),
            order: if self.transposed { Order::Transposed } else { Order::Same },
            within: Some(Within {
                shape: self.shape.clone(),
                first: i * self.each + self.first,
                start: self.start,
                stride: self.stride,
            }),
        };
        (0..shape[0]).map(each).collect()
    }
}

impl Place {
    /// Rows that it holds; a vector is one row.
    pub fn n_rows(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, outer)| outer.iter().product())
    }
    /// The tensor's own shape.
    pub fn tensor_shape(&self) -> Vec<usize> {
        match (&self.within, &self.order) {
            (Some(within), _) => within.shape.clone(),
            (None, Order::Transposed) => self.shape.iter().rev().copied().collect(),
            (None, _) => self.shape.clone(),
        }
    }
}

/// A checkpoint's tensors, sorted into roles.
#[derive(Debug, Clone, Default)]
pub struct TensorMap {
    /// The tensors of each role, in the order of its rows; never none.
    pub roles: BTreeMap<Role, Vec<Place>>,
    /// Tensors that carry nothing the model needs: stored rope frequencies, a copy of the tied embedding.
    pub dropped: Vec<String>,
}

impl TensorMap {
    /// Gives the tensors the names that they have in a checkpoint: by the names that they have without wrapper.
    pub(crate) fn rename(&mut self, names: &BTreeMap<String, String>) {
        let places = self.roles.values_mut().flatten().map(|p| &mut p.name);
        for name in places.chain(&mut self.dropped) {
            if let Some(own) = names.get(name) {
                name.clone_from(own);
            }
        }
    }

    /// The role of each tensor that has one.
    pub fn by_name(&self) -> BTreeMap<&str, Role> {
        self.roles.iter().flat_map(|(role, places)| places.iter().map(|p| (p.name.as_str(), *role))).collect()
    }
}

impl Architecture {
    /// The tensors that hold a role in a container; `None` if the architecture has no such part there.
    pub fn places(&self, spec: &ModelSpec, kind: ContainerKind, role: Role) -> Option<Vec<Place>> {
        let shape = spec.shape(role.part);
        let order = (self.order)(spec, kind, role.part);
        let one = |name: String| vec![Place { name, shape: shape.clone(), order: order.clone(), within: None }];
        if kind == ContainerKind::Gguf {
            let own = self.gguf_names.iter().find(|(part, _)| *part == role.part);
            let name = match (own, role.layer) {
                (Some((_, name)), Some(layer)) => format!("blk.{layer}.{name}.weight"),
                _ => role.to_string(),
            };
            // Vectors have one dimension there.
            let shape = if let [1, n] = shape[..] { vec![n] } else { shape };
            return Some(vec![Place { name, shape, order, within: None }]);
        }
        let Some(pattern) = self.pattern(kind, role.part) else {
            return (self.joint)(spec, kind, role.part).first().map(|j| j.places(role.layer, &shape));
        };
        let name = match role.layer {
            Some(layer) => pattern.replacen("{}", &layer.to_string(), 1),
            None => pattern.to_string(),
        };
        if !name.contains("{e}") {
            return Some(one(name));
        }
        let each = |e: usize| Place {
            name: name.replace("{e}", &e.to_string()),
            shape: shape[1..].to_vec(),
            order: order.clone(),
            within: None,
        };
        Some((0..shape[0]).map(each).collect())
    }

    /// Whether a container that is written has this part in one tensor with others, or its matrices turned around: then no format
    /// but plain numbers has a place for it.
    pub fn is_joint(&self, spec: &ModelSpec, kind: ContainerKind, part: Part) -> bool {
        kind != ContainerKind::Gguf && self.pattern(kind, part).is_none() && !(self.joint)(spec, kind, part).is_empty()
    }

    fn pattern(&self, kind: ContainerKind, part: Part) -> Option<&'static str> {
        let find = |names: &'static [(Part, &'static str)]| names.iter().find(|(p, _)| *p == part).map(|(_, name)| *name);
        let own = if kind == ContainerKind::Mlx { find(self.mlx_names) } else { None };
        own.or_else(|| find(self.hf_names)).or_else(|| find(super::family::NAMES))
    }

    /// The name of a part outside the layers in Hugging Face checkpoints.
    pub fn hf_name(&self, part: Part) -> Option<&'static str> {
        self.pattern(ContainerKind::Hf, part)
    }

    /// Sorts a checkpoint's tensors into roles. Every tensor must have a role in `spec` or be known to be superfluous, and every
    /// role must have its tensor.
    pub fn map_tensors<'a>(
        &self,
        spec: &ModelSpec,
        kind: ContainerKind,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<TensorMap> {
        let names: BTreeSet<&str> = names.into_iter().collect();
        // Each layer has a tensor at least; a number from a damaged header is not worth counting up to.
        if spec.n_layers > names.len() {
            return Err(Error::missing(format!("the checkpoint has {} tensors, and {} layers", names.len(), spec.n_layers))
                .hint("download the checkpoint again: a shard may be missing, or its header is damaged"));
        }
        let alias = self.alias(kind, &names);
        let mut map = TensorMap::default();
        let mut used = BTreeSet::new();
        let mut missing = None;
        let has = |places: &[Place]| names.contains(aliased(&places[0].name, alias).as_str());
        for role in spec.roles() {
            let mut places = self.places(spec, kind, role).ok_or_else(|| {
                let what = format!("architecture `{}` has no name for this tensor in {}", self.name, kind.name());
                Error::unsupported(what).tensor(role.to_string())
            })?;
            if !has(&places) {
                let shape = spec.shape(role.part);
                let joint = (self.joint)(spec, kind, role.part).into_iter().map(|j| j.places(role.layer, &shape));
                places = joint.into_iter().find(|p| has(p)).unwrap_or(places);
            }
            places.iter_mut().for_each(|place| place.name = aliased(&place.name, alias));
            if let Some(place) = places.iter().find(|p| !names.contains(p.name.as_str())) {
                missing.get_or_insert_with(|| place.name.clone());
            }
            used.extend(places.iter().map(|p| p.name.clone()));
            map.roles.insert(role, places);
        }
        let tied = if spec.tied { self.places(spec, kind, Role::global(Part::Output)) } else { None };
        let tied = tied.and_then(|p| p.into_iter().next()).map(|p| p.name);
        let mut unmapped = Vec::new();
        for &name in names.iter().filter(|n| !used.contains(**n)) {
            if tied.as_deref() == Some(name) || self.is_superfluous(kind, name) || self.is_beyond(spec, kind, name) {
                map.dropped.push(name.to_string());
            } else {
                unmapped.push(name);
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
        match missing {
            Some(name) => Err(Error::missing("the checkpoint lacks this tensor")
                .tensor(name)
                .hint("download the checkpoint again; a shard may be missing")),
            None => Ok(map),
        }
    }

    /// Whether a folder without quantized weights has MLX's names, where these differ from Hugging Face's.
    pub fn has_mlx_names(&self, n_layers: usize, has: impl Fn(&str) -> bool) -> bool {
        let in_any_layer = |pattern: &str| (0..n_layers).any(|l| has(&pattern.replacen("{}", &l.to_string(), 1)));
        self.mlx_names.iter().any(|(_, pattern)| if pattern.contains("{}") { in_any_layer(pattern) } else { has(pattern) })
    }

    /// The other beginning of names that this checkpoint has.
    fn alias(&self, kind: ContainerKind, names: &BTreeSet<&str>) -> Option<(&'static str, &'static str)> {
        let embedding = self.pattern(kind, Part::TokenEmbd)?;
        let has = |(usual, other): (&str, &str)| {
            embedding.strip_prefix(usual).is_some_and(|rest| names.contains(format!("{other}{rest}").as_str()))
        };
        if kind == ContainerKind::Gguf || names.contains(embedding) {
            return None;
        }
        self.aliases.iter().copied().find(|alias| has(*alias))
    }

    /// Whether a tensor belongs to a layer after the last, by which some models learn to predict several tokens at once (MTP).
    fn is_beyond(&self, spec: &ModelSpec, kind: ContainerKind, name: &str) -> bool {
        let prefix = match (kind, self.pattern(kind, Part::AttnNorm).and_then(|p| p.split_once("{}"))) {
            (ContainerKind::Gguf, _) => "blk.",
            (_, Some((prefix, _))) => prefix,
            _ => return false,
        };
        let layer = name.strip_prefix(prefix).and_then(|rest| rest.split_once('.')?.0.parse::<usize>().ok());
        self.extra_layers && layer.is_some_and(|l| l >= spec.n_layers)
    }

    fn is_superfluous(&self, kind: ContainerKind, name: &str) -> bool {
        match kind {
            // Read as the rope's divisors.
            ContainerKind::Gguf => ["rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"].contains(&name),
            ContainerKind::Hf | ContainerKind::Mlx => {
                name.ends_with("rotary_emb.inv_freq") || self.superfluous.iter().any(|end| name.ends_with(end))
            }
        }
    }
}

/// A name as a checkpoint has it whose names begin otherwise.
fn aliased(name: &str, alias: Option<(&str, &str)>) -> String {
    match alias.and_then(|(usual, other)| Some((name.strip_prefix(usual)?, other))) {
        Some((rest, other)) => format!("{other}{rest}"),
        None => name.to_string(),
    }
}

/// The order of Llama's tensors: GGUF interleaves the halves of every head of q and k.
pub(super) fn interleaved_qk(spec: &ModelSpec, kind: ContainerKind, part: Part) -> Order {
    match (kind, part) {
        (ContainerKind::Gguf, Part::AttnQ | Part::AttnK | Part::AttnQBias | Part::AttnKBias) => Order::interleaved(spec.head_dim),
        _ => Order::Same,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_undone() {
        for order in [Order::Same, Order::interleaved(6), Order::Rows([2, 0, 1].into())] {
            for of in [1, 4] {
                let data: Vec<usize> = (0..12 * of).collect();
                assert_eq!(order.undo(order.apply(&data, of), of), data);
            }
        }
        assert_eq!(Order::interleaved(4).apply(&[0, 1, 2, 3, 10, 11, 12, 13], 1), [0, 2, 1, 3, 10, 12, 11, 13]);
    }
}
