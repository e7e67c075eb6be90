//! Writing compressed-tensors: planes of a module from its blocks, and the `quantization_config` that goes with them.

use super::{micro, module_name};
use crate::codec::{CodecId, EncodedTensor, Float, Micro};
use crate::error::{Error, Result};
use crate::safetensors::TensorPlan;
use rayon::prelude::*;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Weights that a word of zero points or codes must be filled with.
const WORD_BITS: usize = 32;

/// A matrix of integers or e4m3 bytes in blocks: codes, scale, and a zero point for integers.
struct Matrix {
    rows: usize,
    width: usize,
    /// Columns that share a scale.
    group: usize,
    /// Bits per code.
    bits: usize,
    scale: Float,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    E4m3,
    Integer { symmetric: bool },
}

impl Matrix {
    fn new(name: &str, codec: CodecId, shape: &[usize]) -> Result<Self> {
        let fail = |why: &str| Error::failed(format!("compressed-tensors cannot hold {codec} of {shape:?}{why}")).tensor(name);
        let (bits, group, scale, kind) = match codec {
            CodecId::IntGroup { bits, group, scale, symmetric } => (bits, group, scale, Kind::Integer { symmetric }),
            CodecId::Fp8Group { group, scale } => (8, group, scale, Kind::E4m3),
            _ => return Err(fail("")),
        };
        let (&[rows, width], bits, group) = (shape, usize::from(bits), group as usize) else { return Err(fail("")) };
        if rows == 0 || width == 0 || !width.is_multiple_of(group) || !(width * bits).is_multiple_of(8) {
            return Err(fail(": rows are not whole groups"));
        }
        if kind != Kind::E4m3 && !(width * bits).is_multiple_of(WORD_BITS) {
            return Err(fail(": rows do not fill words of 32 bits"));
        }
        Ok(Matrix { rows, width, group, bits, scale, kind })
    }

    fn groups(&self) -> usize {
        self.width / self.group
    }
    fn code_bytes(&self) -> usize {
        self.group * self.bits / 8
    }
    fn block_bytes(&self) -> usize {
        self.code_bytes() + self.scale.size() + usize::from(self.kind != Kind::E4m3)
    }
    /// Words of zero points, down one column.
    fn zero_words(&self) -> usize {
        (self.rows * self.bits).div_ceil(WORD_BITS)
    }
}

/// The planes of a tensor of this codec and logical shape.
pub(super) fn plan_planes(name: &str, codec: CodecId, shape: &[usize]) -> Result<Vec<TensorPlan>> {
    let module = module_name(name)?;
    let plane = |suffix: &str, dtype: &str, shape: &[usize]| TensorPlan::new(format!("{module}.{suffix}"), dtype, shape);
    if let CodecId::Micro(format) = codec {
        let (codes, scales) = micro::plane_shapes(name, format, shape)?;
        return match format {
            Micro::Nvfp4 => Ok(vec![
                plane("weight_packed", "U8", &codes)?,
                plane("weight_scale", "F8_E4M3", &scales)?,
                plane("weight_global_scale", "F32", &[1])?,
            ]),
            Micro::Mxfp4 => Ok(vec![plane("weight_packed", "U8", &codes)?, plane("weight_scale", "U8", &scales)?]),
            Micro::Mxfp8 => Ok(vec![plane("weight", "F8_E4M3", &codes)?, plane("weight_scale", "U8", &scales)?]),
        };
    }
    let m = Matrix::new(name, codec, shape)?;
    let scale = TensorPlan::float(format!("{module}.weight_scale"), m.scale.codec(), &[m.rows, m.groups()])?;
    let Kind::Integer { symmetric } = m.kind else {
        return Ok(vec![plane("weight", "F8_E4M3", shape)?, scale]);
    };
    let mut planes =
        vec![plane("weight_packed", "I32", &[m.rows, m.width * m.bits / WORD_BITS])?, scale, plane("weight_shape", "I64", &[2])?];
    if !symmetric {
        planes.push(plane("weight_zero_point", "I32", &[m.zero_words(), m.groups()])?);
    }
    Ok(planes)
}

