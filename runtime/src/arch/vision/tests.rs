use super::*;
use crate::arch::ContainerKind;
use crate::spec::{ModelSpec, RopeScaling};
use serde_json::json;

fn wrapper(model_type: &str) -> &'static Wrapper {
    Wrapper::of(&json!({"model_type": model_type})).unwrap()
}

/// All that transformers, mlx-vlm and older writers call a tensor is the same tensor, written as the container has it.
#[test]
fn names_of_all_writers() {
    for (kind, own, hf, mlx, others) in [
        (
            "llava",
            "model.norm.weight",
            "language_model.model.norm.weight",
            "language_model.model.norm.weight",
            vec!["model.language_model.norm.weight"],
        ),
        ("llava", "lm_head.weight", "language_model.lm_head.weight", "language_model.lm_head.weight", vec!["lm_head.weight"]),
        (
            "qwen2_5_vl",
            "model.layers.3.mlp.up_proj.weight",
            "model.layers.3.mlp.up_proj.weight",
            "language_model.model.layers.3.mlp.up_proj.weight",
            vec!["model.language_model.layers.3.mlp.up_proj.weight"],
        ),
        ("smolvlm", "model.norm.weight", "model.text_model.norm.weight", "language_model.norm.weight", vec![]),
        ("idefics3", "lm_head.weight", "lm_head.weight", "language_model.lm_head.weight", vec![]),
        (
            "gemma3",
            "model.embed_tokens.weight",
            "language_model.model.embed_tokens.weight",
            "language_model.model.embed_tokens.weight",
            vec!["model.language_model.embed_tokens.weight"],
        ),
    ] {
        let w = wrapper(kind);
        for name in [hf, mlx].into_iter().chain(others) {
            let sorted = w.sort([name]).unwrap();
            assert_eq!(sorted.text.get(own).map(String::as_str), Some(name), "{kind}");
            assert!(sorted.tower.tensors.is_empty());
        }
        assert_eq!((w.text_name(ContainerKind::Hf, own), w.text_name(ContainerKind::Mlx, own)), (hf.into(), mlx.into()));
    }
    for (kind, hf, mlx, gguf, others) in [
        (
            "llava",
            "vision_tower.vision_model.encoder.layers.12.mlp.fc1.bias",
            "vision_tower.vision_model.encoder.layers.12.mlp.fc1.bias",
            vec!["v.blk.12.ffn_up.bias"],
            vec!["vision_tower.encoder.layers.12.mlp.fc1.bias", "model.vision_tower.vision_model.encoder.layers.12.mlp.fc1.bias"],
        ),
        (
            "gemma3",
            "multi_modal_projector.mm_input_projection_weight",
            "multi_modal_projector.mm_input_projection_weight",
            vec!["mm.input_projection.weight"],
            vec!["model.multi_modal_projector.mm_input_projection_weight"],
        ),
        (
            "qwen2_5_vl",
            "visual.blocks.7.attn.qkv.bias",
            "vision_tower.blocks.7.attn.qkv.bias",
            vec!["v.blk.7.attn_q.bias", "v.blk.7.attn_k.bias", "v.blk.7.attn_v.bias"],
            vec!["model.visual.blocks.7.attn.qkv.bias"],
        ),
        (
            "qwen2_5_vl",
            "visual.patch_embed.proj.weight",
            "vision_tower.patch_embed.proj.weight",
            vec!["v.patch_embd.weight", "v.patch_embd.weight.1"],
            vec![],
        ),
        (
            "smolvlm",
            "model.connector.modality_projection.proj.weight",
            "connector.modality_projection.proj.weight",
            vec!["mm.model.fc.weight"],
            vec![],
        ),
        (
            "idefics3",
            "model.vision_model.embeddings.patch_embedding.bias",
            "vision_model.embeddings.patch_embedding.bias",
            vec!["v.patch_embd.bias"],
            vec![],
        ),
    ] {
        for name in [hf, mlx].into_iter().chain(others) {
            let sorted = wrapper(kind).sort([name]).unwrap();
            let [tensor] = &sorted.tower.tensors[..] else { panic!("{name}: {sorted:?}") };
            assert_eq!((tensor.folder_name(ContainerKind::Hf), tensor.folder_name(ContainerKind::Mlx)), (hf.into(), mlx.into()));
            assert_eq!(tensor.gguf().map(|(name, _)| name).collect::<Vec<_>>(), gguf);
        }
    }
    let pooling = wrapper("gemma3").sort(["vision_tower.vision_model.head.attention.in_proj_weight"]).unwrap().tower;
    assert_eq!(pooling.tensors[0].gguf().count(), 0);
    assert_eq!(wrapper("smolvlm").roots(), ["vision_model", "connector"]);
    assert_eq!(wrapper("llava").roots(), ["vision_tower", "multi_modal_projector"]);
    assert_eq!(wrapper("gemma3").module_name("model.layers.0.mlp.up_proj"), "model.language_model.layers.0.mlp.up_proj");
}

