//! Groups of 4-bit or 8-bit floats with a scale of one byte in a plane of its own: NVFP4, MXFP4 and MXFP8 of several layouts.

use super::planes::{self, at, mismatch};
use super::{Weight, dtype};
use crate::codec::{CodecId, EncodedTensor, Micro};
use crate::container::{Encoding, TensorInfo, TensorStore};
use crate::error::{Error, Result};
use crate::safetensors::SafetensorsStore;
use std::ops::Range;

/// The weight `name` of `module`: codes (with the bytes of a row in the last dimension), scales (one byte per group) and, for NVFP4,
/// the plane of the tensor's own scale, whose value `tensor_scale` is.
pub(super) fn weight(
    store: &SafetensorsStore,
    module: &str,
    name: String,
    format: Micro,
    planes: &[&TensorInfo],
    tensor_scale: f32,
) -> Result<Weight> {
    let (codes, scales) = (planes[0], planes[1]);
    let code_dtypes: &[&str] = if format == Micro::Mxfp8 { &["F8_E4M3"] } else { &["U8"] };
    let scale_dtypes: &[&str] = if format == Micro::Nvfp4 { &["F8_E4M3"] } else { &["U8", "F8_E8M0"] };
    planes::check(store, codes, code_dtypes, &codes.shape)?;
    let codec = CodecId::Micro(format);
    let group = codec.codec().block_len();
    let code_bytes = codec.codec().block_bytes() - 1;
    let (Some((&row_bytes, outer)), true) = (codes.shape.split_last(), codes.shape.len() > 1) else {
        return Err(at(
            store,
            &codes.name,
            mismatch(format!("is {} of shape {:?}, but should be a matrix", dtype(codes), codes.shape)),
        ));
    };
    if row_bytes % code_bytes != 0 {
        let message = format!("has rows of {row_bytes} bytes, which are not whole groups of {group} weights");
        return Err(at(store, &codes.name, mismatch(message)));
    }
    let groups = row_bytes / code_bytes;
    planes::check(store, scales, scale_dtypes, &[outer, &[groups]].concat())?;
    let shape = [outer, &[groups * group]].concat();
    let mut weight = planes::weight(store, module, name, shape, Encoding::Codec(codec), planes);
    weight.info.scale = tensor_scale;
    Ok(weight)
}

/// Some rows of such a weight.
pub(super) fn rows(store: &SafetensorsStore, weight: &Weight, rows: Range<usize>) -> Result<Vec<u8>> {
    let (codes, scales) = (planes::nth(store, weight, 0)?, planes::nth(store, weight, 1)?);
    let (codes, scales) = (store.bytes(&codes.name)?, store.bytes(&scales.name)?);
    let Encoding::Codec(codec) = weight.info.encoding else { return Err(mismatch("is not in groups of small floats")) };
    let block = codec.codec().block_bytes();
    let groups = weight.info.row_len() / codec.codec().block_len();
    Ok(planes::blocks(rows, groups, block, |row, group, out| {
        let at = row * groups + group;
        let (code, scale) = out.split_at_mut(block - 1);
        code.copy_from_slice(&codes[at * (block - 1)..][..block - 1]);
        scale[0] = scales[at];
    }))
}

/// Shapes of the planes of codes and of scales for a tensor of this logical shape.
pub(super) fn plane_shapes(name: &str, format: Micro, shape: &[usize]) -> Result<(Vec<usize>, Vec<usize>)> {
    let codec = CodecId::Micro(format).codec();
    match shape.split_last() {
        Some((&width, outer)) if !outer.is_empty() && width.is_multiple_of(codec.block_len()) => {
            let groups = width / codec.block_len();
            Ok(([outer, &[groups * (codec.block_bytes() - 1)]].concat(), [outer, &[groups]].concat()))
        }
        _ => {
            let message = format!("shape {shape:?} is not rows of whole groups of {}", codec.block_len());
            Err(Error::failed(message).tensor(name))
        }
    }
}

/// The planes of codes and of scales of a tensor.
pub(super) fn split(name: &str, format: Micro, tensor: &EncodedTensor) -> Result<(Vec<u8>, Vec<u8>)> {
    let block = CodecId::Micro(format).codec().block_bytes();
    let (codes, scales) = plane_shapes(name, format, &tensor.shape)?;
    let (mut codes, mut scales): (Vec<u8>, Vec<u8>) = (vec![0; codes.iter().product()], vec![0; scales.iter().product()]);
    if tensor.bytes.len() != codes.len() + scales.len() {
        let message = format!("{} bytes are not {:?} of {}", tensor.bytes.len(), tensor.shape, tensor.codec);
        return Err(Error::failed(message).tensor(name));
    }
    for ((bytes, codes), scale) in tensor.bytes.chunks_exact(block).zip(codes.chunks_exact_mut(block - 1)).zip(&mut scales) {
        codes.copy_from_slice(&bytes[..block - 1]);
        *scale = bytes[block - 1];
    }
    Ok((codes, scales))
}
