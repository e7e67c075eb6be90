//! One file from the hub into the cache: resumed where an earlier attempt stopped, and checked against the hub's hash before it
//! gets its name.

use super::cache::{ModelCache, create_parent};
use super::client::{Client, Failure, RemoteFile, header};
use super::hub::Hub;
use super::parts::in_order;
use crate::progress::Progress;
use bitsmith_formats::{Error, Result};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use ureq::http::StatusCode;

const BUFFER: usize = 256 << 10;
/// Longest wait between attempts.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Calls `attempt` until it succeeds, fails for good, or has failed `hub.attempts` times in a row without progress in between.
/// `attempt` says whether it got anywhere before it failed.
pub fn retry<T>(hub: &Hub, progress: &dyn Progress, mut attempt: impl FnMut() -> Result<T, (Failure, bool)>) -> Result<T> {
    let mut failures = 0;
    loop {
        let (failure, moved) = match attempt() {
            Ok(value) => return Ok(value),
            Err(failed) => failed,
        };
        failures = if moved { 1 } else { failures + 1 };
        let Some(asked) = failure.retry.filter(|_| failures < hub.attempts) else {
            return Err(*failure.error);
        };
        let wait = asked.unwrap_or_else(|| hub.backoff.saturating_mul(1 << (failures - 1).min(16))).min(MAX_WAIT);
        progress.note(&format!("{}; trying again in {:.1} s", failure.error, wait.as_secs_f64()));
        std::thread::sleep(wait);
    }
}

/// Running hash of a file's contents, of the kind that its etag is.
enum Hash {
    /// Large files: sha256.
    Sha256(Sha256),
    /// Others: git's blob hash, SHA-1 over a header with the length and the contents.
    Git(Sha1),
    /// The etag is no hash that we know: only the size can be checked.
    Unknown,
}

impl Hash {
    fn new(file: &RemoteFile) -> Self {
        let hex = file.etag.bytes().all(|b| b.is_ascii_hexdigit());
        match file.etag.len() {
            64 if hex => Hash::Sha256(Sha256::new()),
            40 if hex => Hash::Git(Sha1::new_with_prefix(format!("blob {}\0", file.size))),
            _ => Hash::Unknown,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hash::Sha256(h) => h.update(bytes),
            Hash::Git(h) => h.update(bytes),
            Hash::Unknown => {}
        }
    }

    /// The hash in hexadecimal.
    fn finish(self) -> Option<String> {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect();
        match self {
            Hash::Sha256(h) => Some(hex(&h.finalize())),
            Hash::Git(h) => Some(hex(&h.finalize())),
            Hash::Unknown => None,
        }
    }
}

/// Where downloads of one snapshot go and report.
pub struct Downloader<'a> {
    /// The hub's settings.
    pub hub: &'a Hub,
    /// Requests.
    pub client: &'a Client<'a>,
    /// The cache.
    pub cache: &'a ModelCache,
    /// The commit that is downloaded.
    pub commit: &'a str,
    /// Hears of every byte.
    pub progress: &'a dyn Progress,
    /// Set when another download has failed.
    pub stop: &'a AtomicBool,
}

impl Downloader<'_> {
    /// Brings the file into the snapshot and says how many bytes came over the network.
    pub fn fetch(&self, file: &RemoteFile) -> Result<u64> {
        if self.cache.has(self.commit, file) {
            return Ok(0);
        }
        let _lock = self.cache.lock(&file.etag, || {
            self.progress.note(&format!("{}: waiting for another process that downloads it", file.name));
        })?;
        let blob = self.cache.blob(&file.etag);
        // Another process may have finished it meanwhile.
        if self.cache.has(self.commit, file) {
            self.progress.advance(file.size);
            return Ok(0);
        }
        // Another revision may have the same contents.
        let there = fs::metadata(&blob).is_ok_and(|m| m.len() == file.size);
        let mut received = 0;
        if there {
            self.progress.advance(file.size);
        } else {
            let partial = self.cache.partial(&file.etag);
            create_parent(&partial)?;
            received = self.download(file, &partial)?;
            fs::rename(&partial, &blob).map_err(|e| Error::write(&blob, e))?;
        }
        self.cache.link(self.commit, file)?;
        Ok(received)
    }

    fn download(&self, file: &RemoteFile, partial: &Path) -> Result<u64> {
        let mut transfer = Transfer { job: self, file, partial, received: 0, told: 0, in_parts: true, place: Mutex::new(None) };
        retry(self.hub, self.progress, || {
            let before = transfer.received;
            transfer.attempt().map_err(|failure| (failure, transfer.received > before))
        })?;
        Ok(transfer.received)
    }
}

struct Transfer<'a> {
    job: &'a Downloader<'a>,
    file: &'a RemoteFile,
    partial: &'a Path,
    /// Bytes that came over the network, in all attempts.
    received: u64,
    /// Bytes of the file that the listener has been told of: starting over does not count them twice.
    told: u64,
    /// Whether the server may send parts.
    in_parts: bool,
    /// Where parts were found.
    place: Mutex<Option<String>>,
}