/// Names and bytes of the planes that [`plan_planes`] lists.
pub(super) fn split_planes(name: &str, tensor: &EncodedTensor) -> Result<Vec<(String, Cow<'static, [u8]>)>> {
    let module = module_name(name)?;
    let names: Vec<String> = plan_planes(name, tensor.codec, &tensor.shape)?.into_iter().map(|p| p.name).collect();
    let planes = match tensor.codec {
        CodecId::Micro(format) => {
            let (codes, scales) = micro::split(name, format, tensor)?;
            let divisor = 1.0 / tensor.scale;
            if format == Micro::Nvfp4 && !(divisor.is_finite() && divisor > 0.0) {
                return Err(Error::failed(format!("a scale of {} has no reciprocal", tensor.scale)).tensor(name));
            }
            vec![codes, scales, divisor.to_le_bytes().to_vec()]
        }
        _ => {
            let m = Matrix::new(name, tensor.codec, &tensor.shape)?;
            if tensor.bytes.len() != m.rows * m.groups() * m.block_bytes() {
                let message = format!("{} bytes are not {:?} of {}", tensor.bytes.len(), tensor.shape, tensor.codec);
                return Err(Error::failed(message).tensor(name));
            }
            let mut planes = split(&m, &tensor.bytes);
            if let Kind::Integer { symmetric } = m.kind {
                let shape = tensor.shape.iter().flat_map(|&n| (n as i64).to_le_bytes()).collect();
                planes.push(shape);
                match zero_points(&m, &tensor.bytes) {
                    zeros if !symmetric => planes.push(pack_down(&m, &zeros)),
                    zeros if zeros.iter().any(|&z| z != 1 << (m.bits - 1)) => {
                        return Err(Error::failed("has zero points, but its format says that it has none").tensor(name));
                    }
                    _ => {}
                }
            }
            planes
        }
    };
    debug_assert!(names.iter().all(|n| n.starts_with(module)));
    Ok(names.into_iter().zip(planes.into_iter().map(Cow::Owned)).collect())
}

/// Codes and scales.
fn split(m: &Matrix, bytes: &[u8]) -> Vec<Vec<u8>> {
    let (c, s) = (m.code_bytes(), m.scale.size());
    let n = m.rows * m.groups();
    let (mut codes, mut scales) = (vec![0u8; n * c], vec![0u8; n * s]);
    let planes = codes.par_chunks_exact_mut(c).zip(scales.par_chunks_exact_mut(s));
    bytes.par_chunks_exact(m.block_bytes()).zip(planes).with_min_len(1024).for_each(|(block, (code, scale))| {
        code.copy_from_slice(&block[..c]);
        scale.copy_from_slice(&block[c..c + s]);
    });
    vec![codes, scales]
}

/// The zero point of every group, row by row.
fn zero_points(m: &Matrix, bytes: &[u8]) -> Vec<u8> {
    bytes.chunks_exact(m.block_bytes()).map(|block| block[m.block_bytes() - 1]).collect()
}

/// Zero points as streams of codes down the rows, one column of words for each group.
fn pack_down(m: &Matrix, zeros: &[u8]) -> Vec<u8> {
    let groups = m.groups();
    let mut out = vec![0u8; m.zero_words() * groups * 4];
    for (row, zeros) in zeros.chunks_exact(groups).enumerate() {
        for (group, &zero) in zeros.iter().enumerate() {
            let (byte, shift) = (row * m.bits / 8, row * m.bits % 8);
            let place = |byte: usize| (byte / 4 * groups + group) * 4 + byte % 4;
            let bits = u16::from(zero) << shift;
            out[place(byte)] |= bits as u8;
            if bits > 0xff {
                out[place(byte + 1)] |= (bits >> 8) as u8;
            }
        }
    }
    out
}

/// A tensor as [`quantization_config`] must know it.
#[derive(Debug, Clone)]
pub struct Described<'a> {
    /// Its name, `….weight`.
    pub name: &'a str,
    /// Its codec.
    pub codec: CodecId,
    /// Weights per row.
    pub row_len: usize,
    /// Whether it is a linear layer: embeddings, norms and biases are not.
    pub linear: bool,
}