#[test]
fn every_tensor_is_accounted_for() {
    let sorted = wrapper("llava").sort(["vision_tower.vision_model.embeddings.position_ids"]).unwrap();
    assert_eq!(sorted.dropped, ["vision_tower.vision_model.embeddings.position_ids"]);
    for (kind, name) in [
        ("llava", "vision_tower.vision_model.encoder.layers.0.gamma.weight"),
        ("llava", "image_newline"),
        ("gemma3", "vision_tower.vision_model.encoder.layers.x.mlp.fc1.weight"),
        ("gemma3", "audio_tower.conv.weight"),
    ] {
        let e = wrapper(kind).sort([name]).unwrap_err();
        assert_eq!((e.kind, e.tensor.as_deref()), (bitsmith_formats::ErrorKind::Unsupported, Some(name)));
    }
}

#[test]
fn text_models_are_completed() {
    let gemma = json!({
        "model_type": "gemma3", "eos_token_id": [1, 106], "vision_config": {},
        "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "model_type": "gemma3_text",
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
    });
    let spec = ModelSpec::from_config(&gemma).unwrap();
    assert_eq!((spec.n_heads, spec.vocab_size, spec.head_dim, spec.tied, &spec.eos[..]), (8, 262208, 256, true, &[1, 106][..]));
    assert_eq!((spec.rope.theta, &spec.rope.scaling), (1e6, &RopeScaling::Linear { factor: 8.0 }));
    assert_eq!(spec.local_rope.unwrap().theta, 1e4);
    let old = json!({
        "model_type": "qwen2_5_vl", "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 2, "vocab_size": 151936, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": true,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "use_sliding_window": false, "sliding_window": 32768,
        "max_position_embeddings": 128000, "vision_config": {},
    });
    let spec = ModelSpec::from_config(&old).unwrap();
    assert_eq!((spec.arch.name, &spec.rope.scaling, spec.tied), ("qwen2_5_vl_text", &RopeScaling::Sections([16, 24, 24]), true));
    let keys = spec.gguf_metadata().unwrap();
    assert!(keys.iter().any(|(k, v)| k == "qwen2vl.rope.dimension_sections" && v.to_json() == json!([16, 24, 24, 0])));
    assert_eq!(spec.to_config().unwrap()["model_type"], "qwen2");
    let llava = json!({"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064}, "vision_config": {}});
    assert_eq!(ModelSpec::from_config(&llava).unwrap().ffn_size, 11008);
    let odd = json!({"model_type": "llava", "text_config": {"model_type": "telepathy"}, "vision_config": {}});
    assert!(ModelSpec::from_config(&odd).unwrap_err().message.contains("telepathy"));
}

#[test]
fn pieces_of_tensors() {
    let data: Vec<f32> = (0..12).map(|i| i as f32).collect();
    assert_eq!(Piece::Rows(1, 3).cut(&[6, 2], &data).unwrap(), (vec![2, 2], vec![4.0, 5.0, 6.0, 7.0]));
    assert_eq!(Piece::Frame(1).cut(&[1, 3, 2, 1, 2], &data).unwrap(), (vec![1, 3, 1, 2], vec![2.0, 3.0, 6.0, 7.0, 10.0, 11.0]));
    assert_eq!(Piece::Plus(1.0).cut(&[2], &[1.0, 2.0]).unwrap().1, [2.0, 3.0]);
    assert!(Piece::Rows(0, 3).cut(&[4, 3], &data).is_err() && Piece::Frame(0).cut(&[4, 3], &data).is_err());
}

#[test]
fn metadata_of_projector_files() {
    let clip = json!({"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 28,
        "patch_size": 14, "model_type": "clip_vision_model"});
    let images = json!({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]});
    let of = |changes: Value| {
        let mut config = json!({"model_type": "llava", "vision_config": clip});
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        wrapper("llava").projector_metadata(&config, &images, 128)
    };
    let number = |keys: &[(String, GgufValue)], key: &str| keys.iter().find(|(k, _)| k == key).map(|(_, v)| v.to_json());
    let keys = of(json!({"vision_feature_layer": -2})).unwrap();
    assert_eq!(number(&keys, "clip.vision.block_count"), Some(json!(2)));
    assert_eq!(number(&keys, "clip.vision.feature_layer"), Some(json!([2])));
    assert_eq!(number(&keys, "clip.vision.projection_dim"), Some(json!(128)));
    assert_eq!(number(&keys, "clip.use_gelu"), Some(json!(false)));
    for (changes, word) in [
        (json!({"vision_feature_layer": [1, 2]}), "one layer"),
        (json!({"vision_feature_layer": 4}), "names no layer"),
        (json!({"vision_feature_select_strategy": "full"}), "full"),
        (json!({"vision_config": {"model_type": "pixtral"}}), "pixtral"),
    ] {
        let e = of(changes).unwrap_err();
        assert!(e.message.contains(word), "{e}");
    }
    let e = wrapper("llava").projector_metadata(&json!({"vision_config": clip}), &json!({}), 128).unwrap_err();
    assert!(e.message.contains("image_mean") && e.hint.is_some());
}
