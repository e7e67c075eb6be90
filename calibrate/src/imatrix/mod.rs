//! llama.cpp's importance matrices: per weight tensor, Σ x² of every input channel and the number of tokens that the sums run over,
//! both per expert where a tensor stacks several matrices. Two layouts on disk, GGUF (`gguf.rs`) and the older `.dat` (`dat.rs`).

mod coverage;
mod dat;
mod gguf;

pub use coverage::{Coverage, TensorCoverage};

use crate::stats::{MatrixStats, SiteStats, Stats};
use bitsmith_formats::{Error, ErrorKind, Result};
use bitsmith_runtime::Role;
use bitsmith_runtime::role::PartKind;
use bitsmith_runtime::spec::ModelSpec;
use std::collections::BTreeMap;
use std::path::Path;

/// More tokens than a calibration can have seen; sums of counts up to it cannot overflow.
const MOST_TOKENS: u64 = 1 << 48;

/// Tokens that one call stands for in a `.dat` file, which does not say: llama-imatrix's default window.
pub const DEFAULT_CHUNK_SIZE: u32 = 512;

/// Sums over the tokens seen by one weight tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Σ x² per input channel, one matrix after the other: `(matrices, in)`.
    pub sums: Vec<f64>,
    /// Tokens seen, per matrix. A `.dat` file of stacked experts has one count for all.
    pub counts: Vec<u64>,
}

impl Entry {
    /// Channels that share a count: the row length, but for a `.dat` file's stacked experts.
    pub fn width(&self) -> usize {
        self.sums.len() / self.counts.len().max(1)
    }
    /// The tokens and the sums of each matrix.
    pub fn matrices(&self) -> impl Iterator<Item = (u64, &[f64])> {
        self.counts.iter().copied().zip(self.sums.chunks(self.width().max(1)))
    }
}

/// An importance matrix.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Imatrix {
    /// Per weight tensor, by llama.cpp's name.
    pub entries: BTreeMap<String, Entry>,
    /// Names of the calibration texts.
    pub datasets: Vec<String>,
    /// Windows of text.
    pub chunk_count: u32,
    /// Tokens per window.
    pub chunk_size: u32,
}

/// How an importance matrix lies on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// GGUF.
    Gguf,
    /// The older layout.
    Dat,
}

impl Layout {
    /// The layout that a file name asks for: `.gguf` or `.dat`.
    pub fn of(path: &Path) -> Option<Layout> {
        let extension = path.extension()?;
        [("gguf", Layout::Gguf), ("dat", Layout::Dat)]
            .into_iter()
            .find(|(e, _)| extension.eq_ignore_ascii_case(e))
            .map(|(_, l)| l)
    }
}

impl Imatrix {
    /// The channel sums of `stats` for every linear layer of the model.
    pub fn from_stats(stats: &Stats, spec: &ModelSpec) -> Imatrix {
        // The tied output matrix is the embedding, whose name llama.cpp's file does not carry either: nothing to weigh a table by.
        let entries = spec.roles().into_iter().filter_map(|role| {
            let site = stats.sites.get(&role.site()?)?;
            Some((role.to_string(), entry(site, spec, role)))
        });
        Imatrix {
            entries: entries.collect(),
            datasets: vec![stats.meta.data.clone()],
            chunk_count: stats.meta.samples as u32,
            chunk_size: stats.meta.ctx as u32,
        }
    }

    /// Reads a file in either layout, told apart by its first bytes. `chunk_size`: tokens that one call of a `.dat` file stands for,
    /// which decides what it weighs beside others.
    pub fn read(path: &Path, chunk_size: u32) -> Result<Imatrix> {
        let found = match gguf::is_gguf(path)? {
            true => gguf::read(path),
            false => dat::read(path, chunk_size),
        };
        let imatrix = found.map_err(|e| e.file(path))?;
        for (name, entry) in &imatrix.entries {
            let bad = |what: &str| Err(Error::corrupt(what).file(path).tensor(name));
            if entry.counts.is_empty() || entry.sums.is_empty() || !entry.sums.len().is_multiple_of(entry.counts.len()) {
                return bad(&format!("{} sums and {} counts do not belong together", entry.sums.len(), entry.counts.len()));
            }
            if let Some(count) = entry.counts.iter().find(|c| **c > MOST_TOKENS) {
                return bad(&format!("a count of {count} tokens, which is more than any text has"));
            }
            if entry.sums.iter().any(|s| !s.is_finite() || *s < 0.0) {
                return bad("sums of squares that are negative or not finite");
            }
        }
        if imatrix.entries.is_empty() {
            return Err(Error::corrupt("the importance matrix is empty").file(path));
        }
        Ok(imatrix)
    }

