//! BERT encoders (MiniLM, BGE and other embedding models): tokens see each other in both directions, positions are learned, norms
//! follow each block. There is no output matrix: what a model gives are hidden states, pooled into one embedding of a text.

use super::config::Config;
use super::{Architecture, Client, family, to_config};
use crate::role::Part;
use crate::spec::{Activation, ModelSpec, Norm, Pooling, Rope, RopeUse};
use bitsmith_formats::{Error, gguf};
use serde_json::{Map, Value, json};

/// The table entry.
pub static BERT: Architecture = Architecture {
    name: "bert",
    model_types: &["bert"],
    gguf: "bert",
    hf_class: "BertModel",
    proof: &[Client::Transformers, Client::LlamaCpp],
    hf_names: NAMES,
    // Checkpoints with a head.
    aliases: &[("", "bert.")],
    superfluous: &["embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"],
    from_config: |arch, config| {
        let c = Config(config);
        family::refuse_switches(arch, c, &[("is_decoder", false), ("add_cross_attention", false)])?;
        if let Some(kind) = c.opt_str("position_embedding_type")?.filter(|kind| *kind != "absolute") {
            return Err(Error::unsupported(format!(
                "positions of kind `{kind}` (key `position_embedding_type`) are not supported"
            )));
        }
        if let Some(types) = c.opt_usize("type_vocab_size")?.filter(|n| *n != SEGMENT_TYPES) {
            return Err(Error::unsupported(format!("{types} segment types (key `type_vocab_size`) are not supported")));
        }
        let mut plain: Map<String, Value> = config.as_object().cloned().unwrap_or_default();
        plain.insert("tie_word_embeddings".into(), true.into());
        let mut spec = family::base(arch, Config(&Value::Object(plain)))?;
        family::set_activation(&mut spec, c, &[Activation::Gelu, Activation::GeluTanh])?;
        spec.remove(&[Part::OutputNorm, Part::AttnNorm, Part::FfnNorm, Part::FfnGate]);
        spec.add(&[Part::PositionEmbd, Part::TokenTypes, Part::EmbdNorm, Part::AttnResidualNorm, Part::LayerOutputNorm]);
        let biased: Vec<Part> = spec.parts.iter().filter_map(|p| p.bias()).collect();
        spec.add(&biased);
        encode(&mut spec);
        spec.validate()?;
        Ok(spec)
    },
    to_config: |spec| {
        let mut config = to_config::base(&BERT, spec)?;
        to_config::layer_norm(&mut config, spec);
        let foreign = ["head_dim", "num_key_value_heads", "rope_scaling", "rope_theta", "use_cache"];
        config.retain(|key, _| !foreign.contains(&key.as_str()));
        config.insert("position_embedding_type".into(), json!("absolute"));
        config.insert("type_vocab_size".into(), json!(SEGMENT_TYPES));
        Ok(config)
    },
    from_gguf: |spec, keys| {
        // llama.cpp always computes the approximation, whatever the model was trained with.
        spec.activation = match keys.opt_str(ACTIVATION)?.as_deref() {
            Some("gelu_pytorch_tanh") => Activation::GeluTanh,
            _ => Activation::Gelu,
        };
        spec.pooling = match keys.opt_usize("pooling_type")? {
            None | Some(0) => Pooling::None,
            Some(1) => Pooling::Mean,
            Some(2) => Pooling::Cls,
            Some(other) => {
                let key = keys.key("pooling_type");
                return Err(Error::unsupported(format!("pooling of kind {other} (key `{key}`) is not supported")));
            }
        };
        encode(spec);
        Ok(())
    },
    gguf_keys: |spec| {
        let pooling = match spec.pooling {
            Pooling::None => 0,
            Pooling::Mean => 1,
            Pooling::Cls => 2,
        };
        Ok(vec![
            ("attention.causal", false.into()),
            ("pooling_type", gguf::Value::U32(pooling)),
            (ACTIVATION, to_config::activation(spec.activation).into()),
        ])
    },
    ..Architecture::DECODER
};

/// Rows of the segment types' embedding.
const SEGMENT_TYPES: usize = 2;
/// GGUF's key for the activation.
const ACTIVATION: &str = "hidden_activation";

fn encode(spec: &mut ModelSpec) {
    spec.causal = false;
    spec.norm = Norm::layer(spec.norm.eps);
    spec.rope = Rope::NONE;
    spec.layers.iter_mut().for_each(|l| l.rope = RopeUse::None);
}

const NAMES: &[(Part, &str)] = &[
    (Part::TokenEmbd, "embeddings.word_embeddings.weight"),
    (Part::PositionEmbd, "embeddings.position_embeddings.weight"),
    (Part::TokenTypes, "embeddings.token_type_embeddings.weight"),
    (Part::EmbdNorm, "embeddings.LayerNorm.weight"),
    (Part::EmbdNormBias, "embeddings.LayerNorm.bias"),
    (Part::AttnQ, "encoder.layer.{}.attention.self.query.weight"),
    (Part::AttnQBias, "encoder.layer.{}.attention.self.query.bias"),
    (Part::AttnK, "encoder.layer.{}.attention.self.key.weight"),
    (Part::AttnKBias, "encoder.layer.{}.attention.self.key.bias"),
    (Part::AttnV, "encoder.layer.{}.attention.self.value.weight"),
    (Part::AttnVBias, "encoder.layer.{}.attention.self.value.bias"),
    (Part::AttnOutput, "encoder.layer.{}.attention.output.dense.weight"),
    (Part::AttnOutputBias, "encoder.layer.{}.attention.output.dense.bias"),
    (Part::AttnResidualNorm, "encoder.layer.{}.attention.output.LayerNorm.weight"),
    (Part::AttnResidualNormBias, "encoder.layer.{}.attention.output.LayerNorm.bias"),
    (Part::FfnUp, "encoder.layer.{}.intermediate.dense.weight"),
    (Part::FfnUpBias, "encoder.layer.{}.intermediate.dense.bias"),
    (Part::FfnDown, "encoder.layer.{}.output.dense.weight"),
    (Part::FfnDownBias, "encoder.layer.{}.output.dense.bias"),
    (Part::LayerOutputNorm, "encoder.layer.{}.output.LayerNorm.weight"),
    (Part::LayerOutputNormBias, "encoder.layer.{}.output.LayerNorm.bias"),
];
