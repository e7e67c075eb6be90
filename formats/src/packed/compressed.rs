//! compressed-tensors (llm-compressor, vLLM). `config_groups` say how weights are quantized and which modules they concern;
//! a module's planes say the same again, and both must agree.
//!
//! | format | planes of module `X` |
//! |---|---|
//! | `pack-quantized` | `X.weight_packed` I32 (per row a little-endian stream of codes, offset by half their range), `weight_scale`, `weight_shape` I64, perhaps `weight_zero_point` I32 (packed down the rows), `weight_g_idx` |
//! | `nvfp4-pack-quantized` | `X.weight_packed` U8, `weight_scale` F8_E4M3, `weight_global_scale` F32, a divisor |
//! | `mxfp4-pack-quantized` | `X.weight_packed` U8, `weight_scale` U8 exponents |
//! | `mxfp8-quantized` | `X.weight` F8_E4M3, `weight_scale` U8 exponents |
//! | `float-quantized`, `int-quantized` | `X.weight` F8_E4M3 or I8, `weight_scale`, perhaps `weight_zero_point` |

use super::bytes::{self, ByteScales};
use super::micro;
use super::planes::{self, Scales, Tiles, at, mismatch};
use super::targets::Target;
use super::{Layout, Weight, dtype, plane};
use crate::codec::{CodecId, Micro};
use crate::container::{Encoding, TensorInfo, TensorStore};
use crate::error::{Error, Result};
use crate::safetensors::SafetensorsStore;
use serde_json::Value;
use std::ops::Range;

/// Formats whose planes are others than those above.
const UNREADABLE: [&str; 4] = ["marlin-24", "sparse-24-bitmask", "sparse-bitmask", "mxfp6-pack-quantized"];

/// The layout of a checkpoint.
#[derive(Debug)]
pub(super) struct CompressedTensors {
    groups: Vec<Group>,
    ignore: Vec<Target>,
}

/// One of `config_groups`.
#[derive(Debug)]
struct Group {
    targets: Vec<Target>,
    weights: Args,
}

/// How weights are quantized: `weights` of a group.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Args {
    pub bits: u64,
    pub float: bool,
    pub symmetric: bool,
    /// Columns that share a scale, where the strategy is by groups.
    pub group: Option<u64>,
    /// Rows and columns of a tile, where the strategy is by blocks.
    pub block: Option<[usize; 2]>,
}

impl Args {
    fn parse(weights: &Value) -> Result<Self> {
        let wrong =
            |key: &str| Error::corrupt(format!("`{key}` of a group's `weights` in quantization_config is {}", weights[key]));
        let given = |key: &str| weights.get(key).filter(|v| !v.is_null());
        let bits = given("num_bits").map_or(Some(8), Value::as_u64).ok_or_else(|| wrong("num_bits"))?;
        let float = match given("type").map_or(Some("int"), Value::as_str) {
            Some(kind @ ("int" | "float")) => kind == "float",
            _ => return Err(wrong("type")),
        };
        let symmetric = given("symmetric").map_or(Some(true), Value::as_bool).ok_or_else(|| wrong("symmetric"))?;
        let group = given("group_size").map_or(Some(-1), Value::as_i64).ok_or_else(|| wrong("group_size"))?;
        let block = match given("block_structure") {
            None => None,
            Some(b) => {
                let side = |i: usize| b.get(i).and_then(Value::as_u64).filter(|&n| n > 0).map(|n| n as usize);
                Some([side(0).ok_or_else(|| wrong("block_structure"))?, side(1).ok_or_else(|| wrong("block_structure"))?])
            }
        };
        if float && !symmetric {
            return Err(Error::unsupported("floats with zero points in compressed-tensors cannot be read"));
        }
        Ok(Args { bits, float, symmetric, group: u64::try_from(group).ok().filter(|&g| g > 0), block })
    }
}

