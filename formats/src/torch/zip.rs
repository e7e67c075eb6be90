//! The directory of a zip archive whose entries are stored without compression, zip64 included. Untrusted input: every offset is
//! checked, and nothing is allocated beyond what the directory's own bytes justify.

use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::ops::Range;

/// First bytes of an archive with at least one entry.
pub(super) const MAGIC: [u8; 4] = *b"PK\x03\x04";

const END: [u8; 4] = *b"PK\x05\x06";
const END64: [u8; 4] = *b"PK\x06\x06";
const END64_LOCATOR: [u8; 4] = *b"PK\x06\x07";
const DIRECTORY_ENTRY: [u8; 4] = *b"PK\x01\x02";

const END_LEN: usize = 22;
const END64_LEN: usize = 56;
const LOCATOR_LEN: usize = 20;
const DIRECTORY_LEN: usize = 46;
const LOCAL_LEN: usize = 30;
/// Longest comment after the end record.
const MAX_COMMENT: usize = 65535;
/// The extra field that has sizes and offsets of more than 32 bits.
const ZIP64_FIELD: u16 = 1;
const ENCRYPTED: u16 = 1;
const STORED: u16 = 0;

fn damaged(what: impl Into<String>) -> Error {
    Error::corrupt(what).hint("the file is damaged or incomplete: download or write it again")
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    let end = at.checked_add(N);
    let part = end.and_then(|end| bytes.get(at..end)).and_then(|b| b.first_chunk());
    part.copied().ok_or_else(|| damaged(format!("the archive ends inside a record at byte {at}")))
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    field(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    field(bytes, at).map(u32::from_le_bytes)
}

fn usize_at(bytes: &[u8], at: usize) -> Result<usize> {
    let value = field(bytes, at).map(u64::from_le_bytes)?;
    usize::try_from(value).map_err(|_| damaged(format!("a size or an offset of {value} at byte {at}")))
}

/// Where each entry's bytes lie, by name.
pub(super) fn entries(bytes: &[u8]) -> Result<BTreeMap<String, Range<usize>>> {
    let (count, start) = directory(bytes)?;
    let mut found = BTreeMap::new();
    let mut at = start;
    for _ in 0..count {
        let (name, range, next) = entry(bytes, at)?;
        if found.insert(name.clone(), range).is_some() {
            return Err(damaged(format!("the archive has `{name}` twice")));
        }
        at = next;
    }
    Ok(found)
}

/// Number of entries, and where the directory starts.
fn directory(bytes: &[u8]) -> Result<(usize, usize)> {
    let from = bytes.len().saturating_sub(END_LEN + MAX_COMMENT);
    let last = bytes.len().checked_sub(END_LEN);
    let end = last.and_then(|last| (from..=last).rev().find(|&i| bytes[i..].starts_with(&END)));
    let end = end.ok_or_else(|| damaged("the archive has no end: it is cut short, or no zip archive"))?;
    let (count, start) = (u16_at(bytes, end + 10)?, u32_at(bytes, end + 16)?);
    let locator = end.checked_sub(LOCATOR_LEN).filter(|&i| bytes[i..].starts_with(&END64_LOCATOR));
    match locator {
        Some(locator) => {
            let record = usize_at(bytes, locator + 8)?;
            if record.checked_add(END64_LEN).is_none_or(|e| e > locator) || !bytes[record..].starts_with(&END64) {
                return Err(damaged("the archive's zip64 end record is not where its locator says"));
            }
            Ok((usize_at(bytes, record + 32)?, usize_at(bytes, record + 48)?))
        }
        None => Ok((count.into(), start as usize)),
    }
}

/// The directory's entry at `at`: its name, the bytes of its contents, and where the next entry starts.
fn entry(bytes: &[u8], at: usize) -> Result<(String, Range<usize>, usize)> {
    if field::<4>(bytes, at)? != DIRECTORY_ENTRY {
        return Err(damaged(format!("no directory entry at byte {at}")));
    }
    field::<DIRECTORY_LEN>(bytes, at)?;
    let (flags, method) = (u16_at(bytes, at + 8)?, u16_at(bytes, at + 10)?);
    let [name_len, extra_len, comment_len] = [28, 30, 32].map(|i| u16_at(bytes, at + i).map(usize::from));
    let name_at = at + DIRECTORY_LEN;
    let extra_at = name_at + name_len?;
    let next = extra_at + extra_len? + comment_len?;
    let record =
        bytes.get(name_at..next).ok_or_else(|| damaged(format!("the archive's directory ends at byte {}", bytes.len())))?;
    let name = String::from_utf8(record[..extra_at - name_at].to_vec()).map_err(|_| damaged("an entry's name is not UTF-8"))?;
    if flags & ENCRYPTED != 0 || method != STORED {
        return Err(Error::unsupported(format!("`{name}` is compressed or encrypted in the archive; torch.save stores plainly"))
            .hint("load it with torch.load and save it again with torch.save"));
    }
    let plain = [24, 20, 42].map(|i| u32_at(bytes, at + i));
    let [size, packed, local] = wide(plain, &bytes[extra_at..extra_at + extra_len_of(bytes, at)?])?;
    if size != packed {
        return Err(damaged(format!("`{name}` is stored, but has two sizes: {size} and {packed} bytes")));
    }
    let cut = || damaged(format!("`{name}` reaches past the end of the archive"));
    if bytes.get(local..).is_none_or(|b| !b.starts_with(&MAGIC)) {
        return Err(damaged(format!("`{name}` is not where the archive's directory says")));
    }
    // The local header's own name and extra field may have other lengths than the directory's: torch pads there for alignment.
    let header = LOCAL_LEN + usize::from(u16_at(bytes, local + 26)?) + usize::from(u16_at(bytes, local + 28)?);
    let start = local.checked_add(header).ok_or_else(cut)?;
    let end = start.checked_add(size).filter(|&end| end <= bytes.len()).ok_or_else(cut)?;
    Ok((name, start..end, next))
}

fn extra_len_of(bytes: &[u8], at: usize) -> Result<usize> {
    u16_at(bytes, at + 30).map(usize::from)
}

/// Size, packed size and offset; those that are all ones stand, in this order, in the zip64 field.
fn wide(plain: [Result<u32>; 3], mut extra: &[u8]) -> Result<[usize; 3]> {
    let mut values = [0; 3];
    let mut missing = Vec::new();
    for (i, value) in plain.into_iter().enumerate() {
        values[i] = value? as usize;
        if values[i] == u32::MAX as usize {
            missing.push(i);
        }
    }
    while extra.len() >= 4 && !missing.is_empty() {
        let (id, len) = (u16_at(extra, 0)?, usize::from(u16_at(extra, 2)?));
        let body = extra.get(4..4 + len).ok_or_else(|| damaged("an extra field of the archive's directory is cut short"))?;
        if id == ZIP64_FIELD {
            for (k, i) in missing.drain(..).enumerate() {
                values[i] = usize_at(body, 8 * k)?;
            }
        }
        extra = &extra[4 + len..];
    }
    // A file of exactly 4 GiB − 1 needs no zip64 field; the checks of ranges find false values.
    Ok(values)
}
