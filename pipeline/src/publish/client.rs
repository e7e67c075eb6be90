//! The hub's routes for writing: repositories, large files, commits.

use crate::pull::{Failure, Hub, header, origin};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bitsmith_formats::{Error, ErrorKind};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;
use ureq::http::Request;
use ureq::{Agent, SendBody};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest wait for an answer. Commits of many files take the hub a while.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
const MAX_REDIRECTS: usize = 5;
/// Longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 16 << 20;
const LFS_JSON: &str = "application/vnd.git-lfs+json";

/// A file to be published.
#[derive(Debug, Clone, PartialEq)]
pub struct Upload {
    /// Path in the repository.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// sha256, lower-case hex.
    pub sha256: String,
}

/// An answer, read to its end.
struct Answer {
    status: u16,
    etag: Option<String>,
    retry_after: Option<Duration>,
    said: String,
    body: Vec<u8>,
}

/// What is sent.
enum Body<'a> {
    Bytes(&'a [u8]),
    /// So many bytes of a file from an offset on.
    Part(&'a Path, u64, u64),
}

/// A connection for writing to one repository.
pub struct Client<'a> {
    hub: &'a Hub,
    repo: &'a str,
    agent: Agent,
}

impl<'a> Client<'a> {
    /// Prepares requests; sends none.
    pub fn new(hub: &'a Hub, repo: &'a str) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(ANSWER_TIMEOUT))
            .build();
        Client { hub, repo, agent: config.into() }
    }

    /// Creates the repository. False if it is there already.
    pub fn create(&self, private: bool) -> Result<bool, Failure> {
        let (organization, name) = self.repo.split_once('/').unwrap_or(("", self.repo));
        let body = json!({ "type": "model", "organization": organization, "name": name, "private": private });
        let answer = self.post("/api/repos/create", "application/json", body.to_string().as_bytes())?;
        match answer.status {
            200..=299 => Ok(true),
            409 => Ok(false),
            _ => Err(self.refused(&answer, "creating the repository")),
        }
    }

    /// Which files the hub wants as large ones, by their names, sizes and first bytes; nothing for those that it wants not at all.
    pub fn modes(&self, files: &[(&Upload, Vec<u8>)]) -> Result<Vec<Option<bool>>, Failure> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Mode {
            path: String,
            upload_mode: String,
            #[serde(default)]
            should_ignore: bool,
        }
        #[derive(Deserialize)]
        struct Modes {
            files: Vec<Mode>,
        }
        let list = files.iter().map(|(f, start)| json!({ "path": f.name, "size": f.bytes, "sample": STANDARD.encode(start) }));
        let body = json!({ "files": list.collect::<Vec<Value>>() });
        let path = format!("/api/models/{}/preupload/main", self.repo);
        let answer = self.post(&path, "application/json", body.to_string().as_bytes())?;
        let modes: Modes = self.json(&answer, "asking how to upload")?;
        let of = |file: &Upload| {
            let mode = modes
                .files
                .iter()
                .find(|m| m.path == file.name)
                .ok_or_else(|| Failure::fatal(Error::corrupt(format!("the hub does not say how to upload {}", file.name))))?;
            Ok((!mode.should_ignore).then_some(mode.upload_mode == "lfs"))
        };
        files.iter().map(|(f, _)| of(f)).collect()
    }

    /// Uploads a large file, unless the hub has its contents already. `sent` hears of every piece. Whether anything was sent.
    pub fn upload(&self, file: &Upload, path: &Path, sent: &dyn Fn(u64)) -> Result<bool, Failure> {
        let body = json!({
            "operation": "upload", "transfers": ["basic", "multipart"], "hash_algo": "sha256",
            "objects": [{ "oid": file.sha256, "size": file.bytes }], "ref": { "name": "refs/heads/main" },
        });
        let answer = self.post(&format!("/{}.git/info/lfs/objects/batch", self.repo), LFS_JSON, body.to_string().as_bytes())?;
        let batch: Value = self.json(&answer, &file.name)?;
        let object = &batch["objects"][0];
        if let Some(message) = object["error"]["message"].as_str() {
            return Err(Failure::fatal(Error::failed(format!("the hub refuses {}: {message}", file.name))));
        }
        let upload = &object["actions"]["upload"];
        let Some(href) = upload["href"].as_str() else { return Ok(false) };
        let headers = upload["header"].as_object().cloned().unwrap_or_default();
        match headers.get("chunk_size").and_then(number) {
            Some(chunk) => self.parts(file, path, href, &headers, chunk, sent)?,
            None => {
                self.put(file, path, href, &headers, 0, file.bytes)?;
                sent(file.bytes);
            }
        }
        if let Some(verify) = object["actions"]["verify"]["href"].as_str() {
            let headers = object["actions"]["verify"]["header"].as_object().cloned().unwrap_or_default();
            let body = json!({ "oid": file.sha256, "size": file.bytes }).to_string();
            let answer = self.send("POST", verify, LFS_JSON, &Body::Bytes(body.as_bytes()), &headers)?;
            self.check(&answer, &file.name)?;
        }
        Ok(true)
    }

    /// Sends the parts of a file one by one, and says which they were.
    fn parts(
        &self,
        file: &Upload,
        path: &Path,
        href: &str,
        headers: &Map<String, Value>,
        chunk: u64,
        sent: &dyn Fn(u64),
    ) -> Result<(), Failure> {
        /// How often one part is tried before the whole file is begun again.
        const TRIES: usize = 3;
        let mut urls: Vec<(u64, &str)> = headers.iter().filter_map(|(k, v)| Some((k.parse().ok()?, v.as_str()?))).collect();
        urls.sort_unstable();
        let expected = file.bytes.div_ceil(chunk.max(1));
        if chunk == 0 || urls.len() as u64 != expected {
            let message = format!("the hub gives {} addresses for {} in {expected} parts", urls.len(), file.name);
            return Err(Failure::fatal(Error::corrupt(message)));
        }
        let mut parts = Vec::new();
        for (i, (number, url)) in urls.iter().enumerate() {
            let start = i as u64 * chunk;
            let len = chunk.min(file.bytes - start);
            let mut tries = 1;
            let etag = loop {
                match self.put(file, path, url, &Map::new(), start, len) {
                    Ok(etag) => break etag,
                    Err(failure) if failure.retry.is_some() && tries < TRIES => {
                        tries += 1;
                        std::thread::sleep(failure.retry.flatten().unwrap_or(self.hub.backoff));
                    }
                    Err(failure) => return Err(failure),
                }
            };
            let etag =
                etag.ok_or_else(|| Failure::fatal(Error::corrupt(format!("the hub's storage gives no hash of part {number}"))))?;
            parts.push(json!({ "partNumber": number, "etag": etag }));
            sent(len);
        }
        let body = json!({ "oid": file.sha256, "parts": parts }).to_string();
        let answer = self.send("POST", href, LFS_JSON, &Body::Bytes(body.as_bytes()), &Map::new())?;
        self.check(&answer, &file.name)
    }

    /// Sends some of a file to where large files are stored.
    fn put(
        &self,
        file: &Upload,
        path: &Path,
        url: &str,
        headers: &Map<String, Value>,
        start: u64,
        len: u64,
    ) -> Result<Option<String>, Failure> {
        let answer = self.send("PUT", url, "application/octet-stream", &Body::Part(path, start, len), headers)?;
        match answer.status {
            200..=299 => Ok(answer.etag),
            // Addresses of storage hold for some time only: a new one may do.
            400 | 403 if !self.is_hub(url) => {
                Err(Failure::passing(format!("storage answers {} for {}", answer.status, file.name)))
            }
            _ => Err(self.refused(&answer, &file.name)),
        }
    }

    /// Makes one commit of small files, with their contents, and of large ones. Its hash.
    pub fn commit(&self, message: &str, small: &[(&str, Vec<u8>)], large: &[&Upload]) -> Result<String, Failure> {
        let mut lines = vec![json!({ "key": "header", "value": { "summary": message, "description": "" } })];
        for (path, contents) in small {
            let value = json!({ "path": path, "content": STANDARD.encode(contents), "encoding": "base64" });
            lines.push(json!({ "key": "file", "value": value }));
        }
        for file in large {
            let value = json!({ "path": file.name, "algo": "sha256", "oid": file.sha256, "size": file.bytes });
            lines.push(json!({ "key": "lfsFile", "value": value }));
        }
        let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let answer = self.post(&format!("/api/models/{}/commit/main", self.repo), "application/x-ndjson", body.as_bytes())?;
        let commit: Value = self.json(&answer, "the commit")?;
        Ok(commit["commitOid"].as_str().unwrap_or_default().to_string())
    }

    fn post(&self, path: &str, content_type: &str, body: &[u8]) -> Result<Answer, Failure> {
        self.send("POST", &format!("{}{path}", self.hub.endpoint), content_type, &Body::Bytes(body), &Map::new())
    }

    /// Sends a request and follows redirects; the token goes to the hub itself only.
    fn send(
        &self,
        method: &str,
        url: &str,
        content_type: &str,
        body: &Body<'_>,
        headers: &Map<String, Value>,
    ) -> Result<Answer, Failure> {
        let mut url = if url.starts_with('/') { format!("{}{url}", self.hub.endpoint) } else { url.to_string() };
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::builder().method(method).uri(&url).header("Content-Type", content_type);
            request = request.header("User-Agent", concat!("bitsmith/", env!("CARGO_PKG_VERSION")));
            if content_type == LFS_JSON {
                request = request.header("Accept", LFS_JSON);
            }
            for (name, value) in headers {
                if let Some(value) = value.as_str().filter(|_| name != "chunk_size" && name.parse::<u64>().is_err()) {
                    request = request.header(name, value);
                }
            }
            if let Some(token) = self.hub.token.as_ref().filter(|_| self.is_hub(&url) && !headers.contains_key("Authorization")) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let sent = match body {
                Body::Bytes(bytes) => {
                    let request = request.body(*bytes).map_err(|e| Failure::fatal(Error::failed(format!("no request: {e}"))))?;
                    self.agent.run(request)
                }
                Body::Part(path, start, len) => {
                    let reader = part(path, *start, *len).map_err(|e| Failure::fatal(Error::read(*path, e)))?;
                    let request = request.header("Content-Length", len.to_string());
                    let request = request
                        .body(SendBody::from_owned_reader(reader))
                        .map_err(|e| Failure::fatal(Error::failed(format!("no request: {e}"))))?;
                    self.agent.run(request)
                }
            };
            let mut response = sent.map_err(|e| Failure::passing(format!("no connection to {}: {e}", origin(&url))))?;
            if response.status().is_redirection() {
                let location = header(&response, "location");
                let location =
                    location.ok_or_else(|| Failure::fatal(Error::failed(format!("{} redirects to nowhere", origin(&url)))))?;
                url = match location.strip_prefix('/') {
                    Some(path) => format!("{}/{path}", origin(&url)),
                    None => location,
                };
                continue;
            }
            let seconds = header(&response, "retry-after").and_then(|s| s.trim().parse().ok());
            let mut answer = Answer {
                status: response.status().as_u16(),
                etag: header(&response, "etag"),
                retry_after: seconds.map(Duration::from_secs),
                said: header(&response, "x-error-message").map_or_else(String::new, |m| format!(": {m}")),
                body: Vec::new(),
            };
            let body = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec();
            answer.body = body.map_err(|e| Failure::passing(format!("the answer of {} broke off: {e}", origin(&url))))?;
            return Ok(answer);
        }
        Err(Failure::fatal(Error::failed(format!("{} redirects too often", origin(&url)))))
    }

    fn json<T: for<'de> Deserialize<'de>>(&self, answer: &Answer, what: &str) -> Result<T, Failure> {
        self.check(answer, what)?;
        serde_json::from_slice(&answer.body).map_err(|e| {
            Failure::fatal(Error::corrupt(format!("{} does not answer as a model hub does: {e}", self.hub.endpoint)))
        })
    }

    fn check(&self, answer: &Answer, what: &str) -> Result<(), Failure> {
        if (200..=299).contains(&answer.status) { Ok(()) } else { Err(self.refused(answer, what)) }
    }

    fn is_hub(&self, url: &str) -> bool {
        origin(url).eq_ignore_ascii_case(origin(&self.hub.endpoint))
    }

    /// An answer other than the one hoped for.
    fn refused(&self, answer: &Answer, what: &str) -> Failure {
        let Answer { status, said, .. } = answer;
        let message = format!("the hub answers {status} for {}: {what}{said}", self.repo);
        let fatal = |kind, hint: &str| Failure::fatal(Error::new(kind, message.clone()).hint(hint));
        match status {
            401 => fatal(
                ErrorKind::NotAuthorised,
                "the token is missing, wrong or expired: set HF_TOKEN to one that may write; what is uploaded is kept",
            ),
            403 => fatal(
                ErrorKind::NotAuthorised,
                "the token must be one that may write to this repository, and space and quota must suffice",
            ),
            408 | 425 | 429 | 500..=599 => {
                let mut failure = Failure::passing(message);
                failure.retry = Some(answer.retry_after);
                failure
            }
            _ => fatal(ErrorKind::Failed, "what is uploaded is kept; the same command goes on from there"),
        }
    }
}

/// Some of a file, to be read once.
fn part(path: &Path, start: u64, len: u64) -> io::Result<io::Take<File>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(start))?;
    Ok(file.take(len))
}

/// A number that may be written as a string.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}
