//! Llava: a CLIP tower and two linear layers before a Llama, Mistral or Qwen 2.

use super::tower::{CLIP, Piece::All};
use super::{Beginning, Module, Wrapper};
use bitsmith_formats::gguf::Array;
use bitsmith_formats::{Error, Result};

/// The table entry.
pub(super) static LLAVA: Wrapper = Wrapper {
    name: "llava",
    model_types: &["llava"],
    text_type: "llama",
    tower_types: &["clip_vision_model"],
    text: TEXT,
    tower: TOWER,
    modules: &[
        ("vision_tower.vision_model.", CLIP),
        ("multi_modal_projector.", &[Module::linear("linear_1", &[("mm.0", All)]), Module::linear("linear_2", &[("mm.2", All)])]),
    ],
    flat_in_mlx: false,
    projector: "mlp",
    final_norm: false,
    layers: feature_layer,
    gguf_keys: |v| {
        match v.whole.opt_str("vision_feature_select_strategy")?.unwrap_or("default") {
            "default" => {}
            other => {
                let what = format!("llama.cpp has no `vision_feature_select_strategy` `{other}`: it leaves out the class token");
                return Err(Error::unsupported(what).hint("folder targets keep the model as it is"));
            }
        }
        let gelu = match v.tower.str("hidden_act")? {
            "quick_gelu" => false,
            "gelu" => true,
            other => return Err(Error::unsupported(format!("llama.cpp has no `{other}` (key `hidden_act`) in towers of CLIP"))),
        };
        let act = v.whole.opt_str("projector_hidden_act")?.unwrap_or("gelu");
        if act != "gelu" {
            return Err(Error::unsupported(format!(
                "llama.cpp has no `{act}` (key `projector_hidden_act`) in projectors of Llava"
            )));
        }
        Ok(vec![
            ("vision.attention.layer_norm_epsilon", v.layer_norm_eps()?),
            ("use_gelu", gelu.into()),
            ("vision.feature_layer", Array::I32(vec![feature_layer(v)? as i32]).into()),
        ])
    },
};

/// The layer whose output the projector reads, counted from 1.
fn feature_layer(v: &super::Vision<'_>) -> Result<usize> {
    let (key, layers) = ("vision_feature_layer", v.all_layers()?);
    let layer = match v.whole.get(key) {
        None => layers as i64 - 1,
        Some(value) => {
            let n = value.as_i64().ok_or_else(|| {
                Error::unsupported(format!("llama.cpp reads one layer of the tower; key `{key}` is {value}"))
                    .hint("folder targets keep the model as it is")
            })?;
            if n < 0 { layers as i64 + 1 + n } else { n }
        }
    };
    usize::try_from(layer)
        .ok()
        .filter(|l| (1..=layers).contains(l))
        .ok_or_else(|| Error::corrupt(format!("key `{key}` names no layer of the tower, which has {layers}")))
}

/// The usual names of the text model.
pub(super) const TEXT: &[Beginning] = &[
    Beginning {
        own: "model.",
        hf: "language_model.model.",
        mlx: "language_model.model.",
        module: "model.language_model.",
        others: &["model.language_model.", "model.language_model.model."],
    },
    Beginning {
        own: "lm_head.",
        hf: "language_model.lm_head.",
        mlx: "language_model.lm_head.",
        module: "lm_head.",
        others: &["lm_head.", "model.lm_head."],
    },
];

/// The usual names of tower and projector.
pub(super) const TOWER: &[Beginning] = &[
    Beginning {
        own: "vision_tower.vision_model.",
        hf: "vision_tower.vision_model.",
        mlx: "vision_tower.vision_model.",
        module: "model.vision_tower.",
        others: &["model.vision_tower.vision_model.", "vision_tower.", "model.vision_tower."],
    },
    Beginning {
        own: "multi_modal_projector.",
        hf: "multi_modal_projector.",
        mlx: "multi_modal_projector.",
        module: "model.multi_modal_projector.",
        others: &["model.multi_modal_projector."],
    },
];
