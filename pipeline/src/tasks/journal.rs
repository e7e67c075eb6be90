//! Answers as they come, on disk, so that a killed run goes on where it was.

use crate::sealed;
use bitsmith_eval::tasks::Answer;
use bitsmith_formats::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A line: numbers as their bits, for they must come back exactly.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    id: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    likelihoods: Option<Vec<(u64, bool)>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

/// The answers to one job's items.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// By item.
    pub answers: BTreeMap<usize, Answer>,
}

impl Journal {
    /// Opens the journal of the job with this key and reads what a killed run has left in it. A last line that is not whole is dropped.
    pub fn open(folder: &Path, key: &str) -> Result<Self> {
        let path = folder.join(format!("{key}.jsonl"));
        fs::create_dir_all(folder).map_err(|e| Error::write(folder, e))?;
        let old = match fs::read_to_string(&path) {
            Ok(old) => old,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::read(&path, e)),
        };
        let (mut answers, mut whole) = (BTreeMap::new(), 0);
        for line in old.split_inclusive('\n') {
            let parsed = line.strip_suffix('\n').and_then(|l| sealed::open::<Line>(l.as_bytes()));
            let Some((id, answer)) = parsed.and_then(Line::answer) else { break };
            answers.insert(id, answer);
            whole += line.len() as u64;
        }
        let file = File::options().create(true).append(true).open(&path).map_err(|e| Error::write(&path, e))?;
        file.set_len(whole).map_err(|e| Error::write(&path, e))?;
        Ok(Journal { path, file, answers })
    }

    /// Keeps an answer.
    pub fn add(&mut self, id: usize, answer: Answer) -> Result<()> {
        let mut line = sealed::seal(&Line::new(id, &answer))?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(|e| Error::write(&self.path, e))?;
        self.answers.insert(id, answer);
        Ok(())
    }

    /// The answers in the order of the items, all of which there must be; the file goes.
    pub fn finish(self) -> Result<Vec<Answer>> {
        fs::remove_file(&self.path).map_err(|e| Error::write(&self.path, e))?;
        Ok(self.answers.into_values().collect())
    }
}

impl Line {
    pub fn new(id: usize, answer: &Answer) -> Self {
        let (likelihoods, text) = match answer {
            Answer::Likelihoods(l) => (Some(l.iter().map(|(log, greedy)| (log.to_bits(), *greedy)).collect()), None),
            Answer::Text(text) | Answer::Program(text, _) => (None, Some(text.clone())),
        };
        Line { id, likelihoods, text }
    }

    /// The item's number and the answer to it.
    pub fn answer(self) -> Option<(usize, Answer)> {
        let likelihoods = |l: Vec<(u64, bool)>| l.into_iter().map(|(bits, greedy)| (f64::from_bits(bits), greedy)).collect();
        let answer = match (self.likelihoods, self.text) {
            (Some(l), None) => Answer::Likelihoods(likelihoods(l)),
            (None, Some(text)) => Answer::Text(text),
            _ => return None,
        };
        Some((self.id, answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_answered_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let likely = Answer::Likelihoods(vec![(-0.1f64 - 0.2, true), (-7.0 / 3.0, false)]);
        let mut journal = Journal::open(dir.path(), "k").unwrap();
        journal.add(3, likely.clone()).unwrap();
        journal.add(1, Answer::Text("two\nlines".into())).unwrap();
        drop(journal);
        let path = dir.path().join("k.jsonl");
        fs::write(&path, [fs::read(&path).unwrap(), b"{\"id\": 2, \"te".to_vec()].concat()).unwrap();
        let mut journal = Journal::open(dir.path(), "k").unwrap();
        assert_eq!(journal.answers.keys().copied().collect::<Vec<_>>(), [1, 3]);
        journal.add(2, Answer::Text(String::new())).unwrap();
        drop(journal);
        let journal = Journal::open(dir.path(), "k").unwrap();
        assert_eq!(journal.finish().unwrap(), [Answer::Text("two\nlines".into()), Answer::Text(String::new()), likely]);
        assert!(!path.exists());
    }
}
