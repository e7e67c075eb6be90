//! Parsing of headers and indexes, all input being untrusted.

use crate::error::{Error, Result};
use crate::shards::UniqueMap;
use safetensors::tensor::{Dtype, Metadata};
use serde::de::IgnoredAny;
use std::collections::BTreeMap;
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
