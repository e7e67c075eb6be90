//! DATA arguments, and the text that they stand for.

use crate::reader::{self, Format};
use crate::registry::{self, Dataset, Purpose, REGISTRY};
use bitsmith_formats::{Error, Result, sha256_bytes};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Between documents, when they are read as one text.
const DOCUMENT_BREAK: &str = "\n\n";

/// Endings of files that hold text in ways bitsmith does not read.
const UNSUPPORTED: [&str; 9] = [".parquet", ".zst", ".gz", ".xz", ".bz2", ".zip", ".arrow", ".csv", ".json"];

/// Names that other tools know, and that are not in the registry.
const KNOWN_ELSEWHERE: [&str; 6] = ["wikitext2", "wikitext", "c4", "ptb", "pile", "slimpajama"];

/// A parsed DATA argument: `builtin`, `notes.txt`, `code=src.jsonl:2,web.txt`. Nothing is read until [`DataSpec::load`].
#[derive(Debug, Clone)]
pub struct DataSpec {
    text: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone)]
struct Part {
    name: Option<String>,
    source: Source,
    weight: Option<f64>,
}

#[derive(Debug, Clone)]
enum Source {
    Registry(&'static Dataset),
    File(PathBuf, Format),
}

/// Text by domain.
#[derive(Debug, Clone)]
pub struct Corpus {
    /// The DATA argument.
    pub data: String,
    /// The domains, in the order of the argument.
    pub domains: Vec<Domain>,
    /// For a single file, the file's SHA-256; otherwise that of the domains' names and digests.
    pub sha256: String,
}

/// A named text.
#[derive(Debug, Clone)]
pub struct Domain {
    /// As the argument names it, or the file's name without its ending.
    pub name: String,
    /// Its share of the windows relative to other domains; `None` if the argument gives no weight to it.
    pub weight: Option<f64>,
    /// All documents, with a blank line between them.
    pub text: String,
    /// Number of documents.
    pub documents: usize,
    /// SHA-256 of the file's bytes, or of the registered text.
    pub sha256: String,
}

impl FromStr for DataSpec {
    type Err = Error;

    /// Errors: usage for what cannot be meant, unsupported for file types and datasets that bitsmith does not read.
    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split(',').map(|p| parse_part(p.trim())).collect::<Result<Vec<_>>>()?;
        let mut named: Vec<&str> = parts.iter().filter_map(|p| p.name.as_deref()).collect();
        named.sort_unstable();
        if let Some(twice) = named.windows(2).find(|w| w[0] == w[1]) {
            return Err(Error::usage(format!("two domains are named `{}`", twice[0])));
        }
        Ok(DataSpec { text: text.to_string(), parts })
    }
}

impl fmt::Display for DataSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn parse_part(part: &str) -> Result<Part> {
    let (rest, weight) = match part.rsplit_once(':') {
        // What is no number belongs to the path.
        Some((rest, number)) => match number.parse::<f64>() {
            Ok(w) if w.is_finite() && w > 0.0 => (rest, Some(w)),
            Ok(_) => return Err(Error::usage(format!("`{part}`: a weight must be above 0"))),
            Err(_) => (part, None),
        },
        None => (part, None),
    };
    let (name, source) = match rest.split_once('=') {
        Some((name, source)) if !name.contains(['/', '\\', '.']) => (Some(name.trim()), source.trim()),
        _ => (None, rest),
    };
    if name == Some("") || source.is_empty() {
        return Err(Error::usage(format!("`{part}` names no data")).hint(supported()));
    }
    Ok(Part { name: name.map(String::from), source: parse_source(source)?, weight })
}

