//! `config.json` and plans.

use super::with_file;
use bitsmith_formats::mlx::Quantization;
use bitsmith_pipeline::plan_file;
use bitsmith_runtime::spec::ModelSpec;

/// A configuration.
pub fn run(data: &[u8]) {
    let Ok(config) = serde_json::from_slice::<serde_json::Value>(data) else { return };
    let _ = Quantization::of_config(&config);
    let Ok(spec) = ModelSpec::from_config(&config) else { return };
    if spec.validate().is_ok() {
        let roles = spec.roles();
        for role in roles.iter().take(100) {
            let _ = spec.shape(role.part);
        }
        let _ = spec.gguf_metadata();
        let _ = spec.to_config();
    }
}

/// One of every family.
pub fn seeds() -> Vec<Vec<u8>> {
    let common = r#""hidden_size":32,"intermediate_size":32,"num_attention_heads":4,"num_key_value_heads":2,"num_hidden_layers":2,"vocab_size":64,"max_position_embeddings":64,"rms_norm_eps":1e-5,"layer_norm_eps":1e-5,"head_dim":8,"tie_word_embeddings":true"#;
    let types = [
        "llama",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "gemma",
        "gemma2",
        "gemma3_text",
        "phi",
        "phi3",
        "gpt2",
        "gpt_neox",
        "stablelm",
        "olmo2",
        "granite",
        "cohere",
        "smollm3",
        "deepseek_v3",
        "gpt_oss",
        "bert",
        "llama4_text",
        "llava",
    ];
    let plain = types.map(|t| format!(r#"{{"model_type":"{t}",{common}}}"#).into_bytes());
    let scaled = [
        r#""rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":32}"#,
        r#""rope_scaling":{"type":"longrope","short_factor":[1,1,1,1],"long_factor":[2,2,2,2],"original_max_position_embeddings":32}"#,
        r#""rope_scaling":{"type":"yarn","factor":4.0,"original_max_position_embeddings":32}"#,
        r#""quantization":{"bits":4,"group_size":64,"mode":"affine","model.layers.0":{"bits":8},"lm_head":false}"#,
    ]
    .map(|more| format!(r#"{{"model_type":"llama",{common},{more}}}"#).into_bytes());
    plain.into_iter().chain(scaled).collect()
}

/// A plan.
pub fn run_plan(data: &[u8]) {
    with_file("plan.toml", data, |path| {
        let _ = plan_file::read(path);
    });
}

/// A plan as `--plan-out` writes it.
pub fn plan_seeds() -> Vec<Vec<u8>> {
    ["target = \"gguf:auto\"\nbytes = 7\nbits-per-weight = 4.5\npredicted-kld = 1e-2 # nats\n\n[tensors]\n\"attn_v\" = \"q6_k\" # adds 1e-3\n\"blk.0.ffn_down\" = \"mlx-4bit-g64\"\n", "[tensors]\n"]
        .map(|s| s.as_bytes().to_vec())
        .to_vec()
}
