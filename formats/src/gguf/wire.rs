//! Values as bytes. Reading trusts nothing: every count is held against the bytes that are left before memory is taken for it.

use super::value::{Array, Value};
use crate::error::{Error, Result};

/// Deepest nesting of arrays that is read. Files in the wild have one level.
pub(super) const MAX_DEPTH: usize = 8;
/// Longest metadata key in bytes, from the specification.
pub(super) const MAX_KEY: usize = 65535;

const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// A position in untrusted bytes.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Cursor { bytes, at: 0 }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `n` bytes.
    pub(super) fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8]> {
        if n > self.left() as u64 {
            let message = format!("{what} at byte {} needs {n} bytes, but only {} are left", self.at, self.left());
            return Err(Error::corrupt(message).hint("the file is damaged or incomplete: download or write it again"));
        }
        let taken = &self.bytes[self.at..self.at + n as usize];
        self.at += n as usize;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number of things of at least `min_bytes` each, which must fit into what is left.
    pub(super) fn count(&mut self, min_bytes: u64, what: &str) -> Result<usize> {
        let n = self.u64(what)?;
        if n > self.left() as u64 / min_bytes {
            let message = format!("{what} of {n} before byte {} cannot fit into the {} bytes left", self.at, self.left());
            return Err(Error::corrupt(message).hint("the file is damaged or incomplete: download or write it again"));
        }
        Ok(n as usize)
    }

    pub(super) fn string(&mut self, what: &str) -> Result<String> {
        let n = self.u64(what)?;
        let at = self.at;
        let bytes = self.take(n, what)?;
        match std::str::from_utf8(bytes) {
            Ok(s) => Ok(s.to_string()),
            Err(e) => Err(Error::corrupt(format!("{what} at byte {at} is not UTF-8")).with_source(e)),
        }
    }

    fn bool(&mut self) -> Result<bool> {
        match self.array::<1>("truth value")? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(Error::corrupt(format!("a truth value at byte {} is {other}", self.at - 1))),
        }
    }
}

macro_rules! wire {
    ($($id:literal $variant:ident $ty:ty),*) => {
        /// Reads a value of the type with this id.
        pub(super) fn read_value(c: &mut Cursor<'_>, id: u32) -> Result<Value> {
            Ok(match id {
                $($id => Value::$variant(<$ty>::from_le_bytes(c.array("value")?)),)*
                7 => Value::Bool(c.bool()?),
                STRING => Value::String(c.string("string")?),
                ARRAY => Value::Array(read_array(c, 1)?),
                _ => return Err(Error::corrupt(format!("unknown value type {id} before byte {}", c.at))),
            })
        }

        fn read_array(c: &mut Cursor<'_>, depth: usize) -> Result<Array> {
            if depth > MAX_DEPTH {
                return Err(Error::corrupt(format!("arrays nested more than {MAX_DEPTH} deep at byte {}", c.at)));
            }
            let id = c.u32("array type")?;
            Ok(match id {
                $($id => {
                    const SIZE: usize = size_of::<$ty>();
                    let n = c.count(SIZE as u64, "array")?;
                    let (items, _) = c.take((n * SIZE) as u64, "array")?.as_chunks::<SIZE>();
                    Array::$variant(items.iter().map(|b| <$ty>::from_le_bytes(*b)).collect())
                })*
                7 => {
                    let n = c.count(1, "array")?;
                    Array::Bool((0..n).map(|_| c.bool()).collect::<Result<_>>()?)
                }
                STRING => {
                    let n = c.count(8, "array of strings")?;
                    Array::String((0..n).map(|_| c.string("string")).collect::<Result<_>>()?)
                }
                ARRAY => {
                    let n = c.count(12, "array of arrays")?;
                    Array::Array((0..n).map(|_| read_array(c, depth + 1)).collect::<Result<_>>()?)
                }
                _ => return Err(Error::corrupt(format!("unknown array type {id} before byte {}", c.at))),
            })
        }

        /// Appends type id and value.
        pub(super) fn write_value(value: &Value, out: &mut Vec<u8>) {
            match value {
                $(Value::$variant(v) => { put_u32(out, $id); out.extend(v.to_le_bytes()); })*
                Value::Bool(v) => { put_u32(out, 7); out.push(u8::from(*v)); }
                Value::String(v) => { put_u32(out, STRING); put_string(out, v); }
                Value::Array(v) => { put_u32(out, ARRAY); write_array(v, out); }
            }
        }

        fn write_array(array: &Array, out: &mut Vec<u8>) {
            let n = array.len() as u64;
            let mut head = |id: u32| { put_u32(out, id); put_u64(out, n); };
            match array {
                $(Array::$variant(v) => { head($id); v.iter().for_each(|x| out.extend(x.to_le_bytes())); })*
                Array::Bool(v) => { head(7); out.extend(v.iter().map(|&b| u8::from(b))); }
                Array::String(v) => { head(STRING); v.iter().for_each(|s| put_string(out, s)); }
                Array::Array(v) => { head(ARRAY); v.iter().for_each(|a| write_array(a, out)); }
            }
        }
    };
}
wire!(0 U8 u8, 1 I8 i8, 2 U16 u16, 3 I16 i16, 4 U32 u32, 5 I32 i32, 6 F32 f32, 10 U64 u64, 11 I64 i64, 12 F64 f64);

/// Levels of arrays in a value: 0 for a scalar, 1 for an array of scalars.
pub(super) fn depth(value: &Value) -> usize {
    fn of(array: &Array) -> usize {
        match array {
            Array::Array(v) => 1 + v.iter().map(of).max().unwrap_or(0),
            _ => 1,
        }
    }
    value.as_array().map_or(0, of)
}

pub(super) fn put_u32(out: &mut Vec<u8>, v: u32) {
    out.extend(v.to_le_bytes());
}

pub(super) fn put_u64(out: &mut Vec<u8>, v: u64) {
    out.extend(v.to_le_bytes());
}

pub(super) fn put_string(out: &mut Vec<u8>, s: &str) {
    put_u64(out, s.len() as u64);
    out.extend(s.as_bytes());
}
