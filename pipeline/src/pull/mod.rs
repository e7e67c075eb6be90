//! Downloads of checkpoints from the model hub, into the cache that the hub's own tools share.
//!
//! `hf-hub` supplies the cache's layout, the hub's addresses and the listing of a repository. Its downloader does not check what it
//! gets, appends to a partial file even if the server starts over, and gives untyped errors, so the transfer of files is our own
//! (`download.rs`): pinned to one commit, resumed, checked against the hub's hashes, retried with growing waits.

mod cache;
mod client;
mod download;
mod hub;
mod parts;
mod peek;
mod select;

pub(crate) use client::{Failure, header, origin};
pub(crate) use download::retry;
pub(crate) use hub::user_cache;
pub use hub::{DEFAULT_ENDPOINT, Hub, HubId};
pub use peek::{Peeked, peek};
pub use select::Selection;

use crate::progress::{Progress, Silent};
use bitsmith_formats::atomic::free_bytes;
use bitsmith_formats::{Error, ErrorKind, Result};
use bitsmith_runtime::ModelSpec;
use cache::ModelCache;
use client::{Client, RemoteFile};
use download::Downloader;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Files downloaded at the same time.
const PARALLEL: usize = 4;
/// The revision taken if none is named.
const DEFAULT_REVISION: &str = "main";
const CONFIG: &str = "config.json";

/// What to download, and how.
#[derive(Clone)]
pub struct PullOptions {
    /// The hub and its cache.
    pub hub: Hub,
    /// Branch, tag or commit, if the model's name does not say.
    pub revision: Option<String>,
    /// Which files.
    pub selection: Selection,
    /// Whether to refuse, before any weights come, an architecture that cannot be read.
    pub check_config: bool,
    /// Whether only to find out what would be downloaded.
    pub dry_run: bool,
    /// Hears of the progress.
    pub progress: Arc<dyn Progress>,
}

impl PullOptions {
    /// The default: everything that reading the model needs.
    pub fn new(hub: Hub) -> Self {
        PullOptions {
            hub,
            revision: None,
            selection: Selection::default(),
            check_config: false,
            dry_run: false,
            progress: Arc::new(Silent),
        }
    }
}

/// A model in the cache.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pulled {
    /// `org/name`.
    pub model: String,
    /// The revision asked for.
    pub revision: String,
    /// The commit that it is.
    pub commit: String,
    /// The folder with the files.
    pub path: PathBuf,
    /// The files, by name.
    pub files: Vec<PulledFile>,
    /// Bytes that came over the network.
    pub downloaded_bytes: u64,
}

/// One file of a model in the cache.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PulledFile {
    /// Path in the repository.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// The hub's sha256, where it has one.
    pub sha256: Option<String>,
    /// Whether it was there before.
    pub cached: bool,
}

/// Downloads what is missing of `org/name[@revision]` and gives the folder with the model's files.
pub fn pull(model: &str, options: &PullOptions) -> Result<Pulled> {
    pull_repository(&model.parse()?, options)
}

/// Downloads what is missing of some files of a dataset, `org/name[@revision]`, and gives the folder that they are in.
pub fn pull_dataset(dataset: &str, options: &PullOptions) -> Result<Pulled> {
    let id: HubId = dataset.parse()?;
    pull_repository(&HubId { dataset: true, ..id }, options)
}

fn pull_repository(id: &HubId, options: &PullOptions) -> Result<Pulled> {
    let revision = match (&id.revision, &options.revision) {
        (Some(a), Some(b)) if a != b => return Err(Error::usage(format!("two revisions are asked for, `{a}` and `{b}`"))),
        (a, b) => a.as_ref().or(b.as_ref()).map_or(DEFAULT_REVISION, String::as_str),
    };
    hub::check_revision(revision)?;
    let cache = ModelCache::new(&options.hub, id);
    if options.hub.offline {
        return from_cache(id, revision, options, &cache);
    }
    match online(id, revision, options, &cache) {
        // Without a network, what is in the cache is better than nothing.
        Err(e) if e.kind == ErrorKind::Transient && !options.dry_run => match from_cache(id, revision, options, &cache) {
            Ok(pulled) => {
                options.progress.warn(&format!("{e}; using commit {} from the cache", pulled.commit));
                Ok(pulled)
            }
            Err(_) => Err(e),
        },
        result => result,
    }
}

