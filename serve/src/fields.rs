//! The fields of a request, each taken once: what is left over at the end is unknown.

use crate::error::ApiError;
use serde_json::{Map, Value};
use std::fmt::Display;

/// A JSON object being read.
#[derive(Debug)]
pub struct Fields {
    map: Map<String, Value>,
}

impl Fields {
    /// Parses a request's body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Fields { map }),
            Ok(other) => Err(ApiError::bad(format!("the body must be a JSON object, not {}", kind(&other)))),
            Err(e) => Err(ApiError::bad(format!("the body is not JSON: {e}"))),
        }
    }

    /// Takes a field; `null` counts as absent.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.map.shift_remove(key).filter(|v| !v.is_null())
    }

    /// A string.
    pub fn string(&mut self, key: &str) -> Result<Option<String>, ApiError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(wrong(key, "a string", &other)),
        }
    }

    /// `true` or `false`; false if absent.
    pub fn flag(&mut self, key: &str) -> Result<bool, ApiError> {
        match self.take(key) {
            None => Ok(false),
            Some(Value::Bool(b)) => Ok(b),
            Some(other) => Err(wrong(key, "true or false", &other)),
        }
    }

    /// A whole number from `low` to `high`.
    pub fn integer(&mut self, key: &str, low: u64, high: u64) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if (low..=high).contains(&n) => Ok(Some(n)),
            _ if value.is_number() => Err(outside(key, "a whole number", low, high, &value)),
            _ => Err(wrong(key, "a whole number", &value)),
        }
    }

    /// A number from `low` to `high`.
    pub fn number(&mut self, key: &str, low: f64, high: f64) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        match value.as_f64() {
            Some(n) if n >= low && n <= high => Ok(Some(n as f32)),
            Some(_) => Err(outside(key, "a number", low, high, &value)),
            None => Err(wrong(key, "a number", &value)),
        }
    }

    /// Refuses a field of OpenAI's API that this server cannot honour, unless its value asks for nothing.
    pub fn unsupported(&mut self, key: &str, harmless: &[Value]) -> Result<(), ApiError> {
        match self.take(key) {
            Some(value) if !harmless.contains(&value) => {
                Err(ApiError::field(key, format!("`{key}` is not supported by this server: leave it out")))
            }
            _ => Ok(()),
        }
    }

    /// Drops fields that say something about the caller, not about the answer.
    pub fn ignore(&mut self, keys: &[&str]) {
        for key in keys {
            self.take(key);
        }
    }

    /// Refuses what nobody took.
    pub fn finish(self) -> Result<(), ApiError> {
        match self.map.into_iter().find(|(_, v)| !v.is_null()) {
            Some((key, _)) => Err(ApiError::field(&key, format!("unknown field `{key}`"))),
            None => Ok(()),
        }
    }
}

/// The error for a value of the wrong type.
pub fn wrong(key: &str, want: &str, got: &Value) -> ApiError {
    ApiError::field(key, format!("`{key}` must be {want}, not {}", kind(got)))
}

fn outside(key: &str, what: &str, low: impl Display, high: impl Display, got: &Value) -> ApiError {
    ApiError::field(key, format!("`{key}` must be {what} from {low} to {high}, not {got}"))
}

/// What a value is, in words.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
