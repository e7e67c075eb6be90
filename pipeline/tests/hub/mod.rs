//! A hub on 127.0.0.1 that speaks the routes of the real one, and misbehaves on request.

use sha1::{Digest as _, Sha1};
use sha2::Sha256;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
    pub body: Vec<u8>,
}

/// What to do wrong with the next request for a file, once each.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// Answer with this status.
    Status(u16),
    /// Close the connection after this many bytes of the body.
    BreakAfter(usize),
    /// Ignore the range and send everything.
    NoRange,
    /// Send other bytes of the same length.
    WrongBytes,
}

#[derive(Default)]
pub struct State {
    pub files: BTreeMap<String, Vec<u8>>,
    /// Files stored as large: known by sha256 and redirected to a storage path.
    pub large: Vec<String>,
    pub faults: BTreeMap<String, Vec<Fault>>,
    pub requests: Vec<Request>,
    /// Whether the listing has sizes and hashes.
    pub blobs: bool,
    /// Token without which everything is refused.
    pub token: Option<String>,
    /// A size that the listing claims for every file.
    pub claimed: Option<u64>,
    /// Extra names in the listing.
    pub extra_names: Vec<String>,
    /// Address of another host that keeps the large files.
    pub storage: Option<String>,
    /// What was uploaded, by sha256.
    pub uploads: BTreeMap<String, Vec<u8>>,
    /// Bytes of a part, for uploads in parts; otherwise they come whole.
    pub part_size: Option<usize>,
    /// Parts of uploads that are not complete.
    pub parts: BTreeMap<String, Vec<u8>>,
    /// Whether the repository is there before it is created.
    pub exists: bool,
    /// How many commits there were.
    pub commits: usize,
    /// The repository that there is, if not `org/tiny`.
    pub repo: Option<String>,
    /// Address of another host to which everything that is written is redirected.
    pub elsewhere: Option<String>,
}

pub struct Hub {
    pub endpoint: String,
    pub state: Arc<Mutex<State>>,
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl Hub {
    /// Serves `org/tiny` from a thread of its own.
    pub fn start(state: State) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                std::thread::spawn(move || serve(stream, &state));
            }
        });
        Hub { endpoint, state }
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state.lock().unwrap().requests.clone()
    }
    /// Requests for the contents of a file.
    pub fn gets(&self, file: &str) -> Vec<Request> {
        let path = format!("/org/tiny/resolve/{COMMIT}/{file}");
        self.requests().into_iter().filter(|r| r.method == "GET" && r.path == path).collect()
    }
    pub fn forget(&self) {
        self.state.lock().unwrap().requests.clear();
    }
    pub fn fault(&self, file: &str, faults: &[Fault]) {
        self.state.lock().unwrap().faults.insert(file.to_string(), faults.to_vec());
    }
}

/// One connection, one request.
fn serve(stream: TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().unwrap_or("").to_string(), words.next().unwrap_or("").replace("%20", " "));
    let (mut range, mut authorization, mut length) = (None, None, 0);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        let Some((name, value)) = header.trim().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => range = Some(value.trim().to_string()),
            "authorization" => authorization = Some(value.trim().to_string()),
            "content-length" => length = value.trim().parse().unwrap(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    if reader.read_exact(&mut body).is_err() {
        return;
    }
    let request = Request { method, path: target, range, authorization, body };
    let answer = {
        let mut state = state.lock().unwrap();
        state.requests.push(request.clone());
        respond(&mut state, &request)
    };
    let mut stream = stream;
    let _ = stream.write_all(&answer);
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.read(&mut [0; 1]);
}

fn status_only(status: u16, headers: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: 0\r\n{headers}\r\n").into_bytes()
}

