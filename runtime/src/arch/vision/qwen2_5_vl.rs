//! Qwen 2.5 VL: a tower of its own with windows of attention, whose patches of two frames are merged four by four.

use super::tower::Piece::{All, Frame, Rows};
use super::{Beginning, Module, Wrapper};
use bitsmith_formats::gguf::Value;
use bitsmith_formats::{Error, Result};

/// The table entry.
pub(super) static QWEN2_5_VL: Wrapper = Wrapper {
    name: "qwen2_5_vl",
    model_types: &["qwen2_5_vl"],
    text_type: "qwen2_5_vl_text",
    tower_types: &["qwen2_5_vl_vision", "qwen2_5_vl"],
    text: &[
        Beginning {
            own: "model.",
            hf: "model.",
            mlx: "language_model.model.",
            module: "model.language_model.",
            others: &["model.language_model."],
        },
        Beginning { own: "lm_head.", hf: "lm_head.", mlx: "language_model.lm_head.", module: "lm_head.", others: &[] },
    ],
    tower: &[Beginning {
        own: "visual.",
        hf: "visual.",
        mlx: "vision_tower.",
        module: "model.visual.",
        others: &["model.visual."],
    }],
    modules: &[("visual.", MODULES)],
    flat_in_mlx: true,
    projector: "qwen2.5vl_merger",
    final_norm: true,
    layers: |v| v.all_layers(),
    gguf_keys: |v| {
        let act = v.tower.str("hidden_act")?;
        if act != "silu" {
            return Err(Error::unsupported(format!("llama.cpp has no `{act}` (key `hidden_act`) in towers of Qwen 2.5 VL")));
        }
        if v.tower.usize("temporal_patch_size")? != 2 {
            return Err(Error::unsupported("llama.cpp reads patches of two frames (`temporal_patch_size`) only"));
        }
        if v.tower.usize("spatial_merge_size")? != 2 {
            return Err(Error::unsupported("llama.cpp merges patches two by two (`spatial_merge_size`) only"));
        }
        if v.tower.usize("window_size")? != 112 {
            return Err(Error::unsupported("llama.cpp has windows of 112 pixels (`window_size`) only"));
        }
        Ok(vec![
            ("use_silu", true.into()),
            ("vision.n_wa_pattern", Value::U32(window_pattern(v)? as u32)),
            ("vision.attention.layer_norm_epsilon", Value::F32(v.whole.opt_f64("rms_norm_eps")?.unwrap_or(1e-6) as f32)),
        ])
    },
};

/// Of how many layers one sees the whole image.
fn window_pattern(v: &super::Vision<'_>) -> Result<usize> {
    let key = "fullatt_block_indexes";
    let list: Vec<usize> = v
        .tower
        .get(key)
        .and_then(|list| serde_json::from_value(list.clone()).ok())
        .ok_or_else(|| Error::corrupt(format!("key `{key}` is not a list of layers")))?;
    let regular = |period: &usize| list.iter().enumerate().all(|(i, layer)| *layer == (i + 1) * period - 1);
    list.first().map(|first| first + 1).filter(regular).ok_or_else(|| {
        Error::unsupported(format!("llama.cpp has attention to the whole image in every n-th layer; key `{key}` is {list:?}"))
            .hint("folder targets keep the model as it is")
    })
}

const MODULES: &[Module] = &[
    Module::patches("patch_embed.proj.weight", &[("v.patch_embd.weight", Frame(0)), ("v.patch_embd.weight.1", Frame(1))])
        .single(),
    Module::other("blocks.{}.norm1", &[("v.blk.{}.ln1", All)]),
    Module::other("blocks.{}.norm2", &[("v.blk.{}.ln2", All)]),
    Module::linear(
        "blocks.{}.attn.qkv",
        &[("v.blk.{}.attn_q", Rows(0, 3)), ("v.blk.{}.attn_k", Rows(1, 3)), ("v.blk.{}.attn_v", Rows(2, 3))],
    ),
    Module::linear("blocks.{}.attn.proj", &[("v.blk.{}.attn_out", All)]),
    Module::linear("blocks.{}.mlp.gate_proj", &[("v.blk.{}.ffn_gate", All)]),
    Module::linear("blocks.{}.mlp.up_proj", &[("v.blk.{}.ffn_up", All)]),
    Module::linear("blocks.{}.mlp.down_proj", &[("v.blk.{}.ffn_down", All)]),
    Module::other("merger.ln_q", &[("v.post_ln", All)]),
    Module::linear("merger.mlp.0", &[("mm.0", All)]),
    Module::linear("merger.mlp.2", &[("mm.2", All)]),
];
