//! Uploading a release to the hub: what is there already is not sent again, and all of it becomes visible in one commit.

mod client;

use crate::manifest::{CARD, SUMS_FILE};
use crate::progress::Progress;
use crate::pull::{Hub, HubId, listed, retry};
use bitsmith_convert::ModelAbout;
use bitsmith_formats::hash::sha256_file;
use bitsmith_formats::links;
use bitsmith_formats::{Error, Result};
use client::{Client, Upload};
use serde::Serialize;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// Largest file that the hub takes, in bytes.
const MAX_FILE: u64 = 50_000_000_000;
/// Bytes of each file that the hub looks at.
const SAMPLE: u64 = 512;
/// Files that the hub is asked about at a time.
const BATCH: usize = 256;

/// What to publish, and how.
#[derive(Clone)]
pub struct PublishOptions {
    /// The hub.
    pub hub: Hub,
    /// `org/name`.
    pub repo: String,
    /// Whether a new repository is private.
    pub private: bool,
    /// Whether only to say what would be sent. Nothing is asked of the hub.
    pub dry_run: bool,
    /// Hears of the progress.
    pub progress: Arc<dyn Progress>,
}

/// What was published.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Published {
    /// `org/name`.
    pub repo: String,
    /// Its page.
    pub url: String,
    /// The commit; nothing if all files were there already, or nothing was sent.
    pub commit: Option<String>,
    /// The files, by name.
    pub files: Vec<PublishedFile>,
    /// Bytes of files that were sent.
    pub uploaded_bytes: u64,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PublishedFile {
    /// Path in the repository.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// sha256, lower-case hex.
    pub sha256: String,
    /// Whether the repository had it already.
    pub unchanged: bool,
}

/// Uploads the release in `dir`: the files that its `SHA256SUMS` lists.
pub fn publish(dir: &Path, options: &PublishOptions) -> Result<Published> {
    let id: HubId = options.repo.parse()?;
    if id.revision.is_some() {
        return Err(Error::usage("a release goes to the main branch").hint("name the repository as org/name"));
    }
    let files = files(dir)?;
    check_license(dir)?;
    let mut published = Published {
        url: format!("{}/{}", options.hub.endpoint, id.repo),
        repo: id.repo.clone(),
        commit: None,
        files: Vec::new(),
        uploaded_bytes: 0,
    };
    let report = |file: &Upload, unchanged| PublishedFile {
        name: file.name.clone(),
        bytes: file.bytes,
        sha256: file.sha256.clone(),
        unchanged,
    };
    if options.dry_run {
        published.files = files.iter().map(|f| report(f, false)).collect();
        return Ok(published);
    }
    if options.hub.offline {
        return Err(Error::usage("--offline forbids publishing"));
    }
    let (hub, progress) = (&options.hub, options.progress.as_ref());
    let client = Client::new(hub, &id.repo);
    if retry(hub, progress, || client.create(options.private).map_err(|f| (f, false)))? {
        progress.note(&format!("created {}", published.url));
    }
    let there = listed(hub, &id, progress)?;
    let unchanged = |f: &Upload| there.iter().any(|(name, hash)| *name == f.name && *hash == f.sha256);
    published.files = files.iter().map(|f| report(f, unchanged(f))).collect();
    let new: Vec<&Upload> = files.iter().filter(|f| !unchanged(f)).collect();

    let (mut small, mut large) = (Vec::new(), Vec::new());
    for batch in new.chunks(BATCH) {
        let samples = batch.iter().map(|f| Ok((*f, read(&dir.join(&f.name), SAMPLE)?))).collect::<Result<Vec<_>>>()?;
        let modes = retry(hub, progress, || client.modes(&samples).map_err(|f| (f, false)))?;
        for (file, mode) in batch.iter().zip(modes) {
            match mode {
                Some(true) => large.push(*file),
                Some(false) => small.push(*file),
                None => progress.warn(&format!("the repository's .gitignore leaves out {}", file.name)),
            }
        }
    }
    progress.start_bytes("upload", large.iter().map(|f| f.bytes).sum());
    for file in &large {
        let path = dir.join(&file.name);
        let sent = |bytes| progress.advance(bytes);
        if retry(hub, progress, || client.upload(file, &path, &sent).map_err(|f| (f, false)))? {
            published.uploaded_bytes += file.bytes;
        } else {
            progress.advance(file.bytes);
        }
    }
    progress.finish();
    let mut contents = Vec::new();
    for file in small {
        let bytes = read(&dir.join(&file.name), u64::MAX)?;
        // Of small files the hub knows git's hashes, by which they cannot be compared before.
        if !there.iter().any(|(name, hash)| *name == file.name && *hash == git_hash(&bytes)) {
            published.uploaded_bytes += file.bytes;
            contents.push((file.name.as_str(), bytes));
        } else if let Some(f) = published.files.iter_mut().find(|f| f.name == file.name) {
            f.unchanged = true;
        }
    }
    if !contents.is_empty() || !large.is_empty() {
        let message = concat!("Release made with bitsmith ", env!("CARGO_PKG_VERSION"));
        published.commit = Some(retry(hub, progress, || client.commit(message, &contents, &large).map_err(|f| (f, false)))?);
    }
    Ok(published)
}

