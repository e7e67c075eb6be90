//! MLX folders: configuration and tokenizer with weights packed for mlx-lm.

use crate::about::ModelAbout;
use crate::card::Kind;
use crate::files::FolderFiles;
use crate::folder::{self, FolderPlan};
use crate::layout::{Layout, PlannedTensor};
use bitsmith_formats::mlx::{Scheme, quantization_block};
use bitsmith_formats::{CodecId, Error, Float, Result};
use bitsmith_runtime::{ContainerKind, ModelSpec, Role, RopeScaling};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

impl FolderPlan {
    /// Plans an MLX folder. `codecs` must name every matrix of the model: MLX codecs, or floats for those that stay dense (all of
    /// them, for a dense folder). Norms and biases are stored as `dense`.
    pub fn mlx(
        spec: &ModelSpec,
        files: &FolderFiles,
        about: &ModelAbout,
        dense: Float,
        codecs: &[(Role, CodecId)],
    ) -> Result<Self> {
        let layout = Layout::new(spec, ContainerKind::Mlx, codecs, dense)?.wrapped(files.wrapper(), ContainerKind::Mlx);
        if let Some(t) = layout.tensors.iter().find(|t| t.codec.float().is_none() && Scheme::of(t.codec).is_none()) {
            return Err(Error::unsupported(format!("MLX has no codec {}", t.codec)).tensor(&t.name));
        }
        let plain = layout.tensors.iter().all(|t| t.codec.float().is_some());
        let tower = if plain { Some(dense) } else { None };
        let config = config(spec, files, dense, &layout.tensors, tower)?;
        let kind = Kind::mlx(files.tower().is_some());
        Ok(FolderPlan::new(files, about, config, layout, folder::Scheme::Mlx, kind).carrying(ContainerKind::Mlx, tower))
    }
}

/// The model's configuration with the `quantization` block, keys sorted as mlx-lm sorts them.
fn config(
    spec: &ModelSpec,
    files: &FolderFiles,
    dense: Float,
    tensors: &[PlannedTensor],
    tower: Option<Float>,
) -> Result<Map<String, Value>> {
    let mut config = files.config();
    folder::set_untied(&mut config, spec);
    match files.wrapper() {
        None => complete(&mut config, spec, false),
        Some(wrapper) => {
            if let Some(Value::Object(text)) = config.get_mut("text_config") {
                complete(text, spec, true);
            }
            if wrapper.flat_in_mlx {
                complete(&mut config, spec, true);
                // Transformers 5 has a name of its own for the tower.
                if let Some(kind) = config.get_mut("vision_config").and_then(|v| v.get_mut("model_type")) {
                    *kind = wrapper.model_types[0].into();
                }
            }
            if let RopeScaling::Sections(sections) = &spec.rope.scaling {
                config.insert("rope_scaling".into(), json!({ "mrope_section": sections, "type": "mrope" }));
            }
            // mlx-lm does not look for it in the text model's configuration.
            config.entry("vocab_size").or_insert(spec.vocab_size.into());
        }
    }
    folder::set_mtp(&mut config, spec);
    folder::set_dtype(&mut config, dense);
    // mlx-lm reads the older key only.
    config.insert("torch_dtype".into(), folder::dtype(dense).into());
    if let Some(eos) = files.generation_eos() {
        config.insert("eos_token_id".into(), eos.clone());
    }
    if let Some(mut block) = quantization(tensors)? {
        // Some readers take every linear layer that has no entry for a quantized one.
        let carried = files.tower().map(|t| t.plan(ContainerKind::Mlx, tower)).unwrap_or_default();
        for t in carried.iter().filter(|t| t.linear) {
            block[t.name.trim_end_matches(".weight")] = false.into();
        }
        config.insert("quantization".into(), block.clone());
        config.insert("quantization_config".into(), block);
    }
    config.sort_keys();
    Ok(config)
}

/// Spells out what mlx-lm requires, or has other defaults for than transformers, and what it does not find where transformers 5
/// puts it: for most architectures it ignores `rope_parameters`. A text model that is part of another has no class of its own.
fn complete(config: &mut Map<String, Value>, spec: &ModelSpec, part: bool) {
    for (key, value) in spec.to_config().unwrap_or_default() {
        let of_class = part && key == "architectures";
        if !of_class && !value.is_null() && config.get(&key).is_none_or(Value::is_null) {
            config.insert(key, value);
        }
    }
}

/// The `quantization` block: the codec with the most weights is the default, modules in another have their own entry, and
/// matrices that stay dense have `false`.
fn quantization(tensors: &[PlannedTensor]) -> Result<Option<Value>> {
    let mut weights: BTreeMap<Scheme, (usize, CodecId)> = BTreeMap::new();
    for t in tensors {
        if let Some(scheme) = Scheme::of(t.codec) {
            weights.entry(scheme).or_insert((0, t.codec)).0 += t.n_weights();
        }
    }
    let Some((_, default)) = weights.into_values().max_by_key(|(n, _)| *n) else { return Ok(None) };
    let mut block = quantization_block(default, tensors.iter().map(|t| (t.name.as_str(), t.codec)))?;
    if let Value::Object(entries) = &mut block {
        for t in tensors.iter().filter(|t| t.role.part.is_matrix() && t.codec.float().is_some()) {
            entries.insert(t.name.trim_end_matches(".weight").to_string(), false.into());
        }
        *entries = std::mem::take(entries).into_iter().collect::<BTreeMap<_, _>>().into_iter().collect();
    }
    Ok(Some(block))
}