/// The layout that a `quantization_config` asks for.
pub(super) fn from_config(config: &Value) -> Result<Option<Box<dyn Layout>>> {
    if config.get("quant_method").and_then(Value::as_str) != Some("compressed-tensors") {
        return Ok(None);
    }
    let format = config.get("format").and_then(Value::as_str).unwrap_or_default();
    if UNREADABLE.contains(&format) {
        return Err(Error::unsupported(format!("compressed-tensors' `{format}` cannot be read"))
            .hint("start from the unquantized checkpoint"));
    }
    for (key, what) in [("sparsity_config", "sparse"), ("transform_config", "rotated")] {
        let used = config.get(key).and_then(Value::as_object).is_some_and(|c| {
            let dense = c.get("format").and_then(Value::as_str) == Some("dense");
            let no_groups = c.get("config_groups").and_then(Value::as_object).is_some_and(|g| g.is_empty());
            !(c.is_empty() || dense || no_groups)
        });
        if used {
            return Err(Error::unsupported(format!("weights that compressed-tensors has {what} (`{key}`) cannot be read"))
                .hint("start from the unquantized checkpoint"));
        }
    }
    let wrong = || Error::corrupt("`config_groups` in quantization_config must be an object of groups");
    let groups = config.get("config_groups").and_then(Value::as_object).ok_or_else(wrong)?;
    let parse = |group: &Value| -> Result<Option<Group>> {
        let Some(weights) = group.get("weights").filter(|w| w.is_object()) else { return Ok(None) };
        Ok(Some(Group { targets: Target::list(group, "targets")?, weights: Args::parse(weights)? }))
    };
    let groups = groups.values().filter_map(|g| parse(g).transpose()).collect::<Result<_>>()?;
    Ok(Some(Box::new(CompressedTensors { groups, ignore: Target::list(config, "ignore")? })))
}

impl CompressedTensors {
    /// How a module's weight is quantized. A group that names the module goes before one that names its class.
    fn args(&self, module: &str) -> Result<&Args> {
        if self.ignore.iter().any(|t| t.names(module)) {
            return Err(mismatch(format!("`{module}` is quantized, but `ignore` in quantization_config names it")));
        }
        let group = |test: &dyn Fn(&Target) -> bool| self.groups.iter().find(|g| g.targets.iter().any(test));
        let found = group(&|t| t.names(module)).or_else(|| group(&Target::is_class));
        found
            .map(|g| &g.weights)
            .ok_or_else(|| mismatch(format!("`{module}` is quantized, but no group in quantization_config names it")))
    }

    /// The weight that a tensor is the first plane of, if it is one.
    fn weight(&self, store: &SafetensorsStore, info: &TensorInfo) -> Result<Option<Weight>> {
        if let Some(module) = info.name.strip_suffix(".weight_packed") {
            let args = self.args(module)?;
            let name = format!("{module}.weight");
            let weight = match (args.float, args.bits, args.group) {
                (false, ..) => Packed::open(store, module, args)?.weight(store, name)?,
                (true, 4, Some(16)) => {
                    let global = plane(store, module, "weight_global_scale")?;
                    let planes = [info, plane(store, module, "weight_scale")?, global];
                    micro::weight(store, module, name, Micro::Nvfp4, &planes, 1.0 / planes::positive(store, global)?)?
                }
                (true, 4, Some(32)) => {
                    let planes = [info, plane(store, module, "weight_scale")?];
                    micro::weight(store, module, name, Micro::Mxfp4, &planes, 1.0)?
                }
                (true, bits, group) => {
                    let message = format!("compressed-tensors with floats of {bits} bits in groups of {group:?}");
                    return Err(Error::unsupported(message).hint("supported: NVFP4, MXFP4, MXFP8, FP8, integers"));
                }
            };
            return Ok(Some(weight));
        }
        let Some(module) = info.name.strip_suffix(".weight") else { return Ok(None) };
        let found = dtype(info);
        if ![bytes::E4M3, bytes::INT8].contains(&found.as_str()) {
            return Ok(None);
        }
        let args = self.args(module)?;
        if (args.float, args.bits) != (found == bytes::E4M3, 8) {
            let kind = if args.float { "float" } else { "int" };
            let message = format!("holds {found}, but quantization_config says {kind} of {} bits", args.bits);
            return Err(mismatch(message));
        }
        let scale = plane(store, module, "weight_scale")?;
        if args.float && args.group == Some(32) && dtype(scale) == "U8" {
            return micro::weight(store, module, info.name.clone(), Micro::Mxfp8, &[info, scale], 1.0).map(Some);
        }
        let mut planes = vec![info, scale];
        planes.extend(store.find(&format!("{module}.weight_zero_point")));
        bytes::weight(store, module, &info.name, &planes, byte_scales(args)).map(Some)
    }
}

