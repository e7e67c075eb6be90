//! Groups of 4-bit or 8-bit floats with a scale of one byte in a plane of its own: NVFP4, MXFP4 and MXFP8 of several layouts.

use super::planes::{self, at, available, mismatch};
use super::{Weight, dtype};
use crate::codec::{CodecId, Micro};
use crate::container::{Encoding, TensorInfo, TensorStore};
use crate::error::Result;
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
    let codec = available(CodecId::Micro(format)).map_err(|e| at(store, &codes.name, e))?;
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
