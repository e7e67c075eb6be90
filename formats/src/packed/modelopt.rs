//! NVIDIA ModelOpt (TensorRT-LLM, vLLM, SGLang): `quant_method: modelopt`, or `hf_quant_config.json` beside the weights.
//!
//! NVFP4: `X.weight` (U8, two codes a byte), `X.weight_scale` (F8_E4M3 per 16 weights), `X.weight_scale_2` (F32, a factor). FP8:
//! `X.weight` (F8_E4M3), `X.weight_scale` (F32, for the tensor or per row). `X.input_scale` concerns activations.

use super::bytes::{self, ByteScales};
use super::planes::{self, at};
use super::{Layout, Weight, dtype, micro, plane};
use crate::codec::{CodecId, Micro};
use crate::container::{Encoding, TensorInfo, TensorStore};
use crate::error::{Error, Result};
use crate::safetensors::SafetensorsStore;
use serde_json::Value;
use std::ops::Range;

/// Methods whose weights are in the planes above, alone or mixed.
const ALGORITHMS: [&str; 5] = ["NVFP4", "W4A16_NVFP4", "FP8", "FP8_PER_CHANNEL_PER_TOKEN", "MIXED_PRECISION"];
const SCALES: ByteScales = ByteScales { tile: None, factor: 1.0 };

/// The layout.
#[derive(Debug)]
struct ModelOpt;

/// The layout that a `quantization_config` asks for.
pub(super) fn from_config(config: &Value) -> Result<Option<Box<dyn Layout>>> {
    if !config.get("quant_method").and_then(Value::as_str).is_some_and(|m| ["modelopt", "modelopt_fp4"].contains(&m)) {
        return Ok(None);
    }
    let algorithm = config.get("quant_algo").or_else(|| config.pointer("/quantization/quant_algo"));
    match algorithm.and_then(Value::as_str) {
        Some(name) if ALGORITHMS.contains(&name) => Ok(Some(Box::new(ModelOpt))),
        name => Err(Error::unsupported(format!("ModelOpt's `{}` cannot be read", name.unwrap_or("null")))
            .hint(format!("supported: {}", ALGORITHMS.join(", ")))),
    }
}

fn weight(store: &SafetensorsStore, info: &TensorInfo) -> Result<Option<Weight>> {
    let Some(module) = info.name.strip_suffix(".weight") else { return Ok(None) };
    let kind = dtype(info);
    if !["U8", bytes::E4M3].contains(&kind.as_str()) {
        return Ok(None);
    }
    if let Some(p) = store.find(&format!("{module}.pre_quant_scale")) {
        return Err(at(store, &p.name, Error::unsupported("ModelOpt's scales of input channels cannot be read"))
            .hint("start from the unquantized checkpoint"));
    }
    let scale = plane(store, module, "weight_scale")?;
    if kind == bytes::E4M3 {
        return bytes::weight(store, module, &info.name, &[info, scale], SCALES).map(Some);
    }
    let global = plane(store, module, "weight_scale_2")?;
    let factor = planes::positive(store, global)?;
    micro::weight(store, module, info.name.clone(), Micro::Nvfp4, &[info, scale, global], factor).map(Some)
}

impl Layout for ModelOpt {
    fn name(&self) -> &'static str {
        "modelopt"
    }
    fn weights(&self, store: &SafetensorsStore) -> Result<Vec<Weight>> {
        store.tensors().iter().filter_map(|info| weight(store, info).transpose()).collect()
    }
    fn rows(&self, store: &SafetensorsStore, weight: &Weight, rows: Range<usize>) -> Result<Vec<u8>> {
        match weight.info.encoding {
            Encoding::Codec(CodecId::Micro(_)) => micro::rows(store, weight, rows),
            _ => bytes::rows(store, weight, 2, SCALES, rows),
        }
    }
}