fn from_cache(id: &HubId, revision: &str, options: &PullOptions, cache: &ModelCache) -> Result<Pulled> {
    let (commit, files) = cache.offline(revision, &options.selection)?;
    let path = cache.snapshot(&commit);
    check_config(&path, options)?;
    let files = files.into_iter().map(|(name, bytes)| PulledFile { name, bytes, sha256: None, cached: true }).collect();
    Ok(Pulled { model: id.repo.clone(), revision: revision.to_string(), commit, path, files, downloaded_bytes: 0 })
}

fn online(id: &HubId, revision: &str, options: &PullOptions, cache: &ModelCache) -> Result<Pulled> {
    let progress = options.progress.as_ref();
    let client = Client::new(&options.hub, id)?;
    let listing = retry(&options.hub, progress, || client.list(revision).map_err(|f| (f, false)))?;
    let names: Vec<&str> = listing.files.iter().map(|f| f.name.as_str()).collect();
    names.iter().try_for_each(|n| select::check_name(n))?;
    let chosen = options.selection.choose(&names);
    check_choice(id, &names, &chosen, &options.selection)?;

    let mut files = Vec::new();
    for listed in listing.files.iter().filter(|f| chosen.contains(&f.name.as_str())) {
        files.push(retry(&options.hub, progress, || client.describe(&listing.commit, listed).map_err(|f| (f, false)))?);
    }
    // The configuration first, for it may end the matter; weights last, so that a snapshot that has them has the rest.
    files.sort_by(|a, b| (a.name != CONFIG, a.size, &a.name).cmp(&(b.name != CONFIG, b.size, &b.name)));
    files.dedup_by(|a, b| a.name == b.name);
    let cached: Vec<bool> = files.iter().map(|f| cache.has(&listing.commit, f)).collect();
    let path = cache.snapshot(&listing.commit);

    let mut downloaded_bytes = 0;
    if !options.dry_run {
        let missing: Vec<&RemoteFile> = files.iter().zip(&cached).filter(|(_, cached)| !**cached).map(|(f, _)| f).collect();
        check_space(&missing, cache)?;
        let stop = AtomicBool::new(false);
        let job = Downloader { hub: &options.hub, client: &client, cache, commit: &listing.commit, progress, stop: &stop };
        downloaded_bytes = transfer(&job, &missing, &path, options)?;
        cache.set_ref(revision, &listing.commit)?;
    }
    let mut files: Vec<PulledFile> = files
        .into_iter()
        .zip(cached)
        .map(|(f, cached)| PulledFile { sha256: (f.etag.len() == 64).then_some(f.etag), name: f.name, bytes: f.size, cached })
        .collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Pulled { model: id.repo.clone(), revision: revision.to_string(), commit: listing.commit, path, files, downloaded_bytes })
}

/// Names and hashes of the files of a repository's main branch: sha256 of large ones, git's hash of others.
pub(crate) fn listed(hub: &Hub, id: &HubId, progress: &dyn Progress) -> Result<Vec<(String, String)>> {
    let client = Client::new(hub, id)?;
    let listing = retry(hub, progress, || client.list(DEFAULT_REVISION).map_err(|f| (f, false)))?;
    Ok(listing.files.iter().filter_map(|f| f.complete()).map(|f| (f.name, f.etag)).collect())
}

