//! Checkpoints in several files, as Hugging Face's tools lay them out: an index that says which file holds which tensor, and file
//! names that say "3 of 5".

use crate::error::{Error, ErrorKind, Result};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use std::collections::{BTreeSet, HashSet};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

/// An index: which file holds which tensor.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct Index {
    pub weight_map: UniqueMap<String>,
}

impl Index {
    /// Parses an index and checks that every file name stays inside the index's folder.
    pub(crate) fn parse(json: &[u8]) -> Result<Self> {
        let index: Index =
            serde_json::from_slice(json).map_err(|e| Error::corrupt(format!("not an index: {e}")).with_source(e))?;
        for (tensor, file) in &index.weight_map.0 {
            if !is_plain_name(file) {
                let message = format!("the index puts it in `{file}`, which is not a file name inside the checkpoint's folder");
                return Err(Error::new(ErrorKind::Corrupt, message).tensor(tensor));
            }
        }
        if index.weight_map.0.is_empty() {
            return Err(Error::corrupt("the index names no tensors"));
        }
        Ok(index)
    }

    /// Every tensor that the index promises must be in the file that it names. `file_of` tells where a tensor really is.
    pub(crate) fn check<'a>(&self, index_path: &Path, file_of: impl Fn(&str) -> Option<&'a Path>) -> Result<()> {
        for (tensor, file) in &self.weight_map.0 {
            let Some(actual) = file_of(tensor) else {
                return Err(Error::missing(format!("{} promises this tensor, but the file lacks it", index_path.display()))
                    .file(index_path.with_file_name(file))
                    .tensor(tensor)
                    .hint("index and shards do not belong together, or a shard is damaged: download the checkpoint again"));
            };
            if actual.file_name().is_none_or(|name| name != file.as_str()) {
                return Err(Error::corrupt(format!("the index puts it in {file}, but it is in {}", actual.display()))
                    .file(index_path)
                    .tensor(tensor));
            }
        }
        Ok(())
    }
}

/// The files of a checkpoint, and its index if it has one.
pub(crate) type Resolved = (Vec<PathBuf>, Option<(PathBuf, Index)>);

/// The files that an index names, all of which must be there.
pub(crate) fn resolve_index(index_path: &Path) -> Result<Resolved> {
    let json = std::fs::read(index_path).map_err(|e| Error::read(index_path, e))?;
    let index = Index::parse(&json).map_err(|e| e.file(index_path))?;
    let names: BTreeSet<&str> = index.weight_map.0.iter().map(|(_, file)| file.as_str()).collect();
    let mut files = Vec::with_capacity(names.len());
    for name in names {
        let file = index_path.with_file_name(name);
        if !file.is_file() {
            let tensors: Vec<&str> = index.weight_map.0.iter().filter(|(_, f)| f == name).map(|(t, _)| t.as_str()).collect();
            let listed: Vec<String> = tensors.iter().take(3).map(|t| format!("`{t}`")).collect();
            let more = match tensors.len() - listed.len() {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            return Err(Error::missing(format!("this shard is missing; the index puts {}{more} in it", listed.join(", ")))
                .file(file)
                .tensor(tensors[0])
                .hint("download the checkpoint again, or this file alone, into the same folder"));
        }
        files.push(file);
    }
    Ok((files, Some((index_path.to_path_buf(), index))))
}

/// Names that say "3 of 5" (`PREFIX-00003-of-00005SUFFIX`) must be complete.
pub(crate) fn check_complete(folder: &Path, names: &[String], prefix: &str, suffix: &str) -> Result<()> {
    for name in names {
        let Some(total) = shard_total(name, prefix, suffix) else { continue };
        for i in 1..=total {
            let sibling = format!("{prefix}-{i:05}-of-{total:05}{suffix}");
            if !names.contains(&sibling) {
                return Err(Error::missing(format!("this shard is missing; {name} is there"))
                    .file(folder.join(sibling))
                    .hint("download the checkpoint again, or this file alone, into the same folder"));
            }
        }
    }
    Ok(())
}

/// N of `PREFIX-00001-of-0000NSUFFIX`.
fn shard_total(name: &str, prefix: &str, suffix: &str) -> Option<u32> {
    let rest = name.strip_prefix(prefix)?.strip_prefix('-')?.strip_suffix(suffix)?;
    let (number, total) = rest.split_once("-of-")?;
    let digits = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    (digits(number) && digits(total)).then(|| total.parse().ok()).flatten()
}

/// One path component that is no special name on any platform.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', ':', '\0'])
}

/// A JSON object whose keys must differ, in file order.
#[derive(Debug)]
pub(crate) struct UniqueMap<V>(pub Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = UniqueMap<V>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                let mut seen = HashSet::new();
                while let Some((key, value)) = map.next_entry::<String, V>()? {
                    if !seen.insert(key.clone()) {
                        return Err(A::Error::custom(format!("`{key}` appears twice")));
                    }
                    entries.push((key, value));
                }
                Ok(UniqueMap(entries))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}
