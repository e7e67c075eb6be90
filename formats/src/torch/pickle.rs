//! The pickle machine, protocols 2 to 5, restricted to what describes tensors. It has no way to run anything: a name is looked up in
//! a fixed table, a call builds a record of ours, and what the table lacks is an error.
//!
//! Memory is bounded by the pickle's length: every opcode makes at most one object, and values are small copies that share them.

use crate::error::{Error, Result};
use std::collections::HashMap;

/// Largest number of values on the stack or in the memo: far above any checkpoint.
const MAX_VALUES: usize = 1 << 24;
/// Most dimensions of a tensor, as in PyTorch.
const MAX_DIMS: usize = 64;

/// What the machine makes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    /// A value without meaning for a checkpoint: None, a float, bytes, a device.
    Other,
    Bool,
    Int(i64),
    Str(&'a str),
    Name(Name),
    /// Index into [`Objects::tuples`].
    Tuple(usize),
    /// Index into [`Objects::lists`].
    List(usize),
    /// Index into [`Objects::dicts`].
    Dict(usize),
    /// Index into [`Objects::storages`].
    Storage(usize),
    /// Index into [`Objects::tensors`].
    Tensor(usize),
}

/// A Python name that may occur.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Name {
    OrderedDict,
    Size,
    Device,
    RebuildTensor,
    RebuildTensorV2,
    RebuildTensorV3,
    RebuildParameter,
    RebuildParameterWithState,
    /// A storage class with the dtype of its elements; `U8` for untyped storages, which count bytes.
    Storage(Dtype),
    Dtype(Dtype),
}

/// An element type, by its safetensors name and size in bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Dtype {
    pub name: &'static str,
    pub size: usize,
}

/// Element types: torch's name, the storage class's prefix, the safetensors name, bytes.
const DTYPES: &[(&str, &str, &str, usize)] = &[
    ("float32", "Float", "F32", 4),
    ("float16", "Half", "F16", 2),
    ("bfloat16", "BFloat16", "BF16", 2),
    ("float64", "Double", "F64", 8),
    ("int8", "Char", "I8", 1),
    ("uint8", "Byte", "U8", 1),
    ("int16", "Short", "I16", 2),
    ("int32", "Int", "I32", 4),
    ("int64", "Long", "I64", 8),
    ("bool", "Bool", "BOOL", 1),
    ("complex64", "ComplexFloat", "C64", 8),
    ("complex128", "ComplexDouble", "C128", 16),
    ("uint16", "", "U16", 2),
    ("uint32", "", "U32", 4),
    ("uint64", "", "U64", 8),
    ("float8_e4m3fn", "", "F8_E4M3", 1),
    ("float8_e5m2", "", "F8_E5M2", 1),
    ("float8_e8m0fnu", "", "F8_E8M0", 1),
];

/// A run of elements in an entry of the archive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Storage<'a> {
    pub key: &'a str,
    pub dtype: Dtype,
    pub numel: usize,
}

/// A view of a storage.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tensor {
    pub storage: usize,
    pub dtype: Dtype,
    /// In elements.
    pub offset: usize,
    pub shape: Vec<usize>,
    /// In elements.
    pub strides: Vec<usize>,
}

/// A dict's pairs in the order in which they were set; a key set twice has two pairs.
pub(super) type Pairs<'a> = Vec<(Value<'a>, Value<'a>)>;

/// Everything that values refer to.
#[derive(Debug, Default)]
pub(super) struct Objects<'a> {
    pub tuples: Vec<Vec<Value<'a>>>,
    pub lists: Vec<Vec<Value<'a>>>,
    pub dicts: Vec<Pairs<'a>>,
    pub storages: Vec<Storage<'a>>,
    pub tensors: Vec<Tensor>,
}

/// Runs a pickle and gives its result with all objects.
pub(super) fn load(bytes: &[u8]) -> Result<(Value<'_>, Objects<'_>)> {
    let mut machine =
        Machine { bytes, at: 0, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), objects: Objects::default() };
    let result = machine.run()?;
    Ok((result, machine.objects))
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value<'a>>,
    /// Stack heights at open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    objects: Objects<'a>,
}