fn respond(state: &mut State, request: &Request) -> Vec<u8> {
    let allowed = state.token.as_ref().is_none_or(|t| request.authorization == Some(format!("Bearer {t}")));
    let repo = state.repo.clone().unwrap_or_else(|| "org/tiny".into());
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    if let Some(place) = path.strip_prefix("/upload/") {
        return put(state, request, place);
    }
    if let Some(name) = path.strip_prefix("/storage/") {
        // Storage of large files: its own host on the real hub, which must not see the token.
        return send(state, request, name);
    }
    if !allowed {
        return status_only(401, "X-Error-Code: GatedRepo\r\nX-Error-Message: Access to org/tiny is restricted\r\n");
    }
    if request.method != "GET" && request.method != "HEAD" {
        return write(state, request, path);
    }
    if let Some(rest) = path.strip_prefix("/api/models/") {
        return match rest.strip_prefix(&repo).map(|r| r.strip_prefix("/revision/").unwrap_or("main")) {
            Some("main" | COMMIT) if query == "blobs=true" => listing(state),
            Some(_) => status_only(404, "X-Error-Code: RevisionNotFound\r\n"),
            None => status_only(404, "X-Error-Code: RepoNotFound\r\n"),
        };
    }
    if let Some(rest) = path.strip_prefix("/api/datasets/") {
        // Datasets are asked for the hub's own copies only.
        return match rest == "org/tiny/revision/refs%2Fconvert%2Fparquet" && query == "blobs=true" {
            true => listing(state),
            false => status_only(404, "X-Error-Code: RepoNotFound\r\n"),
        };
    }
    let path = path.strip_prefix("/datasets").unwrap_or(path);
    let Some(name) = path.strip_prefix(&format!("/{repo}/resolve/{COMMIT}/")).map(String::from) else {
        return status_only(404, "");
    };
    let Some(data) = state.files.get(&name) else { return status_only(404, "X-Error-Code: EntryNotFound\r\n") };
    if state.large.contains(&name) {
        let (etag, size) = (etag(state, &name, data), data.len());
        let headers = format!(
            "Location: {}/storage/{name}\r\nX-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {size}\r\nX-Repo-Commit: {COMMIT}\r\n",
            state.storage.as_deref().unwrap_or("")
        );
        return status_only(302, &headers);
    }
    send(state, request, &name)
}

/// A fault of a route, where one is due: an answer, or none at all.
fn failing(state: &mut State, route: &str) -> Option<Vec<u8>> {
    let fault = state.faults.get_mut(route).filter(|f| !f.is_empty())?.remove(0);
    Some(match fault {
        Fault::Status(status) => status_only(status, "Retry-After: 0\r\n"),
        _ => Vec::new(),
    })
}