/// Refuses a download that the disk has no room for. What earlier attempts left of it is there already.
fn check_space(missing: &[&RemoteFile], cache: &ModelCache) -> Result<()> {
    let partial = |f: &RemoteFile| std::fs::metadata(cache.partial(&f.etag)).map_or(0, |m| m.len());
    let needed: u64 = missing.iter().map(|f| f.size.saturating_sub(partial(f))).sum();
    let root = cache.blob("");
    match free_bytes(&root) {
        Some(free) if free < needed => {
            let message = format!("the download takes {needed} bytes, and the disk has {free}");
            Err(Error::new(ErrorKind::Io, message)
                .file(root)
                .hint("make room, or choose another disk with --cache-dir or HF_HOME"))
        }
        _ => Ok(()),
    }
}

/// Downloads the missing files: the configuration alone, then a few at a time.
fn transfer(job: &Downloader<'_>, missing: &[&RemoteFile], snapshot: &Path, options: &PullOptions) -> Result<u64> {
    if !missing.is_empty() {
        job.progress.start_bytes("download", missing.iter().map(|f| f.size).sum());
    }
    let (first, rest) = missing.split_at(usize::from(missing.first().is_some_and(|f| f.name == CONFIG)));
    let received = AtomicU64::new(0);
    let result = (|| {
        for file in first {
            received.fetch_add(job.fetch(file)?, Ordering::Relaxed);
        }
        check_config(snapshot, options)?;
        let next = AtomicUsize::new(0);
        let failed: Mutex<Option<Error>> = Mutex::new(None);
        let work = || {
            while !job.stop.load(Ordering::Relaxed) {
                let Some(file) = rest.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                match job.fetch(file) {
                    Ok(bytes) => {
                        received.fetch_add(bytes, Ordering::Relaxed);
                    }
                    Err(e) => {
                        job.stop.store(true, Ordering::Relaxed);
                        // The first failure is the cause; later ones are downloads that it stopped.
                        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                    }
                }
            }
        };
        std::thread::scope(|s| {
            for _ in 0..PARALLEL.min(rest.len()) {
                s.spawn(work);
            }
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    })();
    if !missing.is_empty() {
        job.progress.finish();
    }
    result.map(|()| received.into_inner())
}

/// Refuses an architecture that cannot be read, if asked to and if there is a configuration.
fn check_config(snapshot: &Path, options: &PullOptions) -> Result<()> {
    let path = snapshot.join(CONFIG);
    if !options.check_config || options.dry_run || !path.is_file() {
        return Ok(());
    }
    let text = std::fs::read(&path).map_err(|e| Error::read(&path, e))?;
    let config = serde_json::from_slice(&text).map_err(|e| Error::corrupt(format!("not JSON: {e}")).file(&path))?;
    ModelSpec::from_config(&config).map(|_| ()).map_err(|e| e.file(&path))
}

/// Refuses a selection that cannot be what was meant.
fn check_choice(id: &HubId, names: &[&str], chosen: &[&str], selection: &Selection) -> Result<()> {
    if !selection.is_default() {
        if chosen.is_empty() {
            return Err(
                Error::missing(format!("no file of {} matches", id.repo)).hint(format!("the repository has {}", some(names)))
            );
        }
        return Ok(());
    }
    if chosen.iter().any(|n| select::is_weights(n)) {
        return Ok(());
    }
    let error = Error::missing(format!("{} has no weights that can be read", id.repo));
    let gguf = names.iter().find(|n| n.ends_with(".gguf"));
    Err(match gguf {
        Some(name) => error.hint(format!("it has GGUF files: `bitsmith pull {id} --include '{name}'`, then use that file")),
        None => error.hint(format!("the repository has {}", some(names))),
    })
}

/// A few names for a message.
fn some(names: &[&str]) -> String {
    const SHOWN: usize = 8;
    let more = names.len().saturating_sub(SHOWN);
    let list = names[..names.len().min(SHOWN)].join(", ");
    if more > 0 { format!("{list} and {more} more") } else { list }
}
