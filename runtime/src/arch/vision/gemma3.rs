//! Gemma 3 with images: a SigLIP tower, whose patches are pooled to 256, normed and projected.

use super::tower::{CLIP, Piece};
use super::{Module, Wrapper, llava};
use bitsmith_formats::gguf::Value;

/// The table entry.
pub(super) static GEMMA3: Wrapper = Wrapper {
    name: "gemma3",
    model_types: &["gemma3"],
    text_type: "gemma3_text",
    tower_types: &["siglip_vision_model"],
    text: llava::TEXT,
    tower: llava::TOWER,
    modules: &[
        ("vision_tower.vision_model.", CLIP),
        (
            "multi_modal_projector.",
            &[
                Module::other("mm_input_projection_weight", &[("mm.input_projection.weight", Piece::All)]).single(),
                // A norm of Gemma's, stored less one.
                Module::other("mm_soft_emb_norm", &[("mm.soft_emb_norm", Piece::Plus(1.0))]),
            ],
        ),
    ],
    flat_in_mlx: false,
    projector: "gemma3",
    final_norm: true,
    layers: |v| v.all_layers(),
    gguf_keys: |v| {
        let mut keys = vec![("vision.attention.layer_norm_epsilon", v.layer_norm_eps()?), ("use_gelu", true.into())];
        // llama.cpp pools 4 by 4 patches unless told otherwise.
        let tokens = match v.whole.opt_usize("mm_tokens_per_image")? {
            Some(tokens) => tokens,
            None => v.processor.opt_usize("image_seq_length")?.unwrap_or(256),
        };
        let patches = v.tower.usize("image_size")? / v.tower.usize("patch_size")?.max(1);
        let pooled = patches / tokens.isqrt().max(1);
        if pooled > 0 && pooled != 4 {
            keys.push(("vision.projector.scale_factor", Value::U32(pooled as u32)));
        }
        Ok(keys)
    },
};
