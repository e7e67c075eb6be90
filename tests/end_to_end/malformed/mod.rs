//! Inputs that are damaged, or made to do harm: each ends with its exit code and a message that names file, tensor and remedy, in less than
//! a second, and leaves everything as it was.

mod configs;
mod data;
mod gguf;
mod imatrix;
mod safetensors;
mod tokenizer;
mod torch;

use crate::support::Work;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// The longest that a refusal may take.
const LIMIT: Duration = Duration::from_secs(1);
/// Rows that the table has at least.
const LEAST: usize = 60;

/// Makes `model`, or what else is asked for, into the thing to be refused: the line that asks.
type Make = Box<dyn Fn(&Work) -> String>;

/// One input and what is to be said of it.
struct Row {
    name: &'static str,
    make: Make,
    code: i32,
    /// How the named file ends.
    file: &'static str,
    /// The named tensor.
    tensor: Option<&'static str>,
    /// What message or hint say besides.
    says: &'static str,
}

/// A row without a tensor.
fn row(name: &'static str, code: i32, file: &'static str, says: &'static str, make: impl Fn(&Work) -> String + 'static) -> Row {
    Row { name, make: Box::new(make), code, file, tensor: None, says }
}

impl Row {
    /// The same with the tensor that is to be named.
    fn tensor(self, name: &'static str) -> Row {
        Row { tensor: Some(name), ..self }
    }

    fn check(&self) -> Result<(), String> {
        let work = Work::new();
        let line = (self.make)(&work);
        let before = listing(&work.path(""));
        let mut took = Duration::MAX;
        let mut ended = None;
        // A busy machine gets a second chance.
        for _ in 0..2 {
            let start = Instant::now();
            ended = Some(work.call(&format!("--json {line}")));
            took = took.min(start.elapsed());
            if took < LIMIT {
                break;
            }
        }
        let ended = ended.ok_or("never called")?;
        let error = serde_json::from_str::<Value>(&ended.out).map_or(Value::Null, |d| found(&d));
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_string();
        let said = format!("{} {}", text("message"), text("hint"));
        let wrong = |what: &str| Err(format!("{}: {what}: {line}\n    {error}\n    {}", self.name, ended.err.trim()));
        if ended.code != Some(self.code) {
            return wrong(&format!("exit code {:?}, expected {}", ended.code, self.code));
        }
        if took >= LIMIT {
            return wrong(&format!("took {took:?}"));
        }
        if !text("file").ends_with(self.file) || text("file").is_empty() {
            return wrong(&format!("names no file {}", self.file));
        }
        if self.tensor.is_some_and(|t| text("tensor") != t) {
            return wrong(&format!("names no tensor {:?}", self.tensor));
        }
        if text("hint").is_empty() {
            return wrong("names no remedy");
        }
        if !said.contains(self.says) {
            return wrong(&format!("does not say {:?}", self.says));
        }
        if said.contains("internal error") || ended.err.contains("panicked") {
            return wrong("is a panic");
        }
        match listing(&work.path("")) {
            after if after == before => Ok(()),
            after => wrong(&format!(
                "something was written: {:?}",
                after.keys().filter(|k| !before.contains_key(*k)).collect::<Vec<_>>()
            )),
        }
    }
}

/// The error of a document, or the first finding of one that lists findings.
fn found(document: &Value) -> Value {
    let finding = || document["problems"][0].clone();
    document.get("error").cloned().unwrap_or_else(finding)
}

/// All files below a folder with their contents' size and time.
fn listing(folder: &Path) -> BTreeMap<String, (u64, std::time::SystemTime)> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                folders.push(entry.path());
            } else {
                all.insert(entry.path().display().to_string(), (meta.len(), meta.modified().unwrap()));
            }
        }
    }
    all
}

#[test]
fn the_table() {
    let table =
        [safetensors::rows(), configs::rows(), gguf::rows(), imatrix::rows(), tokenizer::rows(), torch::rows(), data::rows()];
    let table: Vec<Row> = table.into_iter().flatten().collect();
    assert!(table.len() >= LEAST, "{} rows", table.len());
    let checked = |row: &Row| {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| row.check()))
            .unwrap_or_else(|_| Err(format!("{}: could not be made", row.name)))
    };
    let failed: Vec<String> = table.iter().filter_map(|row| checked(row).err()).collect();
    assert!(failed.is_empty(), "{} of {} rows:\n{}", failed.len(), table.len(), failed.join("\n"));
}
