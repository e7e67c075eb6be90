//! A file's metadata: unique keys in file order.

use super::value::Value;
use crate::error::{Error, Result};
use std::collections::HashMap;

/// Key–value pairs in insertion order, which is also their order in a file.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    by_key: HashMap<String, usize>,
}

impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl Metadata {
    /// No pairs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key: a new one goes to the end, a present one keeps its place.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        let (key, value) = (key.into(), value.into());
        match self.by_key.get(&key) {
            Some(&i) => self.entries[i].1 = value,
            None => {
                self.by_key.insert(key.clone(), self.entries.len());
                self.entries.push((key, value));
            }
        }
    }

    /// Removes a key.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let i = self.by_key.remove(key)?;
        for place in self.by_key.values_mut().filter(|p| **p > i) {
            *place -= 1;
        }
        Some(self.entries.remove(i).1)
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.by_key.get(key).map(|&i| &self.entries[i].1)
    }

    /// Whether the key is there.
    pub fn contains(&self, key: &str) -> bool {
        self.by_key.contains_key(key)
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no pairs.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The pairs, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// A required non-negative integer of any width.
    pub fn u64(&self, key: &str) -> Result<u64> {
        self.required(key, "an unsigned integer", Value::as_u64)
    }

    /// A required integer that counts or indexes something.
    pub fn usize(&self, key: &str) -> Result<usize> {
        self.required(key, "an unsigned integer", |v| v.as_u64()?.try_into().ok())
    }

    /// A required floating-point number of any width.
    pub fn f64(&self, key: &str) -> Result<f64> {
        self.required(key, "a floating-point number", Value::as_f64)
    }

    /// A required truth value.
    pub fn bool(&self, key: &str) -> Result<bool> {
        self.required(key, "a truth value", Value::as_bool)
    }

    /// A required string.
    pub fn str(&self, key: &str) -> Result<&str> {
        self.required(key, "a string", Value::as_str)
    }

    /// A required array of strings.
    pub fn strings(&self, key: &str) -> Result<&[String]> {
        self.required(key, "an array of strings", Value::as_strings)
    }

    /// An optional value: absent is `None`, the wrong type an error. Use as `m.optional("k", Metadata::u64)`.
    pub fn optional<'a, T>(&'a self, key: &str, read: impl Fn(&'a Self, &str) -> Result<T>) -> Result<Option<T>> {
        if self.contains(key) { read(self, key).map(Some) } else { Ok(None) }
    }

    fn required<'a, T>(&'a self, key: &str, what: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<T> {
        let value = self.get(key).ok_or_else(|| Error::missing(format!("the metadata lack `{key}`")))?;
        read(value).ok_or_else(|| Error::corrupt(format!("metadata `{key}` must be {what}, but is {}", value.type_name())))
    }
}

impl<K: Into<String>, V: Into<Value>> FromIterator<(K, V)> for Metadata {
    /// Collects pairs; of equal keys, the last value wins.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut metadata = Metadata::new();
        for (key, value) in pairs {
            metadata.set(key, value);
        }
        metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn keeps_order_and_replaces_in_place() {
        let mut m = Metadata::new();
        m.set("b", 1u32);
        m.set("a", "x");
        m.set("c", true);
        m.set("b", 2u64);
        assert_eq!(m.iter().map(|(k, _)| k).collect::<Vec<_>>(), ["b", "a", "c"]);
        assert_eq!(m.u64("b").unwrap(), 2);
        assert_eq!(m.remove("a"), Some(Value::String("x".into())));
        assert!(m.bool("c").unwrap());
        assert_eq!(m.len(), 2);
    }

    #[test]
    fn typed_access_says_what_is_wrong() {
        let m: Metadata = [("i", Value::I32(-1)), ("u", Value::U8(7)), ("f", Value::F32(0.5))].into_iter().collect();
        assert_eq!(m.u64("u").unwrap(), 7);
        assert_eq!(m.f64("f").unwrap(), 0.5);
        assert_eq!(m.u64("i").unwrap_err().kind, ErrorKind::Corrupt);
        assert_eq!(m.u64("none").unwrap_err().kind, ErrorKind::Missing);
        assert_eq!(m.optional("none", Metadata::u64).unwrap(), None);
        assert_eq!(m.optional("u", Metadata::usize).unwrap(), Some(7));
        assert!(m.optional("f", Metadata::str).is_err());
    }
}
