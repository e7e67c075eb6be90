//! Reading keys of `config.json` (or of GGUF metadata as a JSON object), with errors that name the key.

use bitsmith_formats::{Error, Result};
use serde_json::Value;

/// A JSON object of hyperparameters.
#[derive(Clone, Copy)]
pub(super) struct Config<'a>(pub &'a Value);

impl<'a> Config<'a> {
    /// The value of a key, `null` counting as absent.
    pub fn get(self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }
    pub(super) fn required<T>(self, key: &str, found: Option<T>) -> Result<T> {
        found.ok_or_else(|| Error::corrupt(format!("key `{key}` is missing")))
    }
    fn typed<T>(self, key: &str, kind: &str, f: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => f(v).map(Some).ok_or_else(|| Error::corrupt(format!("key `{key}` is {}, not {kind}", shown(v)))),
        }
    }

    /// A string that must be there.
    pub fn str(self, key: &str) -> Result<&'a str> {
        self.required(key, self.opt_str(key)?)
    }
    /// A string.
    pub fn opt_str(self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a string", Value::as_str)
    }
    /// A whole number that must be there.
    pub fn usize(self, key: &str) -> Result<usize> {
        self.required(key, self.opt_usize(key)?)
    }
    /// A whole number.
    pub fn opt_usize(self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number", whole)
    }
    /// A whole number that must be there under one of these keys.
    pub fn usize_of(self, keys: &[&str]) -> Result<usize> {
        let key = keys.iter().find(|key| self.get(key).is_some()).unwrap_or(&keys[0]);
        self.usize(key)
    }
    /// A finite number that must be there.
    pub fn f64(self, key: &str) -> Result<f64> {
        self.required(key, self.opt_f64(key)?)
    }
    /// A finite number.
    pub fn opt_f64(self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a finite number", |v| v.as_f64().filter(|x| x.is_finite()))
    }
    /// A truth value.
    pub fn opt_bool(self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }
    /// A list of finite numbers that must be there.
    pub fn f32s(self, key: &str) -> Result<Vec<f32>> {
        let number = |v: &Value| v.as_f64().filter(|x| x.is_finite()).map(|x| x as f32);
        let list = self.typed(key, "a list of numbers", |v| v.as_array()?.iter().map(number).collect())?;
        self.required(key, list)
    }
    /// A nested object.
    pub fn opt_object(self, key: &str) -> Result<Option<Config<'a>>> {
        self.typed(key, "an object", |v| v.is_object().then_some(Config(v)))
    }
    /// A token id or a list of them.
    pub fn token_ids(self, key: &str) -> Result<Vec<u32>> {
        let id = |v: &Value| whole(v).and_then(|n| u32::try_from(n).ok());
        let read = |v: &'a Value| match v {
            Value::Array(list) => list.iter().map(id).collect(),
            one => id(one).map(|i| vec![i]),
        };
        Ok(self.typed(key, "a token id or a list of token ids", read)?.unwrap_or_default())
    }
}

fn whole(v: &Value) -> Option<usize> {
    let float = || v.as_f64().filter(|x| x.fract() == 0.0 && (0.0..9e15).contains(x)).map(|x| x as u64);
    v.as_u64().or_else(float).and_then(|n| usize::try_from(n).ok())
}

/// A value for an error message: short, whatever the file says.
fn shown(v: &Value) -> String {
    let text = v.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