/// What is to be published, by name.
fn files(dir: &Path) -> Result<Vec<Upload>> {
    let sums = dir.join(SUMS_FILE);
    links::check(dir)?;
    let text = fs::read_to_string(&sums).map_err(|e| {
        Error::read(&sums, e)
            .hint("only release folders are published: `bitsmith run` and `bitsmith quantize --release` make them")
    })?;
    let mut files = Vec::new();
    for line in text.lines().filter(|l| !l.is_empty()) {
        let (sha256, name) = line.split_once("  ").ok_or_else(|| Error::corrupt(format!("no checksum: `{line}`")).file(&sums))?;
        if !links::is_inside(name) {
            return Err(Error::corrupt(format!("`{name}` is outside the folder"))
                .file(&sums)
                .hint("make the release again, or write its checksums anew with sha256sum"));
        }
        let path = dir.join(name);
        let bytes = fs::metadata(&path).map_err(|e| Error::read(&path, e))?.len();
        if bytes > MAX_FILE {
            let message = format!("{bytes} bytes, and the hub takes files of up to 50 GB");
            return Err(Error::usage(message).file(path).hint("make the release with --shard-size 48GB"));
        }
        files.push(Upload { name: name.to_string(), bytes, sha256: sha256.to_string() });
    }
    let (sha256, bytes) = sha256_file(&sums)?;
    files.push(Upload { name: SUMS_FILE.into(), bytes, sha256 });
    // What is small is cheap to look at: a card that was edited since goes up only with its own checksum.
    const SMALL: u64 = 1 << 20;
    for file in files.iter().filter(|f| f.bytes < SMALL) {
        let path = dir.join(&file.name);
        if sha256_file(&path)?.0 != file.sha256 {
            return Err(Error::corrupt(format!("its contents are not those that {SUMS_FILE} lists"))
                .file(path)
                .hint("make the release again, or write its checksums anew with sha256sum"));
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// Nobody may use what has no licence.
fn check_license(dir: &Path) -> Result<()> {
    match ModelAbout::from_source(dir, None)?.license {
        Some(_) => Ok(()),
        None => Err(Error::usage("the card names no licence")
            .file(dir.join(CARD))
            .hint("make the release with --license ID, the licence of the source model")),
    }
}

/// The first bytes of a file.
fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| Error::read(path, e))?;
    file.take(most).read_to_end(&mut bytes).map_err(|e| Error::read(path, e))?;
    Ok(bytes)
}

/// git's hash of a file's contents.
fn git_hash(contents: &[u8]) -> String {
    use sha1::{Digest, Sha1};
    let hash = Sha1::new_with_prefix(format!("blob {}\0", contents.len())).chain_update(contents).finalize();
    hash.iter().map(|b| format!("{b:02x}")).collect()
}