fn parse_source(source: &str) -> Result<Source> {
    if let Some(dataset) = registry::find(source) {
        return Ok(Source::Registry(dataset));
    }
    let lower = source.to_ascii_lowercase();
    // `path#column` is how columns of tables are named.
    let ending = lower.split_once('#').map_or(lower.as_str(), |(path, _)| path);
    if lower.ends_with(".txt") || lower.ends_with(".raw") {
        Ok(Source::File(source.into(), Format::Text))
    } else if lower.ends_with(".jsonl") {
        Ok(Source::File(source.into(), Format::Jsonl))
    } else if let Some(e) = UNSUPPORTED.iter().find(|e| ending.ends_with(**e)) {
        Err(Error::unsupported(format!("cannot read {e} files")).file(source).hint(supported()))
    } else if KNOWN_ELSEWHERE.contains(&lower.as_str()) {
        Err(Error::unsupported(format!("the dataset `{source}` is not in the registry"))
            .hint(format!("get its text as a file; {}", supported())))
    } else if source.contains(['/', '\\', '.']) {
        Err(Error::unsupported("the file's ending does not say what it holds").file(source).hint(supported()))
    } else {
        Err(Error::usage(format!("there is no dataset `{source}`")).hint(supported()))
    }
}

fn supported() -> String {
    let names = REGISTRY.iter().map(|d| format!("`{}`", d.name)).collect::<Vec<_>>().join(", ");
    format!("supported are {names}, .txt and .raw (plain text) and .jsonl (`text`, `messages`, or `prompt` and `completion`)")
}

impl DataSpec {
    /// Reads the text: of registered datasets the one for `purpose`.
    ///
    /// Errors: missing for a file that is not there, corrupt for one that is not UTF-8, not JSON lines, or holds no text.
    pub fn load(&self, purpose: Purpose) -> Result<Corpus> {
        let mut domains = Vec::new();
        for part in &self.parts {
            match &part.source {
                Source::Registry(dataset) => domains.extend(registered(dataset, part, purpose)),
                Source::File(path, format) => domains.push(file(path, *format, part)?),
            }
        }
        make_names_unique(&mut domains);
        let sha256 = match domains.as_slice() {
            [one] => one.sha256.clone(),
            many => {
                let line = |d: &Domain| format!("{} {}\n", d.sha256, d.name);
                sha256_bytes(many.iter().map(line).collect::<String>().as_bytes())
            }
        };
        Ok(Corpus { data: self.text.clone(), domains, sha256 })
    }

    /// The files that [`DataSpec::load`] will read.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().filter_map(|p| match &p.source {
            Source::File(path, _) => Some(path.as_path()),
            Source::Registry(_) => None,
        })
    }
}

fn registered(dataset: &Dataset, part: &Part, purpose: Purpose) -> Vec<Domain> {
    let texts = (dataset.domains)(purpose);
    let domain = |(name, text): &(&str, &str)| Domain {
        name: match &part.name {
            Some(prefix) => format!("{prefix}/{name}"),
            None => (*name).to_string(),
        },
        weight: part.weight.map(|w| w / texts.len() as f64),
        text: (*text).to_string(),
        documents: 1,
        sha256: sha256_bytes(text.as_bytes()),
    };
    texts.iter().map(domain).collect()
}

fn file(path: &Path, format: Format, part: &Part) -> Result<Domain> {
    let bytes = std::fs::read(path).map_err(|e| Error::read(path, e))?;
    let sha256 = sha256_bytes(&bytes);
    let documents = reader::documents(path, format, bytes)?;
    let stem = || path.file_stem().map_or_else(|| "text".into(), |s| s.to_string_lossy().into_owned());
    Ok(Domain {
        name: part.name.clone().unwrap_or_else(stem),
        weight: part.weight,
        documents: documents.len(),
        text: documents.join(DOCUMENT_BREAK),
        sha256,
    })
}

/// Files of one name in several folders become `name`, `name-2`, ….
fn make_names_unique(domains: &mut [Domain]) {
    for i in 1..domains.len() {
        let (before, rest) = domains.split_at_mut(i);
        let taken = |name: &str| before.iter().any(|d| d.name == name);
        if taken(&rest[0].name) {
            let base = std::mem::take(&mut rest[0].name);
            let free = (2..).map(|n| format!("{base}-{n}")).find(|n| !taken(n));
            rest[0].name = free.unwrap_or(base);
        }
    }
}

