//! FP8 checkpoints of `quant_method: fp8`: `X` in F8_E4M3 with `X_scale_inv`, a factor per tile of `weight_block_size` (DeepSeek,
//! Qwen), or `X_scale`, a factor for the whole tensor; and of `fbgemm_fp8`: `X_scale`, a factor per row. Decoding multiplies by either.

use super::bytes::{self, ByteScales};
use super::planes::{at, mismatch};
use super::{Layout, Weight, dtype};
use crate::container::{TensorInfo, TensorStore};
use crate::error::{Error, Result};
use crate::safetensors::SafetensorsStore;
use serde_json::Value;
use std::ops::Range;

/// The layout, with rows and columns of a tile.
#[derive(Debug)]
struct Fp8 {
    tile: Option<[usize; 2]>,
}

/// The layout that a `quantization_config` asks for.
pub(super) fn from_config(config: &Value) -> Result<Option<Box<dyn Layout>>> {
    if !config.get("quant_method").and_then(Value::as_str).is_some_and(|m| ["fp8", "fbgemm_fp8"].contains(&m)) {
        return Ok(None);
    }
    let tile = match config.get("weight_block_size").filter(|v| !v.is_null()) {
        None => None,
        Some(size) => {
            let side = |i: usize| size.get(i).and_then(Value::as_u64).filter(|&n| n > 0).map(|n| n as usize);
            let wrong = || Error::corrupt(format!("`weight_block_size` in quantization_config is {size}, not two numbers"));
            Some([side(0).ok_or_else(wrong)?, side(1).ok_or_else(wrong)?])
        }
    };
    Ok(Some(Box::new(Fp8 { tile })))
}

impl Fp8 {
    fn scales(&self) -> ByteScales {
        ByteScales { tile: self.tile, factor: 1.0 }
    }
}

impl Layout for Fp8 {
    fn name(&self) -> &'static str {
        "fp8"
    }
    fn weights(&self, store: &SafetensorsStore) -> Result<Vec<Weight>> {
        let weight = |info: &TensorInfo| {
            let scale = ["_scale_inv", "_scale"].iter().find_map(|suffix| store.find(&format!("{}{suffix}", info.name)));
            let scale = scale.ok_or_else(|| {
                let name = &info.name;
                at(
                    store,
                    name,
                    mismatch(format!("is {}, but neither `{name}_scale_inv` nor `{name}_scale` is there", bytes::E4M3)),
                )
            })?;
            let module = info.name.strip_suffix(".weight").unwrap_or(&info.name);
            bytes::weight(store, module, &info.name, &[info, scale], self.scales())
        };
        store.tensors().iter().filter(|info| dtype(info) == bytes::E4M3).map(weight).collect()
    }
    fn rows(&self, store: &SafetensorsStore, weight: &Weight, rows: Range<usize>) -> Result<Vec<u8>> {
        bytes::rows(store, weight, 2, self.scales(), rows)
    }
}
