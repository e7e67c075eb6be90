//! A model on the hub without its weights: small files in full, and of the weights only the headers, by range requests. They make up a
//! folder of files with holes, which has the sizes of the real ones and takes no space; whatever reads headers can read it.

use super::client::{Client, Failure, Listed};
use super::download::retry;
use super::hub::{Hub, HubId, check_revision};
use super::select::{check_name, matches};
use super::{DEFAULT_REVISION, some};
use crate::progress::Progress;
use bitsmith_formats::gguf::parse_header_of;
use bitsmith_formats::{Error, ErrorKind, Result};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Files that say what a model is and how it reads text.
const SMALL: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
];
/// Bytes of the length that starts a safetensors file.
const LENGTH_FIELD: u64 = 8;
/// Longest safetensors header, as in the reference implementation.
const MAX_HEADER: u64 = 100_000_000;
/// First part of a GGUF file to ask for; it has most of the metadata, and without a vocabulary all.
const FIRST_PART: u64 = 256 << 10;
/// Longest start of a GGUF file to ask for: vocabularies take a few MiB.
const MAX_PART: u64 = 64 << 20;

/// The headers of a model on the hub.
#[derive(Debug)]
pub struct Peeked {
    folder: TempDir,
    /// What to open: the folder, or a GGUF file in it.
    pub path: PathBuf,
    /// `org/name@commit`.
    pub name: String,
    /// Bytes that came over the network for it, the listing apart.
    pub downloaded_bytes: u64,
}

impl Peeked {
    /// Names the hub's file instead of ours in an error.
    pub fn rename(&self, mut e: Error) -> Error {
        if let Some(inside) = e.file.as_deref().and_then(|f| f.strip_prefix(self.folder.path()).ok()) {
            e.file = Some(Path::new(&self.name).join(inside));
        }
        e
    }
}

/// Fetches headers. Of a repository with GGUF files alone, `file` (a pattern) says which one is meant.
pub fn peek(id: &HubId, hub: &Hub, file: Option<&str>, progress: &dyn Progress) -> Result<Peeked> {
    let revision = id.revision.as_deref().unwrap_or(DEFAULT_REVISION);
    check_revision(revision)?;
    let client = Client::new(hub, id)?;
    let listing = retry(hub, progress, || client.list(revision).map_err(|f| (f, false)))?;
    let folder = tempfile::tempdir().map_err(|e| Error::write(std::env::temp_dir(), e))?;
    let mut job = Peek { client: &client, hub, progress, commit: &listing.commit, folder: folder.path(), bytes: 0 };
    let names: Vec<&str> = listing.files.iter().map(|f| f.name.as_str()).filter(|n| !n.contains('/')).collect();
    names.iter().try_for_each(|n| check_name(n))?;
    let chosen = choose(id, &names, file)?;
    let path = match chosen.first() {
        Some(first) if first.ends_with(".gguf") => folder.path().join(first),
        _ => folder.path().to_path_buf(),
    };
    for listed in &listing.files {
        let name = listed.name.as_str();
        if chosen.contains(&name) {
            job.header(listed)?;
        } else if file.is_none() && (SMALL.contains(&name) || name.ends_with(".safetensors.index.json") && !name.contains('/')) {
            job.whole(listed)?;
        }
    }
    let downloaded_bytes = job.bytes;
    Ok(Peeked { folder, path, name: format!("{}@{}", id.repo, listing.commit), downloaded_bytes })
}