impl Corpus {
    /// Size of the text in bytes.
    pub fn bytes(&self) -> u64 {
        self.domains.iter().map(|d| d.text.len() as u64).sum()
    }
    /// Whether the argument weighs any domain.
    pub fn is_weighted(&self) -> bool {
        self.domains.iter().any(|d| d.weight.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_formats::ErrorKind;

    fn kind(s: &str) -> ErrorKind {
        s.parse::<DataSpec>().unwrap_err().kind
    }

    #[test]
    fn what_cannot_be_read_says_what_can() {
        assert_eq!(kind("x.parquet"), ErrorKind::Unsupported);
        assert_eq!(kind("x.parquet#text"), ErrorKind::Unsupported);
        assert_eq!(kind("x.jsonl.zst"), ErrorKind::Unsupported);
        assert_eq!(kind("dir/file"), ErrorKind::Unsupported);
        assert_eq!(kind("wikitext2"), ErrorKind::Unsupported);
        assert_eq!(kind("nonsense"), ErrorKind::Usage);
        assert_eq!(kind(""), ErrorKind::Usage);
        assert_eq!(kind("a.txt,"), ErrorKind::Usage);
        assert_eq!(kind("a.txt:0"), ErrorKind::Usage);
        assert_eq!(kind("a.txt:-1"), ErrorKind::Usage);
        assert_eq!(kind("=a.txt"), ErrorKind::Usage);
        assert_eq!(kind("x=a.txt,x=b.txt"), ErrorKind::Usage);
        let e = "nonsense".parse::<DataSpec>().unwrap_err();
        assert!(e.hint.unwrap().contains("`builtin`"));
    }

    #[test]
    fn names_weights_and_digests() {
        let dir = tempfile::tempdir().unwrap();
        let path = |n: &str| dir.path().join(n).display().to_string();
        std::fs::create_dir(path("sub")).unwrap();
        std::fs::write(path("web.txt"), "abc").unwrap();
        std::fs::write(path("sub/web.txt"), "other").unwrap();
        std::fs::write(path("c.jsonl"), "{\"text\":\"one\"}\n{\"text\":\"two\"}\n").unwrap();
        let spec = format!("{},code={}:2.5,{}:1", path("web.txt"), path("c.jsonl"), path("sub/web.txt"));
        let corpus = spec.parse::<DataSpec>().unwrap().load(Purpose::Calibration).unwrap();
        let seen: Vec<_> = corpus.domains.iter().map(|d| (d.name.as_str(), d.weight, d.text.as_str(), d.documents)).collect();
        assert_eq!(seen, [("web", None, "abc", 1), ("code", Some(2.5), "one\n\ntwo", 2), ("web-2", Some(1.0), "other", 1)]);
        assert!(corpus.is_weighted());
        let one = path("web.txt").parse::<DataSpec>().unwrap().load(Purpose::Evaluation).unwrap();
        assert_eq!(one.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_ne!(one.sha256, corpus.sha256);
        let missing = path("none.txt").parse::<DataSpec>().unwrap().load(Purpose::Evaluation).unwrap_err();
        assert_eq!(missing.kind, ErrorKind::Missing);
    }

    #[test]
    fn builtin_differs_by_purpose() {
        let spec: DataSpec = "builtin:10".parse().unwrap();
        let calibration = spec.load(Purpose::Calibration).unwrap();
        let evaluation = spec.load(Purpose::Evaluation).unwrap();
        assert_eq!(calibration.domains.len(), 5);
        assert_eq!(calibration.domains[0].weight, Some(2.0));
        assert_ne!(calibration.sha256, evaluation.sha256);
        let named = "base=builtin".parse::<DataSpec>().unwrap().load(Purpose::Evaluation).unwrap();
        assert_eq!(named.domains[0].name, "base/prose");
    }
}
