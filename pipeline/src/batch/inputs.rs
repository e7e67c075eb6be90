//! Sources of a batch, and how it is known that they are still the same.

use crate::context::Context;
use crate::manifest::{InputFile, input_files};
use crate::model::{Located, ModelRef, resolve};
use crate::opened::Opened;
use crate::pull::{HubId, Peeked, peek};
use bitsmith_convert::names::model_name;
use bitsmith_datasets::demo;
use bitsmith_formats::hash::{sha256_bytes, sha256_file};
use bitsmith_formats::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::{File, Metadata};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// So much of a file's start is looked at while planning, of other files than safetensors.
const START: u64 = 1 << 20;
/// Longest header of a safetensors file, as in the reference implementation.
const MAX_HEADER: u64 = 100_000_000;

/// Where a model comes from, as far as that can be told without reading its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum Origin {
    /// The built-in demo.
    Demo {
        /// Hash of its files.
        sha256: String,
    },
    /// The hub: a commit says all.
    Hub {
        /// `org/name`.
        repo: String,
        /// The commit.
        commit: String,
    },
    /// Files on this machine, or on a file system that all machines share.
    Local {
        /// The folder or file.
        path: PathBuf,
        /// What its files look like.
        files: Vec<Look>,
    },
}

/// What can be seen of a file without reading all of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// Its name.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// When it was modified, in nanoseconds since 1970.
    pub modified: i64,
    /// When it was changed at all, which no user can set, where the system tells.
    pub changed: i64,
    /// sha256 of its header or start.
    pub start: String,
}

/// A model that is opened to be planned with: its weights need not be there.
pub struct Planned {
    /// The model.
    pub model: Opened,
    /// Where it comes from.
    pub origin: Origin,
    /// What to call it by from now on: with its commit, or with a path from the root.
    pub argument: String,
    /// What artifacts are named after.
    pub name: String,
    /// Headers of a model on the hub, which must stay as long as it is open.
    _peeked: Option<Peeked>,
}

impl Planned {
    /// Looks at a model: at all of a local one's headers, and of one on the hub at no more.
    pub fn find(argument: &str, context: &Context) -> Result<Planned> {
        match argument.parse()? {
            ModelRef::Demo => {
                let model = Opened::open(resolve(argument, context)?)?;
                let (name, sha256) = (model.about.name.clone(), demo::sha256());
                Ok(Planned { model, origin: Origin::Demo { sha256 }, argument: argument.into(), name, _peeked: None })
            }
            ModelRef::Local(path) => {
                let path = path.canonicalize().map_err(|e| Error::read(&path, e))?;
                let argument = path.display().to_string();
                let model = Opened::open(Located { path: path.clone(), name: argument.clone(), pulled: None })?;
                let files = input_files(&path)?.iter().map(|f| Look::at(f)).collect::<Result<Vec<_>>>()?;
                let name = model.about.name.clone();
                Ok(Planned { model, origin: Origin::Local { path, files }, argument, name, _peeked: None })
            }
            ModelRef::Hub(id) if context.hub.offline => {
                let located = resolve(argument, context)?;
                let pinned = located.name.clone();
                Planned::on_hub(&id, Opened::open(located)?, pinned, None)
            }
            ModelRef::Hub(id) => {
                let peeked = peek(&id, &context.hub, None, context.progress.as_ref())?;
                let located = Located { path: peeked.path.clone(), name: peeked.name.clone(), pulled: None };
                let model = Opened::open(located).map_err(|e| peeked.rename(e))?;
                let pinned = peeked.name.clone();
                Planned::on_hub(&id, model, pinned, Some(peeked))
            }
        }
    }

    fn on_hub(id: &HubId, model: Opened, argument: String, peeked: Option<Peeked>) -> Result<Planned> {
        let commit = argument.rsplit_once('@').map(|(_, c)| c.to_string());
        let commit = commit.ok_or_else(|| Error::failed(format!("no commit is known of {argument}")))?;
        let name = model_name(Path::new(&id.repo), Some(&id.repo));
        Ok(Planned { model, origin: Origin::Hub { repo: id.repo.clone(), commit }, argument, name, _peeked: peeked })
    }
}

impl Origin {
    /// Bytes that reading all of it takes, as far as they are known.
    pub fn bytes(&self) -> Option<u64> {
        match self {
            Origin::Local { files, .. } => Some(files.iter().map(|f| f.bytes).sum()),
            _ => None,
        }
    }

    /// Whether the files are still those that were planned with.
    pub fn check(&self) -> Result<()> {
        let Origin::Local { path, files } = self else { return Ok(()) };
        let found = input_files(path)?.iter().map(|f| Look::at(f)).collect::<Result<Vec<_>>>()?;
        let other = found.iter().find(|f| !files.contains(f)).or_else(|| files.iter().find(|f| !found.contains(f)));
        match other {
            Some(file) => Err(changed(path, &file.name, "the plan was made")),
            None => Ok(()),
        }
    }
}

