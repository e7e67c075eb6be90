//! Parsing of headers and indexes, all input being untrusted.

use crate::error::{Error, ErrorKind, Result};
use safetensors::tensor::{Dtype, Metadata};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::collections::{BTreeMap, HashSet};
use std::marker::PhantomData;
use std::ops::Range;

/// Longest header in bytes, as in the reference implementation.
pub(super) const MAX_HEADER: usize = 100_000_000;
/// Bytes of the length field before the header.
pub(super) const LENGTH_FIELD: usize = 8;

/// One tensor of a file.
#[derive(Debug)]
pub(super) struct Entry {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Bytes from the start of the file.
    pub range: Range<usize>,
}

/// A file's header.
#[derive(Debug)]
pub(super) struct Header {
    /// In the order of the data.
    pub tensors: Vec<Entry>,
    pub metadata: BTreeMap<String, String>,
}

const DAMAGED: &str = "the file is damaged or incomplete: download or write it again";

/// Parses the header of a whole file. Every tensor's range lies inside `bytes`.
pub(super) fn parse(bytes: &[u8]) -> Result<Header> {
    let corrupt = |message: String| Error::corrupt(message).hint(DAMAGED);
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_FIELD>() else {
        return Err(corrupt(format!("{} bytes are too few for a safetensors file", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER as u64 {
        let message =
            format!("a header of {length} bytes, more than the format's {MAX_HEADER}: not a safetensors file, or damaged");
        return Err(Error::corrupt(message).hint(DAMAGED));
    }
    let length = length as usize;
    let Some(json) = rest.get(..length) else {
        return Err(corrupt(format!("the file ends inside its header: {} of {length} bytes", rest.len())));
    };

    let names =
        serde_json::from_slice::<UniqueMap<IgnoredAny>>(json).map_err(|e| corrupt(format!("header: {e}")).with_source(e))?;
    let parsed: Metadata = serde_json::from_slice(json).map_err(|e| header_error(json, &e).with_source(e))?;
    let data_start = LENGTH_FIELD + length;
    let expected = data_start.checked_add(parsed.data_len());
    if expected != Some(bytes.len()) {
        let last = parsed.offset_keys().into_iter().find(|name| {
            let end = parsed.info(name).map_or(0, |t| t.data_offsets.1);
            data_start.checked_add(end).is_none_or(|end| end > bytes.len())
        });
        let promised = expected.map_or("more bytes than any file can have".to_string(), |e| format!("{e} bytes"));
        let mut error = corrupt(format!("the file has {} bytes, its header promises {promised}", bytes.len()));
        error.tensor = last;
        return Err(error);
    }

    let mut tensors = Vec::with_capacity(names.0.len());
    for name in parsed.offset_keys() {
        let Some(info) = parsed.info(&name) else { continue };
        let (start, end) = info.data_offsets;
        // The sums cannot overflow: `validate` of the crate made the ranges contiguous, and the last end was checked above.
        let range = data_start + start..data_start + end;
        tensors.push(Entry { dtype: info.dtype, shape: info.shape.clone(), range, name });
    }
    let metadata = parsed.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    Ok(Header { tensors, metadata })
}

/// Finds the tensor that made the header unreadable: an unknown dtype is no damage, only unknown.
fn header_error(json: &[u8], error: &serde_json::Error) -> Error {
    if let Ok(UniqueMap(entries)) = serde_json::from_slice::<UniqueMap<serde_json::Value>>(json) {
        for (name, entry) in entries.into_iter().filter(|(name, _)| name != "__metadata__") {
            if let Some(dtype) = entry.get("dtype").and_then(|d| d.as_str())
                && parse_dtype(dtype).is_none()
            {
                return Error::unsupported(format!("unknown dtype `{dtype}`")).tensor(name);
            }
            if let Err(e) = serde_json::from_value::<safetensors::tensor::TensorInfo>(entry) {
                return Error::corrupt(format!("header: {e}")).tensor(name).hint(DAMAGED);
            }
        }
    }
    Error::corrupt(format!("header: {error}")).hint(DAMAGED)
}

/// The crate's dtype of this name.
pub(super) fn parse_dtype(name: &str) -> Option<Dtype> {
    serde_json::from_value(serde_json::Value::String(name.to_string())).ok()
}

/// A JSON object whose keys must differ, in file order.
#[derive(Debug)]
pub(super) struct UniqueMap<V>(pub Vec<(String, V)>);

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

/// An index: which file holds which tensor.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Index {
    pub weight_map: UniqueMap<String>,
}

impl Index {
    /// Parses an index and checks that every file name stays inside the index's folder.
    pub(super) fn parse(json: &[u8]) -> Result<Self> {
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
}

/// One path component that is no special name on any platform.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', ':', '\0'])
}
