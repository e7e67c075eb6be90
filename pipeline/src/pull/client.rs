//! Requests to the hub: what a repository holds, and the bytes of its files. Failures come out typed and with advice.

use super::hub::{Hub, HubId};
use bitsmith_formats::{Error, ErrorKind, Result};
use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, Repo};
use serde::Deserialize;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest silence before a connection counts as broken.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest listing of a repository, in bytes.
const MAX_LISTING: u64 = 64 << 20;
const MAX_REDIRECTS: usize = 5;

/// A failed request.
#[derive(Debug)]
pub struct Failure {
    /// What went wrong. Boxed, to keep results small.
    pub error: Box<Error>,
    /// Whether the same request may succeed later, and the wait that the server asked for.
    pub retry: Option<Option<Duration>>,
}

impl Failure {
    /// A failure that stays.
    pub fn fatal(error: Error) -> Self {
        Failure { error: Box::new(error), retry: None }
    }
    /// A failure that may pass.
    pub fn passing(message: impl Into<String>) -> Self {
        let error = Error::new(ErrorKind::Transient, message).hint("try again; what is complete is kept");
        Failure { error: Box::new(error), retry: Some(None) }
    }
}

/// What the hub says about one file.
#[derive(Debug, Clone, PartialEq)]
pub struct RemoteFile {
    /// Path in the repository.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// The hub's name for the contents, and the file's name among the cache's blobs: the sha256 of large files, git's hash of others.
    pub etag: String,
}

/// A repository at one commit.
#[derive(Debug)]
pub struct Listing {
    /// The commit.
    pub commit: String,
    /// Its files; size and hash where the listing has them.
    pub files: Vec<Listed>,
}

/// A file in a listing.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    /// Path in the repository.
    #[serde(rename = "rfilename")]
    pub name: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Listed>,
}

impl Listed {
    /// The file, if the listing says all about it.
    pub fn complete(&self) -> Option<RemoteFile> {
        let (size, etag) = match &self.lfs {
            Some(lfs) => (lfs.size.or(self.size)?, lfs.sha256.clone()?),
            None => (self.size?, self.blob_id.clone()?),
        };
        Some(RemoteFile { name: self.name.clone(), size, etag })
    }
}

/// A connection to the hub for one model.
pub struct Client<'a> {
    hub: &'a Hub,
    id: &'a HubId,
    api: Api,
    agent: Agent,
    user_agent: String,
}

impl<'a> Client<'a> {
    /// Prepares requests; sends none.
    pub fn new(hub: &'a Hub, id: &'a HubId) -> Result<Self> {
        let version = env!("CARGO_PKG_VERSION");
        let api = ApiBuilder::from_cache(Cache::new(hub.cache_dir.clone()))
            .with_endpoint(hub.endpoint.clone())
            .with_token(hub.token.clone())
            .with_user_agent("bitsmith", version)
            .build()
            .map_err(|e| Error::failed(format!("cannot prepare requests to the hub: {e}")))?;
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_per_read(Some(STALL_TIMEOUT))
            .build();
        Ok(Client { hub, id, api, agent: config.into(), user_agent: format!("bitsmith/{version}; hf-hub/0.5") })
    }

    /// The commit of a revision and the files that it has.
    pub fn list(&self, revision: &str) -> Result<Listing, Failure> {
        let repo = Repo::with_revision(self.id.repo.clone(), self.id.kind(), encode(revision));
        let request = self.api.repo(repo).info_request().query("blobs", "true");
        let request = request.config().http_status_as_error(false).timeout_connect(Some(CONNECT_TIMEOUT));
        let mut response = request.timeout_per_read(Some(STALL_TIMEOUT)).build().call().map_err(|e| self.broken(e))?;
        if response.status() != StatusCode::OK {
            return Err(self.refused(&response, &format!("revision `{revision}`")));
        }
        let body = response.body_mut().with_config().limit(MAX_LISTING).read_to_vec().map_err(|e| self.broken(e))?;
        let info: Info = serde_json::from_slice(&body).map_err(|e| {
            Failure::fatal(Error::corrupt(format!("{} does not answer as a model hub does: {e}", self.hub.endpoint)))
        })?;
        if !is_plain(&info.sha) {
            return Err(Failure::fatal(Error::corrupt(format!("the hub gives `{}` as the commit of {}", info.sha, self.id))));
        }
        Ok(Listing { commit: info.sha, files: info.siblings })
    }

    /// Size and hash of a listed file; asks the hub if the listing did not say.
    pub fn describe(&self, commit: &str, listed: &Listed) -> Result<RemoteFile, Failure> {
        let file = match listed.complete() {
            Some(file) => file,
            None => self.head(commit, &listed.name)?,
        };
        if !is_plain(&file.etag) {
            return Err(Failure::fatal(Error::corrupt(format!("the hub gives `{}` as the hash of {}", file.etag, file.name))));
        }
        Ok(file)
    }

