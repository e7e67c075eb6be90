//! What transformers takes for keys that a nested configuration leaves out: `config.json` of a wrapped model often has only what
//! differs.

use serde_json::{Map, Value, json};

/// The values for a `model_type`; none for types that are always written out.
pub(super) fn of(model_type: &str) -> Map<String, Value> {
    let clip = |hidden: usize, heads: usize, patch: usize, act: &str, eps: f64| {
        json!({
            "hidden_size": hidden, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": heads, "image_size": 224,
            "patch_size": patch, "hidden_act": act, "layer_norm_eps": eps,
        })
    };
    let values = match model_type {
        "llama" => json!({
            "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2,
        }),
        "mistral" => json!({
            "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2,
        }),
        "qwen2" => json!({
            "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 32, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
        }),
        "gemma3_text" => json!({
            "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
            "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
            "sliding_window": 4096, "hidden_activation": "gelu_pytorch_tanh", "bos_token_id": 2, "eos_token_id": 1,
            "tie_word_embeddings": true, "rope_theta": 1e6,
        }),
        "qwen2_5_vl_text" => json!({
            "vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80, "num_attention_heads": 64,
            "num_key_value_heads": 8, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
        }),
        "clip_vision_model" => clip(768, 12, 32, "quick_gelu", 1e-5),
        "siglip_vision_model" => clip(768, 12, 16, "gelu_pytorch_tanh", 1e-6),
        "idefics3" | "idefics3_vision" | "smolvlm_vision" => clip(1152, 16, 32, "gelu_pytorch_tanh", 1e-6),
        "qwen2_5_vl" | "qwen2_5_vl_vision" => json!({
            "depth": 32, "hidden_size": 3584, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14, "spatial_merge_size": 2,
            "temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "hidden_act": "silu",
            // llama.cpp wants a size, though images keep theirs.
            "image_size": 560,
        }),
        _ => return Map::new(),
    };
    match values {
        Value::Object(values) => values,
        _ => Map::new(),
    }
}