impl<'a> Machine<'a> {
    fn bad(&self, what: impl std::fmt::Display) -> Error {
        Error::corrupt(format!("pickle, before byte {}: {what}", self.at)).hint("the file is damaged, or no checkpoint")
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8]> {
        let left = self.bytes.len() - self.at;
        if n > left as u64 {
            return Err(self.bad(format!("{n} bytes are needed, {left} are left")));
        }
        let taken = &self.bytes[self.at..self.at + n as usize];
        self.at += n as usize;
        Ok(taken)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64)?);
        Ok(out)
    }
    fn u8(&mut self) -> Result<u8> {
        self.array::<1>().map(|[b]| b)
    }
    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }
    fn text(&mut self, n: u64) -> Result<&'a str> {
        let bytes = self.take(n)?;
        std::str::from_utf8(bytes).map_err(|_| self.bad("a string that is not UTF-8"))
    }
    fn line(&mut self) -> Result<&'a str> {
        let len = self.bytes[self.at..].iter().position(|b| *b == b'\n').ok_or_else(|| self.bad("a line without an end"))?;
        let text = self.text(len as u64)?;
        self.at += 1;
        Ok(text)
    }

    fn push(&mut self, value: Value<'a>) -> Result<()> {
        if self.stack.len() >= MAX_VALUES {
            return Err(self.bad("too many values"));
        }
        self.stack.push(value);
        Ok(())
    }
    /// Takes the topmost value, not reaching below the last mark.
    fn pop(&mut self) -> Result<Value<'a>> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(self.bad("nothing is on the stack"));
        }
        self.stack.pop().ok_or_else(|| self.bad("nothing is on the stack"))
    }
    fn top(&self) -> Result<Value<'a>> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack[floor..].last().copied().ok_or_else(|| self.bad("nothing is on the stack"))
    }
    /// Takes everything above the last mark.
    fn since_mark(&mut self) -> Result<Vec<Value<'a>>> {
        let mark = self.marks.pop().ok_or_else(|| self.bad("no mark is on the stack"))?;
        Ok(self.stack.split_off(mark))
    }
    fn popped(&mut self, n: usize) -> Result<Vec<Value<'a>>> {
        let mut values = (0..n).map(|_| self.pop()).collect::<Result<Vec<_>>>()?;
        values.reverse();
        Ok(values)
    }

    fn tuple(&mut self, items: Vec<Value<'a>>) -> Result<()> {
        self.objects.tuples.push(items);
        self.push(Value::Tuple(self.objects.tuples.len() - 1))
    }
    fn list(&mut self) -> Result<()> {
        self.objects.lists.push(Vec::new());
        self.push(Value::List(self.objects.lists.len() - 1))
    }
    fn dict(&mut self) -> Value<'a> {
        self.objects.dicts.push(Vec::new());
        Value::Dict(self.objects.dicts.len() - 1)
    }
    fn append(&mut self, items: Vec<Value<'a>>) -> Result<()> {
        match self.top()? {
            Value::List(i) => self.objects.lists[i].extend(items),
            Value::Other => {} // a set
            other => return Err(self.bad(format!("items are added to {other:?}"))),
        }
        Ok(())
    }
    fn set(&mut self, items: &[Value<'a>]) -> Result<()> {
        let Value::Dict(i) = self.top()? else { return Err(self.bad("keys are set on what is no dict")) };
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(self.bad("a key without a value"));
        }
        self.objects.dicts[i].extend(pairs.iter().map(|[k, v]| (*k, *v)));
        Ok(())
    }
    fn remember(&mut self, key: u32) -> Result<()> {
        let value = self.top()?;
        self.memo.insert(key, value);
        Ok(())
    }
    fn recall(&mut self, key: u32) -> Result<()> {
        let value = *self.memo.get(&key).ok_or_else(|| self.bad(format!("nothing is remembered as {key}")))?;
        self.push(value)
    }

    fn run(&mut self) -> Result<Value<'a>> {
        loop {
            match self.u8()? {
                0x80 => {
                    let version = self.u8()?;
                    if !(2..=5).contains(&version) {
                        return Err(Error::unsupported(format!("pickle protocol {version}")));
                    }
                }
                b'.' => {
                    return self.pop();
                }
                b'(' => {
                    if self.marks.len() >= MAX_VALUES {
                        return Err(self.bad("too many marks"));
                    }
                    self.marks.push(self.stack.len());
                }
                b'0' => {
                    self.pop()?;
                }
                b'1' => {
                    self.since_mark()?;
                }
                b'2' => {
                    let top = self.top()?;
                    self.push(top)?;
                }
                b'N' => self.push(Value::Other)?,
                0x88 | 0x89 => self.push(Value::Bool)?,
                b'K' => {
                    let n = self.u8()?;
                    self.push(Value::Int(n.into()))?;
                }
                b'M' => {
                    let n = self.array().map(u16::from_le_bytes)?;
                    self.push(Value::Int(n.into()))?;
                }
                b'J' => {
                    let n = self.array().map(i32::from_le_bytes)?;
                    self.push(Value::Int(n.into()))?;
                }
                0x8a => {
                    let len = self.u8()?;
                    self.long(len.into())?;
                }
                0x8b => {
                    let len = self.u32()?;
                    self.long(len.into())?;
                }
                b'G' => {
                    self.take(8)?;
                    self.push(Value::Other)?;
                }
                b'X' => {
                    let len = self.u32()?;
                    let text = self.text(len.into())?;
                    self.push(Value::Str(text))?;
                }
                0x8c => {
                    let len = self.u8()?;
                    let text = self.text(len.into())?;
                    self.push(Value::Str(text))?;
                }
                0x8d => {
                    let len = self.u64()?;
                    let text = self.text(len)?;
                    self.push(Value::Str(text))?;
                }
                b'U' | b'C' => {
                    let len = self.u8()?;
                    self.skip_bytes(len.into())?;
                }
                b'T' | b'B' => {
                    let len = self.u32()?;
                    self.skip_bytes(len.into())?;
                }
                0x8e | 0x96 => {
                    let len = self.u64()?;
                    self.skip_bytes(len)?;
                }
                b'}' => {
                    let dict = self.dict();
                    self.push(dict)?;
                }
                b']' => self.list()?,
                b')' => self.tuple(Vec::new())?,
                b't' => {
                    let items = self.since_mark()?;
                    self.tuple(items)?;
                }
                code @ 0x85..=0x87 => {
                    let items = self.popped((code - 0x84).into())?;
                    self.tuple(items)?;
                }
                // Sets have no tensors that a checkpoint could name.
                0x8f => self.push(Value::Other)?,
                0x91 => {
                    self.since_mark()?;
                    self.push(Value::Other)?;
                }
                0x90 | b'e' => {
                    let items = self.since_mark()?;
                    self.append(items)?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b's' => {
                    let items = self.popped(2)?;
                    self.set(&items)?;
                }
                b'u' => {
                    let items = self.since_mark()?;
                    self.set(&items)?;
                }
                b'q' => {
                    let key = self.u8()?;
                    self.remember(key.into())?;
                }
                b'r' => {
                    let key = self.u32()?;
                    self.remember(key)?;
                }
                // Protocol 4 numbers what it remembers.
                0x94 => self.remember(self.memo.len() as u32)?,
                b'h' => {
                    let key = self.u8()?;
                    self.recall(key.into())?;
                }
                b'j' => {
                    let key = self.u32()?;
                    self.recall(key)?;
                }
                0x95 => {
                    let len = self.u64()?;
                    if len > (self.bytes.len() - self.at) as u64 {
                        return Err(self.bad(format!("a frame of {len} bytes")));
                    }
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.name(module, name)?;
                }
                0x93 => {
                    let names = self.popped(2)?;
                    let [Value::Str(module), Value::Str(name)] = names[..] else {
                        return Err(self.bad("a name that is no text"));
                    };
                    self.name(module, name)?;
                }
                b'Q' => {
                    let id = self.pop()?;
                    self.storage(id)?;
                }
                b'R' | 0x81 => {
                    let args = self.pop()?;
                    let function = self.pop()?;
                    self.call(function, args)?;
                }
                b'b' => {
                    // An OrderedDict's attributes (`_metadata`: module versions) say nothing about tensors.
                    self.pop()?;
                    if !matches!(self.top()?, Value::Dict(_)) {
                        return Err(self.bad("attributes are set on what is no dict"));
                    }
                }
                other => {
                    let message = format!("pickle opcode {other:#04x} at byte {}, which torch.save does not write", self.at - 1);
                    return Err(Error::unsupported(message).hint("save the model's state dict with torch.save"));
                }
            }
        }
    }

    fn long(&mut self, len: u64) -> Result<()> {
        let bytes = self.take(len)?;
        if bytes.len() > 8 {
            return Err(self.bad(format!("an integer of {} bytes", bytes.len())));
        }
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(wide)))
    }

    fn skip_bytes(&mut self, len: u64) -> Result<()> {
        self.take(len)?;
        self.push(Value::Other)
    }

    fn name(&mut self, module: &str, name: &str) -> Result<()> {
        let found = lookup(module, name).ok_or_else(|| {
            Error::unsupported(format!("the file names `{module}.{name}`, which would run code when loaded by Python"))
                .hint("only tensors are read; save the model's state dict with torch.save, or look for safetensors")
        })?;
        self.push(Value::Name(found))
    }

    /// A persistent id: `("storage", class, key, location, elements)`.
    fn storage(&mut self, id: Value<'a>) -> Result<()> {
        let (kind, class, key, numel) = match self.items(id) {
            Some(&[Value::Str(kind), Value::Name(Name::Storage(class)), Value::Str(key), _, Value::Int(numel)]) => {
                (kind, class, key, numel)
            }
            _ => return Err(self.bad("a reference that is no storage")),
        };
        let numel = usize::try_from(numel).map_err(|_| self.bad(format!("a storage of {numel} elements")))?;
        if kind != "storage" {
            return Err(self.bad(format!("a reference to a `{kind}`")));
        }
        self.objects.storages.push(Storage { key, dtype: class, numel });
        self.push(Value::Storage(self.objects.storages.len() - 1))
    }

    fn items(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        match value {
            Value::Tuple(i) => Some(&self.objects.tuples[i]),
            Value::List(i) => Some(&self.objects.lists[i]),
            _ => None,
        }
    }

    fn call(&mut self, function: Value<'a>, args: Value<'a>) -> Result<()> {
        let Value::Name(name) = function else { return Err(self.bad(format!("{function:?} is called"))) };
        let Value::Tuple(tuple) = args else { return Err(self.bad("a call without a tuple of arguments")) };
        let wrong = |m: &Self| m.bad(format!("{name:?} is called with unknown arguments"));
        let args = &self.objects.tuples[tuple];
        let made = match (name, &args[..]) {
            (Name::OrderedDict, []) => self.dict(),
            (Name::Size, &[sizes]) => sizes,
            (Name::Device, _) => Value::Other,
            (Name::RebuildTensor, &[storage, offset, size, stride]) => self.tensor(storage, offset, size, stride, None)?,
            (Name::RebuildTensorV2, &[storage, offset, size, stride, ..]) => self.tensor(storage, offset, size, stride, None)?,
            (Name::RebuildTensorV3, &[storage, offset, size, stride, _, _, Value::Name(Name::Dtype(dtype)), ..]) => {
                self.tensor(storage, offset, size, stride, Some(dtype))?
            }
            (Name::RebuildParameter | Name::RebuildParameterWithState, &[tensor @ Value::Tensor(_), ..]) => tensor,
            _ => return Err(wrong(self)),
        };
        self.push(made)
    }

    fn tensor(
        &mut self,
        storage: Value<'a>,
        offset: Value<'a>,
        size: Value<'a>,
        stride: Value<'a>,
        dtype: Option<Dtype>,
    ) -> Result<Value<'a>> {
        let Value::Storage(storage) = storage else { return Err(self.bad("a tensor without a storage")) };
        let number = |m: &Self, value: &Value<'a>| match value {
            Value::Int(n) => usize::try_from(*n).map_err(|_| m.bad(format!("a tensor with the size, offset or stride {n}"))),
            other => Err(m.bad(format!("a tensor with the size, offset or stride {other:?}"))),
        };
        let numbers = |m: &Self, value| match m.items(value) {
            Some(items) if items.len() <= MAX_DIMS => items.iter().map(|v| number(m, v)).collect::<Result<Vec<_>>>(),
            _ => Err(m.bad(format!("a tensor's sizes or strides are no tuple of at most {MAX_DIMS} numbers"))),
        };
        let (offset, shape, strides) = (number(self, &offset)?, numbers(self, size)?, numbers(self, stride)?);
        if shape.len() != strides.len() {
            return Err(self.bad(format!("a tensor of {} dimensions with {} strides", shape.len(), strides.len())));
        }
        let dtype = dtype.unwrap_or(self.objects.storages[storage].dtype);
        self.objects.tensors.push(Tensor { storage, dtype, offset, shape, strides });
        Ok(Value::Tensor(self.objects.tensors.len() - 1))
    }
}