    fn head(&self, commit: &str, name: &str) -> Result<RemoteFile, Failure> {
        let url = self.url(commit, name);
        // Follow renames on the hub, but not the way to where large files are stored: the hub's own answer has the hash.
        let response = self.follow(&url, None, true)?;
        if !response.status().is_success() && !response.status().is_redirection() {
            return Err(self.refused(&response, name));
        }
        let etag = header(&response, "x-linked-etag").or_else(|| header(&response, "etag"));
        let size =
            header(&response, "x-linked-size").or_else(|| header(&response, "content-length")).and_then(|s| s.parse().ok());
        match (etag, size) {
            (Some(etag), Some(size)) => {
                let etag = etag.trim_start_matches("W/").trim_matches('"').to_string();
                Ok(RemoteFile { name: name.to_string(), size, etag })
            }
            _ => Err(Failure::fatal(Error::corrupt(format!("the hub does not give size and hash of {name}")))),
        }
    }

    /// The file's bytes from `start` on. The answer may also be all of it (200), or say that nothing is left (416).
    pub fn get(&self, commit: &str, name: &str, start: u64) -> Result<Response<Body>, Failure> {
        let range = (start > 0).then(|| format!("bytes={start}-"));
        let response = self.follow(&self.url(commit, name), range, false)?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => Ok(response),
            _ => Err(self.refused(&response, name)),
        }
    }

    /// These bytes of the file and no more: where the server sends all of it instead, the connection is closed after them.
    pub fn range(&self, commit: &str, name: &str, range: Range<u64>) -> Result<Vec<u8>, Failure> {
        let response = self.follow(&self.url(commit, name), Some(header_of(&range)), false)?;
        match response.status() {
            StatusCode::OK => self.read(response, name, range.start, &range),
            StatusCode::PARTIAL_CONTENT => self.read(response, name, 0, &range),
            _ => Err(self.refused(&response, name)),
        }
    }

    /// These bytes of the file; `None` where the server does not send parts. Requests for more parts of the file go straight to where
    /// the first was found, which `place` keeps, as long as that answers.
    pub fn part(
        &self,
        commit: &str,
        name: &str,
        range: &Range<u64>,
        place: &Mutex<Option<String>>,
    ) -> Result<Option<Vec<u8>>, Failure> {
        let known = || place.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = known().clone();
        let asked = |url: &str| self.followed(url, Some(header_of(range)), false);
        let mut answer = kept.map(|url| asked(&url));
        // Addresses of storage are good for a while.
        if !matches!(&answer, Some(Ok((response, _))) if response.status() == StatusCode::PARTIAL_CONTENT) {
            answer = Some(asked(&self.url(commit, name)));
        }
        let (response, url) = answer.expect("asked")?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                *known() = Some(url);
                self.read(response, name, 0, range).map(Some)
            }
            StatusCode::OK => Ok(None),
            _ => Err(self.refused(&response, name)),
        }
    }

    /// The bytes of an answer that are those of `range`, of which `skip` come before it.
    fn read(&self, response: Response<Body>, name: &str, skip: u64, range: &Range<u64>) -> Result<Vec<u8>, Failure> {
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let given = header(&response, "content-range").unwrap_or_default();
            if !given.starts_with(&format!("bytes {}-", range.start)) {
                let message = format!("the hub sends `{given}` of {name}, not what was asked for");
                return Err(Failure::fatal(Error::corrupt(message)));
            }
        }
        let mut body = response.into_body().into_reader();
        let mut bytes = Vec::new();
        let wanted = range.end - range.start;
        io::copy(&mut body.by_ref().take(skip), &mut io::sink())
            .and_then(|_| body.take(wanted).read_to_end(&mut bytes))
            .map_err(|e| Failure::passing(format!("the connection broke while {name} came: {e}")))?;
        if bytes.len() as u64 != wanted {
            return Err(Failure::passing(format!("the connection broke while {name} came: {} of {wanted} bytes", bytes.len())));
        }
        Ok(bytes)
    }

    fn url(&self, commit: &str, name: &str) -> String {
        let repo = Repo::with_revision(self.id.repo.clone(), self.id.kind(), commit.to_string());
        self.api.repo(repo).url(&encode_path(name))
    }

    fn follow(&self, url: &str, range: Option<String>, head: bool) -> Result<Response<Body>, Failure> {
        self.followed(url, range, head).map(|(response, _)| response)
    }

    /// Sends a request and follows redirects; the token goes to the hub itself only. Returns the address that answered, too.
    fn followed(&self, url: &str, range: Option<String>, head: bool) -> Result<(Response<Body>, String), Failure> {
        let mut url = url.to_string();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = if head { self.agent.head(&url) } else { self.agent.get(&url) };
            request = request.header("User-Agent", &self.user_agent).header("Accept-Encoding", "identity");
            if let Some(token) = self.hub.token.as_ref().filter(|_| self.is_hub(&url)) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            if let Some(range) = &range {
                request = request.header("Range", range);
            }
            let response = request.call().map_err(|e| self.broken(e))?;
            if !response.status().is_redirection() {
                return Ok((response, url));
            }
            let Some(location) = header(&response, "location") else {
                return Err(Failure::fatal(Error::failed(format!("{url} redirects to nowhere"))));
            };
            let next = if let Some(path) = location.strip_prefix('/').filter(|p| !p.starts_with('/')) {
                format!("{}/{path}", origin(&url))
            } else {
                location
            };
            if head && !self.is_hub(&next) {
                return Ok((response, url));
            }
            url = next;
        }
        Err(Failure::fatal(Error::failed(format!("{url} redirects too often"))))
    }

    /// Whether an address has the hub's scheme, host and port.
    fn is_hub(&self, url: &str) -> bool {
        origin(url).eq_ignore_ascii_case(origin(&self.hub.endpoint))
    }

    /// A request that got no answer.
    pub fn broken(&self, e: ureq::Error) -> Failure {
        use ureq::Error as E;
        let endpoint = &self.hub.endpoint;
        match e {
            E::Io(_) | E::Timeout(_) | E::HostNotFound | E::ConnectionFailed | E::Protocol(_) => {
                let mut failure = Failure::passing(format!("no connection to {endpoint}: {e}"));
                failure.error.hint =
                    Some("check the network; --offline uses what is in the cache, HF_ENDPOINT chooses another hub".to_string());
                failure
            }
            e => Failure::fatal(Error::failed(format!("request to {endpoint} failed: {e}")).with_source(e)),
        }
    }

    /// An answer other than the one asked for.
    fn refused(&self, response: &Response<Body>, what: &str) -> Failure {
        let status = response.status();
        let code = header(response, "x-error-code").unwrap_or_default();
        let repo = &self.id.repo;
        let (kind, place) = if self.id.dataset { ("dataset", "datasets/") } else { ("model", "") };
        let page = format!("{}/{place}{repo}", self.hub.endpoint);
        let said = header(response, "x-error-message").map_or_else(String::new, |m| format!(": {m}"));
        let fatal = |kind, message: String, hint: String| Failure::fatal(Error::new(kind, message).hint(hint));
        match status.as_u16() {
            401 | 403 => {
                let hint = match (&self.hub.token, code.as_str()) {
                    (Some(_), "GatedRepo") => format!("ask for access on {page}, then try again"),
                    (Some(_), _) => format!("check the name, and that your token may read {page}"),
                    (None, _) => {
                        format!("check the name; for a private or gated {kind} set HF_TOKEN to a token that may read {page}")
                    }
                };
                fatal(ErrorKind::NotAuthorised, format!("the hub refuses access to {repo} ({status}){said}"), hint)
            }
            404 => {
                let message = match code.as_str() {
                    "RepoNotFound" => format!("the hub has no {kind} {repo}"),
                    "RevisionNotFound" => format!("{repo} has no {what}"),
                    _ => format!("{repo}: {what} not found"),
                };
                fatal(ErrorKind::Missing, message, format!("look at {page}"))
            }
            408 | 425 | 429 | 500..=599 => {
                let mut failure = Failure::passing(format!("the hub answers {status} for {repo}: {what}{said}"));
                failure.retry =
                    Some(header(response, "retry-after").and_then(|s| s.trim().parse().ok()).map(Duration::from_secs));
                failure
            }
            _ => {
                fatal(ErrorKind::Failed, format!("the hub answers {status} for {repo}: {what}{said}"), format!("look at {page}"))
            }
        }
    }
}