    /// Reads several files as one.
    pub fn read_all<P: AsRef<Path>>(paths: &[P], chunk_size: u32) -> Result<Imatrix> {
        let mut all: Option<Imatrix> = None;
        for path in paths {
            let next = Imatrix::read(path.as_ref(), chunk_size)?;
            match &mut all {
                None => all = Some(next),
                Some(all) => all.merge(next).map_err(|e| e.file(path))?,
            }
        }
        all.ok_or_else(|| Error::usage("no importance matrix is given"))
    }

    /// Adds the sums and counts of another matrix of the same model. Tensors that only one has are kept.
    pub fn merge(&mut self, other: Imatrix) -> Result<()> {
        for (name, entry) in &other.entries {
            let Some(mine) = self.entries.get(name) else { continue };
            if (mine.sums.len(), mine.counts.len()) != (entry.sums.len(), entry.counts.len()) {
                return Err(Error::corrupt(format!(
                    "{} channels × {} matrices here, {} × {} in the files before",
                    entry.width(),
                    entry.counts.len(),
                    mine.width(),
                    mine.counts.len()
                ))
                .tensor(name)
                .hint("these importance matrices belong to different models, or one is a `.dat` file, which has one count for all experts"));
            }
        }
        for (name, entry) in other.entries {
            match self.entries.get_mut(&name) {
                None => {
                    self.entries.insert(name, entry);
                }
                Some(mine) => {
                    mine.sums.iter_mut().zip(entry.sums).for_each(|(a, b)| *a += b);
                    mine.counts.iter_mut().zip(entry.counts).for_each(|(a, b)| *a = a.saturating_add(b));
                }
            }
        }
        for dataset in other.datasets {
            if !self.datasets.contains(&dataset) {
                self.datasets.push(dataset);
            }
        }
        self.chunk_count = self.chunk_count.saturating_add(other.chunk_count);
        Ok(())
    }

    /// Writes the matrix.
    pub fn write(&self, path: &Path, layout: Layout) -> Result<()> {
        if self.entries.is_empty() {
            return Err(Error::failed("there are no statistics to write").file(path));
        }
        // Both layouts have F32, and a sum over many tokens may be larger than any.
        for (name, entry) in &self.entries {
            if entry.sums.iter().any(|s| !(*s as f32).is_finite()) {
                return Err(Error::corrupt("a sum of squares is too large for F32")
                    .file(path)
                    .tensor(name)
                    .hint("the activations have overflowed, or the importance matrix is damaged: make it again"));
            }
        }
        match layout {
            Layout::Gguf => gguf::write(self, path),
            Layout::Dat => dat::write(self, path),
        }
    }

    /// Importance, E(x²) per input channel, for every linear layer that the matrix names. Experts that saw no token count evenly, as
    /// in llama-quantize. Tensors that the model does not have are an error: the matrix belongs to another model.
    pub fn importance(&self, spec: &ModelSpec) -> Result<BTreeMap<Role, Vec<f32>>> {
        let by_name: BTreeMap<String, Role> = spec.roles().into_iter().map(|r| (r.to_string(), r)).collect();
        let mut importance = BTreeMap::new();
        for (name, entry) in &self.entries {
            let bad = |what: String| {
                Error::new(ErrorKind::Corrupt, what).tensor(name).hint("this importance matrix belongs to another model")
            };
            let role = *by_name.get(name).ok_or_else(|| bad("the model has no such tensor".into()))?;
            let shape = spec.shape(role.part);
            let row_len = shape.last().copied().unwrap_or(1);
            let matrices: usize = shape.iter().rev().skip(2).product();
            if entry.sums.len() != matrices * row_len {
                return Err(bad(format!("{} sums, expected {matrices} × {row_len}", entry.sums.len())));
            }
            if entry.counts.iter().all(|c| *c == 0) {
                continue;
            }
            let mean = |(count, sums): (u64, &[f64])| -> Vec<f32> {
                sums.iter().map(|s| if count > 0 { (s / count as f64) as f32 } else { 1.0 }).collect()
            };
            importance.insert(role, entry.matrices().flat_map(mean).collect());
        }
        Ok(importance)
    }
}

/// The sums that one tensor's matrices have, from those of the site that it reads.
fn entry(site: &SiteStats, spec: &ModelSpec, role: Role) -> Entry {
    if role.part.kind() != PartKind::Stacked {
        return Entry { sums: site.sum_sq.clone(), counts: vec![site.tokens] };
    }
    let (count, width) = (spec.shape(role.part)[0], site.width());
    if site.matrices.len() != count {
        // All see the same.
        return Entry { sums: site.sum_sq.repeat(count), counts: vec![site.tokens; count] };
    }
    let sums = |m: &MatrixStats| if m.tokens > 0 { m.sum_sq.clone() } else { vec![0.0; width] };
    Entry { sums: site.matrices.iter().flat_map(sums).collect(), counts: site.matrices.iter().map(|m| m.tokens).collect() }
}

#[cfg(test)]
mod tests;
