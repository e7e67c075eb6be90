//! Idefics 3 and SmolVLM: a SigLIP tower, whose patches are folded together and projected by one matrix, before a Llama.

use super::tower::{CLIP, Piece::All};
use super::{Beginning, Module, Wrapper};
use bitsmith_formats::gguf::Value;

/// The table entry.
pub(super) static IDEFICS3: Wrapper = Wrapper {
    name: "idefics3",
    model_types: &["idefics3", "smolvlm"],
    text_type: "llama",
    tower_types: &["idefics3_vision", "smolvlm_vision", "idefics3"],
    text: &[
        Beginning {
            own: "model.",
            hf: "model.text_model.",
            mlx: "language_model.",
            module: "model.text_model.",
            others: &["text_model.", "language_model.model."],
        },
        Beginning {
            own: "lm_head.",
            hf: "lm_head.",
            mlx: "language_model.lm_head.",
            module: "lm_head.",
            others: &["model.lm_head."],
        },
    ],
    tower: &[
        Beginning {
            own: "model.vision_model.",
            hf: "model.vision_model.",
            mlx: "vision_model.",
            module: "model.vision_model.",
            others: &[],
        },
        Beginning { own: "model.connector.", hf: "model.connector.", mlx: "connector.", module: "model.connector.", others: &[] },
    ],
    modules: &[
        ("model.vision_model.", CLIP),
        ("model.connector.", &[Module::linear("modality_projection.proj", &[("mm.model.fc", All)])]),
    ],
    flat_in_mlx: false,
    projector: "idefics3",
    final_norm: true,
    layers: |v| v.all_layers(),
    gguf_keys: |v| {
        let size = v.processor.opt_object("size")?.map(|s| s.opt_usize("longest_edge")).transpose()?.flatten();
        let longest = match size {
            Some(size) => size,
            None => v.tower.usize("image_size")?,
        };
        Ok(vec![
            ("vision.attention.layer_norm_epsilon", v.layer_norm_eps()?),
            ("vision.projector.scale_factor", Value::U32(v.whole.opt_usize("scale_factor")?.unwrap_or(2) as u32)),
            ("use_gelu", true.into()),
            ("vision.preproc_image_size", Value::U32(longest as u32)),
        ])
    },
};