impl Transfer<'_> {
    fn tell(&mut self, done: u64) {
        if done > self.told {
            self.job.progress.advance(done - self.told);
            self.told = done;
        }
        self.job.progress.file(&self.file.name, done, self.file.size);
    }

    /// Completes the partial file, or leaves it for the next attempt.
    fn attempt(&mut self) -> Result<(), Failure> {
        let fatal = Failure::fatal;
        let (size, name) = (self.file.size, self.file.name.as_str());
        let partial = self.partial;
        let write_failed = |e| fatal(Error::write(partial, e));
        let mut options = File::options();
        let mut out = options.read(true).write(true).create(true).truncate(false).open(partial).map_err(write_failed)?;
        let mut hash = Hash::new(self.file);
        let mut buffer = vec![0u8; BUFFER];

        // What an earlier attempt left, which may have been another process.
        let mut len = out.metadata().map_err(write_failed)?.len();
        if len > size {
            out.set_len(0).map_err(write_failed)?;
            len = 0;
        }
        let resumed = len > 0;
        let mut left = len;
        while left > 0 {
            let n = out.read(&mut buffer[..left.min(BUFFER as u64) as usize]).map_err(|e| fatal(Error::read(self.partial, e)))?;
            if n == 0 {
                return Err(fatal(Error::corrupt("changed while being read").file(self.partial)));
            }
            hash.update(&buffer[..n]);
            left -= n as u64;
        }
        self.tell(len);

        if self.in_parts && size - len >= 2 * self.job.hub.part {
            out.seek(SeekFrom::Start(len)).map_err(write_failed)?;
            len = self.parts(&mut out, &mut hash, len)?;
        }
        if len < size {
            let response = self.job.client.get(self.job.commit, name, len)?;
            match response.status() {
                StatusCode::RANGE_NOT_SATISFIABLE => return Err(self.start_over(&out, "the hub cannot continue the download")),
                StatusCode::PARTIAL_CONTENT if !continues_at(&response, len, size) => {
                    return Err(self.start_over(&out, "the hub continues at another place"));
                }
                StatusCode::OK if len > 0 => {
                    // The server does not resume: it sends everything again.
                    out.set_len(0).map_err(write_failed)?;
                    (len, hash) = (0, Hash::new(self.file));
                }
                _ => {}
            }
            out.seek(SeekFrom::Start(len)).map_err(write_failed)?;
            let mut body = response.into_body().into_reader();
            loop {
                if self.job.stop.load(Ordering::Relaxed) {
                    return Err(fatal(Error::failed("stopped, because another download failed").file(name)));
                }
                let n = match body.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(n) => n,
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(e) => {
                        return Err(Failure::passing(format!("{name}: the connection broke at byte {len} of {size} ({e})")));
                    }
                };
                if n as u64 > size - len {
                    return Err(self.damaged(format!("more than the {size} bytes that the hub announced")));
                }
                out.write_all(&buffer[..n]).map_err(write_failed)?;
                hash.update(&buffer[..n]);
                len += n as u64;
                self.received += n as u64;
                self.tell(len);
            }
            if len < size {
                return Err(Failure::passing(format!("{name}: the connection ended at byte {len} of {size}")));
            }
        }
        match hash.finish() {
            Some(got) if got != self.file.etag => {
                if resumed {
                    return Err(self.start_over(&out, "the resumed download does not have the right contents"));
                }
                Err(self.damaged(format!("the contents' hash is {got}, the hub announced {}", self.file.etag)))
            }
            _ => out.sync_all().map_err(write_failed),
        }
    }

    /// Completes the partial file from `len` bytes on over several connections, or not at all if the server sends no parts. Returns its length.
    fn parts(&mut self, out: &mut File, hash: &mut Hash, len: u64) -> Result<u64, Failure> {
        let (job, name, size) = (self.job, self.file.name.as_str(), self.file.size);
        let place = std::mem::take(&mut self.place);
        let whole = AtomicBool::new(false);
        let fetch = |range: Range<u64>| {
            if job.stop.load(Ordering::Relaxed) {
                return Err(Failure::fatal(Error::failed("stopped, because another download failed").file(name)));
            }
            let part = job.client.part(job.commit, name, &range, &place)?;
            part.ok_or_else(|| {
                whole.store(true, Ordering::Relaxed);
                Failure::passing(format!("{name}: the hub sends no parts"))
            })
        };
        let mut done = len;
        let result = in_order(len..size, job.hub.part, fetch, |bytes| {
            out.write_all(&bytes).map_err(|e| Failure::fatal(Error::write(self.partial, e)))?;
            hash.update(&bytes);
            done += bytes.len() as u64;
            self.received += bytes.len() as u64;
            self.tell(done);
            Ok(())
        });
        self.place = place;
        if whole.into_inner() {
            // What came before is good, and the one connection goes on from there.
            self.in_parts = false;
            return Ok(done);
        }
        result.map(|()| done)
    }

    /// Throws away what is there and asks for another attempt from the start.
    fn start_over(&self, out: &File, why: &str) -> Failure {
        match out.set_len(0) {
            Ok(()) => Failure::passing(format!("{}: {why}; starting over", self.file.name)),
            Err(e) => Failure::fatal(Error::write(self.partial, e)),
        }
    }

    /// Contents that are not what the hub announced.
    fn damaged(&self, message: String) -> Failure {
        let error = Error::corrupt(message).file(&self.file.name);
        let error = error.hint("try again; if it happens again, a proxy or the repository is damaged");
        match fs::remove_file(self.partial) {
            Ok(()) => Failure::fatal(error),
            Err(e) => Failure::fatal(Error::write(self.partial, e)),
        }
    }
}

/// Whether a partial answer starts at `start` of a file of `size` bytes.
fn continues_at<T>(response: &ureq::http::Response<T>, start: u64, size: u64) -> bool {
    let Some(range) = header(response, "content-range") else { return false };
    let Some((span, total)) = range.trim_start_matches("bytes ").split_once('/') else { return false };
    let first = span.split('-').next().and_then(|s| s.trim().parse().ok());
    first == Some(start) && (total == "*" || total.parse() == Ok(size))
}