impl Look {
    fn at(path: &Path) -> Result<Look> {
        let failed = |e| Error::read(path, e);
        let mut file = File::open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        let mut wanted = START.min(meta.len());
        let mut start = Vec::new();
        if path.extension().is_some_and(|e| e == "safetensors") {
            (&mut file).take(8).read_to_end(&mut start).map_err(failed)?;
            let length = start.first_chunk().map(|b| u64::from_le_bytes(*b)).filter(|n| *n <= MAX_HEADER);
            wanted = length.map_or(wanted, |n| n + 8);
        }
        let rest = wanted.saturating_sub(start.len() as u64);
        file.take(rest).read_to_end(&mut start).map_err(failed)?;
        let (modified, changed) = times(&meta);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Look { name, bytes: meta.len(), modified, changed, start: sha256_bytes(&start) })
    }
}

/// When a file was modified and changed, in nanoseconds since 1970.
fn times(meta: &Metadata) -> (i64, i64) {
    let modified = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or(0, |d| d.as_nanos() as i64);
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        (modified, meta.ctime().saturating_mul(1_000_000_000).saturating_add(meta.ctime_nsec()))
    }
    #[cfg(not(unix))]
    (modified, 0)
}

fn changed(path: &Path, name: &str, since: &str) -> Error {
    Error::corrupt(format!("{name} has changed since {since}"))
        .file(path)
        .hint("run `bitsmith batch` again: it plans anew, and makes anew what depends on this file")
}

/// A file of a source that was read and hashed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReadFile {
    /// Name, size and hash.
    #[serde(flatten)]
    pub file: InputFile,
    /// When it was modified and changed, as the machine that read it says.
    pub times: (i64, i64),
}

/// Reads and hashes all of a model.
pub fn read_all(model: &Path) -> Result<Vec<ReadFile>> {
    let read = |path: &PathBuf| {
        let look = || Ok(times(&std::fs::metadata(path).map_err(|e| Error::read(path, e))?));
        let before = look()?;
        let file = InputFile::of(path)?;
        match look()? == before {
            true => Ok(ReadFile { file, times: before }),
            false => Err(changed(model, &file.name, "it was opened")),
        }
    };
    input_files(model)?.iter().map(read).collect()
}

/// Checks that a model is the one that was read. A file that looks as it did is not read again; another machine's copy is.
pub fn check_read(model: &Path, known: &[ReadFile]) -> Result<()> {
    let paths = input_files(model)?;
    let since = "its content was recorded";
    for path in &paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Some(was) = known.iter().find(|k| k.file.name == name) else { return Err(changed(model, &name, since)) };
        let meta = std::fs::metadata(path).map_err(|e| Error::read(path, e))?;
        let same = meta.len() == was.file.bytes && (times(&meta) == was.times || sha256_file(path)?.0 == was.file.sha256);
        if !same {
            return Err(changed(model, &name, since));
        }
    }
    match known.iter().find(|k| !paths.iter().any(|p| p.ends_with(&k.file.name))) {
        Some(gone) => Err(changed(model, &gone.file.name, since)),
        None => Ok(()),
    }
}

/// A file that a recipe names: text, statistics, a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Named {
    /// As it is named.
    pub path: PathBuf,
    /// Its content.
    pub sha256: String,
}

impl Named {
    /// Reads and hashes it.
    pub fn of(path: &Path) -> Result<Named> {
        Ok(Named { path: path.to_path_buf(), sha256: sha256_file(path)?.0 })
    }

    /// Whether it is still the same.
    pub fn check(&self) -> Result<()> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        match sha256_file(&self.path)?.0 == self.sha256 {
            true => Ok(()),
            false => Err(changed(&self.path, &name, "the plan was made")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_formats::ErrorKind;
    use std::fs;

    /// A folder with files that count as a model's.
    fn model(dir: &Path) -> PathBuf {
        fs::write(dir.join("config.json"), "{}").unwrap();
        let mut weights = 16u64.to_le_bytes().to_vec();
        weights.extend(vec![7; 1000]);
        fs::write(dir.join("model.safetensors"), weights).unwrap();
        dir.to_path_buf()
    }

    #[test]
    fn a_change_shows_though_size_and_time_are_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = model(dir.path());
        let known = read_all(&path).unwrap();
        check_read(&path, &known).unwrap();
        let files = input_files(&path).unwrap().iter().map(|f| Look::at(f).unwrap()).collect();
        let origin = Origin::Local { path: path.clone(), files };
        origin.check().unwrap();
        let weights = path.join("model.safetensors");
        let then = fs::metadata(&weights).unwrap().modified().unwrap();
        let mut bytes = fs::read(&weights).unwrap();
        bytes[500] ^= 1;
        fs::write(&weights, bytes).unwrap();
        File::options().write(true).open(&weights).unwrap().set_modified(then).unwrap();
        for e in [check_read(&path, &known).unwrap_err(), origin.check().unwrap_err()] {
            assert_eq!(e.kind, ErrorKind::Corrupt);
            assert!(e.message.contains("model.safetensors"), "{e}");
        }
    }

    #[test]
    fn a_copy_is_the_same_model_to_those_who_read_it() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let known = read_all(&model(dir.path())).unwrap();
        let copy = model(other.path());
        check_read(&copy, &known).unwrap();
        fs::write(copy.join("tokenizer.json"), "{}").unwrap();
        assert!(check_read(&copy, &known).is_err());
        fs::remove_file(copy.join("tokenizer.json")).unwrap();
        fs::remove_file(copy.join("config.json")).unwrap();
        assert!(check_read(&copy, &known).is_err());
    }
}