/// The `quantization_config` of a checkpoint with these tensors: the scheme with the most linear layers targets `Linear`, others name
/// their modules, and linear layers that stay dense are ignored.
pub fn quantization_config(tensors: &[Described]) -> Result<Value> {
    let groups: Vec<usize> = tensors.iter().filter_map(|t| group_of(t.codec).filter(|&g| g < t.row_len)).collect();
    let mut schemes: BTreeMap<String, (Value, Vec<&str>)> = BTreeMap::new();
    let mut ignore = Vec::new();
    for t in tensors {
        let module = t.name.strip_suffix(".weight").unwrap_or(t.name);
        if t.codec.float().is_some() {
            ignore.extend(t.linear.then_some(module));
            continue;
        }
        // A row that is one group counts as a group where other rows have several.
        let by_row = group_of(t.codec).is_some_and(|g| g == t.row_len && !groups.contains(&g));
        let scheme = scheme(t.codec, by_row).map_err(|e| e.tensor(t.name))?;
        schemes.entry(scheme.to_string()).or_insert_with(|| (scheme, Vec::new())).1.push(module);
    }
    let mut schemes: Vec<(Value, Vec<&str>)> = schemes.into_values().collect();
    schemes.sort_by_key(|(_, modules)| std::cmp::Reverse(modules.len()));
    let formats: Vec<Value> = schemes.iter().map(|(s, _)| s["format"].clone()).collect();
    let format = match &formats[..] {
        [first, rest @ ..] if rest.iter().all(|f| f == first) => first.clone(),
        [] => return Err(Error::failed("no tensor is quantized")),
        _ => "mixed-precision".into(),
    };
    let group = |(i, (mut scheme, modules)): (usize, (Value, Vec<&str>))| {
        scheme["targets"] = if i == 0 { json!(["Linear"]) } else { json!(modules) };
        (format!("group_{i}"), scheme)
    };
    let groups: serde_json::Map<String, Value> = schemes.into_iter().enumerate().map(group).collect();
    Ok(json!({
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "global_compression_ratio": null,
        "kv_cache_scheme": null,
        "config_groups": groups,
        "ignore": ignore,
    }))
}

/// Weights that share a scale where that is free.
fn group_of(codec: CodecId) -> Option<usize> {
    match codec {
        CodecId::IntGroup { group, .. } | CodecId::Fp8Group { group, .. } => Some(group as usize),
        _ => None,
    }
}

/// A group's entry for weights in this codec, without its targets.
fn scheme(codec: CodecId, by_row: bool) -> Result<Value> {
    let (bits, kind, strategy, group, symmetric) = match codec {
        CodecId::IntGroup { bits, group, symmetric, .. } => (bits, "int", "group", group, symmetric),
        CodecId::Fp8Group { group, .. } => (8, "float", "group", group, true),
        CodecId::Micro(Micro::Nvfp4) => (4, "float", "tensor_group", 16, true),
        CodecId::Micro(Micro::Mxfp4) => (4, "float", "group", 32, true),
        CodecId::Micro(Micro::Mxfp8) => (8, "float", "group", 32, true),
        _ => return Err(Error::failed(format!("compressed-tensors cannot hold {codec}"))),
    };
    let (format, scale_dtype) = match codec {
        CodecId::Micro(Micro::Nvfp4) => ("nvfp4-pack-quantized", Some("torch.float8_e4m3fn")),
        CodecId::Micro(Micro::Mxfp4) => ("mxfp4-pack-quantized", Some("torch.uint8")),
        CodecId::Micro(Micro::Mxfp8) => ("mxfp8-quantized", Some("torch.uint8")),
        CodecId::Fp8Group { .. } => ("float-quantized", None),
        _ => ("pack-quantized", None),
    };
    let mut weights = json!({
        "num_bits": bits,
        "type": kind,
        "symmetric": symmetric,
        "strategy": if by_row { "channel" } else { strategy },
        "group_size": if by_row { Value::Null } else { group.into() },
        "block_structure": null,
        "dynamic": false,
        "actorder": null,
        "observer": "minmax",
        "observer_kwargs": {},
    });
    if let Some(dtype) = scale_dtype {
        weights["scale_dtype"] = dtype.into();
    }
    // FP8 multiplies FP8: a scale per token, found while running.
    let inputs = matches!(codec, CodecId::Fp8Group { .. }).then(|| {
        json!({
            "num_bits": 8,
            "type": "float",
            "symmetric": true,
            "strategy": "token",
            "group_size": null,
            "block_structure": null,
            "dynamic": true,
            "actorder": null,
            "observer": null,
            "observer_kwargs": {},
        })
    });
    Ok(json!({ "targets": [], "weights": weights, "input_activations": inputs, "output_activations": null, "format": format }))
}