/// The whitelist.
fn lookup(module: &str, name: &str) -> Option<Name> {
    let dtype = |(.., label, size): &(&str, &str, &'static str, usize)| Dtype { name: label, size: *size };
    Some(match (module, name) {
        ("collections", "OrderedDict") => Name::OrderedDict,
        ("torch", "Size") => Name::Size,
        ("torch", "device") => Name::Device,
        ("torch._utils", "_rebuild_tensor") => Name::RebuildTensor,
        ("torch._utils", "_rebuild_tensor_v2") => Name::RebuildTensorV2,
        ("torch._utils", "_rebuild_tensor_v3") => Name::RebuildTensorV3,
        ("torch._utils", "_rebuild_parameter") => Name::RebuildParameter,
        ("torch._utils", "_rebuild_parameter_with_state") => Name::RebuildParameterWithState,
        ("torch.storage" | "torch", "UntypedStorage") => Name::Storage(Dtype { name: "U8", size: 1 }),
        ("torch" | "torch.cuda", _) if name.ends_with("Storage") => {
            let prefix = name.strip_suffix("Storage").filter(|p| !p.is_empty())?;
            Name::Storage(DTYPES.iter().find(|d| d.1 == prefix).map(dtype)?)
        }
        ("torch", _) => Name::Dtype(DTYPES.iter().find(|d| d.0 == name).map(dtype)?),
        _ => return None,
    })
}