fn byte_scales(args: &Args) -> ByteScales {
    ByteScales { tile: args.block, factor: 1.0 }
}

impl Layout for CompressedTensors {
    fn name(&self) -> &'static str {
        "compressed-tensors"
    }
    fn weights(&self, store: &SafetensorsStore) -> Result<Vec<Weight>> {
        let weight = |info: &TensorInfo| self.weight(store, info).map_err(|e| at(store, &info.name, e)).transpose();
        store.tensors().iter().filter_map(weight).collect()
    }
    fn rows(&self, store: &SafetensorsStore, weight: &Weight, rows: Range<usize>) -> Result<Vec<u8>> {
        let module = weight.info.name.strip_suffix(".weight").unwrap_or(&weight.info.name);
        let packed = weight.planes.first().is_some_and(|p| p.ends_with(".weight_packed"));
        match weight.info.encoding {
            Encoding::Codec(CodecId::Micro(_)) => micro::rows(store, weight, rows),
            _ if packed => Packed::open(store, module, self.args(module)?)?.rows(store, weight, rows),
            _ => {
                let zeros = store.find(&format!("{module}.weight_zero_point")).is_some();
                bytes::rows(store, weight, 2 + usize::from(zeros), byte_scales(self.args(module)?), rows)
            }
        }
    }
}

/// Integers of `pack-quantized`.
struct Packed<'a> {
    bits: usize,
    shape: Vec<usize>,
    tiles: Tiles,
    codes: &'a TensorInfo,
    scale: &'a TensorInfo,
    zeros: Option<&'a TensorInfo>,
    /// The group of each column, where columns were quantized out of order.
    groups: Option<Vec<usize>>,
    module: &'a str,
}

impl<'a> Packed<'a> {
    /// Finds the planes of a module and holds them against each other and against the configuration.
    fn open(store: &'a SafetensorsStore, module: &'a str, args: &Args) -> Result<Self> {
        let codes = plane(store, module, "weight_packed")?;
        let scale = plane(store, module, "weight_scale")?;
        let shape = shape(store, plane(store, module, "weight_shape")?)?;
        let (rows, width) = (shape[0], shape[1]);
        let bits = args.bits as usize;
        if !(1..=8).contains(&bits) {
            return Err(Error::unsupported(format!("integers of {bits} bits")).hint("supported: up to 8 bits"));
        }
        let words = |n: usize| n.checked_mul(bits).map(|b| b.div_ceil(32)).ok_or_else(|| mismatch("is too large"));
        planes::check(store, codes, &["I32"], &[rows, words(width)?])?;
        let tiles = Tiles::of(store, &shape, scale, None)?;
        if let Some(group) = args.group
            && (tiles.cols as u64 != group && tiles.across() > 1 || tiles.across() == 1 && (width as u64) > group)
        {
            let message = format!("has scales in groups of {}, but quantization_config says {group}", tiles.cols);
            return Err(at(store, &scale.name, mismatch(message)));
        }
        Scales::float(store, scale)?;
        let zeros = match args.symmetric {
            true => None,
            false => {
                let zeros = plane(store, module, "weight_zero_point")?;
                planes::check(store, zeros, &["I32"], &[words(rows)?, tiles.across()])?;
                Some(zeros)
            }
        };
        let groups = match store.find(&format!("{module}.weight_g_idx")) {
            None => None,
            Some(info) => group_index(store, info, width, &tiles)?,
        };
        Ok(Packed { bits, shape, tiles, codes, scale, zeros, groups, module })
    }

    fn weight(&self, store: &SafetensorsStore, name: String) -> Result<Weight> {
        let scale = Scales::float(store, self.scale)?;
        let group = u32::try_from(self.tiles.cols).unwrap_or(0);
        let codec = CodecId::IntGroup { bits: self.bits as u8, group, scale, symmetric: self.zeros.is_none() };
        let encoding = match self.groups {
            None => planes::encoding(codec, true),
            Some(_) => Encoding::Decoded(format!("{codec}, columns out of order")),
        };
        let beside = ["weight_shape", "weight_zero_point", "weight_g_idx"].map(|p| format!("{}.{p}", self.module));
        let mut planes = vec![self.codes, self.scale];
        planes.extend(beside.iter().filter_map(|name| store.find(name)));
        Ok(planes::weight(store, self.module, name, self.shape.clone(), encoding, &planes))
    }

