//! gpt-oss: the experts' matrices as `X_blocks` (U8, `[experts, rows, groups, 16]`) and `X_scales` (U8 exponents,
//! `[experts, rows, groups]`). A weight is offered under the name of its blocks, `[experts, rows, columns]`, in the order in which its rows
//! are stored: `X` alone is the name of the dense checkpoint's transposed matrices.

use super::planes::{at, mismatch};
use super::{Layout, Weight, micro};
use crate::codec::Micro;
use crate::container::{TensorInfo, TensorStore};
use crate::error::{Error, Result};
use crate::safetensors::SafetensorsStore;
use serde_json::Value;
use std::ops::Range;

/// The layout of `quant_method: mxfp4`.
#[derive(Debug)]
struct Experts;

/// The layout that a `quantization_config` asks for.
pub(super) fn from_config(config: &Value) -> Result<Option<Box<dyn Layout>>> {
    let ours = config.get("quant_method").and_then(Value::as_str) == Some("mxfp4");
    Ok(ours.then(|| Box::new(Experts) as Box<dyn Layout>))
}

impl Layout for Experts {
    fn name(&self) -> &'static str {
        "mxfp4"
    }
    fn weights(&self, store: &SafetensorsStore) -> Result<Vec<Weight>> {
        let mut weights = Vec::new();
        for info in store.tensors() {
            let Some(name) = info.name.strip_suffix("_blocks") else { continue };
            let scales = store.find(&format!("{name}_scales")).ok_or_else(|| {
                at(store, &info.name, Error::missing(format!("`{name}_scales` is missing")).hint("the checkpoint is incomplete"))
            })?;
            let [outer @ .., groups, 16] = info.shape.as_slice() else {
                let message = format!("has shape {:?}, but blocks of 16 bytes should be its last dimension", info.shape);
                return Err(at(store, &info.name, mismatch(message)));
            };
            let row_bytes = groups.checked_mul(16).unwrap_or(usize::MAX);
            let codes = TensorInfo { shape: [outer, &[row_bytes]].concat(), ..info.clone() };
            let module = name.rsplit_once('.').map_or("", |(module, _)| module);
            weights.push(micro::weight(store, module, info.name.clone(), Micro::Mxfp4, &[&codes, scales], 1.0)?);
        }
        Ok(weights)
    }
    fn rows(&self, store: &SafetensorsStore, weight: &Weight, rows: Range<usize>) -> Result<Vec<u8>> {
        micro::rows(store, weight, rows)
    }
}