/// The files whose headers are wanted.
fn choose<'a>(id: &HubId, names: &[&'a str], file: Option<&str>) -> Result<Vec<&'a str>> {
    let ending = |end: &str| names.iter().copied().filter(|n| n.ends_with(end)).collect::<Vec<_>>();
    let safetensors = ending(".safetensors");
    if file.is_none() && !safetensors.is_empty() {
        return Ok(safetensors.into_iter().filter(|n| n.starts_with("model")).collect());
    }
    let ggufs: Vec<&str> = ending(".gguf").into_iter().filter(|n| file.is_none_or(|f| matches(f, n))).collect();
    // A split set counts as one file, its first.
    let is_later = |n: &str| n.rsplit_once("-of-").is_some_and(|(start, _)| !start.ends_with("-00001") && ggufs.len() > 1);
    let firsts: Vec<&str> = ggufs.iter().copied().filter(|n| !is_later(n)).collect();
    match firsts[..] {
        [one] => {
            let set = one.strip_suffix(".gguf").and_then(|n| n.split_once("-00001-of-"));
            let rest =
                |n: &&str| set.is_some_and(|(stem, total)| n.starts_with(stem) && n.ends_with(&format!("-of-{total}.gguf")));
            let mut chosen = vec![one];
            chosen.extend(ggufs.iter().copied().filter(|n| *n != one).filter(rest));
            Ok(chosen)
        }
        [] => Err(Error::new(ErrorKind::Unsupported, format!("{} has no safetensors and no such GGUF file", id.repo))
            .hint(format!("only their headers can be read without a download; the repository has {}", some(names)))),
        [first, ..] => Err(Error::usage(format!("{} has {} GGUF files", id.repo, firsts.len()))
            .hint(format!("name one, for example --file '{first}'"))),
    }
}

struct Peek<'a> {
    client: &'a Client<'a>,
    hub: &'a Hub,
    progress: &'a dyn Progress,
    commit: &'a str,
    folder: &'a Path,
    bytes: u64,
}

impl Peek<'_> {
    fn size(&self, listed: &Listed) -> Result<u64> {
        let found = retry(self.hub, self.progress, || self.client.describe(self.commit, listed).map_err(|f| (f, false)))?;
        Ok(found.size)
    }

    fn range(&mut self, name: &str, start: u64, end: u64) -> Result<Vec<u8>> {
        if start >= end {
            return Ok(Vec::new());
        }
        let bytes =
            retry(self.hub, self.progress, || self.client.range(self.commit, name, start..end).map_err(|f: Failure| (f, false)))?;
        self.bytes += bytes.len() as u64;
        Ok(bytes)
    }

    fn whole(&mut self, listed: &Listed) -> Result<()> {
        let size = self.size(listed)?;
        if size > MAX_PART {
            return Err(Error::corrupt(format!("{size} bytes, too large for what it should be")).file(&listed.name));
        }
        let bytes = self.range(&listed.name, 0, size)?;
        self.write(&listed.name, &bytes, size)
    }

    fn header(&mut self, listed: &Listed) -> Result<()> {
        let (name, size) = (listed.name.as_str(), self.size(listed)?);
        let start = if name.ends_with(".gguf") { self.gguf(name, size)? } else { self.safetensors(name, size)? };
        self.write(name, &start, size)
    }

    fn safetensors(&mut self, name: &str, size: u64) -> Result<Vec<u8>> {
        let mut start = self.range(name, 0, LENGTH_FIELD.min(size))?;
        // What is no header length is left for the reader of the file to complain about.
        if let Some(length) = start.first_chunk().map(|b| u64::from_le_bytes(*b)).filter(|n| *n <= MAX_HEADER) {
            let rest = self.range(name, LENGTH_FIELD, (LENGTH_FIELD + length).min(size))?;
            start.extend(rest);
        }
        Ok(start)
    }

    fn gguf(&mut self, name: &str, size: u64) -> Result<Vec<u8>> {
        let mut start = Vec::new();
        let mut wanted = FIRST_PART;
        loop {
            let more = self.range(name, start.len() as u64, wanted.min(size))?;
            start.extend(more);
            match parse_header_of(&start, size) {
                Ok(_) => return Ok(start),
                // It may be damaged, or only not all here yet.
                Err(e)
                    if e.kind == ErrorKind::Corrupt
                        && start.len() as u64 != size
                        && wanted < MAX_PART
                        && start.starts_with(b"GGUF") => {}
                Err(e) => return Err(e.file(name)),
            }
            wanted *= 4;
        }
    }

    /// A file that starts with these bytes and is as long as the hub's.
    fn write(&self, name: &str, start: &[u8], size: u64) -> Result<()> {
        let path = self.folder.join(name);
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(start)?;
            file.set_len(size)
        };
        write().map_err(|e| Error::write(&path, e))
    }
}