    fn rows(&self, store: &SafetensorsStore, weight: &Weight, rows: Range<usize>) -> Result<Vec<u8>> {
        let (codes, width) = (store.bytes(&self.codes.name)?, self.shape[1]);
        let zeros = self.zeros.map(|z| store.bytes(&z.name)).transpose()?;
        let scales = Scales::open(store, self.scale, 1.0)?;
        let row_bytes = self.codes.row_len() * 4;
        let half = 1u8 << (self.bits - 1);
        let zero = |row: usize, group: usize| match &zeros {
            None => half,
            // A stream of codes down the rows of one column of words.
            Some(z) => code(self.bits, row, |byte| z[(byte / 4 * self.tiles.across() + group) * 4 + byte % 4]),
        };
        if let Encoding::Codec(codec) = weight.info.encoding {
            let code_bytes = self.tiles.cols * self.bits / 8;
            return Ok(planes::blocks(rows, self.tiles.across(), codec.codec().block_bytes(), |row, group, out| {
                let (out_codes, rest) = out.split_at_mut(code_bytes);
                out_codes.copy_from_slice(&codes[row * row_bytes + group * code_bytes..][..code_bytes]);
                let (scale, last) = rest.split_at_mut(rest.len() - 1);
                scales.write(self.tiles.index(row, group), scale);
                last[0] = zero(row, group);
            }));
        }
        let group = |column: usize| self.groups.as_ref().map_or(column / self.tiles.cols, |g| g[column]);
        Ok(planes::decoded(rows, width, |row, out| {
            let bytes = &codes[row * row_bytes..][..row_bytes];
            let stored = |g: usize| (scales.value(self.tiles.index(row, g)), zero(row, g));
            let stored: Vec<(f32, u8)> = (0..self.tiles.across()).map(stored).collect();
            for (column, value) in out.iter_mut().enumerate() {
                let (scale, zero) = stored[group(column)];
                *value = (f32::from(code(self.bits, column, |b| bytes[b])) - f32::from(zero)) * scale;
            }
        }))
    }
}

/// Code `i` of a little-endian stream of codes of `bits` bits. Streams are whole words, so that a code's last byte is there.
fn code(bits: usize, i: usize, byte: impl Fn(usize) -> u8) -> u8 {
    let (first, shift) = (i * bits / 8, i * bits % 8);
    let next = if shift + bits > 8 { u16::from(byte(first + 1)) } else { 0 };
    ((u16::from(byte(first)) | next << 8) >> shift) as u8 & (0xff >> (8 - bits))
}

/// The two numbers of `weight_shape`.
fn shape(store: &SafetensorsStore, info: &TensorInfo) -> Result<Vec<usize>> {
    planes::check(store, info, &["I64", "I32"], &[2])?;
    let bytes = store.bytes(&info.name)?;
    let size = bytes.len() / 2;
    let number = |b: &[u8]| b.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
    let shape: Vec<usize> = bytes.chunks_exact(size).filter_map(|b| usize::try_from(number(b)).ok()).collect();
    match shape[..] {
        [rows, cols] if rows > 0 && cols > 0 && rows.checked_mul(cols).is_some() => Ok(shape),
        _ => Err(at(store, &info.name, mismatch(format!("is no shape of a matrix: {shape:?}")))),
    }
}

/// `weight_g_idx`: the group of each column; `None` if columns are in order, or if the plane is unused (−1).
fn group_index(store: &SafetensorsStore, info: &TensorInfo, width: usize, tiles: &Tiles) -> Result<Option<Vec<usize>>> {
    planes::check(store, info, &["I32"], &[width])?;
    let numbers: Vec<i32> =
        store.bytes(&info.name)?.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    if numbers.contains(&-1) {
        return Ok(None);
    }
    if let Some(wrong) = numbers.iter().find(|&&g| usize::try_from(g).map_or(true, |g| g >= tiles.across())) {
        let message = format!("names group {wrong}, but there are {}", tiles.across());
        return Err(at(store, &info.name, mismatch(message)));
    }
    let groups: Vec<usize> = numbers.iter().map(|&g| g as usize).collect();
    let in_order = groups.iter().enumerate().all(|(column, &g)| g == column / tiles.cols);
    Ok((!in_order).then_some(groups))
}
