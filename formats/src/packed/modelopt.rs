//! NVIDIA ModelOpt (TensorRT-LLM, vLLM, SGLang): `quant_method: modelopt`, or `hf_quant_config.json` beside the weights.
//!
//! NVFP4: `X.weight` (U8, two codes a byte), `X.weight_scale` (F8_E4M3 per 16 weights), `X.weight_scale_2` (F32, a factor). FP8:
//! `X.weight` (F8_E4M3), `X.weight_scale` (F32, for the tensor or per row). `X.input_scale` concerns activations.

use super::bytes::{self, ByteScales};
use super::planes::{self, at};
use super::{Layout, Weight, dtype, micro, module_name, plane};
use crate::codec::{CodecId, EncodedTensor, Micro};
use crate::container::{Encoding, TensorInfo, TensorStore};
use crate::error::{Error, Result};
use crate::safetensors::{SafetensorsStore, TensorPlan};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::ops::Range;

/// Methods whose weights are in the planes above, alone or mixed.
const ALGORITHMS: [&str; 5] = ["NVFP4", WEIGHTS_ONLY, "FP8", "FP8_PER_CHANNEL_PER_TOKEN", "MIXED_PRECISION"];
/// NVFP4 weights beside activations in floating point.
const WEIGHTS_ONLY: &str = "W4A16_NVFP4";
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

/// The planes of an NVFP4 tensor of this logical shape.
pub(super) fn plan_planes(name: &str, codec: CodecId, shape: &[usize]) -> Result<Vec<TensorPlan>> {
    let CodecId::Micro(Micro::Nvfp4) = codec else {
        return Err(Error::failed(format!("ModelOpt cannot hold {codec} here, only NVFP4")).tensor(name));
    };
    let module = module_name(name)?;
    let (codes, scales) = micro::plane_shapes(name, Micro::Nvfp4, shape)?;
    Ok(vec![
        TensorPlan::new(name, "U8", &codes)?,
        TensorPlan::new(format!("{module}.weight_scale"), "F8_E4M3", &scales)?,
        TensorPlan::new(format!("{module}.weight_scale_2"), "F32", &[])?,
    ])
}

/// Names and bytes of the planes that [`plan_planes`] lists.
pub(super) fn split_planes(name: &str, tensor: &EncodedTensor) -> Result<Vec<(String, Cow<'static, [u8]>)>> {
    let names = plan_planes(name, tensor.codec, &tensor.shape)?.into_iter().map(|p| p.name);
    let (codes, scales) = micro::split(name, Micro::Nvfp4, tensor)?;
    let planes = [codes, scales, tensor.scale.to_le_bytes().to_vec()];
    Ok(names.zip(planes.map(Cow::Owned)).collect())
}

/// The `quantization_config` of a checkpoint whose linear layers are NVFP4 but for `exclude`, and ModelOpt's own file that says the
/// same (`hf_quant_config.json`). Activations stay as they are.
pub fn quantization_config(exclude: &[&str]) -> (Value, Value) {
    let group = json!({
        "weights": { "dynamic": false, "num_bits": 4, "type": "float", "group_size": 16 },
        "targets": ["Linear"],
    });
    let producer = json!({ "name": "bitsmith", "version": env!("CARGO_PKG_VERSION") });
    let config = json!({
        "quant_method": "modelopt",
        "quant_algo": WEIGHTS_ONLY,
        "config_groups": { "group_0": group },
        "ignore": exclude,
        "producer": producer,
    });
    let quantization =
        json!({ "quant_algo": WEIGHTS_ONLY, "kv_cache_quant_algo": null, "group_size": 16, "exclude_modules": exclude });
    (config, json!({ "producer": producer, "quantization": quantization }))
}
