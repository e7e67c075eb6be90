//! Calling the binary, and checkpoints to call it with.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// A folder to work in, with caches of its own.
pub struct Work {
    dir: TempDir,
}

/// How a call ended.
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Work {
    pub fn new() -> Self {
        Work { dir: tempfile::tempdir().unwrap() }
    }
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, contents).unwrap();
        path
    }

    /// A command that sees none of the user's settings.
    pub fn prepare(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.dir.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["HF_", "HUGGING", "XDG_", "RAYON_", "NO_COLOR", "CLICOLOR"].iter().any(|p| text.starts_with(p)) {
                command.env_remove(&name);
            }
        }
        command
            .env("HF_HOME", self.path("hf"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("HF_ENDPOINT", "http://127.0.0.1:9");
        command
    }
    /// The binary, with its words separated by spaces.
    pub fn command(&self, line: &str) -> Command {
        let mut command = self.prepare(env!("CARGO_BIN_EXE_bitsmith"));
        command.args(line.split_whitespace());
        command
    }
    pub fn call(&self, line: &str) -> Ended {
        Ended::of(self.command(line).output().unwrap())
    }
    /// A call that succeeds.
    pub fn ok(&self, line: &str) -> Ended {
        let ended = self.call(line);
        assert_eq!(ended.code, Some(0), "{line}: {}{}", ended.out, ended.err);
        ended
    }
    /// The document that a successful call prints.
    pub fn json(&self, line: &str) -> Value {
        self.ok(&format!("--json {line}")).json()
    }
    /// A call that fails with this exit code: the error's document.
    pub fn fails(&self, line: &str, code: i32) -> Value {
        let ended = self.call(&format!("--json {line}"));
        assert_eq!(ended.code, Some(code), "{line}: {}{}", ended.out, ended.err);
        let error = ended.json()["error"].clone();
        let keys: Vec<&String> = error.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["kind", "message", "file", "tensor", "hint"], "{line}");
        error
    }

    /// A copy of the demo checkpoint.
    pub fn checkpoint(&self, name: &str) -> PathBuf {
        let to = self.path(name);
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(demo()).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
        to
    }
    /// Names in a folder of the work folder.
    pub fn names(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(folder)) else { return Vec::new() };
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Ended {
    pub fn of(output: Output) -> Self {
        Ended {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.out))
    }
}

/// The demo checkpoint in the source tree.
pub fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../datasets/demo")
}

/// A safetensors file as its header and its data.
pub fn read_safetensors(path: &Path) -> (serde_json::Map<String, Value>, Vec<u8>) {
    let bytes = fs::read(path).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + len]).unwrap(), bytes[8 + len..].to_vec())
}

pub fn write_safetensors(path: &Path, header: &serde_json::Map<String, Value>, data: &[u8]) {
    let header = serde_json::to_vec(header).unwrap();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(data);
    fs::write(path, bytes).unwrap();
}

/// Changes one value of a JSON file.
pub fn edit_json(path: &Path, key: &str, value: Value) {
    let mut json: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    json[key] = value;
    fs::write(path, json.to_string()).unwrap();
}