/// The header that asks for a part.
fn header_of(range: &Range<u64>) -> String {
    format!("bytes={}-{}", range.start, range.end - 1)
}

/// A header's value.
pub fn header<T>(response: &Response<T>, name: &str) -> Option<String> {
    response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_string)
}

/// Scheme, host and port of an address.
pub fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |i| i + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |i| start + i);
    &url[..end]
}

/// Whether a commit or hash can be a file's name: they become names in the cache.
fn is_plain(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// Percent-encodes everything but what a path segment may hold.
fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, b| {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            out.push(b as char);
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
        out
    })
}

fn encode_path(name: &str) -> String {
    name.split('/').map(encode).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        assert_eq!(encode_path("a b/c#1.json"), "a%20b/c%231.json");
        assert_eq!(encode("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(origin("https://h:1/a/b?c"), "https://h:1");
        assert_eq!(origin("https://h"), "https://h");
        assert!(is_plain("0a9f") && !is_plain("../x") && !is_plain(""));
    }

    #[test]
    fn listings_with_and_without_blobs() {
        let listed: Listed =
            serde_json::from_str(r#"{"rfilename":"m","size":3,"blobId":"p","lfs":{"sha256":"s","size":9,"pointerSize":1}}"#)
                .unwrap();
        assert_eq!(listed.complete(), Some(RemoteFile { name: "m".into(), size: 9, etag: "s".into() }));
        let listed: Listed = serde_json::from_str(r#"{"rfilename":"c","size":3,"blobId":"p"}"#).unwrap();
        assert_eq!(listed.complete(), Some(RemoteFile { name: "c".into(), size: 3, etag: "p".into() }));
        let listed: Listed = serde_json::from_str(r#"{"rfilename":"c"}"#).unwrap();
        assert_eq!(listed.complete(), None);
    }
}
