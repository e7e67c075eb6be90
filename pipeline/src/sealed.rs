//! Records of the cache and of work folders that tell whether they are still what was written: JSON with the hash of its text, so that
//! a flipped bit makes a record that is not there, and never a number that is wrong.

use bitsmith_formats::hash::sha256_bytes;
use bitsmith_formats::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

const HASH: &str = "{\"sha256\":\"";
const VALUE: &str = "\",\"value\":";
/// Hexadecimal digits of a hash.
const DIGITS: usize = 64;

/// A value as a line of JSON, without the line's end.
pub fn seal<T: Serialize>(value: &T) -> Result<String> {
    let value = serde_json::to_string(value).map_err(|e| Error::failed(e.to_string()))?;
    Ok(format!("{HASH}{}{VALUE}{value}}}", sha256_bytes(value.as_bytes())))
}

/// The value that was sealed; nothing if the text is not as it was written, or was written by an earlier version.
pub fn open<T: DeserializeOwned>(text: &[u8]) -> Option<T> {
    let (hash, rest) = text.strip_prefix(HASH.as_bytes())?.split_at_checked(DIGITS)?;
    let value = rest.strip_prefix(VALUE.as_bytes())?.strip_suffix(b"}")?;
    (sha256_bytes(value).as_bytes() == hash).then(|| serde_json::from_slice(value).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_shows() {
        let value = (0.1f64 + 0.2, "text\n".to_string(), vec![1u64, 2]);
        let sealed = seal(&value).unwrap();
        assert!(!sealed.contains('\n'));
        assert_eq!(open(sealed.as_bytes()).as_ref(), Some(&value));
        let document: serde_json::Value = serde_json::from_str(&sealed).unwrap();
        assert_eq!(document["value"][2][1], 2);
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone().into_bytes();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open::<(f64, String, Vec<u64>)>(&flipped), None, "bit {bit}");
        }
        assert_eq!(open::<u32>(b""), None);
        assert_eq!(open::<u32>(b"7"), None);
    }
}
