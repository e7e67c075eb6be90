//! What nodes leave in the store: a record of what they made, or of why they failed.

use super::plan::{Node, TOOL, hash};
use super::store::{Kind, Store};
use bitsmith_formats::hash::sha256_file;
use bitsmith_formats::{Error, ErrorKind, Result, instructions};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A file that a node made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Output {
    /// Its path among the model's results, or what it is for.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// sha256, lower-case hex.
    pub sha256: String,
}

impl Output {
    /// A finished file, which is read once to hash it.
    pub fn of(name: impl Into<String>, path: &Path) -> Result<Output> {
        let (sha256, bytes) = sha256_file(path)?;
        Ok(Output { name: name.into(), bytes, sha256 })
    }
}

/// What a node has just made; its files are in the store.
#[derive(Debug, Clone, Default)]
pub struct Made {
    /// Its files.
    pub outputs: Vec<Output>,
    /// Hash of what it found, if that is not its files.
    pub content: Option<String>,
    /// What else there is to know.
    pub details: Value,
}

/// What a node made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The node's key.
    pub key: String,
    /// What it did, for people.
    pub node: String,
    /// Key of the result: a hash of the contents of all that went in.
    pub result: String,
    /// Hash of the contents that it made, or found.
    pub content: String,
    /// Its files.
    pub outputs: Vec<Output>,
    /// What else there is to know, by kind of node.
    pub details: Value,
    /// Wall time in seconds.
    pub seconds: f64,
    /// Peak memory in bytes.
    pub peak_rss_bytes: u64,
    /// When it was finished, in seconds since 1970.
    pub at: u64,
    /// Where.
    pub host: String,
    /// The tool and its version.
    pub tool: String,
    /// The widest vector instructions in use.
    pub instructions: String,
}

/// Why a node failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// What it was about.
    pub node: String,
    /// The stable name of the kind of error.
    pub kind: String,
    /// The exit code of the kind.
    pub code: u8,
    /// What happened.
    pub message: String,
    /// The file concerned.
    pub file: Option<PathBuf>,
    /// The tensor concerned.
    pub tensor: Option<String>,
    /// What the user can do.
    pub hint: Option<String>,
    /// When, in seconds since 1970.
    pub at: u64,
    /// Where.
    pub host: String,
}

impl Record {
    /// A record of what was made just now.
    pub fn new(node: &Node, result: String, made: Made, seconds: f64, peak_rss_bytes: u64) -> Record {
        let Made { outputs, content, details } = made;
        let files: Vec<(&str, &str)> = outputs.iter().map(|o| (o.name.as_str(), o.sha256.as_str())).collect();
        Record {
            key: node.key.clone(),
            node: node.to_string(),
            result,
            content: content.unwrap_or_else(|| hash(&json!(files))),
            outputs,
            details,
            seconds,
            peak_rss_bytes,
            at: now(),
            host: host(),
            tool: TOOL.into(),
            instructions: instructions().into(),
        }
    }

    /// The record of a node that is done: all of its files are in the store.
    pub fn load(store: &Store, key: &str) -> Result<Option<Record>> {
        Self::read(store, Kind::Record, key)
    }

    /// What was made of these contents before, by whatever node.
    pub fn known(store: &Store, result: &str) -> Result<Option<Record>> {
        Self::read(store, Kind::Result, result)
    }

    fn read(store: &Store, kind: Kind, key: &str) -> Result<Option<Record>> {
        let Some(json) = store.get(kind, key)? else { return Ok(None) };
        // One that cannot be read was written by another version: as good as none.
        let Ok(record) = serde_json::from_slice::<Record>(&json) else { return Ok(None) };
        for output in &record.outputs {
            if store.blob_bytes(&output.sha256)? != Some(output.bytes) {
                return Ok(None);
            }
        }
        Ok(Some(record))
    }

    /// Writes it, under both keys. From now on the node is done.
    pub fn save(&self, store: &Store) -> Result<()> {
        let json = serde_json::to_vec(self).map_err(|e| Error::failed(e.to_string()))?;
        store.put(Kind::Result, &self.result, &json)?;
        store.put(Kind::Record, &self.key, &json)?;
        store.remove(Kind::Failure, &self.key)
    }

    /// The output of this name.
    pub fn output(&self, name: &str) -> Result<&Output> {
        let found = self.outputs.iter().find(|o| o.name == name);
        found.ok_or_else(|| Error::corrupt(format!("the record of {} has no {name}", self.node)))
    }

    /// A part of the details.
    pub fn detail<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<T> {
        let bad = |e: serde_json::Error| Error::corrupt(format!("the record of {} is damaged at {name}: {e}", self.node));
        serde_json::from_value(self.details[name].clone()).map_err(bad)
    }
}

impl Failure {
    /// Of an error just now.
    pub fn new(node: &Node, e: &Error) -> Failure {
        Failure {
            node: node.to_string(),
            kind: e.kind.name().into(),
            code: e.kind.exit_code(),
            message: e.message.clone(),
            file: e.file.clone(),
            tensor: e.tensor.clone(),
            hint: e.hint.clone(),
            at: now(),
            host: host(),
        }
    }

    /// The failure of a node, if it failed.
    pub fn load(store: &Store, key: &str) -> Result<Option<Failure>> {
        Ok(store.get(Kind::Failure, key)?.and_then(|json| serde_json::from_slice(&json).ok()))
    }

    /// Writes it.
    pub fn save(&self, store: &Store, key: &str) -> Result<()> {
        store.put(Kind::Failure, key, &serde_json::to_vec(self).map_err(|e| Error::failed(e.to_string()))?)
    }

    /// The error that it was.
    pub fn error(&self) -> Error {
        let kinds = [
            ErrorKind::Usage,
            ErrorKind::Gate,
            ErrorKind::Corrupt,
            ErrorKind::Missing,
            ErrorKind::Unsupported,
            ErrorKind::CannotWrite,
            ErrorKind::Io,
            ErrorKind::Transient,
            ErrorKind::NotAuthorised,
            ErrorKind::Interrupted,
        ];
        let kind = kinds.into_iter().find(|k| k.name() == self.kind).unwrap_or(ErrorKind::Failed);
        let mut e = Error::new(kind, format!("{}: {}", self.node, self.message));
        (e.file, e.tensor, e.hint) = (self.file.clone(), self.tensor.clone(), self.hint.clone());
        e
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// This machine's name, where it has one.
fn host() -> String {
    let named = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
    named.map_or_else(String::new, |n| n.trim().to_string())
}