fn json(status: u16, body: serde_json::Value) -> Vec<u8> {
    let body = body.to_string();
    format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Routes that change something.
fn write(state: &mut State, request: &Request, path: &str) -> Vec<u8> {
    use serde_json::{Value, json};
    if let Some(elsewhere) = &state.elsewhere {
        return status_only(307, &format!("Location: {elsewhere}{path}\r\n"));
    }
    let body = || serde_json::from_slice::<Value>(&request.body).unwrap();
    let route = path.rsplit('/').find(|part| *part != "main").unwrap().to_string();
    if let Some(failed) = failing(state, &route) {
        return failed;
    }
    match route.as_str() {
        "create" if state.exists => json(409, json!({"error": "exists"})),
        "create" => {
            state.exists = true;
            json(200, json!({"url": "x"}))
        }
        "preupload" => {
            let body = body();
            let modes = body["files"].as_array().unwrap().iter().map(|f| {
                let path = f["path"].as_str().unwrap();
                let large = path.ends_with(".gguf") || path.ends_with(".safetensors");
                json!({"path": path, "uploadMode": if large { "lfs" } else { "regular" }, "shouldIgnore": path.ends_with(".ignored")})
            });
            json(200, json!({"files": modes.collect::<Vec<_>>()}))
        }
        "batch" => {
            let object = body()["objects"][0].clone();
            let (oid, size) = (object["oid"].as_str().unwrap(), object["size"].as_u64().unwrap() as usize);
            if state.uploads.contains_key(oid) {
                return json(200, json!({"objects": [object]}));
            }
            let storage = state.storage.clone().unwrap_or_default();
            let (href, mut header) = (format!("{storage}/upload/{oid}/complete"), json!({}));
            let href = match state.part_size {
                Some(part) => {
                    header["chunk_size"] = part.to_string().into();
                    (1..=size.div_ceil(part))
                        .for_each(|n| header[format!("{n:05}")] = format!("{storage}/upload/{oid}/{n}").into());
                    href
                }
                None => format!("{storage}/upload/{oid}/whole"),
            };
            let verify = json!({"href": "/org/tiny.git/info/lfs/objects/verify"});
            json(
                200,
                json!({"objects": [{"oid": oid, "size": size, "actions": {"upload": {"href": href, "header": header}, "verify": verify}}]}),
            )
        }
        "verify" => match state.uploads.contains_key(body()["oid"].as_str().unwrap()) {
            true => status_only(200, ""),
            false => status_only(422, ""),
        },
        "commit" => {
            for line in std::str::from_utf8(&request.body).unwrap().lines() {
                let line: Value = serde_json::from_str(line).unwrap();
                let (path, value) = (line["value"]["path"].as_str().unwrap_or("").to_string(), &line["value"]);
                match line["key"].as_str().unwrap() {
                    "file" => _ = state.files.insert(path, base64(value["content"].as_str().unwrap())),
                    "lfsFile" => {
                        let Some(data) = state.uploads.get(value["oid"].as_str().unwrap()).cloned() else {
                            return status_only(400, "");
                        };
                        assert_eq!(data.len() as u64, value["size"].as_u64().unwrap());
                        state.large.push(path.clone());
                        state.files.insert(path, data);
                    }
                    _ => {}
                }
            }
            state.commits += 1;
            json(200, json!({"commitOid": COMMIT}))
        }
        _ => status_only(404, ""),
    }
}

/// Storage of large files: `OID/whole`, `OID/PART`, `OID/complete`.
fn put(state: &mut State, request: &Request, place: &str) -> Vec<u8> {
    let (oid, part) = place.split_once('/').unwrap();
    if let Some(failed) = failing(state, if part == "complete" { "complete" } else { "put" }) {
        return failed;
    }
    let whole = match part {
        "whole" => request.body.clone(),
        "complete" => state.parts.remove(oid).unwrap_or_default(),
        _ => {
            let parts = state.parts.entry(oid.to_string()).or_default();
            // A part that comes again replaces what came of it.
            parts.truncate((part.parse::<usize>().unwrap() - 1) * state.part_size.unwrap());
            parts.extend(&request.body);
            return status_only(200, &format!("ETag: \"part-{part}\"\r\n"));
        }
    };
    if hex(&Sha256::digest(&whole)) != oid {
        return status_only(400, "");
    }
    state.uploads.insert(oid.to_string(), whole);
    status_only(200, "ETag: \"whole\"\r\n")
}

fn base64(text: &str) -> Vec<u8> {
    let digit =
        |b: u8| b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".iter().position(|d| *d == b).unwrap() as u32;
    let digits: Vec<u32> = text.bytes().filter(|b| *b != b'=').map(digit).collect();
    let group = |g: &[u32]| {
        let bits = g.iter().fold(0, |bits, d| bits << 6 | d) << (6 * (4 - g.len()));
        [(bits >> 16) as u8, (bits >> 8) as u8, bits as u8][..g.len() - 1].to_vec()
    };
    digits.chunks(4).flat_map(group).collect()
}

fn etag(state: &State, name: &str, data: &[u8]) -> String {
    if state.large.iter().any(|n| n == name) {
        hex(&Sha256::digest(data))
    } else {
        hex(&Sha1::new_with_prefix(format!("blob {}\0", data.len())).chain_update(data).finalize())
    }
}

fn listing(state: &State) -> Vec<u8> {
    let mut siblings = Vec::new();
    for (name, data) in &state.files {
        let mut entry = serde_json::json!({"rfilename": name});
        if state.blobs {
            let hash = etag(state, name, data);
            entry["size"] = state.claimed.unwrap_or(data.len() as u64).into();
            if state.large.contains(name) {
                entry["blobId"] = "pointer".into();
                entry["lfs"] = serde_json::json!({"sha256": hash, "size": entry["size"], "pointerSize": 130});
            } else {
                entry["blobId"] = hash.into();
            }
        }
        siblings.push(entry);
    }
    siblings.extend(state.extra_names.iter().map(|n| serde_json::json!({"rfilename": n})));
    let body = serde_json::json!({"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).to_string();
    format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn send(state: &mut State, request: &Request, name: &str) -> Vec<u8> {
    let Some(data) = state.files.get(name).cloned() else { return status_only(404, "") };
    let head = request.method == "HEAD";
    let etag = etag(state, name, &data);
    let faults = state.faults.get_mut(name).filter(|f| !f.is_empty() && !head);
    let fault = faults.map(|f| f.remove(0));
    let (start, end): (usize, usize) = match (&request.range, fault) {
        (None, _) | (_, Some(Fault::NoRange)) => (0, data.len()),
        (Some(range), _) => {
            let (start, last) = range.trim_start_matches("bytes=").split_once('-').unwrap();
            (start.parse().unwrap(), last.parse().map_or(data.len(), |last: usize| data.len().min(last + 1)))
        }
    };
    if start >= data.len() && start > 0 {
        return status_only(416, &format!("Content-Range: bytes */{}\r\n", data.len()));
    }
    let mut body = data[start..end].to_vec();
    match fault {
        Some(Fault::Status(status)) => return status_only(status, "Retry-After: 0\r\n"),
        Some(Fault::WrongBytes) => body.iter_mut().for_each(|b| *b ^= 1),
        _ => {}
    }
    let partial = start > 0 || end < data.len();
    let status = if partial { 206 } else { 200 };
    let mut answer = format!(
        "HTTP/1.1 {status} OK\r\nConnection: close\r\nETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Length: {}\r\n",
        body.len()
    );
    if partial {
        answer.push_str(&format!("Content-Range: bytes {start}-{}/{}\r\n", end - 1, data.len()));
    }
    answer.push_str("\r\n");
    let mut answer = answer.into_bytes();
    if let Some(Fault::BreakAfter(n)) = fault {
        body.truncate(n);
    }
    if !head {
        answer.extend(body);
    }
    answer
}
