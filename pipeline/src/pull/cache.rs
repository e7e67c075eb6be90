//! The hub's standard cache: `blobs` by hash, `snapshots` of links to them by commit, `refs` from revisions to commits.

use super::client::RemoteFile;
use super::hub::{Hub, HubId};
use super::select::{Selection, is_weights};
use bitsmith_formats::{Error, Result};
use hf_hub::{Cache, CacheRepo, Repo};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// One model's part of the cache.
#[derive(Debug)]
pub struct ModelCache {
    repo: CacheRepo,
    root: PathBuf,
    locks: PathBuf,
    id: HubId,
}

impl ModelCache {
    /// The model's folder in the hub's cache; creates nothing.
    pub fn new(hub: &Hub, id: &HubId) -> Self {
        let repo = Repo::new(id.repo.clone(), id.kind());
        let folder = repo.folder_name();
        ModelCache {
            root: hub.cache_dir.join(&folder),
            locks: hub.cache_dir.join(".locks").join(&folder),
            repo: Cache::new(hub.cache_dir.clone()).repo(repo),
            id: id.clone(),
        }
    }

    /// The folder of a commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.repo.pointer_path(commit)
    }
    /// Where contents with this hash go.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.repo.blob_path(etag)
    }
    /// Where they grow until complete: the name that the hub's own client uses, so that each resumes what the other began.
    pub fn partial(&self, etag: &str) -> PathBuf {
        self.blob(&format!("{etag}.incomplete"))
    }

    /// Whether the snapshot has the file in full.
    pub fn has(&self, commit: &str, file: &RemoteFile) -> bool {
        fs::metadata(self.snapshot(commit).join(&file.name)).is_ok_and(|m| m.is_file() && m.len() == file.size)
    }

    /// Waits until no other process downloads these contents. The lock ends when the file is closed.
    pub fn lock(&self, etag: &str, waiting: impl FnOnce()) -> Result<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        let failed = |e| Error::write(&path, e);
        create_parent(&path)?;
        let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                waiting();
                file.lock().map_err(failed)?;
            }
            Err(fs::TryLockError::Error(e)) => return Err(failed(e)),
        }
        Ok(file)
    }

    /// Makes the blob appear under the file's name in the snapshot.
    pub fn link(&self, commit: &str, file: &RemoteFile) -> Result<()> {
        let pointer = self.snapshot(commit).join(&file.name);
        create_parent(&pointer)?;
        // In one step, because another process may be reading the file under this name.
        let up = "../".repeat(2 + file.name.matches('/').count());
        let mut name = pointer.clone().into_os_string();
        name.push(format!(".{}.link", std::process::id()));
        let temporary = PathBuf::from(name);
        let _ = fs::remove_file(&temporary); // There is none, unless a killed process of the same number left it.
        link_to(&self.blob(&file.etag), Path::new(&format!("{up}blobs/{}", file.etag)), &temporary)
            .and_then(|()| fs::rename(&temporary, &pointer))
            .map_err(|e| Error::write(&pointer, e))
    }

    /// Remembers the commit of a revision.
    pub fn set_ref(&self, revision: &str, commit: &str) -> Result<()> {
        let path = self.root.join("refs").join(revision);
        if revision == commit || fs::read_to_string(&path).is_ok_and(|c| c.trim() == commit) {
            return Ok(());
        }
        create_parent(&path)?;
        // Several processes may do this at once, each with a file of its own until the last moment.
        let write = || {
            let mut file = NamedTempFile::new_in(path.parent().unwrap_or(&self.root))?;
            file.write_all(commit.as_bytes())?;
            file.persist(&path)?;
            Ok(())
        };
        write().map_err(|e| Error::write(&path, e))
    }

    /// The commit that the cache has for a revision.
    pub fn commit_of(&self, revision: &str) -> Option<String> {
        let commit = fs::read_to_string(self.root.join("refs").join(revision)).ok().map(|c| c.trim().to_string());
        let commit = commit.or_else(|| self.snapshot(revision).is_dir().then(|| revision.to_string()))?;
        // A reference that leads out of the snapshots is not one.
        let plain = commit.bytes().all(|b| b.is_ascii_alphanumeric());
        (plain && self.snapshot(&commit).is_dir()).then_some(commit)
    }

    /// The cached files of a revision that the selection asks for, with their sizes, and their commit. Fails if there is none, or if
    /// an index names weights that are not there.
    pub fn offline(&self, revision: &str, selection: &Selection) -> Result<(String, Vec<(String, u64)>)> {
        let advice = match self.id.dataset {
            true => "run the same command with a network connection".to_string(),
            false => format!("run `bitsmith pull {}` with a network connection", self.id),
        };
        let commit = self.commit_of(revision).ok_or_else(|| {
            Error::missing(format!("{} (revision `{revision}`) is not in the cache", self.id.repo)).file(&self.root).hint(&advice)
        })?;
        let snapshot = self.snapshot(&commit);
        let mut names = Vec::new();
        list(&snapshot, "", &mut names).map_err(|e| Error::read(&snapshot, e))?;
        names.sort();
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut files = Vec::new();
        for name in selection.choose(&all) {
            let path = snapshot.join(name);
            let meta = fs::metadata(&path).map_err(|e| Error::read(&path, e).hint(&advice))?;
            files.push((name.to_string(), meta.len()));
        }
        let incomplete = |what: String| Error::missing(format!("the cached copy lacks {what}")).file(&snapshot).hint(&advice);
        if files.is_empty() || selection.is_default() && !files.iter().any(|(name, _)| is_weights(name)) {
            return Err(incomplete(if files.is_empty() { "every file asked for".into() } else { "the weights".into() }));
        }
        for (index, _) in files.iter().filter(|(name, _)| name.strip_suffix(".index.json").is_some_and(is_weights)) {
            for shard in shards(&snapshot.join(index))? {
                let beside = index.rsplit_once('/').map_or_else(|| shard.clone(), |(folder, _)| format!("{folder}/{shard}"));
                let wanted = selection.choose(&[beside.as_str()]);
                if wanted.iter().any(|w| !all.contains(w)) {
                    return Err(incomplete(beside));
                }
            }
        }
        Ok((commit, files))
    }
}

/// The files that an index of weights names, each once.
fn shards(index: &Path) -> Result<Vec<String>> {
    let text = fs::read(index).map_err(|e| Error::read(index, e))?;
    let value: serde_json::Value =
        serde_json::from_slice(&text).map_err(|e| Error::corrupt(format!("not JSON: {e}")).file(index))?;
    let mut names: Vec<String> =
        value["weight_map"].as_object().into_iter().flatten().filter_map(|(_, v)| v.as_str().map(String::from)).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// Names of everything below `dir` that is not a folder.
fn list(dir: &Path, prefix: &str, names: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            list(&entry.path(), &format!("{name}/"), names)?;
        } else {
            names.push(name);
        }
    }
    Ok(())
}

/// Creates the folder that a file is to lie in.
pub fn create_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).map_err(|e| Error::write(parent, e)),
        None => Ok(()),
    }
}

#[cfg(unix)]
fn link_to(_blob: &Path, relative: &Path, pointer: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(relative, pointer)
}

/// Links need rights that most Windows users lack: a second name for the same file does as well.
#[cfg(not(unix))]
fn link_to(blob: &Path, _relative: &Path, pointer: &Path) -> io::Result<()> {
    fs::hard_link(blob, pointer).or_else(|_| fs::copy(blob, pointer).map(|_| ()))
}
